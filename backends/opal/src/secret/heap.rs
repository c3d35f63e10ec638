//! aws-lc's heap: what OPENSSL_malloc and its like hand out comes from the arena of the secrets. So the key schedules that
//! an EVP_CIPHER_CTX holds are locked, kept out of core dumps and zeroed like the keys that they are made of.
//!
//! CRYPTO_set_mem_functions must be called before aws-lc allocates anything: what it has allocated by then could not be
//! freed or grown any more. So a constructor of the program calls it, before `main`.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use super::ARENA;

static INSTALLED: AtomicBool = AtomicBool::new(false);

// SAFETY: the section holds addresses of functions of this type, which the loader calls once each before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: unsafe extern "C" fn() = install;

/// # Safety
/// To be called before aws-lc is used.
unsafe extern "C" fn install() {
    // SAFETY: the three functions do what malloc, realloc and free do, never call aws-lc and never unwind.
    let set = unsafe { aws_lc_sys::CRYPTO_set_mem_functions(Some(malloc), Some(realloc), Some(free)) };
    INSTALLED.store(set == 1, Ordering::Relaxed);
}

/// Whether aws-lc takes its memory here.
pub(super) fn is_installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

unsafe extern "C" fn malloc(len: usize, _: *const c_char, _: c_int) -> *mut c_void {
    ARENA.allocate(len).map_or(null_mut(), |at| at.as_ptr().cast())
}

/// # Safety
/// As realloc(3): `old` is from `malloc` or null, and is not used afterwards.
unsafe extern "C" fn realloc(old: *mut c_void, len: usize, _: *const c_char, _: c_int) -> *mut c_void {
    let new = ARENA.allocate(len);
    let (Some(old), Some(new)) = (NonNull::new(old.cast::<u8>()), new) else {
        return new.map_or(null_mut(), |at| at.as_ptr().cast()); // without memory the old piece stays as it is
    };
    let size = ARENA.size(old).unwrap_or(0);
    // SAFETY: the old piece has `size` bytes, the new one at least `len`; they are different pieces.
    unsafe { std::ptr::copy_nonoverlapping(old.as_ptr(), new.as_ptr(), size.min(len)) };
    // SAFETY: aws-lc does not use it any more.
    unsafe { ARENA.free(old) };
    new.as_ptr().cast()
}

/// # Safety
/// As free(3): `at` is from `malloc` or null, and is not used afterwards.
unsafe extern "C" fn free(at: *mut c_void, _: *const c_char, _: c_int) {
    if let Some(at) = NonNull::new(at.cast()) {
        // SAFETY: aws-lc does not use it any more.
        unsafe { ARENA.free(at) };
    }
}
