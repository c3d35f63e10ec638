//! The contract between everything that stores blocks and everything that wants them stored.
//!
//! A [`Device`] is shared by all threads. Each reactor opens its own [`Channel`] on it and submits [`Io`]s
//! there; a channel completes an `Io` on the spot or returns an [`IoFuture`] that the submitter polls.
//! Layers (cache, encryption, faults, …) are devices over `Arc<dyn Device>`.
//!
//! What it leaves out: NVMe (see `nvme-emu`), where memory comes from (the submitter's guard keeps it mapped).

pub mod buffer;
pub mod conformance;
pub mod device;
pub mod error;
pub mod fault;
pub mod future;
pub mod io;
pub mod listeners;
pub mod prefetch;
pub mod reactor;
pub mod security;
pub mod testing;

pub use buffer::AlignedBuf;
pub use device::{Abilities, Channel, Device, Info, Submission};
pub use error::{Error, ErrorKind};
pub use future::IoFuture;
pub use io::{Completed, Flags, Io, Op, Segment};
pub use listeners::{Listener, Listeners};
pub use reactor::Reactor;
pub use security::Security;
