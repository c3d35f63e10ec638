//! [`Worker`]: the part of a controller that one reactor polls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::Reactor;

use crate::engine::Engine;
use crate::home::Home;
use crate::shared::{Message, Port, Shared};

/// The index of the worker that runs the admin queue.
pub(crate) const HOME: usize = 0;

/// While its queues are busy, a worker looks at the admin queue in each so manieth turn.
const HOME_TURNS: u32 = 8;

/// How long before its deadline retired memory is taken away from commands that hold it.
const RETIRE_MARGIN: Duration = Duration::from_millis(250);

/// A worker on its way to its reactor's thread.
pub struct WorkerSeed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
}

/// The queues of one controller on one reactor. Not `Send`.
pub struct Worker {
    engine: Engine,
    home: Option<Home>,
    turns: u32,
    /// The last turn found something to do.
    busy: bool,
}

impl WorkerSeed {
    /// Becomes a worker of the calling thread's reactor.
    pub fn start(self, reactor: &Reactor) -> Worker {
        let Self { shared, index } = self;
        let _ = shared.ports[index].unparker.set(reactor.unparker());
        let home = (index == HOME).then(Home::new);
        Worker { engine: Engine::new(shared, index, reactor.clone()), home, turns: 0, busy: false }
    }
}

/// A worker that goes releases whoever waits for it.
impl Drop for Worker {
    fn drop(&mut self) {
        self.port().close();
    }
}

impl Worker {
    /// One turn: takes control messages, fetches and starts commands, polls what is pending, posts
    /// completions. Never blocks. Returns whether there was anything to do.
    pub fn poll(&mut self) -> bool {
        let (mut busy, changed) = self.take_mail();
        self.refresh_memory();
        // Before the queues are looked at: if the pin is lowered while they are, the next turn looks again.
        let lowered = self.engine.shared.take_intx_lowered();
        self.turns = self.turns.wrapping_add(1);
        if let Some(home) = &mut self.home
            && (changed || busy || !self.busy || home.is_active() || self.turns.is_multiple_of(HOME_TURNS))
        {
            busy |= home.turn(&mut self.engine, changed);
        }
        let shared = &self.engine.shared;
        let (running, bus_master) = (shared.is_running(), shared.host.bus_master());
        busy |= self.engine.turn(running, bus_master);
        if lowered {
            self.engine.shared.update_intx();
        }
        self.busy = busy;
        busy
    }

    /// Commands in flight, cancelled ones included.
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// Places that commands take in the lists of those that wait for their limits.
    pub fn places_in_lanes(&self) -> usize {
        self.engine.places_in_lanes()
    }

    /// Whether something goes on that only turns bring to its end, and that wakes nobody: the reactor may not sleep long.
    pub fn needs_turns(&self) -> bool {
        self.engine.needs_turns() || self.home.as_ref().is_some_and(Home::is_active)
    }

    /// Whether the guest may store into a doorbell at any moment in a way that wakes nobody. While this is false,
    /// everything that needs a turn unparks the reactor, once [armed](Self::arm).
    pub fn is_watched(&self) -> bool {
        self.engine.shared.is_running() && !self.engine.shared.config.trapped_doorbells
    }

    /// To be called before the reactor sleeps until it is unparked: asks the guest to ring its doorbells from now on.
    /// Returns true if it has something to do first.
    pub fn arm(&mut self) -> bool {
        self.engine.shared.is_running() && self.engine.arm()
    }

    /// Commands that the last turn started.
    pub fn started(&self) -> u32 {
        self.engine.started()
    }

    /// Commands that were in flight before the last turn, also those that it completed: what the guest had under way when it
    /// rang for what the turn started.
    pub fn before(&self) -> usize {
        self.engine.before()
    }

    /// How much the last turn did, in commands and pages of data.
    pub fn work(&self) -> u32 {
        self.engine.work()
    }

    fn port(&self) -> &Port {
        &self.engine.shared.ports[self.engine.index]
    }

    /// Takes the current DMA table in time: queues were resolved in the old one.
    fn refresh_memory(&mut self) {
        if self.engine.refresh_memory().is_some()
            && let Some(home) = &mut self.home
        {
            home.refresh_memory(&self.engine);
        }
    }

    /// Returns whether there was mail, and whether the home has to look at the registers.
    fn take_mail(&mut self) -> (bool, bool) {
        let port = self.port();
        let (mut busy, mut changed) = (false, port.take_configuration());
        // What comes meanwhile waits for the next turn: a client that floods has the turn only once.
        let waiting = port.waiting();
        if waiting > 0 {
            // Messages may speak of memory that was mapped before they were sent.
            self.refresh_memory();
        }
        for _ in 0..waiting {
            let Some(message) = self.port().take() else { break };
            busy = true;
            let engine = &mut self.engine;
            if let Some(worker) = engine.forward_to(&message) {
                engine.shared.send(worker, message);
                continue;
            }
            match message {
                Message::Reset { detach, done } => {
                    changed = true;
                    if let Some(home) = &mut self.home {
                        home.reset(detach, done);
                    }
                }
                Message::Retire { deadline, done } => {
                    let removed = engine.refresh_memory();
                    if removed.is_some()
                        && let Some(home) = &mut self.home
                    {
                        home.refresh_memory(engine);
                    }
                    let deadline = deadline.checked_sub(RETIRE_MARGIN).unwrap_or_else(Instant::now);
                    engine.retire(deadline, done);
                }
                Message::NamespaceChanged(nsid) => {
                    engine.namespace_changed(nsid);
                    if let Some(home) = &mut self.home {
                        home.namespace_changed(nsid);
                    }
                }
                Message::LimitsChanged => engine.limits_changed(),
                Message::InvalidDoorbell(error) => {
                    if let Some(home) = &mut self.home {
                        home.invalid_doorbell(engine, error);
                    }
                }
                Message::CreateCq { qid, iova, entries, vector, done } => {
                    engine.create_cq(qid, iova, entries, vector);
                    drop(done);
                }
                Message::CreateSq { qid, iova, entries, cqid, done } => {
                    engine.create_sq(qid, iova, entries, cqid);
                    drop(done);
                }
                Message::DeleteSq { qid, done } => engine.delete_sq(qid, done),
                Message::DeleteCq { qid, done } => {
                    engine.delete_cq(qid);
                    drop(done);
                }
                Message::Abort { sqid, cid, found, done } => engine.abort(sqid, cid, &found, done),
                Message::ShadowDoorbells { doorbells, events, done } => {
                    engine.use_shadow_doorbells(doorbells, events);
                    drop(done);
                }
                Message::Detach { cqid, to, moved, done } => engine.detach(cqid, to, moved, done),
                Message::Attach(arrival) => engine.attach(*arrival),
                Message::Move { cqid, to, reply } => {
                    if let Some(home) = &mut self.home {
                        home.move_queue(engine, cqid, to, reply);
                    }
                }
                Message::Secured { slot, outcome } => {
                    if let Some(home) = &mut self.home {
                        home.secured(slot, outcome);
                    }
                }
                Message::Coalescing(table) => engine.set_coalescing(table),
                Message::Stop { deadline, done } => engine.stop(deadline, done),
                Message::Page(page) => engine.set_page(page),
            }
        }
        (busy, changed)
    }
}
