//! [`copies`]: how many blocks one CPU copies between a large memory and buffers in turn, in a loop that does nothing
//! else. A memory disk cannot be faster: it does that, and has commands to look at.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::pin;
use crate::memory::Memory;
use crate::pattern::{Order, Pattern};

/// Copies of `bytes` in a second, on `cpu`, at random places of `memory`; `writes` of 100 go there and not from there.
/// The `buffers` are as far apart as the client's.
///
/// # Errors
/// The CPU is not there, or there is no memory.
pub fn copies(
    cpu: usize,
    memory: &mut Memory,
    span: usize,
    bytes: usize,
    buffers: usize,
    writes: u32,
    time: Duration,
) -> Result<f64> {
    /// Copies between two looks at the clock.
    const STEP: u32 = 64;
    pin(cpu)?;
    let stride = bytes.next_multiple_of(4096) + 4096;
    let mut guest = Memory::shared(stride * buffers)?;
    let mut pattern = Pattern::new(Order::Random, writes, 1, (span / bytes) as u64, 3);
    let (write, _) = Pattern::new(Order::Random, 100, 1, 1, 1).draw();
    let (mut count, mut buffer) = (0u64, 0);
    let start = Instant::now();
    loop {
        for _ in 0..STEP {
            let (opcode, place) = pattern.draw();
            let (place, at) = (place as usize * bytes, buffer * stride);
            if opcode == write {
                guest.copy_to(at, memory, place, bytes);
            } else {
                memory.copy_to(place, &mut guest, at, bytes);
            }
            buffer = if buffer + 1 == buffers { 0 } else { buffer + 1 };
        }
        count += u64::from(STEP);
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(count as f64 / elapsed.as_secs_f64());
        }
    }
}
