//! Making what was written durable: one fdatasync at a time per channel, which everybody shares who asked before it
//! began (group commit).
//!
//! The kernel tells of data that it could not write back once per open file, and then forgets it. So each channel has an
//! open file of its own, two of its syncs are never under way together, and one whose submitters are all gone is still
//! listened to: no error can be taken by somebody who does not pass it on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use block::reactor::OnDrop;
use block::{Error, Op};
use io_uring::{opcode, types};

use crate::channel::Shared;
use crate::pool::Resources;
use crate::transfer::MAX_RETRIES;

/// Who syncs, and who waits for it.
#[derive(Default)]
pub(crate) struct Syncs(RefCell<State>);

#[derive(Default)]
struct State {
    /// Number of the sync that began last.
    begun: u64,
    running: bool,
    /// Number of the sync that succeeded last. One that fails leaves its mark on the image.
    succeeded: u64,
    /// The errno of the last one that did not, if it says that nothing was tried.
    refused: i32,
    waiting: HashMap<u64, Waker>,
    last_waiter: u64,
}

impl Syncs {
    /// The kernel is done with sync `number`.
    fn ended(&self, number: u64, refused: i32) {
        let mut state = self.0.borrow_mut();
        state.running = false;
        state.refused = refused;
        if refused == 0 {
            state.succeeded = number;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state); // a waker may run any code
        waiting.into_values().for_each(Waker::wake);
    }
}

/// What the kernel uses of a sync: the descriptor.
struct Keep {
    resources: Rc<Resources>,
    number: u64,
}

/// Takes the result of a sync, whoever waits for it.
fn ended(Keep { resources, number }: Keep, result: i32) {
    let mut refused = 0;
    if result < 0 {
        match -result {
            errno @ (libc::EINTR | libc::EAGAIN | libc::ECANCELED) => refused = errno,
            errno => {
                let _told = resources.image.sync_error(Op::Flush, errno);
            }
        }
    }
    resources.syncs.ended(number, refused);
}

impl Shared {
    /// Everything that was written before this is polled first becomes durable.
    pub(crate) async fn sync(&self) -> Result<(), Error> {
        let (image, syncs) = (&self.resources.image, &self.resources.syncs);
        // One that runs already may have passed by what was written last.
        let wanted = syncs.0.borrow().begun + 1;
        let mut retries = 0;
        loop {
            image.check_durable()?;
            if syncs.0.borrow().succeeded >= wanted {
                return Ok(());
            }
            if syncs.0.borrow().running {
                Turn { syncs, waiter: None }.await;
                continue;
            }
            let refused = syncs.0.borrow().refused;
            if retries == MAX_RETRIES {
                return Err(image.error(Op::Flush, refused));
            }
            if retries > 0 && refused != libc::EINTR {
                self.reactor.sleep(Duration::from_millis(1)).await;
                if syncs.0.borrow().running {
                    continue;
                }
            }
            retries += 1;
            self.run().await;
        }
    }

    /// One sync, which goes on even if this is dropped: others may count on it.
    async fn run(&self) {
        let number = {
            let mut state = self.resources.syncs.0.borrow_mut();
            state.running = true;
            state.begun += 1;
            state.begun
        };
        let entry = opcode::Fsync::new(types::Fd(self.resources.fd())).flags(types::FsyncFlags::DATASYNC);
        let keep = Keep { resources: self.resources.clone(), number };
        let on_drop = OnDrop { cancel: false, ended };
        // SAFETY: the entry has no memory; the descriptor is kept.
        let (result, keep) = unsafe { self.reactor.submit_or(entry.build(), keep, on_drop) }.await;
        ended(keep, result);
    }
}

/// Waits until the sync that runs has ended.
struct Turn<'a> {
    syncs: &'a Syncs,
    waiter: Option<u64>,
}

impl Future for Turn<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.syncs.0.borrow_mut();
        let waiter = match self.waiter {
            // Woken, all of them at once.
            Some(waiter) if !state.waiting.contains_key(&waiter) => return Poll::Ready(()),
            Some(waiter) => waiter,
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
        let waker = self.waiter.and_then(|waiter| self.syncs.0.borrow_mut().waiting.remove(&waiter));
        drop(waker); // after the borrow
    }
}
