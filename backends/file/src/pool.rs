//! What a channel's operations own while the kernel has them: the image, iovec lists and bounce buffers, all reused.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

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
    waiting: RefCell<Vec<Waker>>,
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
    pub(crate) async fn bounce(self: &Rc<Self>) -> Result<Bounce, Error> {
        std::future::poll_fn(|cx| {
            let free = self.bounces.borrow_mut().pop();
            let buffer = match free {
                Some(buffer) => buffer,
                None if self.bounces_made.get() < MAX_BOUNCES => {
                    let buffer = AlignedBuf::new(BOUNCE, MAX_ALIGN)?;
                    self.bounces_made.set(self.bounces_made.get() + 1);
                    buffer
                }
                None => {
                    self.waiting.borrow_mut().push(cx.waker().clone());
                    return Poll::Pending;
                }
            };
            Poll::Ready(Ok(Bounce { buffer: Some(buffer), resources: self.clone() }))
        })
        .await
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
            self.resources.bounces.borrow_mut().push(buffer);
            // All of them: one that is woken may be gone, and then nobody would come.
            let waiting = self.resources.waiting.take();
            for waker in waiting {
                waker.wake();
            }
        }
    }
}
