//! [`Io`]: one operation on a block range, its buffers, and the obligation to complete it exactly once.

use std::any::Any;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use crate::{Abilities, Error, ErrorKind, Info};

/// What an [`Io`] does to its block range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// Device to segments.
    Read,
    /// Segments to device.
    Write,
    /// Everything acknowledged before becomes durable. No range, no segments.
    Flush,
    /// The range's contents are no longer needed; it reads as zeroes afterwards or keeps its data. No segments.
    Discard,
    /// The range reads as zeroes afterwards. No segments.
    WriteZeroes,
    /// The range is compared with the first half of the segments' bytes and, if it is equal, written with the second
    /// half: in one step as every other operation on the range sees it. If not, it fails with
    /// [`ErrorKind::CompareMismatch`] and nothing is written.
    CompareAndWrite,
}

bitflags::bitflags! {
    /// How an [`Io`] is to be carried out.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Durable before it completes (NVMe FUA).
        const FUA = 1 << 0;
        /// Fail fast rather than retry long (NVMe LR).
        const LIMITED_RETRY = 1 << 1;
        /// Write zeroes may give the space back (NVMe DEAC).
        const MAY_UNMAP = 1 << 2;
    }
}

/// A piece of memory that a device reads from or writes to: mapped guest memory or a pool buffer.
///
/// Guest memory may change at any moment, so it is never seen through a reference: only by the raw copies
/// here, or by its address in the hands of the kernel. Reachable only through the [`Io`] whose guard keeps
/// it mapped, hence neither `Clone` nor `Copy`.
#[derive(Debug)]
pub struct Segment {
    ptr: NonNull<u8>,
    len: usize,
}

impl Segment {
    /// A segment of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// `ptr..ptr + len` must be mapped, readable and (for a segment of [`Op::Read`]) writable, until the
    /// guard of the `Io` that it is put into is dropped; and no Rust reference to it may exist meanwhile.
    #[inline]
    pub unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len }
    }

    /// Where it starts, for the kernel or a C library. Valid while the `Io` lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `src` into the segment from byte `offset` on; returns how many bytes fitted.
    pub fn write(&self, offset: usize, src: &[u8]) -> usize {
        let n = src.len().min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: `offset + n <= len`, mapped and writable by `new`'s contract; `src` is a distinct
            // Rust slice, so the ranges do not overlap.
            unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), self.ptr.as_ptr().add(offset), n) };
        }
        n
    }

    /// Copies from byte `offset` of the segment into `dst`; returns how many bytes there were.
    pub fn read(&self, offset: usize, dst: &mut [u8]) -> usize {
        let n = dst.len().min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: `offset + n <= len`, mapped and readable by `new`'s contract; `dst` is a distinct,
            // exclusively borrowed Rust slice. The bytes are plain data, so a concurrent writer (the guest)
            // can tear them but not break them.
            unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr().add(offset), dst.as_mut_ptr(), n) };
        }
        n
    }

    /// Copies from byte `offset` of the segment to `dst`, at most `len` bytes; returns how many there were.
    ///
    /// # Safety
    /// `dst..dst + len` must be mapped and writable, and not overlap the segment. Like the segment it may be
    /// shared memory: bytes that others write meanwhile arrive torn.
    pub unsafe fn read_raw(&self, offset: usize, dst: *mut u8, len: usize) -> usize {
        let n = len.min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: `offset + n <= len`, mapped and readable by `new`'s contract; `dst` by this one's. Both are
            // only ever moved as bytes, whose values nothing depends on.
            unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr().add(offset), dst, n) };
        }
        n
    }

    /// Copies from `src`, at most `len` bytes, into the segment from byte `offset` on; returns how many fitted.
    ///
    /// # Safety
    /// `src..src + len` must be mapped and readable, and not overlap the segment. Like the segment it may be
    /// shared memory: bytes that others write meanwhile arrive torn.
    pub unsafe fn write_raw(&self, offset: usize, src: *const u8, len: usize) -> usize {
        let n = len.min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: `offset + n <= len`, mapped and writable by `new`'s contract; `src` by this one's. Both are
            // only ever moved as bytes, whose values nothing depends on.
            unsafe { std::ptr::copy_nonoverlapping(src, self.ptr.as_ptr().add(offset), n) };
        }
        n
    }

    /// Fills the segment with zeroes.
    pub fn zero(&self) {
        // SAFETY: mapped and writable by `new`'s contract.
        unsafe { std::ptr::write_bytes(self.ptr.as_ptr(), 0, self.len) };
    }
}

