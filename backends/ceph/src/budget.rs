//! [`Budget`]: how much may be in flight to a cluster for one disk. What does not fit waits, in order, and holds nothing
//! meanwhile; so a cluster that does not answer costs a bounded amount of memory, whatever a guest does.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
#[cfg(not(loom))]
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
#[cfg(loom)]
use loom::sync::{Arc, Mutex, MutexGuard};

/// Shared by all channels of a disk. Taking and giving back cost an atomic operation each while nobody waits.
pub(crate) struct Budget {
    most: u64,
    used: AtomicU64,
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Arc<Place>>>,
}

/// A place in the queue.
struct Place {
    need: u64,
    granted: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Budget {
    pub(crate) fn new(most: u64) -> Self {
        Self { most, used: AtomicU64::new(0), waiting: AtomicUsize::new(0), queue: Mutex::default() }
    }

    /// Takes `need` if it is there and nobody waits. Whatever is taken is to be [given back](Self::give). More than there is
    /// at all is given to who comes when nothing is in use.
    pub(crate) fn take(&self, need: u64) -> bool {
        self.waiting.load(SeqCst) == 0 && self.fits(need)
    }

    fn fits(&self, need: u64) -> bool {
        let more = |used: u64| {
            (used == 0 || used.saturating_add(need) <= self.most).then(|| used.saturating_add(need))
        };
        self.used.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Gives back what was taken.
    pub(crate) fn give(&self, need: u64) {
        self.used.fetch_sub(need, SeqCst);
        // Who waits has said so before he looked for the last time, so one of us sees the other.
        if self.waiting.load(SeqCst) > 0 {
            self.grant();
        }
    }

    /// Lets those in, from the front, who fit.
    fn grant(&self) {
        let mut queue = lock(&self.queue);
        // Either this sees what was given back before, or who gives back later sees that somebody waits.
        self.used.fetch_add(0, SeqCst);
        while let Some(first) = queue.front()
            && self.fits(first.need)
        {
            first.granted.store(true, SeqCst);
            let waker = lock(&first.waker).take();
            queue.pop_front();
            self.waiting.fetch_sub(1, SeqCst);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Resolves when `need` is taken. Dropped earlier, it takes nothing.
    pub(crate) fn wait<B: AsRef<Budget> + Unpin>(budget: B, need: u64) -> Wait<B> {
        let place = Arc::new(Place { need, granted: AtomicBool::new(false), waker: Mutex::default() });
        let of = budget.as_ref();
        {
            let mut queue = lock(&of.queue);
            of.waiting.fetch_add(1, SeqCst);
            queue.push_back(place.clone());
        }
        of.grant();
        Wait { budget, place: Some(place) }
    }
}

/// See [`Budget::wait`].
pub(crate) struct Wait<B: AsRef<Budget>> {
    budget: B,
    /// `None` once what it stands for was taken over.
    place: Option<Arc<Place>>,
}

impl<B: AsRef<Budget> + Unpin> Future for Wait<B> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(place) = &self.place else { return Poll::Ready(()) };
        if !place.granted.load(SeqCst) {
            *lock(&place.waker) = Some(cx.waker().clone());
            // Again: it may have been granted before the waker was there.
            if !place.granted.load(SeqCst) {
                return Poll::Pending;
            }
        }
        self.place = None;
        Poll::Ready(())
    }
}

impl<B: AsRef<Budget>> Drop for Wait<B> {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let budget = self.budget.as_ref();
        let mut queue = lock(&budget.queue);
        let before = queue.len();
        queue.retain(|other| !Arc::ptr_eq(other, &place));
        let left = before != queue.len();
        drop(queue);
        if left {
            budget.waiting.fetch_sub(1, SeqCst);
            // It may have been in the way of others.
            budget.grant();
        } else {
            budget.give(place.need);
        }
    }
}

/// Every interleaving, under `RUSTFLAGS="--cfg loom" cargo test -p block-ceph --lib --release budget`.
#[cfg(all(test, loom))]
mod model {
    use super::*;

