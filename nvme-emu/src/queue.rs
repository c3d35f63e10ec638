//! Submission and completion queues in guest memory (Base 3.3): rings, doorbells, phase.
//!
//! Ring memory is resolved once and again whenever the DMA table changes. While the guest's memory map has no
//! place for it the queue rests; it goes on when the memory is back.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nvme_spec::command::{Command, Completion, CompletionStatus};
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaFault, DmaTable, Hint};
use zerocopy::{FromZeros, IntoBytes};

use crate::doorbells::Doorbell;
use crate::latch::Token;

/// Where a ring lies in this process.
enum Backing {
    /// In one piece.
    Contiguous(NonNull<u8>),
    /// In several mappings: each entry is looked up.
    Scattered,
    /// Nowhere at the moment.
    Gone,
}

/// The memory of a queue.
pub(crate) struct Ring {
    iova: u64,
    entries: u32,
    entry_bytes: usize,
    access: Access,
    backing: Backing,
}

impl Ring {
    /// A ring of `entries` entries at `iova`; not mapped yet.
    pub(crate) fn new(iova: u64, entries: u32, entry_bytes: usize, access: Access) -> Self {
        Self { iova, entries, entry_bytes, access, backing: Backing::Gone }
    }

    /// Resolves the ring in `table`. On a fault it rests.
    pub(crate) fn map(&mut self, table: &DmaTable) -> Result<(), DmaFault> {
        let mut first: Option<(NonNull<u8>, usize)> = None;
        let mut scattered = false;
        let len = self.entries as usize * self.entry_bytes;
        self.backing = Backing::Gone;
        table.resolve(self.iova, len, self.access, &mut Hint::default(), |ptr, len| match &mut first {
            None => first = Some((ptr, len)),
            Some((start, have)) if start.as_ptr().addr() + *have == ptr.as_ptr().addr() => *have += len,
            Some(_) => scattered = true,
        })?;
        self.backing = match first {
            Some((ptr, _)) if !scattered => Backing::Contiguous(ptr),
            _ => Backing::Scattered,
        };
        Ok(())
    }

    pub(crate) fn is_mapped(&self) -> bool {
        !matches!(self.backing, Backing::Gone)
    }

    pub(crate) fn unmap(&mut self) {
        self.backing = Backing::Gone;
    }

    fn next(&self, index: u32) -> u32 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { to + self.entries - from }
    }
}

/// A doorbell value's source: the doorbell register, or the shadow buffer that replaces it (Base 5.11).
#[derive(Clone, Copy)]
pub(crate) struct Shadow {
    /// Guest addresses of the queue's word in the Shadow Doorbell and EventIdx buffers.
    pub(crate) doorbell_iova: u64,
    pub(crate) event_iova: u64,
    doorbell: Option<NonNull<AtomicU32>>,
    event: Option<NonNull<AtomicU32>>,
}

impl Shadow {
    pub(crate) fn new(doorbell_iova: u64, event_iova: u64) -> Self {
        Self { doorbell_iova, event_iova, doorbell: None, event: None }
    }

    fn map(&mut self, table: &DmaTable) {
        let word = |iova: u64, access| {
            let mut word = None;
            let resolved = table.resolve(iova, 4, access, &mut Hint::default(), |ptr, len| {
                word = (len == 4 && ptr.as_ptr().addr().is_multiple_of(4)).then(|| ptr.cast::<AtomicU32>());
            });
            resolved.ok().and(word)
        };
        self.doorbell = word(self.doorbell_iova, Access::Read);
        self.event = word(self.event_iova, Access::Write);
    }

    /// Takes the buffers into use, with `value` as what the guest wrote last.
    fn start(&mut self, value: u32, table: &DmaTable) {
        self.map(table);
        let _ = table.write(self.doorbell_iova, &value.to_le_bytes());
        let _ = table.write(self.event_iova, &value.to_le_bytes());
    }

