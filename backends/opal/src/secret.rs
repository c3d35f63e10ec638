//! Secrets in memory: [`Secret`] of a length known at compile time, [`SecretBytes`] of any length. Their bytes are kept
//! out of swap, of core dumps and of children, and are zeroed when they are dropped (see `arena`).
//!
//! aws-lc's own heap, which holds the key schedules, comes from the same memory (see `heap`).

mod arena;
mod heap;

use std::fmt;
use std::ptr::NonNull;

use arena::Arena;
pub use arena::MemoryLockError;

/// The memory of all secrets of this process.
static ARENA: Arena = Arena::new();

/// Bytes of locked memory that a device finds ready when it opens.
const READY: usize = 512 << 10;

/// Makes sure that secrets are in memory that is locked: those that exist already, and some more. To be called before a
/// device opens its keys.
///
/// # Errors
/// The kernel refuses to lock so much; the text says what to do about it. (Secrets that are made nevertheless are left out
/// of core dumps and zeroed as always, but they can be swapped out.)
pub fn lock_memory() -> Result<(), MemoryLockError> {
    if !heap::is_installed() {
        return Err(MemoryLockError::Library);
    }
    ARENA.lock(READY)
}

/// Some bytes of the arena, exclusively owned.
struct Locked {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: exclusively owned plain bytes, like a `Box<[u8]>`.
unsafe impl Send for Locked {}
// SAFETY: a shared reference gives nothing but shared references to plain bytes.
unsafe impl Sync for Locked {}

impl Locked {
    /// `len` zeroes.
    fn new(len: usize) -> Self {
        match ARENA.allocate(len) {
            Some(at) => Self { at, len },
            None => std::alloc::handle_alloc_error(
                std::alloc::Layout::array::<u8>(len).unwrap_or(std::alloc::Layout::new::<u8>()),
            ),
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: initialised (the arena hands out zeroes), owned, borrowed for as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: it is from this arena, and nobody refers to it any more.
        unsafe { ARENA.free(self.at) };
    }
}

/// `N` secret bytes.
pub struct Secret<const N: usize>(Locked);

impl<const N: usize> Secret<N> {
    /// Secret bytes that `fill` writes, over zeroes.
    pub fn new(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut memory = Locked::new(N);
        if let Ok(bytes) = memory.bytes_mut().try_into() {
            fill(bytes);
        }
        Self(memory)
    }

    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8; N]) -> Self {
        Self::new(|own| own.copy_from_slice(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; N] {
        // SAFETY: the memory was made with `N` initialised bytes; an array has the alignment of its bytes.
        unsafe { self.0.at.cast::<[u8; N]>().as_ref() }
    }
}

impl<const N: usize> Clone for Secret<N> {
    fn clone(&self) -> Self {
        Self::copy(self.bytes())
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({N} bytes)")
    }
}

/// Secret bytes whose number is known at run time only, and does not change.
pub struct SecretBytes(Locked);

impl SecretBytes {
    /// `len` secret bytes that `fill` writes, over zeroes.
    pub fn new(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut memory = Locked::new(len);
        fill(memory.bytes_mut());
        Self(memory)
    }

    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Self {
        Self::new(bytes.len(), |own| own.copy_from_slice(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl Clone for SecretBytes {
    fn clone(&self) -> Self {
        Self::copy(self.bytes())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len)
    }
}

#[cfg(test)]
mod tests;
