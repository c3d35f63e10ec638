//! [`Endpoint`]: the control socket and those who are connected to it.
//!
//! Whatever a client sends, or does not send, it has one line, one answer and one task, for a limited time.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use vfio_user_server::Listener;
use vfio_user_server::ratelimit::RateLimit;

use super::Control;
use super::rpc::{self, Failure};
use crate::config::model;
use crate::server::StartError;

/// Bytes of the longest request.
pub const MAX_LINE: usize = 64 << 10;
/// Clients at a time.
pub const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to send the rest of a line, or to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may be of no use.
const QUIET: Duration = Duration::from_secs(300);
/// Before the next try when no client can be accepted: out of descriptors, say.
const PAUSE: Duration = Duration::from_millis(100);

/// The control socket, listening.
pub struct Endpoint {
    /// Removes the socket's file when it goes.
    _listener: Listener,
    accepting: UnixListener,
}

impl Endpoint {
    /// Listens. Must be called in a tokio runtime.
    pub fn listen(config: &model::Control) -> Result<Self, StartError> {
        let path = &config.socket.value;
        let bind = || {
            let listener = Listener::bind(path, config.socket_mode)?;
            let accepting = net::UnixListener::from(listener.as_fd().try_clone_to_owned()?);
            accepting.set_nonblocking(true)?;
            Ok(Self { _listener: listener, accepting: UnixListener::from_std(accepting)? })
        };
        bind().map_err(|error| {
            StartError::new(&config.socket.spot, crate::endpoint::cannot_listen(path, &error))
        })
    }

    /// Answers clients until `stopping` turns true.
    pub async fn serve(self, control: Arc<Control>, mut stopping: watch::Receiver<bool>) {
        let complaints = RateLimit::new();
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                // An error means that the server itself is gone, which is a reason to stop as well.
                () = async { drop(stopping.wait_for(|stop| *stop).await) } => break,
                Some(ended) = clients.join_next(), if !clients.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a control client's task panicked");
                    }
                }
                accepted = self.accepting.accept() => match accepted {
                    Ok((stream, _)) if clients.len() < MAX_CONNECTIONS => {
                        clients.spawn(converse(stream, control.clone()));
                    }
                    Ok((stream, _)) => refuse(stream),
                    Err(error) => {
                        if let Some(suppressed) = complaints.check() {
                            tracing::warn!(%error, suppressed, "no control client can be accepted");
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
        // They hold what the server is made of.
        clients.shutdown().await;
    }
}

/// One line, without waiting: nothing is in the way of it yet.
fn refuse(stream: UnixStream) {
    let message = format!("{MAX_CONNECTIONS} clients are connected already; close one, or try again later");
    let Ok(mut stream) = stream.into_std() else { return };
    let _ = stream.write(&rpc::answer(Value::Null, Err(Failure::refused(message))));
}

/// Answers one request after the other, until the client goes or is too slow.
async fn converse(stream: UnixStream, control: Arc<Control>) {
    let mut lines = Lines::default();
    while let Some(line) = lines.next(&stream).await {
        let answer = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => None,
            Line::Whole(line) => control.answer(&line).await,
            Line::TooLong => {
                let message = format!("a request has {MAX_LINE} bytes at most, and ends with its line");
                let answer = rpc::answer(Value::Null, Err(Failure::new(Failure::REQUEST, message)));
                send(&stream, &answer).await;
                return;
            }
        };
        if let Some(answer) = answer
            && !send(&stream, &answer).await
        {
            return;
        }
        // Others have their turn, however much this one sends.
        tokio::task::yield_now().await;
    }
}

/// Whether all of it was taken in time.
async fn send(stream: &UnixStream, mut answer: &[u8]) -> bool {
    let all = async {
        while !answer.is_empty() {
            stream.writable().await?;
            match stream.try_write(answer) {
                Ok(sent) => answer = &answer[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    matches!(timeout(PATIENCE, all).await, Ok(Ok(())))
}

/// What a client sends, in lines.
struct Lines {
    buffer: Vec<u8>,
    /// Bytes of the buffer that hold no end of a line.
    looked_at: usize,
    ended: bool,
    /// When the wait for this line began, or its first byte came.
    since: Instant,
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
}

impl Default for Lines {
    fn default() -> Self {
        Self { buffer: Vec::new(), looked_at: 0, ended: false, since: Instant::now() }
    }
}

impl Lines {
    /// The next line; none when the client has gone or is too slow. The end of the stream ends a line, too.
    async fn next(&mut self, stream: &UnixStream) -> Option<Line> {
        loop {
            if let Some(end) = self.buffer[self.looked_at..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(self.looked_at + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                self.looked_at = 0;
                self.since = Instant::now();
                return Some(if line.len() > MAX_LINE { Line::TooLong } else { Line::Whole(line) });
            }
            self.looked_at = self.buffer.len();
            if self.looked_at >= MAX_LINE {
                return Some(Line::TooLong);
            }
            if self.ended {
                self.looked_at = 0;
                let line = std::mem::take(&mut self.buffer);
                return (!line.is_empty()).then_some(Line::Whole(line));
            }
            let patience = if self.buffer.is_empty() { QUIET } else { PATIENCE };
            timeout_at(self.since + patience, stream.readable()).await.ok()?.ok()?;
            self.read(stream).ok()?;
        }
    }

    fn read(&mut self, stream: &UnixStream) -> io::Result<()> {
        let mut chunk = [0; 4096];
        match stream.try_read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(read) => {
                if self.buffer.is_empty() {
                    self.since = Instant::now();
                }
                self.buffer.extend_from_slice(&chunk[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
