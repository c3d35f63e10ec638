//! Where a controller's I/O queues are polled, and moves between its workers.

use std::sync::{Arc, Mutex};

use crate::latch::Token;

/// A submission queue and the worker that polls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    /// The submission queue.
    pub sqid: u16,
    /// Its completion queue.
    pub cqid: u16,
    /// The worker, counted as [`Controller::new`](crate::Controller::new) returned their seeds.
    pub worker: usize,
}

/// Why queues were not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// The guest has the controller disabled, or disabled it meanwhile.
    #[error("the controller is not enabled")]
    NotEnabled,
    /// There is no such completion queue.
    #[error("there is no such completion queue")]
    NoSuchQueue,
    /// The controller has no such worker.
    #[error("the controller has no such worker")]
    NoSuchWorker,
    /// The queue is being moved or deleted.
    #[error("the queue is being moved or deleted; try again")]
    Busy,
}

/// How the one who asked for a move hears of its end: it is over when this is dropped.
pub(crate) struct MoveReply {
    result: Arc<Mutex<Result<(), MoveError>>>,
    _done: Token,
}

impl MoveReply {
    pub(crate) fn new(result: Arc<Mutex<Result<(), MoveError>>>, done: Token) -> Self {
        Self { result, _done: done }
    }

    pub(crate) fn end(self, result: Result<(), MoveError>) {
        *self.result.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = result;
    }
}
