//! `cargo xtask ceph`: a Ceph cluster to try things on, which stays until it is taken down.

use crate::process::{line, say, workspace};
use crate::setup;
use anyhow::{Context, Result, bail};
use ceph_cluster::{Auth, Cluster, Standing, Store};
use clap::{Args, Subcommand};
use std::fs;
use std::path::{Path, PathBuf};

/// The image that `up` makes in the pool `rbd`.
const IMAGE: &str = "demo";

#[derive(Subcommand)]
pub enum Ceph {
    /// Starts a cluster of ordinary processes in target/ceph/cluster, with a disk image in it
    ///
    /// A monitor and OSDs on 127.0.0.1; no systemd, no containers. Installs Ceph's Debian packages where they are missing (as
    /// root). Also writes target/ceph/quarry.toml, a configuration that serves the image.
    Up(Up),
    /// Ends the cluster and removes its data
    Down,
    /// Says what runs
    Status,
    /// Runs a command for the cluster: `cargo xtask ceph shell -- rbd ls`; your shell, if none is given
    Shell(Shell),
}

#[derive(Args)]
pub struct Up {
    /// Keep data in the OSDs' memory instead of files in target/ceph
    #[arg(long)]
    memory: bool,
    /// How many OSDs; with three or more there is an erasure coded pool
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    osds: u32,
    /// Ask clients for no keys
    #[arg(long)]
    no_auth: bool,
}

#[derive(Args)]
pub struct Shell {
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Ceph {
    pub fn run(self) -> Result<()> {
        match self {
            Self::Up(up) => up.run(),
            Self::Down => down(),
            Self::Status => status(),
            Self::Shell(shell) => shell.run(),
        }
    }
}

fn directory() -> PathBuf {
    workspace().join("target/ceph/cluster")
}

/// Beside the cluster, for as long as that is there.
fn configuration() -> PathBuf {
    workspace().join("target/ceph/quarry.toml")
}

impl Up {
    fn run(self) -> Result<()> {
        setup::ceph()?;
        let directory = directory();
        match Cluster::look(&directory)? {
            Standing::Running(cluster) => {
                println!("It runs already. {}", next(&cluster));
                return Ok(());
            }
            Standing::Dead => say("what is left of a cluster that does not run any more is removed"),
            Standing::Absent | Standing::Broken(_) => {}
        }
        say(&format!("start a monitor and {} OSDs in {}", self.osds, directory.display()));
        let store = if self.memory { Store::Memory } else { Store::Blue };
        let auth = if self.no_auth { Auth::None } else { Auth::Cephx };
        let builder = Cluster::builder().store(store).auth(auth).osds(self.osds);
        let cluster = Cluster::up(&directory, builder).context("see also `cargo xtask ceph down`")?;
        let image = cluster.ok("rbd", ["create", &format!("rbd/{IMAGE}"), "--size", "1G"]);
        if let Err(e) = image.and_then(|_| Ok(fs::write(configuration(), quarry_toml(&cluster))?)) {
            Cluster::down(&directory)?;
            return Err(e);
        }
        println!("{}", next(&cluster));
        Ok(())
    }
}

/// What one can do with it.
fn next(cluster: &Cluster) -> String {
    format!(
        "A Ceph cluster runs on this machine, with the image rbd/{IMAGE} in it.

Look inside:
    cargo xtask ceph shell -- rbd ls
    cargo xtask ceph shell -- ceph -s
or, for clients of your own:
    export CEPH_CONF='{conf}'
Serve the image to a virtual machine:
    cargo run --release -p quarry -- serve '{configuration}'
End it and remove its data:
    cargo xtask ceph down",
        conf = cluster.conf().display(),
        configuration = configuration().display(),
    )
}

/// A configuration that serves the image.
fn quarry_toml(cluster: &Cluster) -> String {
    let quoted = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    format!(
        r#"# Serves the image {IMAGE} of the cluster that `cargo xtask ceph up` started.
[clusters.demo]
conf = {conf}
keyring = {keyring}

[devices.disk]
type = "rbd"
pool = "rbd"
image = "{IMAGE}"

[controllers.vm]
socket = "/tmp/quarry-ceph.sock"
namespaces = [{{ device = "disk" }}]
"#,
        conf = quoted(cluster.conf()),
        keyring = quoted(cluster.keyring()),
    )
}

fn down() -> Result<()> {
    let directory = directory();
    if Cluster::down(&directory)? {
        println!("The cluster in {} is gone, and its data with it.", directory.display());
    } else {
        println!("There is no cluster in {}.", directory.display());
    }
    match fs::remove_file(configuration()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(configuration().display().to_string())
        }
        _ => Ok(()),
    }
}

fn status() -> Result<()> {
    let place = directory().display().to_string();
    match Cluster::look(&directory())? {
        Standing::Absent => println!("There is no cluster in {place}: cargo xtask ceph up"),
        Standing::Dead => {
            println!(
                "The cluster in {place} does not run any more (was the machine started anew?): cargo xtask ceph up"
            );
        }
        Standing::Broken(missing) if missing.is_empty() => {
            println!(
                "The cluster in {place} is being started, or its start was interrupted: cargo xtask ceph down"
            );
        }
        Standing::Broken(missing) => {
            println!(
                "Of the cluster in {place} these do not run: {}. cargo xtask ceph down",
                missing.join(", ")
            );
        }
        Standing::Running(cluster) => {
            for daemon in cluster.daemons() {
                println!("{:<8} process {}", daemon.name(), daemon.pid().unwrap_or_default());
            }
            println!("{}", cluster.ok("ceph", ["-s"])?.trim_end());
            println!(
                "(No manager runs, so nobody counts pools and data. `rbd ls` and `rados -p rbd ls` show what is there.)"
            );
        }
    }
    Ok(())
}

impl Shell {
    fn run(self) -> Result<()> {
        let cluster = Cluster::attach(&directory()).context("cargo xtask ceph up")?;
        let mut words = self.command.into_iter();
        let program = words.next().or_else(|| std::env::var("SHELL").ok()).unwrap_or_else(|| "sh".to_owned());
        let mut command = cluster.command(&program);
        command.args(words);
        let status = command.status().with_context(|| format!("start {program}"))?;
        match status.code() {
            // The command has said what there is to say.
            Some(code) => std::process::exit(code),
            None => bail!("{}: {status}", line(&command)),
        }
    }
}
