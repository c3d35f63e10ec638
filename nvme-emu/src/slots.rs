//! Preallocated places for commands in flight, and which of them have been woken.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use block::reactor::Unparker;
use block::{Completed, Error, IoFuture, Segment};
use nvme_spec::command::Command;
use nvme_spec::status::Status;
use vfio_user_server::RegionMask;

use crate::latch::Token;
use crate::memory::{SlotGuard, Snapshot};

/// The most commands one worker has in flight.
pub(crate) const MAX_SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 14;

/// Segments whose storage a free slot keeps: 1 MiB in pages of 4 KiB, with an offset.
const KEPT_SEGMENTS: usize = 512;

/// What a slot waits for.
pub(crate) enum Work {
    /// One `Io`.
    Io(IoFuture),
    /// A command of several `Io`s.
    Many(Pin<Box<dyn Future<Output = Result<(), Error>>>>),
}

/// How a slot's work ended.
pub(crate) enum Ended {
    Io(Completed),
    Many(Result<(), Error>),
}

/// What a command in flight is, as far as its completion needs it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tag {
    pub(crate) sq: u16,
    pub(crate) cid: u16,
    /// The second command of a fused operation, which ends with the first.
    pub(crate) second: Option<u16>,
    /// Guest memory that its data lies in.
    pub(crate) regions: RegionMask,
    /// The DMA table's generation that it was resolved in.
    pub(crate) generation: u64,
    /// For statistics: bytes read from or written to the namespace.
    pub(crate) read: u32,
    pub(crate) written: u32,
    pub(crate) nsid: u32,
}

pub(crate) struct Slot {
    pub(crate) tag: Tag,
    pub(crate) storage: Vec<Segment>,
    pub(crate) guard: Option<SlotGuard>,
    /// Released when the command has ended.
    pub(crate) awaited: Option<Token>,
    /// Counts the commands it had, for the tags of their `Io`s.
    generation: u32,
    state: State,
    waker: Waker,
}

enum State {
    Free,
    /// Taken by a command that is being started.
    Starting,
    /// Taken by a command that waits for its limits.
    Throttled(Command),
    Working(Work),
    /// Cancelled; ends with the status once nothing holds the guard any more.
    Draining(Status),
}

impl Slot {
    /// Whether neither a device nor the kernel holds anything of its command.
    fn is_unguarded(&self) -> bool {
        self.guard.as_ref().is_none_or(SlotGuard::is_free)
    }
}

/// The slots of one worker. Slots never move once made, so their futures are pinned.
pub(crate) struct Slots {
    chunks: Vec<Pin<Box<[Slot]>>>,
    free: Vec<u32>,
    ready: Arc<ReadySet>,
    working: usize,
    throttled: usize,
    draining: Vec<u32>,
    owner: u32,
    next_tag: u64,
    /// The newest DMA table: a slot that is free holds on to no other.
    current: Rc<Snapshot>,
}

const CHUNK: usize = 64;

impl Slots {
    pub(crate) fn new(unparker: Unparker, current: Rc<Snapshot>) -> Self {
        static OWNERS: AtomicU32 = AtomicU32::new(1);
        let ready = Arc::new(ReadySet {
            words: (0..MAX_SLOTS / 64).map(|_| AtomicU64::new(0)).collect(),
            summary: (0..MAX_SLOTS / 64 / 64).map(|_| AtomicU64::new(0)).collect(),
            unparker,
        });
        let owner = OWNERS.fetch_add(1, Ordering::Relaxed);
        Self {
            chunks: Vec::new(),
            free: Vec::new(),
            ready,
            working: 0,
            throttled: 0,
            draining: Vec::new(),
            owner,
            next_tag: 0,
            current,
        }
    }

    /// A name for this worker among all that have `Io`s in flight.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    /// The tag of the `Io`s of the command that is started next. The caller asked [`Self::has_room`].
    #[inline]
    pub(crate) fn next_tag(&self) -> u64 {
        self.next_tag
    }

    /// The free slot that is taken next has changed.
    fn find_next(&mut self) {
        if let Some(index) = self.free.last().copied() {
            self.next_tag = self.io_tag(index);
        }
    }

    /// The tag of the `Io`s of a slot's command.
    fn io_tag(&mut self, index: u32) -> u64 {
        // The highest bit is that of `own_tag`.
        let generation = self.get(index).generation & (u32::MAX >> 1 >> SLOT_BITS);
        u64::from(self.owner) << 32 | u64::from(generation << SLOT_BITS | index)
    }

    /// A tag for `Io`s that belong to no slot.
    pub(crate) fn own_tag(&self) -> u64 {
        u64::from(self.owner) << 32 | u64::from(u32::MAX)
    }

