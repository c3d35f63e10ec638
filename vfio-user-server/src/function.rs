//! [`PciFunction`]: what the protocol server needs of a device.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// A function's identity and shape. Fixed for its life.
#[derive(Clone, Debug)]
pub struct FunctionInfo {
    /// PCI vendor.
    pub vendor_id: u16,
    /// PCI device.
    pub device_id: u16,
    /// Subsystem vendor.
    pub subsystem_vendor_id: u16,
    /// Subsystem device.
    pub subsystem_id: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface, as in configuration space 09h-0Bh: 0xCCSSPP.
    pub class_code: u32,
    /// Device serial number (extended capability 0003h).
    pub serial_number: u64,
    /// Base address registers. All are 64-bit memory; a BAR takes its index and the next one. The server
    /// adds one of its own at index 4 for the MSI-X table and PBA.
    pub bars: Vec<Bar>,
    /// Number of message-signalled vectors: of MSI-X 1 to 2048, of MSI a power of two up to 32.
    pub msix_vectors: u16,
    /// Offer MSI and not MSI-X: no BAR for a table then. The function's [`Host`](crate::Host) is made by
    /// [`Host::with_msi`](crate::Host::with_msi).
    pub msi: bool,
    /// Whether the function has an INTx pin.
    pub intx: bool,
}

/// One base address register.
#[derive(Clone, Debug)]
pub struct Bar {
    /// 0 or 2.
    pub index: u8,
    /// Bytes, a power of two.
    pub size: u64,
}

/// A part of a BAR that is plain shared memory: stores there reach the function without a message.
#[derive(Clone, Debug)]
pub struct MappableArea {
    /// Offset in the BAR, page aligned.
    pub offset: u64,
    /// Bytes, page aligned.
    pub size: u64,
    /// A sealed memfd that holds the area at file offset `offset` (so BAR offsets are file offsets).
    pub memory: Arc<OwnedFd>,
}

/// What asked for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// vfio-user DEVICE_RESET.
    Device,
    /// Function level reset through the PCI Express capability.
    FunctionLevel,
    /// Power state D3hot to D0 (PM capability without No_Soft_Reset).
    PowerState,
}

/// Resolves when what was asked for is done.
pub type Quiesced = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A PCI function behind a vfio-user socket. Calls come from the control threads, in the order of the
/// client's messages; none may block.
pub trait PciFunction: Send + Sync + 'static {
    /// Identity and shape.
    fn info(&self) -> &FunctionInfo;

    /// A client has come. Whatever it asks follows, and [`Self::detach`] ends it. Must not block.
    fn attach(&self) {}

    /// The part of a BAR that a client may map, if there is one. Asked each time that a client asks, so a
    /// function can give each client memory of its own: what a client has mapped stays in its hands after it
    /// left. Only the memory may be another from one [`Self::detach`] to the next.
    fn mappable(&self, bar: u8) -> Option<MappableArea>;

    /// A read of a BAR, in range but of any size and alignment. Bytes that mean nothing read as zero.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// A write to a BAR, in range but of any size and alignment.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// Returns the function to its power-on state. Resolves when it is there and nothing of the time before
    /// touches guest memory or interrupts any more.
    fn reset(&self, reset: Reset) -> Quiesced;

    /// Guest memory was added, bus mastering was switched, or interrupts were connected: what waited for that may go on. Must
    /// not block.
    fn host_changed(&self) {}

    /// The DMA table was replaced by one with fewer regions. Resolves when nothing reaches the regions that
    /// are gone: soon if possible; by `deadline` at the latest, when I/O that still holds them is cancelled.
    /// Resolving more than a second early says that nothing uses them; after that the server looks for
    /// itself, and disconnects the client if something holds on.
    fn retire_memory(&self, deadline: Instant) -> Quiesced;

    /// The client is gone. Resolves when nothing touches its memory and interrupts any more, and the
    /// function is in its power-on state for the next client. I/O that was accepted is carried out or
    /// cancelled, by `deadline` if that can be: whoever needs longer resolves later, and nobody is served
    /// meanwhile.
    fn detach(&self, deadline: Instant) -> Quiesced;
}
