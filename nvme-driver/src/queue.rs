//! Submission and completion queues in our memory, and [`QueuePair`], the two together.
//!
//! Nothing here locks, allocates or calls the system, except [`Doorbells`] that go by message and the blocking
//! conveniences at the end of [`QueuePair`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nvme_spec::registers::{DOORBELLS, doorbell_offset};
use nvme_spec::{Command, Completion};

use crate::error::{Error, Result};
use crate::mapping::Mapping;
use crate::memory::DmaBuffer;
use crate::registers::Link;
use crate::transport::BAR0;

/// How doorbells are rung: by stores into the mapped page, or by REGION_WRITE.
#[derive(Clone)]
pub struct Doorbells {
    dstrd: u8,
    link: Link,
    mapping: Option<Arc<Mapping>>,
}

impl Doorbells {
    pub(crate) fn new(link: Link, dstrd: u8) -> Result<Self> {
        let areas = link.lock().mappable(BAR0)?;
        let area =
            areas.into_iter().find(|area| area.offset <= DOORBELLS && DOORBELLS < area.offset + area.len);
        let mapping = match area {
            Some(area) => {
                let skip = DOORBELLS - area.offset;
                Some(Arc::new(Mapping::new(&area.fd, area.fd_offset + skip, (area.len - skip) as usize)?))
            }
            None => None,
        };
        Ok(Self { dstrd, link, mapping })
    }

    /// Whether doorbells are stores into shared memory.
    pub fn are_mapped(&self) -> bool {
        self.mapping.is_some()
    }

    /// The same doorbells, rung by REGION_WRITE.
    pub fn by_message(&self) -> Self {
        Self { mapping: None, ..self.clone() }
    }

    /// One queue's doorbell.
    pub fn of(&self, qid: u16, is_cq: bool) -> Doorbell {
        let offset = doorbell_offset(qid, is_cq, self.dstrd);
        let at = (offset - DOORBELLS) as usize;
        match &self.mapping {
            Some(mapping) if at + 4 <= mapping.len() => Doorbell::Mapped(Arc::clone(mapping), at),
            _ => Doorbell::Message(self.link.clone(), offset),
        }
    }
}

/// One doorbell register.
#[derive(Clone)]
pub enum Doorbell {
    /// In shared memory, at this offset.
    #[expect(private_interfaces, reason = "how memory is mapped is nobody's business")]
    Mapped(Arc<Mapping>, usize),
    /// By REGION_WRITE to this offset of BAR0.
    Message(Link, u64),
}

impl Doorbell {
    /// Writes any value.
    #[inline]
    pub fn ring(&self, value: u32) -> Result<()> {
        match self {
            Self::Mapped(mapping, offset) => {
                mapping.u32(*offset).store(value.to_le(), Ordering::Release);
                Ok(())
            }
            Self::Message(link, offset) => link.write32(*offset, value),
        }
    }

    /// The register itself, where it is in shared memory: for loops that ring millions of times in a second. What is
    /// stored there must be little-endian, and comes after what the controller has to see (Release).
    pub fn word(&self) -> Option<&AtomicU32> {
        match self {
            Self::Mapped(mapping, offset) => Some(mapping.u32(*offset)),
            Self::Message(..) => None,
        }
    }

    /// Reads it back.
    pub fn value(&self) -> Result<u32> {
        match self {
            Self::Mapped(mapping, offset) => Ok(u32::from_le(mapping.u32(*offset).load(Ordering::Acquire))),
            Self::Message(link, offset) => link.read32(*offset),
        }
    }
}

/// A submission queue: our side of it.
pub struct SubmissionQueue {
    id: u16,
    entries: u32,
    head: u32,
    tail: u32,
    memory: DmaBuffer,
    doorbell: Doorbell,
}

impl SubmissionQueue {
    /// An empty queue of `entries` (2 to 65536) in `memory`.
    pub fn new(id: u16, entries: u32, memory: DmaBuffer, doorbells: &Doorbells) -> Self {
        assert!(memory.len() >= entries as usize * Command::BYTES, "queue memory");
        Self { id, entries, head: 0, tail: 0, memory, doorbell: doorbells.of(id, false) }
    }

