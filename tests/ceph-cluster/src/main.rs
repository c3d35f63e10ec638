//! `ceph-cluster run`: a command beside a cluster of its own, where there is no cargo.

use anyhow::{Context, Result, ensure};
use ceph_cluster::{Auth, Builder, Cluster, Store};
use clap::{Args, Parser, Subcommand};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Throwaway Ceph clusters of ordinary processes.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Starts a cluster, runs a command with CEPH_CONF set, ends the cluster, and ends as the command did
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Where the cluster keeps everything: an empty directory, or one to be made
    #[arg(long)]
    dir: PathBuf,
    /// The address that its daemons listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Keep data in the OSDs' memory
    #[arg(long)]
    memory: bool,
    /// How many OSDs
    #[arg(long, default_value_t = 3)]
    osds: u32,
    /// Ask for no keys
    #[arg(long)]
    no_auth: bool,
    /// A line of ceph.conf's [global]
    #[arg(long = "option", value_name = "KEY=VALUE", value_parser = key_and_value)]
    options: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn key_and_value(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("not KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Run {
    fn builder(&self) -> Builder {
        let store = if self.memory { Store::Memory } else { Store::Blue };
        let auth = if self.no_auth { Auth::None } else { Auth::Cephx };
        let builder = Cluster::builder().directory(&self.dir).address(self.address).store(store).auth(auth);
        let options = self.options.iter().cloned();
        options.fold(builder.osds(self.osds), |builder, (key, value)| builder.option(key, value))
    }

    fn run(&self) -> Result<ExitCode> {
        let cluster = self.builder().start()?;
        let (program, args) = self.command.split_first().context("no command")?;
        let mut command = cluster.command(program);
        command.args(args);
        // It must not go on without its cluster.
        let status =
            qemu_configs::spawn(command).and_then(|mut child| child.wait()).with_context(|| program.clone());
        cluster.stop()?;
        let status = status?;
        // As a shell tells of a signal.
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        ensure!(code.is_some(), "{program}: {status}");
        Ok(ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
    }
}

fn main() -> Result<ExitCode> {
    let Task::Run(run) = Arguments::parse().task;
    run.run()
}
