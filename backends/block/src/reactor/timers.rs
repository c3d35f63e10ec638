//! Timers of a reactor: a heap of deadlines, and the wakers that wait for them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::Inner;

/// Deadlines and their wakers. A timer that was dropped leaves its deadline in the heap until it is due or
/// until such remains make up half of the heap.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    wakers: HashMap<u64, Waker>,
    last: u64,
}

impl Timers {
    fn add(&mut self, deadline: Instant, waker: Waker) -> u64 {
        self.last += 1;
        self.heap.push(Reverse((deadline, self.last)));
        self.wakers.insert(self.last, waker);
        self.last
    }

    /// Replaces a waker; gives back the old one, to be dropped outside of any borrow.
    fn set(&mut self, key: u64, waker: &Waker) -> Option<Waker> {
        let current = self.wakers.get_mut(&key)?;
        (!current.will_wake(waker)).then(|| std::mem::replace(current, waker.clone()))
    }

    fn remove(&mut self, key: u64) -> Option<Waker> {
        let waker = self.wakers.remove(&key);
        if self.heap.len() > 64 && self.heap.len() / 2 > self.wakers.len() {
            let wakers = &self.wakers;
            self.heap.retain(|Reverse((_, key))| wakers.contains_key(key));
        }
        waker
    }

    /// When the next one is due.
    pub(super) fn next(&mut self) -> Option<Instant> {
        while let Some(Reverse((deadline, key))) = self.heap.peek() {
            if self.wakers.contains_key(key) {
                return Some(*deadline);
            }
            self.heap.pop();
        }
        None
    }

    /// Whether there is none (so that nobody need look at the clock).
    pub(super) fn is_empty(&self) -> bool {
        self.wakers.is_empty()
    }

    /// Takes one that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        if self.next()? > now {
            return None;
        }
        let Reverse((_, key)) = self.heap.pop()?;
        self.wakers.remove(&key)
    }
}

/// Resolves at a deadline: see [`Reactor::sleep`](super::Reactor::sleep).
pub struct Sleep {
    inner: Rc<Inner>,
    deadline: Option<Instant>,
    key: Option<u64>,
}

impl Sleep {
    /// `None` is a time that never comes.
    pub(super) fn new(inner: Rc<Inner>, deadline: Option<Instant>) -> Self {
        Self { inner, deadline, key: None }
    }

    fn cancel(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = self.inner.timers.borrow_mut().remove(key);
            drop(waker); // after the borrow: a waker's drop may run anything
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        if Instant::now() >= deadline {
            self.cancel();
            return Poll::Ready(());
        }
        let waker = cx.waker();
        if let Some(key) = self.key {
            let old = self.inner.timers.borrow_mut().set(key, waker);
            drop(old);
        } else {
            let key = self.inner.timers.borrow_mut().add(deadline, waker.clone());
            self.key = Some(key);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    struct Fired(u64, Mutex<Vec<u64>>);

    impl Wake for Fired {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[test]
    fn the_earliest_is_woken_first() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let fired: Vec<_> =
            [30, 10, 20].into_iter().map(|ms| Arc::new(Fired(ms, Mutex::default()))).collect();
        for one in &fired {
            timers.add(now + Duration::from_millis(one.0), Waker::from(one.clone()));
        }
        // All are due: each pop wakes the one that was due first.
        for expected in [10, 20, 30] {
            timers.pop_due(now + Duration::from_secs(1)).unwrap().wake();
            let woken: Vec<u64> =
                fired.iter().flat_map(|one| std::mem::take(&mut *one.1.lock().unwrap())).collect();
            assert_eq!(woken, [expected]);
        }
        assert!(timers.pop_due(now + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn due_in_order_and_dropped_ones_leave_nothing_behind() {
        let mut timers = Timers::default();
        let now = Instant::now();
        for ms in [30, 10, 20] {
            timers.add(now + Duration::from_millis(ms), Waker::noop().clone());
        }
        assert_eq!(timers.next(), Some(now + Duration::from_millis(10)));
        assert!(timers.pop_due(now).is_none());
        assert!(timers.pop_due(now + Duration::from_millis(10)).is_some());
        assert_eq!(timers.next(), Some(now + Duration::from_millis(20)));

        let keys: Vec<_> =
            (0..10_000).map(|_| timers.add(now + Duration::from_secs(60), Waker::noop().clone())).collect();
        for key in keys {
            timers.remove(key);
        }
        assert!(timers.heap.len() <= 64, "{}", timers.heap.len());
        assert_eq!(timers.wakers.len(), 2);
    }
}
