//! [`Map`]: a private anonymous mapping that all threads read and write at once, by raw copies alone.

use std::ptr::NonNull;

use block::{Error, ErrorKind, Op, Segment};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
    page: usize,
}

// SAFETY: the memory belongs to the map until its drop and is not bound to a thread.
unsafe impl Send for Map {}
// SAFETY: no reference to the memory is ever made. Threads that touch the same bytes at once copy them as plain
// bytes, between here and guest memory: they can be torn, as on any disk, and no value is ever computed from them.
unsafe impl Sync for Map {}

impl Map {
    /// `len` bytes that read as zeroes and take up memory only where they are written.
    /// `huge`: in huge pages where the kernel has them, which are whole once a byte of them is written.
    pub(crate) fn new(len: u64, huge: bool) -> Result<Self, Error> {
        let refused = |cause: &dyn std::fmt::Display| {
            let text = format!(
                "cannot map {len} bytes of memory: {cause}; use a smaller size, or raise `ulimit -v`"
            );
            Error::new(ErrorKind::NoSpace, text)
        };
        let len = usize::try_from(len).map_err(|error| refused(&error))?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|error| refused(&error))?;
        if huge {
            // SAFETY: our own mapping; how its pages are made changes nothing of their contents. A kernel without huge
            // pages refuses, which is all right.
            let _ = unsafe { madvise(base, len, Advice::LinuxHugepage) };
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| refused(&"address 0"))?;
        Ok(Self { base, len, page: rustix::param::page_size() })
    }

    /// The address of `len` bytes at `offset`, if they are inside.
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: within the mapping (just checked).
        Some(unsafe { self.base.as_ptr().add(offset) })
    }

    /// Hints that bytes will be copied soon, if they are inside.
    pub(crate) fn prefetch(&self, op: Op, offset: usize, len: usize) {
        match (op, self.at(offset, len)) {
            (Op::Read, Some(at)) => block::prefetch::to_read(at, len),
            (Op::Write, Some(at)) => block::prefetch::to_write(at, len),
            _ => {}
        }
    }

    /// Copies from the map at `offset` into the whole segment. False if that is not all inside.
    pub(crate) fn read(&self, offset: usize, into: &Segment) -> bool {
        let Some(src) = self.at(offset, into.len()) else { return false };
        // SAFETY: mapped and readable; nobody else maps this memory, so no segment overlaps it.
        unsafe { into.write_raw(0, src, into.len()) };
        true
    }

    /// Copies the whole segment to the map at `offset`. False if that is not all inside.
    pub(crate) fn write(&self, offset: usize, from: &Segment) -> bool {
        let Some(dst) = self.at(offset, from.len()) else { return false };
        // SAFETY: mapped and writable; nobody else maps this memory, so no segment overlaps it.
        unsafe { from.read_raw(0, dst, from.len()) };
        true
    }

    /// Makes a range read as zeroes; whole pages of it are given back if there are `give_back` bytes of them.
    pub(crate) fn zero(&self, offset: usize, len: usize, give_back: usize) {
        let Some(start) = self.at(offset, len) else { return };
        let (first, last) = (offset.next_multiple_of(self.page), (offset + len) & !(self.page - 1));
        if last <= first || last - first < give_back {
            // SAFETY: inside of the mapping (`at`), writable.
            unsafe { std::ptr::write_bytes(start, 0, len) };
            return;
        }
        let Some(pages) = self.at(first, last - first) else { return };
        // SAFETY: whole pages of this mapping, which is private and anonymous: they read as zeroes afterwards.
        let given = unsafe { madvise(pages.cast(), last - first, Advice::LinuxDontNeed) };
        // SAFETY: the pieces before, after and (if the kernel refused) between are inside of `offset..offset + len`.
        unsafe {
            std::ptr::write_bytes(start, 0, first - offset);
            std::ptr::write_bytes(self.base.as_ptr().add(last), 0, offset + len - last);
            if given.is_err() {
                std::ptr::write_bytes(pages, 0, last - first);
            }
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping; every channel holds the map, so nobody uses it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
