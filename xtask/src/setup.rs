//! `cargo xtask setup`.

use crate::process::{cargo, run, say, succeeds};
use anyhow::{Context, Result};
use qemu_configs::Assets;
use std::process::Command;

/// What the tests need of the host, beyond Rust and apt: compilers for the crates that bring C or C++ (libFuzzer among
/// them), the keys of Debian's newer releases, certificates for cargo.
const PACKAGES: &[&str] = &["ca-certificates", "debian-archive-keyring", "g++", "gcc", "libc6-dev"];

/// cargo's subcommands that the tests use.
const TOOLS: &[&str] = &["cargo-nextest", "cargo-fuzz"];

/// All that any task needs.
pub fn everything() -> Result<()> {
    packages()?;
    tools()?;
    images().map(drop)
}

/// Debian packages of the host.
pub fn packages() -> Result<()> {
    let installed = |package: &&&str| {
        let output = Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]).output();
        output.is_ok_and(|output| output.stdout == b"install ok installed")
    };
    let missing: Vec<&str> = PACKAGES.iter().filter(|package| !installed(package)).copied().collect();
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

/// cargo-nextest and cargo-fuzz.
pub fn tools() -> Result<()> {
    for tool in TOOLS {
        if has(tool) {
            eprintln!("setup: {tool}: already there");
            continue;
        }
        say(&format!("{tool} is missing: building it takes a few minutes"));
        // In its own release's dependencies; not with this workspace's flags or directories.
        run(cargo(["install", "--locked", tool]).env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR"))
            .with_context(|| format!("{tool} could not be installed"))?;
    }
    Ok(())
}

/// True when cargo finds the subcommand.
pub fn has(tool: &str) -> bool {
    let subcommand = tool.trim_start_matches("cargo-");
    succeeds(&mut cargo([subcommand, "--version"]))
}

/// What the guest is made of.
pub fn images() -> Result<Assets> {
    Assets::setup()
}