    /// The queue's identifier.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The queue's size.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The slots in memory, to look at or to tamper with.
    pub fn memory(&self) -> &DmaBuffer {
        &self.memory
    }

    /// The tail doorbell.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// Where the next command goes.
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// How many commands fit.
    #[inline]
    pub fn free(&self) -> u32 {
        let used =
            if self.tail >= self.head { self.tail - self.head } else { self.tail + self.entries - self.head };
        self.entries - 1 - used
    }

    /// Writes a command into the next slot. The controller is told by [`Self::ring`].
    #[inline]
    pub fn push(&mut self, command: &Command) -> Result<()> {
        if self.free() == 0 {
            return Err(Error::QueueFull(self.id));
        }
        let words: [u64; 8] = zerocopy::transmute!(*command);
        self.memory.put_words(self.tail as usize * Command::BYTES, words);
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
        Ok(())
    }

    /// Tells the controller about everything pushed.
    #[inline]
    pub fn ring(&self) -> Result<()> {
        self.doorbell.ring(self.tail)
    }

    /// Takes the head from a completion of this queue: slots before it are free.
    #[inline]
    pub fn completed(&mut self, completion: &Completion) {
        self.head = u32::from(completion.sqhd.get());
    }
}

/// A completion queue: our side of it.
pub struct CompletionQueue {
    id: u16,
    entries: u32,
    head: u32,
    phase: bool,
    memory: DmaBuffer,
    doorbell: Doorbell,
}

impl CompletionQueue {
    /// An empty queue of `entries` (2 to 65536) in `memory`, which is cleared.
    pub fn new(id: u16, entries: u32, memory: DmaBuffer, doorbells: &Doorbells) -> Self {
        assert!(memory.len() >= entries as usize * Completion::BYTES, "queue memory");
        memory.fill(0);
        Self { id, entries, head: 0, phase: true, memory, doorbell: doorbells.of(id, true) }
    }

    /// The queue's identifier.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// The queue's size.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The slots in memory, to look at or to tamper with.
    pub fn memory(&self) -> &DmaBuffer {
        &self.memory
    }

    /// The head doorbell.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// The slot where the next completion will be.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Takes the next completion, if there is one. The controller is told by [`Self::ring`].
    #[inline]
    pub fn poll(&mut self) -> Option<Completion> {
        let slot = self.memory.u64s(self.head as usize * Completion::BYTES, 2);
        // The phase is in the upper half, which is written last: acquire it before reading the rest.
        let upper = slot[1].load(Ordering::Acquire);
        let phase = u64::from_le(upper) >> 48 & 1 == 1;
        if phase != self.phase {
            return None;
        }
        let completion: Completion = zerocopy::transmute!([slot[0].load(Ordering::Relaxed), upper]);
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(completion)
    }

    /// Gives the slots of everything polled back to the controller.
    #[inline]
    pub fn ring(&self) -> Result<()> {
        self.doorbell.ring(self.head)
    }
}

