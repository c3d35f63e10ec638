//! What a channel's operations own while the kernel has them: the open file, iovec lists and bounce buffers, all reused.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use block::{AlignedBuf, Error};

use crate::geometry::MAX_ALIGN;
use crate::image::Image;
use crate::limited::{Limited, Loan};

/// Bytes of a bounce buffer: what is moved at once of an I/O that needs one.
pub(crate) const BOUNCE: usize = 128 << 10;
/// Bounce buffers of a channel. Who finds none waits: 8 MiB bound what misaligned guests can take.
const MAX_BOUNCES: usize = 64;
/// Calls of fallocate that a channel has under way. Each takes a thread of the kernel's, which other images of the same
/// reactor need, too.
const MAX_FALLOCATES: usize = 4;
/// Iovec lists kept for reuse.
const MAX_LISTS: usize = 256;

/// Iovecs, which only the kernel follows.
pub(crate) type IoVecs = Vec<libc::iovec>;

/// Owned by every operation in the kernel, so it holds no reactor.
pub(crate) struct Resources {
    pub(crate) image: Arc<Image>,
    /// The channel's own open file, for its reads and writes: a durable write of its does not take the report of an error
    /// that a sync is waiting for.
    file: File,
    pub(crate) bounces: Rc<Limited<AlignedBuf>>,
    pub(crate) fallocates: Rc<Limited<()>>,
    lists: RefCell<Vec<IoVecs>>,
}

impl Resources {
    pub(crate) fn new(image: Arc<Image>) -> Result<Self, Error> {
        Ok(Self {
            file: image.open_again()?,
            image,
            bounces: Limited::new(MAX_BOUNCES, || AlignedBuf::new(BOUNCE, MAX_ALIGN)),
            fallocates: Limited::new(MAX_FALLOCATES, || Ok(())),
            lists: RefCell::default(),
        })
    }

    /// The descriptor of all operations.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
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
}

/// A bounce buffer of [`BOUNCE`] bytes.
pub(crate) type Bounce = Loan<AlignedBuf>;

impl Bounce {
    /// Its address, for the kernel.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.as_ref().map_or(std::ptr::null_mut(), AlignedBuf::as_ptr)
    }

    /// Its bytes. Only while the kernel does not have it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.as_mut().map_or(&mut [], |buffer| buffer)
    }
}
