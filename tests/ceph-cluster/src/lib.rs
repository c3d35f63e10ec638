//! A throwaway Ceph cluster of ordinary processes, for tests, benchmarks, the demo and newcomers.
//!
//! One monitor, a few OSDs, a manager where one is asked for; no systemd, no containers, no root. Everything listens on
//! one address, 127.0.0.1 unless told otherwise, and keeps its data below one directory. Debian's packages `ceph-mon`,
//! `ceph-osd` and `ceph-common` are all it takes: 16.2 (Debian 12) and 18.2 (Debian 13) were tried.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = ceph_cluster::Cluster::builder().start()?;
//! cluster.ok("rbd", ["create", "rbd/disk", "--size", "1G"])?;
//! cluster.osd(1).kill()?;
//! cluster.wait_down(1)?;
//! cluster.osd(1).start()?;
//! cluster.wait_healthy()?;
//! cluster.stop()
//! # }
//! ```
//!
//! There are two pools: `rbd`, replicated on up to three OSDs, made ready for images; and, with three OSDs or more, `ec`,
//! erasure coded (k=2, m=1) with overwrites, for the data of images. Both go on with one OSD less.
//!
//! A cluster ends with the program that started it, however that ends. [`Cluster::up`] is for one that shall stay.
//!
//! What it leaves out: more than one monitor, several machines, and safety: nothing of it is meant to keep data.

mod admin_socket;
mod cluster;
mod conf;
mod daemon;
mod health;
mod packages;
mod run;
mod standing;
mod start;

pub use cluster::Cluster;
pub use conf::{Auth, Builder, Store};
pub use daemon::Daemon;
pub use packages::{Missing, available};
pub use standing::Standing;
