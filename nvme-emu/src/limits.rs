//! [`Limiter`]: how many commands and bytes a second a namespace or a controller may move.
//!
//! A leaky bucket (GCRA) told as a debt: each bucket is one atomic word, the time at which what was started so far is
//! paid for. A command may start while no more than the burst is owed; starting it adds its cost. So a command
//! that is larger than the burst passes, and is paid afterwards. Several threads charge one limiter without locks;
//! each can be one command ahead of the others, and nothing is lost or counted twice.
//!
//! Leaves out who waits, and how: callers ask [`Limiter::earliest`] and come again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// How much of its rate a disk that was quiet may use at once, if nothing else is said.
pub const DEFAULT_BURST: Duration = Duration::from_millis(100);

/// What may be owed beyond the burst when limits change: a debt that was made at another rate ends soon.
const CARRIED_OVER: Duration = Duration::from_secs(1);

/// Ticks in a nanosecond: times are counted in quarters, with which 64 bits last for 146 years.
const TICKS: u64 = 4;
/// Ticks in a second.
const TICKS_PER_SECOND: u64 = TICKS * 1_000_000_000;
/// Bits of a cost below one tick.
const FRACTION: u32 = 32;

/// Limits of a namespace or a controller; `None` is no limit. A command needs room in all that concern it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Commands a second.
    pub iops: Option<u64>,
    /// Reads a second.
    pub read_iops: Option<u64>,
    /// Commands a second that are not reads.
    pub write_iops: Option<u64>,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Bytes read a second.
    pub read_bandwidth: Option<u64>,
    /// Bytes written a second.
    pub write_bandwidth: Option<u64>,
    /// How much time's worth of its rates may be used at once after a pause.
    pub burst: Duration,
}

impl Default for Limits {
    /// None at all.
    fn default() -> Self {
        Self {
            iops: None,
            read_iops: None,
            write_iops: None,
            bandwidth: None,
            read_bandwidth: None,
            write_bandwidth: None,
            burst: DEFAULT_BURST,
        }
    }
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.rates() == [None; 6]
    }

    /// In the order of [`Limiter::buckets`].
    fn rates(&self) -> [Option<u64>; 6] {
        [
            self.iops,
            self.read_iops,
            self.write_iops,
            self.bandwidth,
            self.read_bandwidth,
            self.write_bandwidth,
        ]
    }
}

/// Enforces [`Limits`] for all threads that share it. Times are nanoseconds of one monotonic clock, which callers
/// read as often as they see fit.
#[derive(Debug)]
pub struct Limiter {
    /// What was set: for those who ask, and so that two who set take turns. Not of the data path.
    set: Mutex<Limits>,
    limited: AtomicBool,
    /// Ticks.
    burst: AtomicU64,
    /// Commands: all, reads, writes; bytes: all, read, written.
    buckets: [Bucket; 6],
}

/// One rate.
#[derive(Debug, Default)]
struct Bucket {
    /// What one command or byte costs: ticks, with [`FRACTION`] bits below. 0: there is no limit.
    cost: AtomicU64,
    /// The tick at which the debt is paid.
    paid: AtomicU64,
    /// The rate or the burst has changed and the debt was not yet looked at.
    changed: AtomicBool,
}

impl Limiter {
    /// A limiter that nobody owes anything.
    pub fn new(limits: Limits) -> Self {
        let limiter = Self {
            set: Mutex::default(),
            limited: AtomicBool::new(false),
            burst: AtomicU64::new(0),
            buckets: Default::default(),
        };
        limiter.set(limits);
        limiter
    }

