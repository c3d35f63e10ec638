//! [`Bed`]: a Ceph cluster of a test's own, and configurations of servers on it.

use std::fs;
use std::time::{Duration, Instant};

use ceph_cluster::{Builder, Cluster};

/// How long a cluster may take for anything: it shares the processors with much else.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A cluster. It ends with the test.
pub struct Bed(Cluster);

impl Bed {
    /// Starts one, where Ceph is installed; else tells that the test cannot run here.
    #[track_caller]
    pub fn start(builder: Builder) -> Option<Self> {
        if let Some(missing) = Cluster::program_is_missing() {
            block::testing::cannot_run(&format!("ceph: {missing}"));
            return None;
        }
        match builder.start() {
            Ok(cluster) => Some(Self(cluster)),
            Err(error) => panic!("no cluster: {error:?}"),
        }
    }

    /// Its daemons.
    pub fn cluster(&self) -> &Cluster {
        &self.0
    }

    /// Runs one of Ceph's programs, which must succeed, with arguments separated by blanks. What it prints.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        match self.0.ok(program, words) {
            Ok(out) => out,
            Err(error) => panic!("{line}: {error:?}"),
        }
    }

    /// The table of the cluster, for a configuration.
    pub fn table(&self) -> String {
        self.table_with("")
    }

    /// The same with more keys.
    pub fn table_with(&self, keys: &str) -> String {
        let (conf, keyring) = (self.0.conf().display(), self.0.keyring().display());
        format!("[clusters.ceph]\nconf = \"{conf}\"\nkeyring = \"{keyring}\"\n{keys}\n")
    }

    /// A configuration with one image or volume, on the socket `vm.sock`: `device` has the keys of its table.
    pub fn config(&self, device: &str) -> String {
        let table = self.table();
        format!(
            "{table}\n[devices.disk]\n{device}\n[controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{{ device = \"disk\" }}]\n"
        )
    }

    /// Makes an image of random bytes; they are returned.
    #[track_caller]
    pub fn import(&self, image: &str, len: usize, seed: u64) -> Vec<u8> {
        let bytes = crate::pattern(seed, len);
        let path = self.0.directory().join("import");
        fs::write(&path, &bytes).expect("a file");
        self.ok(&format!("rbd import --no-progress {} {image}", path.display()));
        bytes
    }

    /// The bytes of an image, as others see them.
    #[track_caller]
    pub fn export(&self, image: &str) -> Vec<u8> {
        let path = self.0.directory().join("export");
        let _ = fs::remove_file(&path);
        self.ok(&format!("rbd export --no-progress {image} {}", path.display()));
        fs::read(&path).expect("the file")
    }

    /// The object map of an image says what is true.
    #[track_caller]
    pub fn check_object_map(&self, image: &str) {
        let said = self.ok(&format!("rbd object-map check --no-progress {image}"));
        let flags = self.ok(&format!("rbd info --format json {image}"));
        assert!(!flags.contains("invalid"), "{said}\n{flags}");
    }

    /// Halts all OSDs, or lets them go on.
    pub fn stall(&self, stalled: bool) {
        for id in 0..self.0.osds() {
            let osd = self.0.osd(id);
            if stalled { osd.pause() } else { osd.resume() }.expect("a signal");
        }
    }
}

/// Waits for something that happens in its own time.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
