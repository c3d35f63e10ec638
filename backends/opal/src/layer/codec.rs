//! Blocks in segments of memory: [`decrypt`] where they lie, [`encrypt`] to somewhere else.
//!
//! Segments are guest memory as a rule: it is reached by raw pointers alone, and what changes while it is looked at makes wrong
//! data, nothing else. A block that lies in several segments goes through memory of ours.

use block::{Error, ErrorKind, Segment};

use super::epoch::{Run, Runs};
use crate::crypto::xts::XtsCipher;

/// A position in a list of segments.
#[derive(Clone)]
struct Cursor<'a> {
    segments: std::slice::Iter<'a, Segment>,
    at: *mut u8,
    /// Bytes from `at` to the end of its segment.
    left: usize,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn new(segments: &'a [Segment]) -> Self {
        Self { segments: segments.iter(), at: std::ptr::null_mut(), left: 0 }
    }

    /// Goes on to the next segment that has bytes if this one has none left.
    #[inline]
    fn settle(&mut self) -> Result<(), Error> {
        while self.left == 0 {
            let segment = self.segments.next().ok_or_else(missing)?;
            (self.at, self.left) = (segment.as_ptr(), segment.len());
        }
        Ok(())
    }

    /// Passes over bytes of this segment.
    #[inline]
    fn pass(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.left);
        self.at = self.at.wrapping_add(bytes);
        self.left -= bytes;
    }

    fn skip(&mut self, mut bytes: usize) -> Result<(), Error> {
        while bytes > 0 {
            self.settle()?;
            let n = bytes.min(self.left);
            self.pass(n);
            bytes -= n;
        }
        Ok(())
    }

    /// Walks over `len` bytes: `copy` gets where some lie, how many were before them, and how many they are.
    fn each(&mut self, len: usize, mut copy: impl FnMut(*mut u8, usize, usize)) -> Result<(), Error> {
        let mut done = 0;
        while done < len {
            self.settle()?;
            let n = (len - done).min(self.left);
            copy(self.at, done, n);
            self.pass(n);
            done += n;
        }
        Ok(())
    }

    /// Copies the next bytes to `dst`.
    ///
    /// # Safety
    /// The segments are mapped, and `len` bytes at `dst` are writable and no part of them.
    unsafe fn gather(&mut self, dst: *mut u8, len: usize) -> Result<(), Error> {
        // SAFETY: by this function's contract; `each` stays inside of both.
        self.each(len, |at, done, n| unsafe { std::ptr::copy_nonoverlapping(at, dst.add(done), n) })
    }

    /// Copies `src` to the next bytes.
    ///
    /// # Safety
    /// The segments are mapped, and writable.
    unsafe fn scatter(&mut self, src: &[u8]) -> Result<(), Error> {
        // SAFETY: by this function's contract; `each` stays inside of both. `src` is none of the segments: it is a Rust slice.
        self.each(src.len(), |at, done, n| unsafe {
            std::ptr::copy_nonoverlapping(src[done..].as_ptr(), at, n);
        })
    }
}

#[cold]
fn missing() -> Error {
    Error::new(ErrorKind::Internal, "the segments are shorter than the range")
}

/// Decrypts blocks of `unit` bytes in place. `zeroes`: those that are all zeroes stay so. `bounce` is of any length.
///
/// # Safety
/// The segments are mapped and writable, and no Rust reference to their bytes exists.
#[inline]
pub(super) unsafe fn decrypt(
    segments: &[Segment],
    runs: Runs<'_>,
    unit: usize,
    zeroes: bool,
    bounce: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut cursor = Cursor::new(segments);
    for Run { first, blocks, cipher } in runs {
        let (mut block, end) = (first, first + blocks);
        while block < end {
            cursor.settle()?;
            let n = ((cursor.left / unit) as u64).min(end - block);
            if n == 0 {
                // SAFETY: this function's contract.
                unsafe { decrypt_cut(&mut cursor, cipher, block, unit, zeroes, bounce) }?;
                block += 1;
                continue;
            }
            // SAFETY: `n` blocks lie in this segment from here on; the rest is this function's contract.
            unsafe { decrypt_at(cursor.at, cipher, block, n as usize, unit, zeroes) }?;
            cursor.pass(n as usize * unit);
            block += n;
        }
    }
    Ok(())
}

