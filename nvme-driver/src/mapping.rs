//! [`Mapping`]: memory shared with another process, seen as atomics only.
//!
//! The other side writes whenever it likes, so nothing here gives out a reference to plain bytes.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

/// A shared, readable and writable mapping of a descriptor. Unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only reached through atomics, and the mapping lives until the last owner drops it.
unsafe impl Send for Mapping {}
// SAFETY: as above: every access is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` (a multiple of the page size) of `fd`.
    pub(crate) fn new(fd: impl AsFd, offset: u64, len: usize) -> rustix::io::Result<Self> {
        // SAFETY: the kernel chooses the address, so no existing memory is touched; the result is owned by `Self`.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }?;
        Ok(Self { base: NonNull::new(base.cast()).expect("mmap never returns null"), len })
    }

    /// The mapping's size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn check(&self, offset: usize, bytes: usize, align: usize) -> NonNull<u8> {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.len) && offset.is_multiple_of(align),
            "offset {offset:#x} + {bytes:#x} (align {align}) in a mapping of {:#x} bytes",
            self.len
        );
        // SAFETY: `offset` lies within the mapping, as just checked.
        unsafe { self.base.add(offset) }
    }

    /// The bytes at `offset`.
    #[inline]
    pub(crate) fn bytes(&self, offset: usize, count: usize) -> &[AtomicU8] {
        let base = self.check(offset, count, 1);
        // SAFETY: in bounds; the memory is mapped as long as `self` lives, and is only accessed atomically.
        unsafe { std::slice::from_raw_parts(base.as_ptr().cast(), count) }
    }

    /// The dword at `offset`, a multiple of 4.
    #[inline]
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        let base = self.check(offset, 4, 4);
        // SAFETY: in bounds and aligned (mappings begin at a page); as in `bytes`.
        unsafe { base.cast().as_ref() }
    }

    /// `count` quadwords at `offset`, a multiple of 8.
    #[inline]
    pub(crate) fn u64s(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let base = self.check(offset, count * 8, 8);
        // SAFETY: in bounds and aligned; as in `bytes`.
        unsafe { std::slice::from_raw_parts(base.as_ptr().cast(), count) }
    }

    /// Splits a byte range into unaligned head, quadwords and tail.
    fn parts(offset: usize, len: usize) -> (usize, usize, usize) {
        let head = (offset.next_multiple_of(8) - offset).min(len);
        let words = (len - head) / 8;
        (head, words, len - head - words * 8)
    }

    /// Copies `data` in.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        let (head, words, tail) = Self::parts(offset, data.len());
        let (first, rest) = data.split_at(head);
        let (middle, last) = rest.split_at(words * 8);
        for (to, from) in self.bytes(offset, head).iter().zip(first) {
            to.store(*from, Ordering::Relaxed);
        }
        for (to, from) in
            self.u64s(offset.next_multiple_of(8).min(self.len & !7), words).iter().zip(middle.as_chunks().0)
        {
            to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
        }
        for (to, from) in self.bytes(offset + head + words * 8, tail).iter().zip(last) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    /// Copies out to `data`.
    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        let (head, words, tail) = Self::parts(offset, data.len());
        let (first, rest) = data.split_at_mut(head);
        let (middle, last) = rest.split_at_mut(words * 8);
        for (from, to) in self.bytes(offset, head).iter().zip(first) {
            *to = from.load(Ordering::Relaxed);
        }
        for (from, to) in self
            .u64s(offset.next_multiple_of(8).min(self.len & !7), words)
            .iter()
            .zip(middle.as_chunks_mut().0)
        {
            *to = from.load(Ordering::Relaxed).to_ne_bytes();
        }
        for (from, to) in self.bytes(offset + head + words * 8, tail).iter().zip(last) {
            *to = from.load(Ordering::Relaxed);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of the mmap in `new`; nothing borrowed from `self` outlives it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}
