//! Other programs, and where this workspace is.

use anyhow::{Context, Result, bail};
pub use qemu_configs::setup::workspace;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// A cargo command in the workspace.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// Runs a command, whose output is seen as it comes. Anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    say(&line(command));
    let status = command.status().with_context(|| line(command))?;
    if !status.success() {
        bail!("{}: {status}", line(command));
    }
    Ok(())
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What is being done, set off from the output of others.
pub fn say(what: &str) {
    eprintln!("==> {what}");
}

/// True when `command` runs and succeeds; what it prints is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Builds the server for use and returns its path.
pub fn build_quarry() -> Result<PathBuf> {
    run(&mut cargo(["build", "--release", "-p", "quarry"]))?;
    Ok(target().join("release/quarry"))
}
