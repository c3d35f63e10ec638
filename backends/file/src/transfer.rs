//! Reads and writes: [`Transfer`] straight between the image and the `Io`'s segments, [`bounced`] through a buffer
//! of ours where O_DIRECT does not take the segments as they are.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use block::io::Guard;
use block::reactor::{OnDrop, RingOp};
use block::{Completed, Error, ErrorKind, Flags, Io, Op};
use io_uring::{opcode, types};

use crate::channel::Shared;
use crate::geometry::Align;
use crate::pool::{BOUNCE, IoVecs, Resources};

/// Most bytes in one operation: under the kernel's limit of 2 GiB less a page, and a multiple of every alignment.
const MAX_BYTES: usize = 1 << 30;
/// Most iovecs in one operation (UIO_MAXIOV).
const MAX_IOVECS: usize = 1024;
/// How often an interrupted or refused operation is tried again.
pub(crate) const MAX_RETRIES: u32 = 1000;

/// Whether O_DIRECT takes the segments as they are.
pub(crate) fn fits(io: &Io, align: Align) -> bool {
    io.segments().iter().all(|segment| {
        segment.as_ptr().addr() & (align.memory - 1) == 0 && segment.len() & (align.offset - 1) == 0
    })
}

/// How far a read or write has come, over however many operations it takes.
pub(crate) struct Progress {
    done: usize,
    retries: u32,
    /// RWF_DSYNC for writes that are durable when they complete.
    flags: i32,
    /// The errno of a durable write that is tried again without that, to see which part of it failed.
    doubt: Option<i32>,
    /// A registered buffer was of no use: what is left is done without.
    plain: bool,
}

impl Progress {
    pub(crate) fn new(flags: i32) -> Self {
        Self { done: 0, retries: 0, flags, doubt: None, plain: false }
    }

    /// Whether an operation with this result is worth another attempt without a registered buffer, the first of its kind.
    fn falls_back(&mut self, result: i32, shared: &Shared) -> bool {
        let refused = matches!(-result, libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP);
        refused && shared.reactor.takes_memory() && !std::mem::replace(&mut self.plain, true)
    }

    /// Takes an operation's result into account. `Ok(true)` when all `total` bytes are done.
    pub(crate) fn advance(
        &mut self,
        op: Op,
        result: i32,
        total: usize,
        shared: &Shared,
    ) -> Result<bool, Error> {
        let image = &shared.resources.image;
        let Ok(count) = usize::try_from(result) else {
            if matches!(-result, libc::EINTR | libc::EAGAIN) && self.retries < MAX_RETRIES {
                self.retries += 1;
                return Ok(false);
            }
            // No space: for this data, which the submitter may try again, or for what was to be written back?
            if self.flags != 0 && matches!(-result, libc::ENOSPC | libc::EDQUOT) {
                (self.flags, self.doubt) = (0, Some(-result));
                return Ok(false);
            }
            let refused = matches!(-result, libc::EINVAL | libc::EOPNOTSUPP | libc::EFAULT | libc::EFBIG);
            return Err(match self.flags {
                0 => image.error(op, -result),
                _ if refused => image.error(op, -result),
                _ => image.sync_error(op, -result),
            });
        };
        if let Some(errno) = self.doubt {
            return Err(image.sync_error(op, errno));
        }
        let before = self.done;
        self.done += count;
        if self.done >= total {
            if self.flags != 0 {
                image.check_durable()?; // of two syncs at a time the kernel tells one
            }
            return Ok(true);
        }
        if let Some(align) = image.direct {
            // O_DIRECT goes on at a block's start only. (A piece of a block is all there is at the end of a file.)
            self.done &= !(align.offset - 1);
        }
        if self.done > before {
            return Ok(false);
        }
        let (kind, what) = match op {
            Op::Read => (ErrorKind::UnrecoveredRead, "ends early: it was made shorter while it is in use"),
            _ => (ErrorKind::WriteFault, "takes no more bytes"),
        };
        Err(Error::new(kind, format!("{}: {what}", image.path.display())))
    }
}

