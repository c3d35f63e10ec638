//! [`Interrupts`]: eventfds towards the guest, replaced at any time while reactors signal them.
//!
//! Triggering takes no lock. The order is the same everywhere: who makes an interrupt due says so first and
//! looks for an eventfd then; who connects an eventfd stores it first and looks for a due interrupt then;
//! with a full fence between. One of the two sees the other.
//!
//! A client that makes a write to its eventfd sleep loses all of its eventfds and its connection: see
//! [`Breakage`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use arc_swap::ArcSwapOption;

use crate::sigbus::{Breakage, Cause};
use crate::watchdog::{Event, Stuck};

/// Interrupt indexes of a PCI function (linux/vfio.h, VFIO_PCI_*_IRQ_INDEX).
pub mod index {
    /// The INTx pin.
    pub const INTX: u32 = 0;
    /// MSI: for functions that offer it in place of MSI-X.
    pub const MSI: u32 = 1;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// Device error.
    pub const ERR: u32 = 3;
    /// Device wants to be given back.
    pub const REQ: u32 = 4;
    /// Number of indexes.
    pub const COUNT: u32 = 5;
}

/// Why a change of interrupts is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrqError {
    /// No such index, or more vectors than it has.
    #[error("no such interrupt")]
    NoSuchVector,
    /// This index cannot be masked.
    #[error("this interrupt cannot be masked")]
    NotMaskable,
    /// The descriptor is no eventfd.
    #[error("the descriptor is no eventfd")]
    NotEventfd,
    /// No thread could be started to watch over signals, or the client is to be disconnected.
    #[error("eventfds cannot be taken now")]
    Unavailable,
}

/// An eventfd and whether a signal waits for it.
#[derive(Debug, Default)]
struct Vector {
    event: ArcSwapOption<Event>,
    masked: AtomicBool,
    pending: AtomicBool,
}

/// Writes to the eventfd; to the new one too when it is replaced meanwhile, for nobody may listen to the old
/// one any more. A signal too many does no harm. Returns whether there was one.
#[inline]
fn signal(slot: &ArcSwapOption<Event>) -> Result<bool, Stuck> {
    let mut event = slot.load();
    loop {
        let Some(fd) = event.as_ref() else { return Ok(false) };
        fd.signal()?;
        fence(Ordering::SeqCst);
        let now = slot.load();
        let (old, new) = (Arc::as_ptr(fd), now.as_ref().map(Arc::as_ptr));
        if new == Some(old) {
            return Ok(true);
        }
        drop(event);
        event = now;
    }
}

impl Vector {
    /// Signals now, or leaves the vector pending.
    #[inline]
    fn trigger(&self) -> Result<(), Stuck> {
        if !self.masked.load(Ordering::Acquire) && self.signal()? {
            return Ok(());
        }
        self.pending.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.deliver()
    }

