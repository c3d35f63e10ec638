//! Operations in the hands of other threads: a library's (librbd, librados), say. They complete into the reactor's inbox,
//! which it looks into once per turn.
//!
//! An operation whose future is dropped is abandoned: it goes on, what it owns lives until it ends, and nobody counts it any
//! more. So whoever starts one hands over memory of his own, never a guest's.

#[cfg(loom)]
use loom::sync::atomic::{AtomicPtr, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicPtr, Ordering};

use std::cell::RefCell;
use std::ffi::c_void;
use std::future::Future;
use std::pin::Pin;
use std::ptr::{NonNull, null_mut};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::ops::{Effect, OpId, Ops, Orphaned};
use super::{Inner, Unparker};

/// Notes that are kept for use again.
const SPARE: usize = 1024;

/// A reactor's operations that other threads have.
pub(super) struct Remote {
    ops: RefCell<Ops>,
    inbox: Arc<Inbox<Unparker>>,
    #[expect(clippy::vec_box, reason = "a note keeps its address: libraries know it")]
    spare: RefCell<Vec<Box<Note<Unparker>>>>,
}

impl Remote {
    pub(super) fn new(waker: Unparker) -> Self {
        Self { ops: RefCell::new(Ops::new(0)), inbox: Arc::new(Inbox::new(waker)), spare: RefCell::default() }
    }

    /// Operations that have not ended, abandoned ones included.
    pub(super) fn in_flight(&self) -> usize {
        self.ops.borrow().in_kernel()
    }

    /// Those that somebody waits for.
    pub(super) fn waited_for(&self) -> usize {
        let ops = self.ops.borrow();
        ops.in_kernel() - ops.orphans()
    }

    /// Takes what has completed; returns how many.
    #[inline]
    pub(super) fn turn(&self) -> usize {
        if self.inbox.has_notes() { self.look() } else { 0 }
    }

    fn look(&self) -> usize {
        let mut events = 0;
        for note in self.inbox.take() {
            events += 1;
            let effect = self.ops.borrow_mut().complete(OpId(note.id), note.result);
            let mut spare = self.spare.borrow_mut();
            if spare.len() < SPARE {
                spare.push(note);
            }
            drop(spare);
            // No borrow is held: both may come back to this reactor.
            match effect {
                Effect::Nothing => {}
                Effect::Wake(waker) => waker.wake(),
                Effect::End(ended, result) => ended(result),
            }
        }
        events
    }

    /// Leaks what operations in flight use.
    pub(super) fn forget(&self) {
        std::mem::forget(self.ops.replace(Ops::new(0)));
    }

    /// Completions that come from now on are dropped.
    pub(super) fn close(&self) {
        self.inbox.close();
    }
}

/// An operation in the hands of another thread: resolves to its result and the `keep` that was handed in. See
/// [`Reactor::remote`](super::Reactor::remote).
#[must_use = "dropping it abandons the operation"]
pub struct RemoteOp<K: 'static> {
    inner: Rc<Inner>,
    id: OpId,
    keep: Option<K>,
}

// `keep` is never pinned: it moves with the future, and the library knows only what it points to.
impl<K> Unpin for RemoteOp<K> {}

impl<K> RemoteOp<K> {
    pub(super) fn new(inner: Rc<Inner>, mut keep: K, start: impl FnOnce(Ticket, &mut K)) -> Self {
        let remote = &inner.remote;
        let id = remote.ops.borrow_mut().insert();
        if let Some(id) = id {
            let spare = remote.spare.borrow_mut().pop();
            let mut note = spare.unwrap_or_else(|| Note::new(remote.inbox.clone()));
            note.id = id.0;
            start(Ticket(Some(note)), &mut keep);
        }
        Self { id: id.unwrap_or(OpId::NONE), inner, keep: Some(keep) }
    }

    /// What was handed in, until the operation has ended.
    pub fn keep(&self) -> Option<&K> {
        self.keep.as_ref()
    }

