//! [`Server`]: a `quarry` process of our own, in a directory of its own.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nvme_driver::{Controller, Error, Options};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::binary::quarry;
use crate::resources::Resources;

/// A running `quarry serve`. Killed on drop; a test that fails shows its log.
pub struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    /// Serves one disk, for example `mem:64M`, on the socket `vm.sock`.
    #[track_caller]
    pub fn disk(spec: &str) -> Self {
        Self::disk_with(spec, &[])
    }

    /// Serves one disk with further arguments.
    #[track_caller]
    pub fn disk_with(spec: &str, arguments: &[&str]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut all = vec!["serve", "--socket", "vm.sock", "--disk", spec];
        all.extend_from_slice(arguments);
        Self::start(dir, &all, &["vm.sock"])
    }

    /// Serves a configuration, in which paths are relative; `sockets` are those that it names.
    #[track_caller]
    pub fn config(text: &str, sockets: &[&str]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        fs::write(dir.path().join("quarry.toml"), text).expect("the configuration is written");
        Self::start(dir, &["serve", "quarry.toml"], sockets)
    }

    #[track_caller]
    fn start(dir: TempDir, arguments: &[&str], sockets: &[&str]) -> Self {
        let log = File::create(dir.path().join("log")).expect("a log file");
        let child = Command::new(quarry())
            .args(arguments)
            .current_dir(dir.path())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", quarry().display()));
        let mut server = Self { child, dir };
        let start = Instant::now();
        while !sockets.iter().all(|name| is_listening(&server.socket(name))) {
            if let Some(status) = server.child.try_wait().expect("the state of the child") {
                panic!("quarry {arguments:?} ended with {status} instead of serving:\n{}", server.log());
            }
            assert!(start.elapsed() < PATIENCE, "no socket after {PATIENCE:?}:\n{}", server.log());
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// The directory in which it runs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of one of its sockets.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until a line with `what` is in its log, which it returns. A thread of its own writes the lines: what the
    /// server has logged before it answers a client may come to the file after the answer.
    #[track_caller]
    pub fn wait_for_log(&self, what: &str) -> String {
        self.wait_for_logs(what, 1)
    }

    /// The same for so many lines with `what`.
    #[track_caller]
    pub fn wait_for_logs(&self, what: &str, count: usize) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.lines().filter(|line| line.contains(what)).count() >= count {
                return log;
            }
            assert!(start.elapsed() < PATIENCE, "not {count} lines with {what:?} in the log");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it holds.
    pub fn resources(&self) -> Resources {
        Resources::of(self.pid())
    }

    /// A controller on `vm.sock`, enabled, through a transport that sees errors.
    #[track_caller]
    pub fn controller(&self) -> Controller {
        self.controller_with("vm.sock", Options::default())
    }

    /// A controller on any socket, with options.
    #[track_caller]
    pub fn controller_with(&self, socket: &str, options: Options) -> Controller {
        // The socket of a client before us can outlive it for a moment: while another test of this process starts a
        // program, the child holds copies of all descriptors until it becomes that program. Then we are turned away.
        let start = Instant::now();
        loop {
            match Controller::connect_wire(&self.socket(socket), options.clone()) {
                Ok(controller) => return controller,
                Err(Error::Io(error)) if is_turned_away(&error) && start.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("no controller on {socket}: {error}"),
            }
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the server still runs");
    }

    /// Ends it as a power cut would.
    #[track_caller]
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Asks it to end, and waits until it has. Returns how it did, and its log.
    #[track_caller]
    pub fn terminate(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        let status = self.wait();
        (status, self.log())
    }

    /// Asks it to end, and expects that it does so with status 0. Returns its log.
    #[track_caller]
    pub fn stop(self) -> String {
        let (status, log) = self.terminate();
        assert!(status.success(), "SIGTERM should end it with status 0, not {status}:\n{log}");
        assert!(!log.contains("panicked"), "a thread panicked:\n{log}");
        log
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the state of the child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- log of quarry ----\n{}----", self.log());
        }
    }
}

fn is_turned_away(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}

/// Whether somebody listens on a Unix socket, without connecting to it: a connection would be a client.
fn is_listening(path: &Path) -> bool {
    // Flags in column 4 of /proc/net/unix: 00010000 is __SO_ACCEPTCON.
    let Ok(path) = path.canonicalize() else { return false };
    let table = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(3) == Some("00010000") && fields.next_back() == Some(&path.to_string_lossy())
    })
}
