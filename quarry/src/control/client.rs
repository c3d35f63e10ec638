//! [`Client`]: the other end of the control socket, for `quarry control`.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Bytes of the longest answer that is read.
const MAX_ANSWER: u64 = 64 << 20;
/// How long an answer may take: longer than any that the server gives.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a server.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: String,
}

impl Client {
    /// Connects. The error says what to do.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let path_shown = path.display().to_string();
        let connected = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self { stream: BufReader::new(stream), path: path_shown }),
            Err(error) => {
                let help = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "run this as the server's user, or give others access: socket_mode in [control]"
                    }
                    io::ErrorKind::ConnectionRefused => "no server listens there any more; start it again",
                    _ => {
                        "is the server running, with a table [control] in its configuration? Name its socket with \
                         --socket"
                    }
                };
                Err(format!("cannot connect to {path_shown}: {error}\n  = help: {help}"))
            }
        }
    }

    /// Asks, and waits for the answer.
    pub fn call(&mut self, method: &str, params: Map<String, Value>) -> Result<Value, String> {
        let mut line =
            json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string().into_bytes();
        line.push(b'\n');
        // A server that turns us away answers before it reads, and then writing may fail.
        let sent = self.stream.get_mut().write_all(&line);
        let mut answer = Vec::new();
        let received = (&mut self.stream).take(MAX_ANSWER).read_until(b'\n', &mut answer);
        if answer.is_empty() {
            let error = sent.and(received.map(drop)).err();
            let error = error.map_or("it closed the connection".to_owned(), |error| error.to_string());
            return Err(format!("no answer from {}: {error}", self.path));
        }
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|_| format!("{} is no control socket of Quarry: its answer is no JSON", self.path))?;
        if let Some(message) = answer.pointer("/error/message") {
            return Err(message.as_str().unwrap_or("it failed").to_owned());
        }
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(format!("{} is no control socket of Quarry: its answer has no result", self.path)),
        }
    }
}
