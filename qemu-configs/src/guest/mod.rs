//! A running guest.

mod builder;
mod files;
mod kvm;
mod link;
pub mod spawn;

pub use builder::{Accel, Boot, Builder, Firmware, Network, disk_device};

use crate::Assets;
use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use link::{Link, Silence};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much longer the host waits than the agent does: a command's time is the agent's to keep.
const GRACE: Duration = Duration::from_secs(30);
/// For everything that a guest that is alive does at once.
const PATIENCE: Duration = Duration::from_secs(120);
/// How much of the console a failure shows.
const CONSOLE_LINES: usize = 120;

/// A guest that runs. It is killed when dropped, and by the kernel when this process ends.
///
/// All methods take `&self`: threads can share a guest, and commands run side by side.
pub struct Guest {
    qemu: Mutex<Child>,
    agent: Link,
    qmp: Link,
    /// The root ports, and the device on each.
    ports: Mutex<Vec<Option<String>>>,
    reboots: bool,
    kvm: bool,
    /// The block device with files of the host.
    files: Option<&'static str>,
    boot_timeout: Duration,
    boot_time: Duration,
    /// Console, sockets, QEMU's standard error. The last field, so the last to go.
    directory: tempfile::TempDir,
}

/// What a command in the guest came to.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// How long it ran, by the guest's clock.
    pub duration: Duration,
}

/// A command that runs in the guest while the test does something else; see [`Guest::begin`].
#[must_use]
#[derive(Debug)]
pub struct Running {
    id: u64,
    command: String,
    deadline: Instant,
    timeout: Duration,
}

/// The agent's last word on a request.
#[derive(Deserialize)]
struct Done {
    exit: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    ms: u64,
}

impl Guest {
    /// A guest with 512 MiB, one emulated CPU and no disk but its root.
    pub fn builder() -> Builder {
        Builder::new()
    }

    fn start(builder: &Builder, assets: &Assets) -> Result<Self> {
        let start = Instant::now();
        let directory = tempfile::Builder::new().prefix("quarry-guest-").tempdir()?;
        let path = directory.path();
        // Listening before QEMU starts: it connects and never has to be waited for.
        let listeners = (UnixListener::bind(path.join("qmp"))?, UnixListener::bind(path.join("agent"))?);
        if !builder.files.is_empty() {
            files::pack(assets, &builder.files, &path.join(builder::FILES))?;
        }
        let stderr = File::create(path.join("stderr"))?;
        let mut command = Command::new(&assets.qemu);
        command.args(builder.command_line(assets, path)?);
        command.stdin(Stdio::null()).stdout(stderr.try_clone()?).stderr(stderr);
        let mut qemu = spawn::spawn(command).with_context(|| format!("start {}", assets.qemu.display()))?;
        let qmp = accept(&listeners.0, &mut qemu, path)?;
        let agent = accept(&listeners.1, &mut qemu, path)?;
        let mut guest = Self {
            qemu: Mutex::new(qemu),
            agent: Link::new(agent)?,
            qmp: Link::new(qmp)?,
            ports: Mutex::new(builder.ports()),
            reboots: builder.reboots,
            kvm: builder.kvm(),
            files: (!builder.files.is_empty()).then(|| builder.files_device()),
            boot_timeout: builder.boot_timeout,
            boot_time: Duration::ZERO,
            directory,
        };
        guest.qmp("qmp_capabilities", json!({}))?;
        guest.wait_ready(0)?;
        guest.boot_time = start.elapsed();
        Ok(guest)
    }

    /// From the start of QEMU to the agent's first word.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// True when KVM runs this guest.
    pub fn is_kvm(&self) -> bool {
        self.kvm
    }

    /// Runs a line of shell. Whatever it exits with is an `Ok`: see [`Guest::ok`]. An error means that the guest or QEMU
    /// is gone or hangs, and carries all that they said.
    pub fn sh(&self, command: &str, timeout: Duration) -> Result<Output> {
        self.finish(self.begin(command, timeout)?)
    }

    /// Runs a line of shell, up to two minutes, and returns its standard output. Anything but success is an error that
    /// shows the command and all it printed.
    pub fn ok(&self, command: &str) -> Result<String> {
        self.ok_within(command, PATIENCE)
    }

