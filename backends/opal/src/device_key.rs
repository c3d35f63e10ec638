//! [`DeviceKeySource`]: where the key comes from that everything on a drive is sealed with.
//!
//! Whoever has the device and this key has what a factory-new drive gives everybody: the data of ranges that were never
//! locked. So it belongs somewhere else than the device. The key is made from [`LEAST`] to [`MOST`] bytes as they are: a
//! newline at the end counts as one of them. They should be random (`head -c 64 /dev/urandom`), not a password: nothing
//! stretches them.

mod keyring;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::crypto::kdf;
use crate::secret::Secret;

/// The least bytes that make a key.
pub const LEAST: usize = 32;
/// The most bytes that make a key.
pub const MOST: usize = 4096;

/// What the key is made for.
const PURPOSE: &[u8] = b"quarry device key";

/// Gives the device key: the seam for a key management service.
pub trait KeyProvider {
    /// The key. May block.
    ///
    /// # Errors
    /// There is none; the text says what to do, and shows nothing of a key.
    fn fetch(&self) -> Result<Secret<32>, KeyError>;
}

/// Where the device key comes from. As a text: `file:/abs/path`, `env:NAME`, `credential:NAME`, `keyring:DESCRIPTION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKeySource {
    /// A file that nobody but its owner may touch.
    File(PathBuf),
    /// An environment variable. Others with this user's rights, and children, see it for as long as the process lives.
    Env(String),
    /// A credential of the systemd unit (`LoadCredential=`, `LoadCredentialEncrypted=`).
    Credential(String),
    /// A key of type `user` in this process's, session's or user's keyring of the Linux kernel.
    Keyring(String),
}

/// A text that names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a source of a device key: {reason}. Use file:/absolute/path, env:NAME, credential:NAME (of the systemd unit) or \
     keyring:DESCRIPTION (of the Linux kernel)"
)]
pub struct ParseError {
    reason: &'static str,
}

/// Why there is no device key.
#[derive(Debug, thiserror::Error)]
#[error("the device key from {from}: {why}")]
pub struct KeyError {
    from: String,
    why: String,
}

impl KeyError {
    /// `why` says what is wrong and what to do about it, and shows nothing of a key. For providers elsewhere.
    pub fn new(from: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { from: from.to_string(), why: why.to_string() }
    }
}

impl FromStr for DeviceKeySource {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |reason| Err(ParseError { reason });
        // The text itself is not shown: it may be a key that was put in the wrong place.
        let Some((kind, name)) = text.split_once(':') else { return wrong("it has no `:`") };
        if name.is_empty() || name.contains('\0') {
            return wrong("there must be something after the `:`, without NUL");
        }
        match kind {
            "file" if !Path::new(name).is_absolute() => wrong("the path is not absolute"),
            "file" => Ok(Self::File(name.into())),
            "env" if name.contains('=') => wrong("the name of a variable has no `=`"),
            "env" => Ok(Self::Env(name.into())),
            "credential" if name.contains('/') || name == "." || name == ".." => {
                wrong("the name of a credential is no path")
            }
            "credential" => Ok(Self::Credential(name.into())),
            "keyring" if name.len() > keyring::LONGEST => wrong("the description is longer than 4095 bytes"),
            "keyring" => Ok(Self::Keyring(name.into())),
            _ => wrong("it starts with none of the kinds that there are"),
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
            Self::File(path) => from_file(path, true),
            Self::Env(name) => from_env(name),
            Self::Credential(name) => from_credential(std::env::var_os("CREDENTIALS_DIRECTORY"), name),
            Self::Keyring(name) => keyring::read(name),
        };
        let key = material.and_then(|material| self.hash(&material));
        key.map_err(|why| KeyError { from: self.to_string(), why })
    }
}

impl DeviceKeySource {
    fn hash(&self, material: &[u8]) -> Result<Secret<32>, String> {
        let wrong = match material.len() {
            0 => "it is empty".to_owned(),
            len if len < LEAST => format!("it has {len} bytes, at least {LEAST} are needed"),
            len if len > MOST => format!("it has more than {MOST} bytes"),
            _ => return Ok(kdf::extract(material, b"", PURPOSE)),
        };
        Err(format!("{wrong}. {}", self.remedy()))
    }

    /// How to make a new one.
    fn remedy(&self) -> String {
        let made = match self {
            Self::File(path) => {
                let path = path.display();
                format!("`(umask 077; head -c 64 /dev/urandom > {path}); chmod 600 {path}`")
            }
            Self::Env(name) => format!("`export {name}=$(head -c 64 /dev/urandom | base64 -w 0)`"),
            Self::Credential(name) => {
                format!(
                    "`head -c 64 /dev/urandom > FILE; chmod 600 FILE`, and LoadCredential={name}:FILE in the unit"
                )
            }
            Self::Keyring(name) => format!("`head -c 64 /dev/urandom | keyctl padd user {name} @s`"),
        };
        format!("For a new drive make one: {made}. One that drives were made with must stay as it was")
    }
}

/// The bytes of a file, one more than [`MOST`] at most.
fn from_file(path: &Path, checks_mode: bool) -> Result<Zeroizing<Vec<u8>>, String> {
    // No FIFO makes this wait.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no such file. {}", DeviceKeySource::File(path.into()).remedy())
        }
        io::ErrorKind::PermissionDenied => {
            format!("this process may not read it: run as its owner, or `chown` it ({error})")
        }
        _ => format!("it cannot be opened: {error}"),
    })?;
    let about = file.metadata().map_err(|error| format!("it cannot be opened: {error}"))?;
    if !about.is_file() {
        return Err("it is not a regular file: name one".to_owned());
    }
    if checks_mode && about.mode() & 0o077 != 0 {
        return Err(format!(
            "others than its owner may read or write it (mode {:03o}): `chmod 600 {}`, and make a new key if somebody may \
             have read it",
            about.mode() & 0o777,
            path.display()
        ));
    }
    let mut bytes = Zeroizing::new(vec![0; MOST + 1]);
    let mut len = 0;
    while len < bytes.len() {
        match (&file).read(&mut bytes[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("it cannot be read: {error}")),
        }
    }
    bytes.truncate(len); // keeps its memory, all of which is zeroed when it is dropped
    Ok(bytes)
}

fn from_env(name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    match std::env::var_os(name) {
        Some(value) => Ok(Zeroizing::new(value.into_vec())),
        None => Err(format!("there is no such variable. {}", DeviceKeySource::Env(name.to_owned()).remedy())),
    }
}

fn from_credential(directory: Option<OsString>, name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let remedy = || DeviceKeySource::Credential(name.to_owned()).remedy();
    let Some(directory) = directory.filter(|directory| directory != OsStr::new("")) else {
        return Err(format!(
            "CREDENTIALS_DIRECTORY is not set: the process was not started by a systemd unit with credentials. {}",
            remedy()
        ));
    };
    let path = Path::new(&directory).join(name);
    if matches!(path.try_exists(), Ok(false)) {
        return Err(format!("the unit has no such credential. {}", remedy()));
    }
    // systemd's directory is the unit's alone; the files in it have what mode it likes.
    from_file(&path, false)
}

#[cfg(test)]
mod tests;
