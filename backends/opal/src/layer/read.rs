//! Reads: the channel below writes ciphertext to the segments, which is decrypted there.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use block::io::Guard;
use block::{Completed, ErrorKind, Io, IoFuture, Submission};

use super::channel::Core;
use super::codec;
use super::epoch::{Epoch, Place};
use super::slots::Running;

/// What was read.
#[derive(Clone, Copy)]
struct Span {
    place: Place,
    lba: u64,
    blocks: u64,
}

/// Starts a read that passed the check, of at least one block.
#[inline]
pub(super) fn submit(core: &Rc<Core>, epoch: Rc<Epoch>, mut io: Io) -> Submission {
    let place = match epoch.read(io.lba, io.blocks) {
        Ok(place) => place,
        Err(error) => return Submission::Done(io.complete(Err(error))),
    };
    let span = Span { place, lba: io.lba, blocks: io.blocks };
    io.lba += if place == Place::Data { epoch.data_start } else { epoch.mbr_start };
    let guard = io.guard().cloned();
    match core.inner.submit(io) {
        // SAFETY: the segments are mapped: this channel is still in `submit`.
        Submission::Done(completed) => Submission::Done(unsafe { finish(core, &epoch, span, completed) }),
        Submission::Pending(future) => pending(core, epoch, span, guard, future),
    }
}

#[inline(never)]
fn pending(
    core: &Rc<Core>,
    epoch: Rc<Epoch>,
    span: Span,
    guard: Option<Guard>,
    future: IoFuture,
) -> Submission {
    let running = Running::new(core.clone(), future);
    Submission::Pending(IoFuture::new(Read { running, epoch, span, _guard: guard }))
}

/// Decrypts what was read.
///
/// # Safety
/// The segments of the `Io` are still mapped.
#[inline]
unsafe fn finish(core: &Core, epoch: &Epoch, span: Span, mut completed: Completed) -> Completed {
    if completed.result.is_ok() {
        let runs = epoch.runs(span.place, span.lba, span.blocks);
        let zeroes = core.is_sparse || span.place == Place::Shadow;
        let unit = epoch.info.block_size as usize;
        // SAFETY: mapped, by this function's contract, and writable: they are of a read.
        completed.result = unsafe {
            codec::decrypt(completed.segments(), runs, unit, zeroes, &mut core.bounce.borrow_mut())
        };
    }
    completed
}

/// A read that the channel below has not completed. In this order: it goes before the guard.
struct Read {
    running: Running,
    epoch: Rc<Epoch>,
    span: Span,
    _guard: Option<Guard>,
}

const _: () = assert!(size_of::<Read>() <= block::future::INLINE_SIZE);

impl Future for Read {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        let Poll::Ready(mut completed) = self.running.poll(cx) else { return Poll::Pending };
        if !self.running.core().keeps_segments {
            // Whoever says so completes reads on the spot or not at all: their memory may be gone.
            completed.result = completed.result.and(Err(ErrorKind::Internal.into()));
            return Poll::Ready(completed);
        }
        // SAFETY: the guard keeps them mapped (or the submitter does in another way, for a channel that keeps segments).
        Poll::Ready(unsafe { finish(self.running.core(), &self.epoch, self.span, completed) })
    }
}
