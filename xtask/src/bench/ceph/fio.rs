//! fio's own engines for librbd and librados.
//!
//! The engine `rados` removes its objects when it ends, unless it is told not to touch them at its start.

use super::{FIOS, MIB, Point};
use crate::process::line;
use anyhow::{Context, Result, ensure};
use ceph_cluster::Cluster;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// As in an image and in a volume, unless told otherwise.
const OBJECT_MIB: u32 = 4;
/// The job, after which fio names its objects and what its hooks print.
const JOB: &str = "bench";

pub struct Fio<'a> {
    cluster: &'a Cluster,
    /// Where hooks leave what they print.
    directory: PathBuf,
}

/// What a run came to.
pub struct Ran {
    pub iops: f64,
    /// Of all threads of the process, for each command.
    pub cpu_ns: f64,
}

impl<'a> Fio<'a> {
    pub fn new(cluster: &'a Cluster, directory: &Path) -> Self {
        Self { cluster, directory: directory.to_owned() }
    }

    fn command(&self, engine: &str, rw: &str) -> Command {
        let mut command = self.cluster.command("fio");
        command.current_dir(&self.directory);
        command.args(["--output-format=json", "--thread", "--direct=1"]);
        command.args([format!("--name={JOB}"), format!("--ioengine={engine}"), format!("--rw={rw}")]);
        // The engine's own options come after it.
        command.args(["--pool=rbd", &format!("--size={MIB}M")]);
        command
    }

    fn on_image(&self, rw: &str) -> Command {
        let mut command = self.command("rbd", rw);
        command.args(["--clientname=admin", &format!("--rbdname={FIOS}")]);
        command
    }

    fn on_objects(&self, rw: &str) -> Command {
        let mut command = self.command("rados", rw);
        command.args(["--clientname=admin", &format!("--conf={}", self.cluster.conf().display())]);
        command.args([format!("--nrfiles={}", MIB / OBJECT_MIB), "--touch_objects=0".to_owned()]);
        // One after the other, or any: as on a disk that is made of them.
        command.arg(format!(
            "--file_service_type={}",
            if rw.starts_with("rand") { "random" } else { "sequential" }
        ));
        command
    }

    /// Writes all of the image.
    pub fn fill_image(&self) -> Result<()> {
        let mut command = self.on_image("write");
        command.args(["--bs=4M", "--iodepth=4"]);
        succeeded(&mut command).map(drop)
    }

    /// Writes all of the objects.
    pub fn fill_objects(&self) -> Result<()> {
        let mut command = self.on_objects("write");
        command.args(["--bs=4M", "--iodepth=4"]);
        succeeded(&mut command)?;
        self.objects_are_whole()
    }

    fn objects_are_whole(&self) -> Result<()> {
        let last = format!("{JOB}.0.{}", MIB / OBJECT_MIB - 1);
        let found = self.cluster.ok("rados", ["-p", "rbd", "stat", &last])?;
        let size = format!("size {}", OBJECT_MIB << 20);
        ensure!(found.trim_end().ends_with(&size), "fio's objects are not whole: {found}");
        Ok(())
    }

    /// A run of the engine `rbd`.
    pub fn rbd(&self, point: &Point, seconds: f64) -> Result<Ran> {
        self.measure(self.on_image(point.rw), point, seconds)
    }

    /// A run of the engine `rados`.
    pub fn rados(&self, point: &Point, seconds: f64) -> Result<Ran> {
        let ran = self.measure(self.on_objects(point.rw), point, seconds)?;
        self.objects_are_whole()?;
        Ok(ran)
    }

    fn measure(&self, mut command: Command, point: &Point, seconds: f64) -> Result<Ran> {
        command.args([format!("--bs={}", point.size), format!("--iodepth={}", point.depth)]);
        command.args(["--norandommap", "--randrepeat=0", "--time_based"]);
        command.arg(format!("--runtime={}ms", (seconds * 1000.0) as u64));
        // By children of fio's process, when the cluster is connected and before it is let go.
        for hook in ["prerun", "postrun"] {
            command.arg(format!("--exec_{hook}=cat /proc/$PPID/task/*/schedstat"));
        }
        let output = succeeded(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Warnings come before the report.
        let report: Value = serde_json::from_str(&text[text.find('{').context("fio printed no report")?..])?;
        let job = &report["jobs"][0];
        ensure!(job["error"] == 0, "{}: error {}", line(&command), job["error"]);
        let number = |direction: &str, what: &str| {
            job[direction][what].as_f64().with_context(|| format!("fio's report has no {what}"))
        };
        let (read, written) = (number("read", "total_ios")?, number("write", "total_ios")?);
        let direction = if read > 0.0 { "read" } else { "write" };
        ensure!(
            number(direction, "io_bytes")? >= (read + written) * 4096.0,
            "{}: less was read than asked for: {}",
            line(&command),
            job[direction]
        );
        let busy = self.ran("postrun")? - self.ran("prerun")?;
        Ok(Ran { iops: number(direction, "iops")?, cpu_ns: busy / (read + written) })
    }

    /// Nanoseconds that fio's threads had run when the hook ran.
    fn ran(&self, hook: &str) -> Result<f64> {
        let path = self.directory.join(format!("{JOB}.{hook}.txt"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::remove_file(&path)?;
        let first = |line: &str| line.split(' ').next()?.parse::<f64>().ok();
        text.lines().map(|line| first(line).with_context(|| format!("fio's {hook}: {line}"))).sum()
    }
}

fn succeeded(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| line(command))?;
    ensure!(output.status.success(), "{}: {}", line(command), said(&output));
    Ok(output)
}

fn said(output: &Output) -> String {
    let texts = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    format!("{}\n{}", output.status, texts.join("\n"))
}
