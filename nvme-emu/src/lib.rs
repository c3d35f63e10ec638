//! An NVMe 2.0 subsystem: controllers, queues, namespaces. Knows nothing of sockets.
//!
//! A [`Subsystem`] holds namespaces over `block` devices. A [`Controller`] is one PCI function of it: its
//! registers are reached through [`vfio_user_server::PciFunction`] by the control threads, its queues are
//! polled by [`Worker`]s, one per reactor.
//!
//! Specification references: "Base" is NVM Express Base 2.0, "NVM" the NVM Command Set 1.0, "PCIe" the NVMe over
//! PCIe Transport 1.0.
//!
//! What it leaves out: metadata and protection information, reservations, namespace management, firmware
//! update, zoned namespaces, controller memory buffers.

pub mod controller;
pub mod limits;
pub mod subsystem;
pub mod worker;

mod admin;
mod compare;
mod doorbells;
mod engine;
mod error_log;
mod fixed;
mod home;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod latch;
mod memory;
mod nvm;
mod placement;
mod queue;
mod registers;
mod security;
mod shared;
mod slots;
mod status;
mod transfer;

pub use controller::{Controller, ControllerConfig, Statistics};
pub use limits::{Limiter, Limits};
pub use placement::{MoveError, QueuePlace};
pub use subsystem::{NamespaceConfig, Subsystem, SubsystemConfig, SubsystemError};
pub use worker::{Worker, WorkerSeed};
