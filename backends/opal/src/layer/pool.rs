//! [`Pool`]: a channel's buffers for ciphertext on its way down. Their bytes are bounded; who finds none left waits, in order,
//! and holds nothing meanwhile. What was used once is kept for use again, so that nothing is allocated in the long run.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use block::io::Guard;
use block::{AlignedBuf, Error, Flags, Io, Op, Segment};

/// Bytes that the buffers of one channel take at most; but a single I/O that needs more gets it when nothing else is in use.
pub const POOL_BYTES: usize = 64 << 20;
/// What O_DIRECT asks for.
const ALIGN: usize = 4096;
/// Size classes: powers of two from [`ALIGN`] on.
const CLASSES: usize = usize::BITS as usize - ALIGN.trailing_zeros() as usize;

pub(super) struct Pool {
    most: usize,
    /// Bytes of all buffers, and of those in use.
    made: Cell<usize>,
    used: Cell<usize>,
    free: [RefCell<Vec<Rc<Loan>>>; CLASSES],
    /// By ticket, which only grow: the first is served first.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    tickets: Cell<u64>,
}

/// A buffer in use. It is the guard of the `Io` below: who holds it may read the buffer, and keeps what the guard of the `Io`
/// above keeps.
pub(super) struct Loan {
    pool: Weak<Pool>,
    buffer: AlignedBuf,
    class: usize,
    /// It counts as used; a free one does not.
    in_use: Cell<bool>,
    /// The guard of the `Io` above.
    guard: Cell<Option<Guard>>,
    /// For the segment of the `Io` below.
    storage: Cell<Vec<Segment>>,
}

impl Pool {
    pub(super) fn new(most: usize) -> Rc<Self> {
        Rc::new(Self {
            most,
            made: Cell::new(0),
            used: Cell::new(0),
            free: [const { RefCell::new(Vec::new()) }; CLASSES],
            waiting: RefCell::default(),
            tickets: Cell::new(0),
        })
    }

    /// A buffer of at least `len` bytes. `None` if there is none left, or somebody waits; `forced`: never.
    #[inline]
    pub(super) fn take(self: &Rc<Self>, len: usize, forced: bool) -> Result<Option<Rc<Loan>>, Error> {
        if !forced && !self.waiting.borrow().is_empty() {
            return Ok(None);
        }
        self.take_now(len, forced)
    }

    #[inline]
    fn take_now(self: &Rc<Self>, len: usize, forced: bool) -> Result<Option<Rc<Loan>>, Error> {
        let class = (len.max(ALIGN).next_power_of_two() / ALIGN).trailing_zeros() as usize;
        let free = self.free.get(class).and_then(|free| free.borrow_mut().pop());
        if let Some(loan) = free {
            self.used.set(self.used.get() + loan.buffer.len());
            loan.in_use.set(true);
            return Ok(Some(loan));
        }
        self.make(class, forced)
    }

    #[cold]
    fn make(self: &Rc<Self>, class: usize, forced: bool) -> Result<Option<Rc<Loan>>, Error> {
        let size = ALIGN << class;
        let used = self.used.get();
        if used > 0 && !forced && used.saturating_add(size) > self.most {
            return Ok(None);
        }
        // What is free makes room.
        for free in self.free.iter().rev() {
            while self.made.get().saturating_add(size) > self.most {
                let Some(loan) = free.borrow_mut().pop() else { break };
                self.made.set(self.made.get() - loan.buffer.len());
            }
        }
        let buffer = AlignedBuf::new(size, ALIGN)?;
        self.made.set(self.made.get() + size);
        self.used.set(used + size);
        Ok(Some(Rc::new(Loan {
            pool: Rc::downgrade(self),
            buffer,
            class,
            in_use: Cell::new(true),
            guard: Cell::default(),
            storage: Cell::default(),
        })))
    }

    /// A buffer of at least `len` bytes, once there is one.
    pub(super) fn wait(self: &Rc<Self>, len: usize) -> Wait {
        Wait { pool: self.clone(), len, ticket: None }
    }