    /// The guest's value, or nothing while the buffer is not mapped.
    fn load(&self) -> Option<u32> {
        // SAFETY: resolved from the current table, which the worker holds; re-resolved before a newer one
        // replaces it. Aligned by the check in `map`; shared with the guest, so only accessed atomically.
        self.doorbell.map(|word| unsafe { word.as_ref() }.load(Ordering::Acquire))
    }

    /// Asks the guest to ring the real doorbell when it passes `value`, and looks again afterwards: a store
    /// by the guest between our last load and this one must not be missed.
    fn ask(&self, value: u32) -> Option<u32> {
        // SAFETY: as in `load`.
        unsafe { self.event?.as_ref() }.store(value, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.load()
    }
}

/// A doorbell rang with a value that is no index of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidDoorbell;

/// A submission queue.
pub(crate) struct SubmissionQueue {
    pub(crate) id: u16,
    pub(crate) ring: Ring,
    pub(crate) cq: u16,
    head: u32,
    tail: u32,
    doorbell: Doorbell,
    shadow: Option<Shadow>,
    rejected: Option<u32>,
    /// Commands fetched and not completed.
    pub(crate) in_flight: u32,
    /// Set while the queue is being deleted: nothing more is fetched.
    pub(crate) deleting: Option<Token>,
}

impl SubmissionQueue {
    pub(crate) fn new(id: u16, iova: u64, entries: u32, cq: u16, doorbell: Doorbell) -> Self {
        doorbell.store(0);
        Self {
            id,
            ring: Ring::new(iova, entries, Command::BYTES, Access::Read),
            cq,
            head: 0,
            tail: 0,
            doorbell,
            shadow: None,
            rejected: None,
            in_flight: 0,
            deleting: None,
        }
    }

    /// Resolves ring and shadow words anew.
    pub(crate) fn map(&mut self, table: &DmaTable) -> Result<(), DmaFault> {
        if let Some(shadow) = &mut self.shadow {
            shadow.map(table);
        }
        self.ring.map(table)
    }

    /// Reads the tail from a shadow buffer from now on. The buffer starts with what the guest rang last.
    pub(crate) fn set_shadow(&mut self, mut shadow: Shadow, table: &DmaTable) {
        // A guest that uses shadows leaves the doorbell as it is.
        let value = match &self.shadow {
            Some(former) => former.load().unwrap_or(self.tail),
            None => self.doorbell.load(),
        };
        shadow.start(value, table);
        self.shadow = Some(shadow);
    }

    /// Looks at the doorbell. Returns how many commands wait.
    pub(crate) fn poll_tail(&mut self) -> Result<u32, InvalidDoorbell> {
        let value = match &self.shadow {
            None => self.doorbell.load(),
            Some(shadow) => match shadow.load() {
                Some(value) => value,
                None => return Ok(self.ring.distance(self.head, self.tail)),
            },
        };
        if value != self.tail {
            self.take_tail(value)?;
            if let Some(value) = self.shadow.as_ref().and_then(|shadow| shadow.ask(value)) {
                self.take_tail(value)?;
            }
        }
        Ok(self.ring.distance(self.head, self.tail))
    }

    fn take_tail(&mut self, value: u32) -> Result<(), InvalidDoorbell> {
        // Bits 31:16 of a doorbell are reserved (PCIe 3.1.2.1).
        let tail = value & 0xFFFF;
        if tail >= self.ring.entries {
            // Said once for each bad value, since the doorbell keeps it.
            let news = self.rejected.replace(value) != Some(value);
            return if news { Err(InvalidDoorbell) } else { Ok(()) };
        }
        self.rejected = None;
        self.tail = tail;
        Ok(())
    }

