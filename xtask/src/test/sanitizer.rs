//! The racing clients once more, against a server with AddressSanitizer in it: what they make it read or write outside of
//! its memory ends it.

use super::tally::{self, Tally};
use super::watch;
use crate::process::{cargo, target};
use anyhow::Result;

/// Named on purpose: flags for a target leave build scripts and macros alone.
#[cfg(target_arch = "x86_64")]
const TARGET: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
const TARGET: &str = "aarch64-unknown-linux-gnu";

pub fn run(tally: &mut Tally) -> Result<()> {
    let directory = target().join("asan");
    let mut build = cargo(["build", "--release", "-p", "quarry", "--target", TARGET, "--target-dir"]);
    build
        .arg(&directory)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env_remove("CARGO_TARGET_DIR");
    let built = watch(&mut build, |_| ())?;
    if !built.success() {
        tally.add("the server with AddressSanitizer, its build", tally::Counts::default(), built);
        return Ok(());
    }
    let mut test = cargo(["nextest", "run", "-p", "quarry-tests", "--test", "racing", "--no-fail-fast"]);
    test.env("QUARRY_BIN", directory.join(TARGET).join("release/quarry"));
    let mut summary = None;
    let status = watch(&mut test, |line| summary = tally::nextest(line).or(summary))?;
    tally.add("racing clients under AddressSanitizer", summary.unwrap_or_default(), status);
    Ok(())
}
