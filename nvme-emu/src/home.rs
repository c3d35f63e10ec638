//! The home worker's part: bringing the controller up and down as its registers ask, and the admin queue.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nvme_spec::command::Command;
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::status::Status;
use vfio_user_server::ratelimit::RateLimit;
use vfio_user_server::{DmaFault, Hint};

use crate::admin::{Admin, Answer, Ask, Change, To};
use crate::doorbells::Doorbells;
use crate::engine::{CoalescingTable, Engine};
use crate::error_log::Failure;
use crate::latch::{Latch, Token, latch};
use crate::nvm;
use crate::placement::{MoveError, MoveReply};
use crate::queue::{CompletionQueue, InvalidDoorbell, SubmissionQueue, completion};
use crate::registers::{Enabled, Registers};
use crate::security::Outcome;
use crate::shared::{DoorbellError, Message};
use crate::status::from_block;

mod security;

use security::Slots;

/// How long commands in flight may take to end in a reset before they are cancelled.
const STOP_GRACE: Duration = Duration::from_millis(1500);

/// Admin commands taken in one turn.
const BATCH: u32 = 8;

/// For what a guest can provoke.
static LIMIT: RateLimit = RateLimit::new();

/// What only the home worker has.
pub(crate) struct Home {
    phase: Phase,
    /// Resets asked for through the function, not the registers: released when the controller is down.
    resets: Vec<Token>,
    /// One of them because the client is gone.
    detached: bool,
    shutdown: Shutdown,
    /// Look again whether a shutdown is wanted.
    look_again: bool,
    /// The next doorbell to look at for stray stores.
    scan: u16,
    /// Commands that the subsystem's security has.
    security: Slots,
}

enum Phase {
    Off,
    On(Box<Up>),
    Stopping(Latch),
}

enum Shutdown {
    None,
    Flushing(Flush),
}

/// The controller while it is enabled.
struct Up {
    enabled: Enabled,
    doorbells: Arc<Doorbells>,
    sq: SubmissionQueue,
    cq: CompletionQueue,
    admin: Admin,
    waiting: Vec<Waiting>,
    /// Admin commands that wait until all namespaces are durable.
    flushing: Vec<(u16, Flush)>,
    moving: Vec<Moving>,
    /// Commands that wait for the end of moves.
    delayed: Vec<Command>,
    /// Security commands that wait for a slot.
    unsent: VecDeque<Command>,
}

/// Queues on their way to another worker.
struct Moving {
    cqid: u16,
    to: usize,
    /// Set when they are there.
    moved: Arc<AtomicBool>,
    latch: Latch,
    reply: MoveReply,
}

/// Making all namespaces durable. Polled in each turn; the reactor does not sleep meanwhile.
type Flush = Pin<Box<dyn Future<Output = Result<(), block::Error>>>>;

fn flush(engine: &mut Engine) -> Flush {
    let tag = engine.own_tag();
    Box::pin(nvm::flush_all(engine.channels(), tag, None))
}

