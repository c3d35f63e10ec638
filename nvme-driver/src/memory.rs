//! [`Arena`]: host memory that a device can be given, and [`DmaBuffer`]: a piece of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::{Error, Result};
use crate::mapping::Mapping;

/// The memory page of this driver (CC.MPS = 0) and the unit of allocation.
pub const PAGE: usize = 4096;

/// One memfd, mapped here, with the address at which the device sees it. Not mapped for any device by itself:
/// see [`crate::Controller::map`].
#[derive(Debug)]
pub struct Arena {
    fd: OwnedFd,
    mapping: Mapping,
    iova: u64,
    free: Mutex<FreePages>,
}

impl Arena {
    /// `len` bytes (rounded up to pages), all zero, that devices will see at `iova`.
    pub fn new(len: usize, iova: u64) -> Result<Arc<Self>> {
        let len = len.next_multiple_of(PAGE);
        let fd = rustix::fs::memfd_create("nvme-driver", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        let mapping = Mapping::new(&fd, 0, len)?;
        Ok(Arc::new(Self { fd, mapping, iova, free: Mutex::new(FreePages::new(len / PAGE)) }))
    }

    /// The address of its first byte, as devices see it.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never: arenas have at least a page.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Allocates `len` bytes in contiguous pages. The contents are those of before.
    pub fn alloc(self: &Arc<Self>, len: usize) -> Result<DmaBuffer> {
        let pages = len.div_ceil(PAGE).max(1);
        let first = self.pages().take(pages).ok_or(Error::NoMemory(len))?;
        Ok(DmaBuffer { arena: Arc::clone(self), offset: first * PAGE, len, pages })
    }

    /// Allocates as [`Self::alloc`] does, and fills with zeroes.
    pub fn alloc_zeroed(self: &Arc<Self>, len: usize) -> Result<DmaBuffer> {
        let buffer = self.alloc(len)?;
        buffer.fill(0);
        Ok(buffer)
    }

    /// The whole arena as one buffer, to look at: what others have allocated from it overlaps.
    pub fn whole(self: &Arc<Self>) -> DmaBuffer {
        DmaBuffer { arena: Arc::clone(self), offset: 0, len: self.len(), pages: 0 }
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, FreePages> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Contiguous memory of an [`Arena`], page aligned for the device. Goes back on drop.
///
/// The device may change it at any moment: it is read and written by copies only.
#[derive(Debug)]
pub struct DmaBuffer {
    arena: Arc<Arena>,
    offset: usize,
    len: usize,
    pages: usize,
}

impl DmaBuffer {
    /// Its address for the device.
    pub fn iova(&self) -> u64 {
        self.arena.iova.wrapping_add(self.offset as u64)
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it was allocated.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    fn at(&self, offset: usize, len: usize) -> usize {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of a buffer of {}",
            self.len
        );
        self.offset + offset
    }

    /// Copies `data` to `offset`.
    pub fn write(&self, offset: usize, data: &[u8]) {
        self.arena.mapping.write(self.at(offset, data.len()), data);
    }

    /// Copies from `offset` to `data`.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        self.arena.mapping.read(self.at(offset, data.len()), data);
    }

    /// A copy of `len` bytes at `offset`.
    pub fn to_vec(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.read(offset, &mut data);
        data
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        let chunk = [byte; PAGE];
        for offset in (0..self.len).step_by(PAGE) {
            self.write(offset, &chunk[..PAGE.min(self.len - offset)]);
        }
    }

    /// Writes a value's bytes to `offset`.
    pub fn put<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.write(offset, value.as_bytes());
    }

    /// Reads a value from `offset`.
    pub fn get<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes());
        value
    }

    /// The dword at `offset`, a multiple of 4.
    #[inline]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        self.arena.mapping.u32(self.at(offset, 4))
    }

    /// `count` quadwords at `offset`, a multiple of 8.
    #[inline]
    pub fn u64s(&self, offset: usize, count: usize) -> &[AtomicU64] {
        self.arena.mapping.u64s(self.at(offset, count * 8), count)
    }

    /// Writes quadwords in host order at `offset`, a multiple of 8.
    #[inline]
    pub(crate) fn put_words<const N: usize>(&self, offset: usize, words: [u64; N]) {
        for (to, from) in self.u64s(offset, N).iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        if self.pages > 0 {
            self.arena.pages().give(self.offset / PAGE, self.pages);
        }
    }
}

/// Free runs of pages, sorted by place, neighbours joined.
#[derive(Debug)]
struct FreePages {
    runs: Vec<(usize, usize)>,
}

impl FreePages {
    fn new(pages: usize) -> Self {
        Self { runs: vec![(0, pages)] }
    }

    fn take(&mut self, pages: usize) -> Option<usize> {
        let at = self.runs.iter().position(|&(_, len)| len >= pages)?;
        let (first, len) = self.runs[at];
        if len == pages {
            self.runs.remove(at);
        } else {
            self.runs[at] = (first + pages, len - pages);
        }
        Some(first)
    }

    fn give(&mut self, first: usize, pages: usize) {
        let at = self.runs.partition_point(|&(start, _)| start < first);
        self.runs.insert(at, (first, pages));
        for left in [at, at.wrapping_sub(1)] {
            if let Some(&(next, len)) = left.checked_add(1).and_then(|right| self.runs.get(right))
                && self.runs[left].0 + self.runs[left].1 == next
            {
                self.runs[left].1 += len;
                self.runs.remove(left + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buffers_are_apart_and_come_back() {
        let arena = Arena::new(16 * PAGE, 0x1000_0000).unwrap();
        let first = arena.alloc(1).unwrap();
        let second = arena.alloc(PAGE + 1).unwrap();
        assert_eq!((first.iova(), second.iova()), (0x1000_0000, 0x1000_1000));
        assert!(arena.alloc(14 * PAGE).is_err());
        drop(first);
        drop(second);
        assert_eq!(arena.alloc(16 * PAGE).unwrap().iova(), 0x1000_0000);
    }

    proptest! {
        #[test]
        fn copies_keep_to_their_bytes(offset in 0usize..100, data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let buffer = Arena::new(PAGE, 0).unwrap().alloc_zeroed(200).unwrap();
            buffer.write(offset, &data);
            prop_assert_eq!(&buffer.to_vec(offset, data.len()), &data);
            prop_assert!(buffer.to_vec(0, offset).iter().all(|&byte| byte == 0));
            let end = offset + data.len();
            prop_assert!(buffer.to_vec(end, 200 - end).iter().all(|&byte| byte == 0));
        }

        #[test]
        fn pages_are_never_given_twice(sizes in proptest::collection::vec((1usize..9, any::<bool>()), 1..60)) {
            let mut free = FreePages::new(64);
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (size, release) in sizes {
                if release && !held.is_empty() {
                    let (first, pages) = held.swap_remove(size % held.len());
                    free.give(first, pages);
                } else if let Some(first) = free.take(size) {
                    prop_assert!(held.iter().all(|&(start, len)| first + size <= start || start + len <= first));
                    held.push((first, size));
                }
                let taken: usize = held.iter().map(|run| run.1).sum();
                let spare: usize = free.runs.iter().map(|run| run.1).sum();
                prop_assert_eq!(taken + spare, 64);
                prop_assert!(free.runs.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
            }
        }
    }
}
