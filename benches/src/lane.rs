//! [`Lane`]: the host's side of one queue pair, made for speed: commands are prepared, and all that is left to do is to
//! store 64 bytes and to look at 16.
//!
//! It knows words in shared memory and nothing of how they came there: the other side may be a server in another
//! process, a controller in this thread, or a thread that only pretends ([`crate::limits::echo`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use nvme_driver::queue::Doorbell;
use nvme_spec::doorbell_buffer::passes_event;
use nvme_spec::{Command, Completion};

use crate::clock::ticks;
use crate::histogram::Histogram;
use crate::pattern::Pattern;

/// Quadwords of a submission queue entry.
const SQE_WORDS: usize = Command::BYTES / 8;
/// Quadwords of a completion queue entry.
const CQE_WORDS: usize = Completion::BYTES / 8;
/// Completions taken before the commands that follow them are rung: the other side shall not wait for a long run.
const RUN: u32 = 16;
/// The mark of a command that is not in flight.
const IDLE: u64 = u64::MAX;

/// Why a completion is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// A status that is not success.
    #[error("command {cid} of queue {queue} ended with status {status:#06x} (CQE dword 3, bits 31:17)")]
    Status {
        /// The queue.
        queue: u16,
        /// The command.
        cid: u16,
        /// The status field without the phase.
        status: u16,
    },
    /// A completion of a command that is not in flight.
    #[error("queue {queue} completed command {cid}, which is not in flight")]
    Cid {
        /// The queue.
        queue: u16,
        /// The command.
        cid: u16,
    },
    /// A completion of another queue's command.
    #[error("a completion on queue {queue} says that it is of queue {said}")]
    Queue {
        /// The queue.
        queue: u16,
        /// What the completion says.
        said: u16,
    },
    /// A doorbell that is no shared memory cannot be rung.
    #[error("the doorbells of queue {queue} cannot be rung: is the server gone?")]
    Deaf {
        /// The queue.
        queue: u16,
    },
}

/// The shared memory of a queue pair.
#[derive(Clone, Copy)]
pub struct Rings<'a> {
    /// The queue's identifier.
    pub id: u16,
    /// Submission queue entries, 8 words each.
    pub sq: &'a [AtomicU64],
    /// Completion queue entries, 2 words each; as many.
    pub cq: &'a [AtomicU64],
    /// SQ tail doorbell.
    pub tail: &'a AtomicU32,
    /// CQ head doorbell.
    pub head: &'a AtomicU32,
    /// With shadow doorbells (Base 5.11), which the two above are then: EventIdx and the real one of each.
    pub real: Option<[(&'a AtomicU32, &'a Doorbell); 2]>,
}

/// What a run is about, besides queues.
pub struct Job<'a> {
    /// Where commands go.
    pub pattern: &'a mut Pattern,
    /// Latencies in ticks.
    pub latencies: &'a mut Histogram,
    /// Commands that may still be sent.
    pub left: u64,
    /// No command is sent after this tick.
    pub deadline: u64,
}

/// A prepared command, a cache line of its own.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Prepared([u64; SQE_WORDS]);

/// One queue pair with its prepared commands.
pub struct Lane<'a> {
    rings: Rings<'a>,
    entries: u32,
    tail: u32,
    head: u32,
    /// What the phase bit of the next completion has to be.
    phase: u64,
    /// By command identifier.
    commands: Vec<Prepared>,
    /// When each was sent, by command identifier.
    sent: Vec<u64>,
    in_flight: u32,
    /// The command that is sent first in the next run. Commands are sent in turn as long as they complete in turn.
    first: usize,
}

impl<'a> Lane<'a> {
    /// A lane that has `commands` in flight: their data pointers and lengths stay, opcode, identifier and first block
    /// come with each sending. There must be fewer of them than queue entries.
    pub fn new(rings: Rings<'a>, commands: &[Command]) -> Self {
        let entries = rings.sq.len() / SQE_WORDS;
        assert_eq!(entries, rings.cq.len() / CQE_WORDS, "queues of one size");
        assert!(commands.len() < entries, "{} commands in a queue of {entries} entries", commands.len());
        let prepare = |(cid, command): (usize, &Command)| {
            let mut command = *command;
            command.opcode = 0;
            command.cid.set(cid as u16);
            let words: [u64; SQE_WORDS] = zerocopy::transmute!(command);
            Prepared(words)
        };
        Self {
            rings,
            entries: entries as u32,
            tail: 0,
            head: 0,
            phase: 1,
            commands: commands.iter().enumerate().map(prepare).collect(),
            sent: vec![IDLE; commands.len()],
            in_flight: 0,
            first: 0,
        }
    }

