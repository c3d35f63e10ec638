//! What a channel's operations own while the kernel has them: the image, iovec lists and bounce buffers, all reused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::{AlignedBuf, Error};

use crate::geometry::MAX_ALIGN;
use crate::image::Image;

/// Bytes of a bounce buffer: what is moved at once of an I/O that needs one.
pub(crate) const BOUNCE: usize = 128 << 10;
/// Bounce buffers of a channel. Who finds none waits: 8 MiB bound what misaligned guests can take.
const MAX_BOUNCES: usize = 64;
/// Iovec lists kept for reuse.
const MAX_LISTS: usize = 256;

/// Iovecs, which only the kernel follows.
pub(crate) type IoVecs = Vec<libc::iovec>;

/// Owned by every operation in the kernel, so it holds no reactor.
pub(crate) struct Resources {
    pub(crate) image: Arc<Image>,
    lists: RefCell<Vec<IoVecs>>,
    bounces: RefCell<Vec<AlignedBuf>>,
    bounces_made: Cell<usize>,
    /// Who waits for a bounce buffer, in order. While anybody does, none is free.
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Resources {
    pub(crate) fn new(image: Arc<Image>) -> Self {
        Self {
            image,
            lists: RefCell::default(),
            bounces: RefCell::default(),
            bounces_made: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// An empty list.
    pub(crate) fn take_list(&self) -> IoVecs {
        self.lists.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn return_list(&self, mut list: IoVecs) {
        let mut lists = self.lists.borrow_mut();
        if list.capacity() > 0 && lists.len() < MAX_LISTS {
            list.clear();
            lists.push(list);
        }
    }

    /// A bounce buffer, once there is one.
    pub(crate) fn bounce(self: &Rc<Self>) -> impl Future<Output = Result<Bounce, Error>> + use<> {
        Wait { resources: self.clone(), waiter: None }
    }

    /// A buffer that is free or can be made.
    fn take_bounce(&self) -> Result<Option<AlignedBuf>, Error> {
        let free = self.bounces.borrow_mut().pop();
        if free.is_some() || self.bounces_made.get() == MAX_BOUNCES {
            return Ok(free);
        }
        let buffer = AlignedBuf::new(BOUNCE, MAX_ALIGN)?;
        self.bounces_made.set(self.bounces_made.get() + 1);
        Ok(Some(buffer))
    }

    /// Hands a buffer on to who has waited longest.
    fn give_bounce(&self, buffer: AlignedBuf) {
        let next = self.waiting.borrow_mut().pop_front();
        match next {
            Some(waiter) => {
                waiter.handed.set(Some(buffer));
                // No borrow is held: a waker may run any code.
                if let Some(waker) = waiter.waker.take() {
                    waker.wake();
                }
            }
            None => self.bounces.borrow_mut().push(buffer),
        }
    }
}

/// A place in the queue.
#[derive(Default)]
struct Waiter {
    waker: Cell<Option<Waker>>,
    /// The buffer that came, once the place is no longer in the queue.
    handed: Cell<Option<AlignedBuf>>,
}

/// Waits for a bounce buffer. If it goes before that, so does its place, and what it was handed goes on.
struct Wait {
    resources: Rc<Resources>,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Wait {
    type Output = Result<Bounce, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let buffer = match &this.waiter {
            Some(waiter) => waiter.handed.take(),
            None => this.resources.take_bounce()?,
        };
        if let Some(buffer) = buffer {
            this.waiter = None;
            return Poll::Ready(Ok(Bounce { buffer: Some(buffer), resources: this.resources.clone() }));
        }
        let waiter = this.waiter.get_or_insert_with(|| {
            let waiter = Rc::new(Waiter::default());
            this.resources.waiting.borrow_mut().push_back(waiter.clone());
            waiter
        });
        waiter.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        match waiter.handed.take() {
            Some(buffer) => self.resources.give_bounce(buffer),
            None => self.resources.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter)),
        }
    }
}

/// A bounce buffer, given back when dropped.
pub(crate) struct Bounce {
    buffer: Option<AlignedBuf>,
    resources: Rc<Resources>,
}

impl Bounce {
    /// Its address, for the kernel.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.buffer.as_ref().map_or(std::ptr::null_mut(), AlignedBuf::as_ptr)
    }

    /// Its [`BOUNCE`] bytes. Only while the kernel does not have it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], |buffer| buffer)
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.resources.give_bounce(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_buffer_goes_to_who_waited_longest_and_wakes_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let options = crate::FileOptions::new(dir.path().join("image")).create(4096);
        let resources = Rc::new(Resources::new(Arc::new(Image::open(&options).unwrap())));
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut bounces: Vec<Bounce> = Vec::new();
        let mut waits: VecDeque<_> = VecDeque::new();
        for _ in 0..MAX_BOUNCES + 5 {
            let mut wait = Box::pin(resources.bounce());
            match wait.as_mut().poll(&mut cx) {
                Poll::Ready(bounce) => bounces.push(bounce.unwrap()),
                Poll::Pending => waits.push_back(wait),
            }
        }
        assert_eq!((bounces.len(), waits.len()), (MAX_BOUNCES, 5));
        drop(bounces.pop());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        // Whoever comes now is behind them.
        let mut late = Box::pin(resources.bounce());
        assert!(late.as_mut().poll(&mut cx).is_pending());
        // The first goes without having looked, and so does the third: the second has it.
        drop(waits.pop_front());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        drop(waits.remove(1));
        let mut second = waits.pop_front().unwrap();
        let Poll::Ready(Ok(bounce)) = second.as_mut().poll(&mut cx) else { panic!("handed on") };
        assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut cx).is_pending()));
        drop((waits, bounce));
        assert!(late.as_mut().poll(&mut cx).is_ready());
        drop(bounces);
        assert_eq!(resources.bounces.borrow().len(), MAX_BOUNCES);
        assert!(resources.waiting.borrow().is_empty());
    }
}
