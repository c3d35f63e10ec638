//! The program: arguments in, exit status out.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use quarry::cli::{Cli, Command, Serve};
use quarry::config::{self, Checked, Machine, Report, Spot};
use quarry::server::Server;
use quarry::signals::{self, Signals};
use quarry::{exit, limits, logging};

/// How long threads that close something have to come to an end when all else has.
const LAST_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // clap ends with status 2 by itself when the command line is wrong, and with 0 after --help.
    let cli = Cli::parse();
    let status = match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "quarry", &mut script);
            print_all(&script)
        }
        Command::Check { config, offline } => check(config, *offline),
        Command::Control(arguments) => tell(arguments.run()),
        Command::Opal(arguments) => tell(arguments.run()),
        Command::Volume(arguments) => match arguments.run() {
            Ok(text) => print_all(text.as_bytes()),
            Err(report) => {
                complain(format_args!("{}", report.to_string().trim_end()));
                exit::FAILED
            }
        },
        Command::Serve(arguments) => serve(&cli, arguments),
    };
    if block_ceph::left_behind(LAST_WAIT) {
        exit::at_once(status);
    }
    logging::flush();
    ExitCode::from(status)
}

/// Prints what a running server has answered.
fn tell(answer: Result<String, String>) -> u8 {
    match answer {
        Ok(text) => print_all(text.as_bytes()),
        Err(error) => {
            complain(format_args!("error: {error}"));
            exit::FAILED
        }
    }
}

fn print_all(bytes: &[u8]) -> u8 {
    // A reader that has seen enough (`| head`) is no failure.
    let _ = std::io::stdout().lock().write_all(bytes);
    exit::OK
}

fn complain(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{what}");
}

fn load(path: &Path, refuse: impl Fn(Report) -> u8) -> Result<Checked, u8> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let sink = config::diagnostic::Sink::default();
        let help = "name a configuration file that this user can read";
        sink.error(&Spot::named(path.display().to_string()), error.to_string(), help);
        refuse(sink.into_report(config::Source::default()))
    })?;
    config::load(&path.to_string_lossy(), &text, &Machine::this()).map_err(refuse)
}

fn refuse(report: Report) -> u8 {
    complain(format_args!("{report}{}", summary(&report)));
    exit::CONFIG
}

/// For those who read the log by a program: one object for each.
fn refuse_in_log(report: &Report) -> u8 {
    for diagnostic in &report.diagnostics {
        let config::Diagnostic { severity, spot, message, help } = diagnostic;
        let line = spot.span.as_ref().map(|span| report.source.position(span.start).0);
        match severity {
            config::Severity::Error => tracing::error!(key = spot.key, line, help, "{message}"),
            config::Severity::Warning => tracing::warn!(key = spot.key, line, help, "{message}"),
        }
    }
    tracing::error!("the configuration cannot be served: {}", summary(report));
    exit::CONFIG
}

fn summary(report: &Report) -> String {
    let mut parts = vec![count(report.errors(), "error")];
    if report.warnings() > 0 {
        parts.push(count(report.warnings(), "warning"));
    }
    parts.join(", ")
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn check(path: &Path, offline: bool) -> u8 {
    let asked = |checked| if offline { Ok(checked) } else { config::check_clusters(checked).map_err(refuse) };
    match load(path, refuse).and_then(asked) {
        Err(status) => status,
        Ok(Checked { config, report }) => {
            if report.warnings() > 0 {
                complain(format_args!("{report}{}", summary(&report)));
            }
            let line = format!(
                "{}: good ({}, {})\n",
                path.display(),
                count(config.controllers.len(), "controller"),
                count(config.devices.len(), "device")
            );
            print_all(line.as_bytes())
        }
    }
}

fn serve(cli: &Cli, arguments: &Serve) -> u8 {
    if let Err(error) = logging::start(cli.log_format, cli.log_level.as_deref()) {
        complain(format_args!("error: {error:#}"));
        return exit::USAGE;
    }
    let refuse = |report| match cli.log_format {
        logging::Format::Text => refuse(report),
        logging::Format::Json => refuse_in_log(&report),
    };
    let checked = match &arguments.config {
        Some(path) => load(path, refuse),
        None => arguments.configuration(&Machine::this()).map_err(refuse),
    };
    let Checked { config, report } = match checked {
        Ok(checked) => checked,
        Err(status) => return status,
    };
    for warning in &report.diagnostics {
        tracing::warn!(key = warning.spot.key, help = warning.help, "{}", warning.message);
    }
    match run(&config) {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("{error:#}");
            exit::FAILED
        }
    }
}

fn run(config: &config::Config) -> anyhow::Result<()> {
    logging::log_panics();
    limits::raise_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let server = Server::start(config)?;
        let controllers = server.controllers();
        notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status(&format!("serving {}", count(controllers, "controller"))),
        ]);
        tracing::info!(controllers, version = env!("CARGO_PKG_VERSION"), "ready");
        let (ask, asked) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let first = signals.first().await;
            notify(&[sd_notify::NotifyState::Stopping]);
            tracing::info!(signal = signals::name(first), "stopping: detaching clients, flushing disks");
            let _ = ask.send(());
            let second = signals.second().await;
            tracing::error!(
                signal = signals::name(second),
                "ending at once; what was not flushed may be lost"
            );
            exit::at_once(exit::signalled(second.as_raw_value() as u8));
        });
        server
            .run(async {
                let _ = asked.await;
            })
            .await
    })?;
    anyhow::ensure!(
        !block_ceph::left_behind(LAST_WAIT),
        "everything is flushed, but a Ceph cluster has not answered when its disks were closed"
    );
    tracing::info!("ended, everything flushed");
    Ok(())
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
