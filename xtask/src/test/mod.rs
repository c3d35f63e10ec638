//! `cargo xtask test`.

mod failures;
mod fuzz;
mod sanitizer;
mod tally;

use crate::bench::counts;
use crate::process::{build_quarry, cargo, line, say, target};
use crate::setup;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use failures::Failures;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use tally::Tally;

/// Loom models, which try every order in which threads can meet: a crate and the module of its models (its other tests do
/// not run under loom).
const LOOM_MODELS: &[(&str, &str)] = &[
    ("block", "parker::model"),
    ("block", "remote::model"),
    ("block-ceph", "budget::model"),
    ("nvme-emu", "event_index::model"),
];

/// Which tests to run.
#[derive(Args, Default)]
pub struct Test {
    /// Leave out what takes minutes: guests, loom models, fuzz targets
    #[arg(long)]
    quick: bool,
    /// Run only Ceph over RDMA: guests with a cluster whose messenger is `async+rdma`, and its clients
    #[arg(long, conflicts_with_all = ["quick", "filter"])]
    rdma: bool,
    /// Before the tests, what `cargo xtask check` does; counted as one of them
    #[arg(long)]
    check: bool,
    /// Run only the tests whose names contain one of these (and no loom model or fuzz target)
    filter: Vec<String>,
}

impl Test {
    /// Everything.
    pub fn with_check() -> Self {
        Self { check: true, ..Self::default() }
    }

    pub fn run(self) -> Result<()> {
        let mut tally = Tally::default();
        if self.check {
            tally.step("check", crate::ci::check());
        }
        if let Err(e) = self.all(&mut tally) {
            tally.broken(&format!("{e:#}"));
        }
        match tally.finish(std::env::var("CI").is_ok_and(|ci| ci == "true")) {
            0 => Ok(()),
            _ => std::process::exit(1),
        }
    }

    fn all(&self, tally: &mut Tally) -> Result<()> {
        setup::packages()?;
        setup::tool(setup::NEXTEST)?;
        if self.is_everything() || self.rdma {
            setup::rdma_image()?;
        }
        if !self.rdma {
            setup::ceph()?;
            setup::images()?;
        }
        let quarry = build_quarry()?;
        self.nextest(&quarry, tally)?;
        if self.filter.is_empty() && !self.rdma {
            documentation(tally)?;
            counts(tally);
        }
        if self.is_everything() {
            loom(tally)?;
            sanitizer::run(tally)?;
            fuzz::run(tally)?;
        }
        Ok(())
    }

    /// Nothing is left out.
    fn is_everything(&self) -> bool {
        !self.quick && !self.rdma && self.filter.is_empty()
    }

    fn nextest(&self, quarry: &Path, tally: &mut Tally) -> Result<()> {
        let mut command = cargo(["nextest", "run", "--no-fail-fast"]);
        match self.rdma {
            true => command.args(["-p", "quarry-tests", "--test", "rdma"]),
            false => command.arg("--workspace"),
        };
        if self.quick {
            command.args(["-E", "not binary(/^guest|^rdma/)"]);
        }
        let skips = target().join("skips");
        let _ = std::fs::remove_file(&skips);
        command.args(&self.filter).env("QUARRY_BIN", quarry).env("QUARRY_SKIPS", &skips);
        let (mut summary, mut failures, mut rdma) = (None, Failures::default(), HashSet::new());
        let status = watch(&mut command, |line| {
            summary = tally::nextest(line).or(summary);
            failures.look(line);
            if let Some((test, _)) = failures::outcome(line).filter(|(test, _)| test.contains("::rdma ")) {
                rdma.insert(test.to_owned());
            }
        })?;
        let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
        let ran = rdma.len().saturating_sub(skipped.lines().filter(|what| what.starts_with("RDMA")).count());
        tally.note(match ran {
            0 => "Ceph over RDMA was not tested: `cargo xtask test --rdma` does that alone".to_owned(),
            n => format!("Ceph over RDMA was tested ({n} tests with guests)"),
        });
        match summary {
            Some(mut counts) => {
                // To nextest they passed.
                counts.passed = counts.passed.saturating_sub(u32::try_from(skipped.lines().count())?);
                if self.quick || !self.filter.is_empty() {
                    counts.skipped = 0; // left out on demand
                }
                tally.add("nextest", counts, status);
            }
            None => tally.broken(&format!("nextest did not say how many tests passed ({status})")),
        }
        for what in skipped.lines() {
            tally.cannot_run(what, 1);
        }
        failures.described().for_each(|failure| tally.explain(failure));
        Ok(())
    }
}

/// The examples in the documentation, which nextest does not run.
fn documentation(tally: &mut Tally) -> Result<()> {
    libtest("documentation", &mut cargo(["test", "--doc", "--workspace", "--no-fail-fast"]), tally)
}

/// What an I/O costs: instructions, allocations, system calls, interrupts.
fn counts(tally: &mut Tally) {
    if !counts::can_run() {
        return tally.cannot_run("counts: valgrind is not installed", 1);
    }
    match counts::run(false) {
        Ok(counted) => {
            eprintln!("{counted}");
            for check in counted.checks() {
                let explanation = || anyhow!("{}", check.explanation);
                tally.step(
                    &format!("counts: {}", check.what),
                    check.met.then_some(()).ok_or_else(explanation),
                );
            }
        }
        Err(e) => tally.broken(&format!("counts: {e:#}")),
    }
}

fn loom(tally: &mut Tally) -> Result<()> {
    for (name, module) in LOOM_MODELS {
        let mut command = cargo(["test", "--release", "--lib", "-p", name, module]);
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", target().join("loom"));
        libtest(&format!("loom models of {name}"), &mut command, tally)?;
    }
    Ok(())
}

/// A command that runs tests with Rust's own runner.
fn libtest(what: &str, command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut counts = tally::Counts::default();
    let status = watch(command, |line| counts += tally::libtest(line).unwrap_or_default())?;
    tally.add(what, counts, status);
    Ok(())
}

/// Runs a command, shows what it prints as it comes, and looks at every line.
fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<ExitStatus> {
    say(&line(command));
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    // Both in one pipe, so that they stay in order.
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| line(command))?;
    // The command keeps its ends of the pipe: with those alive the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    for text in BufReader::new(reader).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).into_owned();
        eprintln!("{text}");
        look(&tally::plain(&text));
    }
    Ok(child.wait()?)
}

/// A number of seconds from the environment.
fn seconds(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is no number of seconds")),
        Err(std::env::VarError::NotPresent) => Ok(default),
        Err(e) => bail!("{variable}: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::LOOM_MODELS;
    use crate::process::workspace;
    use std::fs;
    use std::path::Path;

    /// A model that is not in the list would never run.
    #[test]
    fn every_loom_model_is_listed() {
        fn search(directory: &Path, found: &mut u32) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
                    search(&path, found);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    *found +=
                        text.lines().filter(|line| line.trim() == "#[cfg(all(test, loom))]").count() as u32;
                }
            }
        }
        let mut found = 0;
        search(&workspace(), &mut found);
        assert_eq!(found as usize, LOOM_MODELS.len(), "models in the sources and in LOOM_MODELS");
    }
}
