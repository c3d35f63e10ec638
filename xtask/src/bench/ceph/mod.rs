//! The area `ceph`: an RBD image and a volume on a cluster of this machine, each beside fio's engine for the same library.
//!
//! Cluster, server and client share the CPUs of one machine, so IOPS say what the machine's CPUs can do, and only ratios
//! of one run mean something. fio and Quarry take turns on the same cluster, figure by figure; who waits takes no CPU
//! time (fio has ended, the server is halted, for less time than the cluster or an exclusive lock would notice). Each has
//! its own image, volume or set of objects, all of one size and filled before. No process is pinned to a CPU, librbd's cache
//! is off for both, and Quarry's client sleeps until an interrupt, as a guest does, since the cluster needs all CPUs. What
//! that client costs is told, but is not the server's: fio has nothing in its place.
//!
//! Quarry runs as it does by default: mapped doorbells, adaptive reactors.
//!
//! CPU time is that of all threads of fio's process from its first I/O to its last, and of all the server's.

mod fio;

use super::client::{self, Outcome, Placement, Point};
use super::report::{Report, Row};
use super::{Setting, median};
use crate::process::{run, say, succeeds};
use crate::server::Server;
use crate::setup;
use anyhow::{Context, Result};
use ceph_cluster::Cluster;
use fio::{Fio, Ran};
use std::path::Path;
use std::process::Command;

/// Of each image, of the volume, and of fio's objects.
const MIB: u32 = 256;
/// Images and a volume, in the pool `rbd`.
const FIOS: &str = "fio";
const OURS: &str = "quarry";

/// What is measured: fio's word, bytes of a command, commands in flight.
const POINTS: [Point; 8] = [
    point("randread", "4K", 1),
    point("randread", "4K", 16),
    point("randread", "4K", 64),
    point("randwrite", "4K", 1),
    point("randwrite", "4K", 16),
    point("randwrite", "4K", 64),
    point("read", "128K", 8),
    point("write", "128K", 8),
];
/// Where the volume has to be faster than librbd, and how much.
const BEYOND_LIBRBD: (Point, f64) = (POINTS[1], 1.2);
/// The part of fio's IOPS that has to be reached.
const OF_FIO: f64 = 0.97;
/// Seconds below which a run says nothing.
const SHORTEST: f64 = 0.5;

const fn point(rw: &'static str, size: &'static str, depth: u32) -> Point {
    Point { rw, size, depth, idle_queues: 0 }
}

pub fn run_area(setting: &Setting, report: &mut Report) -> Result<()> {
    setup::ceph()?;
    if let Some(missing) = Cluster::program_is_missing() {
        println!("{missing}: the area `ceph` is left out.");
        return Ok(());
    }
    if !succeeds(Command::new("fio").arg("--version")) {
        println!("There is no fio to compare with: the area `ceph` is left out.");
        return Ok(());
    }
    say("start a monitor and three OSDs, and fill images");
    let cluster = Cluster::builder().option("rbd_cache", "false").start()?;
    println!(
        "Ceph {} on this machine: a monitor and {} OSDs (bluestore, data in files, three copies); {MIB} MiB of each disk",
        version(&cluster)?,
        cluster.osds()
    );
    let measured = measure(setting, &cluster, report);
    cluster.stop().and(measured)
}

fn version(cluster: &Cluster) -> Result<String> {
    let text = cluster.ok("ceph", ["--version"])?;
    Ok(text.split_whitespace().nth(2).context("ceph --version")?.to_owned())
}

fn measure(setting: &Setting, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let fio = Fio::new(cluster, &setting.directory);
    cluster.ok("rbd", ["create", &format!("rbd/{FIOS}"), "--size", &format!("{MIB}M")])?;
    fio.fill_image()?;
    cluster.ok("rbd", ["create", &format!("rbd/{OURS}"), "--size", &format!("{MIB}M")])?;
    let on_image = |point: &Point| fio.rbd(point, seconds(setting));
    report.add(turns(setting, cluster, &Kind { name: "rbd", key: "image", fio: &on_image, beyond: None })?);
    create_volume(&setting.quarry, cluster)?;
    fio.fill_objects()?;
    let on_objects = |point: &Point| fio.rados(point, seconds(setting));
    let kind = Kind { name: "rados", key: "volume", fio: &on_objects, beyond: Some(&on_image) };
    report.add(turns(setting, cluster, &kind)?);
    Ok(())
}

