//! Counts what an I/O costs, by a controller in this thread: allocations and interrupts by itself, instructions and
//! system calls under valgrind, which `cargo xtask bench counts` runs. Nothing here depends on time.
//!
//! A round is `depth` reads of 4 KiB that are rung at once, turns of the server until all are complete, and the
//! client's look at each completion. What a round costs is the difference between N and 2N rounds.

use std::sync::Arc;

use anyhow::{Result, ensure};
use block::Device;
use block_memory::{MemoryDevice, NullDevice};
use clap::{Parser, ValueEnum};
use quarry_bench::alloc::{Counting, allocations};
use quarry_bench::histogram::Histogram;
use quarry_bench::lane::Job;
use quarry_bench::pattern::Order;
use quarry_bench::rig::{Rig, server_turn};
use quarry_bench::target::Workload;
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts what an I/O costs
#[derive(Parser)]
struct Arguments {
    /// What the namespace is on
    #[arg(long, value_enum, default_value = "null")]
    device: Kind,
    /// Rounds that count
    #[arg(long, default_value_t = 100)]
    rounds: u64,
    /// Commands of a round
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    depth: u16,
    /// Queue pairs that are there and idle
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=127))]
    idle_queues: u16,
    /// Signal interrupts, and count them
    #[arg(long)]
    interrupts: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Null,
    Memory,
}

#[derive(Default, Serialize)]
struct Counts {
    ios: u64,
    /// Turns of the server.
    turns: u64,
    /// Turns that posted completions: runs.
    runs: u64,
    allocations: u64,
    interrupts: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let size = 64 << 20;
    let device: Arc<dyn Device> = match arguments.device {
        Kind::Null => Arc::new(NullDevice::new(size)?),
        Kind::Memory => Arc::new(MemoryDevice::new(size)?),
    };
    let workload = Workload {
        order: Order::Random,
        writes: 0,
        bytes: 4096,
        depth: arguments.depth.into(),
        queues: 1,
        idle_queues: arguments.idle_queues,
        sgl: false,
    };
    println!("{}", serde_json::to_string(&count(&arguments, device, &workload)?)?);
    Ok(())
}

fn count(arguments: &Arguments, device: Arc<dyn Device>, workload: &Workload) -> Result<Counts> {
    /// Rounds before those that count: everything that is made once is there then.
    const WARM: u64 = 20;
    /// No round takes that many turns.
    const TURNS: u64 = 10_000;
    let rig = Rig::new(device, workload.memory())?;
    let eventfds = if arguments.interrupts { rig.controller().connect_vectors(0, 129)? } else { Vec::new() };
    let target = rig.target(workload, arguments.interrupts)?;
    let mut lanes = target.lanes()?;
    let lane = &mut lanes[0];
    let (mut pattern, mut latencies) = (target.pattern(7), Histogram::default());
    let (mut counts, mut before) = (Counts::default(), 0);
    for round in 0..WARM + arguments.rounds {
        if round == WARM {
            counts = Counts::default();
            before = allocations();
        }
        let depth = u64::from(arguments.depth);
        let mut job =
            Job { pattern: &mut pattern, latencies: &mut latencies, left: depth, deadline: u64::MAX };
        lane.fill(&mut job);
        let first = counts.turns;
        while lane.in_flight() > 0 {
            server_turn();
            counts.turns += 1;
            let mut taken = 0;
            while let some @ 1.. = lane.turn(&mut job)? {
                taken += u64::from(some);
            }
            counts.ios += taken;
            counts.runs += u64::from(taken > 0);
            if let Some(eventfd) = eventfds.get(1) {
                counts.interrupts += eventfd.take()?;
            }
            ensure!(counts.turns - first < TURNS, "a round does not end");
        }
    }
    counts.allocations = allocations() - before;
    Ok(counts)
}
