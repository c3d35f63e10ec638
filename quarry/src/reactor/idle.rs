//! [`Idle`]: how a reactor in the adaptive mode waits when there is nothing to do.
//!
//! A store into a mapped doorbell wakes nobody, so as long as a guest is there somebody has to look. How often is
//! a bargain between the first I/O's latency and the CPU: spin for a moment, then sleep for an eighth of the time
//! that nothing happened, so that waiting never adds much to what the guest already waited itself.

use std::time::{Duration, Instant};

/// How long after the last work the reactor keeps spinning.
const SPIN: Duration = Duration::from_micros(50);
/// The shortest sleep worth its system call.
const SHORTEST: Duration = Duration::from_micros(20);
/// The longest sleep while a guest is there.
const LONGEST: Duration = Duration::from_millis(1);
/// Turns without work before the clock is looked at: a busy reactor never does.
const TURNS_BEFORE_CLOCK: u32 = 64;

/// What to do after a turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Turn again at once.
    Spin,
    /// Sleep so long, or until something happens.
    Sleep(Duration),
    /// Sleep until something happens.
    UntilWoken,
}

/// How long nothing has happened.
#[derive(Debug, Default)]
pub struct Idle {
    turns: u32,
    since: Option<Instant>,
}

impl Idle {
    /// There was work.
    pub fn worked(&mut self) {
        self.turns = 0;
        self.since = None;
    }

    /// There was none. `watched` tells whether there are doorbells to watch; `now` is only asked when needed.
    pub fn wait(&mut self, watched: bool, now: impl FnOnce() -> Instant) -> Wait {
        if !watched {
            return Wait::UntilWoken;
        }
        self.turns = self.turns.saturating_add(1);
        if self.turns < TURNS_BEFORE_CLOCK {
            return Wait::Spin;
        }
        let now = now();
        let idle = now.saturating_duration_since(*self.since.get_or_insert(now));
        if idle < SPIN { Wait::Spin } else { Wait::Sleep((idle / 8).clamp(SHORTEST, LONGEST)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backs_off_and_comes_back() {
        let start = Instant::now();
        let mut idle = Idle::default();
        for _ in 1..TURNS_BEFORE_CLOCK {
            assert_eq!(idle.wait(true, || panic!("the clock")), Wait::Spin);
        }
        let at = |idle: &mut Idle, micros| idle.wait(true, || start + Duration::from_micros(micros));
        assert_eq!(at(&mut idle, 0), Wait::Spin);
        assert_eq!(at(&mut idle, 49), Wait::Spin);
        assert_eq!(at(&mut idle, 50), Wait::Sleep(SHORTEST));
        assert_eq!(at(&mut idle, 800), Wait::Sleep(Duration::from_micros(100)));
        assert_eq!(at(&mut idle, 1_000_000), Wait::Sleep(LONGEST));
        idle.worked();
        assert_eq!(at(&mut idle, 1_000_000), Wait::Spin);
    }

    #[test]
    fn costs_nothing_without_a_guest() {
        assert_eq!(Idle::default().wait(false, || panic!("the clock")), Wait::UntilWoken);
    }
}
