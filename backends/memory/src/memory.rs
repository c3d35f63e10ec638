//! [`MemoryDevice`]: a RAM disk.

use std::sync::Arc;

use block::future::yield_now;
use block::{
    Abilities, Channel, Completed, Device, Error, ErrorKind, Info, Io, IoFuture, Op, Reactor, Submission,
};

use crate::map::Map;

/// Bytes that are zeroed at once before other work of the thread gets its turn (some 25 us of freeing pages).
const STEP: usize = 1 << 20;
/// Zeroes below this many bytes are written: getting fresh pages costs more than keeping them.
const GIVE_BACK: usize = 64 << 10;

/// Up to so many bytes are worth a hint. (Measured: it takes a third off the time of 4 KiB.)
const PREFETCHED: usize = 8 << 10;
/// Of more only the first ones: the processor sees by itself how a copy goes on. (Measured: 3 % off the time of 128 KiB.)
const HEAD: usize = 2 << 10;

/// A RAM disk: sparse (memory is taken where it is written), gone with the process.
///
/// Reads and writes complete on the spot. Overlapping I/Os of several threads are allowed and may tear, as on any
/// disk. Memory is not reserved: a machine that runs out of it kills a process, so sum up what is configured.
pub struct MemoryDevice {
    map: Arc<Map>,
    info: Info,
}

/// Whether a disk's memory is in huge pages: a third faster for small reads at random places, but then what is written
/// first in each 2 MiB takes up all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// If all of the disk fits into half of the memory that is available now.
    #[default]
    Auto,
    /// Where the kernel has them.
    On,
    /// Never.
    Off,
}

impl HugePages {
    fn are_wanted(self, size: u64) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Auto => size <= available_memory() / 2,
        }
    }
}

/// Bytes that programs can still have without swapping (proc(5), MemAvailable).
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
    kib.unwrap_or(0u64).saturating_mul(1024)
}

impl MemoryDevice {
    /// A disk of `size` bytes in blocks of 512 bytes.
    pub fn new(size: u64) -> Result<Self, Error> {
        Self::with_block_size(size, 512)
    }

    /// A disk of `size` bytes in blocks of `block_size` bytes.
    pub fn with_block_size(size: u64, block_size: u32) -> Result<Self, Error> {
        Self::with_pages(size, block_size, HugePages::default())
    }

    /// The same, in huge pages or not.
    pub fn with_pages(size: u64, block_size: u32, pages: HugePages) -> Result<Self, Error> {
        let blocks = crate::blocks(size, block_size)?;
        let map = Arc::new(Map::new(size, pages.are_wanted(size))?);
        let mut info = Info::new(block_size, blocks);
        info.preferred_granularity = (4096 / block_size).max(1);
        info.discard_granularity = info.preferred_granularity;
        info.abilities =
            Abilities::WRITE | Abilities::DISCARD | Abilities::WRITE_ZEROES | Abilities::DISCARD_ZEROES;
        Ok(Self { map, info })
    }
}

impl Device for MemoryDevice {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn channel(&self, _: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(MemoryChannel { map: self.map.clone(), info: self.info.clone() }))
    }
}

struct MemoryChannel {
    map: Arc<Map>,
    info: Info,
}

impl Channel for MemoryChannel {
    fn prefetch(&self, op: Op, lba: u64, blocks: u64) {
        let block_size = u64::from(self.info.block_size);
        let bytes = usize::try_from(blocks.saturating_mul(block_size)).unwrap_or(usize::MAX);
        if let Ok(offset) = usize::try_from(lba.saturating_mul(block_size)) {
            self.map.prefetch(op, offset, if bytes <= PREFETCHED { bytes } else { HEAD });
        }
    }

    fn prefetches(&self) -> bool {
        true
    }

    /// Reads and writes are over when they are submitted.
    fn keeps_segments(&self) -> bool {
        false
    }

    fn submit(&self, io: Io) -> Submission {
        if let Err(error) = io.check(&self.info) {
            return Submission::Done(io.complete(Err(error)));
        }
        if io.op == Op::Flush {
            return Submission::Done(io.complete(Ok(())));
        }
        let block_size = u64::from(self.info.block_size);
        // Inside of the mapping by `check`, so these fit a `usize`.
        let (offset, len) = ((io.lba * block_size) as usize, (io.blocks * block_size) as usize);
        match io.op {
            Op::Read => Submission::Done(copy(io, offset, |at, segment| self.map.read(at, segment))),
            Op::Write => Submission::Done(copy(io, offset, |at, segment| self.map.write(at, segment))),
            Op::Discard | Op::WriteZeroes if len <= STEP => {
                self.map.zero(offset, len, GIVE_BACK);
                Submission::Done(io.complete(Ok(())))
            }
            Op::Discard | Op::WriteZeroes => {
                Submission::Pending(IoFuture::new(zero(self.map.clone(), io, offset, len)))
            }
            _ => Submission::Done(io.complete(Err(ErrorKind::Unsupported.into()))),
        }
    }
}

fn copy(io: Io, mut offset: usize, each: impl Fn(usize, &block::Segment) -> bool) -> Completed {
    for segment in io.segments() {
        if !each(offset, segment) {
            return io.complete(Err(ErrorKind::OutOfRange.into()));
        }
        offset += segment.len();
    }
    io.complete(Ok(()))
}

async fn zero(map: Arc<Map>, io: Io, offset: usize, len: usize) -> Completed {
    let mut done = 0;
    while done < len {
        let step = STEP.min(len - done);
        map.zero(offset + done, step, GIVE_BACK);
        done += step;
        yield_now().await;
    }
    io.complete(Ok(()))
}
