//! Block devices on a Ceph cluster, over Ceph's own client libraries, which are loaded when they are needed.
//!
//! - [`RbdDevice`]: an RBD image, with all that librbd knows: snapshots, clones, object maps, the exclusive lock, journals.
//! - [`RadosDevice`]: a [`Volume`], plainly striped over objects, through librados.
//! - [`Cluster`] and [`Connections`]: what they have in common. A connection has threads of Ceph's own; an I/O goes to them
//!   and comes back into the reactor's inbox ([`block::reactor::RemoteOp`]).
//!
//! A cluster that does not answer stalls only its own I/O: nothing that a reactor calls waits for it, what is in flight has a
//! [budget](budget::Budget), and an I/O that is cancelled leaves nothing of its guest's behind.
//!
//! What it leaves out: the formats and protocols of Ceph.

mod abandoned;
mod budget;
mod buffers;
mod cluster;
mod error;
mod ffi;
mod keeper;
mod patience;
mod rados;
mod rbd;
mod request;

pub use cluster::{Cluster, ClusterOptions, Connections, Pool, RESERVED_OPTIONS};
pub use error::{OpenError, OpenErrorKind};
pub use ffi::LoadError;
pub use patience::{end_by, left_behind};
pub use rados::{CreateOptions, RadosDevice, RadosOptions, Volume, VolumeInfo, VolumeSpec};
pub use rbd::{Lock, RbdDevice, RbdOptions};
