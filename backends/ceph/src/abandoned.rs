//! [`Abandoned`]: ranges that operations still change though nobody waits for those operations any more.
//!
//! A library does not take an operation back, and does not keep the order of two that it has at the same time. So whoever
//! comes later to such a range waits until it is over: a write that a guest has given up never overtakes one that it made
//! afterwards.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// Bytes from the first to before the second.
pub(crate) type Range = (u64, u64);

/// Shared by all channels of a disk. Costs a look while there is none.
#[derive(Default)]
pub(crate) struct Abandoned {
    count: AtomicUsize,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    ranges: Vec<(u64, Range)>,
    waiting: Vec<(u64, Waker)>,
    next: u64,
}

impl List {
    fn changes(&self, range: Range) -> bool {
        self.ranges.iter().any(|(_, other)| other.0.max(range.0) < other.1.min(range.1))
    }
}

impl Abandoned {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// One more, which is [over](Self::end) later.
    pub(crate) fn begin(&self, range: Range) -> u64 {
        let mut list = self.lock();
        list.next += 1;
        let id = list.next;
        list.ranges.push((id, range));
        self.count.fetch_add(1, SeqCst);
        id
    }

    /// What [`Self::begin`] named is over.
    pub(crate) fn end(&self, id: u64) {
        let mut list = self.lock();
        list.ranges.retain(|(other, _)| *other != id);
        self.count.fetch_sub(1, SeqCst);
        let waiting = std::mem::take(&mut list.waiting);
        drop(list);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        self.count.load(SeqCst) > 0
    }

    /// Whether any changes a part of `range`.
    pub(crate) fn changes(&self, range: Range) -> bool {
        self.any() && self.lock().changes(range)
    }

    /// Resolves when nothing that was abandoned changes `range`.
    pub(crate) fn gone<A: AsRef<Self> + Unpin>(of: A, range: Range) -> Gone<A> {
        Gone { of, range, place: None }
    }
}

/// See [`Abandoned::gone`].
pub(crate) struct Gone<A: AsRef<Abandoned>> {
    of: A,
    range: Range,
    /// Names its waker.
    place: Option<u64>,
}

impl<A: AsRef<Abandoned> + Unpin> Future for Gone<A> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let abandoned = this.of.as_ref();
        if !abandoned.any() {
            return Poll::Ready(());
        }
        let mut list = abandoned.lock();
        if !list.changes(this.range) {
            return Poll::Ready(());
        }
        let place = *this.place.get_or_insert_with(|| {
            list.next += 1;
            list.next
        });
        match list.waiting.iter_mut().find(|(other, _)| *other == place) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => list.waiting.push((place, cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl<A: AsRef<Abandoned>> Drop for Gone<A> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.of.as_ref().lock().waiting.retain(|(other, _)| *other != place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Shared(Arc<Abandoned>);

    impl AsRef<Abandoned> for Shared {
        fn as_ref(&self) -> &Abandoned {
            &self.0
        }
    }

    #[test]
    fn only_who_comes_to_the_range_waits_until_it_is_over() {
        let abandoned = Arc::new(Abandoned::default());
        let reactor = block::Reactor::new(8).unwrap();
        let gone = |range| Abandoned::gone(Shared(abandoned.clone()), range);
        reactor.block_on(gone((0, 8)));
        let (first, second) = (abandoned.begin((8, 16)), abandoned.begin((12, 20)));
        for free in [(0, 8), (20, 30), (14, 14)] {
            reactor.block_on(gone(free));
        }
        let mut waits = [gone((0, 9)), gone((15, 16)), gone((19, 40)), gone((0, 100))];
        let mut ready =
            || waits.each_mut().map(|wait| reactor.block_on(block::testing::poll_once(wait)).is_some());
        assert_eq!(ready(), [false; 4]);
        abandoned.end(first);
        assert_eq!(ready(), [true, false, false, false]);
        let ended = std::thread::spawn({
            let abandoned = abandoned.clone();
            move || abandoned.end(second)
        });
        reactor.block_on(gone((0, 100)));
        ended.join().unwrap();
        assert_eq!(ready(), [true; 4]);
        assert!(!abandoned.any());
    }
}
