//! From a fetched command to its completion, or to its slot.
//!
//! What completes on the spot never gets a slot: its `Io` is made of storage that the engine has at hand, and its
//! status goes straight to the completion queue.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use block::{Abilities, ErrorKind, Flags, Io, Op, Segment, Submission};
use nvme_spec::command::Command;
use nvme_spec::nvm::{DsmRange, IoCdw12};
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use vfio_user_server::ratelimit::RateLimit;
use vfio_user_server::{Access, Hint, RegionMask};
use zerocopy::{FromZeros, IntoBytes};

use super::Engine;
use super::clock::{OTHER, TurnClock};
use super::fused;
use super::turn::Share;
use crate::compare::{Room, compare};
use crate::error_log::Failure;
use crate::memory::{Memory, SlotGuard};
use crate::nvm::{self, OpenNamespace, Range, Request};
use crate::queue::completion;
use crate::shared::{Counters, Shared};
use crate::slots::{Slots, Tag, Work};
use crate::status::from_block;
use crate::subsystem::inactive_namespace;
use crate::transfer::{self, Transfer, TransferError};

/// What this worker has done, until others can see it.
#[derive(Default)]
pub(super) struct Counts {
    reads: u64,
    writes: u64,
    bytes_read: u64,
    bytes_written: u64,
    media_errors: u64,
}

impl Counts {
    #[inline(always)]
    fn add(&mut self, op: Op, bytes: u32) {
        if op == Op::Read {
            self.reads += 1;
            self.bytes_read += u64::from(bytes);
        } else {
            self.writes += 1;
            self.bytes_written += u64::from(bytes);
        }
    }

    pub(super) fn publish(&self, counters: &Counters) {
        let Self { reads, writes, bytes_read, bytes_written, media_errors } = *self;
        counters.reads.store(reads, Ordering::Relaxed);
        counters.writes.store(writes, Ordering::Relaxed);
        counters.bytes_read.store(bytes_read, Ordering::Relaxed);
        counters.bytes_written.store(bytes_written, Ordering::Relaxed);
        counters.media_errors.store(media_errors, Ordering::Relaxed);
    }
}

/// How a command began.
pub(super) enum Launched {
    /// It is complete.
    Done(Status),
    /// It is in a slot.
    Pending,
    /// It was not: it is the first command of a fused operation, for [`Engine::start_fused`].
    Fused,
}

/// What starting a command takes, of an engine whose queues are in use meanwhile.
pub(super) struct Launcher<'a> {
    pub(super) shared: &'a Shared,
    pub(super) memory: &'a Memory,
    pub(super) namespaces: &'a [Option<OpenNamespace>],
    pub(super) slots: &'a mut Slots,
    pub(super) hint: &'a mut Hint,
    pub(super) share: &'a mut Share,
    pub(super) storage: &'a mut Vec<Segment>,
    pub(super) guard: &'a mut SlotGuard,
    pub(super) counts: &'a mut Counts,
    pub(super) room: &'a Rc<Room>,
    pub(super) clock: &'a mut TurnClock,
    pub(super) page: u64,
    /// MDTS in bytes.
    pub(super) most: usize,
}

/// The [`Launcher`] of an engine: by its fields, so that its queues stay free.
macro_rules! launcher {
    ($engine:ident) => {
        Launcher {
            shared: &$engine.shared,
            memory: &$engine.memory,
            namespaces: &$engine.namespaces,
            slots: &mut $engine.slots,
            hint: &mut $engine.hint,
            share: &mut $engine.share,
            storage: &mut $engine.storage,
            guard: &mut $engine.guard,
            counts: &mut $engine.counts,
            room: &$engine.room,
            clock: &mut $engine.clock,
            page: $engine.page,
            most: $engine.shared.config.max_transfer as usize,
        }
    };
}
pub(super) use launcher;

impl<'a> Launcher<'a> {
    /// Starts a command of queue `sqid`. There is a free slot.
    #[inline(always)]
    pub(super) fn launch(&mut self, sqid: u16, command: &Command) -> Launched {
        match command.nvm_opcode() {
            NvmOpcode::READ => self.transfer::<false>(sqid, command),
            NvmOpcode::WRITE => self.transfer::<true>(sqid, command),
            _ => self.other(sqid, command).unwrap_or_else(|error| self.refuse(sqid, command, error)),
        }
    }