/// Blocks one after the other.
///
/// # Safety
/// `n * unit` bytes at `at` are mapped and writable, and no Rust reference to them exists.
#[inline]
unsafe fn decrypt_at(
    at: *mut u8,
    cipher: &XtsCipher,
    first: u64,
    n: usize,
    unit: usize,
    zeroes: bool,
) -> Result<(), Error> {
    if !zeroes {
        // SAFETY: this function's contract, in place.
        return unsafe { cipher.decrypt(first, at, at, unit, n) };
    }
    for k in 0..n {
        // SAFETY: the `k`th of `n` blocks.
        unsafe {
            let at = at.add(k * unit);
            if !is_zero(at, unit) {
                cipher.decrypt(first + k as u64, at, at, unit, 1)?;
            }
        }
    }
    Ok(())
}

/// A block that lies in several segments.
///
/// # Safety
/// As [`decrypt`].
#[cold]
unsafe fn decrypt_cut(
    cursor: &mut Cursor<'_>,
    cipher: &XtsCipher,
    block: u64,
    unit: usize,
    zeroes: bool,
    bounce: &mut Vec<u8>,
) -> Result<(), Error> {
    bounce.resize(unit, 0);
    let mut start = cursor.clone();
    let at = bounce.as_mut_ptr();
    // SAFETY: `unit` bytes of our own; the segments are by this function's contract.
    unsafe {
        cursor.gather(at, unit)?;
        decrypt_at(at, cipher, block, 1, unit, zeroes)?;
        start.scatter(bounce)
    }
}

/// Encrypts blocks of `unit` bytes, which start `skip` bytes into the segments, to `dst`. Every byte of the segments is read
/// once.
///
/// # Safety
/// The segments are mapped. The bytes of all blocks fit at `dst`, are writable, no part of the segments, and no Rust reference
/// to them exists.
#[inline]
pub(super) unsafe fn encrypt(
    segments: &[Segment],
    skip: usize,
    runs: Runs<'_>,
    unit: usize,
    mut dst: *mut u8,
) -> Result<(), Error> {
    let mut cursor = Cursor::new(segments);
    cursor.skip(skip)?;
    for Run { first, blocks, cipher } in runs {
        let (mut block, end) = (first, first + blocks);
        while block < end {
            cursor.settle()?;
            let n = ((cursor.left / unit) as u64).min(end - block);
            let bytes = n.max(1) as usize * unit;
            if n == 0 {
                // SAFETY: this function's contract: one block, gathered where it is encrypted.
                unsafe {
                    cursor.gather(dst, unit)?;
                    cipher.encrypt(block, dst, dst, unit, 1)?;
                }
            } else {
                // SAFETY: `n` blocks lie in this segment from here on; the rest is this function's contract.
                unsafe { cipher.encrypt(block, cursor.at, dst, unit, n as usize) }?;
                cursor.pass(bytes);
            }
            dst = dst.wrapping_add(bytes);
            block += n.max(1);
        }
    }
    Ok(())
}

/// Encrypts zeroes.
///
/// # Safety
/// The bytes of all blocks fit at `dst`, are writable, and no Rust reference to them exists.
pub(super) unsafe fn encrypt_zeroes(runs: Runs<'_>, unit: usize, mut dst: *mut u8) -> Result<(), Error> {
    for Run { first, blocks, cipher } in runs {
        let bytes = blocks as usize * unit;
        // SAFETY: this function's contract, in place.
        unsafe {
            std::ptr::write_bytes(dst, 0, bytes);
            cipher.encrypt(first, dst, dst, unit, blocks as usize)?;
        }
        dst = dst.wrapping_add(bytes);
    }
    Ok(())
}

/// Whether `len` bytes, a multiple of 64, are all zeroes. Nearly always the first eight tell.
///
/// # Safety
/// They are mapped.
#[inline]
unsafe fn is_zero(at: *const u8, len: usize) -> bool {
    // SAFETY: by this function's contract; at least eight bytes. Copied, since they may change meanwhile.
    let first = unsafe { at.cast::<u64>().read_unaligned() };
    // SAFETY: this function's contract.
    first == 0 && unsafe { is_all_zero(at, len) }
}

/// # Safety
/// As [`is_zero`].
#[inline(never)]
unsafe fn is_all_zero(at: *const u8, len: usize) -> bool {
    (0..len / 64).all(|n| {
        // SAFETY: inside; copied, since they may change meanwhile.
        let line = unsafe { at.add(n * 64).cast::<[u64; 8]>().read_unaligned() };
        line.iter().fold(0, |all, word| all | word) == 0
    })
}
