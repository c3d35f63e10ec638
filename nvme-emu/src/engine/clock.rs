//! [`TurnClock`]: how long one turn may take.

use std::time::{Duration, Instant};

/// How long a turn may go on starting and polling commands. Other controllers of the reactor, and this one's control
/// messages, have to wait for its end.
const LIMIT: Duration = Duration::from_millis(1);

/// Watches over [`LIMIT`]. Turns with little to do never look at the clock, and others seldom: it takes half of the time of
/// a read.
#[derive(Default)]
pub(super) struct TurnClock {
    steps: u32,
    since: Option<Instant>,
}

/// A read or write, in steps. (How many bytes there are is the engine's budget's concern.)
pub(super) const TRANSFER: u32 = 1;
/// Anything else, none of which takes long at once: see `nvm::deallocate`.
pub(super) const OTHER: u32 = 8;

impl TurnClock {
    /// Steps between two looks.
    const LOOK: u32 = 64;

    /// So many steps are done. Whether they were the last of this turn.
    pub(super) fn is_over(&mut self, steps: u32) -> bool {
        self.steps += steps;
        if self.steps < Self::LOOK {
            return false;
        }
        self.steps = 0;
        let now = Instant::now();
        now.duration_since(*self.since.get_or_insert(now)) >= LIMIT
    }
}
