//! SIGTERM, SIGINT and SIGHUP (a terminal that was closed): the first asks for an orderly end, the second ends at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a server. Caught from its creation on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Starts to catch them. In a tokio runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one; tells which.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        }
    }
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
