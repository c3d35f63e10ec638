//! [`Diagnostic`]: one mistake with its place and its remedy; [`Report`]: all of them, and how they are shown.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::ops::Range;

/// Where a value was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// The key with its tables, as in `devices.root.size`; or the option of the command line.
    pub key: String,
    /// Bytes of the file; nothing for a command line or a default.
    pub span: Option<Range<usize>>,
}

impl Spot {
    /// A place that is no place in a file.
    pub fn named(key: impl Into<String>) -> Self {
        Self { key: key.into(), span: None }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub spot: Spot,
}

impl<T> At<T> {
    /// A value at its place.
    pub fn new(value: T, spot: Spot) -> Self {
        Self { value, spot }
    }

    /// The same place with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> At<U> {
        At { value: change(self.value), spot: self.spot }
    }
}

/// Whether a configuration with this diagnostic can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but it is probably not what was meant.
    Warning,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub spot: Spot,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// Collects diagnostics; shared by all who look for mistakes.
#[derive(Debug, Default)]
pub struct Sink(RefCell<Vec<Diagnostic>>);

impl Sink {
    /// Goes on collecting after what was found earlier.
    pub fn with(diagnostics: Vec<Diagnostic>) -> Self {
        Self(RefCell::new(diagnostics))
    }

    /// A mistake that prevents serving.
    pub fn error(&self, spot: &Spot, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Error, spot, message.into(), help.into());
    }

    /// Something to look at.
    pub fn warning(&self, spot: &Spot, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Warning, spot, message.into(), help.into());
    }

    /// Whether there was an error so far: then what looks unused or empty may only be what could not be read.
    pub fn has_errors(&self) -> bool {
        self.0.borrow().iter().any(|d| d.severity == Severity::Error)
    }

    fn push(&self, severity: Severity, spot: &Spot, message: String, help: String) {
        self.0.borrow_mut().push(Diagnostic { severity, spot: spot.clone(), message, help });
    }

    /// Everything found, in the order of the file.
    pub fn into_report(self, source: Source) -> Report {
        let mut diagnostics = self.0.into_inner();
        diagnostics.sort_by_key(|d| d.spot.span.as_ref().map_or((0, 0), |span| (span.start, span.end)));
        diagnostics.dedup();
        Report { source, diagnostics }
    }
}

/// The text that diagnostics point into.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The file's name as the operator gave it.
    pub name: String,
    /// Its contents.
    pub text: String,
}

impl Source {
    /// Line and column, both from 1, of a byte; columns count characters.
    pub fn position(&self, byte: usize) -> (usize, usize) {
        let before = &self.text[..self.floor(byte)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn floor(&self, byte: usize) -> usize {
        let mut byte = byte.min(self.text.len());
        while !self.text.is_char_boundary(byte) {
            byte -= 1;
        }
        byte
    }

    fn excerpt(&self, out: &mut String, span: &Range<usize>, pad: usize, number: usize, column: usize) {
        let line = self.text.lines().nth(number - 1).unwrap_or("").replace('\t', " ");
        let in_line = line.chars().count() + 1 - column.min(line.chars().count() + 1);
        let wanted = self.text[self.floor(span.start)..self.floor(span.end)].lines().next().unwrap_or("");
        let carets = wanted.chars().count().min(in_line).max(1);
        let _ = writeln!(out, "{:pad$} |", "");
        let _ = writeln!(out, "{number:>pad$} | {line}");
        let _ = writeln!(out, "{:pad$} | {:indent$}{}", "", "", "^".repeat(carets), indent = column - 1);
    }
}

/// All diagnostics of one configuration. Displays as text for people.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What was checked.
    pub source: Source,
    /// What was found, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// How many of them prevent serving.
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count()
    }

    /// How many of them do not.
    pub fn warnings(&self) -> usize {
        self.diagnostics.len() - self.errors()
    }

    /// One diagnostic with its place and the line it points at.
    pub fn render(&self, diagnostic: &Diagnostic) -> String {
        let Diagnostic { severity, spot, message, help } = diagnostic;
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let key = if spot.key.is_empty() { String::new() } else { format!("{}: ", spot.key) };
        let mut out = format!("{severity}: {key}{message}\n");
        let mut pad = 1;
        if let Some(span) = &spot.span {
            let (line, column) = self.source.position(span.start);
            pad = line.to_string().len();
            let _ = writeln!(out, "{:pad$}--> {}:{line}:{column}", "", self.source.name);
            self.source.excerpt(&mut out, span, pad, line, column);
        }
        let _ = writeln!(out, "{:pad$} = help: {help}", "");
        out
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{}", self.render(diagnostic))?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str, span: Range<usize>) -> Report {
        let sink = Sink::default();
        sink.error(&Spot { key: "a.b".to_owned(), span: Some(span) }, "is wrong", "make it right");
        sink.into_report(Source { name: "quarry.toml".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn points_at_the_value() {
        let text = "[a]\nb = \"wrong\"\n";
        assert_eq!(
            report(text, 8..15).to_string(),
            "error: a.b: is wrong\n --> quarry.toml:2:5\n  |\n2 | b = \"wrong\"\n  |     ^^^^^^^\n  = help: make it right\n\n"
        );
    }

    #[test]
    fn survives_any_span() {
        for text in ["", "é", "a\n", "\n\n", "tab\there"] {
            for start in 0..8 {
                for end in start..10 {
                    let _ = report(text, start..end).to_string();
                }
            }
        }
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { name: String::new(), text: "é = 1\nü = 2".to_owned() };
        assert_eq!(source.position(source.text.find('2').unwrap()), (2, 5));
    }
}
