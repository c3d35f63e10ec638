//! A small polling NVMe host driver over vfio-user: the fast way into a controller without a guest, for tests and
//! benchmarks.
//!
//! [`Controller::connect`] opens a socket, maps an [`Arena`] of memory for the device and brings the controller up.
//! [`Controller::create_queue_pair`] gives a [`QueuePair`], on which an I/O is 64 bytes of stores, one store into the
//! mapped doorbell page and a poll of the completion queue in our own memory: no system call, no lock and no
//! allocation. [`Namespace`] wraps one with blocking reads and writes.
//!
//! Everything can also be done wrong on purpose: commands are plain [`nvme_spec::Command`]s that nobody checks, queues
//! can be created with any parameters, memory can be mapped and unmapped at any time, doorbells can be written with any
//! value, and a controller can be dropped in the middle of anything.
//!
//! Not here: recovery from errors, multipathing, metadata, other command sets than NVM.
//!
//! Buffers are freed when dropped, whatever the device still does with them: keep those of commands in flight.

pub mod admin;
pub mod controller;
pub mod data;
pub mod error;
pub mod interrupt;
pub mod io;
mod mapping;
pub mod memory;
pub mod namespace;
pub mod queue;
pub mod registers;
pub mod transport;

pub use controller::{Controller, Options};
pub use data::{Data, Prps, Sgl};
pub use error::{Error, Result};
pub use interrupt::EventFd;
pub use memory::{Arena, DmaBuffer, PAGE};
pub use namespace::Namespace;
pub use queue::{CompletionQueue, Doorbells, QueuePair, SubmissionQueue};
pub use transport::{MapAccess, Transport};
