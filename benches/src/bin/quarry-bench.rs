//! Drives a running Quarry server from another CPU, and measures what the machine allows. Prints JSON.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nvme_driver::{Controller, Options};
use quarry_bench::cpu::{self, Account, steady};
use quarry_bench::limits::{copy, echo, line};
use quarry_bench::memory::Memory;
use quarry_bench::pattern::Order;
use quarry_bench::run::{Outcome, Wait};
use quarry_bench::target::{IOVA, Target, Workload};
use serde::Serialize;

/// Measures a Quarry server over vfio-user, without a guest, and the limits of the machine
#[derive(Parser)]
struct Arguments {
    /// Measure that often if other programs take the CPUs meanwhile, and keep what they disturbed least
    #[arg(long, global = true, default_value_t = 1)]
    attempts: u32,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Read and write a namespace of a running server
    Run(Run),
    /// Nanoseconds of a cache line's round trip between two CPUs
    Line(Cpus),
    /// Copies a second between random places of a large memory and buffers, on one CPU
    Copy(Copies),
    /// A server that does nothing, driven by the same client: the limit of a null device
    Echo(Echo),
    /// What enabled controllers without I/O cost a running server, and the first command after a pause
    Idle(Idle),
}

#[derive(Clone, Copy, ValueEnum)]
enum Access {
    Randread,
    Randwrite,
    Randrw,
    Read,
    Write,
    Rw,
}

#[derive(Args)]
struct Run {
    /// The server's socket
    #[arg(long)]
    socket: PathBuf,
    /// What to do, in fio's words
    #[arg(long, value_enum, default_value = "randread")]
    rw: Access,
    /// Of 100 commands of a mix so many are reads
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u32).range(0..=100))]
    mix: u32,
    /// Bytes of a command: 512 to 1M, K and M are binary
    #[arg(long, default_value = "4K", value_parser = bytes)]
    size: usize,
    /// Commands in flight on each queue
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    depth: u16,
    /// Queues, all driven by one thread
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// Further queues that are created and never used
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=127))]
    idle_queues: u16,
    /// Name data by SGLs and not by PRPs
    #[arg(long)]
    sgl: bool,
    /// Seconds of a run
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Commands of a run, if it shall not last all of its time
    #[arg(long)]
    commands: Option<u64>,
    /// Runs
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Seconds of a first run that does not count
    #[arg(long, default_value_t = 0.2, value_parser = seconds)]
    warmup: f64,
    /// Write the whole namespace once before, in the size of the commands
    #[arg(long)]
    fill: bool,
    /// The namespace
    #[arg(long, default_value_t = 1)]
    namespace: u32,
    /// Sleep until the queue's interrupt instead of looking all the time, so that others can use the CPU
    #[arg(long, conflicts_with = "queues")]
    interrupts: bool,
    /// The CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
    /// The server's process: tells how much CPU time a command costs it
    #[arg(long)]
    server_pid: Option<u32>,
}

#[derive(Args)]
struct Cpus {
    /// The server's CPU
    #[arg(long)]
    server_cpu: usize,
    /// The client's CPU
    #[arg(long)]
    client_cpu: usize,
}

#[derive(Args)]
struct Copies {
    /// The CPU
    #[arg(long)]
    cpu: usize,
    /// What to copy: bytes of a copy, buffers that are used in turn, and how many of 100 copies go to the large memory
    #[arg(long = "case", value_name = "SIZE:BUFFERS:WRITES", default_value = "4K:32:0", value_parser = case)]
    cases: Vec<Case>,
    /// Bytes of the large memory
    #[arg(long, default_value = "1G", value_parser = bytes)]
    memory: usize,
    /// Seconds of a run
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    seconds: f64,
}

#[derive(Clone, Copy)]
struct Case {
    size: usize,
    buffers: usize,
    writes: u32,
}

#[derive(Args)]
struct Echo {
    #[command(flatten)]
    cpus: Cpus,
    /// Commands in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=255))]
    depth: u16,
    /// Seconds of a run
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    seconds: f64,
    /// Runs
    #[arg(long, default_value_t = 5)]
    repeat: u32,
}

#[derive(Args)]
struct Idle {
    /// The server's sockets, each of another controller
    #[arg(long = "socket", required = true)]
    sockets: Vec<PathBuf>,
    /// The server's process
    #[arg(long)]
    server_pid: u32,
    /// Seconds over which its CPU time is taken
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Pauses before a command, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    pauses: Vec<u64>,
    /// The CPU to run on
    #[arg(long)]
    cpu: Option<usize>,
}

fn bytes(text: &str) -> Result<usize, String> {
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: usize = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(|| format!("`{text}` is no size"))
}

fn case(text: &str) -> Result<Case, String> {
    let words: Vec<&str> = text.split(':').collect();
    let [size, buffers, writes] = words[..] else {
        return Err(format!("`{text}` is not SIZE:BUFFERS:WRITES"));
    };
    let buffers = buffers.parse().ok().filter(|buffers| *buffers > 0);
    let writes = writes.parse().ok().filter(|writes| *writes <= 100);
    match (bytes(size)?, buffers, writes) {
        (size, Some(buffers), Some(writes)) => Ok(Case { size, buffers, writes }),
        _ => Err(format!("`{text}` is not SIZE:BUFFERS:WRITES, with 1 buffer or more and 0 to 100 writes")),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("`{text}` is no number of seconds up to 3600")),
    }
}

