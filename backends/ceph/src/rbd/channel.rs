//! [`RbdChannel`]: one reactor's way into an image.

use std::rc::Rc;
use std::sync::Arc;

use block::{Channel, Completed, ErrorKind, Flags, Io, IoFuture, Op, Reactor, Submission};

use super::image::Image;
use super::request::{Call, Request, Resources};
use crate::ffi::THICK_PROVISION;

/// Objects that a large discard is at once at.
const OBJECTS_AT_ONCE: u64 = 64;

pub(super) struct RbdChannel {
    shared: Rc<Shared>,
}

/// What the futures of a channel share.
pub(super) struct Shared {
    pub(super) reactor: Reactor,
    /// Apart, because operations in librbd own it and must not own the reactor.
    pub(super) resources: Rc<Resources>,
}

impl RbdChannel {
    pub(super) fn new(image: Arc<Image>, reactor: Reactor) -> Self {
        Self { shared: Rc::new(Shared { reactor, resources: Rc::new(Resources::new(image)) }) }
    }
}

impl Channel for RbdChannel {
    fn submit(&self, io: Io) -> Submission {
        let image = &self.shared.resources.image;
        let info = image.info();
        if let Err(error) = io.check(&info) {
            return Submission::Done(io.complete(Err(error)));
        }
        if io.op != Op::Flush && io.blocks == 0 {
            return Submission::Done(io.complete(Ok(())));
        }
        let shared = self.shared.clone();
        Submission::Pending(match io.op {
            Op::Write if image.writes_back && io.flags.contains(Flags::FUA) => {
                IoFuture::new(then_flush(shared, io))
            }
            Op::Read => IoFuture::new(Request::new(shared, io, Call::Read)),
            Op::Write => IoFuture::new(Request::new(shared, io, Call::Write)),
            Op::Flush => IoFuture::new(Request::new(shared, io, Call::Flush)),
            Op::CompareAndWrite => IoFuture::new(Request::new(shared, io, Call::CompareAndWrite)),
            Op::Discard | Op::WriteZeroes => IoFuture::new(in_pieces(shared, io)),
            _ => return Submission::Done(io.complete(Err(ErrorKind::Unsupported.into()))),
        })
    }
}

/// A write that is durable when it completes, through librbd's cache.
async fn then_flush(shared: Rc<Shared>, io: Io) -> Completed {
    let guard = io.guard().cloned();
    let mut completed = Request::new(shared.clone(), io, Call::Write).await;
    if completed.result.is_ok() {
        let flush = Io::new(Op::Flush, 0, 0, Vec::new(), guard, 0);
        completed.result = Request::new(shared, flush, Call::Flush).await.result;
    }
    completed
}

/// A discard or zeroes, over as many objects at a time as a cluster bears: librbd makes an operation for each.
async fn in_pieces(shared: Rc<Shared>, io: Io) -> Completed {
    let image = shared.resources.image.clone();
    let block = u64::from(image.info().block_size);
    let (mut at, end) = (io.lba * block, (io.lba + io.blocks) * block);
    let piece = image.object_size * OBJECTS_AT_ONCE;
    // Without the flag librbd gives the space back.
    let flags = if io.flags.contains(Flags::MAY_UNMAP) { 0 } else { THICK_PROVISION };
    while at < end {
        // Whole objects, but for the first piece and the last.
        let next = (at / piece + 1) * piece;
        let len = next.min(end) - at;
        let call = match io.op {
            Op::Discard => Call::Discard { at, len },
            _ => Call::WriteZeroes { at, len, flags },
        };
        let part = Io::new(io.op, 0, 0, Vec::new(), io.guard().cloned(), io.tag());
        let completed = Request::new(shared.clone(), part, call).await;
        if completed.result.is_err() {
            return io.complete(completed.result);
        }
        at += len;
    }
    io.complete(Ok(()))
}
