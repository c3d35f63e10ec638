//! [`OpalChannel`]: one reactor's way into a drive.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use block::reactor::Ticket;
use block::{Channel, Error, ErrorKind, Io, Op, Reactor, Submission};

use super::epoch::Epoch;
use super::pool::Pool;
use super::shared::Shared;
use super::slots::Slots;
use super::{read, write, zeroes};

pub(super) struct OpalChannel(Rc<Core>);

/// What a channel and its futures have in common.
pub(super) struct Core {
    pub(super) inner: Rc<dyn Channel>,
    shared: Arc<Shared>,
    /// `None` after a change that no `Io` has followed yet.
    epoch: RefCell<Option<Rc<Epoch>>>,
    pub(super) pool: Rc<Pool>,
    pub(super) slots: Slots,
    /// For blocks that lie in several segments.
    pub(super) bounce: RefCell<Vec<u8>>,
    pub(super) is_sparse: bool,
    pub(super) passes_zeroes: bool,
    pub(super) keeps_segments: bool,
    prefetches: bool,
    /// Of the data, for prefetching, which may be wrong.
    data_start: Cell<u64>,
    reactor: Reactor,
    /// In the registry of `shared`.
    id: u64,
}

impl OpalChannel {
    pub(super) fn open(
        inner: Rc<dyn Channel>,
        shared: &Arc<Shared>,
        reactor: &Reactor,
        pool_bytes: usize,
    ) -> Result<Self, Error> {
        let core = Rc::new(Core {
            keeps_segments: inner.keeps_segments(),
            prefetches: inner.prefetches(),
            inner,
            is_sparse: shared.is_sparse(),
            passes_zeroes: shared.passes_zeroes(),
            shared: shared.clone(),
            epoch: RefCell::default(),
            pool: Pool::new(pool_bytes),
            slots: Slots::default(),
            bounce: RefCell::default(),
            data_start: Cell::default(),
            reactor: reactor.clone(),
            id: shared.join(),
        });
        let epoch = core.epoch()?;
        core.leave_note(epoch.generation);
        Ok(Self(core))
    }
}

impl Core {
    /// The epoch of the state as it is now.
    #[inline]
    pub(super) fn epoch(&self) -> Result<Rc<Epoch>, Error> {
        let generation = self.shared.generation();
        match &*self.epoch.borrow() {
            Some(epoch) if epoch.generation == generation => return Ok(epoch.clone()),
            _ => {}
        }
        self.renew()
    }

    #[cold]
    fn renew(&self) -> Result<Rc<Epoch>, Error> {
        let before = self.epoch.take();
        let epoch = Rc::new(Epoch::new(&self.shared, before.as_deref())?);
        self.data_start.set(epoch.data_start);
        *self.epoch.borrow_mut() = Some(epoch.clone());
        Ok(epoch)
    }

    /// Has the state looked at when it changes, without an `Io`: what the reactor keeps for this is dropped then, in one of its
    /// turns.
    fn leave_note(self: &Rc<Self>, generation: u64) {
        let mut made: Option<Ticket> = None;
        // Nobody waits for it: abandoned, it is not counted, but what it keeps lives until it is completed.
        drop(self.reactor.remote(Note(Rc::downgrade(self)), |ticket, _| made = Some(ticket)));
        if let Some(ticket) = made {
            self.shared.leave_ticket(self.id, ticket, generation);
        }
    }

    /// The state has changed: lets go of what was made of the last one, unless an `Io` has come before.
    fn notice(self: &Rc<Self>) {
        let generation = self.shared.generation();
        let outdated = self.epoch.borrow_mut().take_if(|epoch| epoch.generation != generation);
        drop(outdated);
        self.leave_note(generation);
    }
}

/// Kept by the reactor until the state changes, or the channel is gone.
struct Note(Weak<Core>);

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.notice();
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.quit(self.id);
    }
}

impl Channel for OpalChannel {
    fn submit(&self, io: Io) -> Submission {
        let core = &self.0;
        let epoch = match core.epoch() {
            Ok(epoch) => epoch,
            Err(error) => return Submission::Done(io.complete(Err(error))),
        };
        if let Err(error) = io.check(&epoch.info) {
            return Submission::Done(io.complete(Err(error)));
        }
        match io.op {
            Op::Flush => core.inner.submit(io),
            _ if io.blocks == 0 => Submission::Done(io.complete(Ok(()))),
            Op::Read => read::submit(core, epoch, io),
            Op::Write | Op::CompareAndWrite => write::submit(core, &epoch, io),
            Op::Discard | Op::WriteZeroes => zeroes::submit(core, &epoch, io),
            _ => Submission::Done(io.complete(Err(ErrorKind::Unsupported.into()))),
        }
    }

    /// What is read is copied from below; what is written is copied to there later, from a buffer that is warm.
    fn prefetch(&self, op: Op, lba: u64, blocks: u64) {
        self.0.inner.prefetch(op, lba.saturating_add(self.0.data_start.get()), blocks);
    }

    fn prefetches(&self) -> bool {
        self.0.prefetches
    }

    /// Reads are decrypted when the channel below has completed them; writes may wait for a buffer only if others hold some,
    /// which takes a channel below that keeps them.
    fn keeps_segments(&self) -> bool {
        self.0.keeps_segments
    }
}
