//! [`ReactorThread`]: a thread of the data path. It polls the workers that were given to it, its io_uring and its
//! mailbox, and shares nothing with its siblings.
//!
//! Which queues belong to which worker is `nvme-emu`'s concern; how long to wait when nothing happens is
//! [`idle`]'s, what is likely to end that `expectation`'s, and whether guests are about to ring `answers`'.

mod answers;
mod expectation;
pub mod idle;

use std::io;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::Reactor;
use block::reactor::Unparker;
use nvme_emu::{Worker, WorkerSeed};

use crate::affinity;
use crate::config::model::Mode;
use idle::{Idle, MANY, Pending, Ring, Wait};

/// Submission entries of a reactor's io_uring.
const RING_ENTRIES: u32 = 1024;

/// Work for a reactor's thread.
type Command = Box<dyn FnOnce(&mut Core) + Send>;

/// A running reactor, as other threads see it. Dropping it stops the thread and waits for it.
pub struct ReactorThread {
    name: String,
    cpu: Option<usize>,
    mailbox: Sender<Command>,
    shared: Arc<Shared>,
    unparker: Unparker,
    thread: Option<JoinHandle<()>>,
}

/// What a reactor's thread and the others both see.
struct Shared {
    has_mail: AtomicBool,
    /// A [`Mode`] as a number.
    mode: AtomicU8,
    turns: AtomicU64,
    busy_turns: AtomicU64,
    sleeps: AtomicU64,
    slept_ns: AtomicU64,
    sleep_price_ns: AtomicU64,
}

/// What a reactor did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Turns of its loop.
    pub turns: u64,
    /// Those that found something to do.
    pub busy_turns: u64,
    /// How often it slept.
    pub sleeps: u64,
    /// How long altogether.
    pub slept: Duration,
    /// CPU time of one short sleep, as measured on this machine.
    pub sleep_price: Duration,
}

/// What a reactor's thread owns.
pub struct Core {
    reactor: Reactor,
    /// Workers that are polled in every turn.
    hot: Vec<Polled>,
    /// Those that had nothing to do for a while: polled in turns.
    cold: Vec<Polled>,
    cold_at: usize,
    /// What was done since a cold one was polled.
    credit: u32,
    /// Turns without work, in a row.
    idle_turns: u32,
    /// It has just slept; whether I/O had completed when that ended.
    woke: Option<bool>,
    load: Load,
    stopping: bool,
}

struct Polled {
    worker: Box<Worker>,
    /// Turns without work, in a row.
    quiet: u32,
}

/// Turns without work after which a worker is polled less often.
const QUIET: u32 = 1024;
/// Commands, pages of data and turns of the others after which a quiet worker is polled.
const PRICE: u32 = 4;
/// Turns without work after which all quiet workers are polled in each: there is nothing better to do, and the reactor
/// may be about to sleep.
const IDLE_TURNS: u32 = 16;
/// Sleeps that tell, at the start, what one costs.
const SAMPLES: u32 = 8;
/// Turns after which others can see what was counted.
const PUBLISH: u64 = 1024;

