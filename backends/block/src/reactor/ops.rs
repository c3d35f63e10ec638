//! Operations in the hands of the kernel, and the futures that wait for them.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Inner;

/// Names an operation: its slot, and the slot's generation in the upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpId(pub(super) u64);

impl OpId {
    /// Beyond all slots.
    pub(super) const NONE: Self = Self(u64::MAX);

    fn new(generation: u32, slot: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Slots from here on are never given out, so that the largest user data have other meanings.
const MAX_SLOTS: u32 = 1 << 24;
const NO_SLOT: u32 = u32::MAX;

pub(super) enum Slot {
    /// The next free slot, or [`NO_SLOT`].
    Free(u32),
    /// The kernel has it, and perhaps a future waits.
    Waiting(Option<Waker>),
    /// The kernel is done with it; the future has not yet seen the result.
    Done(i32),
    /// The kernel has it, and its future is gone: what it owned lives here until the kernel is done, and takes the
    /// result then.
    Orphan(Box<dyn FnOnce(i32)>),
}

/// What becomes of an operation whose future is dropped before the kernel is done with it.
pub struct OnDrop<K> {
    /// The kernel is asked to give it back soon. Else it goes on to its end.
    pub cancel: bool,
    /// Takes the result and what the operation owned when the kernel is done; may run at any turn.
    pub ended: fn(K, i32),
}

/// What is to be done about a completion once no borrow is held: both may run any code.
pub(super) enum Effect {
    Nothing,
    Wake(Waker),
    End(Box<dyn FnOnce(i32)>, i32),
}

pub(super) struct Ops {
    slots: Vec<(u32, Slot)>,
    free: u32,
    in_kernel: usize,
    orphans: usize,
}

impl Ops {
    pub(super) fn new(capacity: usize) -> Self {
        Self { slots: Vec::with_capacity(capacity), free: NO_SLOT, in_kernel: 0, orphans: 0 }
    }

    /// Operations that the kernel has or that wait to be handed to it.
    pub(super) fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// Those of them whose futures are gone.
    pub(super) fn orphans(&self) -> usize {
        self.orphans
    }

    pub(super) fn insert(&mut self) -> Option<OpId> {
        let slot = if self.free == NO_SLOT {
            let slot = u32::try_from(self.slots.len()).ok().filter(|slot| *slot < MAX_SLOTS)?;
            self.slots.push((0, Slot::Waiting(None)));
            slot
        } else {
            let slot = self.free;
            let entry = &mut self.slots[slot as usize];
            if let Slot::Free(next) = entry.1 {
                self.free = next;
            }
            entry.1 = Slot::Waiting(None);
            slot
        };
        self.in_kernel += 1;
        Some(OpId::new(self.slots[slot as usize].0, slot))
    }

    fn get(&mut self, id: OpId) -> Option<&mut Slot> {
        let (generation, slot) = self.slots.get_mut(id.slot())?;
        (*generation == id.generation()).then_some(slot)
    }

    fn release(&mut self, id: OpId) -> Option<Slot> {
        let free = self.free;
        let (generation, slot) = self.slots.get_mut(id.slot())?;
        *generation = generation.wrapping_add(1);
        let old = std::mem::replace(slot, Slot::Free(free));
        self.free = id.slot() as u32;
        Some(old)
    }

    /// The kernel is done with `id`.
    pub(super) fn complete(&mut self, id: OpId, result: i32) -> Effect {
        match self.get(id) {
            Some(slot @ Slot::Waiting(_)) => {
                let Slot::Waiting(waker) = std::mem::replace(slot, Slot::Done(result)) else {
                    return Effect::Nothing;
                };
                self.in_kernel -= 1;
                waker.map_or(Effect::Nothing, Effect::Wake)
            }
            Some(Slot::Orphan(_)) => {
                self.in_kernel -= 1;
                self.orphans -= 1;
                match self.release(id) {
                    Some(Slot::Orphan(ended)) => Effect::End(ended, result),
                    _ => Effect::Nothing,
                }
            }
            _ => {
                tracing::error!(user_data = id.0, result, "completion of an unknown operation: a defect");
                Effect::Nothing
            }
        }
    }

    /// The result if there is one; else remembers `waker`, giving back the one before.
    pub(super) fn poll(&mut self, id: OpId, waker: &Waker) -> Result<i32, Option<Waker>> {
        match self.get(id) {
            Some(Slot::Done(result)) => {
                let result = *result;
                self.release(id);
                Ok(result)
            }
            Some(Slot::Waiting(Some(current))) if current.will_wake(waker) => Err(None),
            Some(Slot::Waiting(current)) => Err(current.replace(waker.clone())),
            _ => Err(None),
        }
    }

    /// The future of `id` is dropped. If the kernel still has the operation then `keep` is put away, and the
    /// slot's former contents come back, to be dropped outside of any borrow. If not, then what `keep` is to hear.
    pub(super) fn orphan<K: 'static>(
        &mut self,
        id: OpId,
        keep: &mut Option<K>,
        ended: fn(K, i32),
    ) -> Orphaned {
        match self.get(id) {
            Some(slot @ Slot::Waiting(_)) => {
                let keep = keep.take();
                // An allocation, but only when something is cancelled.
                let ended = Box::new(move |result| keep.into_iter().for_each(|keep| ended(keep, result)));
                let waiting = std::mem::replace(slot, Slot::Orphan(ended));
                self.orphans += 1;
                Orphaned::Waits(waiting)
            }
            Some(Slot::Done(result)) => {
                let result = *result;
                self.release(id);
                Orphaned::Ended(result)
            }
            _ => Orphaned::Unknown,
        }
    }
}

/// What became of an operation whose future is dropped.
pub(super) enum Orphaned {
    /// The kernel has it. What was in its slot.
    Waits(#[expect(dead_code, reason = "dropped by whoever gets it")] Slot),
    Ended(i32),
    Unknown,
}

/// An operation given to the kernel: resolves to its result and the `keep` that was handed in.
///
/// The result is what the kernel wrote: not negative on success, a negated errno otherwise.
///
/// Dropping it early cancels the operation if that is still possible (see [`OnDrop`] for other ways); `keep` stays alive
/// until the kernel is done.
#[must_use = "dropping it cancels the operation"]
pub struct RingOp<K: 'static> {
    inner: Rc<Inner>,
    /// [`OpId::NONE`] if it never got a slot.
    id: OpId,
    keep: Option<K>,
    on_drop: OnDrop<K>,
}

// `keep` is never pinned: it moves with the future, and the kernel knows only what it points to.
impl<K> Unpin for RingOp<K> {}

impl<K> RingOp<K> {
    /// Makes the operation's slot and lets `start` hand it to the kernel.
    pub(super) fn new(inner: Rc<Inner>, keep: K, on_drop: OnDrop<K>, start: impl FnOnce(OpId)) -> Self {
        let id = inner.ops.borrow_mut().insert();
        if let Some(id) = id {
            start(id);
        }
        let id = id.unwrap_or(OpId::NONE);
        Self { inner, id, keep: Some(keep), on_drop }
    }
}

impl<K> Future for RingOp<K> {
    type Output = (i32, K);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(i32, K)> {
        let polled = match self.id {
            OpId::NONE => Ok(-libc::EAGAIN),
            id => self.inner.ops.borrow_mut().poll(id, cx.waker()),
        };
        match polled {
            Ok(result) => self.keep.take().map_or(Poll::Pending, |keep| Poll::Ready((result, keep))),
            Err(old) => {
                drop(old);
                Poll::Pending
            }
        }
    }
}

impl<K> Drop for RingOp<K> {
    fn drop(&mut self) {
        if self.id == OpId::NONE {
            // It never began: as a poll would have it.
            if let Some(keep) = self.keep.take() {
                (self.on_drop.ended)(keep, -libc::EAGAIN);
            }
        } else if self.keep.is_some() {
            let orphaned = self.inner.ops.borrow_mut().orphan(self.id, &mut self.keep, self.on_drop.ended);
            match orphaned {
                Orphaned::Waits(_) if self.on_drop.cancel => self.inner.cancel(self.id),
                Orphaned::Waits(_) | Orphaned::Unknown => {}
                Orphaned::Ended(result) => {
                    if let Some(keep) = self.keep.take() {
                        (self.on_drop.ended)(keep, result);
                    }
                }
            }
        }
    }
}
