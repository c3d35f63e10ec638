//! Why a cluster, a pool, an image or a volume cannot be used, with its remedy; and what an errno of an I/O means.

use std::fmt;

use block::{Error, ErrorKind, Op};

use crate::ffi::{Errno, LoadError};

/// What is wrong, as far as the remedy depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// Ceph's libraries.
    Library,
    /// `ceph.conf`, the keyring's file, an option.
    Configuration,
    /// The monitors do not answer.
    Network,
    /// The cluster does not know the user, or not with this key.
    Authentication,
    /// The user may not do that.
    Access,
    /// The pool is not there.
    Pool,
    /// The namespace is not there.
    Namespace,
    /// The image or volume is not there, or cannot be served.
    Image,
    /// The snapshot is not there.
    Snapshot,
    /// Another client has it.
    InUse,
    /// The cluster answers, but not to this in time.
    Timeout,
    /// Anything else.
    Other,
}

/// Why something on a cluster cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError {
    /// What is wrong.
    pub kind: OpenErrorKind,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// A name that is not there, and those that are.
    pub names: Option<(String, Vec<String>)>,
    /// The setting of the cluster that is wrong, if it is one: `conf`, `user`, `keyring`, or `options.` and the option's name.
    pub setting: Option<Box<str>>,
}

impl OpenError {
    pub(crate) fn new(kind: OpenErrorKind, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: remedy.into(), names: None, setting: None }
    }

    /// With the setting of the cluster that is wrong.
    pub(crate) fn of_setting(mut self, setting: impl Into<Box<str>>) -> Self {
        self.setting = Some(setting.into());
        self
    }

    /// With the name that is not there, and those that are, of which one may be meant.
    pub(crate) fn not_among(mut self, name: &str, known: Vec<String>) -> Self {
        self.names = Some((name.to_owned(), known));
        self
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.remedy)
    }
}

impl std::error::Error for OpenError {}

impl From<LoadError> for OpenError {
    fn from(error: LoadError) -> Self {
        Self::new(OpenErrorKind::Library, error.to_string(), error.remedy())
    }
}

/// What `errno` of an operation means for who submitted it.
pub(crate) fn of_io(what: &str, op: Op, errno: Errno) -> Error {
    let kind = match errno {
        // Fenced: another client has taken over, or an operator said so.
        Errno::BLOCKLISTED => ErrorKind::Unreachable,
        Errno(libc::EINVAL) => ErrorKind::InvalidInput,
        Errno(libc::EOPNOTSUPP | libc::ENOSYS) => ErrorKind::Unsupported,
        // The lock is another client's and does not come back (EROFS), or it is opened for reading.
        Errno(libc::EROFS | libc::EBADF) => ErrorKind::ReadOnly,
        // The pool or the cluster is full, or its quota is used up.
        Errno(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        Errno(libc::ETIMEDOUT) => ErrorKind::Timeout,
        Errno(libc::EPERM | libc::EACCES) => ErrorKind::AccessDenied,
        Errno(libc::ECANCELED | libc::EINTR) => ErrorKind::Aborted,
        Errno(libc::EILSEQ) if op == Op::CompareAndWrite => ErrorKind::CompareMismatch,
        // The image or the pool was removed.
        Errno(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTCONN) => ErrorKind::Unreachable,
        Errno(libc::ENOMEM | libc::EAGAIN | libc::EBUSY) => ErrorKind::Internal,
        Errno(_) if op == Op::Read => ErrorKind::UnrecoveredRead,
        Errno(_) => ErrorKind::WriteFault,
    };
    Error::new(kind, format!("{what}: {op:?}: {errno}"))
}
