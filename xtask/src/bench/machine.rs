//! Where it is measured: CPUs, and what else they do.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;
use std::fs;

/// Load beyond which somebody else takes so much of the CPUs that figures say little.
const LOAD: f64 = 0.5;

#[derive(Clone, Serialize)]
pub struct Machine {
    pub model: String,
    pub cpus: usize,
    pub server_cpu: usize,
    pub client_cpu: usize,
    /// Processes that wanted to run in the last minute, when the run began.
    pub load: f64,
}

impl Machine {
    /// The first two CPUs that this process may use.
    pub fn find() -> Result<Self> {
        let set = sched_getaffinity(None)?;
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        let first = *cpus.first().context("a CPU")?;
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Self {
            model: model.map_or("an unknown CPU", |(_, name)| name).trim().to_owned(),
            cpus: cpus.len(),
            server_cpu: first,
            client_cpu: cpus.get(1).copied().unwrap_or(first),
            load: load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
        })
    }

    /// Whether server and client have to share a CPU.
    pub fn is_shared(&self) -> bool {
        self.server_cpu == self.client_cpu
    }

    /// For people; says what is wrong with the machine.
    pub fn describe(&self, poll: bool) -> String {
        let mode = if poll { "poll" } else { "adaptive (this server has no mode `poll`)" };
        let mut text = format!(
            "{}, server on CPU {}, client on CPU {}, mode {mode}",
            self.model, self.server_cpu, self.client_cpu
        );
        if self.is_shared() {
            text += "\nOne CPU only: server and client take turns on it. Figures say nothing about speed.";
        }
        if self.load > LOAD {
            text += &format!("\nOther programs are running (load {}): expect less of everything.", self.load);
        }
        text
    }
}
