//! Writes, and compare and write: encrypted into a buffer of the pool, from which the channel below takes them.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use block::{Completed, Error, ErrorKind, Io, IoFuture, Op, Submission};

use super::channel::Core;
use super::codec;
use super::epoch::{Epoch, Place};
use super::pool::{Loan, Wait};
use super::slots::Running;

/// Starts a write, or a compare and write, that passed the check, of at least one block.
#[inline]
pub(super) fn submit(core: &Rc<Core>, epoch: &Epoch, io: Io) -> Submission {
    if let Err(error) = epoch.change(io.op, io.lba, io.blocks) {
        return Submission::Done(io.complete(Err(error)));
    }
    // Who does not keep segments cannot let them wait. Nor need it: its writes are over when they are submitted.
    let loan = match core.pool.take(bytes(epoch, &io), !core.keeps_segments) {
        Ok(Some(loan)) => loan,
        Ok(None) => return wait(core, epoch, io),
        Err(error) => return Submission::Done(io.complete(Err(error))),
    };
    // SAFETY: the segments are mapped: this channel is still in `submit`.
    match unsafe { start(core, epoch, &io, &loan) } {
        Ok(Submission::Done(completed)) => Submission::Done(finish(core, io, loan, completed)),
        Ok(Submission::Pending(future)) => pending(core, io, loan, future),
        Err(error) => fail(core, io, loan, error),
    }
}

#[inline]
fn bytes(epoch: &Epoch, io: &Io) -> usize {
    let halves = if io.op == Op::CompareAndWrite { 2 } else { 1 };
    // It fits: these are the bytes of the segments.
    io.blocks as usize * epoch.info.block_size as usize * halves
}

/// Encrypts the data, and submits it below.
///
/// # Safety
/// The segments of `io` are mapped.
#[inline]
unsafe fn start(core: &Core, epoch: &Epoch, io: &Io, loan: &Rc<Loan>) -> Result<Submission, Error> {
    let unit = epoch.info.block_size as usize;
    let (all, half) = (bytes(epoch, io), io.blocks as usize * unit);
    // Both halves of a compare and write are of the same blocks.
    for skip in (0..all).step_by(half) {
        let runs = epoch.runs(Place::Data, io.lba, io.blocks);
        let dst = loan.as_ptr().wrapping_add(skip);
        // SAFETY: mapped, by this function's contract; the buffer has `all` bytes, which are nobody else's now.
        unsafe { codec::encrypt(io.segments(), skip, runs, unit, dst) }?;
    }
    let lba = epoch.data_start + io.lba;
    Ok(core.inner.submit(loan.io(io.op, lba, io.blocks, all, io, core.keeps_segments)))
}

#[inline]
fn finish(core: &Core, io: Io, loan: Rc<Loan>, completed: Completed) -> Completed {
    let (result, storage) = completed.into_parts();
    loan.keep_storage(storage);
    core.pool.give(loan);
    io.complete(result)
}

#[cold]
fn fail(core: &Core, io: Io, loan: Rc<Loan>, error: Error) -> Submission {
    core.pool.give(loan);
    Submission::Done(io.complete(Err(error)))
}

#[inline(never)]
fn pending(core: &Rc<Core>, io: Io, loan: Rc<Loan>, future: IoFuture) -> Submission {
    let step = Step::Below(Running::new(core.clone(), future), loan);
    Submission::Pending(IoFuture::new(Write { step, core: core.clone(), io: Some(io) }))
}

#[cold]
fn wait(core: &Rc<Core>, epoch: &Epoch, io: Io) -> Submission {
    let step = Step::Waits(core.pool.wait(bytes(epoch, &io)));
    Submission::Pending(IoFuture::new(Write { step, core: core.clone(), io: Some(io) }))
}

/// A write that is not complete. In this order: what goes on below goes before the guard of the `Io`.
struct Write {
    step: Step,
    core: Rc<Core>,
    /// `None` once completed.
    io: Option<Io>,
}

const _: () = assert!(size_of::<Write>() <= block::future::INLINE_SIZE);

enum Step {
    /// For a buffer.
    Waits(Wait),
    /// Under way, from this buffer.
    Below(Running, Rc<Loan>),
    Over,
}

impl Write {
    /// A buffer is there. Locks and keys are those of now.
    fn start(&mut self, loan: Rc<Loan>) -> Result<(), Error> {
        let Some(io) = &self.io else { return Err(ErrorKind::Internal.into()) };
        let started = self.core.epoch().and_then(|epoch| {
            io.check(&epoch.info)?;
            epoch.change(io.op, io.lba, io.blocks)?;
            // SAFETY: this `Io` waits with its guard, which keeps its segments mapped.
            unsafe { start(&self.core, &epoch, io, &loan) }
        });
        match started {
            Ok(Submission::Pending(future)) => {
                self.step = Step::Below(Running::new(self.core.clone(), future), loan);
                Ok(())
            }
            Ok(Submission::Done(completed)) => {
                let (result, storage) = completed.into_parts();
                loan.keep_storage(storage);
                self.core.pool.give(loan);
                self.step = Step::Over;
                result
            }
            Err(error) => {
                self.core.pool.give(loan);
                Err(error)
            }
        }
    }
}

impl Future for Write {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        let this = &mut *self;
        let result = loop {
            match &mut this.step {
                Step::Waits(wait) => {
                    let Poll::Ready(granted) = Pin::new(wait).poll(cx) else { return Poll::Pending };
                    match granted.and_then(|loan| this.start(loan)) {
                        Ok(()) if matches!(this.step, Step::Below(..)) => {}
                        result => break result,
                    }
                }
                Step::Below(running, _) => {
                    let Poll::Ready(completed) = running.poll(cx) else { return Poll::Pending };
                    let (result, storage) = completed.into_parts();
                    if let Step::Below(_, loan) = std::mem::replace(&mut this.step, Step::Over) {
                        loan.keep_storage(storage);
                        this.core.pool.give(loan);
                    }
                    break result;
                }
                Step::Over => return Poll::Pending,
            }
        };
        this.step = Step::Over;
        this.io.take().map_or(Poll::Pending, |io| Poll::Ready(io.complete(result)))
    }
}
