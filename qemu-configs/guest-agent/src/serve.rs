//! The server of the host's requests.
//!
//! A request is one line, `{"id":7,"op":"run","sh":"ls"}`. It is answered by any number of `{"id":7,"out":BASE64}` and
//! `{"id":7,"err":BASE64}`, then one `{"id":7,"done":{…}}` or `{"id":7,"error":"…"}`. Requests run side by side.

use crate::boot::say;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::system::RebootCommand;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Request {
    id: u64,
    #[serde(flatten)]
    op: Op,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Op {
    Run(Run),
    Get { path: String },
    Put { path: String, data: String },
    Poweroff,
    Reboot,
}

/// A shell line or a list of arguments, with an end to the patience.
#[derive(Deserialize)]
struct Run {
    sh: Option<String>,
    #[serde(default)]
    argv: Vec<String>,
    stdin: Option<String>,
    timeout_ms: Option<u64>,
}

/// The port's writing half. Whole lines only.
#[derive(Clone)]
struct Port(Arc<Mutex<File>>);

impl Port {
    fn send(&self, line: &Value) {
        let line = format!("{line}\n");
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }

    /// Sends everything that `source` gives, under the name `out` or `err`.
    fn pump(&self, id: u64, name: &'static str, mut source: impl Read + Send + 'static) -> JoinHandle<()> {
        let port = self.clone();
        thread::spawn(move || {
            let mut piece = [0; 24 << 10];
            while let Ok(n @ 1..) = source.read(&mut piece) {
                port.send(&json!({"id": id, name: BASE64.encode(&piece[..n])}));
            }
        })
    }
}

/// Serves until the port fails.
pub fn serve() -> ! {
    let Some(path) = find_port() else {
        say("there is no virtio-serial port named agent");
        std::process::exit(1)
    };
    let (reader, port) =
        match OpenOptions::new().read(true).write(true).open(&path).and_then(|f| Ok((f.try_clone()?, f))) {
            Ok((reader, writer)) => (BufReader::new(reader), Port(Arc::new(Mutex::new(writer)))),
            Err(e) => {
                say(&format!("{path}: {e}"));
                std::process::exit(1)
            }
        };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    port.send(&json!({"ready": true, "kernel": kernel.trim()}));
    say("ready");
    for line in reader.lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                let port = port.clone();
                thread::spawn(move || answer(request, &port));
            }
            Err(e) => port.send(&json!({"error": e.to_string()})),
        }
    }
    say("the host closed the port");
    std::process::exit(0)
}

/// The device of the port named "agent". The driver makes it a moment after the machine's start.
fn find_port() -> Option<String> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let path = format!("/dev/{}", entry.file_name().display());
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == "agent" && fs::exists(&path).unwrap_or(false) {
                return Some(path);
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}

fn answer(Request { id, op }: Request, port: &Port) {
    let start = Instant::now();
    let done = |exit: ExitStatus, timed_out: bool| {
        json!({"exit": exit.code(), "signal": exit.signal(), "timed_out": timed_out,
               "ms": u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)})
    };
    let result = match op {
        Op::Run(request) => run(id, request, port).map(|(exit, timed_out)| done(exit, timed_out)),
        Op::Get { path } => File::open(path).map(|file| {
            let _ = port.pump(id, "out", file).join();
            done(ExitStatus::default(), false)
        }),
        Op::Put { path, data } => BASE64
            .decode(data)
            .map_err(std::io::Error::other)
            .and_then(|data| fs::write(path, data))
            .map(|()| done(ExitStatus::default(), false)),
        Op::Poweroff => crate::end(RebootCommand::PowerOff),
        Op::Reboot => crate::end(RebootCommand::Restart),
    };
    match result {
        Ok(done) => port.send(&json!({"id": id, "done": done})),
        Err(e) => port.send(&json!({"id": id, "error": e.to_string()})),
    }
}

fn run(id: u64, request: Run, port: &Port) -> std::io::Result<(ExitStatus, bool)> {
    let mut command = match (request.sh, request.argv.split_first()) {
        (Some(line), _) => {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(line);
            shell
        }
        (None, Some((program, arguments))) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        (None, None) => return Err(std::io::Error::other("neither sh nor argv")),
    };
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", "dumb")
        .env("LANG", "C.UTF-8")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let pumps = [
        child.stdout.take().map(|source| port.pump(id, "out", source)),
        child.stderr.take().map(|source| port.pump(id, "err", source)),
    ];
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), request.stdin) {
        thread::spawn(move || pipe.write_all(text.as_bytes()));
    }
    let ended = wait(&mut child, request.timeout_ms.map(Duration::from_millis))?;
    if ended.1 {
        return Ok(ended); // something that cannot be killed may hold the pipes open: do not wait for them
    }
    for pump in pumps.into_iter().flatten() {
        let _ = pump.join();
    }
    Ok(ended)
}

/// Waits for the child's end; kills its whole group when the time is over.
fn wait(child: &mut Child, patience: Option<Duration>) -> std::io::Result<(ExitStatus, bool)> {
    let start = Instant::now();
    let mut killed: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, killed.is_some()));
        }
        match killed {
            None if patience.is_some_and(|limit| start.elapsed() > limit) => {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                killed = Some(Instant::now());
            }
            // In uninterruptible sleep (a disk that never answers) even SIGKILL waits: tell the host now.
            Some(since) if since.elapsed() > Duration::from_secs(5) => {
                return Ok((ExitStatus::from_raw(9), true));
            }
            _ => {}
        }
        thread::sleep(Duration::from_millis(if start.elapsed() < Duration::from_millis(100) {
            1
        } else {
            10
        }));
    }
}
