//! [`FileChannel`]: one reactor's way into an image.

use std::rc::Rc;
use std::sync::Arc;

use block::{Channel, Completed, Error, ErrorKind, Flags, Io, IoFuture, Op, Reactor, Submission};
use io_uring::{opcode, squeue, types};

use crate::image::Image;
use crate::pool::Resources;
use crate::transfer::{self, MAX_RETRIES, Transfer};
use crate::zero;

/// What the futures of a channel share.
pub(crate) struct Shared {
    pub(crate) reactor: Reactor,
    /// Apart, because operations in the kernel own it and must not own the reactor.
    pub(crate) resources: Rc<Resources>,
}

pub(crate) struct FileChannel {
    shared: Rc<Shared>,
}

impl FileChannel {
    pub(crate) fn new(image: Arc<Image>, reactor: Reactor) -> Self {
        Self { shared: Rc::new(Shared { reactor, resources: Rc::new(Resources::new(image)) }) }
    }
}

impl Channel for FileChannel {
    fn submit(&self, io: Io) -> Submission {
        let image = &self.shared.resources.image;
        if let Err(error) = io.check(&image.info) {
            return Submission::Done(io.complete(Err(error)));
        }
        if io.op != Op::Flush && io.blocks == 0 {
            return Submission::Done(io.complete(Ok(())));
        }
        if (io.op == Op::Flush || io.flags.contains(Flags::FUA))
            && let Err(error) = image.check_durable()
        {
            return Submission::Done(io.complete(Err(error)));
        }
        let shared = self.shared.clone();
        Submission::Pending(match io.op {
            Op::Read | Op::Write => match image.direct {
                Some(align) if !transfer::fits(&io, align) => IoFuture::new(transfer::bounced(shared, io)),
                _ => IoFuture::new(Transfer::new(shared, io)),
            },
            Op::Flush => IoFuture::new(flush(shared, io)),
            Op::Discard => IoFuture::new(zero::discard(shared, io)),
            Op::WriteZeroes => IoFuture::new(zero::write_zeroes(shared, io)),
            _ => return Submission::Done(io.complete(Err(ErrorKind::Unsupported.into()))),
        })
    }
}

impl Shared {
    /// Runs an operation of `io` that has no memory, again when it was interrupted. The error is an errno.
    pub(crate) async fn plain(&self, io: &Io, entry: squeue::Entry) -> Result<(), i32> {
        for retry in 0.. {
            // The guard as well: it tells the submitter when the kernel is done with a cancelled `Io`.
            let keep = (self.resources.clone(), io.guard().cloned());
            // SAFETY: callers hand in entries without memory; the descriptor is the image's, kept here.
            let (result, _) = unsafe { self.reactor.submit(entry.clone(), keep) }.await;
            match -result {
                libc::EINTR if retry < MAX_RETRIES => {}
                libc::EAGAIN if retry < MAX_RETRIES => {
                    self.reactor.sleep(std::time::Duration::from_millis(1)).await;
                }
                errno if errno > 0 => return Err(errno),
                _ => break,
            }
        }
        Ok(())
    }

    /// Everything that was written becomes durable.
    pub(crate) async fn sync(&self, io: &Io) -> Result<(), Error> {
        let image = &self.resources.image;
        let entry = opcode::Fsync::new(types::Fd(image.fd())).flags(types::FsyncFlags::DATASYNC).build();
        self.plain(io, entry).await.map_err(|errno| image.sync_error(Op::Flush, errno))?;
        // Of two syncs at a time the kernel tells one.
        image.check_durable()
    }
}

async fn flush(shared: Rc<Shared>, io: Io) -> Completed {
    let writes = shared.resources.image.info.abilities.contains(block::Abilities::WRITE);
    let result = if writes { shared.sync(&io).await } else { Ok(()) };
    io.complete(result)
}