/// A read or write of an `Io` whose segments the kernel takes as they are. Allocates nothing once its channel's
/// lists are warm.
pub(crate) struct Transfer {
    shared: Rc<Shared>,
    /// `None` once completed.
    io: Option<Io>,
    op: Option<RingOp<Keep>>,
    progress: Progress,
}

const _: () = assert!(size_of::<Transfer>() <= block::future::INLINE_SIZE);

/// What the kernel uses of a transfer: the descriptor, the guest's memory, the iovecs.
struct Keep {
    resources: Rc<Resources>,
    _guard: Option<Guard>,
    list: IoVecs,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.resources.return_list(std::mem::take(&mut self.list));
    }
}

impl Transfer {
    /// `io` passed the device's check.
    pub(crate) fn new(shared: Rc<Shared>, io: Io) -> Self {
        let progress = Progress::new(durable(&io));
        Self { shared, io: Some(io), op: None, progress }
    }

    /// The next operation: what is left of `io`, as much as fits.
    fn start(shared: &Shared, io: &Io, progress: &Progress) -> RingOp<Keep> {
        let resources = &shared.resources;
        let (done, flags) = (progress.done, progress.flags);
        let mut list = IoVecs::new();
        let (mut first, mut skip, mut sum) = (None::<libc::iovec>, done, 0);
        for segment in io.segments() {
            if skip >= segment.len() {
                skip -= segment.len();
                continue;
            }
            let len = (segment.len() - skip).min(MAX_BYTES - sum);
            let iovec = libc::iovec { iov_base: segment.as_ptr().wrapping_add(skip).cast(), iov_len: len };
            skip = 0;
            sum += len;
            match first {
                None => first = Some(iovec),
                Some(first) => {
                    if list.is_empty() {
                        list = resources.take_list();
                        list.push(first);
                    }
                    list.push(iovec);
                }
            }
            if sum == MAX_BYTES || list.len() == MAX_IOVECS {
                break;
            }
        }
        let fd = types::Fd(resources.fd());
        let at = io.lba * u64::from(resources.image.info.block_size) + done as u64;
        let first = first.unwrap_or(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 });
        let (ptr, len) = (first.iov_base.cast::<u8>(), first.iov_len as u32);
        let (iovecs, count) = (list.as_ptr(), list.len() as u32);
        // Through the page cache the kernel copies, and pins nothing.
        let may_be_fixed = list.is_empty() && resources.image.direct.is_some() && !progress.plain;
        let fixed = if may_be_fixed { shared.reactor.fixed_index(ptr, len as usize) } else { None };
        let entry = match (io.op, fixed, list.is_empty()) {
            (Op::Read, Some(index), _) => opcode::ReadFixed::new(fd, ptr, len, index).offset(at).build(),
            (Op::Read, None, true) => opcode::Read::new(fd, ptr, len).offset(at).build(),
            (Op::Read, None, false) => opcode::Readv::new(fd, iovecs, count).offset(at).build(),
            (_, Some(index), _) => {
                opcode::WriteFixed::new(fd, ptr, len, index).offset(at).rw_flags(flags).build()
            }
            (_, None, true) => opcode::Write::new(fd, ptr, len).offset(at).rw_flags(flags).build(),
            (_, None, false) => opcode::Writev::new(fd, iovecs, count).offset(at).rw_flags(flags).build(),
        };
        let keep = Keep { resources: resources.clone(), _guard: io.guard().cloned(), list };
        let ended = match flags {
            0 => |_keep: Keep, _| {},
            _ => |keep: Keep, result| heed(&keep.resources, result),
        };
        // SAFETY: `keep` holds the file (the descriptor), the guard of the segments, and the iovecs, whose heap
        // memory does not move with it. The entry makes one completion. Nobody refers to the segments' bytes.
        unsafe { shared.reactor.submit_or(entry, keep, OnDrop { cancel: true, ended }) }
    }
}

/// The flags of a write that is durable when it completes, if `io` asks for that (with O_DIRECT; see
/// `channel::then_sync` for the page cache).
fn durable(io: &Io) -> i32 {
    if io.op == Op::Write && io.flags.contains(Flags::FUA) { libc::RWF_DSYNC } else { 0 }
}

