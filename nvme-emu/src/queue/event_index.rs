//! The promise of shadow doorbells (Base 5.11): a host that stores a new value into the shadow doorbell rings the real
//! one too if the value passes the EventIdx. A controller that looks at the shadow anyway leaves the EventIdx where it
//! is; before it stops looking it moves the EventIdx to what it has seen, and looks once more.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Asks the host to ring the real doorbell when it passes `seen`. Returns what the shadow doorbell holds then: if that is
/// not `seen`, the host may not have known, and will not ring.
pub(super) fn ask(event: &AtomicU32, doorbell: &AtomicU32, seen: u32) -> u32 {
    event.store(seen, Ordering::Relaxed);
    // Between the store above and the load below, as the host has one between its store and its load: one of the two
    // sees the other's.
    fence(Ordering::SeqCst);
    doorbell.load(Ordering::Acquire)
}

/// Every interleaving, under `RUSTFLAGS="--cfg loom" cargo test -p nvme-emu --lib --release event_index`.
#[cfg(all(test, loom))]
mod model {
    use loom::sync::{Arc, Condvar, Mutex};

    use super::*;

    struct Shared {
        doorbell: AtomicU32,
        event: AtomicU32,
        /// The real doorbell: a message, which wakes the reactor.
        rung: Mutex<bool>,
        bell: Condvar,
    }

    /// The host's side, as the Linux driver does it (`nvme_dbbuf_update_and_check_event`).
    fn store(shared: &Shared, old: u32, new: u32) {
        shared.doorbell.store(new, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = shared.event.load(Ordering::Relaxed);
        let passes =
            (new as u16).wrapping_sub(event as u16).wrapping_sub(1) < (new as u16).wrapping_sub(old as u16);
        if passes {
            *shared.rung.lock().unwrap() = true;
            shared.bell.notify_one();
        }
    }

    /// The reactor sleeps whenever it has seen all there is, as far as it knows, and still sees every command.
    fn nothing_is_slept_over(stores: &'static [u32], start: u32) {
        loom::model(move || {
            let shared = Arc::new(Shared {
                doorbell: AtomicU32::new(start),
                event: AtomicU32::new(start),
                rung: Mutex::new(false),
                bell: Condvar::new(),
            });
            let host = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    let mut old = start;
                    for new in stores {
                        store(&shared, old, *new);
                        old = *new;
                    }
                })
            };
            let last = stores[stores.len() - 1];
            let mut seen = start;
            while seen != last {
                let now = shared.doorbell.load(Ordering::Acquire);
                if now != seen {
                    seen = now;
                    continue;
                }
                let now = ask(&shared.event, &shared.doorbell, seen);
                if now != seen {
                    continue;
                }
                let mut rung = shared.rung.lock().unwrap();
                while !*rung {
                    rung = shared.bell.wait(rung).unwrap(); // loom reports a deadlock if nobody will ring
                }
                *rung = false;
            }
            host.join().unwrap();
        });
    }

    #[test]
    fn one_store() {
        nothing_is_slept_over(&[1], 0);
    }

    #[test]
    fn two_stores() {
        nothing_is_slept_over(&[2, 3], 0);
    }

    #[test]
    fn around_the_end_of_the_queue() {
        nothing_is_slept_over(&[0, 1], 3);
    }
}
