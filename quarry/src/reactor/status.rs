//! What a [`ReactorThread`] tells of itself, and its mode.

use std::sync::Mutex;
use std::time::Duration;

use super::ReactorThread;
use crate::config::model::Mode;

/// What a reactor has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Turns of its loop.
    pub turns: u64,
    /// Those of them in which there was something to do.
    pub busy_turns: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// How long it slept in all.
    pub slept: Duration,
    /// What it found a sleep to cost: how much later than asked for it wakes.
    pub sleep_price: Duration,
}

// PLACEHOLDER (issue 3): the data path's half fills what is here: the mode is kept but not followed, and nothing is
// counted.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) cpu: Option<usize>,
    pub(super) mode: Mutex<Mode>,
}

impl ReactorThread {
    /// Its name, that of its thread.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CPU that it is pinned to, if any.
    pub fn cpu(&self) -> Option<usize> {
        self.kept.cpu
    }

    /// How it waits for work.
    pub fn mode(&self) -> Mode {
        *self.kept.mode.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes how it waits for work, from its next turn on.
    pub fn set_mode(&self, mode: Mode) {
        *self.kept.mode.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = mode;
    }

    /// What it has done so far.
    pub fn load(&self) -> Load {
        Load::default()
    }
}
