//! A cluster for the tests of a process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use block_ceph::{Cluster, ClusterOptions, CreateOptions, Volume, VolumeSpec};
use ceph_cluster::{Cluster as Daemons, Store};

/// A cluster, where Ceph is installed.
pub struct TestBed(Option<Daemons>);

impl TestBed {
    /// Whether there is one. Else that is told, and the test has nothing to do.
    pub fn is_there(&self) -> bool {
        if self.0.is_none() {
            block::testing::cannot_run("ceph: ceph-mon, ceph-osd and ceph-common are not installed");
        }
        self.0.is_some()
    }

    /// Its daemons.
    pub fn daemons(&self) -> &Daemons {
        self.0.as_ref().expect("Ceph is there")
    }

    /// How to connect.
    pub fn options(&self) -> ClusterOptions {
        ClusterOptions {
            conf: self.daemons().conf().to_owned(),
            keyring: Some(PathBuf::from(self.daemons().keyring())),
            ..ClusterOptions::default()
        }
    }

    /// A new connection.
    pub fn connection(&self) -> Arc<Cluster> {
        Cluster::connect(&self.options()).expect("a connection")
    }
}

/// This process's cluster. It ends with the process.
pub fn bed() -> &'static TestBed {
    static BED: OnceLock<TestBed> = OnceLock::new();
    BED.get_or_init(|| {
        let missing = Daemons::program_is_missing().is_some();
        let daemons = (!missing).then(|| Daemons::builder().store(Store::Memory).start().expect("a cluster"));
        if daemons.is_some() {
            // SAFETY: the function does not unwind, and uses nothing that is gone at the end of the process.
            unsafe { libc::atexit(clean_up) };
        }
        TestBed(daemons)
    })
}

/// Its data go with the process; its daemons do so by themselves.
extern "C" fn clean_up() {
    if let Some(daemons) = &bed().0 {
        let _ = std::fs::remove_dir_all(daemons.directory());
    }
}

/// Waits for something that the cluster tells in its own time.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Halts all OSDs, or lets them go on.
pub fn stall(stalled: bool) {
    for id in 0..bed().daemons().osds() {
        let osd = bed().daemons().osd(id);
        if stalled { osd.pause() } else { osd.resume() }.expect("a signal");
    }
}

/// A name that nothing else of this process has.
pub fn name(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Makes an image in the pool `rbd`; its name.
pub fn rbd_image(size: &str, more: &[&str]) -> String {
    let name = name("image");
    let create = ["create", "--size", size, &format!("rbd/{name}")];
    bed().daemons().ok("rbd", create.iter().chain(more)).expect("an image");
    name
}

/// Makes a volume.
pub fn volume(pool: &str, name: &str, options: &CreateOptions) -> VolumeSpec {
    let spec = VolumeSpec { pool: pool.to_owned(), namespace: String::new(), name: name.to_owned() };
    Volume::create(&bed().connection(), &spec, options).expect("a volume");
    spec
}