    /// The slot whose command has this tag, if it is not over.
    pub(crate) fn by_tag(&mut self, tag: u64) -> Option<u32> {
        let index = tag as u32 & (MAX_SLOTS as u32 - 1);
        (self.indices().contains(&index) && self.is_working(index) && self.io_tag(index) == tag)
            .then_some(index)
    }

    /// There is a new DMA table: free slots let go of the old one, the others when they become free.
    pub(crate) fn set_current(&mut self, current: &Rc<Snapshot>) {
        self.current = current.clone();
        for index in self.indices() {
            let slot = self.get(index);
            if matches!(slot.state, State::Free) {
                slot.guard = None;
            }
        }
    }

    /// Whether a command can be taken; makes more slots if need be, up to [`MAX_SLOTS`].
    #[inline]
    pub(crate) fn has_room(&mut self) -> bool {
        !self.free.is_empty() || self.grow()
    }

    #[cold]
    fn grow(&mut self) -> bool {
        if self.chunks.len() * CHUNK < MAX_SLOTS {
            let first = (self.chunks.len() * CHUNK) as u32;
            let slot = |index| Slot {
                tag: Tag::default(),
                storage: Vec::new(),
                guard: None,
                awaited: None,
                generation: 0,
                state: State::Free,
                waker: Waker::from(Arc::new(SlotWaker { ready: self.ready.clone(), index })),
            };
            let chunk: Box<[Slot]> = (first..first + CHUNK as u32).map(slot).collect();
            self.chunks.push(chunk.into());
            self.free.extend((first..first + CHUNK as u32).rev());
            self.find_next();
        }
        !self.free.is_empty()
    }

    /// Takes a free slot. The caller asked [`Self::has_room`].
    pub(crate) fn take(&mut self) -> Option<u32> {
        let index = self.free.pop()?;
        self.get(index).state = State::Starting;
        self.find_next();
        Some(index)
    }

    /// Gives a slot back whose command is complete.
    pub(crate) fn release(&mut self, index: u32) {
        match self.get(index).state {
            State::Working(_) => self.working -= 1,
            State::Free => return,
            State::Throttled(_) => self.throttled -= 1,
            State::Starting | State::Draining(_) => {}
        }
        let current = self.current.clone();
        let slot = self.get(index);
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slot.awaited = None;
        if slot.storage.capacity() > KEPT_SEGMENTS {
            slot.storage = Vec::new();
        }
        if slot.guard.as_ref().is_some_and(|guard| !guard.is_of(&current)) {
            slot.guard = None;
        }
        self.free.push(index);
        self.find_next();
    }

    pub(crate) fn get(&mut self, index: u32) -> &mut Slot {
        let chunk = self.chunks[index as usize / CHUNK].as_mut();
        // SAFETY: only `poll` needs the pin, for the future in `state`. That field is private and its future
        // is only ever replaced in place or dropped, and nobody moves a `Slot` out of its chunk: `Slot` has no
        // constructor outside of this module that `mem::swap` could be fed with.
        let slots = unsafe { chunk.get_unchecked_mut() };
        &mut slots[index as usize % CHUNK]
    }

    /// Puts work into a slot; poll it once right away.
    pub(crate) fn set_work(&mut self, index: u32, work: Work) {
        self.get(index).state = State::Working(work);
        self.working += 1;
    }

    /// Polls a slot's work. `None`: not yet, or nothing to do.
    pub(crate) fn poll(&mut self, index: u32) -> Option<Ended> {
        let slot = self.get(index);
        let Slot { state: State::Working(work), waker, .. } = slot else { return None };
        let mut context = Context::from_waker(waker);
        let ended = match work {
            // SAFETY: the future stays where it is, in a slot that never moves, until it is dropped in place.
            Work::Io(future) => match unsafe { Pin::new_unchecked(future) }.poll(&mut context) {
                Poll::Ready(completed) => Ended::Io(completed),
                Poll::Pending => return None,
            },
            Work::Many(future) => match future.as_mut().poll(&mut context) {
                Poll::Ready(result) => Ended::Many(result),
                Poll::Pending => return None,
            },
        };
        slot.state = State::Starting;
        self.working -= 1;
        Some(ended)
    }

    /// The result of work that has ended; the slot keeps its storage.
    pub(crate) fn take_result(&mut self, index: u32, ended: Ended) -> Result<(), Error> {
        match ended {
            Ended::Io(completed) => {
                let (result, storage) = completed.into_parts();
                self.get(index).storage = storage;
                result
            }
            Ended::Many(result) => result,
        }
    }

