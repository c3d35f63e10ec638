//! The configuration: text in, a checked [`Config`] or a [`Report`] of every mistake out.

pub mod check;
mod check_ceph;
mod check_machine;
mod check_reactors;
pub mod defaults;
pub mod diagnostic;
pub mod model;
mod model_ceph;
pub mod parse;
pub(crate) mod parse_ceph;
mod parse_device;
pub(crate) mod parse_limits;
pub mod reader;

use std::path::Path;

pub use check::Machine;
pub use diagnostic::{Diagnostic, Report, Severity, Source, Spot};
pub use model::Config;

use diagnostic::Sink;

/// A configuration that can be served, and the warnings about it.
#[derive(Debug)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// Warnings only.
    pub report: Report,
}

/// Reads and checks the configuration in `text`, which came from the file `name`. Relative paths in it start at
/// the file's directory.
pub fn load(name: &str, text: &str, machine: &Machine) -> Result<Checked, Report> {
    let sink = Sink::default();
    let base = Path::new(name).parent().unwrap_or(Path::new(""));
    let config = parse::parse(text, base, &sink);
    if let Some(config) = &config {
        check::check(config, machine, &sink);
    }
    conclude(config, sink, Source { name: name.to_owned(), text: text.to_owned() })
}

/// Asks the clusters that a checked configuration uses, see [`crate::ceph::probe`]. Blocks for as long as their timeouts allow.
pub fn check_clusters(checked: Checked) -> Result<Checked, Report> {
    let Checked { config, report } = checked;
    let sink = Sink::with(report.diagnostics);
    crate::ceph::probe::check(&config, &sink);
    conclude(Some(config), sink, report.source)
}

/// Checks a configuration that came from a command line.
pub(crate) fn conclude_command_line(
    config: Option<Config>,
    machine: &Machine,
    sink: Sink,
) -> Result<Checked, Report> {
    if let Some(config) = &config {
        check::check(config, machine, &sink);
    }
    conclude(config, sink, Source::default())
}

fn conclude(config: Option<Config>, sink: Sink, source: Source) -> Result<Checked, Report> {
    let report = sink.into_report(source);
    match config {
        Some(config) if report.errors() == 0 => Ok(Checked { config, report }),
        _ => Err(report),
    }
}
