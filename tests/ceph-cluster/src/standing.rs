//! Clusters that outlive the program that started them, in a directory by which they are found again.
//!
//! `run/NAME.process` says which process a daemon is: id, start time, boot. Nothing else is signalled.

use crate::cluster::Cluster;
use crate::conf::{Builder, Store};
use crate::daemon::Daemon;
use crate::run::Life;
use crate::start;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What there is in a directory.
#[derive(Debug)]
pub enum Standing {
    /// No cluster.
    Absent,
    /// One that runs, with all its daemons.
    Running(Box<Cluster>),
    /// One of which nothing runs: its daemons were killed, or the machine was started anew.
    Dead,
    /// One of which a part runs; these daemons do not. None are named if its start never ended.
    Broken(Vec<String>),
}

/// What a later process has to know of a cluster, in `cluster.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct About {
    pub fsid: String,
    pub osds: u32,
    pub manager: bool,
    pub store: Store,
    /// Whether its start succeeded.
    pub complete: bool,
}

impl About {
    const FILE: &str = "cluster.json";

    fn read(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(Self::FILE);
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| path.display().to_string())?)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        let (path, new) = (directory.join(Self::FILE), directory.join("cluster.json.new"));
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        Ok(fs::rename(new, path)?)
    }
}

impl Cluster {
    /// Starts a cluster in `directory` that stays until [`Self::down`]. An error if one runs there; what is left of a dead one
    /// is removed first.
    pub fn up(directory: &Path, builder: Builder) -> Result<Cluster> {
        builder.check()?;
        let _lock = lock(directory)?;
        match Self::look(directory)? {
            Standing::Absent => {}
            Standing::Running(_) => bail!("a cluster runs in {} already", directory.display()),
            Standing::Dead => remove(directory)?,
            Standing::Broken(_) => {
                bail!("a cluster in {} runs in part: take it down first", directory.display())
            }
        }
        start::start(builder.directory(directory), Life::Lasting)
    }

    /// The cluster that runs in `directory`. Dropped it goes on.
    pub fn attach(directory: &Path) -> Result<Cluster> {
        let place = directory.display();
        match Self::look(directory)? {
            Standing::Running(cluster) => Ok(*cluster),
            Standing::Absent => bail!("there is no cluster in {place}"),
            Standing::Dead => bail!("the cluster in {place} does not run any more: start it anew"),
            Standing::Broken(missing) if missing.is_empty() => {
                bail!("the cluster in {place} was never ready")
            }
            Standing::Broken(missing) => {
                bail!("of the cluster in {place} these do not run: {}", missing.join(", "))
            }
        }
    }

    /// What there is in `directory`.
    pub fn look(directory: &Path) -> Result<Standing> {
        let Some(about) = About::read(directory)? else { return Ok(Standing::Absent) };
        let cluster = Self::of(&about, directory)?;
        let stopped: Vec<&Daemon> = cluster.daemons().filter(|daemon| !daemon.is_running()).collect();
        if stopped.len() == cluster.daemons().count() {
            return Ok(Standing::Dead);
        }
        if !stopped.is_empty() || !about.complete {
            return Ok(Standing::Broken(stopped.iter().map(|daemon| daemon.name().to_owned()).collect()));
        }
        Ok(Standing::Running(Box::new(cluster)))
    }

    /// Ends what runs in `directory` and removes it. False when there was nothing.
    pub fn down(directory: &Path) -> Result<bool> {
        if About::read(directory)?.is_none() {
            return Ok(false);
        }
        let _lock = lock(directory)?;
        let Some(about) = About::read(directory)? else { return Ok(false) };
        Self::of(&about, directory)?.end()?;
        remove(directory)?;
        Ok(true)
    }

    fn of(about: &About, directory: &Path) -> Result<Self> {
        let directory = fs::canonicalize(directory)?;
        let daemon = |name: String| Daemon::attach(name, &directory);
        Ok(Self {
            monitor: daemon("mon.a".into()),
            manager: about.manager.then(|| daemon("mgr.x".into())),
            osds: (0..about.osds).map(|id| daemon(format!("osd.{id}"))).collect(),
            fsid: about.fsid.clone(),
            conf: directory.join("ceph.conf"),
            keyring: directory.join("keyring"),
            _port: None,
            temporary: None,
            directory,
        })
    }
}

/// Lets one process at a time start or end a cluster here. The file is beside the directory, which comes and goes.
fn lock(directory: &Path) -> Result<File> {
    let name =
        directory.file_name().with_context(|| format!("{}: not a directory's name", directory.display()))?;
    let mut file = name.to_owned();
    file.push(".lock");
    let path: PathBuf = directory.with_file_name(file);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    let file =
        File::options().create(true).append(true).open(&path).with_context(|| path.display().to_string())?;
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    ensure!(locked.is_ok(), "somebody else starts or ends a cluster in {} right now", directory.display());
    Ok(file)
}

/// Removes a cluster's directory. What makes it one goes last, so that a removal that was interrupted can be repeated.
fn remove(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == About::FILE {
            continue;
        }
        let path = entry.path();
        let removed =
            if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| path.display().to_string())?;
    }
    fs::remove_file(directory.join(About::FILE))?;
    Ok(fs::remove_dir(directory)?)
}
