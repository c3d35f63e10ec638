//! Builds the guest's agent, a static program, with the host's own Rust.

use super::cache::Cache;
use super::run;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The agent's name in its directory of the cache.
pub const PROGRAM: &str = "guest-agent";
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn sources() -> PathBuf {
    super::workspace().join("qemu-configs/guest-agent")
}

pub fn recipe() -> Result<String> {
    let mut files = vec!["Cargo.toml".into(), "Cargo.lock".into(), PathBuf::from(".cargo/config.toml")];
    for entry in fs::read_dir(sources().join("src"))? {
        files.push(Path::new("src").join(entry?.file_name()));
    }
    files.sort();
    files.iter().try_fold(include_str!("agent.rs").to_owned(), |mut recipe, file| {
        let path = sources().join(file);
        recipe += &fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(recipe)
    })
}

pub fn build(cache: &Cache, to: &Path) -> Result<()> {
    let target = cache.root().join("agent-target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .current_dir(sources()) // its .cargo/config.toml makes it static
        .args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER"))?;
    fs::copy(target.join(TARGET).join("release").join(PROGRAM), to.join(PROGRAM))?;
    super::cache::remove(&target)
}
