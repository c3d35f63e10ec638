//! Fused operations (Base 3.4.2): Compare and Write, two commands next to each other in one queue, as one operation of
//! the device.
//!
//! The first command is not taken from its queue before the second is there, so that nothing is held that a queue's
//! deletion, move or reset would have to know of.

use std::sync::atomic::Ordering;

use block::{Flags, Io, Op, Submission};
use nvme_spec::command::{Command, Fuse};
use nvme_spec::nvm::IoCdw12;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use vfio_user_server::Access;

use super::Engine;
use super::start::{Launched, Launcher, launcher, log_failure, outcome};
use super::throttle;
use crate::nvm;
use crate::queue::Rest;
use crate::slots::{Tag, Work};
use crate::transfer::TransferError;

/// Statuses of the first and of the second command.
type Statuses = (Status, Status);

/// The half of a failed operation that did not fail itself.
const OTHER_FAILED: Status = Status::COMMAND_ABORTED_FAILED_FUSED;

/// How a pair began.
enum Paired {
    Done(Statuses),
    Pending,
}

/// What the two commands of an operation are told that ended with `status`.
pub(super) fn statuses(status: Status) -> Statuses {
    match status.code() {
        Status::SUCCESS | Status::COMMAND_ABORT_REQUESTED | Status::COMMAND_ABORTED_SQ_DELETION => {
            (status, status)
        }
        Status::WRITE_FAULT | Status::CAPACITY_EXCEEDED | Status::NAMESPACE_IS_WRITE_PROTECTED => {
            (OTHER_FAILED, status)
        }
        _ => (status, OTHER_FAILED),
    }
}

impl Engine {
    /// Starts the pair whose first command is number `at` of the `count` that were copied out of a queue, and not yet
    /// taken. Returns whether anything was taken.
    #[cold]
    #[inline(never)]
    pub(super) fn start_fused(&mut self, qid: u16, cqid: u16, at: usize, count: usize) -> bool {
        let first = self.batch[at];
        if at + 1 == count && self.awaits_second(qid, cqid) {
            return false;
        }
        let second = (at + 1 < count).then(|| self.batch[at + 1]).filter(|next| next.fuse() == Fuse::SECOND);
        if let Some(second) = &second
            && !self.may_start_pair(qid, second)
        {
            return false;
        }
        let taken = 1 + u32::from(second.is_some());
        let (Some(sq), Some(cq)) = (&mut self.sqs[usize::from(qid)], &mut self.cqs[usize::from(cqid)]) else {
            return false;
        };
        for _ in 0..taken {
            sq.take();
            sq.in_flight += 1;
            cq.reserve();
        }
        self.share.count(taken);
        let Some(second) = second else {
            let status = nvm::missing_half();
            log_failure(&self.shared, qid, first.cid(), status, first.slba(), first.nsid());
            self.complete_reserved(qid, first.cid(), status);
            return true;
        };
        if let Paired::Done(statuses) = launcher!(self).launch_pair(qid, &first, &second) {
            for (command, status) in [(first, statuses.0), (second, statuses.1)] {
                if !status.is_success() {
                    log_failure(&self.shared, qid, command.cid(), status, command.slba(), command.nsid());
                }
                self.complete_reserved(qid, command.cid(), status);
            }
        }
        true
    }

    /// The second command was not copied: whether it may be there later. (What the turn has no time for is looked at in
    /// the next, as after every turn that did something.)
    fn awaits_second(&mut self, qid: u16, cqid: u16) -> bool {
        let (Some(sq), Some(cq)) = (&mut self.sqs[usize::from(qid)], &self.cqs[usize::from(cqid)]) else {
            return false;
        };
        // A completion queue that has room for one only never has it for two.
        if cq.capacity() < 2 {
            return false;
        }
        sq.rest = if sq.waiting() > 1 { Rest::NoRoom } else { Rest::Half };
        true
    }

