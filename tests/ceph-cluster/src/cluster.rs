//! A cluster that runs.

use crate::daemon::Daemon;
use crate::run;
use crate::{Builder, packages};
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Enough for anything but an outage, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running cluster. Dropped it is killed, and its directory removed if that was not given to it; [`Self::stop`] is the
/// clean way.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) monitor: Daemon,
    pub(crate) manager: Option<Daemon>,
    pub(crate) osds: Vec<Daemon>,
    pub(crate) fsid: String,
    pub(crate) directory: PathBuf,
    pub(crate) conf: PathBuf,
    pub(crate) keyring: PathBuf,
    /// The monitor's port stays ours while it is down.
    pub(crate) _port: Option<std::os::fd::OwnedFd>,
    /// Removed with the cluster, after the daemons: fields are dropped in their order.
    pub(crate) temporary: Option<tempfile::TempDir>,
}

impl Cluster {
    /// A cluster of three OSDs with bluestore and cephx, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// What is missing for a cluster, if anything: for tests that cannot run without.
    pub fn program_is_missing() -> Option<packages::Missing> {
        packages::available().err()
    }

    /// Its ceph.conf.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// The keyring with client.admin (and all daemons).
    pub fn keyring(&self) -> &Path {
        &self.keyring
    }

    /// Where all of it is; the daemons' logs are in `log`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its UUID.
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// How many OSDs it has, running or not.
    pub fn osds(&self) -> u32 {
        self.osds.len() as u32
    }

    /// One of the OSDs.
    ///
    /// # Panics
    /// If there is none with this number.
    pub fn osd(&self, id: u32) -> &Daemon {
        &self.osds[id as usize]
    }

    /// The monitor.
    pub fn monitor(&self) -> &Daemon {
        &self.monitor
    }

    /// The manager, if it was asked for.
    pub fn manager(&self) -> Option<&Daemon> {
        self.manager.as_ref()
    }

    /// A client's command (`rbd`, `rados`, `ceph`, `fio`, …) for this cluster and not for the machine's. fio's engine `rados`
    /// looks at no environment and needs `--conf`; its engine `rbd` does.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("CEPH_CONF", &self.conf).env_remove("CEPH_ARGS").env_remove("CEPH_KEYRING");
        command
    }

    /// Runs such a command; its standard output. An error has what it said.
    pub fn ok<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Result<String> {
        self.ok_with(program, args, "")
    }

    /// The same with something to read.
    pub fn ok_with<A: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = A>,
        input: &str,
    ) -> Result<String> {
        let mut command = self.command(program);
        command.args(args);
        run::ok(command, input, PATIENCE)
    }

    /// Makes a client `client.NAME` with these capabilities (none for an empty text). The path of its keyring, for `--keyring`
    /// together with `-n client.NAME`.
    pub fn add_user(&self, name: &str, mon_caps: &str, osd_caps: &str) -> Result<PathBuf> {
        let entity = format!("client.{name}");
        let mut args = vec!["auth", "get-or-create", &entity];
        for (kind, caps) in [("mon", mon_caps), ("osd", osd_caps)] {
            if !caps.is_empty() {
                args.extend([kind, caps]);
            }
        }
        let keyring = self.ok("ceph", args)?;
        let path = self.directory.join(format!("keyring.{name}"));
        fs::write(&path, keyring).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Ends it cleanly and removes its directory, unless that was given to it.
    pub fn stop(mut self) -> Result<()> {
        self.end()?;
        match self.temporary.take() {
            Some(directory) => directory.close().context("remove the cluster's directory"),
            None => Ok(()),
        }
    }

    /// Ends all daemons. OSDs first: each tells the monitor, and would wait 5 s for one that is gone.
    pub(crate) fn end(&self) -> Result<()> {
        for group in
            [self.osds.iter().collect::<Vec<_>>(), self.manager.iter().collect(), vec![&self.monitor]]
        {
            group.iter().try_for_each(|daemon| daemon.terminate())?;
            group.iter().try_for_each(|daemon| daemon.ended())?;
        }
        Ok(())
    }

    /// All daemons.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        std::iter::once(&self.monitor).chain(&self.manager).chain(&self.osds)
    }
}
