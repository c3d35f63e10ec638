//! [`FaultDevice`]: a layer that makes faults on demand: fails, delays, holds or reorders I/Os by [`Rule`]s, which a
//! [`FaultHandle`] changes at run time from any thread.
//!
//! Without a rule it costs one load and one indirect call per I/O. With rules it takes a lock and may allocate: it
//! is for tests and for operators who want to see what a fault does. Torn writes and flipped bits are left out.

mod rule;
mod state;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::{Channel, Completed, Device, Error, Info, Io, IoFuture, Listener, Reactor, Security, Submission};

use state::{Shared, Ticket, Verdict};

pub use rule::{Action, Ops, Rule};
pub use state::{Counters, FaultHandle, Held, HeldId, RuleId};

/// A device in front of another one, which shows through but for the faults.
pub struct FaultDevice {
    inner: Arc<dyn Device>,
    shared: Arc<Shared>,
}

impl FaultDevice {
    /// A layer over `inner`, without rules so far.
    pub fn new(inner: Arc<dyn Device>) -> Self {
        Self { inner, shared: Arc::default() }
    }

    /// What switches its faults.
    pub fn handle(&self) -> FaultHandle {
        FaultHandle::new(self.shared.clone())
    }
}

impl Device for FaultDevice {
    fn info(&self) -> Info {
        self.inner.info()
    }

    fn on_change(&self, listener: Listener) {
        self.inner.on_change(listener);
    }

    fn identity(&self) -> Option<String> {
        self.inner.identity()
    }

    fn security(&self) -> Option<Arc<dyn Security>> {
        self.inner.security()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        let inner = Rc::from(self.inner.channel(reactor)?);
        Ok(Box::new(FaultChannel { inner, shared: self.shared.clone(), reactor: reactor.clone() }))
    }
}

struct FaultChannel {
    inner: Rc<dyn Channel>,
    shared: Arc<Shared>,
    reactor: Reactor,
}

impl Channel for FaultChannel {
    fn submit(&self, io: Io) -> Submission {
        if !self.shared.is_active() {
            return self.inner.submit(io);
        }
        let inner = self.inner.clone();
        match self.shared.judge(&io) {
            Verdict::Pass => self.inner.submit(io),
            Verdict::Fail(kind) => Submission::Done(io.complete(Err(injected(kind)))),
            Verdict::FailAfter(kind) => Submission::Pending(IoFuture::new(fail_after(inner, io, kind))),
            Verdict::Delay(duration) => {
                let sleep = self.reactor.sleep(duration);
                Submission::Pending(IoFuture::new(async move {
                    sleep.await;
                    inner.submit(io).wait().await
                }))
            }
            Verdict::Wait(ticket, longest) => {
                Submission::Pending(IoFuture::new(wait(inner, io, ticket, self.reactor.clone(), longest)))
            }
        }
    }
}

fn injected(kind: crate::ErrorKind) -> Error {
    Error::new(kind, "injected by a fault rule")
}

async fn fail_after(inner: Rc<dyn Channel>, io: Io, kind: crate::ErrorKind) -> Completed {
    let mut completed = inner.submit(io).wait().await;
    completed.result = Err(injected(kind));
    completed
}

/// Waits for its release, then goes on. The ticket is given back when the `Io` is complete (or this is dropped).
async fn wait(
    inner: Rc<dyn Channel>,
    io: Io,
    ticket: Ticket,
    reactor: Reactor,
    longest: Option<Duration>,
) -> Completed {
    let mut expiry = longest.map(|longest| Box::pin(reactor.sleep(longest)));
    let released = std::future::poll_fn(|cx| {
        if let Some(sleep) = &mut expiry
            && sleep.as_mut().poll(cx).is_ready()
        {
            expiry = None;
            ticket.gathered_long_enough();
        }
        ticket.poll(cx)
    })
    .await;
    let completed = match released {
        Ok(()) => inner.submit(io).wait().await,
        Err(kind) => io.complete(Err(injected(kind))),
    };
    drop(ticket);
    completed
}
