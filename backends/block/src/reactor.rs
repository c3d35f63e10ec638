//! [`Reactor`]: what a thread of the data path offers the devices on it: an io_uring, timers, wake-ups.
//!
//! The loop itself (which queues are polled, when to sleep) belongs to the program; it calls
//! [`Reactor::turn`] once per turn and [`Reactor::park`] when there is nothing to do. A waker that is called by
//! another thread must end a park too: the program's wakers call [`Unparker::unpark`] when they have to.

mod fixed;
mod ops;
mod parker;
mod remote;
mod ring;
mod timers;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};
use rustix::event::EventfdFlags;

use fixed::Fixed;
use ops::{Effect, OpId, Ops};
use parker::{Bed, ParkFlag};
use remote::Remote;
use ring::Ring;
use timers::Timers;

pub use fixed::{FIXED_PIECE, MAX_FIXED_PIECES, MemoryRegion};
pub use ops::{OnDrop, RingOp};
pub use remote::{RemoteOp, Ticket};
pub use timers::Sleep;

/// User data of a cancellation, whose own result does not matter.
const CANCEL: u64 = u64::MAX;
/// User data of the poll of the eventfd that ends a park.
const BELL: u64 = u64::MAX - 1;
/// How long a reactor that ends waits for the kernel to let go of what it was given.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// Longest sleep, so that no time overflows what the kernel takes.
const LONGEST_PARK: Duration = Duration::from_secs(3600);

/// A thread's own reactor. Cheap to clone, not `Send`.
#[derive(Clone)]
pub struct Reactor(Rc<Inner>);

struct Inner {
    ring: RefCell<Ring>,
    fixed: Fixed,
    ops: RefCell<Ops>,
    remote: Remote,
    timers: RefCell<Timers>,
    bell: Arc<Bell>,
    /// The kernel polls the bell's eventfd for us.
    bell_armed: Cell<bool>,
}

/// What wakes a parked reactor.
struct Bell {
    flag: ParkFlag,
    eventfd: OwnedFd,
}

/// Ends a [`Reactor::park`] from any thread.
#[derive(Clone)]
pub struct Unparker(Arc<Bell>);

impl Reactor {
    /// A reactor with an io_uring of `entries` submission entries (at least 8, clamped to what the kernel allows).
    pub fn new(entries: u32) -> io::Result<Self> {
        Self::build(entries, 0)
    }

    fn build(entries: u32, fixed_pieces: u32) -> io::Result<Self> {
        let ring = Ring::new(entries)?;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Arc::new(Bell { flag: ParkFlag::new(), eventfd });
        Ok(Self(Rc::new(Inner {
            fixed: Fixed::new(&ring, fixed_pieces),
            remote: Remote::new(Unparker(bell.clone())),
            ring: RefCell::new(ring),
            ops: RefCell::new(Ops::new(entries as usize)),
            timers: RefCell::default(),
            bell,
            bell_armed: Cell::new(false),
        })))
    }

    /// Submits what was queued (one `io_uring_enter` at most, none when nothing was queued), reaps what
    /// completed, fires timers that are due. Returns how many events there were.
    pub fn turn(&self) -> usize {
        self.0.fixed.turn(&self.0.ring);
        self.0.ring.borrow_mut().enter();
        self.reap()
    }

    /// The rest of a turn: what is there without entering the kernel, as after [`Reactor::park`]. Returns how many events
    /// there were.
    pub fn reap(&self) -> usize {
        self.0.reap() + self.0.remote.turn() + self.0.fire_timers()
    }

    /// Sleeps until an io_uring completion, a timer, an [`Unparker::unpark`] or `max`. What happened is for the
    /// next [`Reactor::turn`] to see. Returns false, at once, if there was an [`Unparker::unpark`] that was not
    /// [taken](Self::take_unpark).
    pub fn park(&self, max: Duration) -> bool {
        let inner = &*self.0;
        // The model checker knows no futexes.
        let bed = if inner.ops.borrow().in_kernel() > 0 || cfg!(loom) { Bed::Ring } else { Bed::Flag };
        if !inner.bell.flag.prepare(bed) {
            return false;
        }
        let next = inner.timers.borrow_mut().next();
        let max = max.min(LONGEST_PARK);
        let timeout = next.map_or(max, |next| max.min(next.saturating_duration_since(Instant::now())));
        match bed {
            Bed::Ring => inner.sleep_in_ring(timeout),
            #[cfg(not(loom))]
            Bed::Flag => inner.bell.flag.sleep(timeout),
            #[cfg(loom)]
            Bed::Flag => {}
        }
        inner.bell.flag.finish();
        true
    }