    /// Takes a buffer back, unless an `Io` that has not quite ended still has it: then it comes back by its drop.
    #[inline]
    pub(super) fn give(&self, loan: Rc<Loan>) {
        if Rc::strong_count(&loan) > 1 {
            return;
        }
        drop(loan.guard.take());
        loan.in_use.set(false);
        self.used.set(self.used.get() - loan.buffer.len());
        let class = loan.class;
        self.free[class].borrow_mut().push(loan);
        self.wake_first();
    }

    /// Whoever is first may find a buffer now.
    #[inline]
    fn wake_first(&self) {
        let first = self.waiting.borrow().front().map(|(_, waker)| waker.clone());
        if let Some(waker) = first {
            waker.wake();
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> (usize, usize) {
        (self.made.get(), self.used.get())
    }
}

impl Loan {
    /// Its address.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.buffer.as_ptr()
    }

    /// An `Io` of `op` on the first `len` bytes, like `above` but for its blocks. `guarded`: until the channel below has let go
    /// of it, it holds this loan, and so the guard of `above`.
    #[inline]
    pub(super) fn io(
        self: &Rc<Self>,
        op: Op,
        lba: u64,
        blocks: u64,
        len: usize,
        above: &Io,
        guarded: bool,
    ) -> Io {
        let mut segments = self.storage.take();
        let at = NonNull::new(self.as_ptr()).unwrap_or(NonNull::dangling());
        debug_assert!(len <= self.buffer.len());
        // SAFETY: inside of the buffer, which the guard keeps. An `Io` without a guard goes to a channel that does not touch it
        // after `submit` has returned (`Channel::keeps_segments`), and the caller has this loan for so long. No reference to the
        // buffer's bytes is ever made.
        segments.push(unsafe { Segment::new(at, len.min(self.buffer.len())) });
        let guard = guarded.then(|| {
            self.guard.set(above.guard().cloned());
            self.clone() as Guard
        });
        Io::new(op, lba, blocks, segments, guard, above.tag()).with_flags(above.flags - Flags::MAY_UNMAP)
    }

    /// The emptied segment storage of an `Io` made here.
    #[inline]
    pub(super) fn keep_storage(&self, storage: Vec<Segment>) {
        self.storage.set(storage);
    }
}

impl Drop for Loan {
    /// Of one that did not come back by [`Pool::give`]: its `Io` was cancelled, and the channel below has let go of it now.
    fn drop(&mut self) {
        if self.in_use.get()
            && let Some(pool) = self.pool.upgrade()
        {
            pool.made.set(pool.made.get() - self.buffer.len());
            pool.used.set(pool.used.get() - self.buffer.len());
            pool.wake_first();
        }
    }
}

/// See [`Pool::wait`]. Dropped earlier, it takes nothing.
pub(super) struct Wait {
    pool: Rc<Pool>,
    len: usize,
    ticket: Option<u64>,
}

impl Future for Wait {
    type Output = Result<Rc<Loan>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let first = this.pool.waiting.borrow().front().map(|(ticket, _)| *ticket);
        if first.is_none() || first == this.ticket {
            match this.pool.take_now(this.len, false) {
                Ok(None) => {}
                Ok(Some(loan)) => {
                    this.leave();
                    return Poll::Ready(Ok(loan));
                }
                Err(error) => {
                    this.leave();
                    return Poll::Ready(Err(error));
                }
            }
        }
        let pool = &this.pool;
        let own = *this.ticket.get_or_insert_with(|| {
            pool.tickets.set(pool.tickets.get() + 1);
            pool.tickets.get()
        });
        let mut waiting = pool.waiting.borrow_mut();
        match waiting.binary_search_by_key(&own, |(ticket, _)| *ticket) {
            Ok(at) => waiting[at].1.clone_from(cx.waker()),
            Err(at) => waiting.insert(at, (own, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Wait {
    /// Waits no longer; the next may be the first now.
    fn leave(&mut self) {
        let Some(own) = self.ticket.take() else { return };
        let mut waiting = self.pool.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search_by_key(&own, |(ticket, _)| *ticket) {
            waiting.remove(at);
        }
        drop(waiting);
        self.pool.wake_first();
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
