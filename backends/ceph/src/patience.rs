//! Calls that a cluster can make wait for ever, with an end.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs `work` on `value` in a thread of its own. `None` if it takes longer than `time`: the thread then goes on and drops
/// what it has when it ends, if it does.
pub(crate) fn in_time<T: Send + 'static, R: Send + 'static>(
    time: Duration,
    mut value: T,
    work: impl FnOnce(&mut T) -> R + Send + 'static,
) -> Option<(T, R)> {
    let (done, ended) = channel();
    let spawned = std::thread::Builder::new().name("ceph-open".to_owned()).spawn(move || {
        let result = work(&mut value);
        // Nobody waits any more: dropped here.
        let _ = done.send((value, result));
    });
    if spawned.is_err() {
        return None;
    }
    ended.recv_timeout(time).ok()
}

/// Runs the end of something in a thread of its own, and waits for it no longer than `time`.
pub(crate) fn let_end(what: &str, time: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel::<()>();
    let spawned = std::thread::Builder::new().name("ceph-close".to_owned()).spawn(move || {
        work();
        drop(done);
    });
    if spawned.is_err() || ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
        tracing::warn!(
            seconds = time.as_secs(),
            "{what} does not come to an end: the cluster does not answer; left behind"
        );
    }
}
