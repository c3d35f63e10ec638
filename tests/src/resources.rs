//! [`Resources`]: what a process holds, as an oracle for leaks.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Descriptors and mappings of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// What the open descriptors are, sorted.
    pub descriptors: Vec<String>,
    /// Mappings of clients' memory (their memfds are named "nvme-driver").
    pub guest_mappings: usize,
    /// All mappings.
    pub mappings: usize,
    /// Resident memory in KiB.
    pub resident_kib: u64,
}

impl Resources {
    /// Those of process `pid`.
    pub fn of(pid: u32) -> Self {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let mut descriptors: Vec<String> = fs::read_dir(proc.join("fd"))
            .expect("the process is there")
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            // Socket and pipe numbers differ from client to client.
            .map(|link| link.to_string_lossy().split(':').next().unwrap_or_default().to_owned())
            .collect();
        descriptors.sort();
        let maps = fs::read_to_string(proc.join("maps")).expect("the process is there");
        let status = fs::read_to_string(proc.join("status")).expect("the process is there");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Self {
            descriptors,
            guest_mappings: maps.lines().filter(|line| line.contains("memfd:nvme-driver")).count(),
            mappings: maps.lines().count(),
            resident_kib: resident
                .and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
                .unwrap_or(0),
        }
    }

    /// Waits until process `pid` holds no more than this: no further descriptors or client memory, and of mappings and
    /// resident memory only what an allocator may keep.
    #[track_caller]
    pub fn assert_settles(&self, pid: u32) {
        let start = Instant::now();
        loop {
            let now = Self::of(pid);
            let settled = is_part_of(&now.descriptors, &self.descriptors)
                && now.guest_mappings == self.guest_mappings
                && now.mappings <= self.mappings + 8
                && now.resident_kib <= self.resident_kib + 16 * 1024;
            if settled {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "left behind:\n before {self:?}\n after  {now:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether every element of `part` is one of `whole`, each as often as it is there. Both are sorted.
fn is_part_of(part: &[String], whole: &[String]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|one| whole.any(|other| other == one))
}