    /// Copies the next command out of guest memory; these bytes are never looked at again. The caller has
    /// seen by [`Self::poll_tail`] that there is one. On a fault nothing is taken.
    pub(crate) fn fetch(&mut self, table: &DmaTable) -> Result<Command, DmaFault> {
        let offset = self.head as usize * Command::BYTES;
        let mut command = Command::new_zeroed();
        match self.ring.backing {
            Backing::Contiguous(base) => {
                let mut words = [0u64; 8];
                // SAFETY: `head < entries`, and `map` resolved `entries * 64` bytes at `base`, page aligned,
                // in the table that the worker holds. The guest may write meanwhile: volatile, no reference.
                unsafe {
                    let entry = base.as_ptr().add(offset).cast::<u64>();
                    for (i, word) in words.iter_mut().enumerate() {
                        *word = entry.add(i).read_volatile();
                    }
                }
                command.as_mut_bytes().copy_from_slice(words.as_bytes());
            }
            Backing::Scattered => table.read(self.ring.iova + offset as u64, command.as_mut_bytes())?,
            Backing::Gone => return Err(DmaFault::Unmapped { iova: self.ring.iova }),
        }
        self.head = self.ring.next(self.head);
        Ok(command)
    }

    /// SQHD for completions.
    pub(crate) fn head(&self) -> u16 {
        self.head as u16
    }
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    pub(crate) id: u16,
    pub(crate) ring: Ring,
    tail: u32,
    head: u32,
    phase: bool,
    doorbell: Doorbell,
    shadow: Option<Shadow>,
    rejected: Option<u32>,
    /// Slots promised to commands in flight.
    reserved: u32,
    /// The interrupt vector, if interrupts are enabled.
    pub(crate) vector: Option<u16>,
    /// Entries were posted since the last interrupt.
    pub(crate) dirty: bool,
    /// It holds the INTx pin up.
    pub(crate) asserts_intx: bool,
    /// Completions that found the ring's memory gone or bus mastering off: posted when they can be. They count
    /// as used, and nothing is fetched meanwhile, so they find room.
    parked: Vec<Completion>,
    held: bool,
}

impl CompletionQueue {
    pub(crate) fn new(id: u16, iova: u64, entries: u32, vector: Option<u16>, doorbell: Doorbell) -> Self {
        doorbell.store(0);
        Self {
            id,
            ring: Ring::new(iova, entries, Completion::BYTES, Access::Write),
            tail: 0,
            head: 0,
            phase: true,
            doorbell,
            shadow: None,
            rejected: None,
            reserved: 0,
            vector,
            dirty: false,
            asserts_intx: false,
            parked: Vec::new(),
            held: false,
        }
    }

    /// Resolves ring and shadow words anew, and posts what waited for them.
    pub(crate) fn map(&mut self, table: &DmaTable) -> Result<(), DmaFault> {
        if let Some(shadow) = &mut self.shadow {
            shadow.map(table);
        }
        self.ring.map(table)?;
        self.post_parked(table);
        Ok(())
    }

    /// Posts nothing while `held`: bus mastering is off.
    pub(crate) fn set_held(&mut self, held: bool, table: &DmaTable) {
        self.held = held;
        self.post_parked(table);
    }

    /// Whether completions reach the guest now.
    pub(crate) fn can_post(&self) -> bool {
        self.ring.is_mapped() && !self.held
    }

    fn post_parked(&mut self, table: &DmaTable) {
        if self.can_post() {
            for completion in std::mem::take(&mut self.parked) {
                self.write(completion, table);
            }
        }
    }

    /// Reads the head from a shadow buffer from now on. The buffer starts with what the guest rang last.
    pub(crate) fn set_shadow(&mut self, mut shadow: Shadow, table: &DmaTable) {
        let value = match &self.shadow {
            Some(former) => former.load().unwrap_or(self.head),
            None => self.doorbell.load(),
        };
        shadow.start(value, table);
        self.shadow = Some(shadow);
    }

    /// How many more commands may be fetched so that each finds a slot. Reads the head doorbell only when the
    /// last known head leaves fewer than `wanted`.
    pub(crate) fn room(&mut self, wanted: u32) -> Result<u32, InvalidDoorbell> {
        let room = self.room_by_known_head();
        if room >= wanted {
            return Ok(room);
        }
        self.poll_head()?;
        Ok(self.room_by_known_head())
    }

