//! Which tests nextest saw fail, and the first words of each about why: told once more at the very end, where whoever sees
//! only the last lines of a log finds them.

/// Lines of a panic that are kept: where, and what.
const LINES: usize = 4;
/// Characters of a line that are kept.
const WIDTH: usize = 240;

/// Reads nextest's output line by line.
#[derive(Default)]
pub struct Failures {
    found: Vec<Failure>,
    /// Lines that still belong to the panic being read.
    left: usize,
}

struct Failure {
    test: String,
    lines: Vec<String>,
}

impl Failures {
    /// Takes a line without colours.
    pub fn look(&mut self, line: &str) {
        if let Some((test, failed)) = outcome(line) {
            self.left = 0;
            // Each failure is listed again below the summary.
            if failed && !self.found.iter().any(|failure| failure.test == test) {
                self.found.push(Failure { test: test.to_owned(), lines: Vec::new() });
            }
            return;
        }
        let Some(failure) = self.found.last_mut() else { return };
        if failure.lines.is_empty() && line.contains(" panicked at ") {
            self.left = LINES;
        }
        if self.left > 0 && !line.trim().is_empty() {
            self.left -= 1;
            failure.lines.push(line.trim().chars().take(WIDTH).collect());
        }
    }

    /// A description of each.
    pub fn described(self) -> impl Iterator<Item = String> {
        self.found.into_iter().map(|Failure { test, lines }| {
            std::iter::once(test).chain(lines).collect::<Vec<_>>().join("\n        ")
        })
    }
}

/// The test whose end a line tells, and whether it failed:
/// `        FAIL [   0.133s] (342/513) quarry-tests::data_errors memory_with_limits`
pub fn outcome(line: &str) -> Option<(&str, bool)> {
    let (word, rest) = line.trim_start().split_once(" [")?;
    let (time, test) = rest.split_once("] ")?;
    let seconds = time.trim().trim_start_matches('>').strip_suffix('s')?;
    seconds.parse::<f64>().ok()?;
    let test = test.trim_start();
    let test = if test.starts_with('(') { test.split_once(") ")?.1 } else { test };
    match word {
        "PASS" | "LEAK" | "FLAKY" => Some((test, false)),
        // Not an end.
        "SLOW" | "Summary" => None,
        // FAIL, TIMEOUT, SIGABRT, …
        _ if word.chars().all(|c| c.is_ascii_uppercase() || c == '-') => Some((test, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_with_their_cause() {
        let output = "\
        PASS [   0.018s] (341/513) quarry-tests::data_errors sgls
        SLOW [> 60.000s] (───────) quarry-tests::guest_boot slow
        FAIL [   0.133s] (342/513) quarry-tests::data_errors memory_with_limits
  stdout ───

    test memory_with_limits ... FAILED

  stderr ───

    thread 'memory_with_limits' (16511) panicked at tests/tests/data_errors.rs:282:5:
    memory without a descriptor is explained in the log:
    2026-11-28T04:44:22.907135Z  INFO listening

    stack backtrace:
       0: __rustc::rust_begin_unwind
    thread 'other' panicked at later.rs:1:1:
        PASS [   0.018s] (343/513) quarry-tests::data_errors fine
    nobody panicked at anything
     TIMEOUT [ 600.012s] (344/513) vfio-user-server::protocol lifecycle::stuck
     Summary [  11.893s] 4 tests run: 2 passed, 1 failed, 1 timed out, 0 skipped
        FAIL [   0.133s] (342/513) quarry-tests::data_errors memory_with_limits
     TIMEOUT [ 600.012s] (344/513) vfio-user-server::protocol lifecycle::stuck";
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.look(line));
        let described: Vec<_> = failures.described().collect();
        assert_eq!(
            described,
            [
                "quarry-tests::data_errors memory_with_limits
        thread 'memory_with_limits' (16511) panicked at tests/tests/data_errors.rs:282:5:
        memory without a descriptor is explained in the log:
        2026-11-28T04:44:22.907135Z  INFO listening
        stack backtrace:",
                "vfio-user-server::protocol lifecycle::stuck"
            ]
        );
    }
}
