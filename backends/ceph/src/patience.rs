//! Calls that a cluster can make wait for ever, with an end.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

static CONNECTIONS: Connections =
    Connections { state: Mutex::new(State { open: 0, end_by: None }), ended: Condvar::new() };

/// What the end of the process needs to know of all connections.
struct Connections {
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    /// Connections of which Ceph's library still has threads.
    open: usize,
    /// Nothing is waited for any longer than that.
    end_by: Option<Instant>,
}

impl Connections {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A connection that has to be closed. Dropped it counts as left behind.
pub(crate) struct Open(());

impl Open {
    pub(crate) fn begin() -> Self {
        CONNECTIONS.state().open += 1;
        Self(())
    }

    /// The library has let go of everything.
    pub(crate) fn end(self) {
        CONNECTIONS.state().open -= 1;
        CONNECTIONS.ended.notify_all();
    }
}

/// From now on closing and disconnecting are waited for until `deadline` at most, whatever the clusters' options allow: for a
/// process that ends.
pub fn end_by(deadline: Instant) {
    CONNECTIONS.state().end_by = Some(deadline);
}

/// Whether there are connections that are open after so long: Ceph's threads run then, and what a process does at its end
/// (destructors of libraries) would take away what they use. It ends well by `_exit` only.
pub fn left_behind(wait: Duration) -> bool {
    let wait = CONNECTIONS.ended.wait_timeout_while(CONNECTIONS.state(), wait, |state| state.open > 0);
    wait.map_or(true, |(state, _)| state.open > 0)
}

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
    if let Err(error) = spawned {
        return tracing::warn!(%error, "no thread for the end of {what}: left behind");
    }
    let left = CONNECTIONS.state().end_by.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let time = left.map_or(time, |left| time.min(left));
    if ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
        tracing::warn!(
            seconds = time.as_secs(),
            "{what} does not come to an end: the cluster does not answer; left behind"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_closed_is_left_behind() {
        assert!(!left_behind(Duration::ZERO));
        let (first, second) = (Open::begin(), Open::begin());
        assert!(left_behind(Duration::ZERO));
        first.end();
        assert!(left_behind(Duration::from_millis(1)));
        let ended = std::thread::spawn(|| second.end());
        assert!(!left_behind(Duration::from_secs(60)));
        ended.join().unwrap();
    }
}
