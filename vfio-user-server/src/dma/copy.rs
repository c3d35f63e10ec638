//! Copies between private memory and guest memory, which others change at any moment.
//!
//! The accesses are volatile, in words where alignment allows: each byte is read once, and what was read
//! is what later code sees.

/// Copies guest memory to `data`.
///
/// # Safety
///
/// `source` must be good for raw reads of `data.len()` bytes.
pub(super) unsafe fn from_guest(source: *const u8, data: &mut [u8]) {
    let mut at = 0;
    while at < data.len() {
        // SAFETY: `at < data.len()`, so the pointer stays in the range the caller vouches for.
        let from = unsafe { source.add(at) };
        match data[at..].first_chunk_mut::<8>() {
            Some(word) if from.addr().is_multiple_of(8) => {
                // SAFETY: eight bytes remain in the range, and the address is aligned.
                *word = unsafe { from.cast::<u64>().read_volatile() }.to_ne_bytes();
                at += 8;
            }
            _ => {
                // SAFETY: one byte remains in the range.
                data[at] = unsafe { from.read_volatile() };
                at += 1;
            }
        }
    }
}

/// Copies `data` to guest memory.
///
/// # Safety
///
/// `target` must be good for raw writes of `data.len()` bytes.
pub(super) unsafe fn to_guest(data: &[u8], target: *mut u8) {
    let mut at = 0;
    while at < data.len() {
        // SAFETY: `at < data.len()`, so the pointer stays in the range the caller vouches for.
        let to = unsafe { target.add(at) };
        match data[at..].first_chunk::<8>() {
            Some(word) if to.addr().is_multiple_of(8) => {
                // SAFETY: eight bytes remain in the range, and the address is aligned.
                unsafe { to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
                at += 8;
            }
            _ => {
                // SAFETY: one byte remains in the range.
                unsafe { to.write_volatile(data[at]) };
                at += 1;
            }
        }
    }
}
