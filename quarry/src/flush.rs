//! The last thing a server does: make what was written durable.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use block::{Device, Error, ErrorKind, Io, Op, Reactor, Submission};

use crate::devices::Devices;

/// How long all of them have for it, together.
const DEADLINE: Duration = Duration::from_secs(30);

/// Flushes every device, all at the same time. Returns those that failed, each with the reason. Blocks.
pub fn all(devices: &Devices) -> Vec<String> {
    let reactor = match Reactor::new(8) {
        Ok(reactor) => reactor,
        Err(error) => return vec![format!("every device: {error}")],
    };
    let mut failed = Vec::new();
    let mut running: Vec<_> =
        devices.iter().map(|(name, device)| (name, Box::pin(one(device.as_ref(), &reactor)))).collect();
    reactor.block_on(poll_fn(|cx| {
        running.retain_mut(|(name, work)| {
            let Poll::Ready(result) = work.as_mut().poll(cx) else { return true };
            match result {
                Ok(()) => tracing::debug!(device = name, "flushed"),
                Err(error) => {
                    tracing::error!(device = name, %error, "not flushed");
                    failed.push(format!("{name}: {error}"));
                }
            }
            false
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }));
    failed.sort();
    failed
}

async fn one(device: &dyn Device, reactor: &Reactor) -> Result<(), Error> {
    let channel = device.channel(reactor)?;
    let io = Io::new(Op::Flush, 0, 0, Vec::new(), None, 0);
    match channel.submit(io) {
        Submission::Done(completed) => completed.result,
        Submission::Pending(work) => {
            let (mut work, mut deadline) = (pin!(work), pin!(reactor.sleep(DEADLINE)));
            let first = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(completed) => Poll::Ready(Ok(completed)),
                Poll::Pending => deadline.as_mut().poll(cx).map(Err),
            });
            first.await.map_err(|()| Error::from(ErrorKind::Timeout))?.result
        }
    }
}
