//! [`Keeper`]: a thread of a connection's for what a cluster can make wait and nobody waits for: a new size, the renewal of a
//! lock.

use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Work, which tells when it wants to run again.
type Work = Box<dyn FnMut() -> Option<Duration> + Send>;

/// Starts when it gets its first work, and ends when it is dropped; then without waiting for what it is at.
#[derive(Default)]
pub(crate) struct Keeper(Mutex<Option<Sender<Work>>>);

impl Keeper {
    /// Runs `work` soon, and again after as long as it says each time.
    pub(crate) fn run(&self, work: impl FnMut() -> Option<Duration> + Send + 'static) {
        let mut sender = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut work: Work = Box::new(work);
        loop {
            let running = match &*sender {
                Some(running) => running,
                None => match start() {
                    Ok(started) => sender.insert(started),
                    Err(error) => {
                        return tracing::error!(%error, "no thread to look after a connection to Ceph");
                    }
                },
            };
            match running.send(work) {
                Ok(()) => return,
                // It panicked: another one.
                Err(back) => {
                    work = back.0;
                    *sender = None;
                }
            }
        }
    }
}

fn start() -> std::io::Result<Sender<Work>> {
    let (sender, works) = channel::<Work>();
    std::thread::Builder::new().name("ceph-keeper".to_owned()).spawn(move || {
        let mut later: Vec<(Instant, Work)> = Vec::new();
        loop {
            let next = later.iter().map(|(due, _)| *due).min();
            let wait =
                next.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(Instant::now()));
            let mut due = match works.recv_timeout(wait) {
                Ok(work) => vec![work],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = Instant::now();
            due.extend(later.extract_if(.., |(at, _)| *at <= now).map(|(_, work)| work));
            for mut work in due {
                if let Some(pause) = work() {
                    later.push((Instant::now() + pause, work));
                }
            }
        }
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_run_again_as_long_as_they_want() {
        let keeper = Keeper::default();
        let (tell, told) = channel();
        let mut runs = 0;
        keeper.run(move || {
            runs += 1;
            tell.send(runs).unwrap();
            (runs < 3).then_some(Duration::from_millis(1))
        });
        assert_eq!(told.iter().collect::<Vec<_>>(), [1, 2, 3]);
        let (tell, told) = channel();
        keeper.run(move || {
            tell.send(()).unwrap();
            None
        });
        assert_eq!(told.iter().count(), 1);
    }
}
