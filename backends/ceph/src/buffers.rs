//! [`Buffers`]: a channel's own memory for what a library reads into, used again and again.
//!
//! A library cannot be told to leave memory alone before it is done. So it never gets a guest's to read into: a guest whose
//! commands were aborted uses it for something else, and a VMM takes it away.

use std::cell::RefCell;

use block::{AlignedBuf, Error};

/// The smallest buffer.
const SMALLEST: usize = 4096;
/// Sizes: powers of two from the smallest on. Larger ones are made for each use.
const SIZES: usize = 9;
/// Bytes that are kept of each size.
const KEPT: usize = 1 << 20;

/// Buffers by size.
#[derive(Default)]
pub(crate) struct Buffers([RefCell<Vec<AlignedBuf>>; SIZES]);

fn size_of(len: usize) -> usize {
    (len.max(SMALLEST).next_power_of_two() / SMALLEST).trailing_zeros() as usize
}

impl Buffers {
    /// One of at least `len` bytes, whose contents are what was there.
    pub(crate) fn take(&self, len: usize) -> Result<AlignedBuf, Error> {
        let size = size_of(len);
        match self.0.get(size).and_then(|kept| kept.borrow_mut().pop()) {
            Some(buffer) => Ok(buffer),
            None => AlignedBuf::new(SMALLEST << size, SMALLEST),
        }
    }

    /// Takes one back.
    pub(crate) fn give(&self, buffer: AlignedBuf) {
        let size = size_of(buffer.len());
        if let Some(kept) = self.0.get(size)
            && buffer.len() == SMALLEST << size
        {
            let mut kept = kept.borrow_mut();
            if kept.len() < (KEPT / buffer.len()).max(1) {
                kept.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_fit() {
        let buffers = Buffers::default();
        for len in [1, 4096, 4097, 100_000, 1 << 20, (1 << 20) + 1, 3 << 20] {
            let buffer = buffers.take(len).unwrap();
            assert!(buffer.len() >= len && buffer.len() < 2 * len.max(4096));
            let at = buffer.as_ptr();
            buffers.give(buffer);
            let again = buffers.take(len).unwrap();
            assert!(again.as_ptr() == at || len > 1 << 20, "{len}");
        }
    }
}
