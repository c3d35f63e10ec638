//! The area `micro`: criterion's benchmarks of the parts of the data path.

use crate::process::{self, cargo, target};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// One benchmark.
#[derive(Serialize)]
pub struct Micro {
    pub name: String,
    /// Median nanoseconds of one iteration.
    pub ns: f64,
}

/// Runs them all and reads what criterion leaves behind.
pub fn run(quick: bool) -> Result<Vec<Micro>> {
    let directory = target().join("criterion");
    // What is there afterwards is of this run.
    let _ = fs::remove_dir_all(&directory);
    let (warm, measure, resamples) = if quick { ("0.1", "0.3", "1001") } else { ("0.5", "2", "10000") };
    let mut command = cargo(["bench", "-p", "quarry-bench", "--bench", "micro", "--", "--noplot"]);
    process::run(command.args([
        "--warm-up-time",
        warm,
        "--measurement-time",
        measure,
        "--nresamples",
        resamples,
    ]))?;
    let mut found = Vec::new();
    gather(&directory, &directory, &mut found)?;
    found.sort_by(|a: &Micro, b| a.name.cmp(&b.name));
    println!();
    for Micro { name, ns } in &found {
        println!("{name:<44}{ns:>9.1} ns");
    }
    Ok(found)
}

fn gather(root: &Path, directory: &Path, found: &mut Vec<Micro>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let estimates = path.join("new/estimates.json");
        if estimates.is_file() {
            let report: Value = serde_json::from_slice(&fs::read(&estimates)?)?;
            let ns = report["median"]["point_estimate"].as_f64().context("criterion's median")?;
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            found.push(Micro { name, ns });
        } else if path.is_dir() {
            gather(root, &path, found)?;
        }
    }
    Ok(())
}
