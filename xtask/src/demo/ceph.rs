//! `cargo xtask demo --ceph`: the disk is an RBD image, on a cluster of this machine that comes and goes with the demo.

use crate::process::say;
use crate::server::Server;
use crate::setup;
use anyhow::{Context, Result, bail};
use ceph_cluster::Cluster;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// In the pool `rbd`.
const IMAGE: &str = "demo";

/// A running cluster with the demo's image.
pub struct Ceph {
    cluster: Cluster,
    directory: PathBuf,
}

impl Ceph {
    /// Starts a cluster with its data in `demo`, and makes the image.
    pub fn start(demo: &Path) -> Result<Self> {
        setup::ceph()?;
        if let Some(missing) = Cluster::program_is_missing() {
            bail!("{missing}");
        }
        let directory = demo.join("cluster");
        // Of a demo that was interrupted: its daemons have ended with it.
        remove(&directory)?;
        say(&format!("start a Ceph cluster (a monitor, three OSDs) in {}", directory.display()));
        let cluster = Cluster::builder().directory(&directory).start()?;
        cluster.ok("rbd", ["create", &format!("rbd/{IMAGE}"), "--size", "2G"])?;
        Ok(Self { cluster, directory })
    }

    pub fn serve(&self, quarry: &Path, demo: &Path) -> Result<Server> {
        Server::rbd(quarry, demo, &self.cluster, IMAGE)
    }

    /// What Ceph says about the image: who has it open, and how much of it there is.
    pub fn proof(&self) -> Result<String> {
        let image = format!("rbd/{IMAGE}");
        let status = self.cluster.ok("rbd", ["status", &image])?;
        let used = self.cluster.ok("rbd", ["du", &image])?;
        Ok(format!("$ rbd status {image}\n{status}$ rbd du {image}\n{used}"))
    }

    /// Ends it and removes its data.
    pub fn stop(self) -> Result<()> {
        self.cluster.stop()?;
        remove(&self.directory)
    }
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).context(directory.display().to_string()),
        _ => Ok(()),
    }
}
