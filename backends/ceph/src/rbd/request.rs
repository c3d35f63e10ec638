//! [`Request`]: one call of librbd's asynchronous interface, from its place in the budget to its result.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use block::reactor::{RemoteOp, Ticket};
use block::{AlignedBuf, Completed, Error, ErrorKind, Io, Op};
use libc::iovec;

use super::channel::Shared;
use super::image::Image;
use crate::abandoned::{Abandoned, Gone, Range};
use crate::budget::{Budget, Wait};
use crate::buffers::Buffers;
use crate::ffi::{self, Errno, RbdCompletion};

/// What librbd and Ceph's messenger need for a call besides its data, about.
const CALL: u64 = 4096;
/// Most pieces of memory that librbd takes at once (IOV_MAX).
const MOST_IOVECS: usize = 1024;
/// Lists of pieces that are kept for use again.
const KEPT_LISTS: usize = 64;

/// What is asked of librbd.
#[derive(Clone, Copy)]
pub(super) enum Call {
    Read,
    Write,
    Flush,
    CompareAndWrite,
    /// Bytes.
    Discard {
        at: u64,
        len: u64,
    },
    /// Bytes, and RBD_WRITE_ZEROES_FLAG_*.
    WriteZeroes {
        at: u64,
        len: u64,
        flags: c_int,
    },
}

/// A channel's own. Operations in librbd own it, so it holds no reactor.
pub(super) struct Resources {
    pub(super) image: Arc<Image>,
    buffers: Buffers,
    lists: RefCell<Vec<Vec<iovec>>>,
}

impl Resources {
    pub(super) fn new(image: Arc<Image>) -> Self {
        Self { image, buffers: Buffers::default(), lists: RefCell::default() }
    }
}

/// The image's, for who waits.
struct OfImage(Rc<Resources>);

impl AsRef<Abandoned> for OfImage {
    fn as_ref(&self) -> &Abandoned {
        &self.0.image.abandoned
    }
}

impl AsRef<Budget> for OfImage {
    fn as_ref(&self) -> &Budget {
        &self.0.image.budget
    }
}

/// What an operation in librbd uses, until it has ended: even if nobody waits for it any more.
struct Keep {
    resources: Rc<Resources>,
    cost: u64,
    buffer: Option<AlignedBuf>,
    /// Nobody waits for it any more, but it changes the image.
    abandoned: Option<u64>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        if let Some(id) = self.abandoned {
            self.resources.image.abandoned.end(id);
        }
        if let Some(buffer) = self.buffer.take() {
            self.resources.buffers.give(buffer);
        }
        self.resources.image.budget.give(self.cost);
    }
}

/// See the module. Allocates nothing itself once its channel's buffers are warm.
pub(super) struct Request {
    shared: Rc<Shared>,
    /// `None` once completed.
    io: Option<Io>,
    call: Call,
    state: State,
}

enum State {
    New,
    /// For what was abandoned before on these blocks.
    WaitsForTurn(Gone<OfImage>),
    /// For the budget.
    Waits(Wait<OfImage>),
    /// Its cost was taken.
    Paid,
    Runs(RemoteOp<Keep>),
}

const _: () = assert!(size_of::<Request>() <= block::future::INLINE_SIZE);

impl Request {
    /// `io` passed the device's check.
    pub(super) fn new(shared: Rc<Shared>, io: Io, call: Call) -> Self {
        Self { shared, io: Some(io), call, state: State::New }
    }

    /// Gives it to librbd, once its cost was taken from the budget.
    fn start(shared: &Shared, io: &Io, call: Call, cost: u64) -> Result<RemoteOp<Keep>, Error> {
        let resources = &shared.resources;
        let mut keep = Keep { resources: resources.clone(), cost, buffer: None, abandoned: None };
        let bytes = io.bytes() as usize;
        match call {
            Call::Read => keep.buffer = Some(resources.buffers.take(bytes)?),
            // The two halves, each in one piece, and where the first mismatch is.
            Call::CompareAndWrite => {
                let mut buffer = resources.buffers.take(bytes + size_of::<u64>())?;
                io.gather(0, &mut buffer[..bytes]);
                keep.buffer = Some(buffer);
            }
            Call::Write if io.segments().len() > MOST_IOVECS => {
                let mut buffer = resources.buffers.take(bytes)?;
                io.gather(0, &mut buffer[..bytes]);
                keep.buffer = Some(buffer);
            }
            _ => {}
        }
        Ok(shared.reactor.remote(keep, |ticket, keep| hand_over(ticket, keep, io, call, bytes)))
    }

