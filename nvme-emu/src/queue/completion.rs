//! [`CompletionQueue`]: the controller's side of one. Completions of a turn are gathered and written as a run.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nvme_spec::command::Completion;
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaFault, DmaTable, Hint};
use zerocopy::little_endian::U16;

use super::ring::{Backing, Ring};
use super::signal::{Look, Signal};
use super::{Coalescing, InvalidDoorbell, Shadow, Verdict};
use crate::doorbells::Doorbell;

/// What a completion queue is, apart from where it lies in this process: enough to go on with it elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct CqState {
    pub(crate) id: u16,
    iova: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: bool,
    rejected: Option<u32>,
    shadowed: bool,
    vector: Option<u16>,
    run: Vec<Completion>,
}

impl CqState {
    /// Whether it read its head from a shadow buffer.
    pub(crate) fn is_shadowed(&self) -> bool {
        self.shadowed
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
    /// Entries were written since [`Self::judge`] or [`Self::take_posted`].
    posted: u32,
    signal: Signal,
    /// It holds the INTx pin up.
    pub(crate) asserts_intx: bool,
    /// It is on its worker's list of queues that have to be looked at when the turn ends.
    pub(crate) listed: bool,
    /// Completions that are not yet written: those of this turn; and those that found the ring's memory gone or bus
    /// mastering off, which wait until that is over. They count as used, and nothing is fetched meanwhile, so they
    /// find room.
    run: Vec<Completion>,
    held: bool,
}

impl CompletionQueue {
    pub(crate) fn new(id: u16, iova: u64, entries: u32, vector: Option<u16>, doorbell: Doorbell) -> Self {
        doorbell.store(0);
        Self::restore(
            CqState {
                id,
                iova,
                entries,
                tail: 0,
                head: 0,
                phase: true,
                rejected: None,
                shadowed: false,
                vector,
                run: Vec::new(),
            },
            doorbell,
        )
    }

    /// Goes on with a queue that has no command in flight. It is not mapped yet.
    pub(crate) fn restore(state: CqState, doorbell: Doorbell) -> Self {
        let CqState { id, iova, entries, tail, head, phase, rejected, shadowed: _, vector, run } = state;
        Self {
            id,
            ring: Ring::new(iova, entries, Completion::BYTES, Access::Write),
            tail,
            head,
            phase,
            doorbell,
            shadow: None,
            rejected,
            reserved: 0,
            vector,
            // The former worker may have held a signal back.
            posted: if head == tail { 0 } else { 1 },
            signal: Signal::default(),
            asserts_intx: false,
            listed: false,
            run,
            held: false,
        }
    }

    /// What [`Self::restore`] takes.
    pub(crate) fn state(&mut self) -> CqState {
        CqState {
            id: self.id,
            iova: self.ring.iova,
            entries: self.ring.entries,
            tail: self.tail,
            head: self.head,
            phase: self.phase,
            rejected: self.rejected,
            shadowed: self.shadow.is_some(),
            vector: self.vector,
            run: std::mem::take(&mut self.run),
        }
    }

    /// Resolves ring and shadow words anew, and posts what waited for them.
    pub(crate) fn map(&mut self, table: &DmaTable) -> Result<(), DmaFault> {
        if let Some(shadow) = &mut self.shadow {
            shadow.map(table);
        }
        self.ring.map(table)?;
        self.flush(table);
        Ok(())
    }

    /// Posts nothing while `held`: bus mastering is off.
    pub(crate) fn set_held(&mut self, held: bool, table: &DmaTable) {
        self.held = held;
        self.flush(table);
    }