    /// Whether there was an [`Unparker::unpark`] since the last call and the last park; often by a waker of this thread's own
    /// I/O, so that what it was for is done. After that, look once more for what other threads may want.
    pub fn take_unpark(&self) -> bool {
        self.0.bell.flag.take()
    }

    /// A handle that wakes this reactor out of [`Reactor::park`] (and makes the next `park` return at once).
    pub fn unparker(&self) -> Unparker {
        Unparker(self.0.bell.clone())
    }

    /// Resolves after `duration`.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        Sleep::new(self.0.clone(), Instant::now().checked_add(duration))
    }

    /// Gives an operation to the kernel at the next turn. Never blocks and never fails: what does not fit into the
    /// submission queue waits outside of it, in order.
    ///
    /// # Safety
    /// - The memory and descriptors that `entry` refers to stay valid until `keep` is dropped, and do not move
    ///   when `keep` does. (They may be `keep`'s, behind a pointer, or live for ever.)
    /// - The kernel is free to write to the memory until then, so nothing may be assumed about its contents and no
    ///   Rust reference may exist to what the kernel writes.
    /// - The entry makes exactly one completion (no multishot, no zero-copy send, no `CQE_SKIP_SUCCESS`).
    ///
    /// `keep` must not own a clone of this [`Reactor`]: an operation that is still in the kernel would then keep
    /// its own ring alive.
    pub unsafe fn submit<K: 'static>(&self, entry: squeue::Entry, keep: K) -> RingOp<K> {
        let on_drop = OnDrop { cancel: true, ended: |keep, _| drop(keep) };
        // SAFETY: the caller's promise.
        unsafe { self.submit_or(entry, keep, on_drop) }
    }

    /// The same for an operation whose result matters even if its future is dropped.
    ///
    /// # Safety
    /// As [`Reactor::submit`].
    pub unsafe fn submit_or<K: 'static>(
        &self,
        entry: squeue::Entry,
        keep: K,
        on_drop: OnDrop<K>,
    ) -> RingOp<K> {
        RingOp::new(self.0.clone(), keep, on_drop, |id| {
            // SAFETY: `keep` lives in the `RingOp`, or in the ring when that is dropped early, until the completion
            // was taken; the rest is the caller's promise.
            unsafe { self.0.ring.borrow_mut().push(entry.user_data(id.0)) };
        })
    }

    /// The same for an operation that nobody waits for: it goes on to its end, which `ended` hears at some turn.
    ///
    /// # Safety
    /// As [`Reactor::submit`].
    pub unsafe fn submit_detached<K: 'static>(&self, entry: squeue::Entry, keep: K, ended: fn(K, i32)) {
        // SAFETY: the caller's promise.
        drop(unsafe { self.submit_or(entry, keep, OnDrop { cancel: false, ended }) });
    }

    /// Starts an operation that another thread completes, a library's for example, by the [`Ticket`] that `start` gets.
    /// `keep` is what the library uses meanwhile; it moves with the future, so the library may know only what it points to.
    ///
    /// If the future is dropped early, then the operation goes on, and `keep` lives until it ends; nobody waits for that.
    /// So `keep` holds nothing of a guest's.
    pub fn remote<K: 'static>(&self, keep: K, start: impl FnOnce(Ticket, &mut K)) -> RemoteOp<K> {
        RemoteOp::new(self.0.clone(), keep, start)
    }

    /// Operations that were submitted and that the kernel has not completed, cancelled ones included; and those that other
    /// threads have and somebody waits for.
    pub fn in_flight(&self) -> usize {
        self.0.ops.borrow().in_kernel() + self.0.remote.waited_for()
    }

    /// Those of them that other threads have.
    pub fn in_other_threads(&self) -> usize {
        self.0.remote.waited_for()
    }

    /// Runs `future` and this reactor until the future ends: for tests, tools and control threads.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let task = Arc::new(Task { woken: AtomicBool::new(true), unparker: self.unparker() });
        let waker = Waker::from(task.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            if task.woken.swap(false, Ordering::AcqRel)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            if self.turn() == 0 && !task.woken.load(Ordering::Acquire) {
                self.park(Duration::MAX);
            }
        }
    }
}

