//! Where log lines go: standard error, for people or as JSON. A reader that is slow or gone costs log lines and
//! never holds up or ends the server ([`queue`]).

mod queue;

use std::io::IsTerminal;
use std::sync::OnceLock;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use queue::Queue;

/// Where the lines of this process go, once [`start`] was called.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends log lines that pass `filter` (as `RUST_LOG` has it) to standard error. Without one, `RUST_LOG` and then
/// `info` decide.
pub fn start(format: Format, filter: Option<&str>) -> anyhow::Result<()> {
    let filter = match (filter, std::env::var("RUST_LOG")) {
        (Some(filter), _) => EnvFilter::try_new(filter)
            .context("--log-level: not a filter; try `debug`, or `info,nvme_emu=trace`")?,
        (None, Ok(filter)) => EnvFilter::try_new(filter)
            .context("RUST_LOG: not a filter; try `debug`, or `info,nvme_emu=trace`")?,
        (None, Err(_)) => EnvFilter::new("info"),
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let queue = Queue::start(format, std::io::stderr()).context("the log's thread cannot be started")?;
    // Internal errors would go to standard error by `eprintln!`, which panics if nobody reads there.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let installed = match format {
        Format::Text => lines.with_ansi(colours).with_target(false).with_writer(queue.clone()).try_init(),
        Format::Json => {
            lines.json().flatten_event(true).with_span_list(false).with_writer(queue.clone()).try_init()
        }
    };
    installed.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))?;
    let _ = QUEUE.set(queue); // a second start failed above
    Ok(())
}

/// Waits until what was logged is written, but not for a reader that takes nothing. Before the process ends.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

/// Has panics go to the log, with their place, so that they are seen where everything else is.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic
            .payload()
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(thread, place, %backtrace, "panicked: {text}");
        flush(); // it may end the process
    }));
}
