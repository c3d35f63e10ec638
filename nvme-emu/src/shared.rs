//! What a controller's control side and its workers share: registers, doorbells, mailboxes, counters.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use block::reactor::Unparker;
use nvme_spec::status::Status;
use vfio_user_server::{DmaFault, Host};

use crate::doorbells::Doorbells;
use crate::engine::{Arrival, CoalescingTable};
use crate::error_log::ErrorLog;
use crate::latch::Token;
use crate::limits::Limiter;
use crate::placement::{MoveReply, QueuePlace};
use crate::registers::Registers;
use crate::security::Outcome;
use crate::transfer::TransferError;
use crate::{ControllerConfig, Subsystem};

/// The shared state of one controller.
pub(crate) struct Shared {
    pub(crate) host: Arc<Host>,
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) config: ControllerConfig,
    pub(crate) cntlid: u16,
    doorbells: Mutex<Arc<Doorbells>>,
    pub(crate) ports: Vec<Port>,
    pub(crate) errors: Mutex<ErrorLog>,
    pub(crate) started: Instant,
    registers: Mutex<Registers>,
    /// Set while queues may be polled.
    running: AtomicBool,
    /// Feature 06h with WCE = 0: every write is durable before it completes.
    pub(crate) write_through: AtomicBool,
    /// Features 08h and 09h, for workers that start.
    coalescing: Mutex<Arc<CoalescingTable>>,
    /// The I/O queues there are.
    places: Mutex<Vec<QueuePlace>>,
    /// Whether this client was told that it does not share its memory.
    told_not_shared: AtomicBool,
    /// Completion queues that hold the INTx pin up.
    intx: AtomicUsize,
    /// See [`Self::lower_intx`].
    intx_lowered: AtomicBool,
    /// For the sum over its namespaces and queues.
    pub(crate) limiter: Arc<Limiter>,
}

/// A worker's mailbox and counters.
#[derive(Default)]
pub(crate) struct Port {
    mail: Mutex<Mail>,
    has_mail: AtomicBool,
    /// Home: CC changed. Apart from the mail, since a guest can write CC without end.
    configuration: AtomicBool,
    pub(crate) unparker: OnceLock<Unparker>,
    pub(crate) counters: Counters,
}

#[derive(Default)]
struct Mail {
    messages: VecDeque<Message>,
    /// The worker is gone: messages, and the tokens in them, are dropped.
    closed: bool,
}

/// What one worker counts. Written by it alone.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) media_errors: AtomicU64,
}

/// A message to a worker.
pub(crate) enum Message {
    /// Home: the registers were set to power-on; drop the token when the controller is down. `detach`: the
    /// client is gone.
    Reset { detach: bool, done: Token },
    /// Regions left the DMA table.
    Retire { deadline: Instant, done: Token },
    /// A namespace came, went or changed.
    NamespaceChanged(u32),
    /// Limits of the controller, or of a namespace, changed.
    LimitsChanged,
    /// A doorbell store by message that no doorbell exists for, or with a value out of range.
    InvalidDoorbell(DoorbellError),
    /// From home: make a completion queue.
    CreateCq { qid: u16, iova: u64, entries: u32, vector: Option<u16>, done: Token },
    /// From home: make a submission queue.
    CreateSq { qid: u16, iova: u64, entries: u32, cqid: u16, done: Token },
    /// From home: drain and remove a submission queue.
    DeleteSq { qid: u16, done: Token },
    /// From home: remove a completion queue that has no submission queue.
    DeleteCq { qid: u16, done: Token },
    /// From home: hand a completion queue and its submission queues to another worker; set the flag when they are there.
    Detach { cqid: u16, to: usize, moved: Arc<AtomicBool>, done: Token },
    /// From another worker: queues that it handed over.
    Attach(Box<Arrival>),
    /// To home, from the control side: move queues.
    Move { cqid: u16, to: usize, reply: MoveReply },
    /// To home, from the subsystem's security: how the command in a slot ended.
    Secured { slot: usize, outcome: Outcome },
    /// From home: features 08h and 09h changed.
    Coalescing(Arc<CoalescingTable>),
    /// From home: cancel a command; set the flag if it was found.
    Abort { sqid: u16, cid: u16, found: Arc<AtomicBool>, done: Token },
    /// From home: read doorbells from shadow buffers at these guest addresses.
    ShadowDoorbells { doorbells: u64, events: u64, done: Token },
    /// From home: remove all I/O queues; drop the token when nothing is in flight.
    Stop { deadline: Instant, done: Token },
    /// From home: the memory page size that commands are resolved with.
    Page(u64),
}

