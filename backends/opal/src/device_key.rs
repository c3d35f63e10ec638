//! The device key: what seals a drive's state. It is named in the configuration and stands elsewhere.
//!
//! Its material is at least 32 bytes, which are taken as they are (a line's end counts), and hashed.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::crypto::kdf;
use crate::secret::Secret;

/// The least and the most material.
const BYTES: std::ops::RangeInclusive<usize> = 32..=4096;

/// Who gives out a device key: the seam for a key management service.
pub trait KeyProvider {
    /// The key.
    ///
    /// # Errors
    /// It is not there, or is not one; the error says what to do and shows nothing of it.
    fn fetch(&self) -> Result<Secret<32>, KeyError>;
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKeySource {
    /// `file:PATH`, for its owner's eyes only.
    File(PathBuf),
    /// `env:NAME`, an environment variable.
    Env(String),
    /// `credential:NAME`, of systemd (`LoadCredential=`, `LoadCredentialEncrypted=`).
    Credential(String),
    /// `keyring:DESCRIPTION`, a key of type "user" in the kernel's keyrings.
    Keyring(String),
}

impl FromStr for DeviceKeySource {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || {
            KeyError(
                "a key is named as file:PATH, env:NAME, credential:NAME or keyring:DESCRIPTION".to_owned(),
            )
        };
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        let name = name.to_owned();
        if name.contains('\0') {
            return Err(wrong());
        }
        match kind {
            "file" => Ok(Self::File(name.into())),
            "env" if !name.contains('=') => Ok(Self::Env(name)),
            "credential" if !name.contains('/') && name != "." && name != ".." => Ok(Self::Credential(name)),
            "keyring" => Ok(Self::Keyring(name)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Env(name) => write!(f, "env:{name}"),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Keyring(name) => write!(f, "keyring:{name}"),
        }
    }
}

impl KeyProvider for DeviceKeySource {
    fn fetch(&self) -> Result<Secret<32>, KeyError> {
        let material = match self {
            Self::File(path) => read(path, true)?,
            Self::Env(name) => {
                let value = std::env::var_os(name)
                    .ok_or_else(|| KeyError(format!("there is no environment variable {name}")))?;
                Zeroizing::new(value.into_vec())
            }
            Self::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    KeyError(format!(
                        "systemd gave no credentials: add LoadCredential={name}:PATH to the unit"
                    ))
                })?;
                read(&Path::new(&directory).join(name), false)?
            }
            Self::Keyring(description) => keyring(description)?,
        };
        if !BYTES.contains(&material.len()) {
            return Err(KeyError(format!(
                "{self} has {} bytes; a key has {} to {}: `head -c 64 /dev/urandom > FILE` makes one",
                material.len(),
                BYTES.start(),
                BYTES.end()
            )));
        }
        Ok(kdf::extract(&material, b"", b"quarry device key"))
    }
}

fn read(path: &Path, is_private: bool) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let shown = path.display();
    let failed = |error| KeyError(format!("{shown}: {error}"));
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if is_private && mode & 0o077 != 0 {
        return Err(KeyError(format!("{shown} can be read by others than its owner: `chmod 600 {shown}`")));
    }
    // All at once, so that no smaller copy is left behind; one byte more than there may be.
    let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES.end() + 1));
    file.take(*BYTES.end() as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// A key of the process's, session's or user's keyring (keyctl(2): KEYCTL_SEARCH, KEYCTL_READ).
fn keyring(description: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    const SEARCH: libc::c_long = 10;
    const READ: libc::c_long = 11;
    let text = std::ffi::CString::new(description).map_err(|_| KeyError("a zero byte".to_owned()))?;
    // KEY_SPEC_PROCESS_KEYRING, SESSION, USER, USER_SESSION.
    let found = [-2_i64, -3, -4, -5].into_iter().find_map(|ring| {
        // SAFETY: two strings that end with a zero byte and outlive the call; the kernel writes nothing.
        let key =
            unsafe { libc::syscall(libc::SYS_keyctl, SEARCH, ring, c"user".as_ptr(), text.as_ptr(), 0_i64) };
        (key > 0).then_some(key)
    });
    let key = found.ok_or_else(|| {
        let cause = std::io::Error::last_os_error();
        KeyError(format!(
            "no key {description:?} of type user in the keyrings of this process ({cause}): \
             `keyctl padd user {description} @u < FILE` adds one"
        ))
    })?;
    let mut bytes = Zeroizing::new(vec![0; BYTES.end() + 1]);
    // SAFETY: the kernel writes at most the length given, which is the buffer's.
    let len = unsafe { libc::syscall(libc::SYS_keyctl, READ, key, bytes.as_mut_ptr(), bytes.len()) };
    let len = usize::try_from(len)
        .map_err(|_| KeyError(format!("the key {description:?}: {}", std::io::Error::last_os_error())))?;
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_long_enough() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let source: DeviceKeySource = format!("file:{}", path.display()).parse().unwrap();
        let problem = || source.fetch().unwrap_err().to_string();
        assert!(problem().contains("No such file"), "{}", problem());
        let write = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write(&[7; 64], 0o640);
        assert!(problem().contains("chmod 600"), "{}", problem());
        write(&[7; 31], 0o600);
        assert!(problem().contains("has 31 bytes"), "{}", problem());
        write(&[7; 5000], 0o600);
        assert!(problem().contains("32 to 4096"), "{}", problem());
        write(&[7; 64], 0o600);
        let key = *source.fetch().unwrap().bytes();
        write(&[[7; 64].as_slice(), b"\n"].concat(), 0o600);
        assert_ne!(source.fetch().unwrap().bytes(), &key, "a line's end counts");
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in ["", "file", "file:", "env:A=B", "credential:../x", "kms:x", "/etc/key"] {
            assert!(text.parse::<DeviceKeySource>().is_err(), "{text}");
        }
        for text in ["file:/etc/key", "env:KEY", "credential:opal", "keyring:quarry:disk"] {
            assert_eq!(text.parse::<DeviceKeySource>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn missing_keys_say_what_to_do() {
        let problem = |text: &str| text.parse::<DeviceKeySource>().unwrap().fetch().unwrap_err().to_string();
        assert!(problem("env:QUARRY_NO_SUCH_KEY").contains("QUARRY_NO_SUCH_KEY"));
        assert!(problem("keyring:quarry-no-such-key").contains("keyctl padd user"));
    }
}