impl ReactorThread {
    /// Starts reactor `number`, on `cpu` if one is given, which may register so many pieces of guest memory. Returns when
    /// its ring is set up.
    pub fn start(number: usize, cpu: Option<usize>, mode: Mode, fixed_pieces: u32) -> io::Result<Self> {
        let name = format!("reactor-{number}");
        let (mailbox, commands) = channel();
        let shared = Arc::new(Shared::new(mode));
        let seen = shared.clone();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let pinned = cpu.map_or(Ok(()), affinity::pin);
            let reactor = match pinned.and_then(|()| Reactor::with_fixed_buffers(RING_ENTRIES, fixed_pieces))
            {
                Ok(reactor) => reactor,
                Err(error) => return drop(ready.send(Err(error))),
            };
            // The kernel may not stretch sleeps of 20 us by its usual 50. Without that they are longer, no more.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            let idle = Idle::new(price_of_sleep(&reactor));
            if ready.send(Ok(reactor.unparker())).is_ok() {
                guard_against_panics(|| Core::new(reactor).run(idle, &commands, &seen));
            }
        })?;
        let gone = || io::Error::other("its thread ended at once");
        let unparker = started.recv().map_err(|_| gone())??;
        Ok(Self { name, cpu, mailbox, shared, unparker, thread: Some(thread) })
    }

    /// Its thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CPU it is bound to.
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    /// How it waits for work.
    pub fn mode(&self) -> Mode {
        self.shared.mode()
    }

    /// Has it wait for work in another way from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.mode.store(number_of(mode), Ordering::Release);
        self.unparker.unpark();
    }

    /// What it did since it started; a moment old while it is busy.
    pub fn load(&self) -> Load {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Load {
            turns: get(&self.shared.turns),
            busy_turns: get(&self.shared.busy_turns),
            sleeps: get(&self.shared.sleeps),
            slept: Duration::from_nanos(get(&self.shared.slept_ns)),
            sleep_price: Duration::from_nanos(get(&self.shared.sleep_price_ns)),
        }
    }

    /// Has the reactor run `command` between two turns.
    pub fn run(&self, command: impl FnOnce(&mut Core) + Send + 'static) {
        // A thread that panicked has ended the process, so there is always a receiver until `stop`.
        let _ = self.mailbox.send(Box::new(command));
        self.shared.has_mail.store(true, Ordering::Release);
        self.unparker.unpark();
    }

    /// Gives the reactor a worker to poll.
    pub fn add_worker(&self, seed: WorkerSeed) {
        self.run(move |core| {
            let worker = Box::new(seed.start(&core.reactor));
            core.hot.push(Polled { worker, quiet: 0 });
        });
    }

    /// Has the thread come to its end, which dropping this waits for.
    pub fn stop(&self) {
        self.run(|core| core.stopping = true);
    }
}

impl Drop for ReactorThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(reactor = self.name, "a reactor's thread panicked while it ended");
        }
    }
}

const fn number_of(mode: Mode) -> u8 {
    match mode {
        Mode::Poll => 0,
        Mode::Adaptive => 1,
        Mode::Interrupt => 2,
    }
}

