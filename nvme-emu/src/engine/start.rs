//! From a fetched command to its completion, or to its slot.
//!
//! What completes on the spot never gets a slot: its `Io` is made of storage that the engine has at hand, and its
//! status goes straight to the completion queue.

use std::sync::atomic::Ordering;

use block::{Abilities, ErrorKind, Flags, Io, Op, Segment, Submission};
use nvme_spec::command::Command;
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use vfio_user_server::ratelimit::RateLimit;
use vfio_user_server::{Access, Hint, RegionMask};
use zerocopy::{FromZeros, IntoBytes};

use super::Engine;
use super::turn::Share;
use crate::error_log::Failure;
use crate::memory::{Memory, SlotGuard};
use crate::nvm::{self, OpenNamespace, Request};
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
    pub(super) page: u64,
}

impl Launcher<'_> {
    /// Starts a command of queue `sqid`. There is a free slot.
    #[inline]
    pub(super) fn launch(&mut self, sqid: u16, command: &Command) -> Launched {
        let launched = match self.prepare(sqid, command) {
            Ok(launched) => launched,
            Err(error) => Launched::Done(self.shared.status_of(error)),
        };
        if let Launched::Done(status) = launched
            && !status.is_success()
        {
            log_failure(self.shared, sqid, command.cid(), status, command.slba(), command.nsid());
        }
        launched
    }

    #[inline]
    fn prepare(&mut self, sqid: u16, command: &Command) -> Result<Launched, TransferError> {
        let nsid = command.nsid();
        let namespace = (nsid as usize).checked_sub(1).and_then(|at| self.namespaces.get(at));
        let Some(Some(namespace)) = namespace else { return self.without_namespace(sqid, command) };
        let most = self.shared.config.max_transfer as usize;
        let request = nvm::decode(command, namespace, most).map_err(TransferError::from)?;
        let Request::Blocks { op, flags, lba, blocks, bytes } = request else {
            return self.rest(sqid, command, namespace, request);
        };
        let mut regions = 0;
        if op != Op::WriteZeroes {
            let access = if op == Op::Read { Access::Write } else { Access::Read };
            regions = self.resolve(command, bytes, access)?;
            self.share.spend(bytes);
        }
        let through = op != Op::Read && self.shared.write_through.load(Ordering::Relaxed);
        let flags = if through { flags | Flags::FUA } else { flags };
        let segments = if op == Op::WriteZeroes { Vec::new() } else { std::mem::take(self.storage) };
        let guard = self.guard.hold_for(self.memory.snapshot());
        let io = Io::new(op, lba, blocks, segments, Some(guard), self.slots.next_tag()).with_flags(flags);
        let (read, written) = match op {
            Op::Read => (bytes as u32, 0),
            Op::Write => (0, bytes as u32),
            _ => (0, 0),
        };
        match namespace.channel.submit(io) {
            Submission::Done(completed) => {
                let (result, storage) = completed.into_parts();
                *self.storage = storage;
                Ok(Launched::Done(outcome(self.counts, self.shared, nsid, (read, written), result)))
            }
            Submission::Pending(future) => {
                let tag = Tag { sq: sqid, cid: command.cid(), regions, generation: 0, read, written, nsid };
                Ok(self.wait(tag, Work::Io(future)))
            }
        }
    }

    #[inline]
    fn resolve(
        &mut self,
        command: &Command,
        len: usize,
        access: Access,
    ) -> Result<RegionMask, TransferError> {
        let transfer = Transfer { command, len, access, page: self.page, sgl_allowed: true };
        transfer::resolve(self.memory.table(), self.hint, &transfer, self.storage)
    }

    /// Puts work into a slot, and polls it once.
    #[inline(never)]
    fn wait(&mut self, tag: Tag, work: Work) -> Launched {
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
        Launched::Done(outcome(self.counts, self.shared, tag.nsid, (tag.read, tag.written), result))
    }

    /// A command for all namespaces, or for one that is not there.
    #[cold]
    fn without_namespace(&mut self, sqid: u16, command: &Command) -> Result<Launched, TransferError> {
        let nsid = command.nsid();
        if nsid != u32::MAX || command.nvm_opcode() != NvmOpcode::FLUSH {
            return Err(inactive_namespace(nsid).into());
        }
        // Flush broadcast: VWC says that it is supported (Base 7.1).
        let channels = self.namespaces.iter().flatten().map(|namespace| namespace.channel.clone()).collect();
        let guard = self.guard.hold_for(self.memory.snapshot());
        let flush = nvm::flush_all(channels, self.slots.next_tag(), Some(guard));
        let tag = Tag { sq: sqid, cid: command.cid(), nsid, ..Tag::default() };
        Ok(self.wait(tag, Work::Many(Box::pin(flush))))
    }

    /// What neither reads nor writes.
    #[inline(never)]
    fn rest(
        &mut self,
        sqid: u16,
        command: &Command,
        namespace: &OpenNamespace,
        request: Request,
    ) -> Result<Launched, TransferError> {
        let tag = Tag { sq: sqid, cid: command.cid(), nsid: command.nsid(), ..Tag::default() };
        let io_tag = self.slots.next_tag();
        match request {
            Request::Flush => {
                let guard = self.guard.hold_for(self.memory.snapshot());
                match namespace.channel.submit(Io::new(Op::Flush, 0, 0, Vec::new(), Some(guard), io_tag)) {
                    Submission::Done(completed) => {
                        let result = completed.into_parts().0;
                        Ok(Launched::Done(outcome(self.counts, self.shared, tag.nsid, (0, 0), result)))
                    }
                    Submission::Pending(future) => Ok(self.wait(tag, Work::Io(future))),
                }
            }
            Request::Deallocate { ranges: n } => {
                let mut ranges = vec![DsmRange::new_zeroed(); n];
                self.resolve(command, n * size_of::<DsmRange>(), Access::Read)?;
                // Copied: the guest's memory is not touched again.
                transfer::read_from_host(self.storage, ranges.as_mut_bytes());
                nvm::check_ranges(&ranges, &namespace.info).map_err(TransferError::from)?;
                let can_discard = namespace.info.abilities.contains(Abilities::DISCARD);
                let channel = namespace.channel.clone();
                let guard = self.guard.hold_for(self.memory.snapshot());
                let work = nvm::deallocate(channel, can_discard, ranges, io_tag, guard);
                Ok(self.wait(tag, Work::Many(Box::pin(work))))
            }
            Request::Done | Request::Blocks { .. } => Ok(Launched::Done(Status::SUCCESS)),
        }
    }
}

