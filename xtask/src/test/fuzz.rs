//! Runs every fuzz target for a while, as many at once as there are processors.

use super::tally::{Counts, Tally};
use super::{seconds, watch};
use crate::process::{cargo, line, say, target, workspace};
use crate::setup;
use anyhow::{Context, Result};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;

pub fn run(tally: &mut Tally) -> Result<()> {
    let targets = targets();
    if targets.is_empty() {
        return Ok(());
    }
    if let Err(e) = setup::tool(setup::FUZZ) {
        tally.cannot_run(&format!("fuzz targets: {e:#}"), u32::try_from(targets.len())?);
        return Ok(());
    }
    let seconds = seconds("QUARRY_FUZZ_SECONDS", 60)?;
    // A run without RUSTC_BOOTSTRAP, by hand, leaves here that the sanitizers are unavailable.
    let _ = fs::remove_file(directory().join(".rustc_info.json"));
    let built = watch(&mut fuzz("build"), |_| ())?;
    if !built.success() {
        tally.add("fuzz targets, their build", Counts::default(), built);
        return Ok(());
    }
    say(&format!("{} fuzz targets, {seconds} s each", targets.len()));
    let (queue, results) = (Mutex::new(targets.into_iter()), Mutex::new(Vec::new()));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let next = || queue.lock().ok().and_then(|mut queue| queue.next());
                while let Some(name) = next() {
                    let result = one(&name, seconds);
                    if let Ok(mut results) = results.lock() {
                        results.push((name, result));
                    }
                }
            });
        }
    });
    for (name, result) in results.into_inner().unwrap_or_default() {
        let status = result.with_context(|| format!("fuzz target {name}"))?;
        let passed = u32::from(status.success());
        tally.add(&format!("fuzz target {name}"), Counts { passed, ..Counts::default() }, status);
    }
    Ok(())
}

/// The names of all targets.
fn targets() -> Vec<String> {
    let entries = fs::read_dir(workspace().join("fuzz/fuzz_targets")).into_iter().flatten().flatten();
    let sources =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let mut names: Vec<_> = sources.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}

/// The sanitizers' own build directory.
fn directory() -> PathBuf {
    target().join("fuzz")
}

fn fuzz(task: &str) -> Command {
    let mut command = cargo(["fuzz", task, "--target-dir"]);
    command
        .arg(directory())
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    command
}

/// Runs one target. What it finds interesting goes below `target`, so that a run leaves the repository's seeds as they are.
fn one(name: &str, seconds: u64) -> Result<ExitStatus> {
    let found = target().join("fuzz-corpus").join(name);
    let seeds = workspace().join("fuzz/corpus").join(name);
    fs::create_dir_all(&found)?;
    let mut command = fuzz("run");
    command.arg(name).arg(found);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg("--").arg(format!("-max_total_time={seconds}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    say(&line(&command));
    let mut child = command.spawn()?;
    let stderr = child.stderr.take().context("a pipe was asked for")?;
    for text in BufReader::new(stderr).split(b'\n') {
        eprintln!("[{name}] {}", String::from_utf8_lossy(&text?));
    }
    Ok(child.wait()?)
}
