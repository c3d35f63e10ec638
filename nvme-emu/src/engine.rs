//! The I/O path of one worker: fetches commands, starts them, polls what is pending, posts completions.

mod clock;
mod drain;
mod throttle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{Abilities, ErrorKind, Flags, Io, Op, Reactor, Submission};
use nvme_spec::command::Command;
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::registers::{DOORBELLS, doorbell_offset};
use nvme_spec::status::Status;
use vfio_user_server::ratelimit::RateLimit;
use vfio_user_server::{Access, Hint, RegionMask};
use zerocopy::{FromZeros, IntoBytes};

use self::clock::{OTHER, TRANSFER, TurnClock};
use self::drain::{Retirement, Stopping};
use crate::doorbells::DSTRD;
use crate::error_log::Failure;
use crate::latch::Token;
use crate::memory::Memory;
use crate::nvm::{self, OpenNamespace, Request};
use crate::queue::{CompletionQueue, InvalidDoorbell, Shadow, SubmissionQueue, completion};
use crate::shared::{DoorbellError, Message, Shared, count};
use crate::slots::{Ended, Slots, Tag, Work};
use crate::status::from_block;
use crate::subsystem::{MAX_NAMESPACES, inactive_namespace};
use crate::transfer::{self, Transfer, TransferError};
use crate::worker::HOME;

/// Commands taken from one queue in one turn, so that a full queue does not starve the others.
const BATCH: u32 = 32;

/// Bytes started in one turn, so that other controllers of the reactor get theirs.
const BUDGET: usize = 8 << 20;

/// The queues of one controller on one reactor, and what is in flight on them.
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) reactor: Reactor,
    pub(crate) memory: Memory,
    page: u64,
    /// By queue identifier.
    sqs: Vec<Option<SubmissionQueue>>,
    cqs: Vec<Option<CompletionQueue>>,
    /// Submission queues that there are, in the order they are served.
    order: Vec<u16>,
    /// Completion queues that there are.
    cq_order: Vec<u16>,
    /// How many of them are being deleted.
    deleting: usize,
    /// By namespace identifier less one. Empty until the first command or change.
    namespaces: Vec<Option<OpenNamespace>>,
    namespaces_open: bool,
    slots: Slots,
    woken: Vec<u32>,
    retirements: Vec<Retirement>,
    /// Regions that left the table and may still be held.
    gone: RegionMask,
    stopping: Option<Stopping>,
    pub(crate) vectors: Vectors,
    hint: Hint,
    bus_master: bool,
    /// Bytes that may still be started in this turn.
    budget: usize,
    clock: TurnClock,
    /// Where in `order` the turn begins.
    first: usize,
    /// Guest addresses of the Shadow Doorbell and EventIdx buffers.
    shadow: Option<(u64, u64)>,
}

/// Interrupt vectors to signal at the end of a turn: each at most once.
#[derive(Default)]
pub(crate) struct Vectors(Vec<u16>);

impl Vectors {
    pub(crate) fn add(&mut self, vector: u16) {
        if !self.0.contains(&vector) {
            self.0.push(vector);
        }
    }

