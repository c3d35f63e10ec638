//! The area `file`: a file of 1 GiB, read around the page cache, beside fio's io_uring engine on the same file and CPU.

use super::client::{self, Point};
use super::report::{Report, Row};
use super::{Setting, median};
use crate::process::{line, succeeds};
use crate::server::Server;
use crate::setup;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

const SIZE: usize = 1 << 30;
const POINT: Point = Point { rw: "randread", size: "4K", depth: 32, idle_queues: 0 };

pub fn run(setting: &Setting, report: &mut Report) -> Result<()> {
    setup::debian(&["fio"])?;
    if !succeeds(Command::new("fio").arg("--version")) {
        println!("There is no fio to compare with: the area `file` is left out.");
        return Ok(());
    }
    let image = setting.directory.join("file.img");
    write(&image)?;
    let device = format!("type = \"file\"\npath = {:?}\ndirect = \"on\"\n", image.display().to_string());
    // What a command costs the CPU can only be compared where the server sleeps when it has nothing to do.
    let mut rows = vec![measure(setting, None, &device, &image)?];
    if setting.poll.is_some() {
        rows.push(measure(setting, setting.poll, &device, &image)?);
    }
    report.add(rows);
    Ok(())
}

fn measure(setting: &Setting, mode: Option<&str>, device: &str, image: &Path) -> Result<Row> {
    let server: Server = client::serve(setting, "file", mode, device)?;
    let (mut outcomes, mut limits, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.pace.runs {
        let (iops, ns) = server.while_halted(|| fio(setting, image))?;
        limits.push(iops);
        costs.push(ns);
        outcomes.push(client::run(setting, &server, POINT, setting.pace.seconds)?);
    }
    server.stop()?;
    let name = format!("file 4K randread, depth 32, {}", if mode.is_some() { "poll" } else { "adaptive" });
    let mut row = Row::new(name, false, outcomes.iter().map(|outcome| outcome.iops).collect());
    row.latencies(&outcomes);
    row.limit("fio, io_uring", limits, 1.0);
    if let Some(server_ns) = row.server_ns.filter(|_| mode.is_none()) {
        row.at_most("ns of server time (fio's beside it)", server_ns, median(&costs));
    }
    Ok(row)
}

/// Writes the whole file, so that no read finds a hole.
fn write(path: &Path) -> Result<()> {
    let is_there = path.metadata().is_ok_and(|metadata| metadata.len() == SIZE as u64);
    if is_there {
        return Ok(());
    }
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    // Bytes that no file system or disk stores as zeroes.
    let block: Vec<u8> = (0..1 << 20).map(|at: usize| ((at * 31) >> 3) as u8 | 1).collect();
    for _ in 0..SIZE / block.len() {
        file.write_all(&block).with_context(|| path.display().to_string())?;
    }
    file.sync_all().with_context(|| path.display().to_string())
}

/// fio on the server's CPU: commands in a second, and nanoseconds of CPU time for each.
fn fio(setting: &Setting, image: &Path) -> Result<(f64, f64)> {
    let mut command = Command::new("fio");
    command.args([
        "--name=limit",
        "--ioengine=io_uring",
        "--direct=1",
        "--rw=randread",
        "--bs=4k",
        "--iodepth=32",
    ]);
    command.args(["--norandommap", "--randrepeat=0", "--time_based", "--output-format=json", "--size=1G"]);
    command.arg(format!("--filename={}", image.display()));
    command.arg(format!("--runtime={}ms", (setting.pace.seconds * 1000.0) as u64));
    command.arg(format!("--cpus_allowed={}", setting.machine.server_cpu));
    let output = command.output().with_context(|| line(&command))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}\n{error}", line(&command), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text[text.find('{').context("fio printed no report")?..])?;
    let job = &report["jobs"][0];
    let number = |value: &Value, what| value.as_f64().with_context(|| format!("fio's report has no {what}"));
    let (iops, ios) =
        (number(&job["read"]["iops"], "iops")?, number(&job["read"]["total_ios"], "total_ios")?);
    let busy = number(&job["usr_cpu"], "usr_cpu")? + number(&job["sys_cpu"], "sys_cpu")?;
    let runtime = number(&job["job_runtime"], "job_runtime")?;
    Ok((iops, busy / 100.0 * runtime * 1e6 / ios.max(1.0)))
}