fn poll_flush(flush: &mut Flush) -> Poll<Result<(), block::Error>> {
    flush.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// An admin command that waits for other workers.
struct Waiting {
    cid: u16,
    latch: Latch,
    change: Change,
    /// Abort: whether the command was found.
    found: Option<Arc<AtomicBool>>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Off,
            resets: Vec::new(),
            detached: false,
            shutdown: Shutdown::None,
            look_again: false,
            scan: 0,
            security: Slots::default(),
        }
    }

    /// The function was reset from outside.
    pub(crate) fn reset(&mut self, detach: bool, done: Token) {
        self.detached |= detach;
        self.resets.push(done);
    }

    /// The DMA table changed.
    pub(crate) fn refresh_memory(&mut self, engine: &Engine) {
        if let Phase::On(up) = &mut self.phase {
            let _ = up.sq.map(engine.memory.table());
            let _ = up.cq.map(engine.memory.table());
        }
    }

    /// A namespace came, went or changed.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        if let Phase::On(up) = &mut self.phase {
            up.admin.events.namespace_changed(nsid);
        }
    }

    pub(crate) fn invalid_doorbell(&mut self, engine: &Engine, error: DoorbellError) {
        if let Phase::On(up) = &mut self.phase {
            up.invalid_doorbell(engine, error);
        }
    }

    /// The subsystem's security has answered a command.
    pub(crate) fn secured(&mut self, slot: usize, outcome: Outcome) {
        self.security.answered(slot, outcome);
    }

    /// Moves a completion queue, with its submission queues, to worker `to`.
    pub(crate) fn move_queue(&mut self, engine: &Engine, cqid: u16, to: usize, reply: MoveReply) {
        match &mut self.phase {
            Phase::On(up) => up.move_queue(engine, cqid, to, reply),
            _ => reply.end(Err(MoveError::NotEnabled)),
        }
    }

    /// One turn. Returns whether there was anything to do.
    pub(crate) fn turn(&mut self, engine: &mut Engine, changed: bool) -> bool {
        let mut busy = changed;
        busy |= self.follow_registers(engine, changed);
        busy |= self.follow_shutdown(engine, changed);
        if let Phase::On(up) = &mut self.phase
            && engine.shared.host.bus_master()
        {
            busy |= up.turn(engine, &mut self.security);
            self.scan = up.scan_doorbell(engine, self.scan);
        }
        busy
    }

    /// Whether there is something that the reactor must not sleep over.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_))
            || matches!(self.shutdown, Shutdown::Flushing(_))
            || matches!(&self.phase, Phase::On(up) if up.is_waiting())
    }

    fn follow_registers(&mut self, engine: &mut Engine, changed: bool) -> bool {
        match &mut self.phase {
            Phase::Off if changed => {
                self.finish_resets(engine);
                let wanted = engine.shared.registers().wanted();
                match wanted {
                    Some(wanted) => self.enable(engine, wanted),
                    // CFS is cleared by CC.EN = 0.
                    None => engine.shared.registers().set_stopped_if_disabled(),
                }
                true
            }
            Phase::On(up) if changed => {
                if engine.shared.registers().resets() != up.enabled.resets || !self.resets.is_empty() {
                    self.begin_stop(engine);
                }
                true
            }
            Phase::Stopping(latch) if latch.is_released() => {
                self.phase = Phase::Off;
                engine.shared.registers().set_stopped();
                // A shutdown of the time before is of no interest any more; one asked for since is.
                self.shutdown = Shutdown::None;
                self.look_again = true;
                self.finish_resets(engine);
                tracing::debug!(controller = engine.shared.cntlid, "controller is down");
                // The host may have enabled it again meanwhile.
                self.follow_registers(engine, true)
            }
            _ => false,
        }
    }

    /// The controller is down.
    fn finish_resets(&mut self, engine: &Engine) {
        engine.shared.clear_doorbells(std::mem::take(&mut self.detached));
        self.resets.clear();
    }

    fn enable(&mut self, engine: &mut Engine, wanted: Enabled) {
        engine.shared.write_through.store(false, Ordering::Relaxed);
        engine.shared.set_coalescing(CoalescingTable::default());
        // What was mapped before CC was written must be there.
        let _ = engine.refresh_memory();
        match Up::new(engine, wanted) {
            Ok(up) => {
                engine.shared.send_all(|| Message::Page(up.page()));
                engine.shared.subsystem.gate.enable(&engine.shared, up.enabled.resets);
                self.phase = Phase::On(Box::new(up));
                engine.shared.set_running(true);
                engine.shared.registers().set_ready();
                tracing::debug!(controller = engine.shared.cntlid, "controller is ready");
            }
            // Firmware and the kernel each find out: the remedy is told once.
            Err(Refusal::Queue(queue, fault @ DmaFault::NotShared { .. })) => {
                engine.shared.tell_not_shared();
                tracing::debug!(controller = engine.shared.cntlid, queue, %fault, "the host cannot enable the controller");
                engine.shared.registers().set_fatal();
            }
            Err(reason) => {
                if let Some(suppressed) = LIMIT.check() {
                    let controller = engine.shared.cntlid;
                    tracing::warn!(suppressed, controller, %reason, "the host cannot enable the controller");
                }
                engine.shared.registers().set_fatal();
            }
        }
    }

    fn begin_stop(&mut self, engine: &mut Engine) {
        engine.shared.set_running(false);
        self.security.forget();
        let (token, latch) = latch();
        let deadline = Instant::now() + STOP_GRACE;
        engine.shared.send_all(|| Message::Stop { deadline, done: token.clone() });
        if let Phase::On(up) = std::mem::replace(&mut self.phase, Phase::Stopping(latch)) {
            up.release_interrupt(engine);
        }
        engine.shared.places().clear();
    }

    /// CC.SHN: makes all namespaces durable, then says so.
    fn follow_shutdown(&mut self, engine: &mut Engine, changed: bool) -> bool {
        let look = changed || std::mem::take(&mut self.look_again);
        let idle = matches!(self.shutdown, Shutdown::None) && !matches!(self.phase, Phase::Stopping(_));
        if look && idle && engine.shared.registers().shutdown_wanted() {
            engine.shared.registers().begin_shutdown();
            self.shutdown = Shutdown::Flushing(flush(engine));
        }
        let Shutdown::Flushing(flush) = &mut self.shutdown else { return false };
        let Poll::Ready(result) = poll_flush(flush) else { return false };
        let is_durable = result.is_ok();
        if let Err(error) = result
            && let Some(suppressed) = LIMIT.check()
        {
            tracing::error!(suppressed, controller = engine.shared.cntlid, %error, "flush at shutdown failed");
        }
        self.shutdown = Shutdown::None;
        self.look_again = true;
        engine.shared.registers().finish_shutdown(is_durable);
        true
    }
}