    struct Shared(Arc<Budget>);

    impl AsRef<Budget> for Shared {
        fn as_ref(&self) -> &Budget {
            &self.0
        }
    }

    /// One has all there is and gives it back while another waits for it, or gives up waiting.
    fn one_waits(gives_up: bool) {
        loom::model(move || {
            let budget = Arc::new(Budget::new(1));
            assert!(budget.take(1));
            let of = budget.clone();
            let waits = loom::thread::spawn(move || {
                if of.take(1) {
                    return of.give(1);
                }
                let wait = Budget::wait(Shared(of.clone()), 1);
                if gives_up {
                    return drop(wait);
                }
                loom::future::block_on(wait); // loom reports a deadlock if nobody wakes it
                of.give(1);
            });
            budget.give(1);
            waits.join().unwrap();
            assert_eq!((budget.used.load(SeqCst), budget.waiting.load(SeqCst)), (0, 0));
            assert!(budget.take(1));
        });
    }

    #[test]
    fn who_waits_is_woken() {
        one_waits(false);
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        one_waits(true);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Counts(AtomicUsize);

    impl Wake for Counts {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    struct Shared(Arc<Budget>);

    impl AsRef<Budget> for Shared {
        fn as_ref(&self) -> &Budget {
            &self.0
        }
    }

    fn poll(wait: &mut Wait<Shared>, cx: &mut Context<'_>) -> bool {
        Pin::new(wait).poll(cx).is_ready()
    }

    #[test]
    fn who_does_not_fit_waits_in_order() {
        let wakes = Arc::new(Counts(AtomicUsize::new(0)));
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let budget = Arc::new(Budget::new(10));
        let wait = |need| Budget::wait(Shared(budget.clone()), need);
        assert!(budget.take(6) && budget.take(4) && !budget.take(1));
        let (mut large, mut small, mut gone) = (wait(8), wait(1), wait(2));
        assert!(!poll(&mut large, &mut cx) && !poll(&mut small, &mut cx) && !poll(&mut gone, &mut cx));
        budget.give(4);
        // There is room for the small ones, but the large one is first; nor may who comes now.
        assert!(!poll(&mut small, &mut cx) && !budget.take(1));
        budget.give(6);
        assert_eq!(wakes.0.load(SeqCst), 2, "8 and 1 fit, and not yet the 2");
        assert!(poll(&mut large, &mut cx) && poll(&mut small, &mut cx) && !poll(&mut gone, &mut cx));
        drop(gone);
        assert_eq!((budget.waiting.load(SeqCst), budget.used.load(SeqCst)), (0, 9));
        // What was granted and never taken over goes back.
        let granted = wait(1);
        assert_eq!(budget.used.load(SeqCst), 10);
        drop(granted);
        assert_eq!(budget.used.load(SeqCst), 9);
        budget.give(9);
        // More than there is at all, alone.
        assert!(budget.take(100) && !budget.take(1));
        budget.give(100);
        assert_eq!(budget.used.load(SeqCst), 0);
    }

    #[test]
    fn many_threads_never_have_too_much_and_none_starves() {
        let budget = Arc::new(Budget::new(8));
        std::thread::scope(|scope| {
            for thread in 1..=4u64 {
                let budget = budget.clone();
                scope.spawn(move || {
                    let reactor = block::Reactor::new(8).unwrap();
                    for round in 0..2000 {
                        let need = 1 + (thread + round) % 8;
                        if !budget.take(need) {
                            reactor.block_on(Budget::wait(Shared(budget.clone()), need));
                        }
                        assert!(budget.used.load(SeqCst) <= 8);
                        budget.give(need);
                    }
                });
            }
        });
        assert_eq!((budget.waiting.load(SeqCst), budget.used.load(SeqCst)), (0, 0));
    }
}