    /// Whether the limits let a pair start, which counts as a write. It is charged then, and the next one of its queue
    /// waits in it until that is paid.
    fn may_start_pair(&mut self, qid: u16, second: &Command) -> bool {
        if !self.throttle.is_limited() {
            return true;
        }
        let now = throttle::now();
        if self.sqs[usize::from(qid)].as_ref().is_some_and(|sq| sq.next_pair > now) {
            return false;
        }
        self.charge(second, true, now);
        let next = self.earliest(second.nsid(), true, now);
        if let Some(sq) = &mut self.sqs[usize::from(qid)] {
            sq.next_pair = next;
        }
        true
    }
}

impl Launcher<'_> {
    /// Starts a pair. There is a free slot.
    fn launch_pair(&mut self, sqid: u16, first: &Command, second: &Command) -> Paired {
        self.try_pair(sqid, first, second).unwrap_or_else(Paired::Done)
    }

    fn try_pair(&mut self, sqid: u16, first: &Command, second: &Command) -> Result<Paired, Statuses> {
        let blocks = |command: &Command| IoCdw12::from_bits(command.cdw12()).blocks();
        let place = |command: &Command| (command.nsid(), command.slba(), blocks(command));
        let invalid = Status::INVALID_FIELD_IN_COMMAND.with_dnr();
        let is_write = second.nvm_opcode() == NvmOpcode::WRITE;
        // It was there for the first command.
        let namespace = self.namespace(first.nsid());
        let Some(namespace) = namespace.filter(|_| is_write && place(first) == place(second)) else {
            return Err((invalid, invalid));
        };
        let of_first = |status| (status, OTHER_FAILED);
        let of_second = |status| (OTHER_FAILED, status);
        nvm::range(first, namespace, Op::Read, self.most).map_err(of_first)?;
        let range = nvm::range(second, namespace, Op::Write, self.most).map_err(of_second)?;
        if range.blocks > u64::from(namespace.info.compare_and_write_blocks) {
            let status = Status::ATOMIC_WRITE_UNIT_EXCEEDED.with_dnr();
            return Err((status, status));
        }
        let shared = self.shared;
        let status = |error: TransferError| shared.status_of(error);
        let (expected, bytes) = (self.resolve(first, range.bytes, Access::Read), range.bytes);
        let mut regions = expected.map_err(status).map_err(of_first)?;
        let mut segments = std::mem::take(self.storage);
        regions |= self.resolve(second, bytes, Access::Read).map_err(status).map_err(of_second)?;
        segments.append(self.storage);
        self.share.spend(2 * bytes);
        let mut flags = range.flags;
        flags
            .set(Flags::FUA, flags.contains(Flags::FUA) || self.shared.write_through.load(Ordering::Relaxed));
        let guard = self.guard.hold_for(self.memory.snapshot());
        let tag = self.slots.next_tag();
        let io = Io::new(Op::CompareAndWrite, range.lba, range.blocks, segments, Some(guard), tag);
        let tag = Tag {
            sq: sqid,
            cid: first.cid(),
            second: Some(second.cid()),
            regions,
            generation: 0,
            read: bytes as u32,
            written: bytes as u32,
            nsid: first.nsid(),
        };
        Ok(match namespace.channel.submit(io.with_flags(flags)) {
            Submission::Done(completed) => {
                let (result, storage) = completed.into_parts();
                *self.storage = storage;
                Paired::Done(statuses(outcome(self.counts, self.shared, &tag, result)))
            }
            Submission::Pending(future) => match self.wait(tag, Work::Io(future)) {
                Launched::Done(status) => Paired::Done(statuses(status)),
                _ => Paired::Pending,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_of_two_has_failed() {
        let mismatch = Status::COMPARE_FAILURE.with_dnr();
        assert_eq!(statuses(Status::SUCCESS), (Status::SUCCESS, Status::SUCCESS));
        assert_eq!(statuses(mismatch), (mismatch, OTHER_FAILED));
        assert_eq!(statuses(Status::WRITE_FAULT), (OTHER_FAILED, Status::WRITE_FAULT));
        let deleted = Status::COMMAND_ABORTED_SQ_DELETION;
        assert_eq!(statuses(deleted), (deleted, deleted));
    }
}