fn main() -> Result<()> {
    let Arguments { attempts, what } = Arguments::parse();
    match what {
        What::Run(run) => print(&run.run(attempts)?),
        What::Line(cpus) => {
            ensure!(cpus.client_cpu != cpus.server_cpu, "one CPU has no line to send");
            print(&steady(attempts, None, || line::round_trip(cpus.client_cpu, cpus.server_cpu, 2_000))?.0)
        }
        What::Copy(copies) => print(&copies.run(attempts)?),
        What::Echo(echo) => print(&echo.run(attempts)?),
        What::Idle(idle) => {
            if let Some(cpu) = idle.cpu {
                cpu::pin(cpu).with_context(|| format!("run on CPU {cpu}"))?;
            }
            let (time, pauses) = (Duration::from_secs_f64(idle.seconds), &idle.pauses);
            print(&quarry_bench::idle::measure(&idle.sockets, idle.server_pid, time, pauses)?)
        }
    }
}

fn print(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(what)?);
    Ok(())
}

impl Run {
    fn workload(&self) -> Workload {
        let (order, writes) = match self.rw {
            Access::Randread => (Order::Random, 0),
            Access::Randwrite => (Order::Random, 100),
            Access::Randrw => (Order::Random, 100 - self.mix),
            Access::Read => (Order::Sequential, 0),
            Access::Write => (Order::Sequential, 100),
            Access::Rw => (Order::Sequential, 100 - self.mix),
        };
        Workload {
            order,
            writes,
            bytes: self.size,
            depth: self.depth.into(),
            queues: self.queues,
            idle_queues: self.idle_queues,
            sgl: self.sgl,
        }
    }

    fn run(self, attempts: u32) -> Result<Vec<Outcome>> {
        let shares_cpu = cpu::allowed().len() < 2;
        if let Some(cpu) = self.cpu {
            cpu::pin(cpu).with_context(|| format!("run on CPU {cpu}"))?;
        }
        let workload = self.workload();
        let options = Options { memory: workload.memory(), iova: IOVA, ..Options::default() };
        let controller = Controller::connect_wire(&self.socket, options)
            .with_context(|| format!("connect to {}", self.socket.display()))?;
        let target = Target::new(&controller, self.namespace, &workload, self.interrupts)?;
        // Vectors have their queues' identifiers.
        let interrupt = if self.interrupts { controller.connect_vectors(1, 1)?.pop() } else { None };
        let wait = match &interrupt {
            Some(interrupt) => Wait::Interrupt(interrupt),
            None if shares_cpu => Wait::PollShared,
            None => Wait::Poll,
        };
        let mut lanes = target.lanes()?;
        if self.fill {
            target.write_all(&mut lanes, wait)?;
        }
        let mut pattern = target.pattern(0x9E37_79B9_7F4A_7C15);
        let commands = self.commands.unwrap_or(u64::MAX);
        if self.warmup > 0.0 {
            let time = Duration::from_secs_f64(self.warmup);
            target.run(&mut lanes, &mut pattern, time, commands, wait)?;
        }
        let time = Duration::from_secs_f64(self.seconds);
        let mut one = || -> Result<Outcome> {
            let used = || self.server_pid.map(Account::of).transpose().context("the server's CPU time");
            let own = || Account::of(std::process::id()).context("the client's CPU time");
            let (before, began) = (used()?, own()?);
            let mut outcome = target.run(&mut lanes, &mut pattern, time, commands, wait)?;
            if let (Some(before), Some(after)) = (before, used()?) {
                outcome.server_ns = Some((after.ran - before.ran) as f64 / outcome.commands.max(1) as f64);
            }
            outcome.client_ns = (own()?.ran - began.ran) as f64 / outcome.commands.max(1) as f64;
            Ok(outcome)
        };
        let mut outcomes = Vec::new();
        for _ in 0..self.repeat {
            // On one CPU they always disturb each other.
            let attempts = if shares_cpu { 1 } else { attempts };
            let (mut outcome, disturbed) = steady(attempts, self.server_pid, &mut one)?;
            outcome.disturbed = if shares_cpu { 0.0 } else { disturbed };
            outcomes.push(outcome);
        }
        drop(lanes);
        controller.shutdown().context("shut the controller down")?;
        Ok(outcomes)
    }
}

impl Copies {
    /// Copies in a second, by case.
    fn run(self, attempts: u32) -> Result<Vec<f64>> {
        let mut memory = Memory::private(self.memory)?;
        let time = Duration::from_secs_f64(self.seconds);
        let mut one = |Case { size, buffers, writes }: &Case| {
            ensure!(*size <= self.memory, "copies are smaller than the memory");
            let mut copies =
                || copy::copies(self.cpu, &mut memory, self.memory, *size, *buffers, *writes, time);
            Ok(steady(attempts, None, &mut copies)?.0)
        };
        self.cases.iter().map(&mut one).collect()
    }
}

impl Echo {
    fn run(self, attempts: u32) -> Result<Vec<Outcome>> {
        let (Cpus { server_cpu, client_cpu }, depth) = (self.cpus, self.depth.into());
        let time = Duration::from_secs_f64(self.seconds);
        let one = |_| {
            let (mut outcome, disturbed) =
                steady(attempts, None, || echo::echo(client_cpu, server_cpu, depth, time))?;
            outcome.disturbed = disturbed;
            Ok(outcome)
        };
        (0..self.repeat).map(one).collect()
    }
}
