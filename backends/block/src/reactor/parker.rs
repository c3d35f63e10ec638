//! The flag between a reactor that goes to sleep and threads that wake it: no wake-up is lost, and none costs a
//! system call while the reactor is awake.
//!
//! What sleeping and ringing the bell mean (an eventfd) is left to [`super`].

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, Ordering};

/// The reactor is awake and nobody asked for it.
const AWAKE: u8 = 0;
/// The reactor sleeps or is about to: a waker must ring.
const PARKED: u8 = 1;
/// Somebody asked for the reactor since it last went to sleep.
const NOTIFIED: u8 = 2;

pub(super) struct ParkFlag(AtomicU8);

impl ParkFlag {
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// Called by the reactor before it sleeps. False if it was asked for meanwhile: then it must not sleep.
    pub(super) fn prepare(&self) -> bool {
        // Acquire: what the waker did before `notify` is seen by the reactor. Both ways out are swaps or a
        // failed exchange on the same atomic, so one of the two sides always sees the other.
        match self.0.compare_exchange(AWAKE, PARKED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => {
                self.finish();
                false
            }
        }
    }

    /// Called by the reactor after it slept (or did not): takes the wish that was seen.
    pub(super) fn finish(&self) {
        self.0.swap(AWAKE, Ordering::AcqRel);
    }

    /// Called by the reactor while it is awake: takes a wish, if there is one.
    pub(super) fn take(&self) -> bool {
        // Most times there is none; one that comes now is seen by the next call, or by `prepare`.
        if self.0.load(Ordering::Relaxed) != NOTIFIED {
            return false;
        }
        self.finish();
        true
    }

    /// Called by any thread: true if the reactor may be asleep, so that the bell must be rung.
    pub(super) fn notify(&self) -> bool {
        // A swap even when it is notified already: this thread's earlier writes must reach the reactor too.
        self.0.swap(NOTIFIED, Ordering::AcqRel) == PARKED
    }
}

/// Every interleaving, under `RUSTFLAGS="--cfg loom" cargo test -p block --lib --release parker`.
#[cfg(all(test, loom))]
mod model {
    use loom::sync::atomic::AtomicUsize;
    use loom::sync::{Arc, Condvar, Mutex};

    use super::*;

    struct Shared {
        flag: ParkFlag,
        /// The eventfd: level-triggered, drained by the reactor.
        bell: Mutex<bool>,
        rung: Condvar,
        /// What the wakers want the reactor to see.
        work: AtomicUsize,
    }

    impl Shared {
        fn unpark(&self) {
            if self.flag.notify() {
                *self.bell.lock().unwrap() = true;
                self.rung.notify_one();
            }
        }

        fn park(&self) {
            if !self.flag.prepare() {
                return;
            }
            let mut bell = self.bell.lock().unwrap();
            while !*bell {
                bell = self.rung.wait(bell).unwrap(); // loom reports a deadlock if nobody will ring
            }
            *bell = false;
            drop(bell);
            self.flag.finish();
        }
    }

    fn no_wake_up_is_lost(wakers: usize, takes: bool) {
        loom::model(move || {
            let shared = Arc::new(Shared {
                flag: ParkFlag::new(),
                bell: Mutex::new(false),
                rung: Condvar::new(),
                work: AtomicUsize::new(0),
            });
            let threads: Vec<_> = (0..wakers)
                .map(|_| {
                    let shared = shared.clone();
                    loom::thread::spawn(move || {
                        // Relaxed: the flag alone must carry it over.
                        shared.work.fetch_add(1, Ordering::Relaxed);
                        shared.unpark();
                    })
                })
                .collect();
            while shared.work.load(Ordering::Relaxed) < wakers {
                if !takes || !shared.flag.take() {
                    shared.park();
                }
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn one_waker() {
        no_wake_up_is_lost(1, false);
    }

    #[test]
    fn two_wakers() {
        no_wake_up_is_lost(2, false);
    }

    #[test]
    fn wishes_taken_while_awake() {
        no_wake_up_is_lost(1, true);
    }
}
