//! The flag between a reactor that goes to sleep and threads that wake it: no wake-up is lost, and none costs a
//! system call while the reactor is awake.
//!
//! What sleeping and ringing the bell mean (an eventfd in the ring, or a futex) is left to [`super`].

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// The reactor is awake and nobody asked for it.
const AWAKE: u32 = 0;
/// The reactor sleeps in its ring or is about to: a waker must ring.
const PARKED: u32 = 1;
/// Somebody asked for the reactor since it last went to sleep.
const NOTIFIED: u32 = 2;
/// The reactor sleeps on the flag itself or is about to: a waker must wake the futex.
const ASLEEP: u32 = 3;

/// Where a reactor sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bed {
    /// In its ring, for what the kernel completes.
    Ring,
    /// On the flag: nothing is in the kernel. That costs a waker and the reactor less.
    Flag,
}

pub(super) struct ParkFlag(AtomicU32);

impl ParkFlag {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(AWAKE))
    }

    /// Called by the reactor before it sleeps. False if it was asked for meanwhile: then it must not sleep.
    pub(super) fn prepare(&self, bed: Bed) -> bool {
        let to = if bed == Bed::Ring { PARKED } else { ASLEEP };
        // Acquire: what the waker did before `notify` is seen by the reactor. Both ways out are swaps or a
        // failed exchange on the same atomic, so one of the two sides always sees the other.
        match self.0.compare_exchange(AWAKE, to, Ordering::AcqRel, Ordering::Acquire) {
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

    /// Called by any thread: where the reactor may be asleep, so that it must be woken there.
    pub(super) fn notify(&self) -> Option<Bed> {
        // A swap even when it is notified already: this thread's earlier writes must reach the reactor too.
        match self.0.swap(NOTIFIED, Ordering::AcqRel) {
            PARKED => Some(Bed::Ring),
            ASLEEP => Some(Bed::Flag),
            _ => None,
        }
    }

    /// Sleeps on the flag, prepared for that, until it is [woken](Self::wake) or for so long.
    #[cfg(not(loom))]
    pub(super) fn sleep(&self, time: std::time::Duration) {
        let time = rustix::thread::futex::Timespec::try_from(time).ok();
        // At once if somebody has asked for the reactor meanwhile; a signal ends it, too.
        let _ = rustix::thread::futex::wait(
            &self.0,
            rustix::thread::futex::Flags::PRIVATE,
            ASLEEP,
            time.as_ref(),
        );
    }

    /// Wakes who sleeps on the flag.
    #[cfg(not(loom))]
    pub(super) fn wake(&self) {
        let _ = rustix::thread::futex::wake(&self.0, rustix::thread::futex::Flags::PRIVATE, 1);
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
            match self.flag.notify() {
                None => {}
                Some(Bed::Ring) => {
                    *self.bell.lock().unwrap() = true;
                    self.rung.notify_one();
                }
                // The kernel's lock of a futex, without anything else.
                Some(Bed::Flag) => {
                    let _lock = self.bell.lock().unwrap();
                    self.rung.notify_one();
                }
            }
        }

        fn park(&self, bed: Bed) {
            if !self.flag.prepare(bed) {
                return;
            }
            let mut bell = self.bell.lock().unwrap();
            match bed {
                Bed::Ring => {
                    while !*bell {
                        bell = self.rung.wait(bell).unwrap(); // loom reports a deadlock if nobody will ring
                    }
                    *bell = false;
                }
                // Compared under the lock, once: a futex.
                Bed::Flag => {
                    if self.flag.0.load(Ordering::Relaxed) == ASLEEP {
                        bell = self.rung.wait(bell).unwrap();
                    }
                }
            }
            drop(bell);
            self.flag.finish();
        }
    }

    fn no_wake_up_is_lost(wakers: usize, takes: bool, beds: [Bed; 2]) {
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
            let mut bed = beds.into_iter().cycle();
            while shared.work.load(Ordering::Relaxed) < wakers {
                if !takes || !shared.flag.take() {
                    shared.park(bed.next().unwrap());
                }
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn one_waker() {
        no_wake_up_is_lost(1, false, [Bed::Ring; 2]);
        no_wake_up_is_lost(1, false, [Bed::Flag; 2]);
    }

    #[test]
    fn two_wakers() {
        no_wake_up_is_lost(2, false, [Bed::Ring; 2]);
    }

    #[test]
    fn a_reactor_that_sleeps_in_different_places() {
        no_wake_up_is_lost(1, false, [Bed::Ring, Bed::Flag]);
        no_wake_up_is_lost(1, false, [Bed::Flag, Bed::Ring]);
    }

    #[test]
    fn wishes_taken_while_awake() {
        no_wake_up_is_lost(1, true, [Bed::Ring; 2]);
        no_wake_up_is_lost(1, true, [Bed::Flag; 2]);
    }
}
