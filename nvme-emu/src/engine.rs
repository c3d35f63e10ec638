//! The I/O path of one worker: fetches commands, starts them, polls what is pending, posts completions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block::{Abilities, Io, Op, Reactor, Submission};
use nvme_spec::command::Command;
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use vfio_user_server::ratelimit::RateLimit;
use vfio_user_server::{Access, Hint, RegionMask};
use zerocopy::{FromZeros, IntoBytes};

use crate::error_log::Failure;
use crate::latch::Token;
use crate::memory::{Memory, SlotGuard};
use crate::nvm::{self, OpenNamespace, Request};
use crate::queue::{CompletionQueue, InvalidDoorbell, Shadow, SubmissionQueue, completion};
use crate::shared::{DoorbellError, Message, Shared, count};
use crate::slots::{Ended, Slots, Tag, Work};
use crate::status::from_block;
use crate::transfer::{self, Transfer, TransferError};
use crate::worker::HOME;

/// Commands taken from one queue in one turn, so that a full queue does not starve the others.
const BATCH: u32 = 32;

/// How long a stop waits for cancelled commands that a device or the kernel still holds: within CAP.TO.
const GIVE_UP: Duration = Duration::from_secs(20);

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
}

/// Regions that left the DMA table while commands may hold them.
struct Retirement {
    regions: RegionMask,
    /// Commands that were resolved in this generation or later do not hold them.
    generation: u64,
    deadline: Instant,
    cancelled: bool,
    _done: Token,
}

struct Stopping {
    deadline: Instant,
    cancelled: bool,
    _done: Token,
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
            deleting: 0,
            namespaces: Vec::new(),
            namespaces_open: false,
            woken: Vec::new(),
            retirements: Vec::new(),
            gone: 0,
            stopping: None,
            vectors: Vectors::default(),
            hint: Hint::default(),
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

    /// Regions left the table, and the worker has the new one: `done` is dropped when no command holds what
    /// is gone. Commands that do at `deadline` are cancelled.
    pub(crate) fn retire(&mut self, deadline: Instant, done: Token) {
        let generation = self.memory.table().generation();
        self.retirements.push(Retirement {
            regions: self.gone,
            generation,
            deadline,
            cancelled: false,
            _done: done,
        });
    }

    pub(crate) fn set_page(&mut self, page: u64) {
        self.page = page;
    }

    // ---- Queues ----

    pub(crate) fn create_cq(&mut self, qid: u16, iova: u64, entries: u32, vector: Option<u16>) {
        let doorbell = self.shared.doorbells.doorbell(qid, true);
        let mut cq = CompletionQueue::new(qid, iova, entries, vector, doorbell);
        let _ = cq.map(self.memory.table());
        self.cqs[usize::from(qid)] = Some(cq);
        self.open_namespaces();
    }

    pub(crate) fn create_sq(&mut self, qid: u16, iova: u64, entries: u32, cqid: u16) {
        let doorbell = self.shared.doorbells.doorbell(qid, false);
        let mut sq = SubmissionQueue::new(qid, iova, entries, cqid, doorbell);
        let _ = sq.map(self.memory.table());
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
        if let Some(cq) = self.cqs[usize::from(qid)].take()
            && cq.asserts_intx
        {
            self.shared.assert_intx(false);
        }
    }