    /// The same, to be changed: before it is abandoned, for example.
    pub fn keep_mut(&mut self) -> Option<&mut K> {
        self.keep.as_mut()
    }
}

impl<K> Future for RemoteOp<K> {
    type Output = (i32, K);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(i32, K)> {
        let polled = match self.id {
            OpId::NONE => Ok(-libc::EAGAIN),
            id => self.inner.remote.ops.borrow_mut().poll(id, cx.waker()),
        };
        match polled {
            Ok(result) => self.keep.take().map_or(Poll::Pending, |keep| Poll::Ready((result, keep))),
            Err(old) => {
                drop(old);
                Poll::Pending
            }
        }
    }
}

impl<K> Drop for RemoteOp<K> {
    fn drop(&mut self) {
        if self.id != OpId::NONE && self.keep.is_some() {
            let orphaned: Orphaned =
                self.inner.remote.ops.borrow_mut().orphan(self.id, &mut self.keep, |keep, _| drop(keep));
            drop(orphaned);
        }
    }
}

/// A completion on its way: made by the reactor, in the hands of a library until it calls back, then in the inbox.
pub(super) struct Note<W> {
    next: *mut Note<W>,
    inbox: Arc<Inbox<W>>,
    pub(super) id: u64,
    pub(super) result: i32,
}

/// What wakes the reactor that owns an inbox.
pub(super) trait Wake {
    fn wake(&self);
}

/// Notes that other threads have left, newest first.
pub(super) struct Inbox<W> {
    head: AtomicPtr<Note<W>>,
    waker: W,
}

// SAFETY: notes are owned by one thread at a time: whoever made them, the library, the list, whoever took the list. The list
// hands them over by release and acquire on its head.
unsafe impl<W: Send + Sync> Send for Inbox<W> {}
// SAFETY: as above.
unsafe impl<W: Send + Sync> Sync for Inbox<W> {}

/// The head of an inbox whose reactor is gone. Never dereferenced.
fn closed<W>() -> *mut Note<W> {
    NonNull::<Note<W>>::dangling().as_ptr()
}

impl<W: Wake> Inbox<W> {
    pub(super) fn new(waker: W) -> Self {
        Self { head: AtomicPtr::new(null_mut()), waker }
    }

    /// Leaves a note. Any thread.
    fn push(note: Box<Note<W>>) {
        let inbox = note.inbox.clone();
        let note = Box::into_raw(note);
        let mut head = inbox.head.load(Ordering::Relaxed);
        loop {
            if head == closed() {
                // SAFETY: made from a box above, and in no list.
                return drop(unsafe { Box::from_raw(note) });
            }
            // SAFETY: still this thread's own.
            unsafe { (*note).next = head };
            // Release: the reactor sees the note. Acquire is not needed: nothing of `head` is looked at.
            match inbox.head.compare_exchange_weak(head, note, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // Not only by the first: he may have lost his CPU before he came to this.
        inbox.waker.wake();
    }

    /// Whether there are notes. Exact enough for a look per turn: who leaves one wakes the reactor.
    pub(super) fn has_notes(&self) -> bool {
        !self.head.load(Ordering::Relaxed).is_null()
    }

    /// All notes, oldest first.
    pub(super) fn take(&self) -> Notes<W> {
        Notes(Self::reversed(self.head.swap(null_mut(), Ordering::Acquire)))
    }

    /// No more notes: those that are there are dropped, and so are all that come.
    pub(super) fn close(&self) {
        drop(Notes(self.head.swap(closed(), Ordering::Acquire)));
    }

    fn reversed(mut from: *mut Note<W>) -> *mut Note<W> {
        let mut to = null_mut();
        while !from.is_null() {
            // SAFETY: notes of a list that was taken are this thread's own.
            let next = unsafe { std::mem::replace(&mut (*from).next, to) };
            (to, from) = (from, next);
        }
        to
    }
}

/// Notes that were taken.
pub(super) struct Notes<W>(*mut Note<W>);

impl<W> Iterator for Notes<W> {
    type Item = Box<Note<W>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: every note in a list came from a box, and a list that was taken is this thread's own.
        let note = unsafe { Box::from_raw(self.0) };
        self.0 = note.next;
        Some(note)
    }
}

impl<W> Drop for Notes<W> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl<W: Wake> Note<W> {
    pub(super) fn new(inbox: Arc<Inbox<W>>) -> Box<Self> {
        Box::new(Self { next: null_mut(), inbox, id: 0, result: 0 })
    }

