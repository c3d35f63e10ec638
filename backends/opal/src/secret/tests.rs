use std::ffi::c_void;

use super::arena::Arena;
use super::*;

/// The VmFlags (proc(5), smaps) of the mapping that `at` lies in.
fn flags(at: *const u8) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = false;
    for line in text.lines() {
        if let Some((range, _)) = line.split_once(' ')
            && let Some((from, to)) = range.split_once('-')
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            found = (from..to).contains(&at.addr());
        }
        if found && let Some(flags) = line.strip_prefix("VmFlags:") {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("{at:?} is not mapped");
}

/// Locks memory, if this process may.
fn may_lock() -> bool {
    lock_memory().inspect_err(|error| block::testing::cannot_run(&error.to_string())).is_ok()
}

fn assert_kept(at: *const u8) {
    let flags = flags(at);
    // lo: locked. dd: not in core dumps. dc: not given to children.
    assert!(["lo", "dd", "dc"].iter().all(|flag| flags.iter().any(|other| other == flag)), "{flags:?}");
}

#[test]
fn secrets_are_locked_and_left_out_of_dumps() {
    if !may_lock() {
        return;
    }
    let secret = Secret::<64>::new(|bytes| bytes.fill(7));
    assert_kept(secret.bytes().as_ptr());
    assert_eq!(secret.clone().bytes(), &[7; 64]);
    for len in [0, 1, 100, 5000, 100_000] {
        let mut secret = SecretBytes::new(len, |bytes| assert!(bytes.iter().all(|byte| *byte == 0)));
        secret.bytes_mut().fill(3);
        assert_eq!(secret.clone().bytes(), vec![3; len]);
        if len > 0 {
            assert_kept(secret.bytes().as_ptr());
        }
    }
    assert_eq!(
        format!("{secret:?} {:?}", SecretBytes::copy(b"tell")),
        "Secret(64 bytes) SecretBytes(4 bytes)"
    );
}

#[test]
fn what_is_freed_is_zero_and_comes_again() {
    let arena = Arena::new();
    for len in [1, 64, 65, 8192] {
        let at = arena.allocate(len).unwrap();
        assert_eq!(at.as_ptr().addr() % 64, 0);
        // SAFETY: `len` bytes of this test's own.
        unsafe { at.write_bytes(0xa5, len) };
        assert!(arena.size(at).unwrap() >= len);
        // SAFETY: not used any more.
        assert!(unsafe { arena.free(at) });
        // SAFETY: still mapped: small pieces stay. The arena is this test's own.
        assert!(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }.iter().all(|byte| *byte == 0));
        assert_eq!(arena.allocate(len), Some(at));
        // SAFETY: not used any more.
        assert!(unsafe { arena.free(at) });
    }
    let mut byte = 0u8;
    // SAFETY: not from here.
    assert!(!unsafe { arena.free(NonNull::from(&mut byte)) });
    assert_eq!(arena.size(NonNull::from(&mut byte)), None);
}

#[test]
fn pieces_do_not_overlap() {
    let arena = Arena::new();
    let mut pieces: Vec<_> = (0..3000).map(|n| (n % 300 + 1, arena.allocate(n % 300 + 1).unwrap())).collect();
    pieces.push((1 << 20, arena.allocate(1 << 20).unwrap()));
    for (n, (len, at)) in pieces.iter().enumerate() {
        // SAFETY: of this test's own, as many bytes.
        unsafe { at.write_bytes(n as u8, *len) };
    }
    for (n, (len, at)) in pieces.iter().enumerate() {
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), *len) };
        assert!(bytes.iter().all(|byte| *byte == n as u8));
        // SAFETY: not used any more.
        assert!(unsafe { arena.free(*at) });
    }
}

#[test]
fn threads_share_it() {
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            scope.spawn(move || {
                for round in 0..500 {
                    let secrets: Vec<_> =
                        (0..8).map(|n| SecretBytes::new(n * 90 + round % 7, |b| b.fill(thread))).collect();
                    assert!(secrets.iter().all(|secret| secret.bytes().iter().all(|byte| *byte == thread)));
                }
            });
        }
    });
}

/// aws-lc's memory is this memory.
#[test]
fn the_library_allocates_here() {
    if !may_lock() {
        return;
    }
    // SAFETY: plain allocation functions.
    let (at, grown) = unsafe {
        let at = aws_lc_sys::OPENSSL_malloc(100);
        at.cast::<u8>().write_bytes(9, 100);
        assert_kept(at.cast());
        (at, aws_lc_sys::OPENSSL_realloc(at, 20_000))
    };
    assert_ne!(at, grown);
    assert_kept(grown.cast());
    // SAFETY: 100 bytes were copied.
    assert!(unsafe { std::slice::from_raw_parts(grown.cast::<u8>(), 100) }.iter().all(|byte| *byte == 9));
    // SAFETY: from the library, not used any more; free takes null.
    unsafe {
        aws_lc_sys::OPENSSL_free(grown);
        aws_lc_sys::OPENSSL_free(std::ptr::null_mut::<c_void>());
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    let text = MemoryLockError::new(rustix::io::Errno::NOMEM).to_string();
    assert!(
        text.contains("LimitMEMLOCK=") && text.contains("ulimit -l") && text.contains("RLIMIT_MEMLOCK"),
        "{text}"
    );
}