fn create_volume(quarry: &Path, cluster: &Cluster) -> Result<()> {
    let mut command = cluster.command(quarry);
    command.args(["volume", "create", &format!("rbd/{OURS}"), "--size", &format!("{MIB}M")]);
    run(command.arg("--conf").arg(cluster.conf()).arg("--keyring").arg(cluster.keyring()))
}

/// A run of fio.
type Beside<'a> = dyn Fn(&Point) -> Result<Ran> + 'a;

/// A type of device, and what is beside it.
struct Kind<'a> {
    /// The device's type, and the name of fio's engine.
    name: &'static str,
    /// Names the image or volume in the configuration.
    key: &'static str,
    fio: &'a Beside<'a>,
    /// fio on librbd, where it has to be faster than that.
    beyond: Option<&'a Beside<'a>>,
}

/// Serves a device of the cluster.
fn serve(setting: &Setting, cluster: &Cluster, kind: &Kind<'_>) -> Result<Server> {
    let quoted = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    let device = format!(
        "type = \"{}\"\npool = \"rbd\"\n{} = \"{OURS}\"\n[clusters.ceph]\nconf = {}\nkeyring = {}\n",
        kind.name,
        kind.key,
        quoted(cluster.conf()),
        quoted(cluster.keyring()),
    );
    let server = client::serve_on(setting, Placement::Anywhere, kind.name, None, &device)?;
    client::fill(setting, &server)?;
    Ok(server)
}

/// The values of one point, run by run.
#[derive(Default)]
struct Runs {
    ours: Vec<Outcome>,
    fios: Vec<Ran>,
    librbd: Vec<f64>,
}

/// fio and Quarry in turns, figure by figure.
fn turns(setting: &Setting, cluster: &Cluster, kind: &Kind<'_>) -> Result<Vec<Row>> {
    let server = serve(setting, cluster, kind)?;
    let mut runs: Vec<Runs> = POINTS.iter().map(|_| Runs::default()).collect();
    for _ in 0..setting.pace.runs {
        for (point, runs) in POINTS.iter().zip(&mut runs) {
            runs.fios.push(server.while_halted(|| (kind.fio)(point))?);
            if let Some(beyond) = kind.beyond
                && *point == BEYOND_LIBRBD.0
            {
                runs.librbd.push(server.while_halted(|| beyond(point))?.iops);
            }
            runs.ours.push(client::run_with_interrupts(setting, &server, *point, seconds(setting))?);
        }
    }
    server.stop()?;
    Ok(POINTS.iter().zip(&runs).map(|(point, runs)| row(kind.name, point, runs)).collect())
}

fn seconds(setting: &Setting) -> f64 {
    setting.pace.seconds.max(SHORTEST)
}

fn row(area: &'static str, point: &Point, Runs { ours, fios, librbd }: &Runs) -> Row {
    let Point { rw, size, depth, .. } = point;
    let is_bandwidth = *size != "4K";
    let bytes =
        median(&ours.iter().map(|outcome| outcome.bytes_per_second / outcome.iops).collect::<Vec<_>>());
    let scale = if is_bandwidth { bytes } else { 1.0 };
    let values = ours.iter().map(|outcome| outcome.iops * scale).collect();
    let mut row = Row::new(format!("{area} {size} {rw}, {depth}"), is_bandwidth, values);
    row.latencies(ours);
    // The daemons always take CPUs from client and server.
    row.disturbed = 0.0;
    row.client_ns = Some(median(&ours.iter().map(|outcome| outcome.client_ns).collect::<Vec<_>>()));
    let limit = if area == "rbd" { "fio, rbd" } else { "fio, rados" };
    row.limit(limit, fios.iter().map(|ran| ran.iops * scale).collect(), OF_FIO);
    // Of runs in the same turn.
    let costs: Vec<f64> =
        ours.iter().zip(fios).filter_map(|(ours, fio)| Some(ours.server_ns? / fio.cpu_ns)).collect();
    row.at_most("CPU time for each command, beside fio's", median(&costs), 1.0);
    if !librbd.is_empty() {
        let ratios: Vec<f64> = ours.iter().zip(librbd).map(|(ours, theirs)| ours.iops / theirs).collect();
        row.at_least("ratio to librbd (fio, rbd)", median(&ratios), BEYOND_LIBRBD.1);
    }
    row
}
