//! [`Idle`]: how a reactor waits when there is nothing to do.
//!
//! A store into a mapped doorbell wakes nobody, so as long as a guest is there somebody has to look. How often is
//! a bargain between the first I/O's latency and the CPU: spin for a moment, then sleep for an eighth of the time
//! that nothing happened, at most [`LONGEST`]. What a sleep costs depends on the machine (1 to 2 us of CPU where
//! timers are cheap, 20 us in a virtual machine in which setting one leaves the guest), so it is measured, and an idle
//! guest's sleeps get longer where they would take more than [`RATE`] of a core.
//!
//! What other threads do, a library for a cluster, takes longer than any of that: it is slept for at once, if its guest is
//! busy, or has proved to wait for it. A busy guest that is about to answer a completion is awaited for a moment, if the next
//! completion may be long in coming.

use std::time::{Duration, Instant};

use super::answers::Answers;
use super::expectation::Expectation;
use crate::config::model::Mode;

/// How long after the last work the reactor keeps looking without a pause.
pub(super) const SPIN: Duration = Duration::from_micros(50);
/// How long of that it does not even offer the CPU to others.
const HARD_SPIN: Duration = Duration::from_micros(10);
/// The shortest sleep worth its system call.
pub(super) const SHORTEST: Duration = Duration::from_micros(20);
/// The longest sleep while a guest is there and the CPU time allows it: what the first I/O waits for.
const LONGEST: Duration = Duration::from_micros(80);
/// From this price on a sleep goes without a timer where an I/O's completion is expected: the timer is what is dear.
const DEAR: Duration = Duration::from_micros(5);
/// For so long after the last work it looks that often whatever it costs: a guest that rests so little is not idle.
const CLOSELY: Duration = Duration::from_millis(2);
/// The longest sleep in any case.
const LAST_RESORT: Duration = Duration::from_millis(5);
/// Turns without work before the clock is looked at: a busy reactor never does.
const TURNS_BEFORE_CLOCK: u32 = 64;
/// Turns without work after which a reactor that polls offers its CPU to others, each time: some 20 us.
const TURNS_BEFORE_YIELD: u32 = 512;
/// A turn of the others that takes longer goes to somebody who does not let go of the CPU (the kernel gives him milliseconds)...
const SELFISH: Duration = Duration::from_micros(500);
/// ...so for so long nothing is offered: a thread that runs little gets the CPU when it wakes, one that yields does not.
const NO_OFFERS: Duration = Duration::from_secs(1);
/// The price of each so manieth sleep is measured.
const MEASURED: u32 = 8;
/// CPU time that sleeping may take: one part in so many of the time that passes (1.6 %).
const RATE: u32 = 62;
/// CPU time that may be saved up for it: a reactor whose guest was just busy looks more often for a while.
const SAVED: Duration = Duration::from_millis(5);

/// What to do after a turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Turn again at once.
    Spin,
    /// Turn again when others of this CPU had their turn.
    Yield,
    /// Sleep so long, or until something happens.
    Sleep(Duration),
    /// Sleep until something happens.
    UntilWoken,
}

/// Whether a guest rang a doorbell in an idle time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// None, or while somebody looked.
    Heard,
    /// One that has [`MANY`] commands under way: the next of them completes after a small part of the time that each takes,
    /// so that waiting for that hardly makes the new one slower.
    Busy,
    /// One that has fewer under way, while nobody looked.
    Unheard,
    /// One that has none under way, while nobody looked: its command waited for somebody else's to complete.
    Alone,
}

/// Commands under way that make a guest busy.
pub const MANY: usize = 4;

/// What is under way whose end ends a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing, or something that only turns bring to its end.
    Nothing,
    /// I/O of the kernel's, perhaps among others.
    Kernel,
    /// Nothing but what other threads do: a library for a cluster. That takes long enough to sleep for at once. So many
    /// commands are under way.
    Threads(usize),
    /// The same, and whoever waits for it is busy.
    ThreadsForMany(usize),
}