    /// Commands in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Sends every command once.
    pub fn fill(&mut self, job: &mut Job<'_>) {
        let (now, tail) = (ticks(), self.tail);
        for _ in 0..self.commands.len() {
            if job.left == 0 {
                break;
            }
            job.left -= 1;
            self.send(self.first, now, job.pattern);
        }
        // Where this fails nothing completes, which is found out.
        let _ = self.ring(tail);
    }

    #[inline(always)]
    fn send(&mut self, cid: usize, now: u64, pattern: &mut Pattern) {
        let (opcode, lba) = pattern.draw();
        let mut words = self.commands[cid].0;
        words[0] |= u64::from(opcode).to_le();
        words[5] = lba.to_le(); // dwords 10 and 11
        let at = self.tail as usize * SQE_WORDS;
        for (to, from) in self.rings.sq[at..at + SQE_WORDS].iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
        self.sent[cid] = now;
        self.in_flight += 1;
        self.first = if cid + 1 == self.commands.len() { 0 } else { cid + 1 };
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    #[inline(always)]
    fn ring(&self, old: u32) -> Result<(), Wrong> {
        self.rings.tail.store(self.tail.to_le(), Ordering::Release);
        match self.rings.real {
            None => Ok(()),
            Some([(event, doorbell), _]) => self.ring_real(event, doorbell, old, self.tail),
        }
    }

    /// After a shadow doorbell: the real one, if somebody has to be woken.
    #[cold]
    fn ring_real(&self, event: &AtomicU32, doorbell: &Doorbell, old: u32, new: u32) -> Result<(), Wrong> {
        // As the controller has one between its store of EventIdx and its last look at the shadow.
        fence(Ordering::SeqCst);
        let event = u32::from_le(event.load(Ordering::Relaxed));
        if passes_event(event as u16, new as u16, old as u16) {
            doorbell.ring(new).map_err(|_| Wrong::Deaf { queue: self.rings.id })?;
        }
        Ok(())
    }

    /// Takes the completions that are there, a run at most, checks each and sends its successor. Returns how many.
    ///
    /// # Errors
    /// The first completion that is wrong.
    #[inline(always)]
    pub fn turn(&mut self, job: &mut Job<'_>) -> Result<u32, Wrong> {
        let (mut taken, mut now, tail, head) = (0, 0, self.tail, self.head);
        while taken < RUN {
            let at = self.head as usize * CQE_WORDS;
            // The phase is in the upper word, which is acquired; the lower one holds nothing that a read or write
            // returns (dword 0 is reserved in both).
            let upper = u64::from_le(self.rings.cq[at + 1].load(Ordering::Acquire));
            if upper >> 48 & 1 != self.phase {
                break;
            }
            if taken.is_multiple_of(8) {
                now = ticks();
            }
            let cid = self.check(upper)?;
            job.latencies.record(now.saturating_sub(self.sent[cid]));
            self.sent[cid] = IDLE;
            self.in_flight -= 1;
            taken += 1;
            self.head += 1;
            if self.head == self.entries {
                self.head = 0;
                self.phase ^= 1;
            }
            if job.left > 0 && now < job.deadline {
                job.left -= 1;
                self.send(cid, now, job.pattern);
            }
        }
        if self.tail != tail {
            self.ring(tail)?;
        }
        if taken > 0 {
            self.rings.head.store(self.head.to_le(), Ordering::Release);
            if let Some([_, (event, doorbell)]) = self.rings.real {
                self.ring_real(event, doorbell, head, self.head)?;
            }
        }
        Ok(taken)
    }

    /// The command that a completion's upper word is of.
    #[inline(always)]
    fn check(&self, upper: u64) -> Result<usize, Wrong> {
        let (said, cid, status) = ((upper >> 16) as u16, (upper >> 32) as u16, (upper >> 49) as u16);
        let queue = self.rings.id;
        let is_in_flight = self.sent.get(usize::from(cid)).is_some_and(|sent| *sent != IDLE);
        if status == 0 && said == queue && is_in_flight {
            return Ok(usize::from(cid));
        }
        Err(if said != queue {
            Wrong::Queue { queue, said }
        } else if !is_in_flight {
            Wrong::Cid { queue, cid }
        } else {
            Wrong::Status { queue, cid, status }
        })
    }
}