    /// What librbd's result means.
    fn result(io: &Io, keep: &Keep, result: i32) -> Result<(), Error> {
        if result < 0 {
            return Err(keep.resources.image.error(io.op, Errno(-result)));
        }
        let (Op::Read, Some(buffer)) = (io.op, &keep.buffer) else { return Ok(()) };
        let bytes = io.bytes() as usize;
        // Shorter only where the image ends meanwhile.
        if (result as usize) < bytes {
            return Err(Error::new(ErrorKind::OutOfRange, "the image was made shorter meanwhile"));
        }
        io.scatter(0, &buffer[..bytes]);
        Ok(())
    }
}

impl Future for Request {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        let this = &mut *self;
        let Some(io) = &this.io else { return Poll::Pending };
        loop {
            let resources = &this.shared.resources;
            let cost = CALL + io.bytes();
            let next = match &mut this.state {
                State::New if resources.image.abandoned.any() => {
                    let range = range(&resources.image, io, this.call);
                    State::WaitsForTurn(Abandoned::gone(OfImage(resources.clone()), range))
                }
                State::New if resources.image.budget.take(cost) => State::Paid,
                State::New => State::Waits(Budget::wait(OfImage(resources.clone()), cost)),
                State::WaitsForTurn(gone) => match Pin::new(gone).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) if resources.image.budget.take(cost) => State::Paid,
                    Poll::Ready(()) => State::Waits(Budget::wait(OfImage(resources.clone()), cost)),
                },
                State::Waits(wait) => match Pin::new(wait).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    // Meanwhile something may have been abandoned.
                    Poll::Ready(()) if resources.image.abandoned.any() => {
                        resources.image.budget.give(cost);
                        State::New
                    }
                    Poll::Ready(()) => State::Paid,
                },
                State::Paid => match Self::start(&this.shared, io, this.call, cost) {
                    Ok(op) => State::Runs(op),
                    Err(error) => {
                        return this
                            .io
                            .take()
                            .map_or(Poll::Pending, |io| Poll::Ready(io.complete(Err(error))));
                    }
                },
                State::Runs(op) => match Pin::new(op).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready((result, keep)) => {
                        let result = Self::result(io, &keep, result);
                        drop(keep);
                        return this.io.take().map_or(Poll::Pending, |io| Poll::Ready(io.complete(result)));
                    }
                },
            };
            this.state = next;
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let (Some(io), State::Runs(op)) = (&self.io, &mut self.state) else { return };
        if let Some(keep) = op.keep_mut()
            && !matches!(self.call, Call::Read | Call::Flush)
        {
            let image = &self.shared.resources.image;
            keep.abandoned = Some(image.abandoned.begin(range(image, io, self.call)));
        }
    }
}

/// The bytes that a call is about; of none, none.
fn range(image: &Image, io: &Io, call: Call) -> Range {
    let block = u64::from(image.info().block_size);
    match call {
        Call::Flush => (0, 0),
        Call::Read | Call::Write | Call::CompareAndWrite => (io.lba * block, (io.lba + io.blocks) * block),
        Call::Discard { at, len } | Call::WriteZeroes { at, len, .. } => (at, at + len),
    }
}