    /// Whether completions reach the guest now.
    #[inline]
    pub(crate) fn can_post(&self) -> bool {
        self.ring.is_mapped() && !self.held
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

    /// The same for a queue that came from another worker; `shadowed`: that one used the buffer already.
    pub(crate) fn adopt_shadow(&mut self, mut shadow: Shadow, shadowed: bool, table: &DmaTable) {
        if shadowed {
            shadow.map(table);
            self.shadow = Some(shadow);
        } else {
            self.set_shadow(shadow, table);
        }
    }

    /// How many more commands may be fetched so that each finds a slot. Reads the head doorbell only when the
    /// last known head leaves fewer than `wanted`.
    #[inline]
    pub(crate) fn room(&mut self, wanted: u32) -> Result<u32, InvalidDoorbell> {
        let room = self.room_by_known_head();
        if room >= wanted {
            return Ok(room);
        }
        self.poll_head()?;
        Ok(self.room_by_known_head())
    }

    /// Entries that can be there at once.
    pub(crate) fn capacity(&self) -> u32 {
        self.ring.entries - 1
    }

    fn room_by_known_head(&self) -> u32 {
        (self.ring.entries - 1).saturating_sub(self.used() + self.reserved + self.run.len() as u32)
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
        Ok(())
    }

    /// Commands wait for room, and nobody will look at the doorbell for a while: asks the guest to ring. Whether there is
    /// room already.
    pub(crate) fn arm(&self) -> bool {
        // As for submission queues.
        let seen = self.rejected.unwrap_or(self.head);
        match &self.shadow {
            Some(shadow) => {
                shadow.ask(seen).is_some_and(|value| value != seen && value & 0xFFFF != self.head)
            }
            None => {
                let value = self.doorbell.load();
                value != seen && value & 0xFFFF != self.head
            }
        }
    }

    /// Promises a slot to a command that is about to be fetched.
    #[inline]
    pub(crate) fn reserve(&mut self) {
        self.reserved += 1;
    }

    /// Adds a completion to the run, for which there was [room](Self::room) when its command was fetched.
    #[inline]
    pub(crate) fn post(&mut self, completion: Completion) {
        self.run.push(completion);
    }

    /// Adds a completion that has a reserved slot.
    #[inline]
    pub(crate) fn post_reserved(&mut self, completion: Completion) {
        self.reserved = self.reserved.saturating_sub(1);
        self.run.push(completion);
    }

    /// Gives a slot back without a completion (a command that will never be answered).
    pub(crate) fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Writes the run, if completions can be posted.
    #[inline]
    pub(crate) fn flush(&mut self, table: &DmaTable) {
        if self.run.is_empty() || !self.can_post() {
            return;
        }
        self.posted = self.posted.saturating_add(self.run.len() as u32);
        match self.ring.backing {
            Backing::Contiguous(base) => {
                let (mut tail, mut phase) = (self.tail, self.phase);
                for completion in &self.run {
                    // SAFETY: `tail < entries`, and `map` resolved `entries * 16` writable bytes at `base`, page aligned,
                    // in the table that the worker holds.
                    unsafe { write(base.add(tail as usize * Completion::BYTES), *completion, phase) };
                    tail = self.ring.next(tail);
                    phase ^= tail == 0;
                }
                (self.tail, self.phase) = (tail, phase);
                self.run.clear();
            }
            Backing::Scattered => self.flush_scattered(table),
            Backing::Gone => {}
        }
    }

    #[cold]
    fn flush_scattered(&mut self, table: &DmaTable) {
        for completion in self.run.drain(..) {
            // Regions and entries are aligned: an entry lies in one of them.
            let iova = self.ring.iova.wrapping_add(u64::from(self.tail) * Completion::BYTES as u64);
            let mut entry = None;
            let each = |ptr, len| entry = (len == Completion::BYTES).then_some(ptr);
            let resolved = table.resolve(iova, Completion::BYTES, Access::Write, &mut Hint::default(), each);
            if let (Ok(_), Some(entry)) = (resolved, entry) {
                // SAFETY: 16 writable bytes, aligned as regions and entries are, in the table that the worker holds.
                unsafe { write(entry, completion, self.phase) };
            }
            self.tail = self.ring.next(self.tail);
            self.phase ^= self.tail == 0;
        }
    }

    /// Whether entries were written since the last call: for queues whose interrupt is never held back.
    pub(crate) fn take_posted(&mut self) -> bool {
        std::mem::take(&mut self.posted) > 0
    }

    /// At the end of a turn: what to do about the interrupt, and whether the head doorbell is to be complained about. A
    /// bad one says nothing: the guest is told of its entries all the same.
    pub(crate) fn judge(
        &mut self,
        coalescing: Coalescing,
        now: impl FnMut() -> Instant,
    ) -> (Verdict, Result<(), InvalidDoorbell>) {
        let polled = self.poll_head();
        let look = Look { posted: std::mem::take(&mut self.posted), used: self.used(), head: self.head };
        (self.signal.judge(look, coalescing, now), polled)
    }
}

/// Writes an entry. The phase is in its last word, which is released last, whole.
///
/// # Safety
/// `entry` points to 16 writable bytes, aligned to 16.
#[inline]
unsafe fn write(entry: NonNull<u8>, completion: Completion, phase: bool) {
    let mut words: [u64; 2] = zerocopy::transmute!(completion);
    // P is the lowest bit of the last 16, which `completion` leaves 0 (Base 3.3.3.2).
    words[1] |= (u64::from(phase) << 48).to_le();
    let entry = entry.cast::<u64>();
    // SAFETY: by this function's contract. The guest reads meanwhile: a volatile and an atomic store, no reference to plain
    // data.
    unsafe {
        entry.write_volatile(words[0]);
        AtomicU64::from_ptr(entry.add(1).as_ptr()).store(words[1], Ordering::Release);
    }
}

/// A completion entry, phase not yet set.
#[inline]
pub(crate) fn completion(sqid: u16, sqhd: u16, cid: u16, status: Status, result: u32) -> Completion {
    Completion {
        dw0: result.into(),
        dw1: 0.into(),
        sqhd: sqhd.into(),
        sqid: sqid.into(),
        cid: cid.into(),
        // P is bit 0, the status field is above it (Base 3.3.3.2).
        status: zerocopy::transmute!(U16::new(status.into_bits() << 1)),
    }
}
