//! A `quarry serve` of our own, for the demo and the benchmarks.

use crate::process::{line, say};
use anyhow::{Context, Result, bail, ensure};
use ceph_cluster::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A moment for the server's start and for its end, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `quarry serve`. Killed on drop; [`Self::stop`] is the clean way.
pub struct Server {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    /// Of the socket: its path has to be short.
    _directory: tempfile::TempDir,
}

impl Server {
    /// Serves one disk, a fresh image in `directory`, and waits until it listens.
    pub fn image(quarry: &Path, directory: &Path) -> Result<Self> {
        let short = tempfile::Builder::new().prefix("quarry-demo-").tempdir()?;
        let (socket, image) = (short.path().join("disk.sock"), directory.join("disk.img"));
        match fs::remove_file(&image) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(image.display().to_string());
            }
            _ => {}
        }
        let mut command = Command::new(quarry);
        command.arg("serve").arg("--socket").arg(&socket);
        command.arg("--disk").arg(format!("file:{},size=2G", image.display()));
        Self::start(command, socket, directory.join("quarry.log"), short)
    }

    /// Serves one disk, an image in the pool `rbd` of a cluster, and waits until it listens. Its configuration is written to
    /// `directory`.
    pub fn rbd(quarry: &Path, directory: &Path, cluster: &Cluster, image: &str) -> Result<Self> {
        let short = tempfile::Builder::new().prefix("quarry-demo-").tempdir()?;
        let (socket, configuration) = (short.path().join("disk.sock"), directory.join("quarry.toml"));
        fs::write(&configuration, rbd_configuration(cluster, image, &socket))?;
        let mut command = Command::new(quarry);
        command.arg("serve").arg(&configuration);
        Self::start(command, socket, directory.join("quarry.log"), short)
    }

    /// Runs the command, which serves on `socket` in `short`, and waits until it listens.
    pub fn start(
        mut command: Command,
        socket: PathBuf,
        log: PathBuf,
        short: tempfile::TempDir,
    ) -> Result<Self> {
        say(&line(&command));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let program = command.get_program().display().to_string();
        let child = qemu_configs::spawn(command).context(program)?;
        let mut server = Self { child, socket, log, _directory: short };
        let start = Instant::now();
        while !listens(&server.socket) {
            if let Some(status) = server.child.try_wait()? {
                bail!("quarry ended at its start: {status}\n{}", server.log());
            }
            ensure!(start.elapsed() < PATIENCE, "quarry does not listen\n{}", server.log());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Does something while the server is halted, so that it takes no CPU time. It must have no client.
    pub fn while_halted<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.signal(Signal::STOP)?;
        let result = work();
        self.signal(Signal::CONT)?;
        result
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it as an operator would, and expects that it ends well.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let start = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(start.elapsed() < PATIENCE, "quarry ignores SIGTERM\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        };
        ensure!(status.success(), "quarry ended badly: {status}\n{}", self.log());
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() || self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A configuration that serves an image of the pool `rbd`.
pub fn rbd_configuration(cluster: &Cluster, image: &str, socket: &Path) -> String {
    let quoted = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    format!(
        r#"[clusters.ceph]
conf = {conf}
keyring = {keyring}

[devices.disk]
type = "rbd"
pool = "rbd"
image = "{image}"

[controllers.vm]
socket = {socket}
namespaces = [{{ device = "disk" }}]
"#,
        conf = quoted(cluster.conf()),
        keyring = quoted(cluster.keyring()),
        socket = quoted(socket),
    )
}

/// Asks the kernel, not the server: it takes one client, and that shall be the guest.
fn listens(socket: &Path) -> bool {
    const ACCEPTING: &str = "00010000";
    let path = socket.display().to_string();
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table.lines().any(|line| line.ends_with(&path) && line.split_whitespace().nth(3) == Some(ACCEPTING))
}
