//! The area `counts`, and the test of the same name: what an I/O costs, counted by `quarry-counts` and valgrind. The same
//! on every machine and under every load; what is expected stands in benches/counts.toml.

use crate::process::{self, cargo, line, succeeds, target, workspace};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rounds of the shorter run; the longer one has twice as many.
const ROUNDS: u64 = 100;
/// No I/O on null costs the server more instructions.
const INSTRUCTIONS: f64 = 350.0;
/// Where the expectation is, below the workspace.
const RECORD: &str = "benches/counts.toml";
/// How to write it anew.
const REMEDY: &str =
    "if that is meant to be, `cargo xtask bench counts --record` takes it as the new expectation";

struct Scenario {
    name: &'static str,
    arguments: &'static [&'static str],
    /// Whether instructions are judged: copies are the C library's, and depend on its version.
    instructions: bool,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "null", arguments: &["--device", "null"], instructions: true },
    Scenario {
        name: "null, 127 queues idle",
        arguments: &["--device", "null", "--idle-queues", "127"],
        instructions: true,
    },
    Scenario { name: "memory", arguments: &["--device", "memory"], instructions: false },
];

/// What was counted.
#[derive(Serialize)]
pub struct Counted {
    rows: Vec<Row>,
    rustc: String,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    instructions: f64,
    expected: Option<f64>,
    system_calls: f64,
    allocations: f64,
    interrupts_per_run: f64,
    checks: Vec<Check>,
}

/// Something that has to be so.
#[derive(Serialize)]
pub struct Check {
    /// What, where.
    pub what: String,
    pub met: bool,
    /// What was found instead, and what to do.
    pub explanation: String,
}

/// benches/counts.toml.
#[derive(Deserialize, Serialize)]
struct Record {
    /// The compiler's version: another one makes other instructions.
    rustc: String,
    /// How much more is no regression: 0.03 is 3 %.
    tolerance: f64,
    /// Of each scenario, for each I/O.
    instructions: BTreeMap<String, f64>,
}

/// What the program prints.
#[derive(Deserialize)]
struct Printed {
    ios: u64,
    runs: u64,
    allocations: u64,
    interrupts: u64,
}

/// Whether valgrind is there.
pub fn can_run() -> bool {
    succeeds(Command::new("valgrind").arg("--version"))
}

/// Builds the program and counts. With `record`, what is found becomes what is expected.
pub fn run(record: bool) -> Result<Counted> {
    ensure!(can_run(), "valgrind is not installed: `cargo xtask setup`, or apt-get install valgrind");
    process::run(&mut cargo(["build", "--release", "-p", "quarry-bench", "--bin", "quarry-counts"]))?;
    let program = target().join("release/quarry-counts");
    let directory = target().join("counts");
    fs::create_dir_all(&directory)?;
    let path = workspace().join(RECORD);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut expected: Record = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let rustc = rustc()?;
    let mut rows = Vec::new();
    for scenario in SCENARIOS {
        rows.push(scenario.count(&program, &directory)?);
    }
    if record {
        expected.rustc.clone_from(&rustc);
        let judged = SCENARIOS.iter().zip(&rows).filter(|(scenario, _)| scenario.instructions);
        expected.instructions =
            judged.map(|(_, row)| (row.name.to_owned(), (row.instructions * 10.0).round() / 10.0)).collect();
        let comment = text.lines().take_while(|line| line.starts_with('#'));
        let head: String = comment.map(|line| format!("{line}\n")).collect();
        fs::write(&path, head + &toml::to_string(&expected)?)?;
        eprintln!("written: {RECORD}");
    }
    for (scenario, row) in SCENARIOS.iter().zip(&mut rows) {
        row.judge(scenario, &expected, &rustc);
    }
    Ok(Counted { rows, rustc })
}

impl Scenario {
    fn count(&self, program: &Path, directory: &Path) -> Result<Row> {
        let file = directory.join(self.name.replace([' ', ','], "-"));
        let few = Traced::run(program, self.arguments, ROUNDS, &file)?;
        let many = Traced::run(program, self.arguments, 2 * ROUNDS, &file)?;
        let ios =
            many.ios.checked_sub(few.ios).filter(|ios| *ios > 0).context("more rounds make more I/Os")?
                as f64;
        let mut command = Command::new(program);
        command.args(self.arguments).args(["--interrupts", "--rounds", &ROUNDS.to_string()]);
        let (text, _) = output(&mut command)?;
        let plain = printed(&text)?;
        Ok(Row {
            name: self.name,
            instructions: (many.instructions - few.instructions) / ios,
            expected: None,
            system_calls: (many.system_calls - few.system_calls) / ios,
            allocations: many.allocations.max(plain.allocations) as f64 / plain.ios as f64,
            interrupts_per_run: plain.interrupts as f64 / plain.runs as f64,
            checks: Vec::new(),
        })
    }
}

/// A run under valgrind: totals.
struct Traced {
    ios: u64,
    instructions: f64,
    system_calls: f64,
    allocations: u64,
}

