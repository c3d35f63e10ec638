//! [`Error`]: why the driver could not do what was asked.

use std::io;
use std::time::Duration;

use nvme_spec::{Command, Completion, Status};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the driver could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server answered a vfio-user message with an error.
    #[error("{message} was refused: {cause}")]
    Refused {
        /// The message.
        message: &'static str,
        /// The error number of the reply.
        cause: io::Error,
    },
    /// The server broke the vfio-user protocol.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The `vfio_user` crate's client failed.
    #[error("vfio-user client: {0}")]
    Client(#[from] vfio_user::Error),
    /// Nothing happened in time.
    #[error("no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// The controller reports a fatal status (CSTS.CFS).
    #[error("the controller reports a fatal status (CSTS.CFS)")]
    Fatal,
    /// A command completed with an error.
    #[error("opcode {:#04x} on queue {}: {status:?}", command.opcode, completion.sqid)]
    Status {
        /// What was sent.
        command: Box<Command>,
        /// What came back.
        completion: Completion,
        /// Its status.
        status: Status,
    },
    /// The arena has no room for this.
    #[error("the arena has no {0} contiguous bytes left")]
    NoMemory(usize),
    /// A submission queue has no free slot.
    #[error("submission queue {0} is full")]
    QueueFull(u16),
    /// The controller or the transport lacks something.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
}

impl Error {
    /// The NVMe status, if a command completed with one.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// The error number, if the server refused a message.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}
