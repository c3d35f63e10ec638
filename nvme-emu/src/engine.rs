//! The I/O path of one worker: its queues, its namespaces and what is in flight.
//!
//! How a turn goes is [`turn`]'s; what becomes of one command [`start`]'s; what waits for commands to end [`drain`]'s.

mod clock;
mod drain;
mod fused;
mod interrupts;
mod queues;
mod start;
mod throttle;
mod turn;

use std::rc::Rc;
use std::sync::Arc;

use block::{Reactor, Segment};
use nvme_spec::command::Command;
use vfio_user_server::{Hint, RegionMask};
use zerocopy::FromZeros;

use self::clock::TurnClock;
use self::drain::{Retirement, Stopping};
use self::queues::Departure;
use self::start::Counts;
use self::throttle::Throttle;
use self::turn::{BATCH, Share};
use crate::compare::Room;
use crate::fixed::FixedMemory;
use crate::latch::Token;
use crate::memory::{Memory, SlotGuard};
use crate::nvm::OpenNamespace;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::shared::Shared;
use crate::slots::Slots;
use crate::subsystem::MAX_NAMESPACES;

pub(crate) use self::interrupts::{CoalescingTable, Vectors};
pub(crate) use self::queues::Arrival;

/// The queues of one controller on one reactor, and what is in flight on them.
pub(crate) struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) reactor: Reactor,
    pub(crate) memory: Memory,
    fixed: FixedMemory,
    page: u64,
    /// By queue identifier.
    sqs: Vec<Option<SubmissionQueue>>,
    cqs: Vec<Option<CompletionQueue>>,
    /// Submission queues that are looked at in every turn, in the order they are served.
    hot: Vec<u16>,
    /// The others, which had nothing for a while: looked at in turns.
    cold: Vec<u16>,
    /// Where in `hot` and `cold` the next turn begins.
    hot_at: usize,
    cold_at: usize,
    /// Completion queues that were posted to in this turn, or whose interrupt is held back.
    touched: Vec<u16>,
    /// How many submission queues are being deleted.
    deleting: usize,
    /// Queues on their way to another worker.
    departures: Vec<Departure>,
    /// Where completion queues, and submission queues, went: messages about them are sent after them.
    moved: Vec<Option<usize>>,
    moved_sqs: Vec<Option<usize>>,
    /// Counts the stops: what was sent before one is of no interest after it.
    stops: u64,
    /// By namespace identifier less one. Empty until the first command or change.
    namespaces: Vec<Option<OpenNamespace>>,
    namespaces_open: bool,
    /// Some of them want hints of what comes.
    prefetches: bool,
    /// How many commands the next turn may give to the kernel even if that has none.
    pending: usize,
    slots: Slots,
    woken: Vec<u32>,
    retirements: Vec<Retirement>,
    /// Regions that left the table and may still be held.
    gone: RegionMask,
    stopping: Option<Stopping>,
    pub(crate) vectors: Vectors,
    coalescing: Arc<CoalescingTable>,
    hint: Hint,
    bus_master: bool,
    /// Interrupts were messages at the end of the last turn.
    messages: bool,
    /// Held by those who wait for commands that have ended in this turn.
    released: Vec<Token>,
    share: Share,
    /// Turns without work, in a row.
    idle_turns: u32,
    throttle: Throttle,
    /// Segment storage and guard of the next command.
    storage: Vec<Segment>,
    guard: SlotGuard,
    counts: Counts,
    /// For the buffers of Compares.
    room: Rc<Room>,
    clock: TurnClock,
    /// Commands that were copied out of a queue and are being started.
    batch: Box<[Command; BATCH as usize]>,
    /// Guest addresses of the Shadow Doorbell and EventIdx buffers.
    shadow: Option<(u64, u64)>,
}

