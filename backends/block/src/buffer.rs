//! [`AlignedBuf`]: memory of this program for O_DIRECT, bounce copies and layers that compute over data.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::{Error, ErrorKind};

/// Zeroed bytes at an aligned address that does not move with the value.
///
/// While the kernel (or another party that holds the address) may write to it, only its address may be used.
#[derive(Debug)]
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: exclusively owned plain bytes, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference gives nothing but shared references to plain bytes.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zeroed bytes (at least 1) at a multiple of `align`, a power of two.
    pub fn new(len: usize, align: usize) -> Result<Self, Error> {
        let layout = Layout::from_size_align(len.max(1), align)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error))?;
        // SAFETY: the layout's size is not 0.
        let ptr = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(ptr)
            .ok_or_else(|| Error::new(ErrorKind::NoSpace, format!("no memory for {len} bytes")))?;
        Ok(Self { ptr, layout })
    }

    /// Its address, for the kernel.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialised at allocation, owned, borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialised at allocation, owned, exclusively borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_refused_when_absurd() {
        let mut buf = AlignedBuf::new(10_000, 4096).unwrap();
        assert_eq!(buf.as_ptr().addr() % 4096, 0);
        assert!(buf.iter().all(|byte| *byte == 0));
        buf[9_999] = 1;
        assert_eq!(buf.len(), 10_000);
        assert_eq!(AlignedBuf::new(1, 3).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(AlignedBuf::new(usize::MAX, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
