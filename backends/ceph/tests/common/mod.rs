//! A cluster for the tests of a process.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use block_ceph::{Cluster, ClusterOptions};
use ceph_cluster::{Cluster as Bed, Store};

/// A cluster, and how to reach it.
pub struct TestBed {
    /// The daemons.
    pub cluster: Bed,
}

impl TestBed {
    /// How to connect.
    pub fn options(&self) -> ClusterOptions {
        ClusterOptions {
            conf: self.cluster.conf().to_owned(),
            keyring: Some(PathBuf::from(self.cluster.keyring())),
            ..ClusterOptions::default()
        }
    }

    /// A new connection.
    pub fn connection(&self) -> Arc<Cluster> {
        Cluster::connect(&self.options()).expect("a connection")
    }
}

/// This process's cluster.
pub fn bed() -> &'static TestBed {
    static BED: OnceLock<TestBed> = OnceLock::new();
    BED.get_or_init(|| {
        let cluster = Bed::builder().store(Store::Memory).start().expect("a cluster");
        TestBed { cluster }
    })
}
