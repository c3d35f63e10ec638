//! [`ReactorThread`]: a thread of the data path. It polls the workers that were given to it, its io_uring and its
//! mailbox, and shares nothing with its siblings.
//!
//! Which queues belong to which worker is `nvme-emu`'s concern; how long to wait when nothing happens is
//! [`idle`]'s.

pub mod idle;
mod status;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::Reactor;
use block::reactor::Unparker;
use nvme_emu::{Worker, WorkerSeed};

use crate::affinity;
use idle::{Idle, Wait};
pub use status::Load;

/// Submission entries of a reactor's io_uring.
const RING_ENTRIES: u32 = 1024;

/// Work for a reactor's thread.
type Command = Box<dyn FnOnce(&mut Core) + Send>;

/// A running reactor, as other threads see it. Dropping it stops the thread and waits for it.
pub struct ReactorThread {
    name: String,
    mailbox: Sender<Command>,
    has_mail: Arc<AtomicBool>,
    unparker: Unparker,
    thread: Option<JoinHandle<()>>,
    kept: status::Kept,
}

/// What a reactor's thread owns.
pub struct Core {
    reactor: Reactor,
    workers: Vec<Worker>,
    stopping: bool,
}

/// Whether something may happen to the worker that wakes nobody: an enabled controller's doorbells are memory.
fn watched(worker: &Worker) -> bool {
    worker.is_enabled() || worker.is_active()
}

impl ReactorThread {
    /// Starts reactor `number`, on `cpu` if one is given. Returns when its ring is set up.
    pub fn start(number: usize, cpu: Option<usize>) -> io::Result<Self> {
        let name = format!("reactor-{number}");
        let (mailbox, commands) = channel();
        let has_mail = Arc::new(AtomicBool::new(false));
        let mail = has_mail.clone();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let reactor = match cpu.map_or(Ok(()), affinity::pin).and_then(|()| Reactor::new(RING_ENTRIES)) {
                Ok(reactor) => reactor,
                Err(error) => return drop(ready.send(Err(error))),
            };
            if ready.send(Ok(reactor.unparker())).is_ok() {
                guard_against_panics(|| {
                    Core { reactor, workers: Vec::new(), stopping: false }.run(&commands, &mail)
                });
            }
        })?;
        let gone = || io::Error::other("its thread ended at once");
        let unparker = started.recv().map_err(|_| gone())??;
        let kept = status::Kept { cpu, ..Default::default() };
        Ok(Self { name, mailbox, has_mail, unparker, thread: Some(thread), kept })
    }

    /// Has the reactor run `command` between two turns.
    pub fn run(&self, command: impl FnOnce(&mut Core) + Send + 'static) {
        // A thread that panicked has ended the process, so there is always a receiver until `stop`.
        let _ = self.mailbox.send(Box::new(command));
        self.has_mail.store(true, Ordering::Release);
        self.unparker.unpark();
    }

    /// Gives the reactor a worker to poll.
    pub fn add_worker(&self, seed: WorkerSeed) {
        self.run(move |core| {
            let worker = seed.start(&core.reactor);
            core.workers.push(worker);
        });
    }
}

impl Drop for ReactorThread {
    fn drop(&mut self) {
        self.run(|core| core.stopping = true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(reactor = self.name, "a reactor's thread panicked while it ended");
        }
    }
}

impl Core {
    /// The reactor, for commands that submit I/O.
    pub fn reactor(&self) -> &Reactor {
        &self.reactor
    }

    fn run(mut self, commands: &Receiver<Command>, has_mail: &AtomicBool) {
        let mut idle = Idle::default();
        while !self.stopping {
            let mut worked = false;
            for worker in &mut self.workers {
                worked |= worker.poll();
            }
            worked |= self.reactor.turn() > 0;
            // A look into the mailbox costs a fence; most turns it is empty. (The one sender is the thread's owner,
            // who sends a last command before he goes.) Cleared first: what comes later sets it again.
            while has_mail.load(Ordering::Relaxed) && has_mail.swap(false, Ordering::AcqRel) {
                while let Ok(command) = commands.try_recv() {
                    command(&mut self);
                    worked = true;
                }
            }
            if worked {
                idle.worked();
                continue;
            }
            let watched = self.workers.iter().any(watched);
            match idle.wait(watched, Instant::now) {
                Wait::Spin => std::hint::spin_loop(),
                Wait::Sleep(time) => self.reactor.park(time),
                Wait::UntilWoken => self.reactor.park(Duration::MAX),
            }
        }
    }
}

/// Runs `work`. A panic in it ends the process: a guest whose queues nobody polls would hang for ever, whereas a
/// VMM whose server is gone notices, and a service manager starts the server again.
fn guard_against_panics(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        tracing::error!("a reactor panicked; ending the process, so that no guest waits for ever");
        crate::logging::flush();
        std::process::exit(crate::exit::PANIC.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_commands_and_ends() {
        let reactor = ReactorThread::start(0, None).expect("starts");
        let (answer, answered) = channel();
        reactor.run(move |core| {
            let _ = core.reactor();
            answer.send(std::thread::current().name().map(str::to_owned)).unwrap();
        });
        assert_eq!(answered.recv_timeout(Duration::from_secs(10)).unwrap().as_deref(), Some("reactor-0"));
        // It sleeps now; a command must wake it.
        std::thread::sleep(Duration::from_millis(20));
        let (answer, answered) = channel();
        reactor.run(move |_| answer.send(()).unwrap());
        answered.recv_timeout(Duration::from_secs(10)).expect("woken");
        drop(reactor);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        assert!(ReactorThread::start(0, Some(100_000)).is_err());
    }
}
