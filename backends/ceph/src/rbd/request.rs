//! The calls of librbd's asynchronous interface.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;
use std::time::Duration;

use block::reactor::Ticket;
use block::{AlignedBuf, Error, Io, Op};

use super::image::Image;
use crate::abandoned::Abandoned;
use crate::budget::Budget;
use crate::ffi::{self, Errno, RbdCompletion};
use crate::request::{Request, Target};

/// What is asked of librbd.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    /// From this byte on, the whole of the I/O's data.
    Read {
        at: u64,
    },
    Write {
        at: u64,
    },
    CompareAndWrite {
        at: u64,
    },
    Flush,
    Discard {
        at: u64,
        len: u64,
    },
    /// With RBD_WRITE_ZEROES_FLAG_*.
    WriteZeroes {
        at: u64,
        len: u64,
        flags: c_int,
    },
}

const _: () = assert!(size_of::<Request<Image>>() <= block::future::INLINE_SIZE);

impl Target for Image {
    type Call = Call;

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn abandoned(&self) -> &Abandoned {
        &self.abandoned
    }

    fn error(&self, op: Op, errno: Errno) -> Error {
        self.explain(op, errno)
    }

    fn io_timeout(&self) -> Option<Duration> {
        self.io_timeout
    }

    /// Always: whether librbd copies is a setting, of the image too (rbd_disable_zero_copy_writes), and a guest could change
    /// what is sent after its checksum was made.
    fn gathers(&self, _: &Io) -> bool {
        true
    }

    /// librbd sees buffers of ours only: it takes nothing back, and a guest whose command was aborted may do what it likes with
    /// its memory.
    fn begin(&self, ticket: Ticket, call: Call, io: &Io, buffer: Option<&AlignedBuf>) {
        let (rbd, handle) = (self.rbd, self.handle.0);
        let mut completion: RbdCompletion = null_mut();
        let argument = ticket.into_raw();
        // SAFETY: `done` takes the argument back, once.
        let made = unsafe { (rbd.rbd_aio_create_completion)(argument, done, &mut completion) };
        if made < 0 {
            // SAFETY: nobody else has it.
            return unsafe { Ticket::from_raw(argument) }.complete(made);
        }
        let bytes = io.bytes() as usize;
        let memory = buffer.map_or(null_mut(), AlignedBuf::as_ptr);
        let called = match call {
            // SAFETY: of this and all that follow: the image is open, which the operation holds until `done` was called, with the
            // buffer, which has room for all of the data.
            Call::Read { at } => unsafe { (rbd.rbd_aio_read)(handle, at, bytes, memory.cast(), completion) },
            // SAFETY: as above.
            Call::Write { at } => unsafe {
                (rbd.rbd_aio_write)(handle, at, bytes, memory.cast(), completion)
            },
            Call::CompareAndWrite { at } => {
                let half = bytes / 2; // whole blocks, so all three are aligned
                let (write, mismatch) = (memory.wrapping_add(half), memory.wrapping_add(bytes));
                // SAFETY: as above; all three are in the buffer.
                let called = unsafe {
                    let compare = memory.cast();
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
            Call::Flush => unsafe { (rbd.rbd_aio_flush)(handle, completion) },
            // SAFETY: as above.
            Call::Discard { at, len } => unsafe { (rbd.rbd_aio_discard)(handle, at, len, completion) },
            // SAFETY: as above.
            Call::WriteZeroes { at, len, flags } => unsafe {
                (rbd.rbd_aio_write_zeroes)(handle, at, len as usize, completion, flags, 0)
            },
        };
        if called < 0 {
            // SAFETY: not begun, so that nobody calls back.
            unsafe { (rbd.rbd_aio_release)(completion) };
            // SAFETY: as above.
            unsafe { Ticket::from_raw(argument) }.complete(called);
        }
    }

    fn judge(&self, _: Call, result: i32) -> Result<usize, Errno> {
        usize::try_from(result).map_err(|_| Errno(-result))
    }

    fn place(&self, _: Call, io: &Io) -> Range<usize> {
        0..io.bytes() as usize
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
    // SAFETY: from `into_raw` in `begin`, given back once, here.
    unsafe { Ticket::from_raw(argument) }.complete(result);
}
