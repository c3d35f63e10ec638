//! The start of a cluster. What does not depend on each other runs side by side: making the OSDs' stores takes longest and
//! needs no monitor.

use crate::cluster::Cluster;
use crate::conf::{self, Builder};
use crate::daemon::Daemon;
use crate::run::{self, Life};
use crate::standing::About;
use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// Enough for making a store, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(180);

pub fn start(builder: Builder, life: Life) -> Result<Cluster> {
    builder.check()?;
    let (directory, temporary) = directory(&builder)?;
    let fsid = conf::uuid()?;
    let (port, held) = port(builder.address)?;
    for name in ["run", "log"] {
        fs::create_dir(directory.join(name))?;
    }
    // Debian 13's Ceph looks for its object classes (`osd_class_dir`) in lib/…, as seen from where it runs.
    symlink("/lib", directory.join("lib"))?;
    fs::write(directory.join("ceph.conf"), builder.conf(&directory, &fsid, port)?)?;
    conf::write_keyring(&directory.join("keyring"), &builder)?;
    let daemon = |name: String| Daemon::new(name, &directory, life);
    let cluster = Cluster {
        monitor: daemon("mon.a".into()),
        manager: builder.manager.then(|| daemon("mgr.x".into())),
        osds: (0..builder.osds).map(|id| daemon(format!("osd.{id}"))).collect(),
        fsid,
        conf: directory.join("ceph.conf"),
        keyring: directory.join("keyring"),
        directory,
        _port: Some(held),
        temporary,
    };
    let mut about = About {
        fsid: cluster.fsid.clone(),
        osds: builder.osds,
        manager: builder.manager,
        store: builder.store,
        complete: false,
    };
    about.write(&cluster.directory)?;
    if let Err(e) = cluster.bring_up(&builder, port) {
        // Those that outlive us must not do so half-made.
        cluster.end().unwrap_or_else(|also| eprintln!("ceph-cluster: {also:#}"));
        return Err(e);
    }
    about.complete = true;
    about.write(&cluster.directory)?;
    Ok(cluster)
}

impl Cluster {
    fn bring_up(&self, builder: &Builder, port: u16) -> Result<()> {
        let uuids: Vec<String> = self.osds.iter().map(|_| conf::uuid()).collect::<Result<_>>()?;
        thread::scope(|scope| {
            let stores: Vec<_> =
                self.osds.iter().zip(&uuids).map(|(osd, uuid)| scope.spawn(|| make(osd, uuid))).collect();
            self.start_monitor(builder, port)?;
            if let Some(manager) = &self.manager {
                manager.make_directory()?;
                manager.start()?;
            }
            self.tell(&declare_osds(&uuids))?;
            let pools = scope.spawn(|| self.tell(&make_pools(builder)));
            for (store, osd) in stores.into_iter().zip(&self.osds) {
                joined(store.join())?;
                osd.start()?;
            }
            joined(pools.join())
        })?;
        self.osds.iter().try_for_each(Daemon::wait_up)?;
        self.manager.iter().try_for_each(Daemon::wait_up)?;
        self.first_writes(builder)
    }

    fn start_monitor(&self, builder: &Builder, port: u16) -> Result<()> {
        let address = format!("[{}]", builder.monitor(port));
        let mut map = self.monitor.command("monmaptool");
        map.args(["--create", "--fsid", &self.fsid, "--addv", "a", &address, "monmap"]);
        run::ok(map, "", PATIENCE)?;
        self.monitor.make_directory()?;
        let mut store = self.monitor.command("ceph-mon");
        store.args(["--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring"]);
        run::ok(store, "", PATIENCE)?;
        self.monitor.start()?;
        self.monitor.wait_up()
    }

    /// Commands for the program `ceph`, one a line: one start of it is dear. It goes on after an error and ends well.
    fn tell(&self, commands: &str) -> Result<()> {
        let output = run::output(self.command("ceph"), commands, PATIENCE)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() || said.contains("Error E") || said.contains("Invalid command") {
            bail!("ceph, told\n{commands}\nsaid\n{said}");
        }
        Ok(())
    }

    /// A pool takes a write when enough of its OSDs are up and have agreed on what they have.
    fn first_writes(&self, builder: &Builder) -> Result<()> {
        thread::scope(|scope| {
            let ec = builder.has_ec().then(|| {
                scope.spawn(|| {
                    self.ok_with("rados", ["-p", "ec", "put", "first", "-"], "written\n")?;
                    self.ok("rados", ["-p", "ec", "rm", "first"])
                })
            });
            // Writes the object rbd_info, among others.
            self.ok("rbd", ["pool", "init", "rbd"])?;
            ec.map_or(Ok(()), |ec| joined(ec.join()).map(drop))
        })
    }
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|_| bail!("a thread of the start panicked"))
}

/// Makes an OSD's store. Neither monitor nor network is needed: the key is in the keyring already.
fn make(osd: &Daemon, uuid: &str) -> Result<()> {
    let id = osd.name().trim_start_matches("osd.");
    osd.make_directory()?;
    let mut command = osd.command("ceph-osd");
    command.args(["-i", id, "--mkfs", "--osd-uuid", uuid, "--no-mon-config"]);
    run::ok(command, "", PATIENCE).map(drop)
}

fn declare_osds(uuids: &[String]) -> String {
    let mut commands = String::new();
    for (id, uuid) in uuids.iter().enumerate() {
        let _ = writeln!(commands, "osd new {uuid} {id}\nosd crush add osd.{id} 1.0 root=default");
    }
    commands
}

fn make_pools(builder: &Builder) -> String {
    let mut commands =
        String::from("osd pool create rbd 8 8 replicated\nosd pool application enable rbd rbd\n");
    if builder.has_ec() {
        // By default an erasure coded pool stops at k parts, where the next failure would lose data. This one goes on.
        commands += "osd erasure-code-profile set k2m1 k=2 m=1 crush-failure-domain=osd\n\
                     osd pool create ec 8 8 erasure k2m1\n\
                     osd pool set ec allow_ec_overwrites true\n\
                     osd pool set ec min_size 2\n\
                     osd pool application enable ec rbd\n";
    }
    commands
}

/// The directory, absolute and without a cluster in it.
fn directory(builder: &Builder) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
    let Some(directory) = &builder.directory else {
        let temporary = tempfile::Builder::new().prefix("ceph-").tempdir()?;
        return Ok((temporary.path().to_owned(), Some(temporary)));
    };
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let directory = fs::canonicalize(directory)?;
    ensure!(
        fs::read_dir(&directory)?.next().is_none(),
        "{} is not empty: give a cluster a directory of its own",
        directory.display()
    );
    Ok((directory, None))
}

/// A port for the monitor, held: the kernel gives a port that is bound to nobody who asks for any, but lets it be bound
/// again where both say SO_REUSEADDR, as Ceph's messenger does, and none listens.
fn port(address: IpAddr) -> Result<(u16, OwnedFd)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(address, 0))
        .with_context(|| format!("{address}: not an address of this machine"))?;
    let bound = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((bound.port(), socket))
}
