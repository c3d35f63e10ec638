//! Quarry: native NVMe disks for virtual machines, over vfio-user.
//!
//! This library is the program without its `main`: the [configuration](config), what runs of it ([`server`],
//! [`reactor`]), and the [command line](cli), so that tests can start servers in process.

pub mod affinity;
pub mod ceph;
pub mod cli;
pub mod config;
pub mod control;
pub mod devices;
pub mod endpoint;
pub mod exit;
pub mod flush;
pub mod identity;
pub mod limits;
pub mod logging;
pub mod reactor;
pub mod server;
pub mod signals;
pub mod size;
pub mod spec;
pub mod suggest;