    #[cold]
    fn refuse(&self, sqid: u16, command: &Command, error: TransferError) -> Launched {
        let status = self.shared.status_of(error);
        log_failure(self.shared, sqid, command.cid(), status, command.slba(), command.nsid());
        Launched::Done(status)
    }

    #[inline(always)]
    pub(super) fn namespace(&self, nsid: u32) -> Option<&'a OpenNamespace> {
        (nsid as usize).checked_sub(1).and_then(|at| self.namespaces.get(at)).and_then(Option::as_ref)
    }

    /// A command that comes after the one that is about to be started: has the memory on its way that it will copy, if its
    /// device does that. Nothing of it is checked yet, and nothing is decided by it.
    #[inline(always)]
    pub(super) fn prefetch(&self, command: &Command) {
        let Some(namespace) = self.namespace(command.nsid()) else { return };
        if namespace.prefetches {
            self.prefetch_data(command, namespace);
        }
    }

    #[inline(never)]
    fn prefetch_data(&self, command: &Command, namespace: &OpenNamespace) {
        // Stores do not wait for their memory: only what is read is worth the hint. (Measured: hints halve the writes.)
        if command.nvm_opcode() != NvmOpcode::READ {
            return;
        }
        let blocks = u64::from(IoCdw12::from_bits(command.cdw12()).blocks());
        namespace.channel.prefetch(Op::Read, command.slba(), blocks);
    }

    /// A read or a write.
    #[inline(always)]
    fn transfer<const WRITE: bool>(&mut self, sqid: u16, command: &Command) -> Launched {
        let op = if WRITE { Op::Write } else { Op::Read };
        let Some(namespace) = self.namespace(command.nsid()) else {
            return self.refuse(sqid, command, inactive_namespace(command.nsid()).into());
        };
        let Range { mut flags, lba, blocks, bytes } = match nvm::blocks(command, namespace, op, self.most) {
            Ok(range) => range,
            Err(status) => return self.refuse(sqid, command, status.into()),
        };
        let regions = match self.resolve(command, bytes, if WRITE { Access::Read } else { Access::Write }) {
            Ok(regions) => regions,
            Err(error) => return self.refuse(sqid, command, error),
        };
        self.share.spend(bytes);
        if WRITE && self.shared.write_through.load(Ordering::Relaxed) {
            flags |= Flags::FUA;
        }
        let guard = namespace.keeps_segments.then(|| self.guard.hold_for(self.memory.snapshot()));
        let segments = std::mem::take(self.storage);
        let io = Io::new(op, lba, blocks, segments, guard, self.slots.next_tag()).with_flags(flags);
        let bytes = bytes as u32;
        match namespace.channel.submit(io) {
            Submission::Done(completed) => {
                let (result, storage) = completed.into_parts();
                *self.storage = storage;
                if let Err(error) = result {
                    return self.failed(sqid, command, op, &error);
                }
                self.counts.add(op, bytes);
                Launched::Done(Status::SUCCESS)
            }
            Submission::Pending(future) => {
                let (read, written) = if WRITE { (0, bytes) } else { (bytes, 0) };
                let (cid, nsid) = (command.cid(), command.nsid());
                let tag = Tag { sq: sqid, cid, regions, read, written, nsid, ..Tag::default() };
                self.wait(tag, Work::Io(future))
            }
        }
    }

    #[cold]
    fn failed(&mut self, sqid: u16, command: &Command, op: Op, error: &block::Error) -> Launched {
        let nsid = command.nsid();
        let status = status_of_failure(self.counts, self.shared, nsid, op != Op::Read, error);
        log_failure(self.shared, sqid, command.cid(), status, 0, nsid);
        Launched::Done(status)
    }

    #[inline(always)]
    pub(super) fn resolve(
        &mut self,
        command: &Command,
        len: usize,
        access: Access,
    ) -> Result<RegionMask, TransferError> {
        let transfer = Transfer { command, len, access, page: self.page, sgl_allowed: true };
        transfer::resolve(self.memory.table(), self.hint, transfer, self.storage)
    }

    /// Puts work into a slot, and polls it once.
    #[inline(never)]
    pub(super) fn wait(&mut self, tag: Tag, work: Work) -> Launched {
        let Some(slot) = self.slots.take() else {
            return Launched::Done(Status::INTERNAL_ERROR); // there is one, by this type's contract
        };
        let place = self.slots.get(slot);
        place.tag = Tag { generation: self.memory.table().generation(), ..tag };
        // The slot has the guard from now on that the `Io` holds; the next command gets the one it had.
        let spare = place.guard.replace(std::mem::replace(self.guard, SlotGuard::none()));
        if let Some(spare) = spare {
            *self.guard = spare;
        }
        std::mem::swap(&mut place.storage, self.storage);
        self.slots.set_work(slot, work);
        let Some(ended) = self.slots.poll(slot) else { return Launched::Pending };
        let result = self.slots.take_result(slot, ended);
        self.slots.release(slot);
        let status = outcome(self.counts, self.shared, &tag, result);
        // Who starts a pair logs the statuses of both.
        if !status.is_success() && tag.second.is_none() {
            log_failure(self.shared, tag.sq, tag.cid, status, 0, tag.nsid);
        }
        Launched::Done(status)
    }

    /// What neither reads nor writes.
    #[inline(never)]
    fn other(&mut self, sqid: u16, command: &Command) -> Result<Launched, TransferError> {
        if self.clock.is_over(OTHER) {
            self.share.end();
        }
        let nsid = command.nsid();
        let tag = Tag { sq: sqid, cid: command.cid(), nsid, ..Tag::default() };
        let io_tag = self.slots.next_tag();
        if nsid == u32::MAX && command.nvm_opcode() == NvmOpcode::FLUSH {
            // Flush broadcast: VWC says that it is supported (Base 7.1).
            let channels =
                self.namespaces.iter().flatten().map(|namespace| namespace.channel.clone()).collect();
            let guard = self.guard.hold_for(self.memory.snapshot());
            return Ok(self.wait(tag, Work::Many(Box::pin(nvm::flush_all(channels, io_tag, Some(guard))))));
        }
        let namespace = self.namespace(nsid).ok_or_else(|| TransferError::from(inactive_namespace(nsid)))?;
        let (op, range) = match nvm::decode(command, namespace, self.most).map_err(TransferError::from)? {
            Request::Done => return Ok(Launched::Done(Status::SUCCESS)),
            Request::Fused => return Ok(Launched::Fused),
            Request::Compare(range) => {
                let regions = self.resolve(command, range.bytes, Access::Read)?;
                self.share.spend(range.bytes);
                let guard = self.guard.hold_for(self.memory.snapshot());
                let expected = std::mem::take(self.storage);
                let room = self.room.clone();
                let work = compare(namespace.channel.clone(), range, expected, room, io_tag, guard);
                // It counts as a read (NVM 4.1.4.2).
                let tag = Tag { regions, read: range.bytes as u32, ..tag };
                return Ok(self.wait(tag, Work::Many(Box::pin(work))));
            }
            Request::Deallocate { ranges: n } => {
                let mut ranges = vec![DsmRange::new_zeroed(); n];
                self.resolve(command, n * size_of::<DsmRange>(), Access::Read)?;
                // Copied: the guest's memory is not touched again.
                transfer::read_from_host(self.storage, ranges.as_mut_bytes());
                nvm::check_ranges(&ranges, namespace).map_err(TransferError::from)?;
                let can_discard = namespace.info.abilities.contains(Abilities::DISCARD);
                let guard = self.guard.hold_for(self.memory.snapshot());
                let work = nvm::deallocate(namespace.channel.clone(), can_discard, ranges, io_tag, guard);
                return Ok(self.wait(tag, Work::Many(Box::pin(work))));
            }
            Request::Flush => (Op::Flush, Range { flags: Flags::empty(), lba: 0, blocks: 0, bytes: 0 }),
            Request::Zero(range) => (Op::WriteZeroes, range),
        };
        let through = op == Op::WriteZeroes && self.shared.write_through.load(Ordering::Relaxed);
        let flags = if through { range.flags | Flags::FUA } else { range.flags };
        let guard = self.guard.hold_for(self.memory.snapshot());
        let io = Io::new(op, range.lba, range.blocks, Vec::new(), Some(guard), io_tag).with_flags(flags);
        Ok(match namespace.channel.submit(io) {
            Submission::Done(completed) => match completed.into_parts().0 {
                Ok(()) => Launched::Done(Status::SUCCESS),
                Err(error) => self.failed(sqid, command, op, &error),
            },
            Submission::Pending(future) => self.wait(tag, Work::Io(future)),
        })
    }
}