    pub(crate) fn use_shadow_doorbells(&mut self, doorbells: u64, events: u64) {
        let stride = nvme_spec::registers::doorbell_stride(crate::doorbells::DSTRD);
        let shadow = |qid: u16, is_cq: bool| {
            let offset = (2 * u64::from(qid) + u64::from(is_cq)) * stride;
            Shadow::new(doorbells.wrapping_add(offset), events.wrapping_add(offset))
        };
        let table = self.memory.table();
        for sq in self.sqs.iter_mut().flatten() {
            sq.set_shadow(shadow(sq.id, false), table);
        }
        for cq in self.cqs.iter_mut().flatten() {
            cq.set_shadow(shadow(cq.id, true), table);
        }
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

    /// Removes all queues. Commands in flight get until `deadline` to end, then they are cancelled.
    pub(crate) fn stop(&mut self, deadline: Instant, done: Token) {
        self.order.clear();
        self.deleting = 0;
        self.sqs.fill_with(|| None);
        for qid in 0..self.cqs.len() as u16 {
            self.delete_cq(qid);
        }
        self.stopping = Some(Stopping { deadline, cancelled: false, _done: done });
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
        let at = nsid as usize - 1;
        if self.namespaces.len() <= at {
            self.namespaces.resize_with(at + 1, || None);
        }
        self.namespaces[at] = self.shared.subsystem.namespace(nsid).and_then(|namespace| {
            OpenNamespace::open(&namespace, &self.reactor)
                .inspect_err(|error| tracing::error!(nsid, %error, "cannot open a channel to the namespace"))
                .ok()
        });
    }

    /// Channels to all namespaces that can be written, for a flush of all.
    pub(crate) fn channels(&mut self) -> Vec<std::rc::Rc<dyn block::Channel>> {
        self.open_namespaces();
        self.namespaces.iter().flatten().map(|namespace| namespace.channel.clone()).collect()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    // ---- A turn ----

    /// Polls woken commands, then fetches and starts new ones. Returns whether there was anything.
    pub(crate) fn turn(&mut self, fetch: bool) -> bool {
        let mut busy = self.poll_woken();
        if fetch {
            for at in 0..self.order.len() {
                busy |= self.fetch(self.order[at]);
            }
        }
        self.drain();
        self.report_interrupts();
        busy
    }

    fn poll_woken(&mut self) -> bool {
        let mut woken = std::mem::take(&mut self.woken);
        self.slots.take_woken(&mut woken);
        let busy = !woken.is_empty();
        for slot in woken.drain(..) {
            self.poll_slot(slot);
        }
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
        let room = match cq.room(waiting) {
            Ok(room) => waiting.min(room),
            Err(InvalidDoorbell) => return self.invalid_doorbell(cqid),
        };
        for _ in 0..room {
            let (Some(sq), Some(cq)) = (&mut self.sqs[usize::from(qid)], &mut self.cqs[usize::from(cqid)])
            else {
                break;
            };
            if !self.slots.has_room() {
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
        }
        room > 0
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
            return Ok(Some(Work::Many(Box::pin(nvm::flush_all(self.channels(), tag)))));
        }
        let io_tag = self.slots.io_tag(slot);
        let namespace = (nsid as usize)
            .checked_sub(1)
            .and_then(|at| self.namespaces.get(at))
            .and_then(Option::as_ref)
            .ok_or(TransferError::from(Status::INVALID_NAMESPACE_OR_FORMAT))?;
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
            Request::Flush => Io::new(Op::Flush, 0, 0, Vec::new(), None, io_tag),
            Request::Deallocate { ranges: n } => {
                let mut ranges = vec![DsmRange::new_zeroed(); n];
                resolve(record, hint, n * size_of::<DsmRange>(), Access::Read)?;
                transfer::read_from_host(&record.storage, ranges.as_mut_bytes());
                record.tag.regions = 0; // copied: the guest's memory is not touched again
                nvm::check_ranges(&ranges, &namespace.info).map_err(TransferError::from)?;
                let can_discard = namespace.info.abilities.contains(Abilities::DISCARD);
                let channel = namespace.channel.clone();
                return Ok(Some(Work::Many(Box::pin(nvm::deallocate(channel, can_discard, ranges, io_tag)))));
            }
            Request::Blocks { op, flags, lba, blocks, bytes } => {
                let mut guard = None;
                if op != Op::WriteZeroes {
                    let access = if op == Op::Read { Access::Write } else { Access::Read };
                    resolve(record, hint, bytes, access)?;
                    let snapshot = self.memory.snapshot();
                    let held = record.guard.take().filter(|guard| guard.is_of(snapshot) && guard.is_free());
                    let held = record.guard.insert(held.unwrap_or_else(|| SlotGuard::new(snapshot)));
                    guard = Some(held.hold());
                }
                match op {
                    Op::Read => record.tag.read = bytes as u32,
                    Op::Write => record.tag.written = bytes as u32,
                    _ => {}
                }
                let segments =
                    if op == Op::WriteZeroes { Vec::new() } else { std::mem::take(&mut record.storage) };
                Io::new(op, lba, blocks, segments, guard, io_tag).with_flags(flags)
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
                count(&counters.media_errors, 1);
                static LIMIT: RateLimit = RateLimit::new();
                if let Some(suppressed) = LIMIT.check() {
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

    /// What waits for commands to end: cancellation, retired memory, deleted queues, a stop.
    fn drain(&mut self) {
        self.end_lost();
        if self.slots.draining() > 0 {
            for slot in self.slots.indices() {
                if let Some(status) = self.slots.drained(slot) {
                    let nsid = self.slots.get(slot).tag.nsid;
                    self.complete(slot, status, 0, nsid);
                }
            }
        }
        if !self.retirements.is_empty() {
            self.drain_retirements();
        }
        if self.deleting > 0 {
            self.drain_deleted_queues();
        }
        if let Some(stopping) = &mut self.stopping {
            let now = Instant::now();
            if self.slots.in_flight() == 0 {
                self.stopping = None;
            } else if !stopping.cancelled && now >= stopping.deadline {
                stopping.cancelled = true;
                for slot in self.slots.indices() {
                    self.slots.cancel(slot, Status::COMMAND_ABORT_REQUESTED);
                }
            } else if now >= stopping.deadline + GIVE_UP {
                tracing::error!(
                    controller = self.shared.cntlid,
                    commands = self.slots.in_flight(),
                    "a device does not give commands back; the reset goes on without them"
                );
                self.slots.disown();
                self.stopping = None;
            }
        }
    }

    fn drain_deleted_queues(&mut self) {
        for sq in &mut self.sqs {
            if sq.as_ref().is_some_and(|sq| sq.deleting.is_some() && sq.in_flight == 0) {
                *sq = None;
                self.deleting -= 1;
            }
        }
        let sqs = &self.sqs;
        self.order.retain(|qid| sqs[usize::from(*qid)].is_some());
    }

    fn drain_retirements(&mut self) {
        let now = Instant::now();
        let Self { retirements, slots, .. } = self;
        retirements.retain_mut(|retirement| {
            let mut held = false;
            let cancel = !retirement.cancelled && now >= retirement.deadline;
            for slot in slots.indices() {
                let tag = slots.get(slot).tag;
                let holds = tag.generation < retirement.generation && tag.regions & retirement.regions != 0;
                if slots.is_busy(slot) && holds {
                    held = true;
                    if cancel {
                        slots.cancel(slot, Status::DATA_TRANSFER_ERROR);
                    }
                }
            }
            // One more turn after the cancellation; what the kernel holds even then is cut off by the server.
            let over = retirement.cancelled;
            retirement.cancelled |= cancel;
            held && !over
        });
        if self.retirements.is_empty() {
            self.gone = 0;
        }
    }

    /// Ends commands whose `Io` a device lost: a defect of the device, which the guest must not wait for.
    fn end_lost(&mut self) {
        for tag in block::io::take_lost(self.slots.owner()) {
            let slot = tag as u32;
            if self.slots.indices().contains(&slot) && self.slots.is_working(slot) {
                tracing::error!(slot, "a device dropped an I/O without completing it");
                self.slots.cancel(slot, Status::INTERNAL_ERROR);
            }
        }
    }

    /// Interrupts for the entries posted in this turn: each vector once, or the INTx level.
    fn report_interrupts(&mut self) {
        let msix = self.shared.host.interrupts.msix_enabled();
        for cq in self.cqs.iter_mut().flatten() {
            let Some(vector) = cq.vector else { continue };
            if msix {
                if std::mem::take(&mut cq.dirty) {
                    self.vectors.add(vector);
                }
            } else if self.shared.config.intx {
                if cq.asserts_intx {
                    let _ = cq.poll_head();
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
