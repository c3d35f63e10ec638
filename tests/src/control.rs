//! [`Client`]: a client of a server's control socket.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::{PATIENCE, Server};

/// A client of the control socket.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to `control.sock`.
    pub fn connect(server: &Server) -> Self {
        let stream = UnixStream::connect(server.socket("control.sock")).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut UnixStream {
        self.0.get_mut()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("sent");
    }

    /// The next answer.
    #[track_caller]
    pub fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Calls a method and returns the whole answer.
    #[track_caller]
    pub fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.send(format!("{request}\n").as_bytes());
        self.answer()
    }

    /// The result of what must succeed.
    #[track_caller]
    pub fn get(&mut self, method: &str, params: Value) -> Value {
        let answer = self.ask(method, params);
        assert!(answer.get("error").is_none(), "{answer}");
        answer["result"].clone()
    }

    /// Whether the server has closed the connection, having sent nothing more.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        // With bytes that it did not read, the end is a reset.
        match self.0.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
