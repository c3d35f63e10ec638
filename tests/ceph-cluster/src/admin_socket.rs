//! A daemon's admin socket: one request in JSON, ended by a zero byte; one answer behind its length in 4 bytes, big-endian
//! (Ceph: `src/common/admin_socket.cc`). Quicker than the program `ceph`, and it needs neither monitor nor manager.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A daemon that is paused or busy does not answer for this long at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any answer that is asked for here.
const MAX_ANSWER: usize = 64 << 20;

/// Asks the daemon `name` of the cluster in `directory`.
pub fn ask(directory: &Path, name: &str, request: &Value) -> Result<Value> {
    // By the directory's descriptor: a socket's path may have no more than 107 bytes.
    let opened = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/run/{name}.asok", opened.as_raw_fd());
    let mut socket = UnixStream::connect(path).with_context(|| format!("{name}: no admin socket"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.write_all(request.to_string().as_bytes())?;
    socket.write_all(&[0])?;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    ensure!(length <= MAX_ANSWER, "{name}: an answer of {length} bytes");
    let mut answer = vec![0; length];
    socket.read_exact(&mut answer)?;
    serde_json::from_slice(&answer).with_context(|| format!("{name}: {}", String::from_utf8_lossy(&answer)))
}