/// Polls until there is a result: busily at first, then politely.
pub(crate) fn poll_until<T>(
    timeout: Duration,
    what: impl FnOnce() -> String,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    const BUSY: u32 = 2_000;
    for _ in 0..BUSY {
        if let Some(found) = poll()? {
            return Ok(found);
        }
        std::hint::spin_loop();
    }
    let start = Instant::now();
    loop {
        if let Some(found) = poll()? {
            return Ok(found);
        }
        let waited = start.elapsed();
        if waited > timeout {
            return Err(Error::Timeout { what: what(), after: timeout });
        }
        if waited < Duration::from_millis(1) {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// A submission queue with a completion queue of its own.
pub struct QueuePair {
    /// The submission queue.
    pub sq: SubmissionQueue,
    /// The completion queue.
    pub cq: CompletionQueue,
    next_cid: u16,
    early: Vec<Completion>,
}

impl QueuePair {
    /// Two queues as one pair.
    pub fn new(sq: SubmissionQueue, cq: CompletionQueue) -> Self {
        Self { sq, cq, next_cid: 0, early: Vec::new() }
    }

    /// The submission queue's identifier.
    pub fn id(&self) -> u16 {
        self.sq.id
    }

    /// Writes a command as it is into the next slot. [`Self::ring`] sends it.
    #[inline]
    pub fn push(&mut self, command: &Command) -> Result<()> {
        self.sq.push(command)
    }

    /// Sends everything pushed: one store.
    #[inline]
    pub fn ring(&self) -> Result<()> {
        self.sq.ring()
    }

    /// Hands up to `max` completions that are there to `each`, and gives their slots back. Returns how many.
    #[inline]
    pub fn poll(&mut self, max: usize, mut each: impl FnMut(&Completion)) -> Result<usize> {
        let mut taken = 0;
        while taken < max
            && let Some(completion) = self.cq.poll()
        {
            self.sq.completed(&completion);
            each(&completion);
            taken += 1;
        }
        if taken > 0 {
            self.cq.ring()?;
        }
        Ok(taken)
    }

    /// Sends one command under an identifier of the driver's choice, which it returns.
    pub fn submit(&mut self, command: Command) -> Result<u16> {
        let [cid] = self.submit_together([command])?;
        Ok(cid)
    }

    /// Sends several commands with one store to the doorbell; the identifiers they got. Where one does not fit, none goes.
    pub fn submit_together<const N: usize>(&mut self, commands: [Command; N]) -> Result<[u16; N]> {
        if (self.sq.free() as usize) < N {
            return Err(Error::QueueFull(self.sq.id));
        }
        let mut cids = [0; N];
        for (mut command, cid) in commands.into_iter().zip(&mut cids) {
            *cid = self.next_cid;
            // FFFFh is what controllers put into error log entries that belong to no command.
            self.next_cid = if *cid >= 0xFFFE { 0 } else { *cid + 1 };
            command.cid.set(*cid);
            self.push(&command)?;
        }
        self.ring()?;
        Ok(cids)
    }

    /// Waits for the completion of command `cid`. Others that come meanwhile are kept.
    pub fn wait(&mut self, cid: u16, timeout: Duration) -> Result<Completion> {
        let id = self.id();
        poll_until(
            timeout,
            || format!("completion of command {cid} on queue {id}"),
            || {
                self.gather()?;
                let at = self.early.iter().position(|early| early.cid.get() == cid);
                Ok(at.map(|at| self.early.remove(at)))
            },
        )
    }

    /// The completion of command `cid`, if it is there.
    pub fn check(&mut self, cid: u16) -> Result<Option<Completion>> {
        self.gather()?;
        let at = self.early.iter().position(|early| early.cid.get() == cid);
        Ok(at.map(|at| self.early.remove(at)))
    }

    /// Whether the completion of command `cid` is there. It stays for [`Self::wait`].
    pub fn peek(&mut self, cid: u16) -> Result<bool> {
        self.gather()?;
        Ok(self.early.iter().any(|early| early.cid.get() == cid))
    }

    /// Waits for any completion.
    pub fn wait_any(&mut self, timeout: Duration) -> Result<Completion> {
        let id = self.id();
        poll_until(
            timeout,
            || format!("completion on queue {id}"),
            || {
                self.gather()?;
                Ok(if self.early.is_empty() { None } else { Some(self.early.remove(0)) })
            },
        )
    }

    fn gather(&mut self) -> Result<()> {
        let mut early = std::mem::take(&mut self.early);
        let polled = self.poll(usize::MAX, |completion| early.push(*completion));
        self.early = early;
        polled.map(drop)
    }

    /// Sends one command and waits for its completion, whatever its status.
    pub fn execute(&mut self, command: Command, timeout: Duration) -> Result<Completion> {
        let cid = self.submit(command)?;
        self.wait(cid, timeout)
    }

    /// Sends one command and waits for its success.
    pub fn execute_ok(&mut self, command: Command, timeout: Duration) -> Result<Completion> {
        succeed(command, self.execute(command, timeout)?)
    }
}

/// A completion with an error status as an [`Error`].
pub fn succeed(command: Command, completion: Completion) -> Result<Completion> {
    let status = completion.status();
    if status.is_success() {
        return Ok(completion);
    }
    Err(Error::Status { command: Box::new(command), completion, status })
}