impl Shared {
    fn new(mode: Mode) -> Self {
        Self {
            has_mail: AtomicBool::new(false),
            mode: AtomicU8::new(number_of(mode)),
            turns: AtomicU64::new(0),
            busy_turns: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            slept_ns: AtomicU64::new(0),
            sleep_price_ns: AtomicU64::new(0),
        }
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Poll,
            1 => Mode::Adaptive,
            _ => Mode::Interrupt,
        }
    }

    fn publish(&self, load: &Load) {
        let set = |counter: &AtomicU64, value: u64| counter.store(value, Ordering::Relaxed);
        set(&self.turns, load.turns);
        set(&self.busy_turns, load.busy_turns);
        set(&self.sleeps, load.sleeps);
        set(&self.slept_ns, u64::try_from(load.slept.as_nanos()).unwrap_or(u64::MAX));
        set(&self.sleep_price_ns, u64::try_from(load.sleep_price.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// CPU time of a short sleep of a reactor that nobody knows yet. Under load there is no way to tell it from what the sleeps'
/// ends bring.
fn price_of_sleep(reactor: &Reactor) -> Duration {
    reactor.park(idle::SHORTEST);
    let before = cpu_time();
    for _ in 0..SAMPLES {
        reactor.park(idle::SHORTEST);
    }
    cpu_time().saturating_sub(before) / SAMPLES
}

impl Core {
    fn new(reactor: Reactor) -> Self {
        Self {
            reactor,
            hot: Vec::new(),
            cold: Vec::new(),
            cold_at: 0,
            credit: 0,
            idle_turns: 0,
            woke: None,
            load: Load::default(),
            stopping: false,
        }
    }

    /// The reactor, for commands that submit I/O.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    fn run(mut self, mut idle: Idle, commands: &Receiver<Command>, shared: &Shared) {
        while !self.stopping {
            let mut worked = self.poll_workers();
            let woke = self.woke.take();
            let completed = (self.reactor.turn() > 0) | (woke == Some(true));
            // What its guests have stored into doorbells. Looked for only where it matters.
            let ring = if idle.is_long() { self.ring(woke.is_some()) } else { Ring::Heard };
            worked |= completed;
            // A look into the mailbox costs a fence; most turns it is empty. (The one sender is the thread's owner,
            // who sends a last command before he goes.) Cleared first: what comes later sets it again.
            let has_mail = &shared.has_mail;
            while has_mail.load(Ordering::Relaxed) && has_mail.swap(false, Ordering::AcqRel) {
                while let Ok(command) = commands.try_recv() {
                    command(&mut self);
                    worked = true;
                }
            }
            self.load.turns += 1;
            if self.load.turns.is_multiple_of(PUBLISH) {
                shared.publish(&self.load);
            }
            if worked {
                self.load.busy_turns += 1;
                self.idle_turns = 0;
                idle.worked(completed, ring);
                continue;
            }
            // Often by this thread's own completions. A sleep would end at once.
            if self.reactor.take_unpark() {
                continue;
            }
            self.idle_turns = self.idle_turns.saturating_add(1);
            let watched = || self.workers().any(|worker| worker.is_watched() || worker.needs_turns());
            let pending = || self.pending();
            match idle.wait(shared.mode(), watched, pending, Instant::now, cpu_time) {
                Wait::Spin => std::hint::spin_loop(),
                Wait::Yield => {
                    let before = Instant::now();
                    std::thread::yield_now();
                    idle.yielded(before, Instant::now());
                }
                Wait::Sleep(time) => self.sleep(time, &mut idle, shared),
                // It has something to do; should it be nothing that comes to an end, others have the CPU too.
                Wait::UntilWoken if self.arm() => std::thread::yield_now(),
                Wait::UntilWoken => self.sleep(Duration::MAX, &mut idle, shared),
            }
        }
    }

    fn sleep(&mut self, time: Duration, idle: &mut Idle, shared: &Shared) {
        self.load.sleeps += 1;
        self.load.sleep_price = idle.price();
        // It may be long until the next chance.
        shared.publish(&self.load);
        let before = Instant::now();
        if !self.reactor.park(time) {
            self.load.sleeps -= 1;
            return idle.stayed_awake();
        }
        let now = Instant::now();
        self.load.slept += now.saturating_duration_since(before);
        idle.slept(now);
        self.woke = Some(self.reactor.reap() > 0);
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.hot.iter().chain(&self.cold).map(|polled| &*polled.worker)
    }

    /// Who rang before this turn; `slept`: while nobody looked.
    fn ring(&self, slept: bool) -> Ring {
        // Before the turn: what completed at the end of the sleep was under way when they rang.
        let before = self.workers().filter(|worker| worker.started() > 0).map(Worker::before);
        let Some(least) = before.min() else { return Ring::Heard };
        match (least, slept) {
            (MANY.., _) => Ring::Busy,
            (_, false) => Ring::Heard,
            (0, true) => Ring::Alone,
            (_, true) => Ring::Unheard,
        }
    }

    /// What is under way whose end ends a sleep.
    fn pending(&self) -> Pending {
        if self.reactor.in_flight() == 0 || self.workers().any(Worker::needs_turns) {
            return Pending::Nothing;
        }
        if self.reactor.in_flight() > self.reactor.in_other_threads() {
            return Pending::Kernel;
        }
        let (mut all, mut are_busy) = (0, true);
        for commands in self.workers().map(Worker::in_flight).filter(|commands| *commands > 0) {
            are_busy &= commands >= MANY;
            all += commands;
        }
        if are_busy { Pending::ThreadsForMany(all) } else { Pending::Threads(all) }
    }

    /// Nobody will look at the doorbells for a while. Whether a worker has something to do first.
    fn arm(&mut self) -> bool {
        // All of them, not up to the first.
        self.hot.iter_mut().chain(&mut self.cold).fold(false, |news, polled| polled.worker.arm() | news)
    }

    /// Polls the busy workers, and some of the others: the more was done the more of them, all if nobody is busy.
    fn poll_workers(&mut self) -> bool {
        let (mut worked, mut work, mut at) = (false, 1, 0);
        while let Some(polled) = self.hot.get_mut(at) {
            let found = polled.worker.poll();
            worked |= found;
            work += polled.worker.work();
            polled.quiet =
                if found || polled.worker.needs_turns() { 0 } else { polled.quiet.saturating_add(1) };
            // With nobody else there is nothing to gain.
            if polled.quiet >= QUIET && self.hot.len() + self.cold.len() > 1 {
                self.cold.push(self.hot.swap_remove(at));
            } else {
                at += 1;
            }
        }
        let mut left = if self.hot.is_empty() || self.idle_turns >= IDLE_TURNS {
            self.cold.len()
        } else {
            self.credit += work;
            let due = self.credit / PRICE;
            self.credit %= PRICE;
            self.cold.len().min(due as usize)
        };
        while left > 0 {
            left -= 1;
            if self.cold_at >= self.cold.len() {
                self.cold_at = 0;
            }
            let Some(polled) = self.cold.get_mut(self.cold_at) else { break };
            if polled.worker.poll() || polled.worker.needs_turns() {
                worked = true;
                polled.quiet = 0;
                self.hot.push(self.cold.swap_remove(self.cold_at));
            } else {
                self.cold_at += 1;
            }
        }
        worked
    }
}

/// Runs `work`. A panic in it ends the process: a guest whose queues nobody polls would hang for ever, whereas a
/// VMM whose server is gone notices, and a service manager starts the server again.
fn guard_against_panics(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("a reactor panicked; ending the process, so that no guest waits for ever");
        crate::exit::at_once(crate::exit::PANIC);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_commands_and_ends() {
        let reactor = ReactorThread::start(0, None, Mode::Adaptive, 0).expect("starts");
        let (answer, answered) = channel();
        reactor.run(move |core| {
            let _ = core.reactor();
            answer.send(std::thread::current().name().map(str::to_owned)).unwrap();
        });
        assert_eq!(answered.recv_timeout(Duration::from_secs(10)).unwrap().as_deref(), Some("reactor-0"));
        // It sleeps now; a command must wake it.
        std::thread::sleep(Duration::from_millis(20));
        let (answer, answered) = channel();
        reactor.run(move |_| answer.send(()).unwrap());
        answered.recv_timeout(Duration::from_secs(10)).expect("woken");
        drop(reactor);
    }

    /// A controller on a null disk, with its only worker.
    fn controller() -> (Arc<nvme_emu::Controller>, WorkerSeed) {
        let subsystem = nvme_emu::Subsystem::new(nvme_emu::SubsystemConfig {
            nqn: "nqn.2026-11.example:test".into(),
            serial: "S1".into(),
            model: "Test".into(),
        })
        .unwrap();
        let config = nvme_emu::ControllerConfig { trapped_doorbells: true, ..Default::default() };
        let (controller, mut seeds) = nvme_emu::Controller::new(subsystem, config).unwrap();
        (controller, seeds.remove(0))
    }

    /// Waits for something that another thread does.
    fn until(what: &str, mut is_there: impl FnMut() -> bool) {
        let start = Instant::now();
        while !is_there() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::yield_now();
        }
    }

    fn reset(controller: &nvme_emu::Controller) {
        use std::task::{Context, Waker};
        use vfio_user_server::{PciFunction, Reset};
        let mut reset = controller.reset(Reset::Device);
        until("the reset ends", || reset.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn mail_for_a_quiet_worker_wakes_it() {
        let reactor = ReactorThread::start(0, None, Mode::Poll, 0).expect("starts");
        let controllers: Vec<_> = (0..4)
            .map(|_| {
                let (controller, seed) = controller();
                reactor.add_worker(seed);
                controller
            })
            .collect();
        for round in 0..10 {
            // All are quiet; then one has something to do, and the reactor goes to sleep with it.
            reactor.set_mode(Mode::Poll);
            let turns = reactor.load().turns;
            until("turns", || reactor.load().turns > turns + 4 * u64::from(QUIET));
            reset(&controllers[round % 4]);
            let sleeps = reactor.load().sleeps;
            reactor.set_mode(Mode::Interrupt);
            until("it sleeps", || {
                reactor.load().sleeps > sleeps || reactor.load().turns > turns + 100_000_000
            });
            for controller in &controllers {
                reset(controller);
            }
        }
    }

    /// A waker of the thread's own I/O leaves a wish behind that was granted already: 31 ns of "sleep".
    #[test]
    fn what_its_own_thread_woke_it_for_is_no_sleep() {
        let reactor = ReactorThread::start(0, None, Mode::Interrupt, 0).expect("starts");
        for _ in 0..100 {
            let (answer, answered) = channel();
            reactor.run(move |core| {
                core.reactor().unparker().unpark();
                answer.send(()).unwrap();
            });
            answered.recv_timeout(Duration::from_secs(10)).expect("woken");
            // Most times it sleeps until the next one.
            std::thread::sleep(Duration::from_millis(1));
        }
        let sleeps = reactor.load().sleeps;
        assert!(sleeps <= 101, "{sleeps} sleeps for 100 commands");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        assert!(ReactorThread::start(0, Some(100_000), Mode::Poll, 0).is_err());
    }
}