/// A doorbell that was written wrongly (Base 5.2.1, error events).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DoorbellError {
    /// There is no such queue.
    Register,
    /// The value is not valid for queue `qid`.
    Value {
        /// The queue.
        qid: u16,
    },
}

impl Shared {
    pub(crate) fn new(
        host: Arc<Host>,
        subsystem: Arc<Subsystem>,
        config: ControllerConfig,
        cntlid: u16,
        doorbells: Arc<Doorbells>,
    ) -> Self {
        Self {
            host,
            subsystem,
            cntlid,
            doorbells: Mutex::new(doorbells),
            ports: (0..config.workers).map(|_| Port::default()).collect(),
            errors: Mutex::default(),
            started: Instant::now(),
            registers: Mutex::new(Registers::new(config.queue_entries)),
            running: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
            coalescing: Mutex::default(),
            places: Mutex::default(),
            told_not_shared: AtomicBool::new(false),
            intx: AtomicUsize::new(0),
            intx_lowered: AtomicBool::new(false),
            limiter: Arc::new(Limiter::new(config.limits.clone())),
            config,
        }
    }

    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn errors(&self) -> MutexGuard<'_, ErrorLog> {
        self.errors.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The doorbells that the client of now can map.
    pub(crate) fn doorbells(&self) -> Arc<Doorbells> {
        self.doorbells.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Forgets what was stored into doorbells. `fresh`: gives the next client an area of its own, for the last
    /// one may keep its mapping.
    pub(crate) fn clear_doorbells(&self, fresh: bool) {
        let mut doorbells = self.doorbells.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if fresh {
            match Doorbells::new(self.config.io_queues) {
                Ok(area) => *doorbells = area,
                Err(error) => tracing::warn!(controller = self.cntlid, %error, "no new doorbell area"),
            }
        }
        doorbells.clear();
    }

    /// Whether queues may be polled.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::Release);
    }

