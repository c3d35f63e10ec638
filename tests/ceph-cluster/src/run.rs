//! Processes: started, looked at, ended; each by its own id.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at something that is awaited.
pub const TICK: Duration = Duration::from_millis(10);

/// How long processes live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// As long as this one, at most.
    Ours,
    /// Until somebody ends them.
    Lasting,
}

/// Starts a process for as long as `life` says.
pub fn spawn(mut command: Command, life: Life) -> io::Result<Child> {
    if life == Life::Ours {
        return qemu_configs::spawn(command);
    }
    // SAFETY: between fork and exec the closure makes one system call; it takes no lock and allocates nothing.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
    command.spawn()
}

/// Which process it is: an id alone is another's some day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    /// Clock ticks from boot to its start, and which boot.
    start: u64,
    boot: String,
}

impl Identity {
    /// Of a process that is there.
    pub fn of(pid: u32) -> Result<Self> {
        let start = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start, boot: boot()? })
    }

    /// Of what [`fmt::Display`](std::fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (pid, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Self { pid, start, boot: words.next()?.to_owned() })
    }

    /// Whether that process is there still, and runs one of Ceph's programs.
    pub fn runs(&self) -> bool {
        // A zombie has a start time and no program.
        let program = fs::read_link(format!("/proc/{}/exe", self.pid));
        let is_ceph =
            |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ceph-"));
        boot().is_ok_and(|boot| boot == self.boot)
            && start_time(self.pid) == Some(self.start)
            && program.is_ok_and(|path| is_ceph(&path))
    }

    /// Sends a signal; false when the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a process id")?;
        // First the descriptor, then the look: what it is for cannot change afterwards.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            process => process?,
        };
        if !self.runs() {
            return Ok(false);
        }
        match pidfd_send_signal(process, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(false),
            sent => Ok(sent.map(|()| true)?),
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} {} {}", self.pid, self.start, self.boot)
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)); the second may hold blanks and brackets.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Waits until `done` yields something. An error says what was awaited, and the last reason why it was not there.
pub fn wait_for<T>(what: &str, patience: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = TICK;
    loop {
        if let Some(value) = done().with_context(|| format!("waiting for {what}"))? {
            return Ok(value);
        }
        ensure!(start.elapsed() < patience, "{what}: not within {} s", patience.as_secs());
        thread::sleep(pause);
        pause = (pause * 5 / 4).min(Duration::from_millis(200));
    }
}

/// Runs a command with `input`, and ends it after `patience`.
pub fn output(mut command: Command, input: &str, patience: Duration) -> Result<Output> {
    let shown = shown(&command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = qemu_configs::spawn(command).with_context(|| format!("start {shown}"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let status = thread::scope(|scope| {
        // Its pipes are served until it has closed them, which it does at its end.
        let stdout = scope.spawn(|| read(stdout));
        let stderr = scope.spawn(|| read(stderr));
        // One that ends without having read its input has its reasons, and says them.
        scope.spawn(|| stdin.is_some_and(|mut stdin| stdin.write_all(input.as_bytes()).is_ok()));
        let status = wait(&mut child, patience);
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let join = |reader: thread::ScopedJoinHandle<'_, Vec<u8>>| reader.join().unwrap_or_default();
        let (stdout, stderr) = (join(stdout), join(stderr));
        let text = excerpt(&stderr);
        status.with_context(|| format!("{shown}\n{text}")).map(|status| Output { status, stdout, stderr })
    })?;
    Ok(status)
}

/// The command's standard output, if it ends well.
pub fn ok(command: Command, input: &str, patience: Duration) -> Result<String> {
    let shown = shown(&command);
    let output = output(command, input, patience)?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}", output.status, excerpt(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The beginning and the end of what a program said: Ceph's say very much when something is wrong.
pub fn excerpt(said: &[u8]) -> String {
    const LINES: usize = 8;
    let text = String::from_utf8_lossy(said);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() > 2 * LINES {
        let end = lines.len() - LINES;
        lines.splice(LINES..end, ["…"]);
    }
    lines.join("\n")
}

fn wait(child: &mut Child, patience: Duration) -> Result<std::process::ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(start.elapsed() < patience, "did not end within {} s", patience.as_secs());
        thread::sleep(TICK / 2);
    }
}

fn read(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What came before an error is worth having.
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
    bytes
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