    /// Signals if the vector is pending and can be signalled.
    fn deliver(&self) -> Result<(), Stuck> {
        loop {
            if self.masked.load(Ordering::SeqCst) || self.event.load().is_none() {
                return Ok(());
            }
            if !self.pending.swap(false, Ordering::SeqCst) || self.signal()? {
                return Ok(());
            }
            // Disconnected just now, and perhaps connected again before this store: look again.
            self.pending.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    #[inline]
    fn signal(&self) -> Result<bool, Stuck> {
        signal(&self.event)
    }

    fn connect(&self, event: Option<Arc<Event>>) -> Result<(), Stuck> {
        self.event.store(event);
        fence(Ordering::SeqCst);
        self.deliver()
    }

    fn mask(&self, masked: bool) -> Result<(), Stuck> {
        self.masked.store(masked, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if masked { Ok(()) } else { self.deliver() }
    }

    fn clear(&self) {
        self.event.store(None);
        self.masked.store(false, Ordering::SeqCst);
        self.pending.store(false, Ordering::SeqCst);
    }
}

/// INTx: the pin is high.
const LEVEL: u32 = 1 << 0;
/// INTx: masked by the client, or by a signal (vfio's AUTOMASKED).
const MASKED: u32 = 1 << 1;
/// INTx: switched off by the PCI command register.
const DISABLED: u32 = 1 << 2;

/// The interrupts of one function. Triggering takes no lock.
#[derive(Debug)]
pub struct Interrupts {
    /// Of MSI-X, or of MSI.
    msix: Box<[Vector]>,
    /// The index they are connected by: MSI-X or MSI.
    message_index: u32,
    msix_enabled: AtomicBool,
    intx: AtomicU32,
    intx_event: ArcSwapOption<Event>,
    /// ERR and REQ.
    notices: [Vector; 2],
    /// Told when the client makes a signal sleep.
    breakage: Arc<Breakage>,
}

impl Interrupts {
    /// `msix_vectors` MSI-X vectors and an INTx pin, none connected. `breakage` is told of a client that
    /// has to be disconnected.
    pub fn new(msix_vectors: u16, breakage: Arc<Breakage>) -> Self {
        Self {
            msix: (0..msix_vectors).map(|_| Vector::default()).collect(),
            message_index: index::MSIX,
            msix_enabled: AtomicBool::new(false),
            intx: AtomicU32::new(0),
            intx_event: ArcSwapOption::empty(),
            notices: Default::default(),
            breakage,
        }
    }

    /// The same with MSI in place of MSI-X.
    pub fn with_msi(vectors: u16, breakage: Arc<Breakage>) -> Self {
        Self { message_index: index::MSI, ..Self::new(vectors, breakage) }
    }

    /// Number of MSI-X (or MSI) vectors.
    pub fn msix_vectors(&self) -> u16 {
        self.msix.len() as u16
    }

    /// Whether the client has connected MSI-X or MSI (SET_IRQS on its index since the last disable).
    #[inline]
    pub fn msix_enabled(&self) -> bool {
        self.msix_enabled.load(Ordering::Acquire)
    }

    /// Signals an MSI-X or MSI vector: one write to its eventfd. While it is masked or has no eventfd the vector
    /// is pending, and is signalled once it can be.
    #[inline]
    pub fn trigger(&self, vector: u16) {
        if let Some(vector) = self.msix.get(usize::from(vector)) {
            self.expect(vector.trigger());
        }
    }

    /// What comes of a signal: a client that made it sleep gets no other.
    #[inline]
    fn expect(&self, signalled: Result<(), Stuck>) {
        if signalled.is_err() {
            self.give_up();
        }
    }

    /// Forgets all eventfds, for each could make a thread sleep as long, and has the client disconnected.
    #[cold]
    fn give_up(&self) {
        self.breakage.set(Cause::Eventfd);
        self.intx_event.store(None);
        self.msix.iter().chain(&self.notices).for_each(|vector| vector.event.store(None));
    }

    /// Whether a vector waits to be signalled (its bit in the MSI-X pending bit array).
    pub fn is_pending(&self, vector: u16) -> bool {
        self.msix.get(usize::from(vector)).is_some_and(|v| v.pending.load(Ordering::Acquire))
    }

    /// Sets the level of the INTx pin. Rising, and unmasking while high, signal the eventfd.
    pub fn set_intx(&self, level: bool) {
        if (self.intx.load(Ordering::SeqCst) & LEVEL != 0) == level {
            return;
        }
        if level {
            self.intx.fetch_or(LEVEL, Ordering::SeqCst);
            self.evaluate_intx();
        } else {
            self.intx.fetch_and(!LEVEL, Ordering::SeqCst);
        }
    }

    /// The level of the INTx pin (PCI status register, bit 3).
    pub fn intx(&self) -> bool {
        self.intx.load(Ordering::Acquire) & LEVEL != 0
    }

    /// Switches INTx off or on (PCI command register, bit 10).
    pub fn set_intx_disabled(&self, disabled: bool) {
        self.set_intx_bit(DISABLED, disabled);
    }

    fn set_intx_bit(&self, bit: u32, on: bool) {
        if on {
            self.intx.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.intx.fetch_and(!bit, Ordering::SeqCst);
            self.evaluate_intx();
        }
    }

    /// Signals and masks INTx if it is due.
    fn evaluate_intx(&self) {
        fence(Ordering::SeqCst);
        if self.intx_event.load().is_none() {
            return;
        }
        let due = self.intx.compare_exchange(LEVEL, LEVEL | MASKED, Ordering::SeqCst, Ordering::SeqCst);
        if due.is_ok() {
            // An eventfd that comes after the last look unmasks the pin when it is there.
            self.expect(signal(&self.intx_event).map(drop));
        }
    }

    /// Number of vectors of an index.
    pub fn vectors(&self, index: u32) -> u32 {
        match index {
            index::INTX | index::ERR | index::REQ => 1,
            index if index == self.message_index => self.msix.len() as u32,
            _ => 0,
        }
    }

    fn vector(&self, index: u32, vector: u32) -> Option<&Vector> {
        match index {
            index if index == self.message_index => self.msix.get(vector as usize),
            index::ERR | index::REQ if vector == 0 => self.notices.get((index - index::ERR) as usize),
            _ => None,
        }
    }

    fn check(&self, index: u32, start: u32, count: usize) -> Result<(), IrqError> {
        let end = u64::from(start) + count as u64;
        if index >= index::COUNT || end > u64::from(self.vectors(index)) {
            return Err(IrqError::NoSuchVector);
        }
        Ok(())
    }

    /// Connects (or with `None` disconnects) the eventfds of consecutive vectors. All or none.
    pub fn set_eventfds(&self, index: u32, start: u32, fds: Vec<Option<OwnedFd>>) -> Result<(), IrqError> {
        self.check(index, start, fds.len())?;
        if !fds.iter().flatten().all(accept_eventfd) {
            return Err(IrqError::NotEventfd);
        }
        if self.breakage.is_broken() {
            return Err(IrqError::Unavailable);
        }
        let events = fds.into_iter().map(|fd| fd.map(|fd| Event::new(fd).map(Arc::new)).transpose());
        let events: Vec<_> = events.collect::<Result<_, _>>().map_err(|error| {
            tracing::debug!(%error, "watchdog");
            IrqError::Unavailable
        })?;
        for (vector, event) in (start..).zip(events) {
            if index == index::INTX {
                self.intx_event.store(event);
                // A mask is of the connection: it does not outlive it. Signals if the pin is high.
                self.set_intx_bit(MASKED, false);
            } else if let Some(vector) = self.vector(index, vector) {
                self.expect(vector.connect(event));
            }
        }
        if index == self.message_index {
            self.msix_enabled.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Masks or unmasks consecutive vectors.
    pub fn set_masked(&self, index: u32, start: u32, count: u32, masked: bool) -> Result<(), IrqError> {
        self.check(index, start, count as usize)?;
        for vector in start..start + count {
            match index {
                index::INTX => self.set_intx_bit(MASKED, masked),
                index::MSIX => {
                    if let Some(vector) = self.vector(index, vector) {
                        self.expect(vector.mask(masked));
                    }
                }
                _ => return Err(IrqError::NotMaskable),
            }
        }
        Ok(())
    }

    /// Signals consecutive vectors as if the device had (SET_IRQS with DATA_NONE or DATA_BOOL).
    pub fn fire(&self, index: u32, start: u32, count: u32) -> Result<(), IrqError> {
        self.check(index, start, count as usize)?;
        for vector in start..start + count {
            if index == index::INTX {
                if let Some(event) = self.intx_event.load().as_ref() {
                    self.expect(event.signal());
                }
            } else if let Some(vector) = self.vector(index, vector) {
                self.expect(vector.trigger());
            }
        }
        Ok(())
    }

    /// Disconnects all vectors of an index and forgets what was masked or pending.
    pub fn disable(&self, index: u32) -> Result<(), IrqError> {
        self.check(index, 0, 0)?;
        if index == self.message_index {
            self.msix_enabled.store(false, Ordering::Release);
        }
        if index == index::INTX {
            self.intx_event.store(None);
            self.intx.fetch_and(!MASKED, Ordering::SeqCst);
        }
        (0..self.vectors(index)).filter_map(|v| self.vector(index, v)).for_each(Vector::clear);
        Ok(())
    }

    /// The function was reset: what was pending is not any more. Eventfds stay connected.
    pub fn forget_pending(&self) {
        for vector in self.msix.iter().chain(&self.notices) {
            vector.pending.store(false, Ordering::SeqCst);
        }
    }

    /// The client is gone: nothing is connected, pending or masked. The pin keeps its level.
    pub fn clear(&self) {
        for index in 0..index::COUNT {
            let _ = self.disable(index);
        }
        self.intx.fetch_and(LEVEL, Ordering::SeqCst);
    }
}

/// Whether a descriptor is an eventfd. Nothing is if it cannot be found out.
pub(crate) fn is_eventfd(fd: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    is_eventfd_link(std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())))
}

/// Other files are somewhere, so their links begin with a slash, or are anonymous under names of their own.
fn is_eventfd_link(link: std::io::Result<std::path::PathBuf>) -> bool {
    link.is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]")
}

/// Makes an eventfd non-blocking: a full one must not stop a reactor. The client can take that back, for it
/// shares the open file; then the [watchdog](crate::watchdog) has to act.
fn accept_eventfd(fd: &OwnedFd) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    if !is_eventfd(fd) {
        return false;
    }
    match fcntl_getfl(fd.as_fd()) {
        Ok(flags) if flags.contains(OFlags::NONBLOCK) => true,
        Ok(flags) => fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests;
