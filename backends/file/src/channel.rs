//! [`FileChannel`]: one reactor's way into an image.

use std::rc::Rc;
use std::sync::Arc;

use block::{Channel, Completed, Error, ErrorKind, Flags, Io, IoFuture, Op, Reactor, Submission};
use io_uring::squeue;

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
    pub(crate) fn new(image: Arc<Image>, reactor: Reactor) -> Result<Self, Error> {
        Ok(Self { shared: Rc::new(Shared { reactor, resources: Rc::new(Resources::new(image)?) }) })
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
                // The kernel may run the sync of such a write on the spot, and this thread would wait for it.
                None if io.flags.contains(Flags::FUA) => IoFuture::new(then_sync(shared, io)),
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
    /// Runs a fallocate of `io`, or what is like one: without memory. Again when it was interrupted. The error is an
    /// errno.
    pub(crate) async fn plain(&self, io: &Io, entry: squeue::Entry) -> Result<(), i32> {
        let mut permit = self.resources.fallocates.lend().await.map_err(|_| libc::ENOMEM)?;
        for retry in 0.. {
            // The guard as well: it tells the submitter when the kernel is done with a cancelled `Io`.
            let keep = (self.resources.clone(), io.guard().cloned(), permit);
            // SAFETY: callers hand in entries without memory; the descriptor is the image's, kept here.
            let (result, kept) = unsafe { self.reactor.submit(entry.clone(), keep) }.await;
            permit = kept.2;
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
}

/// A durable write through the page cache.
async fn then_sync(shared: Rc<Shared>, mut io: Io) -> Completed {
    io.flags.remove(Flags::FUA);
    let mut completed = Transfer::new(shared.clone(), io).await;
    if completed.result.is_ok() {
        completed.result = shared.sync().await;
    }
    completed
}

async fn flush(shared: Rc<Shared>, io: Io) -> Completed {
    let writes = shared.resources.image.info.abilities.contains(block::Abilities::WRITE);
    let result = if writes { shared.sync().await } else { Ok(()) };
    io.complete(result)
}
