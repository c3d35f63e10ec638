//! `cargo xtask bench`: Quarry's figures beside SPDK's and beside what the machine allows.
//!
//! A server on one CPU, the client of `benches/` on another, no guest between. Each repetition measures the limits first
//! and the figures right after, since shared machines change their speed from one minute to the next; ratios are
//! medians of the repetitions' ratios. Only what is counted, and not what is timed, decides over the exit status.

mod ceph;
mod client;
pub mod counts;
mod disk;
mod file;
mod goals;
mod idle;
mod machine;
mod micro;
mod picture;
mod queues;
mod report;

use crate::process::{self, build_quarry, cargo, say, target, workspace};
use crate::setup;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use machine::Machine;
use qemu_configs::Assets;
use report::Report;
use std::fs;
use std::path::{Path, PathBuf};

/// Which benchmarks to run, and how thoroughly.
#[derive(Args)]
pub struct Bench {
    /// Medians of three short runs in place of five longer ones: less than two minutes in all
    #[arg(long)]
    quick: bool,
    /// Write the results there too
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// With the area `counts`: take the counted instructions as what is expected from now on
    #[arg(long)]
    record: bool,
    /// What to measure; all of it but `ceph` if nothing is named
    #[arg(value_enum)]
    areas: Vec<Area>,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Area {
    /// A device that does nothing: the way of a command alone
    Null,
    /// A memory disk of 1 GiB
    Memory,
    /// A file, beside fio's io_uring engine on the same file
    File,
    /// An RBD image and a volume on a Ceph cluster of this machine, beside fio's engines for them: some minutes
    Ceph,
    /// One queue beside 128 of which 127 are idle
    Queues,
    /// 64 controllers without I/O: their CPU time, and the first command after a pause
    Idle,
    /// Instructions, allocations, system calls and interrupts of an I/O: counted, not timed
    Counts,
    /// Criterion's microbenchmarks of the parts
    Micro,
}

/// How thoroughly to measure.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Repetitions of each figure.
    pub runs: usize,
    /// Seconds of one run.
    pub seconds: f64,
    /// Seconds of one measurement of a limit.
    pub limit_seconds: f64,
    /// How often to measure at most while other programs disturb it.
    pub attempts: u32,
}

const QUICK: Pace = Pace { runs: 3, seconds: 0.25, limit_seconds: 0.1, attempts: 2 };
const THOROUGH: Pace = Pace { runs: 5, seconds: 1.5, limit_seconds: 0.4, attempts: 8 };

/// What every area needs.
pub struct Setting {
    pub quarry: PathBuf,
    /// The client, which measures the limits too.
    pub client: PathBuf,
    /// Where configurations, logs and results are.
    pub directory: PathBuf,
    pub machine: Machine,
    pub pace: Pace,
    /// The line `mode = …` of the configuration, where this server has a mode to poll without ever sleeping.
    pub poll: Option<&'static str>,
}

impl Bench {
    pub fn run(mut self) -> Result<()> {
        if self.areas.is_empty() {
            // A cluster takes longer than all others, and has to be asked for.
            let all = Area::value_variants().iter().copied();
            self.areas = all.filter(|area| *area != Area::Ceph).collect();
        }
        let directory = workspace().join("target/bench");
        fs::create_dir_all(&directory)?;
        for name in ["result.json", "latency.svg", "latency.png", "throughput.svg", "throughput.png"] {
            let _ = fs::remove_file(directory.join(name));
        }
        let needs_server = self.areas.iter().any(|area| !matches!(area, Area::Counts | Area::Micro));
        let (quarry, client) =
            if needs_server { (build_quarry()?, build_client()?) } else { Default::default() };
        let mut setting = Setting {
            quarry,
            client,
            machine: Machine::find()?,
            pace: if self.quick { QUICK } else { THOROUGH },
            poll: None,
            directory,
        };
        if needs_server {
            setting.poll = client::poll_mode(&setting)?;
            println!("{}", setting.machine.describe(setting.poll.is_some()));
        }
        let mut report = Report::new(&setting, self.quick);
        let mut failed = Vec::new();
        for area in &self.areas {
            say(&format!("{area:?}").to_lowercase());
            // One that cannot be measured does not cost the results of the others.
            if let Err(error) = self.area(*area, &setting, &mut report) {
                let area = format!("{area:?}").to_lowercase();
                println!("The area {area} failed: {error:#}");
                failed.push(area);
            }
        }
        report.finish(&setting.machine);
        self.write(&setting.directory, &report)?;
        ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
        match report.broken() {
            0 => Ok(()),
            n => {
                eprintln!("{n} counted bounds are broken");
                std::process::exit(1)
            }
        }
    }

    fn area(&self, area: Area, setting: &Setting, report: &mut Report) -> Result<()> {
        match area {
            Area::Null => disk::run(setting, &goals::NULL, report),
            Area::Memory => disk::run(setting, &goals::MEMORY, report),
            Area::File => file::run(setting, report),
            Area::Ceph => ceph::run_area(setting, report),
            Area::Queues => queues::run(setting, report),
            Area::Idle => idle::run(setting, report),
            Area::Counts => {
                setup::packages()?;
                let counted = counts::run(self.record)?;
                println!("\n{counted}");
                report.counts = Some(counted);
                Ok(())
            }
            Area::Micro => {
                report.micro = micro::run(self.quick)?;
                Ok(())
            }
        }
    }

    fn write(&self, directory: &Path, report: &Report) -> Result<()> {
        let json = serde_json::to_vec_pretty(report)?;
        fs::write(directory.join("result.json"), &json)?;
        if let Some(path) = &self.json {
            fs::write(path, &json).with_context(|| path.display().to_string())?;
        }
        let mut written = vec!["result.json".to_owned()];
        if !report.curves.is_empty() {
            for (name, svg) in
                [("latency", picture::latency(report)), ("throughput", picture::throughput(report))]
            {
                fs::write(directory.join(format!("{name}.svg")), &svg)?;
                written.push(format!("{name}.svg"));
                // The font is the test guest's, which need not be there.
                if let Ok(assets) = Assets::locate() {
                    crate::demo::picture::render(&svg, &assets.font, &directory.join(format!("{name}.png")))?;
                    written.push(format!("{name}.png"));
                }
            }
        }
        println!("Written: target/bench/{}", written.join(", "));
        Ok(())
    }
}

fn build_client() -> Result<PathBuf> {
    process::run(&mut cargo(["build", "--release", "-p", "quarry-bench", "--bins"]))?;
    Ok(target().join("release/quarry-bench"))
}

/// The middle of some values; of an even number the lower one of two. 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}