/// The result of a durable write that nobody waits for any more: it may tell what nobody else is told.
fn heed(resources: &Resources, result: i32) {
    let nothing_lost = matches!(
        -result,
        // Refused, or cancelled; or no space, which is most likely for this data.
        libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::EFAULT
            | libc::EFBIG
            | libc::ECANCELED
            | libc::ENOSPC
            | libc::EDQUOT
    );
    if result < 0 && !nothing_lost {
        let _told = resources.image.sync_error(Op::Write, -result);
    }
}

impl Future for Transfer {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        let this = &mut *self;
        loop {
            let Some(io) = &this.io else { return Poll::Pending };
            let op = this.op.get_or_insert_with(|| Self::start(&this.shared, io, &this.progress));
            let Poll::Ready((result, keep)) = Pin::new(op).poll(cx) else { return Poll::Pending };
            this.op = None;
            drop(keep);
            if this.progress.falls_back(result, &this.shared) {
                continue;
            }
            let total = io.bytes() as usize;
            let outcome = match this.progress.advance(io.op, result, total, &this.shared) {
                Ok(false) => continue,
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            if let Some(io) = this.io.take() {
                return Poll::Ready(io.complete(outcome));
            }
        }
    }
}

/// A read or write through bounce buffers, piece by piece.
pub(crate) async fn bounced(shared: Rc<Shared>, io: Io) -> Completed {
    let result = bounce(&shared, &io).await;
    io.complete(result)
}

async fn bounce(shared: &Shared, io: &Io) -> Result<(), Error> {
    let total = io.bytes() as usize;
    let start = io.lba * u64::from(shared.resources.image.info.block_size);
    let mut buffer = shared.resources.bounces.lend().await?;
    let mut done = 0;
    while done < total {
        let len = BOUNCE.min(total - done);
        if io.op == Op::Write {
            io.gather(done, &mut buffer.bytes()[..len]);
        }
        let ptr = buffer.as_ptr();
        let (offset, keep) = (start + done as u64, (buffer, io.guard().cloned()));
        // SAFETY: the buffer is `BOUNCE` bytes on the heap, owned by what is handed in, and given back afterwards.
        (buffer, _) = unsafe { whole(shared, io.op, durable(io), ptr, len, offset, keep).await? };
        if io.op == Op::Read {
            io.scatter(done, &buffer.bytes()[..len]);
        }
        done += len;
    }
    Ok(())
}

/// Reads or writes `len` bytes at `ptr` and the image's `offset`, with as many operations as it takes.
///
/// # Safety
/// `ptr..ptr + len` stays valid until `keep` is dropped, and nothing else uses it before this future ends.
pub(crate) async unsafe fn whole<K: 'static>(
    shared: &Shared,
    op: Op,
    flags: i32,
    ptr: *mut u8,
    len: usize,
    offset: u64,
    keep: K,
) -> Result<K, Error> {
    let mut keep = (keep, shared.resources.clone());
    let mut progress = Progress::new(flags);
    loop {
        let fd = types::Fd(shared.resources.fd());
        let (at, from) = (ptr.wrapping_add(progress.done), offset + progress.done as u64);
        let left = (len - progress.done).min(MAX_BYTES) as u32;
        let entry = match op {
            Op::Read => opcode::Read::new(fd, at, left).offset(from).build(),
            _ => opcode::Write::new(fd, at, left).offset(from).rw_flags(progress.flags).build(),
        };
        let ended = match progress.flags {
            0 => |_keep: (K, Rc<Resources>), _| {},
            _ => |(_, resources): (K, Rc<Resources>), result| heed(&resources, result),
        };
        let on_drop = OnDrop { cancel: true, ended };
        // SAFETY: `keep` holds the memory (by this function's contract) and the file, with the descriptor.
        let (result, kept) = unsafe { shared.reactor.submit_or(entry, keep, on_drop) }.await;
        keep = kept;
        if progress.advance(op, result, len, shared)? {
            return Ok(keep.0);
        }
    }
}