    /// The same with a limit of one's own.
    pub fn ok_within(&self, command: &str, timeout: Duration) -> Result<String> {
        let output = self.sh(command, timeout)?;
        if output.code == Some(0) {
            return Ok(output.out);
        }
        let how = match (output.timed_out, output.code, output.signal) {
            (true, ..) => format!("ran for longer than {timeout:?}"),
            (_, Some(code), _) => format!("exit status {code}"),
            (_, _, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        let Output { out, err, .. } = output;
        Err(self.report(&format!(
            "in the guest: {command}: {how}\n--- its output:\n{out}\n--- its errors:\n{err}"
        )))
    }

    /// Starts a line of shell and returns at once. It ends when all that it left running has closed its output.
    pub fn begin(&self, command: &str, timeout: Duration) -> Result<Running> {
        self.begin_with(command, None, timeout)
    }

    /// The same with something on its standard input.
    pub fn begin_with(&self, command: &str, stdin: Option<&str>, timeout: Duration) -> Result<Running> {
        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = json!({"op": "run", "sh": command, "stdin": stdin, "timeout_ms": ms});
        self.request(request, command.to_owned(), timeout)
    }

    /// Waits for the end of a command.
    pub fn finish(&self, running: Running) -> Result<Output> {
        let (done, out, err) = self.collect(&running)?;
        Ok(Output {
            code: done.exit,
            signal: done.signal,
            timed_out: done.timed_out,
            out: String::from_utf8_lossy(&out).into_owned(),
            err: String::from_utf8_lossy(&err).into_owned(),
            duration: Duration::from_millis(done.ms),
        })
    }

    /// Reads a file of the guest.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let running = self.request(json!({"op": "get", "path": path}), format!("read {path}"), PATIENCE)?;
        Ok(self.collect(&running)?.1)
    }

    /// Writes a file in the guest (a few MiB at most).
    pub fn put(&self, path: &str, data: &[u8]) -> Result<()> {
        let request = json!({"op": "put", "path": path, "data": BASE64.encode(data)});
        self.collect(&self.request(request, format!("write {path}"), PATIENCE)?).map(drop)
    }

    /// A command to QEMU's monitor; returns its `return`.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        let answer = self.qmp.send(json!({"execute": command, "arguments": arguments})).and_then(|id| {
            let answer = self.qmp.reply(id, deadline);
            self.qmp.forget(id);
            answer
        });
        match answer {
            Ok(answer) if answer.get("return").is_some() => Ok(answer["return"].clone()),
            Ok(answer) => bail!("QEMU refuses {command} {arguments}: {}", answer["error"]["desc"]),
            Err(silence) => Err(self.silent(&format!("QMP {command}"), &silence)),
        }
    }

    /// The events that QEMU told so far.
    pub fn events(&self) -> Vec<Value> {
        self.qmp.notices()
    }

    /// Plugs in the vfio-user disk whose server listens at `socket`; returns the device's id. The guest sees it a moment
    /// later.
    pub fn disk_add(&self, socket: &Path) -> Result<String> {
        self.device_add(disk_device(socket))
    }

    /// Plugs a device into a free root port; `id` and `bus` are filled in.
    pub fn device_add(&self, mut device: Value) -> Result<String> {
        let mut ports = lock(&self.ports);
        let free =
            ports.iter().position(Option::is_none).context("no free root port: Builder::spare_ports")?;
        let id =
            (0..).map(|n| format!("plugged{n}")).find(|id| !ports.iter().flatten().any(|used| used == id));
        let id = id.context("there is always a free name")?;
        device["id"] = id.clone().into();
        device["bus"] = format!("port{free}").into();
        self.qmp("device_add", device)?;
        ports[free] = Some(id.clone());
        Ok(id)
    }

    /// Unplugs a device (`disk0` is the first disk that the guest was built with) and waits until the guest has let go of
    /// it.
    pub fn device_del(&self, id: &str) -> Result<()> {
        let position = self.qmp.position();
        self.qmp("device_del", json!({"id": id}))?;
        let deleted = |event: &Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == id;
        self.qmp
            .notice(position, Instant::now() + PATIENCE, deleted)
            .map_err(|silence| self.silent(&format!("unplug {id}"), &silence))?;
        lock(&self.ports).iter_mut().filter(|port| port.as_deref() == Some(id)).for_each(|port| *port = None);
        Ok(())
    }

    /// Restarts the guest from within and returns when its agent is back.
    pub fn reboot(&self) -> Result<()> {
        ensure!(self.reboots, "this guest ends when it restarts: Builder::reboots");
        let position = self.agent.position();
        let running = self.request(json!({"op": "reboot"}), "reboot".to_owned(), PATIENCE)?;
        let ready = self.wait_ready(position);
        self.agent.forget(running.id);
        ready
    }

    /// Switches the guest off from within and waits for QEMU's end.
    pub fn poweroff(&self) -> Result<ExitStatus> {
        let running = self.request(json!({"op": "poweroff"}), "poweroff".to_owned(), PATIENCE)?;
        let exit = self.wait_exit(PATIENCE);
        self.agent.forget(running.id);
        exit
    }

    /// Kills QEMU, as a crash would.
    pub fn kill(&self) -> Result<()> {
        let mut qemu = lock(&self.qemu);
        qemu.kill()?;
        qemu.wait()?;
        Ok(())
    }

    /// Waits for QEMU's end.
    pub fn wait_exit(&self, timeout: Duration) -> Result<ExitStatus> {
        self.exit_within(timeout)?.ok_or_else(|| self.report(&format!("QEMU still runs after {timeout:?}")))
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        lock(&self.qemu).id()
    }

    /// What the guest printed on its serial console.
    pub fn console(&self) -> String {
        read(&self.directory.path().join("console"))
    }

    /// What QEMU itself printed.
    pub fn stderr(&self) -> String {
        read(&self.directory.path().join("stderr"))
    }

    /// The directory of this guest's files, gone with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// An error that shows everything that is known about this guest.
    pub fn report(&self, what: &str) -> anyhow::Error {
        let exit = match self.exit_within(Duration::ZERO) {
            Ok(Some(status)) => format!("QEMU ended: {status}"),
            _ => "QEMU runs".to_owned(),
        };
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
        anyhow!(
            "{what}\n--- {exit}\n--- QEMU's errors:\n{}\n--- end of the guest's console:\n{last}",
            self.stderr()
        )
    }

    fn request(&self, request: Value, command: String, timeout: Duration) -> Result<Running> {
        match self.agent.send(request) {
            Ok(id) => Ok(Running { id, command, deadline: Instant::now() + timeout + GRACE, timeout }),
            Err(silence) => Err(self.silent(&command, &silence)),
        }
    }

    /// All of a request's output, up to its end.
    fn collect(&self, running: &Running) -> Result<(Done, Vec<u8>, Vec<u8>)> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            let reply = match self.agent.reply(running.id, running.deadline) {
                Ok(reply) => reply,
                Err(silence) => return Err(self.silent(&running.command, &silence)),
            };
            if let Some(data) = reply["out"].as_str() {
                out.extend(BASE64.decode(data)?);
            } else if let Some(data) = reply["err"].as_str() {
                err.extend(BASE64.decode(data)?);
            } else {
                self.agent.forget(running.id);
                if let Some(error) = reply["error"].as_str() {
                    bail!("in the guest: {}: {error}", running.command);
                }
                return Ok((serde_json::from_value(reply["done"].clone())?, out, err));
            }
        }
    }

    fn wait_ready(&self, position: usize) -> Result<()> {
        let deadline = Instant::now() + self.boot_timeout;
        if let Err(silence) = self.agent.notice(position, deadline, |notice| notice["ready"] == true) {
            return Err(self.silent("boot", &silence));
        }
        match self.files {
            Some(device) => {
                self.ok(&format!("mkdir -p /host && mount -t erofs -o ro {device} /host")).map(drop)
            }
            None => Ok(()),
        }
    }

    /// No answer: finds out as much as can be found out.
    fn silent(&self, what: &str, silence: &Silence) -> anyhow::Error {
        match silence {
            // The console's last words and the exit status come a moment after the sockets close.
            Silence::Closed => drop(self.exit_within(Duration::from_secs(10))),
            // With unknown_nmi_panic a guest that hangs says where, and resets.
            Silence::Timeout => {
                let _ = self.qmp.send(json!({"execute": "inject-nmi"}));
                drop(self.exit_within(Duration::from_secs(10)));
            }
        }
        let why = match silence {
            Silence::Closed => "the guest is gone",
            Silence::Timeout => "no answer (an NMI was sent: see the console)",
        };
        self.report(&format!("{what}: {why}"))
    }

    fn exit_within(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + timeout;
        loop {
            let status = lock(&self.qemu).try_wait()?;
            if status.is_some() || Instant::now() >= end {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Running {
    /// The limit that the command was given.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Waits for QEMU to connect, or to end.
fn accept(listener: &UnixListener, qemu: &mut Child, directory: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        let stderr = || read(&directory.join("stderr"));
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => return Err(e.into()),
            Err(_) => {}
        }
        if let Some(status) = qemu.try_wait()? {
            bail!("QEMU ended at its start: {status}\n{}", stderr());
        }
        if start.elapsed() > PATIENCE {
            let _ = qemu.kill();
            let _ = qemu.wait();
            bail!("QEMU did not connect\n{}", stderr());
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
