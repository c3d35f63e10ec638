//! An NVMe 2.0 subsystem: controllers, queues, namespaces. Knows nothing of sockets.
//!
//! A [`Subsystem`] holds namespaces over `block` devices. A [`Controller`] is one PCI function of it: its
//! registers are reached through [`vfio_user_server::PciFunction`] by the control threads, its queues are
//! polled by [`Worker`]s, one per reactor.

pub mod controller;
pub mod subsystem;
pub mod worker;

pub use controller::{Controller, ControllerConfig};
pub use subsystem::{NamespaceConfig, Subsystem, SubsystemConfig, SubsystemError};
pub use worker::{Worker, WorkerSeed};
