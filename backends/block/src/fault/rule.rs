//! [`Rule`]: which I/Os, and what happens to them.

use std::ops::Range;
use std::time::Duration;

use crate::testing::Rng;
use crate::{ErrorKind, Io, Op};

bitflags::bitflags! {
    /// A set of operations.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ops: u32 {
        /// [`Op::Read`].
        const READ = 1 << 0;
        /// [`Op::Write`].
        const WRITE = 1 << 1;
        /// [`Op::Flush`].
        const FLUSH = 1 << 2;
        /// [`Op::Discard`].
        const DISCARD = 1 << 3;
        /// [`Op::WriteZeroes`].
        const WRITE_ZEROES = 1 << 4;
        /// [`Op::CompareAndWrite`].
        const COMPARE_AND_WRITE = 1 << 5;
    }
}

impl From<Op> for Ops {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Self::READ,
            Op::Write => Self::WRITE,
            Op::Flush => Self::FLUSH,
            Op::Discard => Self::DISCARD,
            Op::WriteZeroes => Self::WRITE_ZEROES,
            Op::CompareAndWrite => Self::COMPARE_AND_WRITE,
        }
    }
}

/// What happens to an I/O.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Fails with this kind; the device below does not see it.
    Fail(ErrorKind),
    /// Is carried out, then fails with this kind.
    FailAfter(ErrorKind),
    /// Waits this long before it is carried out.
    Delay(Duration),
    /// Waits before it is carried out until it is released through the handle.
    Hold,
    /// Waits until `window` of them are there, or the first of these has waited for `longest`; then they are carried
    /// out in random order, one after the other.
    Reorder {
        /// How many are mixed.
        window: usize,
        /// How long one waits for others.
        longest: Duration,
    },
}

/// Which I/Os, and what happens to them. Where several rules match, the first one that was added decides.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) action: Action,
    pub(super) ops: Ops,
    pub(super) blocks: Option<Range<u64>>,
    pub(super) skip: u64,
    pub(super) every: u64,
    pub(super) count: u64,
    pub(super) probability: f64,
    pub(super) rng: Rng,
}

impl Rule {
    /// A rule for every I/O.
    pub fn new(action: Action) -> Self {
        Self {
            action,
            ops: Ops::all(),
            blocks: None,
            skip: 0,
            every: 1,
            count: u64::MAX,
            probability: 1.0,
            rng: Rng(0),
        }
    }

    /// Only for these operations.
    pub fn on(mut self, ops: Ops) -> Self {
        self.ops = ops;
        self
    }

    /// Only for I/Os that touch one of these blocks (so never for a flush).
    pub fn blocks(mut self, blocks: Range<u64>) -> Self {
        self.blocks = Some(blocks);
        self
    }

    /// Not for the first `n` that match.
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Only for each `n`th that matches, the first one included (0 is taken for 1).
    pub fn every(mut self, n: u64) -> Self {
        self.every = n.max(1);
        self
    }

    /// For `n` I/Os at most.
    pub fn count(mut self, n: u64) -> Self {
        self.count = n;
        self
    }

    /// Only for this share (0 to 1) of those that match, by chance; the same `seed` makes the same choice. (The
    /// order of a [`Action::Reorder`] comes from it too.)
    pub fn probability(mut self, probability: f64, seed: u64) -> Self {
        self.probability = probability;
        self.rng = Rng(seed);
        self
    }

    /// Whether operation and range match.
    pub(super) fn covers(&self, io: &Io) -> bool {
        let range = match &self.blocks {
            None => true,
            Some(_) if io.op == Op::Flush => false,
            Some(range) => {
                let end = io.lba.saturating_add(io.blocks.max(1));
                io.lba < range.end && range.start < end
            }
        };
        range && self.ops.contains(io.op.into())
    }
}
