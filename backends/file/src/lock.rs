//! The locks on an image: `flock` against other servers of ours, and the byte locks of QEMU and its tools
//! (block/file-posix.c there), which libvirt relies on too.
//!
//! QEMU's protocol: whoever opens an image holds a shared lock on byte 100 + n for each permission n that it uses, and
//! on byte 200 + n for each that it grants nobody else; then it looks whether anybody holds the opposite byte.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

const USED: i64 = 100;
const NOT_SHARED: i64 = 200;
// QEMU's permissions. (2 is writing what is there already.)
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes all locks, held for as long as the file is open. False if somebody else has the image.
pub(crate) fn take(file: &File, read_only: bool) -> io::Result<bool> {
    let how = match read_only {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(file, how) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    match take_of_qemu(file, read_only) {
        // `flock` holds in any case.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP)) =>
        {
            tracing::warn!(%error, "no byte locks here: QEMU and its tools would not notice that an image is in use");
            Ok(true)
        }
        taken => taken,
    }
}

fn take_of_qemu(file: &File, read_only: bool) -> io::Result<bool> {
    let used: &[i64] = if read_only { &[READ] } else { &[READ, WRITE, RESIZE] };
    // Others may read. Nobody writes but us, if anybody.
    let not_shared = [WRITE, RESIZE];
    let ours = used.iter().map(|n| USED + n).chain(not_shared.map(|n| NOT_SHARED + n));
    for byte in ours {
        match lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            // Only somebody who does not follow the protocol has it exclusively.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    let opposite = used.iter().map(|n| NOT_SHARED + n).chain(not_shared.map(|n| USED + n));
    for byte in opposite {
        if lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes a lock on a byte, or asks who stands in its way; the lock's type afterwards.
fn lock(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let mut lock = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0, // required by locks that belong to the open file
    };
    // SAFETY: both commands take a pointer to a `flock`, which lives for the call; the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type.into()),
    }
}
