//! Whether Ceph is installed.

use std::fmt;
use std::path::{Path, PathBuf};

/// Programs that a cluster needs, each with the Debian package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("ceph-mon", "ceph-mon"),
    ("monmaptool", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
    ("ceph", "ceph-common"),
    ("rados", "ceph-common"),
    ("rbd", "ceph-common"),
];

/// Debian packages that are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(pub Vec<&'static str>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not installed, so please: apt-get install --no-install-recommends {}", self.0.join(" "))
    }
}

impl std::error::Error for Missing {}

/// Tells which Debian packages a cluster lacks.
pub fn available() -> Result<(), Missing> {
    look_for(NEEDED)
}

/// The same for a manager.
pub(crate) fn manager() -> Result<(), Missing> {
    look_for(&[("ceph-mgr", "ceph-mgr")])
}

fn look_for(needed: &[(&str, &'static str)]) -> Result<(), Missing> {
    let mut missing: Vec<&str> =
        needed.iter().filter(|(program, _)| find(program).is_none()).map(|&(_, package)| package).collect();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}
