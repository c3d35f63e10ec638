//! One of the cluster's processes.

use crate::admin_socket;
use crate::run::{self, Identity, Life};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A moment for a daemon to start or to end, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a daemon gets to end by itself.
const GRACE: Duration = Duration::from_secs(20);

/// A monitor, a manager or an OSD. It can be ended, halted and started again from any thread.
#[derive(Debug)]
pub struct Daemon {
    /// `osd.0`, `mon.a`, `mgr.x`.
    name: String,
    directory: PathBuf,
    life: Life,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Process {
    identity: Identity,
    /// None when another process started it.
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn new(name: String, directory: &Path, life: Life) -> Self {
        Self { name, directory: directory.to_owned(), life, process: Mutex::new(None) }
    }

    /// One that another process started, running or not.
    pub(crate) fn attach(name: String, directory: &Path) -> Self {
        let daemon = Self::new(name, directory, Life::Lasting);
        let identity = fs::read_to_string(daemon.record()).ok().as_deref().and_then(Identity::parse);
        let process = identity.filter(Identity::runs).map(|identity| Process { identity, child: None });
        *daemon.process() = process;
        daemon
    }

    /// What Ceph calls it: `osd.0`, `mon.a`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id; none when it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(|process| process.identity.pid)
    }

    /// True while its process is there, halted or not.
    pub fn is_running(&self) -> bool {
        let mut process = self.process();
        match process.as_mut() {
            Some(Process { child: Some(child), .. }) => child.try_wait().is_ok_and(|status| status.is_none()),
            Some(Process { identity, .. }) => identity.runs(),
            None => false,
        }
    }

    /// Starts it, after its end or for the first time. Returns at once: [`Self::wait_up`] waits until it works.
    pub fn start(&self) -> Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.name);
        let (kind, id) = self.name.split_once('.').context("a daemon's name")?;
        let mut command = self.command(&format!("ceph-{kind}"));
        command.args(["-f", "-i", id]);
        let output = File::options().create(true).append(true).open(self.directory.join(self.output()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut process = self.process();
        let child = run::spawn(command, self.life).with_context(|| format!("start {}", self.name))?;
        let identity = Identity::of(child.id())?;
        fs::write(self.record(), identity.to_string())?;
        *process = Some(Process { identity, child: Some(child) });
        Ok(())
    }

    /// One of Ceph's programs as the daemons run them: in the cluster's directory, to which ceph.conf's paths for them are
    /// relative.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory).env("CEPH_CONF", "ceph.conf").env_remove("CEPH_ARGS");
        command
    }

    /// Where it keeps its data.
    pub(crate) fn make_directory(&self) -> Result<()> {
        let directory = self.directory.join(&self.name);
        fs::create_dir(&directory).with_context(|| directory.display().to_string())
    }

    /// Ends it as a power cut would, and waits for its end. One that does not run stays as it is.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.reap(PATIENCE)
    }

    /// Halts it: it keeps its connections and does not answer. When this returns, none of its threads runs.
    pub fn pause(&self) -> Result<()> {
        ensure!(self.signal(Signal::STOP)?, "{} does not run", self.name);
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        // A thread that is on a CPU goes on for a moment.
        run::wait_for(&format!("{} to halt", self.name), PATIENCE, || {
            let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
            let halted = |thread: std::io::Result<fs::DirEntry>| {
                let state = fs::read_to_string(thread?.path().join("stat"))?;
                // After the name, which may have anything in it.
                Ok(state.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
            };
            let all = threads.map(halted).collect::<std::io::Result<Vec<_>>>()?;
            Ok(all.into_iter().all(|halted| halted).then_some(()))
        })
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        ensure!(self.signal(Signal::CONT)?, "{} does not run", self.name);
        Ok(())
    }

    /// Waits until it works: the monitor has a quorum, an OSD takes part, a manager answers.
    pub fn wait_up(&self) -> Result<()> {
        run::wait_for(&format!("{} to be up", self.name), PATIENCE, || {
            if !self.is_running() {
                bail!("{} ended\n{}", self.name, self.last_words());
            }
            Ok(self.is_up().then_some(()))
        })
    }

    fn is_up(&self) -> bool {
        let state = |command: &str, wanted: &[&str]| {
            let answer = self.ask(&json!({ "prefix": command }));
            answer.is_ok_and(|answer| answer["state"].as_str().is_some_and(|state| wanted.contains(&state)))
        };
        match self.name.split_once('.') {
            Some(("mon", _)) => state("mon_status", &["leader", "peon"]),
            Some(("osd", _)) => state("status", &["active"]),
            _ => self.ask(&json!({ "prefix": "version" })).is_ok(),
        }
    }

    /// Asks over its admin socket: `{"prefix": "perf dump"}` and the like.
    pub fn ask(&self, request: &Value) -> Result<Value> {
        admin_socket::ask(&self.directory, &self.name, request)
    }

    /// Asks it to end; returns at once.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)?;
        // One that is halted would never see it.
        self.signal(Signal::CONT)?;
        Ok(())
    }

    /// Waits for the end of one that was asked to, and kills it if it takes its time.
    pub(crate) fn ended(&self) -> Result<()> {
        self.reap(GRACE).or_else(|_| self.kill())
    }

    fn signal(&self, signal: Signal) -> Result<bool> {
        match self.process().as_ref() {
            Some(process) => process.identity.signal(signal).with_context(|| self.name.clone()),
            None => Ok(false),
        }
    }

    fn reap(&self, patience: Duration) -> Result<()> {
        run::wait_for(&format!("the end of {}", self.name), patience, || {
            Ok((!self.is_running()).then_some(()))
        })?;
        *self.process() = None;
        let _ = fs::remove_file(self.record());
        Ok(())
    }

    /// The end of what it wrote.
    pub(crate) fn last_words(&self) -> String {
        let tail = |file: String| {
            let text = fs::read(self.directory.join(file)).unwrap_or_default();
            run::excerpt(&text)
        };
        format!("{}\n{}", tail(format!("log/{}.log", self.name)), tail(self.output()))
    }

    fn output(&self) -> String {
        format!("log/{}.out", self.name)
    }

    /// Which process it is, for those who come later.
    fn record(&self) -> PathBuf {
        self.directory.join(format!("run/{}.process", self.name))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.life == Life::Ours {
            let _ = self.kill();
        }
    }
}
