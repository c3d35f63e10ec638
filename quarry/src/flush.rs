//! The last thing a server does: make what was written durable, and close the disks.
//!
//! What is on a cluster that does not answer has less time than a file: nothing that is waited for longer would be answered
//! either, and who ends a server wants it to end.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use block::{Device, Error, ErrorKind, Io, Op, Reactor, Submission};

use crate::devices::Devices;

/// How long a device has to flush.
const DEADLINE: Duration = Duration::from_secs(30);

/// Devices that are closed at the same time.
const AT_ONCE: usize = 32;

/// How long devices on clusters have to flush and to be closed.
#[derive(Clone, Debug, Default)]
pub struct Patience {
    /// The time for all of them together.
    pub time: Duration,
    /// The names of those on clusters, and of layers over them.
    pub devices: BTreeSet<String>,
}

impl Patience {
    fn of(&self, device: &str) -> Duration {
        if self.devices.contains(device) { self.time * 3 / 4 } else { DEADLINE }
    }
}

/// Flushes every device, all at the same time, and closes those that nobody else has. Returns those that are not flushed, each
/// with the reason. Blocks.
pub fn and_close(devices: Devices, patience: &Patience) -> Vec<String> {
    let end = Instant::now() + patience.time;
    let failed = all(&devices, patience);
    if !patience.devices.is_empty() {
        // Clusters that do answer close their disks, whatever the others took.
        block_ceph::end_by(end.max(Instant::now() + patience.time / 4));
    }
    close(devices);
    failed
}

fn close(devices: Devices) {
    let threads = AT_ONCE.min(devices.len());
    let left: Mutex<Vec<Arc<dyn Device>>> = Mutex::new(devices.into_values().collect());
    let one_thread = || {
        // In a statement of its own: the lock is let go of before the device is.
        while let Some(device) = { left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop() } {
            drop(device);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(one_thread);
        }
        one_thread();
    });
}

/// Flushes every device, all at the same time. Returns those that failed, each with the reason. Blocks.
fn all(devices: &Devices, patience: &Patience) -> Vec<String> {
    let reactor = match Reactor::new(8) {
        Ok(reactor) => reactor,
        Err(error) => return vec![format!("every device: {error}")],
    };
    let (mut failed, mut goes_on) = (Vec::new(), false);
    let mut running: Vec<_> = devices
        .iter()
        .map(|(name, device)| (name, Box::pin(one(name, device.as_ref(), &reactor, patience))))
        .collect();
    reactor.block_on(poll_fn(|cx| {
        running.retain_mut(|(name, work)| {
            let Poll::Ready(result) = work.as_mut().poll(cx) else { return true };
            match result {
                Ok(()) => tracing::debug!(device = name, "flushed"),
                Err(error) => {
                    goes_on |= error.kind() == ErrorKind::Timeout;
                    tracing::error!(device = name, %error, "not flushed");
                    failed.push(format!("{name}: {error}"));
                }
            }
            false
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }));
    drop(running);
    if goes_on {
        // It would wait once more for what was not answered. The process ends.
        std::mem::forget(reactor);
    }
    failed.sort();
    failed
}

async fn one(name: &str, device: &dyn Device, reactor: &Reactor, patience: &Patience) -> Result<(), Error> {
    let time = patience.of(name);
    let channel = device.channel(reactor)?;
    let io = Io::new(Op::Flush, 0, 0, Vec::new(), None, 0);
    match channel.submit(io) {
        Submission::Done(completed) => completed.result,
        Submission::Pending(work) => {
            let (mut work, mut deadline) = (pin!(work), pin!(reactor.sleep(time)));
            let first = poll_fn(|cx| match work.as_mut().poll(cx) {
                Poll::Ready(completed) => Poll::Ready(Ok(completed)),
                Poll::Pending => deadline.as_mut().poll(cx).map(Err),
            });
            let who = if patience.devices.contains(name) { "its cluster has" } else { "it has" };
            let too_slow = |()| Error::new(ErrorKind::Timeout, format!("{who} not answered for {time:?}"));
            first.await.map_err(too_slow)?.result
        }
    }
}

#[cfg(test)]
mod tests {
    use block::fault::{Action, FaultDevice, Rule};
    use block_memory::MemoryDevice;

    use super::*;

    #[test]
    fn what_does_not_answer_holds_up_nobody_else() {
        let (mut devices, mut patience) = (Devices::new(), Patience::default());
        let mut sees = Vec::new();
        for number in 0..100 {
            let memory = Arc::new(MemoryDevice::new(1 << 20).expect("memory"));
            sees.push(Arc::downgrade(&memory));
            let device = FaultDevice::new(memory);
            let name = format!("device-{number:02}");
            if number != 7 {
                device.handle().add(Rule::new(Action::Hold).on(block::fault::Ops::FLUSH));
                patience.devices.insert(name.clone());
            }
            devices.insert(name, Arc::new(device));
        }
        patience.time = Duration::from_millis(400);
        let begin = Instant::now();
        let failed = and_close(devices, &patience);
        // One after the other would be half a minute and more.
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert_eq!(failed.len(), 99);
        assert!(
            failed[0].starts_with("device-00: ")
                && failed[0].contains("its cluster has not answered for 300ms"),
            "{}",
            failed[0]
        );
        assert!(sees.iter().all(|device| device.upgrade().is_none()), "a device was not closed");
    }
}
