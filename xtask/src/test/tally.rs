//! Counts what passed and what failed, over several runners.

use std::ops::AddAssign;
use std::process::ExitStatus;

/// What one runner said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What all of them said.
#[derive(Default)]
pub struct Tally {
    counts: Counts,
    failures: Vec<String>,
    missing: Vec<String>,
    notes: Vec<String>,
}

impl Tally {
    /// Adds a runner's result. One that fails without naming a failed test (it did not compile, it crashed) counts as one
    /// failure: nothing that went wrong is left out of the sum.
    pub fn add(&mut self, what: &str, mut counts: Counts, status: ExitStatus) {
        if !status.success() && counts.failed == 0 {
            counts.failed = 1;
        }
        if counts.failed > 0 {
            self.failures.push(format!("{what}: {} failed ({status})", counts.failed));
        }
        self.counts += counts;
    }

    /// Something that passes or fails as a whole.
    pub fn step(&mut self, what: &str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.counts.passed += 1,
            Err(e) => self.broken(&format!("{what}: {e:#}")),
        }
    }

    /// More about a failure that is counted already.
    pub fn explain(&mut self, failure: String) {
        self.failures.push(failure);
    }

    /// Something without which the tests cannot go on.
    pub fn broken(&mut self, what: &str) {
        self.failures.push(what.to_owned());
        self.counts.failed += 1;
    }

    /// Something that this machine cannot run.
    pub fn cannot_run(&mut self, what: &str, count: u32) {
        self.missing.push(what.to_owned());
        self.counts.skipped += count;
    }

    /// Something to know that is neither good nor bad.
    pub fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    /// Prints the sum as the last line and returns the number of failures.
    pub fn finish(mut self, ci: bool) -> u32 {
        for note in &self.notes {
            println!("NOTE    {note}");
        }
        for failure in &self.failures {
            println!("FAILED  {failure}");
        }
        for missing in &self.missing {
            println!("{}  {missing}", if ci { "FAILED" } else { "SKIPPED" });
        }
        if ci {
            self.counts.failed += std::mem::take(&mut self.counts.skipped);
        }
        let Counts { passed, failed, skipped } = self.counts;
        match skipped {
            0 => println!("{passed} passed, {failed} failed"),
            n => println!("{passed} passed, {failed} failed, {n} skipped"),
        }
        failed
    }
}

/// A line without the colours of a terminal.
pub fn plain(line: &str) -> String {
    let mut pieces = line.split('\u{1b}');
    let first = pieces.next().unwrap_or_default().to_owned();
    first + &pieces.map(|piece| piece.split_once('m').map_or("", |(_, rest)| rest)).collect::<String>()
}

/// `Summary [  11.893s] 11 tests run: 9 passed (1 slow), 1 failed, 1 timed out, 0 skipped`
pub fn nextest(line: &str) -> Option<Counts> {
    let (_, results) = line.trim().strip_prefix("Summary [")?.split_once(" run: ")?;
    let mut counts = Counts::default();
    for result in results.split(", ") {
        let (number, word) = result.split_once(' ')?;
        let number: u32 = number.trim_start_matches('(').parse().ok()?;
        match word.split_whitespace().next()?.trim_end_matches(')') {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            "flaky" | "slow" | "leaky" => {}
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s`
pub fn libtest(line: &str) -> Option<Counts> {
    let (_, results) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for result in results.split("; ") {
        match result.split_once(' ') {
            Some((number, "passed")) => counts.passed += number.parse::<u32>().ok()?,
            Some((number, "failed")) => counts.failed += number.parse::<u32>().ok()?,
            Some((number, "ignored")) => counts.skipped += number.parse::<u32>().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_summaries() {
        let line = "\u{1b}[32;1m     Summary\u{1b}[0m [  11.893s] 13 tests run: 9 passed (1 slow, 2 leaky), 1 failed, 3 timed out, 4 skipped";
        assert_eq!(nextest(&plain(line)), Some(Counts { passed: 9, failed: 4, skipped: 4 }));
        assert_eq!(
            nextest("     Summary [   0.1s] 1 test run: 1 passed, 0 skipped"),
            Some(Counts { passed: 1, ..Counts::default() })
        );
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 5 filtered out; finished in 0.10s";
        assert_eq!(libtest(line), Some(Counts { passed: 3, failed: 2, skipped: 1 }));
        assert_eq!(libtest("running 3 tests"), None);
    }
}