    fn room_by_known_head(&self) -> u32 {
        (self.ring.entries - 1).saturating_sub(self.used() + self.reserved + self.parked.len() as u32)
    }

    fn used(&self) -> u32 {
        self.ring.distance(self.head, self.tail)
    }

    /// Whether the guest has consumed all that was posted, as far as known.
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Looks at the head doorbell.
    pub(crate) fn poll_head(&mut self) -> Result<(), InvalidDoorbell> {
        let value = match &self.shadow {
            None => self.doorbell.load(),
            Some(shadow) => match shadow.load() {
                Some(value) => value,
                None => return Ok(()),
            },
        };
        let head = value & 0xFFFF;
        if head == self.head {
            return Ok(());
        }
        if head >= self.ring.entries || self.ring.distance(self.head, head) > self.used() {
            let news = self.rejected.replace(value) != Some(value);
            return if news { Err(InvalidDoorbell) } else { Ok(()) };
        }
        self.rejected = None;
        self.head = head;
        if let Some(shadow) = &self.shadow {
            shadow.ask(value);
        }
        Ok(())
    }

    /// Promises a slot to a command that is about to be fetched.
    pub(crate) fn reserve(&mut self) {
        self.reserved += 1;
    }

    /// Posts a completion into its reserved slot.
    pub(crate) fn post(&mut self, completion: Completion, table: &DmaTable) {
        self.reserved = self.reserved.saturating_sub(1);
        if self.can_post() {
            self.write(completion, table);
        } else {
            self.parked.push(completion);
        }
    }

    /// Gives a slot back without a completion (a command that will never be answered).
    pub(crate) fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    fn write(&mut self, mut completion: Completion, table: &DmaTable) {
        completion.status = completion.status.with_phase(self.phase);
        let bytes: [u8; Completion::BYTES] = zerocopy::transmute!(completion);
        let words: [u32; 4] = zerocopy::transmute!(bytes);
        let offset = self.tail as usize * Completion::BYTES;
        let entry = match self.ring.backing {
            // SAFETY: `tail < entries`, and `map` resolved `entries * 16` bytes at `base`.
            Backing::Contiguous(base) => Some(unsafe { base.add(offset) }),
            Backing::Scattered => {
                // Regions and entries are aligned: an entry lies in one of them.
                let (mut entry, iova) = (None, self.ring.iova + offset as u64);
                let each = |ptr, len| entry = (len == Completion::BYTES).then_some(ptr);
                let resolved =
                    table.resolve(iova, Completion::BYTES, Access::Write, &mut Hint::default(), each);
                resolved.ok().and(entry)
            }
            Backing::Gone => return,
        };
        if let Some(entry) = entry.filter(|entry| entry.as_ptr().addr().is_multiple_of(4)) {
            let entry = entry.cast::<u32>();
            // SAFETY: 16 writable bytes, aligned as just checked, in the table that the worker holds. The guest reads
            // meanwhile: volatile and atomic stores, no reference to plain data. The phase is in the last word, which
            // is released last, whole.
            unsafe {
                for (i, word) in words[..3].iter().enumerate() {
                    entry.add(i).write_volatile(*word);
                }
                AtomicU32::from_ptr(entry.add(3).as_ptr()).store(words[3], Ordering::Release);
            }
        }
        self.tail = self.ring.next(self.tail);
        if self.tail == 0 {
            self.phase = !self.phase;
        }
        self.dirty = true;
    }
}

/// A completion entry, phase not yet set.
pub(crate) fn completion(sqid: u16, sqhd: u16, cid: u16, status: Status, result: u32) -> Completion {
    Completion {
        dw0: result.into(),
        dw1: 0.into(),
        sqhd: sqhd.into(),
        sqid: sqid.into(),
        cid: cid.into(),
        status: CompletionStatus::new().with_status(status),
    }
}
