//! From a fetched command to its completion.

use std::sync::atomic::Ordering;

use block::{Abilities, ErrorKind, Flags, Io, Op, Submission};
use nvme_spec::command::Command;
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use vfio_user_server::ratelimit::RateLimit;
use vfio_user_server::{Access, Hint};
use zerocopy::{FromZeros, IntoBytes};

use super::Engine;
use crate::error_log::Failure;
use crate::nvm::{self, Request};
use crate::queue::completion;
use crate::shared::count;
use crate::slots::Work;
use crate::status::from_block;
use crate::subsystem::inactive_namespace;
use crate::transfer::{self, Transfer, TransferError};

impl Engine {
    /// Starts a command; it is complete afterwards or in its slot.
    #[inline]
    pub(super) fn start(&mut self, slot: u32, command: &Command) {
        if !(self.throttle.is_limited() && self.must_wait(slot, command)) {
            self.start_now(slot, command);
        }
    }

    /// The same, whatever the limits say.
    pub(super) fn start_now(&mut self, slot: u32, command: &Command) {
        match self.prepare(slot, command) {
            Ok(Some(work)) => {
                self.slots.set_work(slot, work);
                self.poll_slot(slot);
            }
            Ok(None) => {}
            Err(error) => {
                let status = self.shared.status_of(error);
                self.complete(slot, status, command.slba(), command.nsid());
            }
        }
    }

    /// `None`: the command completed on the spot.
    fn prepare(&mut self, slot: u32, command: &Command) -> Result<Option<Work>, TransferError> {
        let nsid = command.nsid();
        self.slots.get(slot).tag.nsid = nsid;
        if nsid == u32::MAX && command.nvm_opcode() == NvmOpcode::FLUSH {
            // Flush broadcast: VWC says that it is supported (Base 7.1).
            let tag = self.slots.io_tag(slot);
            let guard = self.slots.get(slot).hold(self.memory.snapshot());
            return Ok(Some(Work::Many(Box::pin(nvm::flush_all(self.channels(), tag, Some(guard))))));
        }
        let io_tag = self.slots.io_tag(slot);
        let namespace = (nsid as usize)
            .checked_sub(1)
            .and_then(|at| self.namespaces.get(at))
            .and_then(Option::as_ref)
            .ok_or(TransferError::from(inactive_namespace(nsid)))?;
        let most = self.shared.config.max_transfer as usize;
        let request = nvm::decode(command, namespace, most).map_err(TransferError::from)?;
        let record = self.slots.get(slot);
        let hint = &mut self.hint;
        let resolve = |record: &mut crate::slots::Slot, hint: &mut Hint, len, access| {
            let table = self.memory.table();
            let storage = &mut record.storage;
            record.tag.generation = table.generation();
            let transfer = Transfer { command, len, access, page: self.page, sgl_allowed: true };
            record.tag.regions = transfer::resolve(table, hint, &transfer, storage)?;
            Ok::<_, TransferError>(())
        };
        let io = match request {
            Request::Done => {
                self.complete(slot, Status::SUCCESS, 0, nsid);
                return Ok(None);
            }
            Request::Flush => {
                let guard = record.hold(self.memory.snapshot());
                Io::new(Op::Flush, 0, 0, Vec::new(), Some(guard), io_tag)
            }
            Request::Deallocate { ranges: n } => {
                let mut ranges = vec![DsmRange::new_zeroed(); n];
                resolve(record, hint, n * size_of::<DsmRange>(), Access::Read)?;
                transfer::read_from_host(&record.storage, ranges.as_mut_bytes());
                record.tag.regions = 0; // copied: the guest's memory is not touched again
                nvm::check_ranges(&ranges, &namespace.info).map_err(TransferError::from)?;
                let can_discard = namespace.info.abilities.contains(Abilities::DISCARD);
                let channel = namespace.channel.clone();
                let guard = record.hold(self.memory.snapshot());
                return Ok(Some(Work::Many(Box::pin(nvm::deallocate(
                    channel,
                    can_discard,
                    ranges,
                    io_tag,
                    guard,
                )))));
            }
            Request::Blocks { op, flags, lba, blocks, bytes } => {
                if op != Op::WriteZeroes {
                    let access = if op == Op::Read { Access::Write } else { Access::Read };
                    resolve(record, hint, bytes, access)?;
                    self.share.spend(bytes);
                }
                let guard = record.hold(self.memory.snapshot());
                match op {
                    Op::Read => record.tag.read = bytes as u32,
                    Op::Write => record.tag.written = bytes as u32,
                    _ => {}
                }
                let through = op != Op::Read && self.shared.write_through.load(Ordering::Relaxed);
                let flags = if through { flags | Flags::FUA } else { flags };
                let segments =
                    if op == Op::WriteZeroes { Vec::new() } else { std::mem::take(&mut record.storage) };
                Io::new(op, lba, blocks, segments, Some(guard), io_tag).with_flags(flags)
            }
        };
        match namespace.channel.submit(io) {
            Submission::Done(completed) => {
                let (result, storage) = completed.into_parts();
                self.slots.get(slot).storage = storage;
                self.finish(slot, result);
                Ok(None)
            }
            Submission::Pending(future) => Ok(Some(Work::Io(future))),
        }
    }

    pub(super) fn finish(&mut self, slot: u32, result: Result<(), block::Error>) {
        let tag = self.slots.get(slot).tag;
        let counters = &self.shared.ports[self.index].counters;
        let status = match result {
            Ok(()) => {
                if tag.read > 0 {
                    count(&counters.reads, 1);
                    count(&counters.bytes_read, u64::from(tag.read));
                }
                if tag.written > 0 {
                    count(&counters.writes, 1);
                    count(&counters.bytes_written, u64::from(tag.written));
                }
                Status::SUCCESS
            }
            Err(error) => {
                if matches!(error.kind(), ErrorKind::UnrecoveredRead | ErrorKind::WriteFault) {
                    count(&counters.media_errors, 1);
                }
                static COMPLAINTS: RateLimit = RateLimit::new();
                if let Some(suppressed) = COMPLAINTS.check() {
                    tracing::warn!(suppressed, controller = self.shared.cntlid, nsid = tag.nsid, %error, "I/O failed");
                }
                from_block(error.kind(), tag.read == 0)
            }
        };
        self.complete(slot, status, 0, tag.nsid);
    }

    /// Posts a command's completion and frees its slot.
    pub(super) fn complete(&mut self, slot: u32, status: Status, lba: u64, nsid: u32) {
        let tag = self.slots.get(slot).tag;
        // An Abort that waits for this is answered after it.
        let _awaited = self.slots.get(slot).awaited.take();
        self.slots.release(slot);
        if !status.is_success() {
            let failure = Failure { sqid: tag.sq, cid: tag.cid, status, lba, nsid };
            self.shared.errors().push(&failure);
        }
        // Queues that were removed by a reset take no completion.
        let Some(sq) = &mut self.sqs[usize::from(tag.sq)] else { return };
        sq.in_flight -= 1;
        let (sqhd, cqid) = (sq.head(), sq.cq);
        if let Some(cq) = &mut self.cqs[usize::from(cqid)] {
            cq.post(completion(tag.sq, sqhd, tag.cid, status, 0));
            Self::touch(&mut self.touched, cq);
        }
    }
}
