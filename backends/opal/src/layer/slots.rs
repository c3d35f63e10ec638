//! [`Running`]: an `Io` under way below. The futures of channels are too large to lie in each other: a channel keeps places for
//! those below it, which are used again and again.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use block::{Completed, IoFuture};

use super::channel::Core;

/// A place, which does not move when the box does.
type Slot = Pin<Box<Option<IoFuture>>>;

/// Places that are empty.
#[derive(Default)]
pub(super) struct Slots(RefCell<Vec<Slot>>);

/// An inner future in its place. Dropping it cancels that.
pub(super) struct Running {
    core: Rc<Core>,
    slot: Option<Slot>,
}

impl Running {
    pub(super) fn new(core: Rc<Core>, future: IoFuture) -> Self {
        let slot = core.slots.0.borrow_mut().pop();
        let mut slot = slot.unwrap_or_else(|| Box::pin(None));
        slot.as_mut().set(Some(future));
        Self { core, slot: Some(slot) }
    }

    pub(super) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    /// Pending for ever once it was ready.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Completed> {
        let future = self.slot.as_mut().and_then(|slot| slot.as_mut().as_pin_mut());
        let Some(future) = future else { return Poll::Pending };
        let Poll::Ready(completed) = future.poll(cx) else { return Poll::Pending };
        self.end();
        Poll::Ready(completed)
    }

    fn end(&mut self) {
        if let Some(mut slot) = self.slot.take() {
            slot.as_mut().set(None); // its drop may run anything: nothing is borrowed
            self.core.slots.0.borrow_mut().push(slot);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
