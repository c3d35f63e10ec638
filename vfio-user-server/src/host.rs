//! [`Host`]: what a PCI function sees of the VMM that is connected to it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::closer::Closer;
use crate::ratelimit::RateLimit;
use crate::{DmaSpace, Interrupts};

/// Guest memory, interrupts and the bus-master switch of one function. Lives as long as the function;
/// empties when the client leaves.
#[derive(Debug)]
pub struct Host {
    /// Guest memory.
    pub dma: DmaSpace,
    /// Interrupts towards the guest.
    pub interrupts: Interrupts,
    bus_master: AtomicBool,
    has_client: AtomicBool,
    /// For descriptors that the client sent and that are of no use.
    pub(crate) closer: Closer,
    /// For what is wrong with clients. Here, because connections are as many as a peer likes.
    pub(crate) complaints: RateLimit,
    /// For clients that come and go.
    pub(crate) visits: RateLimit,
}

impl Host {
    /// A host with no client, for a function with `msix_vectors` vectors.
    pub fn new(msix_vectors: u16) -> Self {
        let dma = DmaSpace::new();
        let interrupts = Interrupts::new(msix_vectors, dma.breakage().clone());
        Self {
            dma,
            interrupts,
            bus_master: AtomicBool::new(false),
            has_client: AtomicBool::new(false),
            closer: Closer::default(),
            complaints: RateLimit::new(),
            visits: RateLimit::new(),
        }
    }

    /// The same for a function with MSI in place of MSI-X.
    pub fn with_msi(vectors: u16) -> Self {
        let mut host = Self::new(vectors);
        host.interrupts = Interrupts::with_msi(vectors, host.dma.breakage().clone());
        host
    }

    /// Whether a client is connected.
    pub fn has_client(&self) -> bool {
        self.has_client.load(Ordering::Relaxed)
    }

    pub(crate) fn set_has_client(&self, is_there: bool) {
        self.has_client.store(is_there, Ordering::Relaxed);
    }

    /// Whether the function may reach guest memory and raise interrupts (PCI Command register, bit 2, and
    /// power state D0).
    pub fn bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Set by the configuration space.
    pub fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::Release);
    }
}
