//! Quarry: native NVMe disks for virtual machines, over vfio-user.
//!
//! This library is the program without its `main`: the [configuration](config), what runs of it ([`server`],
//! [`reactor`]), and the [command line](cli), so that tests can start servers in process.

pub mod affinity;
pub mod cli;
pub mod config;
pub mod exit;
pub mod identity;
pub mod logging;
pub mod reactor;
pub mod size;
pub mod spec;
pub mod suggest;
