//! [`Expectation`]: whether the next thing to happen is likely a completion of the kernel's, and when.
//!
//! Where setting a timer is dear, a sleep without one that a completion ends is the cheapest wait. But it is deaf to
//! mapped doorbells, and it wakes later than a spin ends. So it has to pay: the last idle times were longer than a spin,
//! but short, completions ended them, and no guest rang meanwhile. Where they are as long as those of a cluster, a guest
//! that has nothing else to wait for would notice, so one such doorbell is enough to end it for a long while.

use std::ops::RangeInclusive;
use std::time::Duration;

/// How long the idle times are that pay: longer than spinning bridges, and not so long that timers cost nothing beside them.
const PAYING: RangeInclusive<Duration> = super::idle::SPIN..=Duration::from_millis(5);
/// So long a command may wait that is its guest's only one.
const BEARABLE: Duration = Duration::from_micros(500);
/// If one waited longer: idle times until the next sleep without a timer.
const BAN: u32 = 256;
/// So many more idle times that pay than others, of which each counts for [`PENALTY`], make it likely.
const LIKELY: u32 = 16;
/// What can be saved up at most: how soon a change is noticed.
const MOST: u32 = 64;
const PENALTY: u32 = 4;
/// Each so manieth idle time begins with a spin: a sleep's own end takes time, so a device that has become as fast as a spin
/// would go unnoticed.
const PROBED: u32 = 32;

/// See the module.
#[derive(Debug, Default)]
pub struct Expectation {
    score: u32,
    learnt: u32,
    probing: bool,
    /// Idle times for which it is not likely, whatever the score is.
    banned: u32,
}

impl Expectation {
    /// An idle time, longer than a moment, has ended, at the beginning of which the kernel had I/O. It had `lasted` so long when
    /// its last sleep ended, if there was one. `completed`: I/O ended it. `rang`: a guest rang a doorbell meanwhile.
    pub fn learn(&mut self, lasted: Option<Duration>, completed: bool, rang: bool) {
        let pays = completed && !rang && lasted.is_some_and(|lasted| PAYING.contains(&lasted));
        self.score = match lasted {
            _ if pays => (self.score + 1).min(MOST),
            None if self.probing && completed => 0,
            // So long may nobody wait again soon.
            Some(lasted) if lasted > *PAYING.end() => self.score / 2,
            _ => self.score.saturating_sub(PENALTY),
        };
        self.banned = self.banned.saturating_sub(1);
        self.learnt = self.learnt.wrapping_add(1);
        self.probing = self.learnt.is_multiple_of(PROBED);
    }

    /// In an idle time that has lasted so long a command waited that its guest waited for alone.
    pub fn missed(&mut self, lasted: Option<Duration>) {
        if lasted.is_some_and(|lasted| lasted > BEARABLE) {
            self.banned = BAN;
        }
    }

    /// Whether a guest was hit by that not long ago.
    pub fn is_banned(&self) -> bool {
        self.banned > 0
    }

    /// Whether it is likely, in an idle time that has lasted so long.
    pub fn holds(&self, idle: Duration) -> bool {
        self.score >= LIKELY && self.banned == 0 && (!self.probing || idle >= super::idle::SPIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(micros: u64) -> Option<Duration> {
        Some(Duration::from_micros(micros))
    }

    /// An idle time that has just begun.
    const BEGUN: Duration = Duration::from_micros(10);

    fn sure() -> Expectation {
        let mut expectation = Expectation::default();
        for _ in 0..=2 * MOST {
            expectation.learn(micros(200), true, false);
        }
        assert!(expectation.holds(BEGUN));
        expectation
    }

    #[test]
    fn completions_that_come_after_a_spin_and_soon_make_it() {
        let mut expectation = Expectation::default();
        for _ in 1..LIKELY {
            expectation.learn(micros(60), true, false);
            assert!(!expectation.holds(BEGUN));
        }
        expectation.learn(micros(500), true, false);
        assert!(expectation.holds(BEGUN));
    }

    #[test]
    fn what_a_spin_would_have_seen_earlier_ends_it() {
        let mut expectation = sure();
        for _ in 0..=(MOST - LIKELY) / PENALTY {
            expectation.learn(micros(40), true, false);
        }
        assert!(!expectation.holds(BEGUN));
        let mut spinning = sure();
        for _ in 0..=(MOST - LIKELY) / PENALTY {
            spinning.learn(None, true, false);
        }
        assert!(!spinning.holds(BEGUN));
    }

    /// 40 us to the completion, and 20 more until the sleep has ended.
    #[test]
    fn a_device_that_has_become_fast_is_noticed_though_sleeps_end_late() {
        let mut expectation = sure();
        let mut slept = 0;
        for _ in 0..2 * PROBED {
            let sleeps = expectation.holds(BEGUN);
            slept += u32::from(sleeps);
            expectation.learn(if sleeps { micros(60) } else { None }, true, false);
        }
        assert!(slept < PROBED && !expectation.holds(BEGUN), "{slept}");
    }

    #[test]
    fn doorbells_end_it() {
        for (completed, rang) in [(false, false), (true, true)] {
            let mut expectation = sure();
            for _ in 0..=(MOST - LIKELY) / PENALTY {
                expectation.learn(micros(100), completed, rang);
            }
            assert!(!expectation.holds(BEGUN));
            // One in four is not few.
            for _ in 0..100 {
                (0..3).for_each(|_| expectation.learn(micros(100), true, false));
                expectation.learn(micros(100), completed, rang);
                assert!(!expectation.holds(BEGUN));
            }
        }
    }

    #[test]
    fn a_device_that_takes_long_ends_it_at_once() {
        let mut expectation = sure();
        for _ in 0..3 {
            expectation.learn(micros(6000), true, false);
        }
        assert!(!expectation.holds(BEGUN));
    }

    #[test]
    fn a_cluster_is_slept_for_until_a_guest_waits_because_of_that() {
        let mut expectation = Expectation::default();
        (0..=2 * MOST).for_each(|_| expectation.learn(micros(2000), true, false));
        assert!(expectation.holds(BEGUN));
        expectation.learn(micros(2000), true, true);
        assert!(expectation.holds(BEGUN), "the guest had other commands to wait for");
        expectation.learn(micros(2000), true, true);
        expectation.missed(micros(2000));
        let mut waited = 0;
        while !expectation.holds(BEGUN) {
            expectation.learn(micros(2000), true, false);
            waited += 1;
        }
        assert!((BAN..=BAN + PROBED).contains(&waited), "{waited}");
    }
}