/// How long nothing has happened, and what waiting costs.
#[derive(Debug)]
pub struct Idle {
    turns: u32,
    since: Option<Instant>,
    /// It is no moment any more; what was under way then.
    long: Option<Pending>,
    /// How long it had lasted when the last sleep ended.
    lasted: Option<Duration>,
    /// Of an idle time that has just become [`HARD_SPIN`] long.
    expectation: Expectation,
    /// Of one that has become [`SPIN`] long: a guest that answers completions with commands has done so by then.
    late: Expectation,
    /// It became so long awake.
    is_late: bool,
    /// CPU time of a sleep and the turn after it.
    price: Duration,
    /// CPU time that may be spent on sleeps.
    allowance: Duration,
    /// When `allowance` was filled last.
    filled: Option<Instant>,
    sleeps: u32,
    answers: Answers,
    /// Until then others are not offered the CPU.
    no_offers: Option<Instant>,
    /// The CPU clock before the last sleep, if its price is being measured.
    marked: Option<Duration>,
}

impl Idle {
    /// `price`: CPU time of a sleep.
    pub fn new(price: Duration) -> Self {
        Self {
            turns: 0,
            since: None,
            long: None,
            lasted: None,
            expectation: Expectation::default(),
            late: Expectation::default(),
            is_late: false,
            price,
            allowance: SAVED,
            filled: None,
            sleeps: 0,
            answers: Answers::default(),
            no_offers: None,
            marked: None,
        }
    }