    /// Changes the limits. What is owed stays owed, but where the rate changes or the burst gets shorter for no longer
    /// than a second and the burst.
    pub fn set(&self, limits: Limits) {
        let mut set = self.locked();
        let burst = ticks(limits.burst);
        // What was owed within the burst is owed beyond it now.
        let shorter = self.burst.swap(burst, Relaxed) > burst;
        for (bucket, rate) in self.buckets.iter().zip(limits.rates()) {
            let cost = rate.map_or(0, cost_of_one);
            if bucket.cost.swap(cost, Relaxed) != cost || shorter {
                bucket.changed.store(true, Relaxed);
            }
        }
        self.limited.store(!limits.is_unlimited(), Relaxed);
        *set = limits;
    }

    /// The limits of now.
    pub fn limits(&self) -> Limits {
        self.locked().clone()
    }

    /// Whether there is any limit. One load.
    pub fn is_limited(&self) -> bool {
        self.limited.load(Relaxed)
    }

    /// When a command may start: at once if that is not after `now`, else look again then. (Others may have
    /// been faster by that time.)
    pub fn earliest(&self, write: bool, now: u64) -> u64 {
        let burst = self.burst.load(Relaxed);
        let now = now.saturating_mul(TICKS);
        let paid = concerned(write).into_iter().map(|index| self.buckets[index].paid(now, burst)).max();
        paid.unwrap_or(0).saturating_sub(burst).div_ceil(TICKS)
    }

    /// A command of so many bytes starts.
    pub fn charge(&self, write: bool, bytes: u64, now: u64) {
        let now = now.saturating_mul(TICKS);
        for (index, amount) in concerned(write).into_iter().zip([1, 1, bytes, bytes]) {
            self.buckets[index].charge(amount, now, &self.burst);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Limits> {
        self.set.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The buckets of a read or a write: first those that count commands.
fn concerned(write: bool) -> [usize; 4] {
    let own = 1 + usize::from(write);
    [0, own, 3, 3 + own]
}

impl Bucket {
    /// The tick at which the debt is paid; 0 without a limit.
    fn paid(&self, now: u64, burst: u64) -> u64 {
        if self.cost.load(Relaxed) == 0 {
            return 0;
        }
        if self.changed.load(Relaxed) {
            self.forgive(now, burst);
        }
        self.paid.load(Relaxed)
    }

    /// Makes a debt at the rate of before bearable.
    #[cold]
    fn forgive(&self, now: u64, burst: u64) {
        if self.changed.swap(false, Relaxed) {
            let most = now.saturating_add(burst).saturating_add(ticks(CARRIED_OVER));
            self.paid.fetch_min(most, Relaxed);
        }
    }

    fn charge(&self, amount: u64, now: u64, burst: &AtomicU64) {
        let cost = u128::from(self.cost.load(Relaxed)) * u128::from(amount);
        if cost == 0 {
            return;
        }
        let whole = u64::try_from(cost >> FRACTION).unwrap_or(u64::MAX);
        let fraction = cost as u32;
        if self.changed.load(Relaxed) {
            self.forgive(now, burst.load(Relaxed));
        }
        let mut paid = self.paid.load(Relaxed);
        loop {
            let from = paid.max(now);
            // What is below a tick is rounded by chance, up as often as it has to be: exact in the long run,
            // without a place to keep remainders in. The chance comes from the time, which does not repeat.
            let up = u64::from(chance(from) < fraction);
            let to = from.saturating_add(whole).saturating_add(up);
            match self.paid.compare_exchange_weak(paid, to, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => paid = other,
            }
        }
    }
}

/// What one command or byte costs at `rate` a second; never 0, which means that there is no limit.
fn cost_of_one(rate: u64) -> u64 {
    let cost = (u128::from(TICKS_PER_SECOND) << FRACTION) / u128::from(rate.max(1));
    u64::try_from(cost).unwrap_or(u64::MAX).max(1)
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).saturating_mul(TICKS)
}

/// A number that looks random, from another: the end of MurmurHash3, which mixes every bit into every other.
fn chance(seed: u64) -> u32 {
    let mixed = (seed ^ (seed >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    (mixed >> 32) as u32
}

#[cfg(test)]
mod tests;