/// Counts what a command did, and turns its result into a status. `moved`: bytes read and written.
#[inline]
fn outcome(
    counts: &mut Counts,
    shared: &Shared,
    nsid: u32,
    (read, written): (u32, u32),
    result: Result<(), block::Error>,
) -> Status {
    if let Err(error) = result {
        return failed(counts, shared, nsid, read, &error);
    }
    counts.reads += u64::from(read > 0);
    counts.bytes_read += u64::from(read);
    counts.writes += u64::from(written > 0);
    counts.bytes_written += u64::from(written);
    Status::SUCCESS
}

#[cold]
fn failed(counts: &mut Counts, shared: &Shared, nsid: u32, read: u32, error: &block::Error) -> Status {
    static COMPLAINTS: RateLimit = RateLimit::new();
    counts.media_errors +=
        u64::from(matches!(error.kind(), ErrorKind::UnrecoveredRead | ErrorKind::WriteFault));
    if let Some(suppressed) = COMPLAINTS.check() {
        tracing::warn!(suppressed, controller = shared.cntlid, nsid, %error, "I/O failed");
    }
    from_block(error.kind(), read == 0)
}

#[cold]
fn log_failure(shared: &Shared, sqid: u16, cid: u16, status: Status, lba: u64, nsid: u32) {
    shared.errors().push(&Failure { sqid, cid, status, lba, nsid });
}

impl Engine {
    /// Polls a slot's work; what has ended is completed.
    pub(super) fn poll_slot(&mut self, slot: u32) {
        let Some(ended) = self.slots.poll(slot) else { return };
        let result = self.slots.take_result(slot, ended);
        let tag = self.slots.get(slot).tag;
        let status = outcome(&mut self.counts, &self.shared, tag.nsid, (tag.read, tag.written), result);
        self.complete(slot, status);
    }

    /// Posts the completion of a command in a slot, and frees the slot.
    pub(super) fn complete(&mut self, slot: u32, status: Status) {
        let place = self.slots.get(slot);
        let tag = place.tag;
        // An Abort that waits for this is answered after it.
        let _awaited = place.awaited.take();
        self.slots.release(slot);
        if !status.is_success() {
            log_failure(&self.shared, tag.sq, tag.cid, status, 0, tag.nsid);
        }
        self.complete_reserved(tag.sq, tag.cid, status);
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
        if let Launched::Done(status) = self.launcher().launch(sqid, command) {
            self.complete_reserved(sqid, command.cid(), status);
        }
    }

    fn launcher(&mut self) -> Launcher<'_> {
        Launcher {
            shared: &self.shared,
            memory: &self.memory,
            namespaces: &self.namespaces,
            slots: &mut self.slots,
            hint: &mut self.hint,
            share: &mut self.share,
            storage: &mut self.storage,
            guard: &mut self.guard,
            counts: &mut self.counts,
            page: self.page,
        }
    }
}
