//! [`Device`] and [`Channel`]: what a block device is, and a reactor's own way into it.

use std::sync::Arc;

use crate::{Completed, Error, Io, IoFuture, Listener, Op, Reactor, Security};

/// Geometry and abilities of a device at this moment (a resize changes `blocks`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Bytes in a block: a power of two, 512 to 65536.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// The unit, in blocks, in which reads and writes are fastest (a power of two; 1 where it does not matter).
    pub preferred_granularity: u32,
    /// Blocks written at once are seen wholly or not at all after a power failure (at least 1).
    pub atomic_write_blocks: u32,
    /// The unit, in blocks, in which discards give space back (at least 1).
    pub discard_granularity: u32,
    /// The most blocks of one [`Op::CompareAndWrite`]; 0 without the ability.
    pub compare_and_write_blocks: u32,
    /// Operations and guarantees.
    pub abilities: Abilities,
}

impl Info {
    /// A plain device of `blocks` blocks of `block_size` bytes without any special ability.
    pub fn new(block_size: u32, blocks: u64) -> Self {
        Self {
            block_size,
            blocks,
            preferred_granularity: 1,
            atomic_write_blocks: 1,
            discard_granularity: 1,
            compare_and_write_blocks: 0,
            abilities: Abilities::empty(),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }
}

bitflags::bitflags! {
    /// What a device can do besides reading.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Abilities: u32 {
        /// Accepts writes.
        const WRITE = 1 << 0;
        /// Acknowledged writes may be lost in a power failure until a flush (NVMe VWC).
        const VOLATILE_CACHE = 1 << 1;
        /// Has discard.
        const DISCARD = 1 << 2;
        /// Has write zeroes.
        const WRITE_ZEROES = 1 << 3;
        /// A discarded range reads as zeroes.
        const DISCARD_ZEROES = 1 << 4;
        /// Has compare and write, for [`Info::compare_and_write_blocks`] blocks at once.
        const COMPARE_AND_WRITE = 1 << 5;
    }
}

/// A block device, shared by all threads.
///
/// Ranges that reach a device come from a guest: a device must answer any range, length or segment list with
/// an error, never a panic. Every device of this repository passes `block::conformance`.
pub trait Device: Send + Sync + 'static {
    /// Geometry and abilities.
    fn info(&self) -> Info;

    /// Has `listener` called after what [`Self::info`] returns has changed: on any thread, perhaps without a change, and
    /// where it may call [`Self::info`] and drop the device. It is kept as long as the device: it must not keep alive
    /// what it tells. A layer passes it on to what is below.
    fn on_change(&self, listener: Listener) {
        drop(listener); // the geometry never changes
    }

    /// What the data is known by wherever it is attached, if that is more than its place in a configuration: disks over it
    /// get the same UUID everywhere. A layer that passes data through passes this on.
    fn identity(&self) -> Option<String> {
        None
    }

    /// The security subsystem that this device is, or stands on: a layer passes it on.
    fn security(&self) -> Option<Arc<dyn Security>> {
        None
    }

    /// Opens the calling reactor's own way in. Cheap enough to be called per controller and reactor.
    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error>;
}

/// One reactor's way into a device: not `Send`, takes no locks to read or write.
pub trait Channel {
    /// Starts an `Io`. The channel never blocks the thread; what cannot be done at once goes into the future.
    ///
    /// Dropping the future cancels the `Io` as far as it can be cancelled. Whatever goes on even then (in the
    /// kernel, in a library) and can touch memory or change what is on the medium holds the `Io`'s guard until it is
    /// over, zeroes and discards too: the submitter learns by it when a cancelled `Io` can no longer do harm. A device
    /// that cannot tell when that will be does no harm from the start: it uses memory of its own, and has what is
    /// submitted later to the same blocks wait. Then the guard goes with the future.
    fn submit(&self, io: Io) -> Submission;

    /// An `Io` on these blocks follows soon: a channel that copies can have the memory on its way. A hint, with a range
    /// that nobody has checked. Called only if [`Self::prefetches`] says so.
    fn prefetch(&self, op: Op, lba: u64, blocks: u64) {
        let _ = (op, lba, blocks);
    }

    /// Whether [`Self::prefetch`] is of any use.
    fn prefetches(&self) -> bool {
        false
    }

    /// Whether segments may be touched after [`Self::submit`] has returned. A channel that answers `false` gets its reads
    /// and writes without a guard, and completes them on the spot or not at all.
    fn keeps_segments(&self) -> bool {
        true
    }
}

/// How a channel answered.
#[must_use = "a submitted Io is completed here or by this future"]
pub enum Submission {
    /// Completed on the spot.
    Done(Completed),
    /// Will complete when this future resolves; nothing happens unless it is polled. Its waker may be called by
    /// any thread, at any time.
    Pending(IoFuture),
}

impl Submission {
    /// The completion, now or when it comes: for layers over other channels, and tests.
    pub async fn wait(self) -> Completed {
        match self {
            Self::Done(completed) => completed,
            Self::Pending(future) => future.await,
        }
    }
}