    pub(crate) fn signal(&mut self, shared: &Shared) {
        for vector in self.0.drain(..) {
            shared.host.interrupts.trigger(vector);
        }
    }
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, index: usize, reactor: Reactor) -> Self {
        let memory = Memory::new(shared.host.clone());
        Self {
            slots: Slots::new(reactor.unparker(), memory.snapshot().clone()),
            memory,
            index,
            page: 4096,
            sqs: (0..=shared.config.io_queues).map(|_| None).collect(),
            cqs: (0..=shared.config.io_queues).map(|_| None).collect(),
            order: Vec::new(),
            cq_order: Vec::new(),
            deleting: 0,
            namespaces: Vec::new(),
            namespaces_open: false,
            woken: Vec::new(),
            retirements: Vec::new(),
            gone: 0,
            stopping: None,
            vectors: Vectors::default(),
            hint: Hint::default(),
            bus_master: true,
            budget: BUDGET,
            clock: TurnClock::default(),
            first: 0,
            shadow: None,
            shared,
            reactor,
        }
    }

    /// Takes the current DMA table, if it changed: everything that was resolved is resolved anew.
    pub(crate) fn refresh_memory(&mut self) -> Option<RegionMask> {
        let removed = self.memory.refresh()?;
        self.slots.set_current(self.memory.snapshot());
        let table = self.memory.table();
        for sq in self.sqs.iter_mut().flatten() {
            if sq.map(table).is_err() {
                tracing::debug!(queue = sq.id, "submission queue memory is gone, the queue rests");
            }
        }
        for cq in self.cqs.iter_mut().flatten() {
            if cq.map(table).is_err() {
                tracing::debug!(queue = cq.id, "completion queue memory is gone, the queue rests");
            }
        }
        self.gone |= removed;
        Some(removed)
    }

    pub(crate) fn set_page(&mut self, page: u64) {
        self.page = page;
    }

    // ---- Queues ----

    pub(crate) fn create_cq(&mut self, qid: u16, iova: u64, entries: u32, vector: Option<u16>) {
        let doorbell = self.shared.doorbells().doorbell(qid, true);
        let mut cq = CompletionQueue::new(qid, iova, entries, vector, doorbell);
        let _ = cq.map(self.memory.table());
        if let Some(shadow) = self.shadow_of(qid, true) {
            cq.set_shadow(shadow, self.memory.table());
        }
        self.cqs[usize::from(qid)] = Some(cq);
        self.cq_order.push(qid);
        self.open_namespaces();
    }

    pub(crate) fn create_sq(&mut self, qid: u16, iova: u64, entries: u32, cqid: u16) {
        let doorbell = self.shared.doorbells().doorbell(qid, false);
        let mut sq = SubmissionQueue::new(qid, iova, entries, cqid, doorbell);
        let _ = sq.map(self.memory.table());
        if let Some(shadow) = self.shadow_of(qid, false) {
            sq.set_shadow(shadow, self.memory.table());
        }
        self.sqs[usize::from(qid)] = Some(sq);
        self.order.push(qid);
    }

    /// Fetches no more from a queue and cancels its commands; it goes when they have ended.
    pub(crate) fn delete_sq(&mut self, qid: u16, done: Token) {
        for slot in self.slots.indices() {
            if self.slots.is_busy(slot) && self.slots.get(slot).tag.sq == qid {
                self.slots.cancel(slot, Status::COMMAND_ABORTED_SQ_DELETION);
            }
        }
        if let Some(sq) = &mut self.sqs[usize::from(qid)] {
            sq.deleting = Some(done);
            self.deleting += 1;
        }
    }

    pub(crate) fn delete_cq(&mut self, qid: u16) {
        self.cq_order.retain(|other| *other != qid);
        if let Some(cq) = self.cqs[usize::from(qid)].take()
            && cq.asserts_intx
        {
            self.shared.assert_intx(false);
        }
    }

    /// Queues read their doorbells from shadow buffers from now on, until the controller stops.
    pub(crate) fn use_shadow_doorbells(&mut self, doorbells: u64, events: u64) {
        self.shadow = Some((doorbells, events));
        for qid in 0..self.sqs.len() as u16 {
            let (for_sq, for_cq) = (self.shadow_of(qid, false), self.shadow_of(qid, true));
            let table = self.memory.table();
            if let (Some(sq), Some(shadow)) = (&mut self.sqs[usize::from(qid)], for_sq) {
                sq.set_shadow(shadow, table);
            }
            if let (Some(cq), Some(shadow)) = (&mut self.cqs[usize::from(qid)], for_cq) {
                cq.set_shadow(shadow, table);
            }
        }
    }

    fn shadow_of(&self, qid: u16, is_cq: bool) -> Option<Shadow> {
        let (doorbells, events) = self.shadow?;
        let offset = doorbell_offset(qid, is_cq, DSTRD) - DOORBELLS;
        Some(Shadow::new(doorbells.wrapping_add(offset), events.wrapping_add(offset)))
    }

    /// Cancels a command; sets `found` if it is in flight. `done` is dropped when it has ended.
    pub(crate) fn abort(&mut self, sqid: u16, cid: u16, found: &AtomicBool, done: Token) {
        for slot in self.slots.indices() {
            let tag = self.slots.get(slot).tag;
            if self.slots.is_working(slot) && tag.sq == sqid && tag.cid == cid {
                self.slots.cancel(slot, Status::COMMAND_ABORT_REQUESTED);
                self.slots.get(slot).awaited = Some(done);
                found.store(true, Ordering::Release);
                return;
            }
        }
    }

    /// A namespace came, went or changed: opens what the subsystem has now.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        if self.namespaces_open {
            self.open_namespace(nsid);
        }
    }

    /// Opens channels to all namespaces, once.
    pub(crate) fn open_namespaces(&mut self) {
        if !self.namespaces_open {
            self.namespaces_open = true;
            for namespace in self.shared.subsystem.namespaces() {
                self.open_namespace(namespace.nsid);
            }
        }
    }

    fn open_namespace(&mut self, nsid: u32) {
        let Some(at) = (nsid as usize).checked_sub(1).filter(|at| *at < MAX_NAMESPACES as usize) else {
            return;
        };
        if self.namespaces.len() <= at {
            self.namespaces.resize_with(at + 1, || None);
        }
        self.namespaces[at] = self.shared.subsystem.namespace(nsid).and_then(|namespace| {
            OpenNamespace::open(&namespace, &self.reactor)
                .inspect_err(|error| tracing::error!(nsid, %error, "cannot open a channel to the namespace"))
                .ok()
        });
    }

    /// A tag for an `Io` that belongs to no slot.
    pub(crate) fn own_tag(&self) -> u64 {
        self.slots.own_tag()
    }

    /// Channels to all namespaces, for a flush of all.
    pub(crate) fn channels(&mut self) -> Vec<std::rc::Rc<dyn block::Channel>> {
        self.open_namespaces();
        self.namespaces.iter().flatten().map(|namespace| namespace.channel.clone()).collect()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    // ---- A turn ----

    /// Polls woken commands, then fetches and starts new ones. Returns whether there was anything.
    pub(crate) fn turn(&mut self, running: bool, bus_master: bool) -> bool {
        self.set_bus_master(bus_master);
        self.clock = TurnClock::default();
        let mut busy = self.poll_woken();
        if running && bus_master && !self.order.is_empty() {
            self.budget = BUDGET;
            // Another queue is first in each turn: none can eat the budget every time.
            self.first = (self.first + 1) % self.order.len();
            for at in 0..self.order.len() {
                let qid = self.order[(self.first + at) % self.order.len()];
                busy |= self.fetch(qid);
            }
        }
        self.drain();
        self.report_interrupts();
        busy
    }

    /// Without bus mastering nothing is posted.
    fn set_bus_master(&mut self, on: bool) {
        if self.bus_master != on {
            self.bus_master = on;
            for cq in self.cqs.iter_mut().flatten() {
                cq.set_held(!on, self.memory.table());
            }
        }
    }

    fn poll_woken(&mut self) -> bool {
        let mut woken = std::mem::take(&mut self.woken);
        self.slots.take_woken(&mut woken);
        let busy = !woken.is_empty();
        // What the turn has no time for is first in the next.
        let mut done = 0;
        while let Some(slot) = woken.get(done).copied() {
            let tag = self.slots.get(slot).tag;
            let steps = if tag.read | tag.written != 0 { TRANSFER } else { OTHER };
            self.poll_slot(slot);
            done += 1;
            if self.clock.is_over(steps) {
                break;
            }
        }
        woken.drain(..done);
        self.woken = woken;
        busy
    }

    fn poll_slot(&mut self, slot: u32) {
        let Some(ended) = self.slots.poll(slot) else { return };
        let result = match ended {
            Ended::Io(completed) => {
                let (result, storage) = completed.into_parts();
                self.slots.get(slot).storage = storage;
                result
            }
            Ended::Many(result) => result,
        };
        self.finish(slot, result);
    }

    fn fetch(&mut self, qid: u16) -> bool {
        let Some(sq) = &mut self.sqs[usize::from(qid)] else { return false };
        if sq.deleting.is_some() || !sq.ring.is_mapped() {
            return false;
        }
        let waiting = match sq.poll_tail() {
            Ok(0) => return false,
            Ok(waiting) => waiting.min(BATCH),
            Err(InvalidDoorbell) => return self.invalid_doorbell(qid),
        };
        if self.memory.is_stale() {
            return true; // next turn, with the table of now
        }
        let cqid = sq.cq;
        let Some(cq) = &mut self.cqs[usize::from(cqid)] else { return false };
        if !cq.can_post() {
            return false;
        }
        let room = match cq.room(waiting) {
            Ok(room) => waiting.min(room),
            Err(InvalidDoorbell) => return self.invalid_doorbell(cqid),
        };
        let mut started = false;
        for _ in 0..room {
            let (Some(sq), Some(cq)) = (&mut self.sqs[usize::from(qid)], &mut self.cqs[usize::from(cqid)])
            else {
                break;
            };
            if !self.slots.has_room() || self.budget == 0 {
                break;
            }
            let Ok(command) = sq.fetch(self.memory.table()) else {
                sq.ring.unmap();
                break;
            };
            let Some(slot) = self.slots.take() else { break };
            cq.reserve();
            sq.in_flight += 1;
            self.slots.get(slot).tag = Tag { sq: qid, cid: command.cid(), ..Tag::default() };
            self.start(slot, &command);
            started = true;
            let is_transfer = matches!(command.nvm_opcode(), NvmOpcode::READ | NvmOpcode::WRITE);
            if self.clock.is_over(if is_transfer { TRANSFER } else { OTHER }) {
                self.budget = 0;
            }
        }
        started
    }

    fn invalid_doorbell(&self, qid: u16) -> bool {
        self.shared.send(HOME, Message::InvalidDoorbell(DoorbellError::Value { qid }));
        true
    }

    /// Starts a command; it is complete afterwards or in its slot.
    fn start(&mut self, slot: u32, command: &Command) {
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
                    self.budget = self.budget.saturating_sub(bytes);
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

    fn finish(&mut self, slot: u32, result: Result<(), block::Error>) {
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
    fn complete(&mut self, slot: u32, status: Status, lba: u64, nsid: u32) {
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
            cq.post(completion(tag.sq, sqhd, tag.cid, status, 0), self.memory.table());
        }
    }

    /// Interrupts for the entries posted in this turn: each vector once, or the INTx level.
    fn report_interrupts(&mut self) {
        let msix = self.shared.host.interrupts.msix_enabled();
        for qid in &self.cq_order {
            let Some(cq) = &mut self.cqs[usize::from(*qid)] else { continue };
            let Some(vector) = cq.vector else { continue };
            if msix {
                if std::mem::take(&mut cq.dirty) {
                    self.vectors.add(vector);
                }
            } else if self.shared.config.intx {
                if cq.asserts_intx && cq.poll_head().is_err() {
                    let error = DoorbellError::Value { qid: *qid };
                    self.shared.send(HOME, Message::InvalidDoorbell(error));
                }
                let asserts = !cq.is_empty();
                if asserts != cq.asserts_intx {
                    cq.asserts_intx = asserts;
                    self.shared.assert_intx(asserts);
                }
            }
        }
        self.vectors.signal(&self.shared);
    }
}
