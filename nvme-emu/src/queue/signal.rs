//! [`Signal`]: when a completion queue's interrupt is worth its system call.
//!
//! A guest that waits gets its interrupt with the first run of completions. One that is still busy with entries it was
//! told of, or that polls, finds the next ones by itself: its head doorbell moves. The signal is held back as long as it
//! does, and given when the head rests before the last entry. On top of that the host may ask for fewer interrupts
//! (Interrupt Coalescing, Base 5.27.1.6).

use std::time::{Duration, Instant};

/// How long a head that does not move is taken for a guest that is about to move it.
const GRACE: Duration = Duration::from_micros(10);
/// The same while nothing but a guess speaks for it.
const PROBE: Duration = Duration::from_micros(2);
/// Every so manieth run is held back for a [`PROBE`], to find out whether the guest polls.
const PROBE_EVERY: u32 = 256;

/// What the host asked for: features 08h and 09h, for one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coalescing {
    /// Entries that are enough for an interrupt; 0 or 1 if there is no coalescing.
    pub(crate) entries: u32,
    /// How long the first of them may wait.
    pub(crate) time: Duration,
}

impl Coalescing {
    fn is_active(self) -> bool {
        self.entries > 1 && !self.time.is_zero()
    }
}

/// Why a signal is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The guest has not yet taken what it was told of.
    Busy,
    /// It took earlier entries without being told.
    Polls,
    /// To see whether it does.
    Probe,
    /// The host wants it so.
    Coalesced,
}

/// What to do about a queue's interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is left to be told.
    Nothing,
    /// Signal now.
    Signal,
    /// Look again in the next turn.
    Hold,
}

/// The interrupt of one completion queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signal {
    /// Entries that the guest was not told of.
    entries: u32,
    held: Option<Held>,
    polls: bool,
    runs: u32,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    reason: Reason,
    /// When it began, or the head moved last.
    since: Instant,
    head: u32,
}

/// What a queue looks like at the end of a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Entries posted since the last look.
    pub(crate) posted: u32,
    /// Entries that the guest has not taken.
    pub(crate) used: u32,
    /// The guest's head.
    pub(crate) head: u32,
}

impl Signal {
    /// Decides. `now` is asked only where time matters.
    pub(crate) fn judge(
        &mut self,
        look: Look,
        coalescing: Coalescing,
        mut now: impl FnMut() -> Instant,
    ) -> Verdict {
        let Look { posted, used, head } = look;
        self.entries = self.entries.saturating_add(posted);
        if self.entries == 0 {
            return Verdict::Nothing;
        }
        if used == 0 {
            // It took them without being told.
            match self.held {
                Some(Held { reason: Reason::Probe, .. }) | None => self.polls = true,
                Some(_) => {}
            }
            return self.over(Verdict::Nothing);
        }
        if coalescing.is_active() && self.entries >= coalescing.entries {
            return self.over(Verdict::Signal);
        }
        let Some(held) = &mut self.held else {
            self.runs = self.runs.wrapping_add(1);
            let reason = if coalescing.is_active() {
                Reason::Coalesced
            } else if used > posted {
                Reason::Busy
            } else if self.polls {
                Reason::Polls
            } else if self.runs.is_multiple_of(PROBE_EVERY) {
                Reason::Probe
            } else {
                return self.over(Verdict::Signal);
            };
            self.held = Some(Held { reason, since: now(), head });
            return Verdict::Hold;
        };
        let patience = match held.reason {
            Reason::Coalesced => coalescing.time,
            Reason::Probe => PROBE,
            Reason::Busy | Reason::Polls => GRACE,
        };
        let at = now();
        if held.reason != Reason::Coalesced && held.head != head {
            (held.since, held.head) = (at, head);
            return Verdict::Hold;
        }
        if at.saturating_duration_since(held.since) < patience {
            return Verdict::Hold;
        }
        if held.reason != Reason::Coalesced {
            self.polls = false;
        }
        self.over(Verdict::Signal)
    }

