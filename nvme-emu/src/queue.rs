//! Submission and completion queues in guest memory (Base 3.3): rings, doorbells, phase.
//!
//! Ring memory is resolved once and again whenever the DMA table changes. While the guest's memory map has no
//! place for it the queue rests; it goes on when the memory is back.

mod completion;
mod event_index;
mod ring;
mod shadow;
mod signal;
mod submission;

pub(crate) use completion::{CompletionQueue, CqState, completion};
pub(crate) use shadow::Shadow;
pub(crate) use signal::{Coalescing, Verdict};
pub(crate) use submission::{Rest, SqState, SubmissionQueue};

/// A doorbell rang with a value that is no index of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidDoorbell;
