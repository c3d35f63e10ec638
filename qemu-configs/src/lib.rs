//! What a guest needs, and guests for tests.
//!
//! - `launch/` holds launch files for people: QEMU, libvirt, cloud-hypervisor.
//! - [`setup`] makes what the test guest is made of: a QEMU with `vfio-user-pci`, firmware, a kernel, a root image, a
//!   bootable disk; and a kernel and a root image with RDMA and Ceph. All of it comes from Debian's packages, through the
//!   machine's own apt configuration, into a cache below `target/guest`; nothing is installed on the host and no root is
//!   needed.
//! - [`Guest`] boots such a guest, runs commands in it and plugs disks in and out.
//!
//! What it leaves out: guests other than Linux on x86-64, and networks but a cable between two guests.

mod guest;
pub mod setup;

pub use guest::spawn::spawn;
pub use guest::{Accel, Boot, Builder, Firmware, Guest, Network, Output, Running, disk_device};
pub use setup::Assets;