/// Why the controller cannot be enabled.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Registers(&'static str),
    #[error("{0}: {1}")]
    Queue(&'static str, DmaFault),
}

impl Up {
    fn new(engine: &Engine, enabled: Enabled) -> Result<Self, Refusal> {
        Registers::check(&enabled).map_err(Refusal::Registers)?;
        let doorbells = engine.shared.doorbells();
        let asqs = u32::from(enabled.aqa.asqs_z()) + 1;
        let acqs = u32::from(enabled.aqa.acqs_z()) + 1;
        let mut sq = SubmissionQueue::new(0, enabled.asq, asqs, 0, doorbells.doorbell(0, false));
        let mut cq = CompletionQueue::new(0, enabled.acq, acqs, Some(0), doorbells.doorbell(0, true));
        let table = engine.memory.table();
        sq.map(table).map_err(|fault| Refusal::Queue("admin submission queue", fault))?;
        cq.map(table).map_err(|fault| Refusal::Queue("admin completion queue", fault))?;
        let admin = Admin::new(engine.shared.clone(), 4096 << enabled.cc.mps());
        Ok(Self {
            enabled,
            doorbells,
            sq,
            cq,
            admin,
            waiting: Vec::new(),
            flushing: Vec::new(),
            moving: Vec::new(),
            delayed: Vec::new(),
            unsent: VecDeque::new(),
        })
    }

    fn page(&self) -> u64 {
        4096 << self.enabled.cc.mps()
    }

    fn turn(&mut self, engine: &mut Engine, security: &mut Slots) -> bool {
        let mut busy = false;
        if self.is_waiting() {
            busy |= self.finish_waiting(engine) | self.finish_flushing(engine) | self.finish_moving(engine);
        }
        busy |= self.fetch(engine);
        busy |= security.turn(engine, self);
        self.post_events(engine);
        self.cq.flush(engine.memory.table());
        if engine.shared.host.interrupts.msix_enabled() {
            if self.cq.take_posted() {
                engine.vectors.add(0);
            }
        } else if engine.shared.config.intx {
            if self.cq.asserts_intx && self.cq.poll_head().is_err() {
                self.invalid_doorbell(engine, DoorbellError::Value { qid: 0 });
            }
            let asserts = !self.cq.is_empty();
            if asserts != self.cq.asserts_intx {
                self.cq.asserts_intx = asserts;
                engine.shared.assert_intx(asserts);
            }
        }
        busy
    }

