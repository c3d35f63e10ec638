//! [`run`]: drives lanes for a time or a number of commands, and says what came of it.

use std::time::{Duration, Instant};

use nvme_driver::interrupt::EventFd;
use serde::{Deserialize, Serialize};

use crate::clock::{nanoseconds, ticks, ticks_in};
use crate::histogram::Histogram;
use crate::lane::{Job, Lane, Wrong};
use crate::pattern::Pattern;

/// When a run ends: whichever comes first. Commands in flight then are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// No command is sent after this time.
    pub time: Duration,
    /// Commands to send.
    pub commands: u64,
}

impl Limit {
    /// A time.
    pub fn time(time: Duration) -> Self {
        Self { time, commands: u64::MAX }
    }

    /// A number of commands.
    pub fn commands(commands: u64) -> Self {
        Self { time: Duration::from_secs(3600), commands }
    }
}

/// How completions are waited for.
#[derive(Clone, Copy)]
pub enum Wait<'a> {
    /// By looking again and again, on a CPU that the other side does not need.
    Poll,
    /// The same where the other side has no other CPU: it is given away sooner.
    PollShared,
    /// By sleeping until an interrupt, as guests do: what a device needs CPUs for has all of them.
    Interrupt(&'a EventFd),
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A completion is wrong.
    #[error(transparent)]
    Wrong(#[from] Wrong),
    /// Nothing completes any more.
    #[error("nothing completed for {0:?}, with {1} commands in flight")]
    Stuck(Duration, u32),
    /// The interrupt cannot be waited for.
    #[error("waiting for an interrupt: {0}")]
    Interrupt(nvme_driver::Error),
}

/// What a run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Commands completed, all of them well.
    pub commands: u64,
    /// Seconds from the first command to the last completion.
    pub seconds: f64,
    /// Commands in a second.
    pub iops: f64,
    /// Bytes in a second.
    pub bytes_per_second: f64,
    /// Nanoseconds from sending a command to seeing its completion.
    pub latency_ns: Latency,
    /// Nanoseconds of the server's CPU time for each command, where its process is known.
    pub server_ns: Option<f64>,
    /// Nanoseconds of the client's CPU time for each command.
    pub client_ns: f64,
    /// For which part of the time other programs kept client or server from running.
    pub disturbed: f64,
}

/// Percentiles in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1000 took no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
}

impl Outcome {
    /// Of a histogram in ticks.
    pub fn new(latencies: &Histogram, elapsed: Duration, bytes: u64) -> Self {
        let (commands, seconds) = (latencies.len(), elapsed.as_secs_f64());
        let iops = commands as f64 / seconds;
        let at = |part| nanoseconds(latencies.percentile(part));
        Self {
            commands,
            seconds,
            iops,
            bytes_per_second: iops * bytes as f64,
            latency_ns: Latency {
                p50: at(0.5),
                p99: at(0.99),
                p999: at(0.999),
                max: nanoseconds(latencies.max()),
                mean: latencies.mean() / crate::clock::rate(),
            },
            server_ns: None,
            client_ns: 0.0,
            disturbed: 0.0,
        }
    }
}

/// Polls without a completion (some 10 us) after which the CPU is offered to others, and the system's clock looked at: the
/// kernel's threads that complete a disk's I/O may have to run here, and would wait for a tick. Fewer if the server has no
/// CPU of its own.
const PATIENT_POLLS: u64 = 1 << 11;
const SHARED_POLLS: u64 = 1 << 8;
/// No single command takes that long, unless it never ends.
const STUCK: Duration = Duration::from_secs(30);

/// Runs all lanes in this thread. `bytes` are those of a command.
///
/// # Errors
/// [`Failure`]. The lanes are of no use any more then.
pub fn run(
    lanes: &mut [Lane<'_>],
    pattern: &mut Pattern,
    limit: Limit,
    bytes: u64,
    wait: Wait<'_>,
) -> Result<Outcome, Failure> {
    let mut latencies = Histogram::default();
    let polls = if let Wait::PollShared = wait { SHARED_POLLS } else { PATIENT_POLLS };
    let time = ticks_in(limit.time);
    let start = Instant::now();
    let mut job = Job {
        pattern,
        latencies: &mut latencies,
        left: limit.commands,
        deadline: ticks().saturating_add(time),
    };
    lanes.iter_mut().for_each(|lane| lane.fill(&mut job));
    let (mut waited, mut last) = (0u64, start);
    loop {
        let (mut taken, mut in_flight) = (0, 0);
        for lane in lanes.iter_mut() {
            taken += lane.turn(&mut job)?;
            in_flight += lane.in_flight();
        }
        if in_flight == 0 {
            break;
        }
        if taken > 0 {
            waited = 0;
            continue;
        }
        if let Wait::Interrupt(interrupt) = wait {
            if interrupt.wait(STUCK).map_err(Failure::Interrupt)? == 0 {
                return Err(Failure::Stuck(STUCK, in_flight));
            }
            continue;
        }
        waited += 1;
        if waited % polls == 0 {
            std::thread::yield_now();
            let now = Instant::now();
            if waited == polls {
                last = now;
            }
            if now.duration_since(last) > STUCK {
                return Err(Failure::Stuck(STUCK, in_flight));
            }
        }
    }
    Ok(Outcome::new(&latencies, start.elapsed(), bytes))
}
