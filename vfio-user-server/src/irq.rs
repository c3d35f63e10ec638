//! [`Interrupts`]: eventfds towards the guest, replaced at any time while reactors signal them.
//!
//! Triggering takes no lock. The order is the same everywhere: who makes an interrupt due says so first and
//! looks for an eventfd then; who connects an eventfd stores it first and looks for a due interrupt then;
//! with a full fence between. One of the two sees the other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use arc_swap::ArcSwapOption;

/// Interrupt indexes of a PCI function (linux/vfio.h, VFIO_PCI_*_IRQ_INDEX).
pub mod index {
    /// The INTx pin.
    pub const INTX: u32 = 0;
    /// MSI: not offered.
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
}

/// An eventfd and whether a signal waits for it.
#[derive(Debug, Default)]
struct Vector {
    event: ArcSwapOption<OwnedFd>,
    masked: AtomicBool,
    pending: AtomicBool,
}

impl Vector {
    /// Signals now, or leaves the vector pending.
    #[inline]
    fn trigger(&self) {
        if !self.masked.load(Ordering::Acquire) && self.signal() {
            return;
        }
        self.pending.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.deliver();
    }

    /// Signals if the vector is pending and can be signalled.
    fn deliver(&self) {
        loop {
            if self.masked.load(Ordering::SeqCst) || self.event.load().is_none() {
                return;
            }
            if !self.pending.swap(false, Ordering::SeqCst) || self.signal() {
                return;
            }
            // Disconnected just now, and perhaps connected again before this store: look again.
            self.pending.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    /// Writes to the eventfd; to the new one too when it is replaced meanwhile, for nobody may listen to the
    /// old one any more. A signal too many does no harm. Returns whether there was one.
    #[inline]
    fn signal(&self) -> bool {
        let mut event = self.event.load();
        loop {
            let Some(fd) = event.as_ref() else { return false };
            signal_eventfd(fd);
            fence(Ordering::SeqCst);
            let now = self.event.load();
            let (old, new) = (Arc::as_ptr(fd), now.as_ref().map(Arc::as_ptr));
            if new == Some(old) {
                return true;
            }
            drop(event);
            event = now;
        }
    }

    fn connect(&self, event: Option<Arc<OwnedFd>>) {
        self.event.store(event);
        fence(Ordering::SeqCst);
        self.deliver();
    }

    fn mask(&self, masked: bool) {
        self.masked.store(masked, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !masked {
            self.deliver();
        }
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
    msix: Box<[Vector]>,
    msix_enabled: AtomicBool,
    intx: AtomicU32,
    intx_event: ArcSwapOption<OwnedFd>,
    /// ERR and REQ.
    notices: [Vector; 2],
}

impl Interrupts {
    /// `msix_vectors` MSI-X vectors and an INTx pin, none connected.
    pub fn new(msix_vectors: u16) -> Self {
        Self {
            msix: (0..msix_vectors).map(|_| Vector::default()).collect(),
            msix_enabled: AtomicBool::new(false),
            intx: AtomicU32::new(0),
            intx_event: ArcSwapOption::empty(),
            notices: Default::default(),
        }
    }

    /// Number of MSI-X vectors.
    pub fn msix_vectors(&self) -> u16 {
        self.msix.len() as u16
    }

    /// Whether the client has connected MSI-X (SET_IRQS on index 2 since the last disable).
    #[inline]
    pub fn msix_enabled(&self) -> bool {
        self.msix_enabled.load(Ordering::Acquire)
    }

    /// Signals an MSI-X vector: one write to its eventfd. While it is masked or has no eventfd the vector
    /// is pending, and is signalled once it can be.
    #[inline]
    pub fn trigger(&self, vector: u16) {
        if let Some(vector) = self.msix.get(usize::from(vector)) {
            vector.trigger();
        }
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
        let event = self.intx_event.load();
        let Some(fd) = event.as_ref() else { return };
        let due = self.intx.compare_exchange(LEVEL, LEVEL | MASKED, Ordering::SeqCst, Ordering::SeqCst);
        if due.is_ok() {
            signal_eventfd(fd);
        }
    }

    /// Number of vectors of an index.
    pub fn vectors(&self, index: u32) -> u32 {
        match index {
            index::INTX | index::ERR | index::REQ => 1,
            index::MSIX => self.msix.len() as u32,
            _ => 0,
        }
    }

    fn vector(&self, index: u32, vector: u32) -> Option<&Vector> {
        match index {
            index::MSIX => self.msix.get(vector as usize),
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
        for (vector, fd) in (start..).zip(fds) {
            let fd = fd.map(Arc::new);
            if index == index::INTX {
                self.intx_event.store(fd);
                // A mask is of the connection: it does not outlive it. Signals if the pin is high.
                self.set_intx_bit(MASKED, false);
            } else if let Some(vector) = self.vector(index, vector) {
                vector.connect(fd);
            }
        }
        if index == index::MSIX {
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
                        vector.mask(masked);
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
                if let Some(fd) = self.intx_event.load().as_ref() {
                    signal_eventfd(fd);
                }
            } else if let Some(vector) = self.vector(index, vector) {
                vector.trigger();
            }
        }
        Ok(())
    }

    /// Disconnects all vectors of an index and forgets what was masked or pending.
    pub fn disable(&self, index: u32) -> Result<(), IrqError> {
        self.check(index, 0, 0)?;
        if index == index::MSIX {
            self.msix_enabled.store(false, Ordering::Release);
        }
        if index == index::INTX {
            self.intx_event.store(None);
            self.intx.fetch_and(!MASKED, Ordering::SeqCst);
        }
        (0..self.vectors(index)).filter_map(|v| self.vector(index, v)).for_each(Vector::clear);
        Ok(())
    }

    /// The client is gone: nothing is connected, pending or masked. The pin keeps its level.
    pub fn clear(&self) {
        for index in 0..index::COUNT {
            let _ = self.disable(index);
        }
        self.intx.fetch_and(LEVEL, Ordering::SeqCst);
    }
}

/// One write. A full counter (EAGAIN) has signalled already; nothing else can be helped here.
#[inline]
fn signal_eventfd(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// Whether a descriptor is an eventfd. Makes it non-blocking: a client that fills it must not stop a reactor.
fn accept_eventfd(fd: &OwnedFd) -> bool {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if link.is_ok_and(|name| name.as_os_str() != "anon_inode:[eventfd]") {
        return false;
    }
    match fcntl_getfl(fd.as_fd()) {
        Ok(flags) if flags.contains(OFlags::NONBLOCK) => true,
        Ok(flags) => fcntl_setfl(fd.as_fd(), flags | OFlags::NONBLOCK).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn event() -> (OwnedFd, OwnedFd) {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        (fd.try_clone().unwrap(), fd)
    }

    /// Reads and resets the counter.
    fn count(fd: &OwnedFd) -> u64 {
        let mut data = [0; 8];
        match rustix::io::read(fd, &mut data) {
            Ok(_) => u64::from_ne_bytes(data),
            Err(_) => 0,
        }
    }

    #[test]
    fn a_vector_signals_its_eventfd() {
        let irqs = Interrupts::new(4);
        assert!(!irqs.msix_enabled());
        let (mine, theirs) = event();
        irqs.set_eventfds(index::MSIX, 3, vec![Some(theirs)]).unwrap();
        assert!(irqs.msix_enabled());
        irqs.trigger(3);
        irqs.trigger(2);
        irqs.trigger(4);
        assert_eq!(count(&mine), 1);
        assert!(irqs.is_pending(2));
    }

    #[test]
    fn a_vector_without_an_eventfd_or_masked_is_delivered_later() {
        let irqs = Interrupts::new(1);
        irqs.trigger(0);
        let (mine, theirs) = event();
        irqs.set_eventfds(index::MSIX, 0, vec![Some(theirs)]).unwrap();
        assert_eq!(count(&mine), 1);
        irqs.set_masked(index::MSIX, 0, 1, true).unwrap();
        irqs.trigger(0);
        irqs.trigger(0);
        assert_eq!(count(&mine), 0);
        irqs.set_masked(index::MSIX, 0, 1, false).unwrap();
        assert_eq!(count(&mine), 1);
        irqs.set_masked(index::MSIX, 0, 1, false).unwrap();
        assert_eq!(count(&mine), 0);
        irqs.set_eventfds(index::MSIX, 0, vec![None]).unwrap();
        assert!(irqs.msix_enabled());
        irqs.trigger(0);
        irqs.disable(index::MSIX).unwrap();
        assert!(!irqs.msix_enabled() && !irqs.is_pending(0));
    }

    #[test]
    fn a_full_eventfd_stops_nobody() {
        let irqs = Interrupts::new(1);
        // Blocking, as its maker left it.
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &0xffff_ffff_ffff_fffeu64.to_ne_bytes()).unwrap();
        irqs.set_eventfds(index::MSIX, 0, vec![Some(fd)]).unwrap();
        irqs.trigger(0);
    }

    #[test]
    fn replacing_the_eventfd_under_signals_loses_none() {
        let irqs = Interrupts::new(1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    irqs.trigger(0);
                }
            });
            for round in 0..500 {
                let (mine, theirs) = event();
                irqs.set_eventfds(index::MSIX, 0, vec![Some(theirs)]).unwrap();
                let start = std::time::Instant::now();
                while count(&mine) == 0 {
                    assert!(start.elapsed().as_secs() < 10, "no signal in round {round}");
                }
                if round % 3 == 0 {
                    irqs.set_eventfds(index::MSIX, 0, vec![None]).unwrap();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn intx_masks_itself_and_signals_again_when_unmasked_high() {
        let irqs = Interrupts::new(1);
        irqs.set_intx(true);
        let (mine, theirs) = event();
        irqs.set_eventfds(index::INTX, 0, vec![Some(theirs)]).unwrap();
        assert_eq!(count(&mine), 1);
        irqs.set_intx(false);
        irqs.set_intx(true);
        assert_eq!(count(&mine), 0, "masked by its own signal");
        irqs.set_masked(index::INTX, 0, 1, false).unwrap();
        assert_eq!(count(&mine), 1);
        irqs.set_intx(false);
        irqs.set_masked(index::INTX, 0, 1, false).unwrap();
        assert_eq!(count(&mine), 0);
        irqs.set_intx_disabled(true);
        irqs.set_intx(true);
        assert_eq!(count(&mine), 0);
        irqs.set_intx_disabled(false);
        assert_eq!(count(&mine), 1);
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        let irqs = Interrupts::new(2);
        let none = |n| (0..n).map(|_| None).collect::<Vec<_>>();
        assert_eq!(irqs.set_eventfds(index::MSIX, 1, none(2)), Err(IrqError::NoSuchVector));
        assert_eq!(irqs.set_eventfds(index::MSIX, u32::MAX, none(1)), Err(IrqError::NoSuchVector));
        assert_eq!(irqs.fire(index::MSIX, 1, u32::MAX), Err(IrqError::NoSuchVector));
        assert_eq!(irqs.set_masked(index::ERR, 0, 1, true), Err(IrqError::NotMaskable));
        assert_eq!(irqs.disable(index::COUNT), Err(IrqError::NoSuchVector));
    }

    #[test]
    fn only_eventfds_are_accepted() {
        let irqs = Interrupts::new(1);
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert_eq!(irqs.set_eventfds(index::MSIX, 0, vec![Some(pipe)]), Err(IrqError::NotEventfd));
        assert!(!irqs.msix_enabled());
    }
}