    /// Whether it waits for something that wakes nobody.
    fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.flushing.is_empty() || !self.moving.is_empty()
    }

    fn release_interrupt(&self, engine: &Engine) {
        if self.cq.asserts_intx {
            engine.shared.assert_intx(false);
        }
    }

    fn fetch(&mut self, engine: &mut Engine) -> bool {
        if !self.sq.ring.is_mapped() || !self.cq.can_post() {
            return false;
        }
        let waiting = match self.sq.poll_tail() {
            Ok(0) => return false,
            Ok(waiting) => waiting.min(BATCH),
            Err(InvalidDoorbell) => {
                self.invalid_doorbell(engine, DoorbellError::Value { qid: 0 });
                return true;
            }
        };
        if engine.memory.is_stale() {
            return true; // next turn, with the table of now
        }
        let mut busy = false;
        let mut command = [Command::default()];
        for _ in 0..waiting {
            // Anew for each: events take places, too.
            match self.cq.room(1) {
                Ok(0) => break,
                Ok(_) => {}
                Err(InvalidDoorbell) => {
                    self.invalid_doorbell(engine, DoorbellError::Value { qid: 0 });
                    return true;
                }
            }
            if self.sq.copy(engine.memory.table(), &mut command).is_err() {
                self.sq.ring.unmap();
                break;
            }
            self.sq.take();
            let [command] = command;
            if command == Command::default() {
                engine.shared.tell_private_copy();
            }
            self.cq.reserve();
            self.execute(engine, &command);
            busy = true;
        }
        busy
    }

    fn execute(&mut self, engine: &mut Engine, command: &Command) {
        // A queue on its way would be in neither worker's hands when its doorbells move.
        if command.admin_opcode() == AdminOpcode::DOORBELL_BUFFER_CONFIG && !self.moving.is_empty() {
            return self.delayed.push(*command);
        }
        let cid = command.cid();
        match self.admin.execute(engine.memory.table(), &mut Hint::default(), command) {
            // It may wait for ever: its slot is taken when an event comes.
            Answer::Held => self.cq.release(),
            Answer::Done(result) => {
                // An event request that this has aborted ends first.
                self.post_events(engine);
                self.answer(engine, cid, Status::SUCCESS, result);
            }
            Answer::Security => self.unsent.push_back(*command),
            Answer::Flush => self.flushing.push((cid, flush(engine))),
            Answer::Failed(status) => self.answer(engine, cid, status, 0),
            Answer::Ask(Ask { to, message, change, found }) => {
                let (token, latch) = latch();
                match to {
                    To::One(worker) => engine.shared.send(worker, message(token)),
                    To::All => engine.shared.send_all(|| message(token.clone())),
                }
                self.waiting.push(Waiting { cid, latch, change, found });
            }
        }
    }

    fn finish_waiting(&mut self, engine: &Engine) -> bool {
        let mut busy = false;
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.latch.is_released()) {
            let Waiting { cid, change, found, .. } = self.waiting.swap_remove(at);
            self.admin.queues.finished(change);
            match change {
                Change::None => {}
                Change::SqDeleted(qid) => self.doorbells.store(qid, false, 0),
                Change::CqDeleted(qid) => self.doorbells.store(qid, true, 0),
            }
            // Abort: dword 0 bit 0 says that the command was not aborted (Base 5.1.1).
            if found.is_some() {
                self.admin.aborted();
            }
            let missed = found.is_some_and(|found| !found.load(Ordering::Acquire));
            self.answer(engine, cid, Status::SUCCESS, u32::from(missed));
            busy = true;
        }
        busy
    }

    fn finish_flushing(&mut self, engine: &Engine) -> bool {
        let mut busy = false;
        for (cid, mut flush) in std::mem::take(&mut self.flushing) {
            match poll_flush(&mut flush) {
                Poll::Pending => self.flushing.push((cid, flush)),
                Poll::Ready(result) => {
                    let status =
                        result.map_or_else(|error| from_block(error.kind(), true), |()| Status::SUCCESS);
                    self.answer(engine, cid, status, 0);
                    busy = true;
                }
            }
        }
        busy
    }

    fn move_queue(&mut self, engine: &Engine, cqid: u16, to: usize, reply: MoveReply) {
        // Among what workers were asked for may be Doorbell Buffer Config.
        if !self.waiting.is_empty() {
            return reply.end(Err(MoveError::Busy));
        }
        match self.admin.queues.begin_move(cqid, to) {
            Ok(from) => {
                let (done, latch) = latch();
                let moved = Arc::new(AtomicBool::new(false));
                engine.shared.send(from, Message::Detach { cqid, to, moved: moved.clone(), done });
                self.moving.push(Moving { cqid, to, moved, latch, reply });
            }
            Err(error) => reply.end(Err(error)),
        }
    }

    fn finish_moving(&mut self, engine: &mut Engine) -> bool {
        let mut busy = false;
        while let Some(at) = self.moving.iter().position(|moving| moving.latch.is_released()) {
            let Moving { cqid, to, moved, reply, .. } = self.moving.swap_remove(at);
            let is_there = moved.load(Ordering::Acquire);
            self.admin.queues.end_move(cqid, is_there.then_some(to));
            tracing::debug!(controller = engine.shared.cntlid, cqid, to, is_there, "queues moved");
            // It was deleted on the way.
            reply.end(if is_there { Ok(()) } else { Err(MoveError::NoSuchQueue) });
            busy = true;
        }
        if self.moving.is_empty() {
            for command in std::mem::take(&mut self.delayed) {
                self.execute(engine, &command);
            }
        }
        busy
    }

    fn answer(&mut self, engine: &Engine, cid: u16, status: Status, result: u32) {
        if !status.is_success() {
            let failure = Failure { sqid: 0, cid, status, lba: 0, nsid: 0 };
            engine.shared.errors().push(&failure);
        }
        self.cq.post_reserved(completion(0, self.sq.head(), cid, status, result));
    }

    fn post_events(&mut self, engine: &Engine) {
        while self.admin.events.has_next() && self.cq.can_post() {
            match self.cq.room(1) {
                Ok(0) => return,
                Ok(_) => {}
                Err(InvalidDoorbell) => {
                    return self.invalid_doorbell(engine, DoorbellError::Value { qid: 0 });
                }
            }
            let Some((cid, status, result)) = self.admin.events.next() else { return };
            self.cq.reserve();
            self.cq.post_reserved(completion(0, self.sq.head(), cid, status, result));
        }
    }

    fn invalid_doorbell(&mut self, engine: &Engine, error: DoorbellError) {
        use nvme_spec::event::AsyncEvent;
        let (event, sqid) = match error {
            DoorbellError::Register => (AsyncEvent::WRITE_TO_INVALID_DOORBELL_REGISTER, 0xFFFF),
            DoorbellError::Value { qid } => (AsyncEvent::INVALID_DOORBELL_WRITE_VALUE, qid),
        };
        let failure =
            Failure { sqid, cid: 0xFFFF, status: Status::INVALID_FIELD_IN_COMMAND, lba: 0, nsid: 0 };
        engine.shared.errors().push(&failure);
        self.admin.events.raise(event);
    }

    /// Looks at one doorbell that belongs to no queue: a store there is an error (Base 5.2.1). One of them in a
    /// turn finds it soon enough at no cost.
    fn scan_doorbell(&mut self, engine: &Engine, at: u16) -> u16 {
        let count = 2 * (engine.shared.config.io_queues + 1);
        let (qid, is_cq) = (at / 2, at % 2 == 1);
        let is_unused = qid != 0 && !self.admin.queues.exists(qid, is_cq);
        if is_unused && self.doorbells.load(qid, is_cq) != 0 {
            self.doorbells.store(qid, is_cq, 0);
            self.invalid_doorbell(engine, DoorbellError::Register);
        }
        (at + 1) % count
    }
}
