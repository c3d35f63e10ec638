//! [`Worker`]: the part of a controller that one reactor polls.

use block::Reactor;

/// A worker on its way to its reactor's thread.
pub struct WorkerSeed {}

/// The queues of one controller on one reactor. Not `Send`.
pub struct Worker {}

impl WorkerSeed {
    /// Becomes a worker of the calling thread's reactor.
    pub fn start(self, reactor: &Reactor) -> Worker {
        let _ = reactor;
        Worker {}
    }
}

impl Worker {
    /// One turn: takes control messages, fetches and starts commands, polls what is pending, posts
    /// completions. Never blocks. Returns whether there was anything to do.
    pub fn poll(&mut self) -> bool {
        false
    }

    /// Whether anything is in flight or the guest keeps it busy: the reactor may not sleep long.
    pub fn is_active(&self) -> bool {
        false
    }
}
