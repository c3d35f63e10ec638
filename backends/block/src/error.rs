//! Why an [`Io`](crate::Io) failed: a small stable kind, and a cause for the log.

use std::fmt;
use std::io;
use std::sync::Arc;

/// What went wrong, as far as a submitter acts on it. `nvme-emu` maps each kind to one NVMe status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request contradicts the device's geometry (alignment, length, segments).
    InvalidInput,
    /// The range ends beyond the device.
    OutOfRange,
    /// The device does not have this operation.
    Unsupported,
    /// The device or its medium is read-only.
    ReadOnly,
    /// No space is left below a thin device.
    NoSpace,
    /// Data could not be read back (medium, checksum).
    UnrecoveredRead,
    /// Data could not be written (medium).
    WriteFault,
    /// The `Io` was cancelled by its submitter or its device went away.
    Aborted,
    /// The device did not answer in time.
    Timeout,
    /// The way to the device is broken (network, cluster, fenced).
    Unreachable,
    /// A buffer is no longer accessible (the VMM took the memory away).
    BadMemory,
    /// A lock or authentication forbids access.
    AccessDenied,
    /// The comparison of a compare operation did not match.
    CompareMismatch,
    /// A defect in this program.
    Internal,
}

/// An [`ErrorKind`] with its cause. Cheap to clone; only made on failing paths.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with a cause to show in logs: an `std::error::Error`, or a text.
    pub fn new(kind: ErrorKind, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind, cause: Some(Arc::from(cause.into())) }
    }

    /// The kind a submitter acts on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, cause: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{:?}: {cause}", self.kind),
            None => write!(f, "{:?}", self.kind),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// An errno of a read, write, fallocate or fsync, as the kernel returned it.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let kind = match error.raw_os_error() {
            Some(libc::EINVAL) => ErrorKind::InvalidInput,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => ErrorKind::Unsupported,
            Some(libc::EROFS | libc::EBADF) => ErrorKind::ReadOnly,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
            Some(libc::EIO | libc::ENODATA | libc::EILSEQ) => ErrorKind::UnrecoveredRead,
            Some(libc::ECANCELED | libc::EINTR) => ErrorKind::Aborted,
            Some(libc::ETIMEDOUT) => ErrorKind::Timeout,
            Some(libc::EFAULT) => ErrorKind::BadMemory,
            Some(libc::EACCES | libc::EPERM) => ErrorKind::AccessDenied,
            Some(libc::ENODEV | libc::ENXIO | libc::ENOLINK | libc::EREMOTEIO) => ErrorKind::Unreachable,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, error)
    }
}
