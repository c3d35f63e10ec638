//! `cargo xtask setup`.

use crate::process::{cargo, run, say, succeeds};
use anyhow::{Context, Result};
use qemu_configs::Assets;
use std::process::Command;

/// What the tests need of the host, beyond Rust and apt: compilers for the crates that bring C or C++ (libFuzzer among
/// them), the keys of Debian's newer releases, certificates for cargo, loop devices (mount), qemu-img (qemu-utils), and
/// valgrind, which counts what an I/O costs.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "debian-archive-keyring",
    "g++",
    "gcc",
    "libc6-dev",
    "mount",
    "qemu-utils",
    "valgrind",
];

/// What a Ceph cluster on this machine and its clients are.
const CEPH: &[&str] = &["ceph-common", "ceph-mon", "ceph-osd", "fio", "qemu-block-extra"];

/// The test runner.
pub const NEXTEST: &str = "cargo-nextest";
/// What builds and runs fuzz targets.
pub const FUZZ: &str = "cargo-fuzz";

/// All that any task needs.
pub fn everything() -> Result<()> {
    packages()?;
    ceph()?;
    tool(NEXTEST)?;
    tool(FUZZ)?;
    images()?;
    rdma_image().map(drop)
}

/// Debian packages of the host.
pub fn packages() -> Result<()> {
    debian(PACKAGES)
}

/// Debian packages of Ceph.
pub fn ceph() -> Result<()> {
    debian(CEPH)
}

/// Those of `packages` that are missing, where this is Debian and root.
pub fn debian(packages: &[&str]) -> Result<()> {
    let installed = |package: &&&str| {
        let output = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
        output.is_ok_and(|output| output.stdout == b"install ok installed")
    };
    let missing: Vec<&str> = packages.iter().filter(|package| !installed(package)).copied().collect();
    if missing.is_empty() {
        eprintln!("setup: Debian packages: already there");
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("setup: Debian packages: not root, so please: apt-get install {}", missing.join(" "));
        return Ok(());
    }
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        command
    };
    run(apt_get().arg("update"))?;
    run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(missing))
}

/// One of cargo's subcommands.
pub fn tool(name: &str) -> Result<()> {
    if has(name) {
        eprintln!("setup: {name}: already there");
        return Ok(());
    }
    say(&format!("{name} is missing: building it takes a few minutes"));
    // With the dependencies that it was released with, and not with this workspace's flags or directories.
    run(cargo(["install", "--locked", name]).env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR"))
        .with_context(|| format!("{name} could not be installed"))
}

/// True when cargo finds the subcommand.
fn has(tool: &str) -> bool {
    let subcommand = tool.trim_start_matches("cargo-");
    succeeds(&mut cargo([subcommand, "--version"]))
}

/// What the guest is made of.
pub fn images() -> Result<Assets> {
    Assets::setup()
}

/// What the guest with RDMA and Ceph is made of.
pub fn rdma_image() -> Result<Assets> {
    Assets::setup_rdma()
}
