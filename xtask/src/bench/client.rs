//! Runs servers, the client and what measures limits; reads what they print.

use super::Setting;
use super::goals::Copies;
use crate::process::line;
use crate::server::Server;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the client does.
#[derive(Clone, Copy, PartialEq)]
pub struct Point {
    /// As fio calls it.
    pub rw: &'static str,
    /// As the client takes it: `4K`.
    pub size: &'static str,
    pub depth: u32,
    pub idle_queues: u32,
}

/// What the client found out.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    pub iops: f64,
    pub bytes_per_second: f64,
    pub latency_ns: Latency,
    pub server_ns: Option<f64>,
    pub client_ns: f64,
    /// For which part of the time other programs kept client or server from running.
    pub disturbed: f64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Where the server's reactor runs.
#[derive(Clone, Copy)]
pub enum Placement {
    /// On the server's CPU.
    Alone,
    /// Where the server puts it that is not told.
    Anywhere,
}

/// `mode = "poll"` if the server knows it.
pub fn poll_mode(setting: &Setting) -> Result<Option<&'static str>> {
    const POLL: &str = "mode = \"poll\"\n";
    let path = setting.directory.join("mode.toml");
    let device = "type = \"null\"\nsize = \"1G\"\n";
    let socket = setting.directory.join("mode.sock");
    fs::write(&path, configuration(setting, Placement::Alone, POLL, device, &socket))?;
    let accepted = crate::process::succeeds(Command::new(&setting.quarry).arg("check").arg(&path));
    Ok(accepted.then_some(POLL))
}

fn configuration(setting: &Setting, placement: Placement, mode: &str, device: &str, socket: &Path) -> String {
    let cpus = match placement {
        Placement::Alone => format!("cpus = [{}]\n", setting.machine.server_cpu),
        Placement::Anywhere => String::new(),
    };
    format!(
        "# Written by `cargo xtask bench`.\n[reactors]\n{cpus}{mode}\n[devices.disk]\n{device}\n\
         [controllers.disk]\nsocket = {:?}\nnamespaces = [{{ device = \"disk\" }}]\n",
        socket.display().to_string(),
    )
}

/// Serves one device, described by the lines of its table. Its configuration and log are target/bench/`name`.*.
pub fn serve(setting: &Setting, name: &str, mode: Option<&str>, device: &str) -> Result<Server> {
    serve_on(setting, Placement::Alone, name, mode, device)
}

/// The same, with a reactor elsewhere.
pub fn serve_on(
    setting: &Setting,
    placement: Placement,
    name: &str,
    mode: Option<&str>,
    device: &str,
) -> Result<Server> {
    let short = tempfile::Builder::new().prefix("s-").tempdir_in(&setting.directory)?;
    let socket = short.path().join("disk");
    let path = setting.directory.join(format!("{name}.toml"));
    fs::write(&path, configuration(setting, placement, mode.unwrap_or_default(), device, &socket))?;
    let mut command = Command::new(&setting.quarry);
    command.arg("serve").arg(&path);
    Server::start(command, socket, setting.directory.join(format!("{name}.log")), short)
}

/// The client, to measure something.
fn client(setting: &Setting, what: &str) -> Command {
    let mut command = Command::new(&setting.client);
    command.args([what, "--attempts", &setting.pace.attempts.to_string()]);
    command
}

/// Runs a command that prints JSON.
pub fn read<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).output().with_context(|| line(command))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}\n{error}", line(command), output.status);
    serde_json::from_slice(&output.stdout).with_context(|| line(command))
}

/// One run of the client for so many seconds.
pub fn run(setting: &Setting, server: &Server, point: Point, seconds: f64) -> Result<Outcome> {
    let mut command = client(setting, "run");
    if !setting.machine.is_shared() {
        command.args(["--cpu", &setting.machine.client_cpu.to_string()]);
    }
    command.args(["--warmup", "0.1", "--idle-queues", &point.idle_queues.to_string()]);
    outcome(&mut command, server, point, seconds)
}

/// The same beside programs that need the CPUs: on any CPU, asleep while it waits. Once, as they always disturb it.
pub fn run_with_interrupts(
    setting: &Setting,
    server: &Server,
    point: Point,
    seconds: f64,
) -> Result<Outcome> {
    let mut command = Command::new(&setting.client);
    command.args(["run", "--interrupts", "--warmup", "0.3"]);
    outcome(&mut command, server, point, seconds)
}

fn outcome(command: &mut Command, server: &Server, point: Point, seconds: f64) -> Result<Outcome> {
    command.arg("--socket").arg(server.socket());
    command.args(["--rw", point.rw, "--size", point.size, "--depth", &point.depth.to_string()]);
    command.args(["--seconds", &seconds.to_string(), "--server-pid", &server.pid().to_string()]);
    let outcomes: Vec<Outcome> = read(command)?;
    outcomes.into_iter().next().context("the client printed no outcome")
}

/// Writes the whole disk once.
pub fn fill(setting: &Setting, server: &Server) -> Result<()> {
    let mut command = client(setting, "run");
    command.arg("--socket").arg(server.socket());
    command.args(["--rw", "write", "--size", "128K", "--fill", "--warmup", "0", "--commands", "1"]);
    read::<Vec<Outcome>>(&mut command).map(drop)
}

/// Nanoseconds of a cache line's round trip, where there are two CPUs.
pub fn round_trip(setting: &Setting) -> Result<Option<f64>> {
    if setting.machine.is_shared() {
        return Ok(None);
    }
    read(cpus(&mut client(setting, "line"), setting)).map(Some)
}

/// Commands in a second of a server that does nothing.
pub fn echo(setting: &Setting, depth: u32) -> Result<Outcome> {
    let seconds = setting.pace.limit_seconds.to_string();
    let mut command = client(setting, "echo");
    cpus(&mut command, setting);
    command.args(["--depth", &depth.min(255).to_string(), "--repeat", "1", "--seconds", &seconds]);
    let outcomes: Vec<Outcome> = read(&mut command)?;
    outcomes.into_iter().next().context("the client printed no outcome")
}

fn cpus<'a>(command: &'a mut Command, setting: &Setting) -> &'a mut Command {
    let (server, client) = (setting.machine.server_cpu.to_string(), setting.machine.client_cpu.to_string());
    command.args(["--server-cpu", &server, "--client-cpu", &client])
}

/// Copies in a second on the server's CPU, for each kind.
pub fn copies(setting: &Setting, kinds: &[Copies]) -> Result<Vec<f64>> {
    let mut command = client(setting, "copy");
    command.args(["--cpu", &setting.machine.server_cpu.to_string()]);
    command.args(["--seconds", &setting.pace.limit_seconds.to_string()]);
    for Copies { size, buffers, writes } in kinds {
        command.args(["--case", &format!("{size}:{buffers}:{writes}")]);
    }
    read(&mut command)
}
