//! What the end-to-end tests share: [`Server`], a running `quarry`, and small helpers around `nvme-driver`.
//!
//! The tests in `tests/` run the real program in a process of its own and come in through its sockets. Those of
//! `guest_*.rs` and `rdma.rs` boot guests ([`Vm`]); the others need none.

pub mod binary;
pub mod ceph;
pub mod control;
pub mod data;
pub mod guest;
pub mod opal;
pub mod resources;
pub mod server;

pub use data::pattern;
pub use guest::Vm;
pub use resources::Resources;
pub use server::Server;

use nvme_driver::{Controller, QueuePair, Result};
use nvme_spec::{Completion, Status};

/// A reply to the client must be there within this time, whatever the backend does (DESIGN.md, "DMA table").
pub const UNMAP_LIMIT: std::time::Duration = std::time::Duration::from_secs(4);

/// How long anything may take that has no limit of its own: a processor may be shared with much else.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// The status of a completion, without retry hints.
#[track_caller]
pub fn status(completion: Result<Completion>) -> Status {
    completion.expect("a completion").status().code()
}

/// A queue pair 1 of 64 entries, on a controller that was asked for 8 pairs.
#[track_caller]
pub fn io_queues(controller: &Controller) -> QueuePair {
    controller.request_queues(8).expect("queues are granted");
    controller.create_queue_pair(1, 64).expect("queue pair 1")
}
