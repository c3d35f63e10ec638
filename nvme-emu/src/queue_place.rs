//! Where a controller's queues are polled, and moving them.

use std::future::{Future, ready};

use crate::Controller;

/// A pair of queues and the worker that polls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePlace {
    /// The submission queue.
    pub sqid: u16,
    /// The completion queue that it answers to; several submission queues may share one.
    pub cqid: u16,
    /// The index of the worker.
    pub worker: usize,
}

/// Why a queue was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// The guest has made no such completion queue.
    #[error("there is no such completion queue")]
    NoSuchQueue,
    /// The controller has fewer workers.
    #[error("there is no such worker")]
    NoSuchWorker,
    /// It is being moved or deleted.
    #[error("the queue is being moved or deleted")]
    Busy,
    /// The controller is not enabled.
    #[error("the controller is not enabled")]
    NotEnabled,
}

// PLACEHOLDER (issue 3): the bodies are filled by the data path's half.
impl Controller {
    /// Its I/O queues, ordered by `sqid`; none while it is not enabled.
    pub fn queues(&self) -> Vec<QueuePlace> {
        Vec::new()
    }

    /// Moves a completion queue, with the submission queues that answer to it, to another worker. Resolves when
    /// that worker polls them.
    pub fn move_queue(
        &self,
        cqid: u16,
        worker: usize,
    ) -> impl Future<Output = Result<(), MoveError>> + Send + use<> {
        let _ = (cqid, worker);
        ready(Err(MoveError::NotEnabled))
    }
}