impl Inner {
    fn reap(&self) -> usize {
        let mut batch = [const { MaybeUninit::uninit() }; ring::BATCH];
        let mut events = 0;
        loop {
            let entries = self.ring.borrow_mut().reap(&mut batch);
            for entry in entries.iter() {
                match entry.user_data() {
                    CANCEL => {}
                    BELL => self.silence(),
                    id => {
                        events += 1;
                        let effect = self.ops.borrow_mut().complete(OpId(id), entry.result());
                        // No borrow is held: a waker or a drop may come back to this reactor.
                        match effect {
                            Effect::Nothing => {}
                            Effect::Wake(waker) => waker.wake(),
                            Effect::End(ended, result) => ended(result),
                        }
                    }
                }
            }
            if entries.len() < ring::BATCH {
                return events;
            }
        }
    }

    fn sleep_in_ring(&self, timeout: Duration) {
        if !self.bell_armed.replace(true) {
            let poll = opcode::PollAdd::new(types::Fd(self.bell.eventfd.as_raw_fd()), libc::POLLIN as u32);
            // SAFETY: the entry points to no memory; the eventfd is open for as long as the ring.
            unsafe { self.ring.borrow_mut().push(poll.build().user_data(BELL)) };
        }
        self.ring.borrow_mut().wait(timeout);
    }

    /// The bell rang: drains it; the next park arms it again (and sees at once if it rang meanwhile).
    fn silence(&self) {
        self.bell_armed.set(false);
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.bell.eventfd, &mut count); // WouldBlock: drained already
    }

    fn fire_timers(&self) -> usize {
        if self.timers.borrow().is_empty() {
            return 0;
        }
        let now = Instant::now();
        let mut fired = 0;
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { return fired };
            waker.wake();
            fired += 1;
        }
    }

    /// Asks the kernel to give `id` back soon. Its completion comes in any case.
    fn cancel(&self, id: OpId) {
        // SAFETY: the entry points to no memory.
        unsafe { self.ring.borrow_mut().push(opcode::AsyncCancel::new(id.0).build().user_data(CANCEL)) };
    }
}

impl Drop for Inner {
    /// Every future of this ring holds it, so all operations left are orphans, cancelled ones.
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_WAIT;
        loop {
            self.reap();
            self.remote.turn();
            let left = self.ops.borrow().in_kernel() + self.remote.in_flight();
            if left == 0 {
                break;
            }
            if Instant::now() >= deadline {
                tracing::error!(left, "I/Os of a closed reactor do not end: their memory is leaked");
                // The kernel, or a library, may write to it at any time.
                std::mem::forget(self.ops.replace(Ops::new(0)));
                self.remote.forget();
                break;
            }
            self.ring.borrow_mut().wait(Duration::from_millis(if self.remote.in_flight() > 0 {
                1
            } else {
                50
            }));
        }
        self.remote.close();
    }
}

impl remote::Wake for Unparker {
    fn wake(&self) {
        self.unpark();
    }
}

impl Unparker {
    /// Wakes the reactor. Costs a system call only if the reactor sleeps.
    pub fn unpark(&self) {
        match self.0.flag.notify() {
            None => {}
            // WouldBlock: the counter is full, so the bell rings already.
            Some(Bed::Ring) => drop(rustix::io::write(&self.0.eventfd, &1u64.to_ne_bytes())),
            #[cfg(not(loom))]
            Some(Bed::Flag) => self.0.flag.wake(),
            #[cfg(loom)]
            Some(Bed::Flag) => {}
        }
    }
}

/// The one task of [`Reactor::block_on`].
struct Task {
    woken: AtomicBool,
    unparker: Unparker,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.unparker.unpark();
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