    /// Whether there was nothing to do for longer than a moment until now.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.long.is_some()
    }

    /// There was work; `completed`: I/O was among it; `ring`: who rang, of interest where it [`is_long`](Self::is_long).
    #[inline]
    pub fn worked(&mut self, completed: bool, ring: Ring) {
        self.since = None;
        let lasted = self.lasted.take();
        let is_late = std::mem::take(&mut self.is_late);
        if let (Some(Pending::Threads(_) | Pending::ThreadsForMany(_)), true, Some(lasted)) =
            (self.long, completed, lasted)
        {
            self.answers.learn(lasted);
        }
        // What busy guests do when they like says nothing about when a completion would have come.
        if self.long.take().is_some_and(|pending| pending != Pending::Nothing)
            && (completed || ring != Ring::Busy)
        {
            let rang = matches!(ring, Ring::Unheard | Ring::Alone);
            self.expectation.learn(lasted, completed, rang);
            if is_late {
                self.late.learn(lasted, completed, rang);
            }
            if ring == Ring::Alone {
                self.expectation.missed(lasted);
                self.late.missed(lasted);
            }
        }
        self.turns = 0;
        self.marked = None;
    }

    /// It slept until `now`.
    pub fn slept(&mut self, now: Instant) {
        self.lasted = self.since.map(|since| now.saturating_duration_since(since));
    }

    /// It did not sleep after all.
    pub fn stayed_awake(&mut self) {
        self.marked = None;
    }

    /// CPU time of a sleep and the turn after it, as measured on this machine.
    pub fn price(&self) -> Duration {
        self.price
    }

    /// There was none. `watched` tells whether there is something to look at that wakes nobody; `now` and `cpu` (this thread's
    /// CPU time) are asked only when needed.
    pub fn wait(
        &mut self,
        mode: Mode,
        watched: impl FnOnce() -> bool,
        pending: impl FnOnce() -> Pending,
        now: impl FnOnce() -> Instant,
        cpu: impl FnOnce() -> Duration,
    ) -> Wait {
        self.turns = self.turns.wrapping_add(1);
        if mode == Mode::Poll {
            // Threads of the kernel that have to run on this CPU would wait for a tick: 4 ms for who waits for them.
            return if self.turns.is_multiple_of(TURNS_BEFORE_YIELD) {
                self.offer(now())
            } else {
                Wait::Spin
            };
        }
        if self.turns < TURNS_BEFORE_CLOCK && self.since.is_none() {
            return Wait::Spin;
        }
        let watched = watched();
        if mode == Mode::Interrupt && !watched {
            return Wait::UntilWoken;
        }
        let now = now();
        let idle = now.saturating_duration_since(*self.since.get_or_insert(now));
        let pending = match self.long {
            Some(pending) => pending,
            None => match pending() {
                // A guest that has just got a completion, and is about to send a command.
                Pending::Threads(under_way) | Pending::ThreadsForMany(under_way)
                    if watched && self.answers.are_likely(under_way) && idle < SPIN =>
                {
                    return if idle < HARD_SPIN { Wait::Spin } else { self.offer(now) };
                }
                // A guest that is busy hardly notices if its doorbells are seen when its next command completes.
                Pending::ThreadsForMany(under_way) if watched && !self.expectation.is_banned() => {
                    self.answers.get_used_to(under_way);
                    self.long = Some(Pending::ThreadsForMany(under_way));
                    return Wait::Sleep(LAST_RESORT);
                }
                // One that is not, and has proved to wait for its commands.
                Pending::Threads(under_way)
                    if watched && self.price >= DEAR && self.expectation.holds(idle) =>
                {
                    self.answers.get_used_to(under_way);
                    self.long = Some(Pending::Threads(under_way));
                    return Wait::Sleep(LAST_RESORT);
                }
                _ if idle < HARD_SPIN => return Wait::Spin,
                pending => {
                    if let Pending::Threads(under_way) | Pending::ThreadsForMany(under_way) = pending {
                        self.answers.get_used_to(under_way);
                    }
                    *self.long.insert(pending)
                }
            },
        };
        let sleeps = self.price >= DEAR && watched && pending != Pending::Nothing;
        // Nearly without a timer: it is beyond the kernel's next tick.
        if sleeps && self.expectation.holds(idle) {
            return Wait::Sleep(LAST_RESORT);
        }
        // What other threads do takes longer than that in any case.
        let is_near =
            !matches!(pending, Pending::Threads(_) | Pending::ThreadsForMany(_)) || self.price >= DEAR;
        if idle < SPIN && is_near {
            return self.offer(now);
        }
        if !watched {
            return Wait::UntilWoken;
        }
        self.is_late |= self.lasted.is_none();
        if sleeps && self.late.holds(idle) {
            return Wait::Sleep(LAST_RESORT);
        }
        Wait::Sleep(self.pause(idle, now, cpu))
    }

    /// Others had their turn.
    pub fn yielded(&mut self, before: Instant, now: Instant) {
        if now.saturating_duration_since(before) > SELFISH {
            self.no_offers = Some(now + NO_OFFERS);
        }
    }

    /// The CPU to others, unless that has proved to take long.
    fn offer(&mut self, now: Instant) -> Wait {
        match self.no_offers {
            Some(until) if now < until => Wait::Spin,
            Some(_) => {
                self.no_offers = None;
                Wait::Yield
            }
            None => Wait::Yield,
        }
    }

    fn pause(&mut self, idle: Duration, now: Instant, cpu: impl FnOnce() -> Duration) -> Duration {
        // From one sleep to the next one, if no work comes between. Not each time: the CPU clock is a system call.
        if let Some(marked) = self.marked.take() {
            let price = cpu().saturating_sub(marked);
            self.price = ((self.price * 3 + price) / 4).max(Duration::from_nanos(100));
        } else if self.sleeps.is_multiple_of(MEASURED) {
            self.marked = Some(cpu());
        }
        self.sleeps = self.sleeps.wrapping_add(1);
        let earned = now.saturating_duration_since(*self.filled.get_or_insert(now)) / RATE;
        self.filled = Some(now);
        self.allowance = (self.allowance + earned).min(SAVED);
        let pause = (idle / 8).clamp(SHORTEST.max(self.price * 2).min(LONGEST), LONGEST);
        match self.allowance.checked_sub(self.price) {
            Some(left) => {
                self.allowance = left;
                pause
            }
            None if idle < CLOSELY => {
                self.allowance = Duration::ZERO;
                pause
            }
            // It earns what it lacks.
            None => {
                let lacking = self.price - self.allowance;
                self.allowance = Duration::ZERO;
                self.filled = Some(now + lacking * RATE);
                (lacking * RATE).clamp(pause, LAST_RESORT)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::LATELY;
    use super::*;

    struct Machine {
        idle: Idle,
        start: Instant,
        at: Duration,
        spent: Duration,
        price: Duration,
        pending: Pending,
    }

    impl Machine {
        fn new(price: Duration) -> Self {
            Self {
                idle: Idle::new(Duration::from_micros(2)),
                start: Instant::now(),
                at: Duration::ZERO,
                spent: Duration::ZERO,
                price,
                pending: Pending::Nothing,
            }
        }

        fn wait(&mut self, mode: Mode, watched: bool) -> Wait {
            let (now, spent) = (self.start + self.at, self.spent);
            self.idle.wait(mode, || watched, || self.pending, || now, || spent)
        }

        /// Nothing to do for `time`: the longest sleep, and the CPU time of all of them.
        fn rest(&mut self, time: Duration) -> (Duration, Duration) {
            let (end, before) = (self.at + time, self.spent);
            let mut longest = Duration::ZERO;
            while self.at < end {
                match self.wait(Mode::Adaptive, true) {
                    Wait::Sleep(pause) => {
                        longest = longest.max(pause);
                        self.spent += self.price;
                        self.at += pause + self.price;
                    }
                    _ => self.at += Duration::from_nanos(50),
                }
            }
            (longest, self.spent - before)
        }
    }

    #[test]
    fn spins_yields_sleeps_and_comes_back() {
        let mut machine = Machine::new(Duration::from_micros(1));
        for _ in 1..TURNS_BEFORE_CLOCK {
            let wait = machine.idle.wait(
                Mode::Adaptive,
                || panic!("watched"),
                || panic!("pending"),
                || panic!("the clock"),
                || panic!("the CPU clock"),
            );
            assert_eq!(wait, Wait::Spin);
        }
        let mut at = |micros| {
            machine.at = Duration::from_micros(micros);
            machine.wait(Mode::Adaptive, true)
        };
        assert_eq!(at(0), Wait::Spin);
        assert_eq!(at(9), Wait::Spin);
        assert_eq!(at(10), Wait::Yield);
        assert_eq!(at(49), Wait::Yield);
        assert_eq!(at(50), Wait::Sleep(SHORTEST));
        assert_eq!(at(400), Wait::Sleep(Duration::from_micros(50)));
        assert_eq!(at(1_000_000), Wait::Sleep(LONGEST));
        machine.idle.worked(false, Ring::Heard);
        assert_eq!(machine.wait(Mode::Adaptive, true), Wait::Spin);
    }

    #[test]
    fn a_quiet_guest_costs_less_than_two_percent_whatever_a_sleep_costs() {
        for micros in [1, 5, 20, 50] {
            let price = Duration::from_micros(micros);
            let mut machine = Machine::new(price);
            machine.rest(Duration::from_secs(1));
            let (longest, spent) = machine.rest(Duration::from_secs(10));
            assert!(spent < Duration::from_millis(200), "{micros} us a sleep: {spent:?} of 10 s");
            // Where sleeps are cheap the first I/O is seen within 100 us.
            assert!(longest <= LONGEST.max(price * (RATE + 2)), "{micros} us a sleep: {longest:?}");
            let measured = machine.idle.price();
            assert!(measured.abs_diff(price) < price / 10, "{measured:?} for {price:?}");
        }
    }

    #[test]
    fn a_guest_that_rests_a_millisecond_at_a_time_is_seen_soon_each_time() {
        let mut machine = Machine::new(Duration::from_micros(20));
        machine.rest(Duration::from_secs(1));
        for _ in 0..1000 {
            machine.idle.worked(false, Ring::Heard);
            let (longest, _) = machine.rest(Duration::from_millis(1));
            assert!(longest <= LONGEST, "{longest:?}");
        }
    }

    #[test]
    fn after_work_it_looks_often_even_where_that_is_dear() {
        let mut machine = Machine::new(Duration::from_micros(20));
        machine.rest(Duration::from_secs(1));
        machine.at += Duration::from_secs(1); // of work
        machine.idle.worked(false, Ring::Heard);
        let (longest, _) = machine.rest(Duration::from_millis(10));
        assert_eq!(longest, LONGEST);
    }

    /// A machine on which so many idle times of `micros` ended with a completion.
    fn with_io(price: u64, idle_times: u32, micros: u64) -> (Machine, Vec<Wait>) {
        let mut machine = Machine::new(Duration::from_micros(price));
        machine.rest(Duration::from_secs(1));
        machine.pending = Pending::Kernel;
        machine.idle.worked(false, Ring::Heard);
        let mut waits = Vec::new();
        for _ in 0..idle_times {
            waits.clear();
            let end = machine.at + Duration::from_micros(micros);
            while machine.at < end {
                let wait = machine.wait(Mode::Adaptive, true);
                match wait {
                    // Its completion ends it.
                    Wait::Sleep(pause) => {
                        machine.spent += machine.price;
                        machine.at = end.min(machine.at + pause);
                        machine.idle.slept(machine.start + machine.at);
                    }
                    _ => machine.at += Duration::from_nanos(100),
                }
                waits.push(wait);
            }
            machine.idle.worked(true, Ring::Heard);
        }
        (machine, waits)
    }

    #[test]
    fn io_that_spinning_does_not_bridge_is_slept_for_without_a_timer_where_timers_are_dear() {
        // Its last wait: a moment of spinning, one sleep.
        let (_, waits) = with_io(20, 100, 300);
        assert_eq!(waits.last(), Some(&Wait::Sleep(LAST_RESORT)));
        assert!(waits.iter().rev().skip(1).all(|wait| *wait == Wait::Spin), "{waits:?}");
        // Where timers cost little the doorbells are looked at meanwhile.
        let (_, waits) = with_io(1, 100, 300);
        assert!(waits.contains(&Wait::Yield) && !waits.contains(&Wait::Sleep(LAST_RESORT)), "{waits:?}");
        // What comes sooner than a sleep would end is spun for.
        let (_, waits) = with_io(20, 100, 40);
        assert!(waits.iter().all(|wait| matches!(wait, Wait::Spin | Wait::Yield)), "{waits:?}");
    }

    /// The first wait that is no spin, and how long after the last work it comes.
    fn first_wait(machine: &mut Machine) -> (Wait, Duration) {
        machine.idle.worked(false, Ring::Heard);
        let begin = machine.at;
        loop {
            let wait = machine.wait(Mode::Adaptive, true);
            if wait != Wait::Spin {
                return (wait, machine.at - begin);
            }
            machine.at += Duration::from_nanos(50);
        }
    }

    #[test]
    fn what_other_threads_do_for_a_busy_guest_is_slept_for_at_once() {
        for price in [1, 20] {
            let mut machine = Machine::new(Duration::from_micros(price));
            machine.rest(Duration::from_secs(1));
            machine.pending = Pending::ThreadsForMany(MANY);
            let (wait, after) = first_wait(&mut machine);
            assert_eq!(wait, Wait::Sleep(LAST_RESORT), "{price} us");
            assert!(after < HARD_SPIN, "{after:?}");
            // A guest that had nothing else to wait for was hit by it.
            machine.at += Duration::from_millis(1);
            machine.idle.slept(machine.start + machine.at);
            machine.idle.worked(true, Ring::Alone);
            assert_ne!(first_wait(&mut machine).0, Wait::Sleep(LAST_RESORT), "{price} us");
        }
    }

    #[test]
    fn a_busy_guest_that_is_about_to_answer_is_awaited_if_the_next_completion_is_long_in_coming() {
        let mut machine = Machine::new(Duration::from_micros(20));
        machine.rest(Duration::from_secs(1));
        // Completions that each end a sleep of `micros`, with all commands under way.
        let sleeps = |machine: &mut Machine, under_way, micros| {
            for _ in 0..64 {
                machine.pending = Pending::ThreadsForMany(under_way);
                assert_eq!(first_wait(machine).0, Wait::Sleep(LAST_RESORT));
                machine.at += Duration::from_micros(micros);
                machine.idle.slept(machine.start + machine.at);
                machine.idle.worked(true, Ring::Heard);
            }
        };
        // Some have completed, and their guest has not answered yet.
        let awaits = |machine: &mut Machine, under_way| {
            machine.pending = Pending::ThreadsForMany(under_way);
            let (wait, after) = first_wait(machine);
            assert!(wait == Wait::Yield || after < HARD_SPIN, "{after:?}");
            wait == Wait::Yield
        };
        sleeps(&mut machine, 8, 60);
        assert!(!awaits(&mut machine, 6), "the next completion comes soon");
        sleeps(&mut machine, 8, 2000);
        assert!(awaits(&mut machine, 6) && awaits(&mut machine, 4));
        assert!(!awaits(&mut machine, 7), "most of them are under way");
        // No longer than a guest takes.
        machine.pending = Pending::ThreadsForMany(6);
        machine.idle.worked(false, Ring::Heard);
        let begin = machine.at;
        while machine.wait(Mode::Adaptive, true) != Wait::Sleep(LAST_RESORT) {
            machine.at += Duration::from_nanos(100);
        }
        assert!((SPIN..SPIN * 2).contains(&(machine.at - begin)));
        // One that has got used to fewer.
        for _ in 0..2 * LATELY {
            machine.idle.worked(false, Ring::Heard);
            while machine.wait(Mode::Adaptive, true) != Wait::Sleep(LAST_RESORT) {
                machine.at += Duration::from_nanos(100);
            }
        }
        assert!(!awaits(&mut machine, 6));
    }

    #[test]
    fn a_guest_that_has_become_less_busy_is_not_awaited_for_long() {
        for price in [1, 20] {
            let mut machine = Machine::new(Duration::from_micros(price));
            machine.rest(Duration::from_secs(1));
            // How long it is awake in the last of so many idle times, each of which a completion ends.
            let mut awake = |pending, count| {
                machine.pending = pending;
                let mut awake = Duration::ZERO;
                for _ in 0..count {
                    let begin = machine.at;
                    while !matches!(machine.wait(Mode::Adaptive, true), Wait::Sleep(_)) {
                        machine.at += Duration::from_nanos(50);
                    }
                    awake = machine.at - begin;
                    machine.at += Duration::from_millis(2);
                    machine.idle.slept(machine.start + machine.at);
                    machine.idle.worked(true, Ring::Heard);
                }
                awake
            };
            assert!(awake(Pending::ThreadsForMany(64), 64) < HARD_SPIN, "{price} us");
            assert!(awake(Pending::Threads(1), 1) >= SPIN, "{price} us");
            let awake = awake(Pending::Threads(1), 2 * LATELY);
            assert!(awake < SPIN / 2, "{price} us: {awake:?}");
        }
    }

    #[test]
    fn what_other_threads_do_for_few_is_slept_for_when_it_has_proved_to_take_long() {
        // Where timers are dear: at first it is looked for as the kernel's is; then there is one sleep, at once.
        let (mut machine, _) = with_io(20, 100, 300);
        machine.pending = Pending::Threads(1);
        let (wait, after) = first_wait(&mut machine);
        assert_eq!(wait, Wait::Sleep(LAST_RESORT));
        assert!(after < HARD_SPIN, "{after:?}");
        let mut unproved = Machine::new(Duration::from_micros(20));
        unproved.rest(Duration::from_secs(1));
        unproved.pending = Pending::Threads(1);
        assert_eq!(first_wait(&mut unproved).0, Wait::Yield);
        // Elsewhere by short sleeps, in which doorbells are heard; nobody spins for so long.
        let mut cheap = Machine::new(Duration::from_micros(1));
        cheap.rest(Duration::from_secs(1));
        cheap.pending = Pending::Threads(1);
        let (wait, after) = first_wait(&mut cheap);
        assert_eq!(wait, Wait::Sleep(SHORTEST));
        assert!((HARD_SPIN..SPIN).contains(&after), "{after:?}");
    }

    #[test]
    fn a_guest_that_thinks_between_its_commands_teaches_nothing_about_io() {
        let (mut machine, _) = with_io(20, 100, 300);
        // No sleep without a timer, since there is no I/O; and none is to be expected later because of that.
        machine.pending = Pending::Nothing;
        for _ in 0..100 {
            let end = machine.at + Duration::from_micros(30);
            while machine.at < end {
                assert!(matches!(machine.wait(Mode::Adaptive, true), Wait::Spin | Wait::Yield));
                machine.at += Duration::from_nanos(100);
            }
            machine.idle.worked(false, Ring::Heard);
        }
        machine.pending = Pending::Kernel;
        let mut wait = Wait::Spin;
        while wait == Wait::Spin {
            machine.at += Duration::from_nanos(100);
            wait = machine.wait(Mode::Adaptive, true);
        }
        assert_eq!(wait, Wait::Sleep(LAST_RESORT));
    }

    #[test]
    fn a_guest_that_rings_meanwhile_is_looked_for() {
        let (mut machine, _) = with_io(20, 100, 300);
        for _ in 0..64 {
            machine.at += Duration::from_micros(1);
            while !matches!(machine.wait(Mode::Adaptive, true), Wait::Sleep(_)) {
                machine.at += Duration::from_micros(1);
            }
            machine.at += Duration::from_micros(100);
            machine.idle.slept(machine.start + machine.at);
            machine.idle.worked(true, Ring::Unheard);
        }
        let mut longest = Duration::ZERO;
        for _ in 0..1000 {
            machine.at += Duration::from_micros(1);
            if let Wait::Sleep(pause) = machine.wait(Mode::Adaptive, true) {
                longest = longest.max(pause);
            }
        }
        assert!(longest > Duration::ZERO && longest < LAST_RESORT, "{longest:?}");
    }

    /// Of each two idle times one ends with a command, soon, and one with a completion, late: a deep queue on a cluster.
    #[test]
    fn a_guest_that_answers_soon_is_awaited_and_its_next_completion_slept_for() {
        let mut machine = Machine::new(Duration::from_micros(20));
        machine.rest(Duration::from_secs(1));
        machine.pending = Pending::Kernel;
        machine.idle.worked(false, Ring::Heard);
        let mut waits = Vec::new();
        for _ in 0..100 {
            for micros in [30, 900] {
                waits.clear();
                let end = machine.at + Duration::from_micros(micros);
                while machine.at < end {
                    let wait = machine.wait(Mode::Adaptive, true);
                    match wait {
                        Wait::Sleep(pause) => {
                            machine.spent += machine.price;
                            machine.at = end.min(machine.at + pause);
                            machine.idle.slept(machine.start + machine.at);
                        }
                        _ => machine.at += Duration::from_nanos(100),
                    }
                    waits.push(wait);
                }
                machine.idle.worked(micros == 900, Ring::Heard);
            }
        }
        // Awake for as long as the guest might answer, then one sleep.
        let sleeps: Vec<_> = waits.iter().filter(|wait| matches!(wait, Wait::Sleep(_))).collect();
        assert_eq!(sleeps, [&Wait::Sleep(LAST_RESORT)]);
        assert!(waits.contains(&Wait::Yield));
    }

    #[test]
    fn a_busy_guest_is_not_awaited() {
        let mut machine = Machine::new(Duration::from_micros(20));
        machine.rest(Duration::from_secs(1));
        machine.pending = Pending::Kernel;
        let sleeps_at_once = |ring| {
            machine.idle.worked(false, Ring::Heard);
            for _ in 0..200 {
                // It rings soon after each completion: awake or not, nobody would say when.
                while machine.wait(Mode::Adaptive, true) == Wait::Spin {
                    machine.at += Duration::from_nanos(100);
                }
                machine.idle.worked(false, ring);
                while !matches!(machine.wait(Mode::Adaptive, true), Wait::Sleep(_)) {
                    machine.at += Duration::from_nanos(100);
                }
                machine.at += Duration::from_micros(200);
                machine.idle.slept(machine.start + machine.at);
                machine.idle.worked(true, ring);
            }
            let mut wait = Wait::Spin;
            while wait == Wait::Spin {
                machine.at += Duration::from_nanos(100);
                wait = machine.wait(Mode::Adaptive, true);
            }
            wait == Wait::Sleep(LAST_RESORT)
        };
        assert_eq!([Ring::Unheard, Ring::Busy].map(sleeps_at_once), [false, true]);
    }

    #[test]
    fn a_sleep_that_did_not_take_place_tells_nothing_about_its_price() {
        let mut machine = Machine::new(Duration::from_micros(20));
        machine.rest(Duration::from_secs(1));
        let price = machine.idle.price();
        for _ in 0..1000 {
            machine.at += Duration::from_micros(1);
            if let Wait::Sleep(_) = machine.wait(Mode::Adaptive, true) {
                machine.idle.stayed_awake();
            }
        }
        assert_eq!(machine.idle.price(), price);
    }

    #[test]
    fn who_does_not_give_the_cpu_back_is_not_offered_it_again_soon() {
        for mode in [Mode::Adaptive, Mode::Poll] {
            let mut machine = Machine::new(Duration::from_micros(1));
            // The first yield of an idle time that begins now.
            let yields = |machine: &mut Machine| {
                machine.idle.worked(false, Ring::Heard);
                for _ in 0..2 * TURNS_BEFORE_YIELD {
                    machine.at += Duration::from_nanos(50);
                    if machine.wait(mode, true) == Wait::Yield {
                        return true;
                    }
                }
                false
            };
            assert!(yields(&mut machine), "{mode:?}");
            let took = |machine: &mut Machine, time: Duration| {
                let before = machine.start + machine.at;
                machine.at += time;
                machine.idle.yielded(before, machine.start + machine.at);
            };
            took(&mut machine, Duration::from_micros(100));
            assert!(yields(&mut machine), "{mode:?}");
            took(&mut machine, Duration::from_millis(3));
            assert!(!yields(&mut machine), "{mode:?}");
            machine.at += NO_OFFERS;
            assert!(yields(&mut machine), "{mode:?}");
        }
    }

    #[test]
    fn costs_nothing_without_a_guest() {
        let mut machine = Machine::new(Duration::from_micros(1));
        for _ in 0..TURNS_BEFORE_CLOCK {
            machine.wait(Mode::Adaptive, false);
        }
        machine.at = SPIN;
        assert_eq!(machine.wait(Mode::Adaptive, false), Wait::UntilWoken);
    }

    #[test]
    fn the_other_modes() {
        let mut machine = Machine::new(Duration::from_micros(1));
        for _ in 1..TURNS_BEFORE_CLOCK {
            assert_eq!(machine.wait(Mode::Interrupt, false), Wait::Spin);
        }
        assert_eq!(machine.wait(Mode::Interrupt, false), Wait::UntilWoken);
        machine.at = Duration::from_secs(1);
        machine.idle.worked(false, Ring::Heard);
        let waits: Vec<Wait> = (0..2 * TURNS_BEFORE_YIELD).map(|_| machine.wait(Mode::Poll, false)).collect();
        assert_eq!(waits.iter().filter(|wait| **wait == Wait::Yield).count(), 2);
        assert_eq!(
            waits.iter().filter(|wait| **wait == Wait::Spin).count() as u32,
            2 * TURNS_BEFORE_YIELD - 2
        );
    }
}