    fn complete(mut self: Box<Self>, result: i32) {
        self.result = result;
        Inbox::push(self);
    }
}

/// The right, and the duty, to complete one operation from any thread.
///
/// As a pointer it goes through a C library as the argument of a callback. Dropping it completes the operation with
/// `-ECANCELED`.
pub struct Ticket(Option<Box<Note<Unparker>>>);

// SAFETY: a note in the hands of a ticket is its own; see `Inbox` for what it points to.
unsafe impl Send for Ticket {}

impl Ticket {
    /// Completes the operation. Results follow io_uring: not negative on success, a negated errno otherwise.
    pub fn complete(mut self, result: i32) {
        if let Some(note) = self.0.take() {
            note.complete(result);
        }
    }

    /// As the argument of a callback. It must come back by [`Ticket::from_raw`], once.
    pub fn into_raw(mut self) -> *mut c_void {
        self.0.take().map_or(null_mut(), |note| Box::into_raw(note).cast())
    }

    /// What [`Ticket::into_raw`] gave away.
    ///
    /// # Safety
    /// `raw` is from [`Ticket::into_raw`], and was not given back before.
    pub unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: it is from `Box::into_raw`, by this function's contract.
        Self((!raw.is_null()).then(|| unsafe { Box::from_raw(raw.cast()) }))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(note) = self.0.take() {
            note.complete(-libc::ECANCELED);
        }
    }
}

/// Every interleaving, under `RUSTFLAGS="--cfg loom" cargo test -p block --lib --release remote`.
#[cfg(all(test, loom))]
mod model {
    use loom::sync::atomic::AtomicUsize;

    use super::*;

    struct Bell(loom::sync::Arc<AtomicUsize>);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Threads that complete an operation each, while the reactor takes what is there; then it closes, or not.
    fn none_is_lost(threads: u64, closes: bool) {
        loom::model(move || {
            let rung = loom::sync::Arc::new(AtomicUsize::new(0));
            let inbox = Arc::new(Inbox::new(Bell(rung.clone())));
            let threads: Vec<_> = (1..=threads)
                .map(|id| {
                    let mut note = Note::new(inbox.clone());
                    note.id = id;
                    loom::thread::spawn(move || note.complete(7))
                })
                .collect();
            let mut seen = Vec::new();
            // A look whenever the bell has rung, as the reactor does.
            let before = rung.load(Ordering::Acquire);
            seen.extend(inbox.take().map(|note| (note.id, note.result)));
            assert!(seen.len() >= before, "rung for what is not there");
            if closes {
                inbox.close();
            }
            let count = threads.len();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            if closes {
                assert!(inbox.head.load(Ordering::Relaxed) == closed());
            } else {
                seen.extend(inbox.take().map(|note| (note.id, note.result)));
                seen.sort_unstable();
                assert_eq!(seen, (1..=count as u64).map(|id| (id, 7)).collect::<Vec<_>>());
            }
            // What the list held is freed: nobody but this holds the inbox.
            assert_eq!(Arc::strong_count(&inbox), 1);
        });
    }

    #[test]
    fn no_completion_is_lost() {
        none_is_lost(2, false);
    }

    #[test]
    fn a_closed_inbox_keeps_nothing() {
        none_is_lost(2, true);
    }
}
