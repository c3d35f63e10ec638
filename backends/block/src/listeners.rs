//! [`Listeners`]: who wants to know that a device's geometry has changed.

use std::sync::{Arc, Mutex, PoisonError};

/// Called on any thread when a device has changed; quick, and never blocks. It may be called for nothing.
pub type Listener = Arc<dyn Fn() + Send + Sync>;

/// What a device that can change keeps for [`Device::on_change`](crate::Device::on_change).
#[derive(Default)]
pub struct Listeners(Mutex<Vec<Listener>>);

impl Listeners {
    /// One more.
    pub fn add(&self, listener: Listener) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Calls them all, without a lock. Call it when [`Device::info`](crate::Device::info) returns what is new.
    pub fn call(&self) {
        let listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        listeners.iter().for_each(|listener| listener());
    }
}
