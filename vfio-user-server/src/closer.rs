//! [`Closer`]: closes what clients sent and nobody asked for.
//!
//! Closing a descriptor may take as long as its sender likes: a TCP socket lingers over unsent data, a file
//! of FUSE is flushed by a process. The control thread serves other clients, too, so a thread of its own does
//! it. A client that gets the thread stuck loses its connection, and the thread keeps what it has.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Descriptors that may wait before the client has to.
const LIMIT: usize = 512;
/// How long the client is made to wait until it is given up.
const STUCK: Duration = Duration::from_secs(5);
/// Stuck threads of former clients with which the function serves no other.
const MAX_THREADS: usize = 8;
/// Time between two looks at a queue that is too long.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<OwnedFd>>,
    /// A thread is at it.
    running: bool,
}

/// Closes descriptors without waiting for it. One per function.
#[derive(Debug, Default)]
pub(crate) struct Closer {
    queue: Mutex<Arc<Mutex<Queue>>>,
    /// Threads that run, those of former clients included.
    threads: Arc<AtomicUsize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Closer {
    fn queue(&self) -> Arc<Mutex<Queue>> {
        lock(&self.queue).clone()
    }

    /// Closes descriptors of any kind.
    pub(crate) fn close(&self, fds: impl IntoIterator<Item = OwnedFd>) {
        // Eventfds have nothing to wait for.
        let mut fds = fds.into_iter().filter(|fd| !crate::irq::is_eventfd(fd)).map(Arc::new).peekable();
        if fds.peek().is_some() {
            self.put(fds);
        }
    }

    /// Ends a connection, and closes it with what is still underway in it.
    pub(crate) fn close_connection(&self, socket: Arc<OwnedFd>) {
        // From here on nothing more comes in, and the client knows.
        let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        // Descriptors travel with bytes, so without these there are none.
        if rustix::io::ioctl_fionread(socket.as_fd()) != Ok(0) {
            self.put([socket]);
        }
    }

    fn put(&self, fds: impl IntoIterator<Item = Arc<OwnedFd>>) {
        let queue = self.queue();
        let mut state = lock(&queue);
        state.waiting.extend(fds);
        if state.running {
            return;
        }
        let (theirs, threads) = (queue.clone(), self.threads.clone());
        threads.fetch_add(1, Ordering::SeqCst);
        let thread = std::thread::Builder::new().name("fd-closer".into()).spawn(move || {
            run(&theirs);
            threads.fetch_sub(1, Ordering::SeqCst);
        });
        match thread {
            Ok(_detached) => state.running = true,
            Err(error) => {
                // What waits goes on waiting, for the next attempt.
                self.threads.fetch_sub(1, Ordering::SeqCst);
                tracing::debug!(%error, "cannot start a thread that closes descriptors");
            }
        }
    }

    /// Whether so many descriptors wait that there must be no more.
    pub(crate) fn is_behind(&self) -> bool {
        lock(&self.queue()).waiting.len() >= LIMIT
    }

    /// Waits until there is room for more. Fails when there seems to be none ever.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        if !self.is_behind() {
            return Ok(());
        }
        let room = async {
            while self.is_behind() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let waited = tokio::time::timeout(STUCK, room).await;
        waited.map_err(|_| io::Error::other("descriptors that the client sent cannot be closed"))
    }

    /// The client is gone: a thread that is still at work keeps what is left, the next client gets another.
    pub(crate) fn renew(&self) {
        let mut queue = lock(&self.queue);
        if lock(&queue).running {
            *queue = Arc::default();
        }
    }

    /// Whether former clients keep so many threads busy that there must be no further client.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.threads.load(Ordering::SeqCst) >= MAX_THREADS
    }
}

/// Closes until nothing is left.
fn run(queue: &Mutex<Queue>) {
    loop {
        let mut state = lock(queue);
        let Some(fd) = state.waiting.pop_front() else {
            state.running = false;
            return;
        };
        drop(state);
        drop(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    /// A socket that takes for ever to close, and what ends that when it is dropped.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let theirs = listener.accept().unwrap().0;
        ours.set_nonblocking(true).unwrap();
        while ours.write(&[0; 65536]).is_ok() {}
        rustix::net::sockopt::set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
        (ours.into(), theirs)
    }

    /// These tests keep thousands of descriptors open.
    fn allow_many_descriptors() {
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = limit.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn stuck_threads_are_left_behind_but_not_any_number_of_them() {
        allow_many_descriptors();
        let closer = Closer::default();
        let mut ends = Vec::new();
        for _ in 0..MAX_THREADS {
            assert!(!closer.is_exhausted());
            let (fd, end) = lingering();
            closer.close([fd]);
            ends.push(end);
            let queue = closer.queue();
            eventually("the thread to take it", || lock(&queue).waiting.is_empty());
            closer.close((0..LIMIT).map(|_| std::io::stdout().as_fd().try_clone_to_owned().unwrap()));
            assert!(closer.is_behind());
            closer.renew();
            assert!(!closer.is_behind(), "the next client starts afresh");
        }
        assert!(closer.is_exhausted());
        drop(ends);
        eventually("the threads to end", || closer.threads.load(Ordering::SeqCst) == 0);
        assert!(!closer.is_exhausted());
    }

    #[test]
    fn who_is_never_done_is_given_up() {
        allow_many_descriptors();
        let closer = Closer::default();
        let (fd, end) = lingering();
        closer.close([fd]);
        closer.close((0..2 * LIMIT).map(|_| std::io::stdout().as_fd().try_clone_to_owned().unwrap()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(closer.settle()).is_err());
        drop(end);
        runtime.block_on(async { while closer.settle().await.is_err() {} });
        eventually("the thread to end", || closer.threads.load(Ordering::SeqCst) == 0);
    }
}
