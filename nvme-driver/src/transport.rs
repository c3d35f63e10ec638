//! [`Transport`]: the few things this driver needs of the way to a PCI function.
//!
//! There are two ways. [`client`] is the `vfio_user` crate's client, the one cloud-hypervisor has: it maps all memory
//! readable and writable, ignores error replies to most messages and waits for ever. [`wire`] speaks the protocol
//! itself where a test needs more: other permissions, memory without a descriptor, error numbers and timeouts.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::error::Result;
use crate::memory::Arena;

pub mod client;
pub mod wire;

/// Region index of BAR0 (VFIO_PCI_BAR0_REGION_INDEX).
pub const BAR0: u32 = 0;
/// Region index of the configuration space (VFIO_PCI_CONFIG_REGION_INDEX).
pub const CONFIG: u32 = 7;
/// IRQ index of MSI-X (VFIO_PCI_MSIX_IRQ_INDEX).
pub const MSIX: u32 = 2;

/// What the device may do with memory, and how it gets at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapAccess {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
    /// The memfd goes with the message. Without, the server could only ask for the bytes by message.
    pub descriptor: bool,
}

impl MapAccess {
    /// Readable and writable, by descriptor.
    pub const FULL: Self = Self { read: true, write: true, descriptor: true };
    /// Read by the device only.
    pub const READ_ONLY: Self = Self { write: false, ..Self::FULL };
    /// Written by the device only.
    pub const WRITE_ONLY: Self = Self { read: false, ..Self::FULL };
    /// Readable and writable, without a descriptor.
    pub const NO_DESCRIPTOR: Self = Self { descriptor: false, ..Self::FULL };
}

/// A part of a region that can be mapped.
#[derive(Debug)]
pub struct MappableArea {
    /// Offset in the region.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What to map.
    pub fd: OwnedFd,
    /// Where in `fd` the area begins.
    pub fd_offset: u64,
}

/// The way to one PCI function.
pub trait Transport: Send {
    /// Reads from a region.
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<()>;

    /// Writes to a region.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()>;

    /// The parts of a region that can be mapped.
    fn mappable(&mut self, region: u32) -> Result<Vec<MappableArea>>;

    /// Lets the device reach an arena's memory.
    fn dma_map(&mut self, arena: &Arena, access: MapAccess) -> Result<()>;

    /// Takes memory away from the device. When this returns it is not touched any more.
    fn dma_unmap(&mut self, iova: u64, len: u64) -> Result<()>;

    /// Number of interrupts of an index.
    fn irq_count(&mut self, index: u32) -> Result<u32>;

    /// Connects eventfds to interrupts `start..start + fds.len()` of an index.
    fn connect_irqs(&mut self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<()>;

    /// Disconnects all interrupts of an index.
    fn disable_irqs(&mut self, index: u32) -> Result<()>;

    /// Resets the function (DEVICE_RESET).
    fn reset(&mut self) -> Result<()>;

    /// Closes the connection. Everything else fails from then on.
    fn disconnect(&mut self);
}

/// SET_IRQS flags.
pub(crate) mod irq_flags {
    pub(crate) const DATA_NONE: u32 = 1 << 0;
    pub(crate) const DATA_EVENTFD: u32 = 1 << 2;
    pub(crate) const ACTION_TRIGGER: u32 = 1 << 5;
}