    /// Cancels a slot's work: it will end with `status` once nothing can touch its memory any more.
    pub(crate) fn cancel(&mut self, index: u32, status: Status) {
        let slot = self.get(index);
        let (working, throttled) = match slot.state {
            State::Working(_) => (1, 0),
            State::Throttled(_) => (0, 1),
            _ => return,
        };
        slot.state = State::Draining(status);
        self.working -= working;
        self.throttled -= throttled;
        self.draining.push(index);
    }

    /// Moves cancelled slots that are free of their memory now into `ended`, with their statuses. Release them.
    pub(crate) fn take_drained(&mut self, ended: &mut Vec<(u32, Status)>) {
        let mut at = 0;
        while let Some(index) = self.draining.get(at).copied() {
            let slot = self.get(index);
            match slot.state {
                State::Draining(status) if slot.is_unguarded() => {
                    ended.push((index, status));
                    self.draining.swap_remove(at);
                }
                _ => at += 1,
            }
        }
    }

    /// A command waits for its limits. Returns its slot and which of the slot's commands it is, if there is a slot.
    pub(crate) fn throttle(&mut self, tag: Tag, command: Command) -> Option<(u32, u32)> {
        let index = self.take()?;
        self.throttled += 1;
        let slot = self.get(index);
        slot.tag = tag;
        slot.guard = None; // of the command before, perhaps on an old DMA table
        slot.state = State::Throttled(command);
        Some((index, slot.generation))
    }

    /// The command that waits in a slot, if it is still the one of that generation.
    pub(crate) fn throttled(&mut self, index: u32, generation: u32) -> Option<Command> {
        let slot = self.get(index);
        match slot.state {
            State::Throttled(command) if slot.generation == generation => Some(command),
            _ => None,
        }
    }

    /// The command that waits in a slot is being started: frees the slot. Returns the command's submission queue.
    pub(crate) fn unthrottle(&mut self, index: u32) -> u16 {
        let sq = self.get(index).tag.sq;
        self.release(index);
        sq
    }

    /// Whether the slot has a command that is not complete.
    pub(crate) fn is_busy(&mut self, index: u32) -> bool {
        !matches!(self.get(index).state, State::Free)
    }

    /// Whether the slot has a command that can be cancelled: it waits for its work, or for its limits.
    pub(crate) fn is_waiting(&mut self, index: u32) -> bool {
        matches!(self.get(index).state, State::Working(_) | State::Throttled(_))
    }

    /// Whether the slot waits for its work.
    fn is_working(&mut self, index: u32) -> bool {
        matches!(self.get(index).state, State::Working(_))
    }

    /// Commands in flight, cancelled ones included.
    pub(crate) fn in_flight(&self) -> usize {
        self.working + self.throttled + self.draining.len()
    }

    /// All slots there are.
    pub(crate) fn indices(&self) -> std::ops::Range<u32> {
        0..(self.chunks.len() * CHUNK) as u32
    }

    /// Whether there are cancelled slots.
    pub(crate) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Whether any slot was woken since [`Self::take_woken`].
    #[inline]
    pub(crate) fn any_woken(&self) -> bool {
        self.ready.summary.iter().any(|summary| summary.load(Ordering::Relaxed) != 0)
    }

    /// Moves the slots that were woken since the last call into `woken`.
    pub(crate) fn take_woken(&self, woken: &mut Vec<u32>) {
        self.ready.take(woken);
    }
}

/// Which slots were woken: a bit each, and a bit for each word that has some.
struct ReadySet {
    words: Box<[AtomicU64]>,
    summary: Box<[AtomicU64]>,
    unparker: Unparker,
}

impl ReadySet {
    fn set(&self, index: u32) {
        let word = index as usize / 64;
        // Word before summary, the reverse of `take`: a bit is never left behind unseen.
        self.words[word].fetch_or(1 << (index % 64), Ordering::AcqRel);
        self.summary[word / 64].fetch_or(1 << (word % 64), Ordering::AcqRel);
        self.unparker.unpark();
    }

    fn take(&self, woken: &mut Vec<u32>) {
        for (i, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for word in bits(summary.swap(0, Ordering::AcqRel)) {
                let word = i as u32 * 64 + word;
                let set = self.words[word as usize].swap(0, Ordering::AcqRel);
                woken.extend(bits(set).map(|bit| word * 64 + bit));
            }
        }
    }
}

fn bits(mut set: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        (set != 0).then(|| {
            let bit = set.trailing_zeros();
            set &= set - 1;
            bit
        })
    })
}

struct SlotWaker {
    ready: Arc<ReadySet>,
    index: u32,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.ready.set(self.index);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.set(self.index);
    }
}
