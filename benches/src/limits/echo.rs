//! [`echo`]: a server that does nothing. Its thread sees tail doorbells in shared memory and posts as many completions,
//! without a look at a command. With the client's own loop on the other CPU that is the limit for a null device.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nvme_spec::Command;

use crate::cpu::pin;
use crate::lane::{Lane, Rings};
use crate::memory::Memory;
use crate::pattern::{Order, Pattern};
use crate::run::{Limit, Outcome, Wait, run};

const ENTRIES: usize = 256;
/// Bytes of the submission queue, the completion queue, and a page of doorbells.
const SQ: usize = ENTRIES * 64;
const CQ: usize = ENTRIES * 16;
const DOORBELLS: usize = SQ + CQ;

/// Runs the client's loop on `client` against a thread on `server` that completes everything at once, with `depth` (1 to
/// 255) commands in flight on one queue.
///
/// # Errors
/// A CPU is not there, or there is no memory.
pub fn echo(client: usize, server: usize, depth: usize, time: Duration) -> Result<Outcome> {
    let memory = Memory::shared(DOORBELLS + 4096)?;
    memory.words(0, (DOORBELLS + 4096) / 8).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    let (tail, head) = (Padded(AtomicU32::new(0)), Padded(AtomicU32::new(0)));
    let stop = Padded(AtomicBool::new(false));
    let shares_cpu = client == server;
    let wait = if shares_cpu { Wait::PollShared } else { Wait::Poll };
    let (sq, cq) = (memory.words(0, SQ / 8), memory.words(SQ, CQ / 8));
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            pin(server)?;
            serve(&tail.0, cq, depth, shares_cpu, &stop.0);
            Ok(())
        });
        let outcome = (|| {
            pin(client)?;
            let rings = Rings { id: 1, sq, cq, tail: &tail.0, head: &head.0, real: None };
            let mut lanes = [Lane::new(rings, &vec![Command::default(); depth])];
            let mut pattern = Pattern::new(Order::Random, 0, 8, 1 << 21, 1);
            let mut one = |time| run(&mut lanes, &mut pattern, Limit::time(time), 4096, wait);
            one(time / 4)?;
            one(time).context("the server that does nothing")
        })();
        stop.0.store(true, Ordering::Release);
        server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        outcome
    })
}

/// Alone in its cache line, as doorbells are with CAP.DSTRD 4; and in the next, which some CPUs fetch along.
#[repr(align(128))]
struct Padded<T>(T);

/// The whole server. Commands are sent in turn and completed in turn, so their identifiers need not be read.
fn serve(tail: &AtomicU32, cq: &[AtomicU64], depth: usize, shares_cpu: bool, stop: &AtomicBool) {
    let (mut head, mut cid, mut phase) = (0u32, 0u64, 1u64);
    loop {
        let seen = u32::from_le(tail.load(Ordering::Acquire));
        if seen == head {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            if shares_cpu {
                thread::yield_now();
            }
            continue;
        }
        while head != seen {
            let at = head as usize * 2;
            // The completion queue has the submission queue's size, and one completion for each command: one index.
            head = if head as usize + 1 == ENTRIES { 0 } else { head + 1 };
            let upper = u64::from(head) | 1 << 16 | cid << 32 | phase << 48;
            cq[at].store(0, Ordering::Relaxed);
            cq[at + 1].store(upper.to_le(), Ordering::Release);
            cid = if cid as usize + 1 == depth { 0 } else { cid + 1 };
            if head == 0 {
                phase ^= 1;
            }
        }
    }
}