    fn over(&mut self, verdict: Verdict) -> Verdict {
        self.entries = 0;
        self.held = None;
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Queue {
        signal: Signal,
        coalescing: Coalescing,
        head: u32,
        tail: u32,
        start: Instant,
        micros: u64,
    }

    impl Queue {
        fn new() -> Self {
            let coalescing = Coalescing::default();
            Self { signal: Signal::default(), coalescing, head: 0, tail: 0, start: Instant::now(), micros: 0 }
        }

        fn turn(&mut self, posted: u32) -> Verdict {
            self.tail += posted;
            let look = Look { posted, used: self.tail - self.head, head: self.head };
            let at = self.start + Duration::from_micros(self.micros);
            self.signal.judge(look, self.coalescing, || at)
        }
    }

    #[test]
    fn who_waits_is_told_at_once_and_once() {
        let mut queue = Queue::new();
        assert_eq!(queue.turn(3), Verdict::Signal);
        assert_eq!(queue.turn(0), Verdict::Nothing);
        queue.head = 3;
        assert_eq!(queue.turn(1), Verdict::Signal);
    }

    #[test]
    fn who_is_busy_is_told_when_he_rests_before_the_end() {
        let mut queue = Queue::new();
        assert_eq!(queue.turn(2), Verdict::Signal);
        assert_eq!(queue.turn(2), Verdict::Hold, "two are not taken yet");
        queue.micros = 8;
        queue.head = 1;
        assert_eq!(queue.turn(0), Verdict::Hold, "the head moves");
        queue.micros = 17;
        assert_eq!(queue.turn(0), Verdict::Hold);
        queue.micros = 18;
        assert_eq!(queue.turn(0), Verdict::Signal, "it rested for 10 us");
        assert_eq!(queue.turn(0), Verdict::Nothing);
    }

    #[test]
    fn who_takes_all_is_not_told() {
        let mut queue = Queue::new();
        assert_eq!(queue.turn(2), Verdict::Signal);
        assert_eq!(queue.turn(2), Verdict::Hold);
        queue.head = 4;
        assert_eq!(queue.turn(0), Verdict::Nothing);
        queue.head = 4;
        assert_eq!(queue.turn(1), Verdict::Signal, "being busy is not polling");
    }

    #[test]
    fn who_polls_is_found_out_and_left_alone_until_he_stops() {
        let mut queue = Queue::new();
        let mut signals = 0;
        for _ in 0..PROBE_EVERY + 1000 {
            match queue.turn(1) {
                Verdict::Signal => signals += 1,
                Verdict::Hold => {
                    queue.head = queue.tail;
                    assert_eq!(queue.turn(0), Verdict::Nothing);
                }
                Verdict::Nothing => panic!("it was posted"),
            }
            queue.head = queue.tail;
        }
        assert_eq!(signals, PROBE_EVERY - 1, "none once it is known");
        assert_eq!(queue.turn(1), Verdict::Hold);
        queue.micros += 10;
        assert_eq!(queue.turn(0), Verdict::Signal);
        queue.head = queue.tail;
        assert_eq!(queue.turn(1), Verdict::Signal, "it waits again");
    }

    #[test]
    fn entries_or_time_whichever_is_first() {
        let mut queue = Queue::new();
        queue.coalescing = Coalescing { entries: 4, time: Duration::from_micros(200) };
        assert_eq!(queue.turn(3), Verdict::Hold);
        assert_eq!(queue.turn(1), Verdict::Signal);
        queue.head = 4;
        assert_eq!(queue.turn(1), Verdict::Hold);
        queue.micros = 199;
        assert_eq!(queue.turn(0), Verdict::Hold);
        queue.micros = 200;
        assert_eq!(queue.turn(0), Verdict::Signal);
        queue.head = 5;
        assert_eq!(queue.turn(1), Verdict::Hold);
        queue.head = 6;
        assert_eq!(queue.turn(0), Verdict::Nothing, "taken meanwhile");
    }
}