/// Keeps the memory of an [`Io`]'s segments mapped for as long as the `Io` or the kernel may touch it.
pub type Guard = Rc<dyn Any>;

/// One operation on a block range.
///
/// A linear value: whoever holds it must end it with [`Io::complete`]. Dropping it is a defect, which is
/// logged and reported to the submitter through [`take_lost`], so that nothing waits for ever. (A submitter
/// that drops the [`IoFuture`](crate::IoFuture) cancels the `Io` on purpose: it ignores its own lost tags.)
#[derive(Debug)]
pub struct Io {
    /// The operation.
    pub op: Op,
    /// How to carry it out.
    pub flags: Flags,
    /// First block, in blocks of the device. 0 for [`Op::Flush`].
    pub lba: u64,
    /// Number of blocks. 0 for [`Op::Flush`].
    pub blocks: u64,
    tag: u64,
    segments: Vec<Segment>,
    guard: Option<Guard>,
}

impl Io {
    /// An `Io` on blocks `lba..lba + blocks` with its buffers, which `guard` keeps mapped. `tag` is the
    /// submitter's own name for it, seen again only in [`take_lost`].
    #[inline]
    pub fn new(
        op: Op,
        lba: u64,
        blocks: u64,
        segments: Vec<Segment>,
        guard: Option<Guard>,
        tag: u64,
    ) -> Self {
        Self { op, flags: Flags::empty(), lba, blocks, tag, segments, guard }
    }

