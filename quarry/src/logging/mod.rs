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
    let variable = std::env::var("RUST_LOG").ok();
    let filter = match (filter, variable.as_deref()) {
        (Some(filter), _) => parse(filter).context("--log-level")?,
        (None, Some(filter)) if !filter.trim().is_empty() => parse(filter).context("RUST_LOG")?,
        (None, _) => EnvFilter::new("info"),
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

/// A filter. A word alone is a level here, not a target: otherwise `inof` would silence everything.
fn parse(text: &str) -> anyhow::Result<EnvFilter> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    const EXAMPLES: &str = "try `debug`, or `info,nvme_emu=trace`";
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    for word in words.iter().filter(|word| !word.contains(['=', '[', ':'])) {
        if LEVELS.iter().all(|level| !level.eq_ignore_ascii_case(word)) {
            let word = word.to_lowercase();
            let longer = |level: &&str| word.starts_with(level);
            let help =
                match LEVELS.into_iter().find(longer).or_else(|| crate::suggest::nearest(&word, LEVELS)) {
                    Some(level) => format!("did you mean `{level}`?"),
                    None => EXAMPLES.to_owned(),
                };
            anyhow::bail!("`{word}` is no level; {help}");
        }
    }
    EnvFilter::try_new(words.join(",")).with_context(|| format!("not a filter; {EXAMPLES}"))
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

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_mistyped_level_does_not_silence_everything() {
        for good in
            ["info", "DEBUG", "off", "info,nvme_emu=trace", "warn, quarry=debug", "info,block::fault=debug"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, told) in [
            ("inof", "`inof` is no level; did you mean `info`?"),
            ("warning", "`warning` is no level; did you mean `warn`?"),
            ("info,nvme_emu", "`nvme_emu` is no level; try"),
            ("", "`` is no level; try"),
            ("a=b=c", "not a filter; try"),
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
