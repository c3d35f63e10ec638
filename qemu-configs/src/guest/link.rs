//! A conversation in JSON lines over a socket: requests carry an `id`, their replies carry it back, and everything else
//! is a notice. Both of a guest's channels speak so: its agent and QEMU's monitor.

use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Why no answer came.
#[derive(Debug)]
pub enum Silence {
    Closed,
    Timeout,
}

/// One end of the conversation; usable by several threads at once.
pub struct Link {
    writer: Mutex<UnixStream>,
    inbox: Arc<Inbox>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Inbox {
    mail: Mutex<Mail>,
    arrived: Condvar,
}

#[derive(Default)]
struct Mail {
    /// Replies to the requests that somebody waits for.
    replies: HashMap<u64, VecDeque<Value>>,
    /// Everything else, from the beginning.
    notices: Vec<Value>,
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (reader, theirs) = (BufReader::new(stream.try_clone()?), inbox.clone());
        thread::spawn(move || {
            for line in reader.split(b'\n') {
                let Ok(line) = line else { break };
                // A guest that is reset in the middle of a line leaves half of one.
                let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
                let mut mail = theirs.lock();
                match value["id"].as_u64() {
                    Some(id) => drop(mail.replies.get_mut(&id).map(|queue| queue.push_back(value))),
                    None => mail.notices.push(value),
                }
                theirs.arrived.notify_all();
            }
            theirs.lock().closed = true;
            theirs.arrived.notify_all();
        });
        Ok(Self { writer: Mutex::new(stream), inbox, next_id: AtomicU64::new(1) })
    }

    /// Sends `request` with a fresh id, which [`Link::reply`] takes.
    pub fn send(&self, mut request: Value) -> Result<u64, Silence> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        request["id"] = id.into();
        self.inbox.lock().replies.insert(id, VecDeque::new());
        let line = format!("{request}\n");
        let sent = self.writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        sent.map(|()| id).map_err(|_| Silence::Closed)
    }

    /// The next reply to a request.
    pub fn reply(&self, id: u64, deadline: Instant) -> Result<Value, Silence> {
        self.wait(deadline, |mail| mail.replies.get_mut(&id).and_then(VecDeque::pop_front))
    }

    /// Nobody waits for this request any more.
    pub fn forget(&self, id: u64) {
        self.inbox.lock().replies.remove(&id);
    }

    /// How many notices there were: a position for [`Link::notice`].
    pub fn position(&self) -> usize {
        self.inbox.lock().notices.len()
    }

    /// The first notice from `position` on that `wanted` accepts.
    pub fn notice(
        &self,
        position: usize,
        deadline: Instant,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Silence> {
        self.wait(deadline, |mail| {
            mail.notices.get(position..)?.iter().find(|notice| wanted(notice)).cloned()
        })
    }

    /// All notices so far.
    pub fn notices(&self) -> Vec<Value> {
        self.inbox.lock().notices.clone()
    }

    fn wait<T>(&self, deadline: Instant, mut look: impl FnMut(&mut Mail) -> Option<T>) -> Result<T, Silence> {
        let mut mail = self.inbox.lock();
        loop {
            if let Some(found) = look(&mut mail) {
                return Ok(found);
            }
            if mail.closed {
                return Err(Silence::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(Silence::Timeout);
            }
            mail = self.inbox.arrived.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
