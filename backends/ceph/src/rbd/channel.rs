//! [`RbdChannel`]: one reactor's way into an image.

use std::rc::Rc;
use std::sync::Arc;

use block::{Channel, Completed, ErrorKind, Flags, Io, IoFuture, Op, Reactor, Submission};

use super::image::Image;
use super::request::Call;
use crate::ffi::THICK_PROVISION;
use crate::request::{Calls, Request, Shared};

/// Objects that a large discard is at once at.
const OBJECTS_AT_ONCE: u64 = 64;
/// Bytes that are read or written by one I/O at most: results are numbers of 32 bits.
const MOST: u64 = 1 << 30;

pub(super) struct RbdChannel {
    shared: Rc<Shared<Image>>,
}

impl RbdChannel {
    pub(super) fn new(image: Arc<Image>, reactor: Reactor) -> Self {
        Self { shared: Shared::new(image, reactor) }
    }
}

impl Channel for RbdChannel {
    fn submit(&self, io: Io) -> Submission {
        let image = &self.shared.resources.target;
        let info = image.info();
        if let Err(error) = io.check(&info) {
            return Submission::Done(io.complete(Err(error)));
        }
        // Without a cache of librbd's, what is acknowledged is durable: every OSD that has it has it on its disk.
        if if io.op == Op::Flush { !image.writes_back } else { io.blocks == 0 } {
            return Submission::Done(io.complete(Ok(())));
        }
        if io.bytes() > MOST {
            return Submission::Done(io.complete(Err(ErrorKind::InvalidInput.into())));
        }
        let shared = self.shared.clone();
        let block = u64::from(info.block_size);
        let range @ (at, _) = match io.op {
            Op::Flush => (0, 0),
            _ => (io.lba * block, (io.lba + io.blocks) * block),
        };
        let call = match io.op {
            Op::Read => Call::Read { at },
            Op::Write if image.writes_back && io.flags.contains(Flags::FUA) => {
                return Submission::Pending(IoFuture::new(then_flush(shared, io, range)));
            }
            Op::Write => Call::Write { at },
            Op::CompareAndWrite => Call::CompareAndWrite { at },
            Op::Flush => Call::Flush,
            Op::Discard | Op::WriteZeroes => {
                return Submission::Pending(IoFuture::new(in_pieces(shared, io, range)));
            }
            _ => return Submission::Done(io.complete(Err(ErrorKind::Unsupported.into()))),
        };
        Submission::Pending(Request::new(shared, io, range, Calls::One(call)).run())
    }
}

/// A write that is durable when it completes, through librbd's cache.
async fn then_flush(shared: Rc<Shared<Image>>, io: Io, range: (u64, u64)) -> Completed {
    let (guard, tag) = (io.guard().cloned(), io.tag());
    let write = Calls::One(Call::Write { at: range.0 });
    let mut completed = Request::new(shared.clone(), io, range, write).run().await;
    if completed.result.is_ok() {
        let flush = Io::new(Op::Flush, 0, 0, Vec::new(), guard, tag);
        completed.result = Request::new(shared, flush, (0, 0), Calls::One(Call::Flush)).run().await.result;
    }
    completed
}

/// A discard or zeroes, over as many objects at a time as a cluster bears: librbd makes an operation for each.
async fn in_pieces(shared: Rc<Shared<Image>>, io: Io, (mut at, end): (u64, u64)) -> Completed {
    let piece = shared.resources.target.object_size * OBJECTS_AT_ONCE;
    // Without the flag librbd gives the space back.
    let flags = if io.flags.contains(Flags::MAY_UNMAP) { 0 } else { THICK_PROVISION };
    while at < end {
        // Whole objects, but for the first piece and the last.
        let next = (at / piece + 1).saturating_mul(piece).min(end);
        let call = match io.op {
            Op::Discard => Call::Discard { at, len: next - at },
            _ => Call::WriteZeroes { at, len: next - at, flags },
        };
        let part = Io::new(io.op, 0, 0, Vec::new(), io.guard().cloned(), io.tag());
        let completed = Request::new(shared.clone(), part, (at, next), Calls::One(call)).run().await;
        if completed.result.is_err() {
            return io.complete(completed.result);
        }
        at = next;
    }
    io.complete(Ok(()))
}
