//! [`round_trip`]: how long a cache line takes to another CPU and back. No command over shared memory is faster than
//! that: its doorbell has to get there, and its completion back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Result;

use crate::clock::{nanoseconds, ticks};
use crate::cpu::pin;

#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds of a round trip of one cache line between two CPUs: the median of a hundred times `rounds`.
///
/// # Errors
/// A CPU is not there.
pub fn round_trip(here: usize, there: usize, rounds: u64) -> Result<f64> {
    const TIMES: u64 = 100;
    let line = Line(AtomicU64::new(0));
    let last = TIMES * rounds * 2;
    thread::scope(|scope| {
        let line = &line.0;
        let answering = scope.spawn(move || {
            let pinned = pin(there);
            // Answers even when it is on the wrong CPU: the other side waits.
            for odd in (1..last).step_by(2) {
                while line.load(Ordering::Acquire) != odd {}
                line.store(odd + 1, Ordering::Release);
            }
            pinned
        });
        let pinned = pin(here);
        let mut times: Vec<u64> = (0..TIMES)
            .map(|time| {
                let start = ticks();
                for round in time * rounds..(time + 1) * rounds {
                    line.store(2 * round + 1, Ordering::Release);
                    while line.load(Ordering::Acquire) != 2 * round + 2 {}
                }
                ticks() - start
            })
            .collect();
        pinned?;
        answering.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        times.sort_unstable();
        Ok(nanoseconds(times[times.len() / 2]) / rounds as f64)
    })
}