/// Counts what a command did, and turns its result into a status.
pub(super) fn outcome(
    counts: &mut Counts,
    shared: &Shared,
    tag: &Tag,
    result: Result<(), block::Error>,
) -> Status {
    if let Err(error) = result {
        return status_of_failure(counts, shared, tag.nsid, tag.read == 0, &error);
    }
    if tag.read > 0 {
        counts.add(Op::Read, tag.read);
    }
    if tag.written > 0 {
        counts.add(Op::Write, tag.written);
    }
    Status::SUCCESS
}

#[cold]
fn status_of_failure(
    counts: &mut Counts,
    shared: &Shared,
    nsid: u32,
    is_write: bool,
    error: &block::Error,
) -> Status {
    static COMPLAINTS: RateLimit = RateLimit::new();
    counts.media_errors +=
        u64::from(matches!(error.kind(), ErrorKind::UnrecoveredRead | ErrorKind::WriteFault));
    // That is an answer, not a failure.
    let is_answer = error.kind() == ErrorKind::CompareMismatch;
    if !is_answer && let Some(suppressed) = COMPLAINTS.check() {
        tracing::warn!(suppressed, controller = shared.cntlid, nsid, %error, "I/O failed");
    }
    from_block(error.kind(), is_write)
}

#[cold]
pub(super) fn log_failure(shared: &Shared, sqid: u16, cid: u16, status: Status, lba: u64, nsid: u32) {
    shared.errors().push(&Failure { sqid, cid, status, lba, nsid });
}

