//! [`RadosChannel`]: one reactor's way into a volume.

use std::rc::Rc;
use std::sync::Arc;

use block::{Channel, Completed, ErrorKind, Io, IoFuture, Op, Reactor, Submission};

use super::disk::{Call, Disk, What};
use crate::request::{Calls, Request, Shared};

/// Objects that a large discard is at once at.
const OBJECTS_AT_ONCE: u64 = 64;
/// Bytes that are read or written by one I/O at most.
const MOST: u64 = 1 << 30;

pub(super) struct RadosChannel {
    shared: Rc<Shared<Disk>>,
}

impl RadosChannel {
    pub(super) fn new(disk: Arc<Disk>, reactor: Reactor) -> Self {
        Self { shared: Shared::new(disk, reactor) }
    }
}

impl Channel for RadosChannel {
    fn submit(&self, io: Io) -> Submission {
        let disk = &self.shared.resources.target;
        let info = disk.info();
        if let Err(error) = io.check(&info) {
            return Submission::Done(io.complete(Err(error)));
        }
        // What is acknowledged is durable: every OSD that has it has it on its disk.
        if io.op == Op::Flush || io.blocks == 0 {
            return Submission::Done(io.complete(Ok(())));
        }
        let what = match io.op {
            Op::Read => What::Read,
            Op::Write => What::Write,
            Op::CompareAndWrite => What::CompareAndWrite,
            Op::Discard | Op::WriteZeroes => What::Zero,
            _ => return Submission::Done(io.complete(Err(ErrorKind::Unsupported.into()))),
        };
        if io.bytes() > MOST {
            return Submission::Done(io.complete(Err(ErrorKind::InvalidInput.into())));
        }
        let block = u64::from(info.block_size);
        let range = (io.lba * block, (io.lba + io.blocks) * block);
        let shared = self.shared.clone();
        if what == What::Zero && range.1 - range.0 > OBJECTS_AT_ONCE * disk.layout.object_size() {
            return Submission::Pending(IoFuture::new(in_pieces(shared, io, range)));
        }
        let calls = calls(disk, what, range);
        Submission::Pending(Request::new(shared, io, range, calls).run())
    }
}

/// A call for each object of a range.
fn calls(disk: &Disk, what: What, (start, end): (u64, u64)) -> Calls<Call> {
    let size = disk.layout.object_size();
    let call = |object: u64| {
        let from = (object * size).max(start);
        let len = ((object + 1) * size).min(end) - from;
        // Objects have 32 MiB at most, and 64 of them or `MOST` bytes are done at a time.
        Call { what, object, at: (from - object * size) as u32, len: len as u32, from: (from - start) as u32 }
    };
    let (first, last) = (start / size, (end - 1) / size);
    if first == last { Calls::One(call(first)) } else { Calls::Many((first..=last).map(call).collect()) }
}

/// A discard or zeroes, over as many objects at a time as a cluster bears.
async fn in_pieces(shared: Rc<Shared<Disk>>, io: Io, (mut at, end): (u64, u64)) -> Completed {
    let piece = shared.resources.target.layout.object_size() * OBJECTS_AT_ONCE;
    while at < end {
        // Whole objects, but for the first piece and the last.
        let next = (at / piece + 1).saturating_mul(piece).min(end);
        let part = Io::new(io.op, 0, 0, Vec::new(), io.guard().cloned(), io.tag());
        let calls = calls(&shared.resources.target, What::Zero, (at, next));
        let completed = Request::new(shared.clone(), part, (at, next), calls).run().await;
        if completed.result.is_err() {
            return io.complete(completed.result);
        }
        at = next;
    }
    io.complete(Ok(()))
}