    /// Features 08h and 09h as they are.
    pub(crate) fn coalescing(&self) -> Arc<CoalescingTable> {
        self.coalescing.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Features 08h and 09h changed: tells the workers.
    pub(crate) fn set_coalescing(&self, table: CoalescingTable) {
        let table = Arc::new(table);
        *self.coalescing.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = table.clone();
        self.send_all(|| Message::Coalescing(table.clone()));
    }

    /// The I/O queues there are.
    pub(crate) fn places(&self) -> MutexGuard<'_, Vec<QueuePlace>> {
        self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The guest named memory that the VMM did not share: one line for each client.
    pub(crate) fn tell_not_shared(&self) {
        if !self.told_not_shared.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                controller = self.cntlid,
                "guest memory was mapped without a descriptor: start the VMM with shared memory \
                 (QEMU: -object memory-backend-memfd,share=on; cloud-hypervisor: --memory shared=on)"
            );
        }
    }

    /// The admin queue holds no command where the guest says there is one.
    pub(crate) fn tell_private_copy(&self) {
        if !self.told_not_shared.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                controller = self.cntlid,
                "the guest's admin queue reads as zeroes: the guest seems to write to a private copy of its memory; \
                 start the VMM with shared memory (QEMU: -object memory-backend-memfd,share=on; \
                 cloud-hypervisor: --memory shared=on)"
            );
        }
    }

    /// The status of a transfer that cannot be made.
    pub(crate) fn status_of(&self, error: TransferError) -> Status {
        if let Some(DmaFault::NotShared { .. }) = error.fault {
            self.tell_not_shared();
        }
        error.status
    }

    /// The next client is told again.
    pub(crate) fn forget_client(&self) {
        self.told_not_shared.store(false, Ordering::Relaxed);
    }

    /// Puts a message into a worker's mailbox and wakes its reactor.
    pub(crate) fn send(&self, worker: usize, message: Message) {
        let Some(port) = self.ports.get(worker) else { return };
        let mut mail = port.mail();
        // The only message that a guest can send without waiting for an answer must not pile up.
        let flood = mail.messages.len() > 64 && matches!(message, Message::InvalidDoorbell(_));
        if flood || mail.closed {
            return;
        }
        mail.messages.push_back(message);
        // Under the lock, as where it is cleared: it never stays set over an empty box.
        port.has_mail.store(true, Ordering::Release);
        drop(mail);
        port.wake();
    }

    /// Tells the home worker to look at the registers.
    pub(crate) fn configuration_changed(&self) {
        if let Some(home) = self.ports.first() {
            home.configuration.store(true, Ordering::Release);
            home.wake();
        }
    }

    /// Sends to all workers.
    pub(crate) fn send_all(&self, message: impl Fn() -> Message) {
        for worker in 0..self.ports.len() {
            self.send(worker, message());
        }
    }

    /// Wakes all reactors: a doorbell was written by message.
    pub(crate) fn wake_all(&self) {
        self.ports.iter().for_each(Port::wake);
    }

    /// A completion queue starts (`true`) or stops holding the INTx pin up.
    pub(crate) fn assert_intx(&self, on: bool) {
        if on {
            self.intx.fetch_add(1, Ordering::AcqRel);
        } else {
            self.intx.fetch_sub(1, Ordering::AcqRel);
        }
        self.update_intx();
    }

    /// The guest took completions by message. The pin goes down at once, before the VMM unmasks it: a signal
    /// that the guest has nothing to find for keeps a VMM's pin up for ever. The home worker raises it again
    /// if there is more.
    pub(crate) fn lower_intx(&self) {
        if self.config.intx && !self.host.interrupts.msix_enabled() {
            let _registers = self.registers();
            self.host.interrupts.set_intx(false);
            self.intx_lowered.store(true, Ordering::Release);
        }
    }

    /// Whether the pin was lowered since the last call: if completions are left it has to go up again, by
    /// [`Self::update_intx`] once the queues were looked at.
    pub(crate) fn take_intx_lowered(&self) -> bool {
        self.intx_lowered.load(Ordering::Relaxed) && self.intx_lowered.swap(false, Ordering::AcqRel)
    }

    /// Sets the INTx pin by what the queues and INTMS say.
    pub(crate) fn update_intx(&self) {
        // Under the registers' lock, so that two workers cannot leave the pin at the older of their levels.
        let registers = self.registers();
        // What was counted before the guest took completions says nothing: the turn after that looks again.
        let lowered = self.intx_lowered.load(Ordering::Acquire);
        let level = !lowered && self.intx.load(Ordering::Acquire) > 0 && registers.interrupt_mask() & 1 == 0;
        self.host.interrupts.set_intx(level);
    }
}

impl Port {
    fn wake(&self) {
        if let Some(unparker) = self.unparker.get() {
            unparker.unpark();
        }
    }

    /// Whether CC changed since the last call.
    pub(crate) fn take_configuration(&self) -> bool {
        self.configuration.load(Ordering::Relaxed) && self.configuration.swap(false, Ordering::AcqRel)
    }

    /// How many messages there are. One load when there is none.
    pub(crate) fn waiting(&self) -> usize {
        if self.has_mail.load(Ordering::Acquire) { self.mail().messages.len() } else { 0 }
    }

    /// Drops what waits and what will come.
    pub(crate) fn close(&self) {
        let messages = {
            let mut mail = self.mail();
            mail.closed = true;
            std::mem::take(&mut mail.messages)
        };
        drop(messages); // outside of the lock: tokens wake tasks
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes the oldest message.
    pub(crate) fn take(&self) -> Option<Message> {
        let mut mail = self.mail();
        let message = mail.messages.pop_front();
        if mail.messages.is_empty() {
            self.has_mail.store(false, Ordering::Release);
        }
        message
    }
}
