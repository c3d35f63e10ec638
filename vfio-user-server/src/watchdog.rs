//! Frees threads that a client has caught in a write to an eventfd.
//!
//! Eventfds that clients send are made non-blocking, but that is a property of the open file, which the
//! client shares: it can take it back and fill the counter, and write(2) sleeps until somebody reads. So each
//! write is marked, a thread of its own looks at the marks, and who is in the same write for too long gets a
//! signal that does nothing but end it (EINTR).
//!
//! The marks cost two stores, and nothing runs while no eventfd is connected.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(100);
/// Looks that must find a thread in the same write before it is interrupted.
const PATIENCE: u32 = 2;

/// A client's eventfd. The watchdog is at work while one exists.
#[derive(Debug)]
pub(crate) struct Event(OwnedFd);

/// The write slept: the client made the eventfd blocking and filled it.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Event {
    /// Takes over an eventfd. Fails when nobody could be made to watch over writes to it.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut watch = lock();
        if !watch.running {
            watch.signal = install()?;
            SIGNAL.store(watch.signal, Ordering::Relaxed);
            // Detached: it ends with the process.
            std::thread::Builder::new().name("irq-watchdog".into()).spawn(run)?;
            watch.running = true;
        }
        EVENTS.fetch_add(1, Ordering::SeqCst);
        WAKE.notify_one();
        Ok(Self(fd))
    }

    /// One write. A full counter (EAGAIN) has signalled already. Comes back in any case.
    #[inline]
    pub(crate) fn signal(&self) -> Result<(), Stuck> {
        // While the thread's storage is torn down there is no mark any more: one for this write alone.
        MARK.try_with(|mark| self.write(mark)).unwrap_or_else(|_| self.write(&Mark::default()))
    }

    #[inline]
    fn write(&self, mark: &Mark) -> Result<(), Stuck> {
        let slot = mark.slot();
        let before = slot.mark.load(Ordering::Relaxed);
        slot.mark.store(before + 1, Ordering::Relaxed);
        let written = rustix::io::write(self.0.as_fd(), &1u64.to_ne_bytes());
        slot.mark.store(before + 2, Ordering::Release);
        // A write that need not sleep is never interrupted, whatever signals come.
        if written == Err(rustix::io::Errno::INTR) { Err(Stuck) } else { Ok(()) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        EVENTS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A thread that signals.
#[derive(Debug)]
struct Slot {
    thread: libc::pid_t,
    /// Odd while the thread is in a write. Never the same twice.
    mark: AtomicU64,
}

/// A thread's slot, listed from its first signal until it ends.
#[derive(Default)]
struct Mark(std::cell::OnceCell<Arc<Slot>>);

impl Mark {
    #[inline]
    fn slot(&self) -> &Slot {
        self.0.get_or_init(Self::register)
    }

    #[cold]
    fn register() -> Arc<Slot> {
        unblock(SIGNAL.load(Ordering::Relaxed));
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let slot = Arc::new(Slot { thread, mark: AtomicU64::new(0) });
        lock().threads.push(Watched { slot: slot.clone(), seen: Cell::new(0), looks: Cell::new(0) });
        slot
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // Under the lock: the number may be another thread's as soon as this one is gone.
        if let Some(slot) = self.0.get() {
            lock().threads.retain(|watched| !Arc::ptr_eq(&watched.slot, slot));
        }
    }
}

/// What the watchdog knows of a thread.
struct Watched {
    slot: Arc<Slot>,
    /// The mark at the last look, and the looks before that found the same.
    seen: Cell<u64>,
    looks: Cell<u32>,
}

impl Watched {
    /// Whether the thread is still in the write in which the last looks found it.
    fn is_stuck(&self) -> bool {
        let mark = self.slot.mark.load(Ordering::Acquire);
        let same = mark % 2 == 1 && mark == self.seen.replace(mark);
        self.looks.set(if same { self.looks.get().saturating_add(1) } else { 0 });
        self.looks.get() >= PATIENCE
    }
}

struct Watch {
    running: bool,
    signal: libc::c_int,
    threads: Vec<Watched>,
}

/// Eventfds of clients.
static EVENTS: AtomicUsize = AtomicUsize::new(0);
/// The signal in use. Set before the first [`Event`] exists.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static WATCH: Mutex<Watch> = Mutex::new(Watch { running: false, signal: 0, threads: Vec::new() });
static WAKE: Condvar = Condvar::new();

thread_local! {
    static MARK: Mark = const { Mark(std::cell::OnceCell::new()) };
}

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run() {
    let mut watch = lock();
    loop {
        // An event is counted under the lock, so none is missed.
        while EVENTS.load(Ordering::SeqCst) == 0 {
            watch = WAKE.wait(watch).unwrap_or_else(PoisonError::into_inner);
        }
        for watched in watch.threads.iter().filter(|watched| watched.is_stuck()) {
            interrupt(watched.slot.thread, watch.signal);
        }
        drop(watch);
        std::thread::sleep(TICK);
        watch = lock();
    }
}

/// Sends the signal to a thread of this process.
fn interrupt(thread: libc::pid_t, signal: libc::c_int) {
    // SAFETY: only sends a signal, whose handler does nothing. The thread is listed, and leaves the list
    // before it ends; were it gone, tgkill(2) would find no such thread in this process.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
}

extern "C" fn nothing(_: libc::c_int) {}

/// Gives a signal that nobody uses a handler that does nothing, so that system calls end with EINTR.
fn install() -> io::Result<libc::c_int> {
    for signal in std::iter::once(libc::SIGURG).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: `sigaction` is plain data for which all zeroes is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: queries the present action into a live struct; changes nothing.
        if unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } != 0 {
            continue;
        }
        if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN {
            continue;
        }
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as *const () as usize;
        // SAFETY: installs a handler of the right signature that does nothing. No SA_RESTART: that is the
        // point.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } == 0 {
            return Ok(signal);
        }
    }
    Err(io::Error::other("no signal is free"))
}

/// Lets the signal reach this thread.
fn unblock(signal: libc::c_int) {
    // SAFETY: `sigset_t` is plain data, initialised by sigemptyset(3) before use; the calls change nothing
    // but this thread's mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}
