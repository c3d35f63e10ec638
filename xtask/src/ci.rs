//! `cargo xtask check` and `cargo xtask ci`.

use crate::process::{self, cargo, workspace};
use crate::test::Test;
use anyhow::Result;

/// Crates with a workspace of their own.
const OTHERS: &[&str] = &["qemu-configs/guest-agent", "fuzz"];

pub fn run() -> Result<()> {
    Test::with_check().run()
}

pub fn check() -> Result<()> {
    process::run(&mut cargo(["fmt", "--all", "--check"]))?;
    for other in OTHERS {
        let manifest = workspace().join(other).join("Cargo.toml");
        if manifest.exists() {
            process::run(cargo(["fmt", "--check", "--manifest-path"]).arg(manifest))?;
        }
    }
    process::run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}
