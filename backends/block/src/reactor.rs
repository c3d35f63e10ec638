//! [`Reactor`]: what a thread of the data path offers the devices on it: an io_uring, timers, wake-ups.
//!
//! The loop itself (which queues are polled, when to sleep) belongs to the program; it calls
//! [`Reactor::turn`] once per turn and [`Reactor::park`] when there is nothing to do.

use std::future::Future;
use std::io;
use std::time::Duration;

/// A thread's own reactor. Cheap to clone, not `Send`.
#[derive(Clone)]
pub struct Reactor(std::rc::Rc<()>);

/// Ends a [`Reactor::park`] from any thread.
#[derive(Clone)]
pub struct Unparker(std::sync::Arc<()>);

impl Reactor {
    /// A reactor with an io_uring of `entries` submission entries.
    pub fn new(entries: u32) -> io::Result<Self> {
        let _ = entries;
        Ok(Self(std::rc::Rc::new(())))
    }

    /// Submits what was queued (one `io_uring_enter` at most, none when nothing was queued), reaps what
    /// completed, fires timers that are due. Returns how many events there were.
    pub fn turn(&self) -> usize {
        0
    }

    /// Sleeps until an io_uring completion, a timer, an [`Unparker::unpark`] or `max`.
    pub fn park(&self, max: Duration) {
        let _ = max;
    }

    /// A handle that wakes this reactor out of [`Reactor::park`] (and makes the next `park` return at once).
    pub fn unparker(&self) -> Unparker {
        Unparker(std::sync::Arc::new(()))
    }

    /// Resolves after `duration`.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let _ = duration;
        std::future::ready(())
    }

    /// Runs `future` and this reactor until the future ends: for tests, tools and control threads.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _ = future;
        loop {
            self.park(Duration::from_millis(1));
        }
    }
}

impl Unparker {
    /// Wakes the reactor.
    pub fn unpark(&self) {}
}