/// Calls librbd. What is written is copied by it before the call returns (rbd_disable_zero_copy_writes), so the guest's own
/// memory is handed over; what is read comes into a buffer of ours.
fn hand_over(ticket: Ticket, keep: &mut Keep, io: &Io, call: Call, bytes: usize) {
    let resources = &keep.resources;
    let image = &*resources.image;
    let (rbd, handle) = (image.rbd, image.handle.0);
    let mut completion: RbdCompletion = null_mut();
    let argument = ticket.into_raw();
    // SAFETY: `done` takes the argument back, once.
    let made = unsafe { (rbd.rbd_aio_create_completion)(argument, done, &mut completion) };
    if made < 0 {
        // SAFETY: nobody else has it.
        return unsafe { Ticket::from_raw(argument) }.complete(made);
    }
    let at = io.lba * u64::from(image.info().block_size);
    let buffer = keep.buffer.as_ref().map_or(null_mut(), AlignedBuf::as_ptr);
    // SAFETY (all of them): the image is open, `keep` holds it and the buffer until `done` was called. Segments are mapped
    // while `io` lives, and are read before the call returns.
    let called = match call {
        // SAFETY: as above; the buffer has that many bytes.
        Call::Read => unsafe { (rbd.rbd_aio_read)(handle, at, bytes, buffer.cast(), completion) },
        Call::Write => match io.segments() {
            // SAFETY: as above.
            _ if !buffer.is_null() => unsafe {
                (rbd.rbd_aio_write)(handle, at, bytes, buffer.cast(), completion)
            },
            // SAFETY: as above.
            [one] => unsafe { (rbd.rbd_aio_write)(handle, at, bytes, one.as_ptr().cast(), completion) },
            several => {
                let mut list = resources.lists.borrow_mut().pop().unwrap_or_default();
                let iovecs = several.iter().filter(|segment| !segment.is_empty());
                list.extend(
                    iovecs.map(|segment| iovec { iov_base: segment.as_ptr().cast(), iov_len: segment.len() }),
                );
                let count = list.len() as c_int; // at most MOST_IOVECS
                // SAFETY: as above; librbd reads the list before the call returns.
                let called = unsafe { (rbd.rbd_aio_writev)(handle, list.as_ptr(), count, at, completion) };
                list.clear();
                let mut lists = resources.lists.borrow_mut();
                if lists.len() < KEPT_LISTS {
                    lists.push(list);
                }
                called
            }
        },
        // SAFETY: as above.
        Call::Flush => unsafe { (rbd.rbd_aio_flush)(handle, completion) },
        Call::CompareAndWrite => {
            let half = bytes / 2; // whole blocks, so all three are aligned
            let (write, mismatch) = (buffer.wrapping_add(half), buffer.wrapping_add(bytes));
            // SAFETY: as above; all three are in the buffer.
            let called = unsafe {
                let compare = buffer.cast();
                (rbd.rbd_aio_compare_and_write)(
                    handle,
                    at,
                    half,
                    compare,
                    write.cast(),
                    completion,
                    mismatch.cast(),
                    0,
                )
            };
            called as c_int
        }
        // SAFETY: as above.
        Call::Discard { at, len } => unsafe { (rbd.rbd_aio_discard)(handle, at, len, completion) },
        Call::WriteZeroes { at, len, flags } => {
            // SAFETY: as above.
            unsafe { (rbd.rbd_aio_write_zeroes)(handle, at, len as usize, completion, flags, 0) }
        }
    };
    if called < 0 {
        // SAFETY: not begun, so that nobody calls back.
        unsafe { (rbd.rbd_aio_release)(completion) };
        // SAFETY: as above.
        unsafe { Ticket::from_raw(argument) }.complete(called);
    }
}

/// `rbd_callback_t`: on a thread of librbd's.
extern "C" fn done(completion: RbdCompletion, argument: *mut c_void) {
    // It is loaded, since it calls.
    let result = ffi::rbd().map_or(-libc::EIO, |rbd| {
        // SAFETY: the completion is librbd's argument, and released here, once.
        let result = unsafe { (rbd.rbd_aio_get_return_value)(completion) };
        // SAFETY: as above.
        unsafe { (rbd.rbd_aio_release)(completion) };
        i32::try_from(result).unwrap_or(if result < 0 { -libc::EIO } else { i32::MAX })
    });
    // SAFETY: from `into_raw` in `hand_over`, given back once, here.
    unsafe { Ticket::from_raw(argument) }.complete(result);
}
