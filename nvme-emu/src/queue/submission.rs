//! [`SubmissionQueue`]: the controller's side of one.

use nvme_spec::command::Command;
use vfio_user_server::{Access, DmaFault, DmaTable};
use zerocopy::IntoBytes;

use super::ring::{Backing, Ring};
use super::{InvalidDoorbell, Shadow};
use crate::doorbells::Doorbell;
use crate::latch::Token;

/// What a submission queue is, apart from where it lies in this process: enough to go on with it elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SqState {
    pub(crate) id: u16,
    iova: u64,
    entries: u32,
    pub(crate) cq: u16,
    head: u32,
    tail: u32,
    rejected: Option<u32>,
    shadowed: bool,
}

/// Why nothing is fetched from a queue in which commands wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing keeps them.
    No,
    /// Its completion queue has no room.
    NoRoom,
    /// There is one command, the first of a fused operation.
    Half,
}

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
    /// Turns that found nothing, in a row.
    pub(crate) quiet: u32,
    /// Whether what waits in it can be fetched.
    pub(crate) rest: Rest,
    /// When its next fused operation may start, in nanoseconds of the monotonic clock.
    pub(crate) next_pair: u64,
    /// Set while the queue is being deleted: nothing more is fetched.
    pub(crate) deleting: Option<Token>,
    /// Nothing is fetched because the queue goes to another worker.
    pub(crate) leaving: bool,
}

impl SubmissionQueue {
    pub(crate) fn new(id: u16, iova: u64, entries: u32, cq: u16, doorbell: Doorbell) -> Self {
        doorbell.store(0);
        let state = SqState { id, iova, entries, cq, head: 0, tail: 0, rejected: None, shadowed: false };
        Self::restore(state, doorbell)
    }

    /// Goes on with a queue. It is not mapped yet.
    pub(crate) fn restore(state: SqState, doorbell: Doorbell) -> Self {
        let SqState { id, iova, entries, cq, head, tail, rejected, shadowed: _ } = state;
        Self {
            id,
            ring: Ring::new(iova, entries, Command::BYTES, Access::Read),
            cq,
            head,
            tail,
            doorbell,
            shadow: None,
            rejected,
            in_flight: 0,
            quiet: 0,
            rest: Rest::No,
            next_pair: 0,
            deleting: None,
            leaving: false,
        }
    }

    /// What [`Self::restore`] takes.
    pub(crate) fn state(&self) -> SqState {
        SqState {
            id: self.id,
            iova: self.ring.iova,
            entries: self.ring.entries,
            cq: self.cq,
            head: self.head,
            tail: self.tail,
            rejected: self.rejected,
            shadowed: self.shadow.is_some(),
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

    /// The same for a queue that came from another worker: if that one used the buffer already, the guest may have
    /// stored into it since.
    pub(crate) fn adopt_shadow(&mut self, mut shadow: Shadow, from: SqState, table: &DmaTable) {
        if from.shadowed {
            shadow.map(table);
            self.shadow = Some(shadow);
        } else {
            self.set_shadow(shadow, table);
        }
    }

    /// Whether commands may be fetched.
    #[inline]
    pub(crate) fn is_served(&self) -> bool {
        self.deleting.is_none() && !self.leaving && self.ring.is_mapped()
    }

    /// Whether commands wait, as far as it is known.
    pub(crate) fn has_waiting(&self) -> bool {
        self.head != self.tail
    }

    /// How many commands wait, as far as it is known.
    pub(crate) fn waiting(&self) -> u32 {
        self.ring.distance(self.head, self.tail)
    }

    /// Whether nothing waits and the guest rang nothing since: most looks end here.
    #[inline(always)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.head == self.tail && self.shadow.is_none() && self.doorbell.load() & 0xFFFF == self.tail
    }

    /// Has the place of the next command on its way: it comes together with the doorbell then, and not after it.
    #[inline(always)]
    pub(crate) fn prefetch_next(&self) {
        if let Backing::Contiguous(base) = self.ring.backing {
            block::prefetch::to_read(
                base.as_ptr().wrapping_add(self.head as usize * Command::BYTES),
                Command::BYTES,
            );
        }
    }

    /// Looks at the doorbell. Returns how many commands wait.
    #[inline]
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

    /// Nobody will look at the doorbell for a while: asks the guest to ring. Whether there is something to do first.
    pub(crate) fn arm(&self) -> bool {
        // A value that was refused does not change by itself, and bits 31:16 are reserved.
        let seen = self.rejected.unwrap_or(self.tail);
        match &self.shadow {
            Some(shadow) => {
                shadow.ask(seen).is_some_and(|value| value != seen && value & 0xFFFF != self.tail)
            }
            None => {
                let value = self.doorbell.load();
                value != seen && value & 0xFFFF != self.tail
            }
        }
    }

    /// Copies the next commands out of guest memory into `batch`, in order, without taking them; these bytes are never
    /// looked at again once they are [taken](Self::take). The caller has seen by [`Self::poll_tail`] that there are so
    /// many.
    pub(crate) fn copy(&self, table: &DmaTable, batch: &mut [Command]) -> Result<(), DmaFault> {
        let mut at = self.head;
        for command in batch {
            let offset = at as usize * Command::BYTES;
            match self.ring.backing {
                Backing::Contiguous(base) => {
                    let mut words = [0u64; 8];
                    // SAFETY: `at < entries`, and `map` resolved `entries * 64` bytes at `base`, page aligned,
                    // in the table that the worker holds. The guest may write meanwhile: volatile, no reference.
                    unsafe {
                        let entry = base.as_ptr().add(offset).cast::<u64>();
                        for (i, word) in words.iter_mut().enumerate() {
                            *word = entry.add(i).read_volatile();
                        }
                    }
                    *command = zerocopy::transmute!(words);
                }
                Backing::Scattered => {
                    table.read(self.ring.iova.wrapping_add(offset as u64), command.as_mut_bytes())?;
                }
                Backing::Gone => return Err(DmaFault::Unmapped { iova: self.ring.iova }),
            }
            at = self.ring.next(at);
        }
        Ok(())
    }

    /// Takes the command at the head.
    #[inline]
    pub(crate) fn take(&mut self) {
        self.head = self.ring.next(self.head);
    }

    /// Puts the command back that was taken last.
    pub(crate) fn put_back(&mut self) {
        self.head = self.head.checked_sub(1).unwrap_or(self.ring.entries - 1);
    }

    /// SQHD for completions.
    #[inline]
    pub(crate) fn head(&self) -> u16 {
        self.head as u16
    }
}
