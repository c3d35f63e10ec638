//! [`Courtesy`]: threads on the way to a cluster let others of their CPU finish before they run.
//!
//! An I/O goes through several threads: a reactor, Ceph's messenger, the thread that completes, the reactor again. Each wakes
//! the next, and where CPUs are scarce that takes the CPU from the one that woke it, or from a daemon beside it, which had a
//! few microseconds left: a switch too many each time. Under SCHED_BATCH (sched(7)) a thread that wakes waits until the other
//! has finished, and finds more to do when it runs.
//!
//! Beside a thread that never finishes it would wait for a tick, milliseconds each time. So it is watched how long these
//! threads wait for a CPU (`/proc/<pid>/task/<tid>/schedstat`, proc_schedstat in the kernel's sched-stats.rst), and where that
//! is long they are as any other thread for a while.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io};

/// What the threads are called: this program's, and Ceph's (`ceph_pthread_setname` in 16.2 to 19.2).
const NAMES: [&str; 3] = ["reactor-", "msgr-worker-", "io_context_pool"];
/// How often is looked.
const PERIOD: Duration = Duration::from_secs(1);
/// What a thread may wait for a CPU each time, in the mean: above what threads take that hand on I/O (some 0.1 ms on a machine
/// that is full of them, 0.5 ms in seconds in which their daemons compact), below what a thread takes that runs until a tick
/// (1.3 to 3.4 ms).
const BEARABLE: Duration = Duration::from_micros(800);
/// Runs below which a mean says nothing.
const FEW: u64 = 16;
/// Looks in a row that have to find that: a daemon that compacts its database keeps a CPU for a second now and then.
const OFTEN: u32 = 2;
/// How long they are as any other thread after that for the first time, and at most: twice as long each time in a row...
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(640);
/// ...but as at first, once it went well for so long.
const WELL: Duration = Duration::from_secs(20);

