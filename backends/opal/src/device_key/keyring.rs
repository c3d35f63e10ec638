//! Keys of type `user` in the keyrings of the Linux kernel (keyctl(2)).

use std::ffi::CString;
use std::io;

use zeroize::Zeroizing;

use super::{DeviceKeySource, MOST};

/// Bytes of a description, at most: the kernel takes a page with its NUL.
pub const LONGEST: usize = 4095;

/// A serial number of a key, or one of the special values below.
type Serial = i32;

const PROCESS: Serial = -2;
const SESSION: Serial = -3;
const USER: Serial = -4;

const KEYCTL_READ: libc::c_ulong = 11;
const KEYCTL_SEARCH: libc::c_ulong = 10;

/// The key of this description in a keyring, or below it.
fn search(ring: Serial, description: &CString) -> io::Result<Serial> {
    // SAFETY: keyctl(KEYCTL_SEARCH) reads two C strings, which live until it returns; with 0 for the keyring to link to it
    // changes nothing.
    let key = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            libc::c_long::from(ring),
            c"user".as_ptr(),
            description.as_ptr(),
            0 as libc::c_long,
        )
    };
    if key < 0 { Err(io::Error::last_os_error()) } else { Serial::try_from(key).map_err(io::Error::other) }
}

/// Reads a key into `bytes`; returns how many bytes it has, which may be more: then `bytes` is of no use.
fn read_into(key: Serial, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: keyctl(KEYCTL_READ) writes at most `bytes.len()` bytes to `bytes`, exclusively borrowed until it returns.
    let len = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_READ, libc::c_long::from(key), bytes.as_mut_ptr(), bytes.len())
    };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// The bytes of a key, one more than [`MOST`] at most.
pub fn read(description: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let c_description = CString::new(description).map_err(|_| "its description has a NUL".to_owned())?;
    let mut refused = None;
    for ring in [PROCESS, SESSION, USER] {
        let mut bytes = Zeroizing::new(vec![0; MOST + 1]);
        let len = search(ring, &c_description).and_then(|key| read_into(key, &mut bytes));
        match len {
            Ok(len) => {
                bytes.truncate(len);
                return Ok(bytes);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOKEY) => {}
            Err(error) => refused = Some(error),
        }
    }
    Err(explain(description, refused.as_ref()))
}

/// Why there is no key, if the kernel's last answer other than "no such key" was `error`.
fn explain(description: &str, error: Option<&io::Error>) -> String {
    let remedy = DeviceKeySource::Keyring(description.to_owned()).remedy();
    let Some(error) = error else {
        return format!(
            "no key of type `user` has this description in the process, session or user keyring. {remedy}. (A systemd unit has \
             a session keyring of its own: see KeyringMode=)"
        );
    };
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM) => format!(
            "the kernel, or a sandbox around this process (a container's seccomp filter), does not allow keyrings ({error}): \
             allow keyctl(2), or use file: or credential:"
        ),
        Some(libc::EACCES) => format!(
            "this process may not read it ({error}): it must possess it (`keyctl link @u @s` before it starts) or have the \
             right (`keyctl setperm`)"
        ),
        Some(libc::EKEYEXPIRED | libc::EKEYREVOKED) => {
            format!("it is there but expired or revoked ({error}): add it again, with the bytes that it had")
        }
        _ => format!("it cannot be read: {error}. {remedy}"),
    }
}

#[cfg(test)]
mod tests;