    /// The same with `flags`.
    #[inline]
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    /// The buffers, in order. Their bytes sum up to `blocks` for reads and writes, to twice that for compare and write.
    #[inline]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What keeps the buffers mapped; a layer that hands them to an inner `Io` clones it.
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// The submitter's name for it.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Bytes in all segments.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len as u64).sum()
    }

    /// Checks the `Io` against a device: its range, its segments, whether the device has the operation at all.
    /// Every device does this first, and may rely on it afterwards: `lba + blocks <= info.blocks`, and the bytes
    /// of reads and writes are `blocks * block_size` (twice that for compare and write), which fits 64 bits. (A flush
    /// has no range: it is ignored.)
    #[inline]
    pub fn check(&self, info: &Info) -> Result<(), Error> {
        // Nearly all are such: one piece of memory for blocks that are there.
        let is_allowed =
            self.op == Op::Read || self.op == Op::Write && info.abilities.contains(Abilities::WRITE);
        if let [segment] = &self.segments[..]
            && is_allowed
            && self.lba <= info.blocks
            && self.blocks <= info.blocks - self.lba
            && self.blocks.checked_mul(u64::from(info.block_size)) == Some(segment.len as u64)
        {
            return Ok(());
        }
        self.check_all(info)
    }

    #[inline(never)]
    fn check_all(&self, info: &Info) -> Result<(), Error> {
        let has = |ability| info.abilities.contains(ability);
        match self.op {
            Op::Read => {}
            Op::Flush if self.segments.is_empty() => return Ok(()),
            Op::Flush => return Err(Error::new(ErrorKind::InvalidInput, "a flush has no segments")),
            Op::Write | Op::WriteZeroes | Op::Discard | Op::CompareAndWrite if !has(Abilities::WRITE) => {
                return Err(Error::new(ErrorKind::ReadOnly, "the device is read-only"));
            }
            Op::WriteZeroes if !has(Abilities::WRITE_ZEROES) => {
                return Err(Error::new(ErrorKind::Unsupported, "the device has no write zeroes"));
            }
            Op::Discard if !has(Abilities::DISCARD) => {
                return Err(Error::new(ErrorKind::Unsupported, "the device has no discard"));
            }
            Op::CompareAndWrite if !has(Abilities::COMPARE_AND_WRITE) => {
                return Err(Error::new(ErrorKind::Unsupported, "the device has no compare and write"));
            }
            Op::Write | Op::WriteZeroes | Op::Discard | Op::CompareAndWrite => {}
        }
        if self.lba.checked_add(self.blocks).is_none_or(|end| end > info.blocks) {
            return Err(Error::new(ErrorKind::OutOfRange, "the range ends beyond the device"));
        }
        if self.op == Op::CompareAndWrite && self.blocks > u64::from(info.compare_and_write_blocks) {
            return Err(Error::new(ErrorKind::InvalidInput, "too many blocks to compare and write at once"));
        }
        let range = self.blocks.checked_mul(u64::from(info.block_size));
        let expected = match self.op {
            Op::Read | Op::Write => range,
            Op::CompareAndWrite => range.and_then(|bytes| bytes.checked_mul(2)),
            _ => Some(0),
        };
        if expected != Some(self.bytes()) {
            return Err(Error::new(ErrorKind::InvalidInput, "the segments do not make up the range"));
        }
        Ok(())
    }

    /// Copies `src` into the segments, from their byte `offset` on as if they were one; returns how many bytes
    /// fitted.
    pub fn scatter(&self, offset: usize, src: &[u8]) -> usize {
        self.each(offset, src.len(), |segment, at, done| segment.write(at, &src[done..]))
    }

    /// Copies from the segments into `dst`, from their byte `offset` on as if they were one; returns how many
    /// bytes there were.
    pub fn gather(&self, offset: usize, dst: &mut [u8]) -> usize {
        self.each(offset, dst.len(), |segment, at, done| segment.read(at, &mut dst[done..]))
    }

    /// Walks over `len` bytes of the segments from `offset` on. `copy` gets a segment, where to start in it, and
    /// how many bytes are done, and returns how many it did.
    fn each(
        &self,
        offset: usize,
        len: usize,
        mut copy: impl FnMut(&Segment, usize, usize) -> usize,
    ) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for segment in &self.segments {
            if done == len {
                break;
            }
            if skip >= segment.len {
                skip -= segment.len;
                continue;
            }
            done += copy(segment, skip, done);
            skip = 0;
        }
        done
    }

    /// Ends the `Io`. The token goes back to the submitter, by return value or as the future's output.
    #[inline]
    pub fn complete(mut self, result: Result<(), Error>) -> Completed {
        let segments = std::mem::take(&mut self.segments);
        let guard = self.guard.take();
        std::mem::forget(self); // its only owned parts were moved out above
        drop(guard);
        Completed { result, segments }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // A thread that ends has no list any more, and nobody to read it.
        let _ = LOST.try_with(|lost| lost.borrow_mut().push(self.tag));
    }
}

/// Proof that an [`Io`] was completed, its result, and its segment storage for reuse.
#[derive(Debug)]
#[must_use = "the submitter waits for it"]
pub struct Completed {
    /// How it ended.
    pub result: Result<(), Error>,
    segments: Vec<Segment>,
}

impl Completed {
    /// The segments of the `Io`, for a layer that goes on with what was read into them.
    ///
    /// # Safety
    /// Nothing here keeps their memory: the caller holds a clone of the `Io`'s guard, or is still in the `submit` of a channel
    /// that got the `Io` and whose submitter keeps it mapped for so long. The same holds for what is made of the segments.
    #[inline]
    pub unsafe fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The emptied segment storage, to be filled again without an allocation.
    pub fn into_storage(self) -> Vec<Segment> {
        self.into_parts().1
    }

    /// The result, and the emptied segment storage.
    #[inline]
    pub fn into_parts(self) -> (Result<(), Error>, Vec<Segment>) {
        let mut segments = self.segments;
        segments.clear();
        (self.result, segments)
    }
}

thread_local! {
    static LOST: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Tags of the `Io`s that were dropped on this thread without completion since the last call, of those whose
/// tag has `owner` in its upper 32 bits. The submitter ends those it still waits for with an internal error and
/// logs the defect. A layer gives the `Io`s that it makes the tag of the one it serves.
pub fn take_lost(owner: u32) -> Vec<u64> {
    LOST.with_borrow_mut(|lost| {
        if lost.is_empty() {
            return Vec::new(); // nearly always
        }
        lost.extract_if(.., |tag| (*tag >> 32) as u32 == owner).collect()
    })
}
