//! Which CPUs there are, staying on one of them, and whether one was alone there.

use std::fs;
use std::io;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process may use, ascending.
pub fn allowed() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => vec![0],
    }
}

/// Binds the calling thread to `cpu`.
///
/// # Errors
/// The CPU is not there, or not for this process.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// What the scheduler did to the threads of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Nanoseconds that they ran.
    pub ran: u64,
    /// Nanoseconds that they could have run and had no CPU: others were on it.
    pub waited: u64,
}

impl Account {
    /// Of a process, by its identifier.
    ///
    /// # Errors
    /// The process is gone, or the kernel keeps no such account (CONFIG_SCHED_INFO).
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut sum = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that ended meanwhile took its time with it.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let mut words = text.split_whitespace().map(str::parse::<u64>);
            let (Some(Ok(ran)), Some(Ok(waited))) = (words.next(), words.next()) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            sum.ran += ran;
            sum.waited += waited;
        }
        Ok(sum)
    }
}

/// A part of the time above which a measurement is made again.
const STEADY: f64 = 0.02;

/// Measures up to `attempts` times, until other programs took the CPUs from this process and from `server` for less than
/// a fiftieth of the time. Returns the least disturbed result, and the part of its time for which it was disturbed.
///
/// # Errors
/// Those of `work`, and of [`Account::of`].
pub fn steady<T>(
    attempts: u32,
    server: Option<u32>,
    mut work: impl FnMut() -> Result<T>,
) -> Result<(T, f64)> {
    let waited = || -> Result<u64> {
        let own = Account::of(std::process::id())?.waited;
        Ok(own + server.map(Account::of).transpose()?.unwrap_or_default().waited)
    };
    let mut best: Option<(T, f64)> = None;
    for _ in 0..attempts.max(1) {
        let (before, start) = (waited()?, Instant::now());
        let result = work()?;
        // Threads that ended have taken their account with them.
        let lost = waited()?.saturating_sub(before) as f64 / start.elapsed().as_nanos() as f64;
        if best.as_ref().is_none_or(|(_, least)| lost < *least) {
            best = Some((result, lost));
        }
        if lost < STEADY {
            break;
        }
    }
    best.context("at least one attempt")
}
