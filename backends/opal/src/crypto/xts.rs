//! AES-256-XTS (IEEE 1619-2018, NIST SP 800-38E): [`XtsKey`], the key of a range, and [`XtsCipher`], what one thread makes
//! of it to encrypt and decrypt data units.

use std::marker::PhantomData;
use std::ptr::{NonNull, null, null_mut};

use aws_lc_sys as lc;
use block::{Error, ErrorKind};

use crate::secret::Secret;

/// An AES-256-XTS key: two different keys of 256 bits (IEEE 1619-2018; FIPS 140-3 IG C.I asks that they differ).
#[derive(Debug)]
pub struct XtsKey(Secret<64>);

impl XtsKey {
    /// The key of these bytes, unless its halves are equal.
    pub fn new(bytes: Secret<64>) -> Option<Self> {
        let (data, tweak) = bytes.bytes().split_at(32);
        (data != tweak).then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 64] {
        self.0.bytes()
    }
}

/// The key schedules of an [`XtsKey`], in locked memory (see [`crate::secret`]), for one thread.
///
/// A data unit is a block of a device; its tweak is its number as a little-endian number of 128 bits. XTS is deterministic
/// and protects secrecy only: the same bytes in the same unit make the same ciphertext, and a changed ciphertext decrypts to
/// noise that nothing notices.
pub struct XtsCipher {
    encrypts: Context,
    decrypts: Context,
}

impl XtsCipher {
    /// The schedules of `key`.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`]: aws-lc has no memory.
    pub fn new(key: &XtsKey) -> Result<Self, Error> {
        Ok(Self { encrypts: Context::new(key, ENCRYPT)?, decrypts: Context::new(key, DECRYPT)? })
    }

    /// Encrypts `units` data units of `unit_size` bytes (16 to 2^24), which lie one after the other at `src`, to `dst`.
    /// `first` is the number of the first one. Every byte is read before it is written, so that `dst` may be `src`.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`]: aws-lc refused. What is at `dst` is of no use.
    ///
    /// # Safety
    /// `units * unit_size` bytes are mapped, readable at `src` and writable at `dst`; the two are the same or do not overlap.
    /// Others may change them meanwhile (guest memory): then the result is as arbitrary as they are. No Rust reference to
    /// the bytes at `dst` exists.
    pub unsafe fn encrypt(
        &self,
        first: u64,
        src: *const u8,
        dst: *mut u8,
        unit_size: usize,
        units: usize,
    ) -> Result<(), Error> {
        // SAFETY: this function's contract.
        unsafe { self.encrypts.run(first, src, dst, unit_size, units) }
    }

    /// Decrypts; otherwise like [`Self::encrypt`].
    ///
    /// # Errors
    /// As [`Self::encrypt`].
    ///
    /// # Safety
    /// As [`Self::encrypt`].
    pub unsafe fn decrypt(
        &self,
        first: u64,
        src: *const u8,
        dst: *mut u8,
        unit_size: usize,
        units: usize,
    ) -> Result<(), Error> {
        // SAFETY: this function's contract.
        unsafe { self.decrypts.run(first, src, dst, unit_size, units) }
    }
}

const ENCRYPT: i32 = 1;
const DECRYPT: i32 = 0;
/// Leaves the direction as it is (EVP_CipherInit_ex).
const AS_BEFORE: i32 = -1;

/// An EVP_CIPHER_CTX: a key and a direction.
struct Context {
    evp: NonNull<lc::EVP_CIPHER_CTX>,
    /// A unit's tweak is written into the context: one thread's own.
    _not_sync: PhantomData<*mut ()>,
}

impl Context {
    fn new(key: &XtsKey, direction: i32) -> Result<Self, Error> {
        let refused = || Error::new(ErrorKind::Internal, "no cipher context");
        // SAFETY: makes a context or returns null.
        let evp = NonNull::new(unsafe { lc::EVP_CIPHER_CTX_new() }).ok_or_else(refused)?;
        let context = Self { evp, _not_sync: PhantomData };
        // SAFETY: a new context, and a key of the 64 bytes that this cipher takes. No engine, no tweak so far.
        let made = unsafe {
            let cipher = lc::EVP_aes_256_xts();
            lc::EVP_CipherInit_ex(evp.as_ptr(), cipher, null_mut(), key.bytes().as_ptr(), null(), direction)
        };
        if made == 1 { Ok(context) } else { Err(refused()) }
    }

    /// # Safety
    /// As [`XtsCipher::encrypt`].
    #[inline]
    unsafe fn run(
        &self,
        first: u64,
        src: *const u8,
        dst: *mut u8,
        unit_size: usize,
        units: usize,
    ) -> Result<(), Error> {
        let evp = self.evp.as_ptr();
        for n in 0..units {
            let tweak = u128::from(first.wrapping_add(n as u64)).to_le_bytes();
            let at = n * unit_size;
            // SAFETY: a context with a key; only the tweak is set, from 16 bytes.
            let is_ready =
                unsafe { lc::EVP_CipherInit_ex(evp, null(), null_mut(), null(), tweak.as_ptr(), AS_BEFORE) };
            // SAFETY: `unit_size` bytes each, of what the caller promises. XTS reads every byte before it writes it.
            let done = unsafe { lc::EVP_Cipher(evp, dst.add(at), src.add(at), unit_size) };
            if is_ready != 1 || done != 1 {
                return Err(refused());
            }
        }
        Ok(())
    }
}

#[cold]
fn refused() -> Error {
    Error::new(ErrorKind::Internal, "the cipher refused a data unit")
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by EVP_CIPHER_CTX_new, and not used any more. The memory is zeroed when it is freed.
        unsafe { lc::EVP_CIPHER_CTX_free(self.evp.as_ptr()) };
    }
}

#[cfg(test)]
mod tests;
