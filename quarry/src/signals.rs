//! SIGTERM, SIGINT and SIGHUP (a terminal that was closed): the first asks for an orderly end. A second SIGTERM or SIGINT
//! ends at once; a closed terminal sends SIGHUP more than once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a server. Caught from its creation on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Nothing where whoever started this (nohup) has it ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Starts to catch them. In a tokio runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: if is_ignored(SignalKind::hangup()) {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    /// Waits for the first one; tells which.
    pub async fn first(&mut self) -> SignalKind {
        let Self { terminate, interrupt, hang_up } = self;
        let hung_up = async {
            match hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => SignalKind::terminate(),
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = hung_up => SignalKind::hangup(),
        }
    }

    /// Waits for one that says that it cannot wait.
    pub async fn second(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// Whether this process was started with a signal ignored (proc(5), SigIgn).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (kind.as_raw_value() - 1) != 0
}

/// What people call it.
pub fn name(kind: SignalKind) -> &'static str {
    match kind {
        kind if kind == SignalKind::terminate() => "SIGTERM",
        kind if kind == SignalKind::interrupt() => "SIGINT",
        kind if kind == SignalKind::hangup() => "SIGHUP",
        _ => "a signal",
    }
}