impl Traced {
    /// Collects within the server's turns only. System calls are all of the process's: the client makes none either.
    fn run(program: &Path, arguments: &[&str], rounds: u64, file: &PathBuf) -> Result<Self> {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*server_turn*"]);
        command.args(["--trace-syscalls=yes", "--dump-line=no"]);
        command.arg(format!("--callgrind-out-file={}", file.display()));
        command.arg(program).args(arguments).args(["--rounds", &rounds.to_string()]);
        let (text, trace) = output(&mut command)?;
        let Printed { ios, allocations, .. } = printed(&text)?;
        let counted = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let totals = counted.lines().find_map(|line| line.strip_prefix("totals: "));
        let instructions = totals.and_then(|total| total.trim().parse().ok()).filter(|total| *total > 0.0);
        Ok(Self {
            ios,
            instructions: instructions.context("callgrind counted nothing in `server_turn`")?,
            system_calls: trace.lines().filter(|line| is_call(line)).count() as f64,
            allocations,
        })
    }
}

/// `SYSCALL[pid,tid](nr) name (…)`; that a call that slept has returned is another line, whose name is `...`.
fn is_call(line: &str) -> bool {
    line.starts_with("SYSCALL[") && !line.contains(") ... [async]")
}

fn output(command: &mut Command) -> Result<(String, String)> {
    let output = command.output().with_context(|| line(command))?;
    let (text, error) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    ensure!(output.status.success(), "{}: {}\n{error}", line(command), output.status);
    Ok((text, error))
}

/// The line of JSON: valgrind may print between.
fn printed(text: &str) -> Result<Printed> {
    let json = text.lines().find_map(|line| line.find("{\"ios\"").map(|at| &line[at..]));
    Ok(serde_json::from_str(json.context("quarry-counts printed nothing")?)?)
}

fn rustc() -> Result<String> {
    let (text, _) = output(Command::new("rustc").arg("--version").current_dir(workspace()))?;
    Ok(text.split(' ').nth(1).unwrap_or("unknown").to_owned())
}

impl Row {
    fn judge(&mut self, scenario: &Scenario, record: &Record, rustc: &str) {
        let mut check = |what: &str, met: bool, explanation: String| {
            self.checks.push(Check { what: format!("{}: {what}", self.name), met, explanation });
        };
        let Self { allocations, system_calls, interrupts_per_run, instructions, .. } = *self;
        check("no allocation", allocations == 0.0, format!("{allocations} allocations for each I/O"));
        check("no system call", system_calls == 0.0, format!("{system_calls} system calls for each I/O"));
        check(
            "one interrupt for a run of completions",
            interrupts_per_run > 0.0 && interrupts_per_run <= 1.0,
            format!("{interrupts_per_run} interrupts for each run of completions"),
        );
        if !scenario.instructions {
            return;
        }
        check(
            "instructions",
            instructions < INSTRUCTIONS,
            format!("{instructions:.1} instructions for each I/O, the bound is {INSTRUCTIONS}"),
        );
        self.expected = record.instructions.get(self.name).copied();
        let (met, explanation) = match self.expected {
            None => {
                (false, format!("{RECORD} does not know this count; `cargo xtask bench counts --record`"))
            }
            // Another compiler makes other instructions: then the bound alone says something.
            Some(_) if record.rustc != rustc => (true, String::new()),
            Some(expected) => {
                let more = (instructions / expected - 1.0) * 100.0;
                // A record that is too high would let a regression pass.
                let met = more.abs() <= record.tolerance * 100.0;
                (
                    met,
                    format!(
                        "{instructions:.1} instructions for each I/O, {more:+.1} % of {expected}; {REMEDY}"
                    ),
                )
            }
        };
        check("instructions as recorded", met, explanation);
    }
}

impl Counted {
    /// Everything that has to be so.
    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.rows.iter().flat_map(|row| &row.checks)
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<26}{:>22}{:>12}{:>14}{:>13}{:>16}\n{}",
            "for each I/O, 4 KiB reads",
            "instructions (< 350)",
            "recorded",
            "system calls",
            "allocations",
            "interrupts/run",
            "─".repeat(103)
        )?;
        for row in &self.rows {
            let expected = row.expected.map_or(String::new(), |expected| format!("{expected:.1}"));
            writeln!(
                f,
                "{:<26}{:>22.1}{expected:>12}{:>14}{:>13}{:>16}",
                row.name, row.instructions, row.system_calls, row.allocations, row.interrupts_per_run
            )?;
        }
        for check in self.checks().filter(|check| !check.met) {
            writeln!(f, "BROKEN  {}: {}", check.what, check.explanation)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_once() {
        let calls = [
            "SYSCALL[7,1](0) sys_read ( 3, 0x1, 832 ) --> [async] ... ",
            "SYSCALL[7,1](0) ... [async] --> Success(0x340) ",
            "SYSCALL[7,1](11) sys_munmap ( 0x483c000, 12288 )[sync] --> Success(0x0) ",
            "==7== Events    : Ir",
        ];
        assert_eq!(calls.into_iter().filter(|line| is_call(line)).count(), 2);
    }

    #[test]
    fn what_is_expected_can_be_read() {
        let record: Record = toml::from_str(&fs::read_to_string(workspace().join(RECORD)).unwrap()).unwrap();
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.instructions) {
            assert!(record.instructions.contains_key(scenario.name), "{}", scenario.name);
        }
    }
}
