//! `cargo xtask demo`: from nothing to a measured disk in a guest.

mod ceph;
mod fio;
pub mod picture;
pub mod report;

use crate::process::{self, say};
use crate::server::Server;
use crate::setup;
use anyhow::{Context, Result};
use clap::Args;
use fio::Measurement;
use qemu_configs::{Accel, Guest};
use report::Report;
use std::fs;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How the demo runs.
#[derive(Args)]
pub struct Demo {
    /// Seconds for each of the five measurements
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Serve an image of a Ceph cluster, which is started for it and ended afterwards, instead of a file
    #[arg(long)]
    ceph: bool,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        setup::packages()?;
        let assets = setup::images()?;
        let quarry = process::build_quarry()?;
        let directory = process::workspace().join("target/demo");
        fs::create_dir_all(&directory)?;
        // Of an earlier run: what is there afterwards is of this one.
        for name in ["result.json", "latency.svg", "latency.png"] {
            let _ = fs::remove_file(directory.join(name));
        }

        let (ceph, server) = if self.ceph {
            let ceph = ceph::Ceph::start(&directory)?;
            let server = ceph.serve(&quarry, &directory)?;
            (Some(ceph), server)
        } else {
            (None, Server::image(&quarry, &directory)?)
        };
        say("boot a guest with that disk");
        let guest = Guest::builder().accel(Accel::BestEffortKvm).disk(server.socket()).start_with(&assets)?;
        let by = if guest.is_kvm() { "KVM" } else { "an emulated CPU (KVM does not work here)" };
        eprintln!("    up after {:.1} s, on {by}", guest.boot_time().as_secs_f64());

        let report = measure(&guest, self.seconds)?;
        guest.poweroff().context("switch the guest off")?;
        drop(guest);
        let proof = ceph.as_ref().map(ceph::Ceph::proof).transpose()?;
        server.stop()?;
        ceph.map(ceph::Ceph::stop).transpose()?;

        println!("\n{report}");
        fs::write(directory.join("result.json"), serde_json::to_vec_pretty(&report)?)?;
        let svg = picture::draw(&report);
        fs::write(directory.join("latency.svg"), &svg)?;
        picture::render(&svg, &assets.font, &directory.join("latency.png"))?;
        if let Some(proof) = proof {
            println!("What Ceph says about the image, before all of it was stopped:\n{proof}");
        }
        println!("The guest verified its data: what it read is what it wrote.");
        println!("Written: target/demo/result.json, latency.svg, latency.png");
        Ok(())
    }
}

/// Runs all of fio's phases in the guest. An error when any of them fails, the verification above all.
fn measure(guest: &Guest, seconds: u32) -> Result<Report> {
    guest.ok("timeout 60 sh -c 'until [ -b /dev/nvme0n1 ]; do sleep 0.1; done'")?;
    let read = |path: &str| guest.ok(&format!("cat {path}")).map(|text| text.trim().to_owned());
    let (model, kernel) = (read("/sys/class/nvme/nvme0/model")?, read("/proc/sys/kernel/osrelease")?);
    let sectors: u64 = read("/sys/class/block/nvme0n1/size")?.parse()?;
    let bytes = sectors * 512;
    eprintln!("    the guest's own driver finds /dev/nvme0n1: {model}, {} MiB", bytes >> 20);
    let mut measurements: Vec<Measurement> = Vec::new();
    let mut verified_bytes = 0;
    for phase in fio::PHASES {
        let arguments = phase.command(seconds);
        let text = with_progress(phase.title, || guest.ok_within(&arguments, Duration::from_secs(600)))?;
        let outcome = phase.read(&text).with_context(|| format!("fio's report on {}", phase.title))?;
        eprintln!("    {:<28} {}", phase.title, outcome.summary());
        match outcome {
            fio::Outcome::Measured(some) => measurements.extend(some),
            fio::Outcome::Verified { bytes } => verified_bytes += bytes,
        }
    }
    Ok(Report::new(model, bytes, kernel, guest.is_kvm(), verified_bytes, measurements))
}

/// Runs something that takes seconds, and shows on a terminal that it does.
fn with_progress<T: Send>(title: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    std::thread::scope(|scope| {
        let start = Instant::now();
        let worker = scope.spawn(work);
        while !worker.is_finished() {
            eprint!("\r    {title:<28} {:.0} s …", start.elapsed().as_secs_f64());
            let _ = std::io::stderr().flush();
            std::thread::sleep(Duration::from_millis(100));
        }
        eprint!("\r\u{1b}[K");
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