impl Engine {
    pub(crate) fn new(shared: Arc<Shared>, index: usize, reactor: Reactor) -> Self {
        let memory = Memory::new(shared.host.clone());
        let mut fixed = FixedMemory::default();
        fixed.follow(memory.table(), &reactor);
        let queues = usize::from(shared.config.io_queues) + 1;
        Self {
            slots: Slots::new(reactor.unparker(), memory.snapshot().clone()),
            memory,
            fixed,
            index,
            page: 4096,
            sqs: (0..queues).map(|_| None).collect(),
            cqs: (0..queues).map(|_| None).collect(),
            hot: Vec::with_capacity(queues),
            cold: Vec::with_capacity(queues),
            hot_at: 0,
            cold_at: 0,
            touched: Vec::with_capacity(queues),
            deleting: 0,
            departures: Vec::new(),
            moved: vec![None; queues],
            moved_sqs: vec![None; queues],
            stops: 0,
            namespaces: Vec::new(),
            namespaces_open: false,
            prefetches: false,
            pending: 1,
            woken: Vec::new(),
            retirements: Vec::new(),
            gone: 0,
            stopping: None,
            vectors: Vectors::default(),
            coalescing: shared.coalescing(),
            hint: Hint::default(),
            bus_master: true,
            messages: false,
            released: Vec::new(),
            share: Share::default(),
            idle_turns: 0,
            throttle: Throttle::default(),
            storage: Vec::new(),
            guard: SlotGuard::none(),
            counts: Counts::default(),
            room: Rc::default(),
            clock: TurnClock::default(),
            batch: Box::new([Command::new_zeroed(); BATCH as usize]),
            shadow: None,
            shared,
            reactor,
        }
    }

    /// Takes the current DMA table, if it changed: everything that was resolved is resolved anew.
    pub(crate) fn refresh_memory(&mut self) -> Option<RegionMask> {
        let removed = self.memory.refresh()?;
        self.slots.set_current(self.memory.snapshot());
        self.guard = SlotGuard::none();
        let table = self.memory.table();
        self.fixed.follow(table, &self.reactor);
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
        // What was parked may have been posted.
        self.touch_all();
        self.gone |= removed;
        Some(removed)
    }

    pub(crate) fn set_page(&mut self, page: u64) {
        self.page = page;
    }

    /// Features 08h and 09h changed.
    pub(crate) fn set_coalescing(&mut self, coalescing: Arc<CoalescingTable>) {
        self.coalescing = coalescing;
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
        let present = self.shared.subsystem.namespace(nsid);
        // A channel that is there goes on: only the device's geometry is another.
        if let (Some(open), Some(present)) = (&mut self.namespaces[at], &present)
            && Arc::ptr_eq(&open.namespace, present)
        {
            return open.refresh();
        }
        self.namespaces[at] = present.and_then(|namespace| {
            OpenNamespace::open(namespace, &self.reactor)
                .inspect_err(|error| tracing::error!(nsid, %error, "cannot open a channel to the namespace"))
                .ok()
        });
        self.prefetches = self.namespaces.iter().flatten().any(|namespace| namespace.prefetches);
        self.limits_changed();
    }

    /// A namespace that is there.
    fn namespace(&self, nsid: u32) -> Option<&OpenNamespace> {
        (nsid as usize).checked_sub(1).and_then(|at| self.namespaces.get(at)).and_then(Option::as_ref)
    }

    /// A tag for an `Io` that belongs to no slot.
    pub(crate) fn own_tag(&self) -> u64 {
        self.slots.own_tag()
    }

    /// Channels to all namespaces, for a flush of all.
    pub(crate) fn channels(&mut self) -> Vec<Rc<dyn block::Channel>> {
        self.open_namespaces();
        self.namespaces.iter().flatten().map(|namespace| namespace.channel.clone()).collect()
    }

    /// Commands in flight, cancelled ones included.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Whether there is something that only turns bring to its end, and that wakes nobody: interrupts that are held
    /// back, queues that leave or are deleted, commands that were cancelled, and what waits for them.
    pub(crate) fn needs_turns(&self) -> bool {
        !self.touched.is_empty()
            || !self.departures.is_empty()
            || self.deleting > 0
            || !self.retirements.is_empty()
            || self.stopping.is_some()
            || self.slots.is_draining()
            || !self.throttle.is_empty()
    }
}
