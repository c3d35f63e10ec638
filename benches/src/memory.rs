//! [`Memory`]: a mapping to copy to and from, as the server has them.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Mapped bytes, all of whose pages exist. Unmapped on drop.
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value and is not bound to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared access is through atomics only; copies need `&mut`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Private anonymous memory: what the server's memory device is made of.
    ///
    /// # Errors
    /// The system refuses.
    pub fn private(len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // As the server does where there is room for it. A kernel without huge pages refuses, which is all right.
        // SAFETY: our own mapping; how its pages are made changes nothing of their contents.
        let _ = unsafe { rustix::mm::madvise(base, len, rustix::mm::Advice::LinuxHugepage) };
        Self::touched(base.cast(), len)
    }

    /// A memfd: what guest memory is made of.
    ///
    /// # Errors
    /// The system refuses.
    pub fn shared(len: usize) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("quarry-bench", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        // SAFETY: as above.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        Self::touched(base.cast(), len)
    }

    fn touched(base: *mut u8, len: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: `len` writable bytes were just mapped at `base`.
        unsafe { std::ptr::write_bytes(base.as_ptr(), 0xA5, len) };
        Ok(Self { base, len })
    }

    /// Copies `bytes` from `offset` of `self` to `to_offset` of `to`, as the server does: plain bytes.
    #[inline(always)]
    pub fn copy_to(&self, offset: usize, to: &mut Self, to_offset: usize, bytes: usize) {
        assert!(offset + bytes <= self.len && to_offset + bytes <= to.len, "inside of both mappings");
        // SAFETY: inside of both as just checked, and two mappings do not overlap.
        unsafe {
            let (from, to) = (self.base.as_ptr().add(offset), to.base.as_ptr().add(to_offset));
            std::ptr::copy_nonoverlapping(from, to, bytes);
        }
    }

    /// `count` quadwords at `offset` (a multiple of 8), to share with another thread. Nobody copies here meanwhile.
    pub fn words(&self, offset: usize, count: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(8) && offset + count * 8 <= self.len, "inside of the mapping");
        // SAFETY: inside as just checked, aligned since mappings begin at a page; copies need `&mut self`, which
        // this borrow excludes.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), count) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nothing borrowed from `self` outlives it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
