use super::*;
use crate::crypto::kdf;
use crate::device_key::{KeyProvider, PURPOSE};

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_ulong = 1;
const KEYCTL_SETPERM: libc::c_ulong = 5;
const KEYCTL_REVOKE: libc::c_ulong = 3;

/// Gives this thread a session keyring of its own.
fn join() -> io::Result<()> {
    // SAFETY: with NULL for its name the kernel reads no memory.
    let ring = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    if ring < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn add(ring: Serial, description: &str, bytes: &[u8]) -> libc::c_long {
    let description = CString::new(description).unwrap();
    // SAFETY: two C strings and `bytes.len()` bytes, all of which live until it returns.
    let key = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            description.as_ptr(),
            bytes.as_ptr(),
            bytes.len(),
            libc::c_long::from(ring),
        )
    };
    assert!(key > 0, "{}", io::Error::last_os_error());
    key
}

fn of(description: &str) -> Result<Secret, String> {
    let fetched = DeviceKeySource::Keyring(description.to_owned()).fetch();
    fetched.map(|key| *key.bytes()).map_err(|error| error.to_string())
}

type Secret = [u8; 32];

fn hash(bytes: &[u8]) -> Secret {
    *kdf::extract(bytes, b"", PURPOSE).bytes()
}

/// In a thread of its own, whose credentials have keyrings of their own.
#[test]
fn keys_of_the_kernel() {
    std::thread::spawn(|| {
        if let Err(error) = join() {
            block::testing::cannot_run(&format!("keys in the kernel's keyrings: {error}"));
            let text = of("quarry-test").unwrap_err();
            assert!(text.contains("use file: or credential:"), "{text}");
            return;
        }
        let text = of("quarry-test").unwrap_err();
        assert!(
            text.contains("no key of type `user`") && text.contains("keyctl padd user quarry-test @s"),
            "{text}"
        );
        let key = add(SESSION, "quarry-test", &[b'S'; 64]);
        assert_eq!(of("quarry-test").unwrap(), hash(&[b'S'; 64]));
        add(PROCESS, "quarry-test", &[b'P'; 64]);
        assert_eq!(of("quarry-test").unwrap(), hash(&[b'P'; 64]), "the process's first");

        add(SESSION, "quarry-short", &[b'S'; 31]);
        let text = of("quarry-short").unwrap_err();
        assert!(text.contains("it has 31 bytes, at least 32 are needed") && !text.contains("SS"), "{text}");
        add(SESSION, "quarry-most", &[b'S'; MOST]);
        assert_eq!(of("quarry-most").unwrap(), hash(&[b'S'; MOST]));
        add(SESSION, "quarry-long", &[b'S'; MOST + 1]);
        assert!(of("quarry-long").unwrap_err().contains("more than 4096 bytes"));
        add(SESSION, "quarry-longer", &[b'S'; 3 * MOST]);
        assert!(of("quarry-longer").unwrap_err().contains("more than 4096 bytes"));

        // There, but not to be found or read: who may search a key that is possessed may read it too.
        let hidden = add(SESSION, "quarry-hidden", &[b'S'; 64]);
        let possessor_views = 0x0100_0000 as libc::c_long;
        // SAFETY: numbers only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, hidden, possessor_views) }, 0);
        let text = of("quarry-hidden").unwrap_err();
        assert!(text.contains("may not read it"), "{text}");
        // SAFETY: a number only.
        assert_eq!(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_REVOKE, key) }, 0);
        assert_eq!(of("quarry-test").unwrap(), hash(&[b'P'; 64]));
    })
    .join()
    .unwrap();
}

#[test]
fn what_the_kernel_refuses_is_explained() {
    let text = |errno| explain("name", Some(&io::Error::from_raw_os_error(errno)));
    for (errno, expected) in [
        (libc::ENOSYS, "use file: or credential:"),
        (libc::EPERM, "use file: or credential:"),
        (libc::EACCES, "keyctl link @u @s"),
        (libc::EKEYEXPIRED, "expired or revoked"),
        (libc::ENOMEM, "cannot be read"),
    ] {
        assert!(text(errno).contains(expected), "{}", text(errno));
    }
}
