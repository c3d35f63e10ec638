//! Zeroes and discards: passed down where a block of zeroes below reads as zeroes, otherwise zeroes are encrypted and written.

use std::rc::Rc;

use block::future::yield_now;
use block::{Completed, Error, Io, IoFuture, Op, Submission};

use super::channel::Core;
use super::codec;
use super::epoch::{Epoch, Place};

/// Bytes of zeroes that are encrypted and written at once: under a millisecond.
const PIECE: u64 = 1 << 20;

/// Starts a discard or zeroes that passed the check, of at least one block.
pub(super) fn submit(core: &Rc<Core>, epoch: &Epoch, mut io: Io) -> Submission {
    if let Err(error) = epoch.change(io.op, io.lba, io.blocks) {
        return Submission::Done(io.complete(Err(error)));
    }
    if io.op == Op::WriteZeroes && !core.passes_zeroes {
        return Submission::Pending(IoFuture::new(write_zeroes(core.clone(), io)));
    }
    io.lba += epoch.data_start;
    core.inner.submit(io)
}

async fn write_zeroes(core: Rc<Core>, io: Io) -> Completed {
    let mut result = Ok(());
    let mut done = 0;
    while done < io.blocks && result.is_ok() {
        result = piece(&core, &io, &mut done).await;
        yield_now().await;
    }
    io.complete(result)
}

/// Writes some blocks after `done`, with locks and keys as they are now.
async fn piece(core: &Rc<Core>, io: &Io, done: &mut u64) -> Result<(), Error> {
    let unit = u64::from(core.epoch()?.info.block_size);
    let (lba, blocks) = (io.lba + *done, (PIECE / unit).min(io.blocks - *done));
    let bytes = (blocks * unit) as usize;
    let loan = core.pool.wait(bytes).await?;
    let started = core.epoch().and_then(|epoch| {
        epoch.change(Op::WriteZeroes, lba, blocks)?;
        // SAFETY: the buffer has so many bytes, which are nobody else's now.
        unsafe { codec::encrypt_zeroes(epoch.runs(Place::Data, lba, blocks), unit as usize, loan.as_ptr()) }?;
        let lba = epoch.data_start + lba;
        Ok(core.inner.submit(loan.io(Op::Write, lba, blocks, bytes, io, true)))
    });
    let (result, storage) = match started {
        Ok(submission) => submission.wait().await.into_parts(),
        Err(error) => (Err(error), Vec::new()),
    };
    loan.keep_storage(storage);
    core.pool.give(loan);
    *done += blocks;
    result
}