/// A thread that sees to it, until it is dropped.
pub struct Courtesy {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Courtesy {
    /// Begins with it. Where it is not possible nothing changes.
    pub fn start() -> Option<Self> {
        let (stop, stopped) = channel();
        let begun = std::thread::Builder::new().name("preemption".to_owned()).spawn(move || {
            let (mut threads, mut judge) = (Threads::default(), Judge::new(Instant::now()));
            loop {
                let longest = threads.look();
                let courteous = judge.decide(longest, Instant::now());
                if let Err(error) = threads.set(courteous) {
                    return tracing::debug!(%error, "how Ceph's threads are scheduled is left as it is");
                }
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let thread =
            begun.inspect_err(|error| tracing::debug!(%error, "no thread for how threads are scheduled"));
        Some(Self { stop, thread: Some(thread.ok()?) })
    }
}

impl Drop for Courtesy {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the threads are to be courteous.
struct Judge {
    courteous: bool,
    since: Instant,
    /// Looks in a row that found them waiting.
    bad: u32,
    /// How long they are not, the next time.
    pause: Duration,
}

impl Judge {
    fn new(now: Instant) -> Self {
        Self { courteous: true, since: now, bad: 0, pause: FIRST }
    }

    /// `longest`: what the one that had to wait most waited for a CPU each time since the last look, if they ran.
    fn decide(&mut self, longest: Option<Duration>, now: Instant) -> bool {
        let lasted = now.saturating_duration_since(self.since);
        if !self.courteous {
            if lasted >= self.pause {
                self.pause = (self.pause * 2).min(LONGEST);
                (self.courteous, self.since, self.bad) = (true, now, 0);
            }
        } else if let Some(wait) = longest.filter(|wait| *wait > BEARABLE) {
            self.bad += 1;
            if self.bad == OFTEN {
                let (micros, seconds) = (wait.as_micros(), self.pause.as_secs());
                tracing::debug!(
                    micros,
                    seconds,
                    "threads on the way to a cluster wait for a CPU: they preempt others"
                );
                (self.courteous, self.since) = (false, now);
            }
        } else {
            self.bad = 0;
            if lasted > WELL {
                self.pause = FIRST;
            }
        }
        self.courteous
    }
}

/// The threads on the way, by their numbers.
#[derive(Default)]
struct Threads(HashMap<libc::pid_t, Seen>);

#[derive(Clone, Copy, Default)]
struct Seen {
    /// Nanoseconds for which it waited for a CPU, and how often it got one.
    waited: u64,
    runs: u64,
    /// Whether it is under SCHED_BATCH by us.
    courteous: bool,
}

impl Threads {
    /// Finds them. The longest mean time that one of them waited for a CPU since the last look.
    fn look(&mut self) -> Option<Duration> {
        let mut found = HashMap::new();
        let mut longest = None;
        for tid in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let read = |what: &str| fs::read_to_string(tid.path().join(what)).ok();
            let is_on_the_way = |name: String| NAMES.iter().any(|on| name.starts_with(on));
            let Some(number) = tid.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may end meanwhile.
            if !read("comm").is_some_and(is_on_the_way) {
                continue;
            }
            let before = self.0.get(&number).copied();
            let mut seen = before.unwrap_or_default();
            // Without the kernel's statistics nobody ever waits.
            if let Some([_, waited, runs]) = read("schedstat").as_deref().and_then(numbers) {
                (seen.waited, seen.runs) = (waited, runs);
            }
            if let Some(before) = before {
                longest = longest.max(mean(before, seen));
            }
            found.insert(number, seen);
        }
        self.0 = found;
        longest
    }

    /// Whether they let others finish, from now on.
    fn set(&mut self, courteous: bool) -> io::Result<()> {
        for (tid, seen) in &mut self.0 {
            if seen.courteous == courteous {
                continue;
            }
            let (from, to) = if courteous {
                (libc::SCHED_OTHER, libc::SCHED_BATCH)
            } else {
                (libc::SCHED_BATCH, libc::SCHED_OTHER)
            };
            match policy(*tid) {
                // What an operator has chosen stays.
                Ok(policy) if policy != from => {}
                Ok(_) => set_policy(*tid, to)?,
                // It has ended.
                Err(_) => continue,
            }
            seen.courteous = courteous;
        }
        Ok(())
    }
}

fn mean(before: Seen, now: Seen) -> Option<Duration> {
    let runs = now.runs.saturating_sub(before.runs);
    let waited = now.waited.saturating_sub(before.waited);
    (runs >= FEW).then(|| Duration::from_nanos(waited / runs))
}

fn numbers(line: &str) -> Option<[u64; 3]> {
    let mut parts = line.split_whitespace().map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

fn policy(tid: libc::pid_t) -> io::Result<libc::c_int> {
    // SAFETY: takes and returns numbers.
    let policy = unsafe { libc::sched_getscheduler(tid) };
    if policy < 0 { Err(io::Error::last_os_error()) } else { Ok(policy) }
}

fn set_policy(tid: libc::pid_t, policy: libc::c_int) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads the parameters, which outlive the call.
    let set = unsafe { libc::sched_setscheduler(tid, policy, &raw const param) };
    match io::Error::last_os_error() {
        _ if set >= 0 => Ok(()),
        // It has ended.
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_wait_for_a_cpu_preempt_others_for_a_while() {
        let start = Instant::now();
        let mut judge = Judge::new(start);
        let mut at = |seconds: u64, micros: Option<u64>| {
            judge.decide(micros.map(Duration::from_micros), start + Duration::from_secs(seconds))
        };
        assert!(at(0, None) && at(1, Some(113)) && at(2, Some(500)));
        // One bad second is none.
        assert!(at(3, Some(1299)) && at(4, Some(20)) && at(5, Some(1299)));
        assert!(!at(6, Some(1299)));
        // As any other thread they do not wait, which says nothing about how they would fare.
        assert!(!at(7, Some(1)) && !at(15, None));
        assert!(at(16, None));
        // Again at once: twice as long.
        assert!(at(17, Some(3399)) && !at(18, Some(3399)) && !at(37, None) && at(38, None));
        // Long enough without: as at first.
        assert!(at(50, Some(100)) && at(59, Some(100)));
        assert!(at(60, Some(2000)) && !at(61, Some(2000)) && !at(70, None) && at(71, None));
    }

    #[test]
    fn the_pause_is_bounded() {
        let start = Instant::now();
        let mut judge = Judge::new(start);
        let mut now = start;
        for _ in 0..20 {
            assert!(judge.decide(Some(Duration::from_millis(4)), now));
            assert!(!judge.decide(Some(Duration::from_millis(4)), now));
            now += judge.pause;
            assert!(judge.decide(None, now));
        }
        assert_eq!(judge.pause, LONGEST);
    }

    #[test]
    fn threads_on_the_way_are_found_by_their_names_and_no_others_are_touched() {
        let (go, stay) = channel::<()>();
        let stay = std::sync::Mutex::new(stay);
        let (told, tids) = channel();
        std::thread::scope(|scope| {
            let (stay, go) = (&stay, go);
            let start = |name: &str| {
                let told = told.clone();
                let body = move || {
                    // SAFETY: takes nothing and returns a number.
                    told.send(unsafe { libc::gettid() }).unwrap();
                    let _ = stay.lock().unwrap().recv();
                };
                std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, body).unwrap();
                tids.recv().unwrap()
            };
            let (ours, chosen, other) = (start("msgr-worker-0"), start("io_context_pool"), start("another"));
            set_policy(chosen, libc::SCHED_IDLE).unwrap();
            let mut threads = Threads::default();
            let all = || [ours, chosen, other].map(|tid| policy(tid).unwrap());
            threads.look();
            threads.set(true).unwrap();
            assert_eq!(all(), [libc::SCHED_BATCH, libc::SCHED_IDLE, libc::SCHED_OTHER]);
            threads.look();
            threads.set(false).unwrap();
            assert_eq!(all(), [libc::SCHED_OTHER, libc::SCHED_IDLE, libc::SCHED_OTHER]);
            drop(go);
        });
    }

    #[test]
    fn waits_are_means_of_enough_runs() {
        let seen = |waited, runs| Seen { waited, runs, courteous: false };
        assert_eq!(mean(seen(1_000, 10), seen(161_000, 26)), Some(Duration::from_micros(10)));
        assert_eq!(mean(seen(1_000, 10), seen(161_000, 25)), None);
        assert_eq!(numbers("12 34 56\n"), Some([12, 34, 56]));
        assert_eq!(numbers("12 34\n"), None);
    }
}
