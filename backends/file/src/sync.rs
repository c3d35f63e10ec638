//! Making what was written durable: one fdatasync at a time per image, which everybody shares who asked before it began
//! (group commit), on whatever reactor.
//!
//! The kernel tells of data that it could not write back once per open file, and then forgets it. So all syncs go through
//! the one open file that is as old as the image, two are never under way together, and each is listened to whoever waits
//! for it: no error can be taken by somebody who does not pass it on.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use block::{Error, Op};
use io_uring::{opcode, types};

use crate::channel::Shared;
use crate::image::Image;
use crate::transfer::MAX_RETRIES;

/// Who syncs, and who waits for it. A lock for flushes, which no read and no other write takes.
#[derive(Default)]
pub(crate) struct Syncs(Mutex<State>);

#[derive(Default)]
struct State {
    /// Number of the sync that began last.
    begun: u64,
    running: bool,
    /// Number of the sync that succeeded last. One that failed has left its mark on the image.
    succeeded: u64,
    /// The errno of the last one that did not succeed, if it says that nothing was tried.
    refused: i32,
    waiting: HashMap<u64, Waker>,
    last_waiter: u64,
}

impl Syncs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an errno says that nothing was tried, so that nothing is lost by it.
pub(crate) fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EINTR | libc::EAGAIN | libc::ECANCELED)
}

/// The kernel is done with sync `number`.
fn ended((image, number): (Arc<Image>, u64), result: i32) {
    if result < 0 && !is_refusal(-result) {
        let _told = image.sync_error(Op::Flush, -result);
    }
    let mut state = image.syncs.lock();
    state.running = false;
    if result < 0 {
        state.refused = -result;
    } else {
        state.succeeded = number;
    }
    let waiting = std::mem::take(&mut state.waiting);
    drop(state); // a waker may run any code
    waiting.into_values().for_each(Waker::wake);
}

impl Shared {
    /// Everything that was written before this is polled first becomes durable.
    pub(crate) async fn sync(&self) -> Result<(), Error> {
        let image = &self.resources.image;
        // One that runs already may have passed by what was written last.
        let wanted = image.syncs.lock().begun + 1;
        let mut tries = 0;
        loop {
            image.check_durable()?;
            let refused = {
                let state = image.syncs.lock();
                if state.succeeded >= wanted {
                    return Ok(());
                }
                state.refused
            };
            if tries > 0 && refused != libc::EINTR {
                self.reactor.sleep(Duration::from_millis(1)).await;
            }
            if tries == MAX_RETRIES {
                return Err(image.error(Op::Flush, refused));
            }
            tries += u32::from(self.begin());
            Turn { image, waiter: None }.await;
        }
    }

    /// Starts a sync if none runs. It goes on whoever waits for it, and its end is heard by this reactor's turn.
    fn begin(&self) -> bool {
        let image = &self.resources.image;
        let number = {
            let mut state = image.syncs.lock();
            if state.running {
                return false;
            }
            state.running = true;
            state.begun += 1;
            state.begun
        };
        let entry = opcode::Fsync::new(types::Fd(image.fd())).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: the entry has no memory; the descriptor is the image's, which is kept.
        unsafe { self.reactor.submit_detached(entry, (image.clone(), number), ended) };
        true
    }
}

/// Waits until no sync runs, or one has ended.
struct Turn<'a> {
    image: &'a Image,
    waiter: Option<u64>,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.image.syncs.lock();
        let waiter = match self.waiter {
            // Woken, all of them at once.
            Some(waiter) if !state.waiting.contains_key(&waiter) => return Poll::Ready(()),
            Some(waiter) => waiter,
            None if !state.running => return Poll::Ready(()),
            None => {
                state.last_waiter += 1;
                state.last_waiter
            }
        };
        let former = state.waiting.insert(waiter, cx.waker().clone());
        drop(state);
        drop(former); // may run any code
        self.waiter = Some(waiter);
        Poll::Pending
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let waker = self.waiter.and_then(|waiter| self.image.syncs.lock().waiting.remove(&waiter));
        drop(waker); // with the lock free
    }
}
