//! Compare (NVM 3.2.1): the blocks are read into a buffer of this program and compared with the guest's bytes here, so
//! that every device has it.
//!
//! Buffers are allocated: nobody compares much. What those of one worker take together is bounded by its [`Room`], for
//! which commands wait in the order they came.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block::io::Guard;
use block::{AlignedBuf, Channel, Error, ErrorKind, Io, Op, Segment};

use crate::nvm::{self, Range};

/// Bytes that the buffers of one worker take: several of the largest commands (MDTS is 1 MiB at most).
const ROOM: usize = 4 << 20;

/// Bytes that are copied out of guest memory at once.
const PIECE: usize = 4096;

/// What is left for the buffers of one worker, and who waits for some of it.
pub(crate) struct Room {
    free: Cell<usize>,
    /// By ticket, which only grow: the first is served first.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    tickets: Cell<u64>,
}

impl Default for Room {
    fn default() -> Self {
        Self { free: Cell::new(ROOM), waiting: RefCell::default(), tickets: Cell::new(0) }
    }
}

impl Room {
    async fn take(self: &Rc<Self>, bytes: usize) -> Share {
        let mut place = Place { room: self, ticket: None };
        std::future::poll_fn(|cx| place.poll(bytes.min(ROOM), cx)).await
    }

    /// Whoever is first may find room now.
    fn wake_first(&self) {
        let first = self.waiting.borrow().front().map(|(_, waker)| waker.clone());
        if let Some(waker) = first {
            waker.wake();
        }
    }
}

/// A place among those that wait, given up when dropped.
struct Place<'a> {
    room: &'a Rc<Room>,
    ticket: Option<u64>,
}

impl Place<'_> {
    fn poll(&mut self, bytes: usize, cx: &Context<'_>) -> Poll<Share> {
        let Self { room, ticket } = self;
        let mut waiting = room.waiting.borrow_mut();
        let first = waiting.front().map(|(ticket, _)| *ticket);
        if (first.is_none() || first == *ticket) && room.free.get() >= bytes {
            room.free.set(room.free.get() - bytes);
            drop(waiting);
            self.leave();
            return Poll::Ready(Share { room: self.room.clone(), bytes });
        }
        let own = *ticket.get_or_insert_with(|| {
            room.tickets.set(room.tickets.get() + 1);
            room.tickets.get()
        });
        match waiting.binary_search_by_key(&own, |(ticket, _)| *ticket) {
            Ok(at) => waiting[at].1.clone_from(cx.waker()),
            Err(at) => waiting.insert(at, (own, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// Waits no longer; the next may be the first now.
    fn leave(&mut self) {
        let Some(own) = self.ticket.take() else { return };
        let mut waiting = self.room.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search_by_key(&own, |(ticket, _)| *ticket) {
            waiting.remove(at);
        }
        drop(waiting);
        self.room.wake_first();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Room that is taken, given back when dropped.
struct Share {
    room: Rc<Room>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.free.set(self.room.free.get() + self.bytes);
        self.room.wake_first();
    }
}

/// The guard of the read: the device may write to the buffer for as long as it holds this, and the guest's memory counts
/// as held for so long too.
struct Kept {
    buffer: AlignedBuf,
    _share: Share,
    _guest: Guard,
}

/// Compares the blocks of `range` with the guest's bytes, which `guard` keeps mapped.
pub(crate) async fn compare(
    channel: Rc<dyn Channel>,
    range: Range,
    expected: Vec<Segment>,
    room: Rc<Room>,
    tag: u64,
    guard: Guard,
) -> Result<(), Error> {
    let Range { flags, lba, blocks, bytes } = range;
    let share = room.take(bytes).await;
    let buffer = AlignedBuf::new(bytes, PIECE).map_err(|error| Error::new(ErrorKind::Internal, error))?;
    let kept = Rc::new(Kept { buffer, _share: share, _guest: guard });
    let ptr = NonNull::new(kept.buffer.as_ptr()).ok_or(ErrorKind::Internal)?;
    // SAFETY: `bytes` bytes of the buffer, which the guard of the `Io` keeps; nobody looks at them until it is complete.
    let segment = unsafe { Segment::new(ptr, bytes) };
    let io = Io::new(Op::Read, lba, blocks, vec![segment], Some(kept.clone()), tag).with_flags(flags);
    nvm::run(&*channel, io).await?;
    if is_equal(&kept.buffer, &expected) { Ok(()) } else { Err(ErrorKind::CompareMismatch.into()) }
}

/// Whether `expected` holds the same bytes. The guest may write them meanwhile: each is looked at once.
fn is_equal(mut found: &[u8], expected: &[Segment]) -> bool {
    let mut piece = [0; PIECE];
    for segment in expected {
        let mut at = 0;
        while at < segment.len() {
            let n = segment.read(at, &mut piece);
            match found.split_at_checked(n) {
                Some((same, rest)) if same == &piece[..n] => found = rest,
                _ => return false,
            }
            at += n;
        }
    }
    found.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll<F: Future>(future: Pin<&mut F>, woken: &Arc<Woken>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(&Waker::from(woken.clone()))) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn was_woken(woken: &Woken) -> bool {
        woken.0.swap(0, Ordering::Relaxed) > 0
    }

    #[test]
    fn room_is_given_in_order_and_comes_back() {
        let room = Rc::new(Room::default());
        let woken: [Arc<Woken>; 3] = Default::default();
        let (mut all, mut large) = (pin!(room.take(usize::MAX)), Box::pin(room.take(ROOM / 2)));
        let (mut small, mut last) = (pin!(room.take(1)), pin!(room.take(ROOM)));
        let held = poll(all.as_mut(), &woken[0]).expect("all of it is there");
        assert!(poll(large.as_mut(), &woken[0]).is_none());
        assert!(poll(small.as_mut(), &woken[1]).is_none());
        assert!(poll(last.as_mut(), &woken[2]).is_none());
        drop(held);
        assert!(was_woken(&woken[0]) && !was_woken(&woken[1]));
        assert!(poll(small.as_mut(), &woken[1]).is_none(), "it is not the first");
        // The first goes without having been served: the next does not wait for it.
        drop(large);
        assert!(was_woken(&woken[1]) && !was_woken(&woken[2]));
        let held = poll(small.as_mut(), &woken[1]).expect("there is room");
        assert!(was_woken(&woken[2]));
        assert!(poll(last.as_mut(), &woken[2]).is_none(), "not for all of it");
        drop(held);
        assert!(was_woken(&woken[2]));
        assert!(poll(last.as_mut(), &woken[2]).is_some());
        assert_eq!(room.free.get(), ROOM);
        assert!(room.waiting.borrow().is_empty());
    }
}