impl Engine {
    /// Polls a slot's work; what has ended is completed.
    pub(super) fn poll_slot(&mut self, slot: u32) {
        let Some(ended) = self.slots.poll(slot) else { return };
        let result = self.slots.take_result(slot, ended);
        let tag = self.slots.get(slot).tag;
        let status = outcome(&mut self.counts, &self.shared, &tag, result);
        self.complete(slot, status);
    }

    /// Posts the completion of a command in a slot, and frees the slot.
    pub(super) fn complete(&mut self, slot: u32, status: Status) {
        let place = self.slots.get(slot);
        let tag = place.tag;
        // An Abort that waits for this is answered after it.
        let awaited = place.awaited.take();
        self.released.extend(awaited);
        self.slots.release(slot);
        let Some(second) = tag.second else { return self.end(&tag, tag.cid, status) };
        let (of_first, of_second) = fused::statuses(status);
        self.end(&tag, tag.cid, of_first);
        self.end(&tag, second, of_second);
    }

    fn end(&mut self, tag: &Tag, cid: u16, status: Status) {
        if !status.is_success() {
            log_failure(&self.shared, tag.sq, cid, status, 0, tag.nsid);
        }
        self.complete_reserved(tag.sq, cid, status);
    }

    /// Posts the completion of a command that had left its queue's batch.
    pub(super) fn complete_reserved(&mut self, sqid: u16, cid: u16, status: Status) {
        // Queues that were removed by a reset take no completion.
        let Some(sq) = &mut self.sqs[usize::from(sqid)] else { return };
        sq.in_flight -= 1;
        let (sqhd, cqid) = (sq.head(), sq.cq);
        if let Some(cq) = &mut self.cqs[usize::from(cqid)] {
            cq.post_reserved(completion(sqid, sqhd, cid, status, 0));
            Self::touch(&mut self.touched, cq);
        }
    }

    /// Starts a command that has waited, and is in flight already.
    pub(super) fn start_waiting(&mut self, sqid: u16, command: &Command) {
        if !self.slots.has_room() {
            return self.complete_reserved(sqid, command.cid(), Status::INTERNAL_ERROR);
        }
        match launcher!(self).launch(sqid, command) {
            Launched::Done(status) => self.complete_reserved(sqid, command.cid(), status),
            Launched::Pending => {}
            // A pair is started before either half may wait.
            Launched::Fused => self.complete_reserved(sqid, command.cid(), nvm::missing_half()),
        }
    }
}
