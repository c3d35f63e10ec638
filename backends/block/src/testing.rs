//! Helpers for tests of devices and of what uses them: buffers that make [`Io`]s, a way to run many at once, a
//! small random source. Nothing here is used by the program itself.

mod cas;
mod power;

use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::Poll;

use crate::{AlignedBuf, Channel, Error, Io, Op, Segment};

pub use cas::CasDevice;
pub use power::{Failure, PowerDevice};

/// Memory that plays the guest: shared by handles and by the [`Io`]s made from it, freed when all are gone.
#[derive(Clone)]
pub struct Buffer {
    memory: Rc<AlignedBuf>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeroed bytes at a page's start.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn new(len: usize) -> Self {
        Self::at(0, len)
    }

    /// `len` zeroed bytes that start `offset` bytes into a page.
    ///
    /// # Panics
    /// If there is no memory.
    pub fn at(offset: usize, len: usize) -> Self {
        let memory = AlignedBuf::new(offset + len, 4096).expect("memory for a test buffer");
        Self { memory: Rc::new(memory), start: offset, len }
    }

    /// A buffer with a copy of `bytes`.
    pub fn with(bytes: &[u8]) -> Self {
        let buffer = Self::new(bytes.len());
        buffer.set(0, bytes);
        buffer
    }

    /// Overwrites bytes from `offset` on.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn set(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        self.segment(offset, bytes.len()).write(0, bytes);
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.segment(0, self.len).read(0, &mut bytes);
        bytes
    }

    /// Whether an `Io`, the kernel or another handle holds it too.
    pub fn is_shared(&self) -> bool {
        Rc::strong_count(&self.memory) > 1
    }

    fn segment(&self, offset: usize, len: usize) -> Segment {
        assert!(offset + len <= self.len);
        let ptr = self.memory.as_ptr().wrapping_add(self.start + offset);
        let ptr = NonNull::new(ptr).unwrap_or(NonNull::dangling());
        // SAFETY: inside of the allocation (asserted), which the guard of every `Io` made here keeps (or the
        // borrow of `self`, for the segments that do not leave this module). No reference to its bytes is ever
        // made: the `AlignedBuf` is only asked for its address.
        unsafe { Segment::new(ptr, len) }
    }

    /// An `Io` whose only segment is this buffer (none for operations without data).
    pub fn io(&self, op: Op, lba: u64, blocks: u64) -> Io {
        self.io_cut(op, lba, blocks, &[])
    }

    /// An `Io` over this buffer cut into segments of these lengths, and of what is left of it.
    ///
    /// # Panics
    /// If the cuts are longer than the buffer.
    pub fn io_cut(&self, op: Op, lba: u64, blocks: u64, cuts: &[usize]) -> Io {
        let mut segments = Vec::new();
        let mut at = 0;
        if matches!(op, Op::Read | Op::Write | Op::CompareAndWrite) {
            for len in cuts.iter().copied() {
                segments.push(self.segment(at, len));
                at += len;
            }
            if at < self.len || segments.is_empty() {
                segments.push(self.segment(at, self.len - at));
            }
        }
        Io::new(op, lba, blocks, segments, Some(self.memory.clone()), 0)
    }
}

/// An `Io` without data.
pub fn plain(op: Op, lba: u64, blocks: u64) -> Io {
    Io::new(op, lba, blocks, Vec::new(), None, 0)
}

/// Submits and waits.
pub async fn run(channel: &dyn Channel, io: Io) -> Result<(), Error> {
    channel.submit(io).wait().await.result
}

/// Reads `blocks` blocks of `block_size` bytes.
pub async fn read(channel: &dyn Channel, block_size: u32, lba: u64, blocks: u64) -> Result<Vec<u8>, Error> {
    let buffer = Buffer::new(blocks as usize * block_size as usize);
    run(channel, buffer.io(Op::Read, lba, blocks)).await?;
    Ok(buffer.to_vec())
}

/// Writes `bytes`, whole blocks of `block_size` bytes.
pub async fn write(channel: &dyn Channel, block_size: u32, lba: u64, bytes: &[u8]) -> Result<(), Error> {
    run(channel, Buffer::with(bytes).io(Op::Write, lba, bytes.len() as u64 / u64::from(block_size))).await
}

/// Compares whole blocks of `block_size` bytes with `old`, and writes `new` if they are equal.
pub async fn compare_and_write(
    channel: &dyn Channel,
    block_size: u32,
    lba: u64,
    old: &[u8],
    new: &[u8],
) -> Result<(), Error> {
    let blocks = old.len() as u64 / u64::from(block_size);
    run(channel, Buffer::with(&[old, new].concat()).io(Op::CompareAndWrite, lba, blocks)).await
}

/// Runs all `futures` together; their outputs in order.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<Option<Pin<Box<F>>>> = futures.into_iter().map(|f| Some(Box::pin(f))).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            let Some(running) = future else { continue };
            match running.as_mut().poll(cx) {
                Poll::Ready(value) => {
                    *output = Some(value);
                    *future = None;
                }
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

/// Polls a future once: for tests that drop it half-way.
pub async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Tells that a test cannot run here, for want of `what`. The test ends after this as if it had passed; `cargo xtask
/// test` names a file in QUARRY_SKIPS and counts the lines in it.
pub fn cannot_run(what: &str) {
    eprintln!("cannot run: {what}");
    if let Some(path) = std::env::var_os("QUARRY_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let written =
            file.and_then(|mut file| std::io::Write::write_all(&mut file, format!("{what}\n").as_bytes()));
        written.expect("what cannot run is told");
    }
}

/// A small random source (SplitMix64): the same numbers from the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end` (0 if that is 0).
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
