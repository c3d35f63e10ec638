//! [`measure`]: what controllers that are enabled and have nothing to do cost a server, and how long the first command
//! after a pause takes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvme_driver::{Controller, Data, DmaBuffer, Options, QueuePair, io};
use serde::{Deserialize, Serialize};

use crate::cpu::Account;

/// What was found out.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Idleness {
    /// Controllers that were enabled, each with one I/O queue.
    pub controllers: usize,
    /// CPU time of the server, as a part of one core.
    pub cpu: f64,
    /// The first command after a pause, for each pause.
    pub first: Vec<First>,
}

/// Commands that came after a pause.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct First {
    /// Milliseconds without a command to any of the controllers.
    pub pause_ms: u64,
    /// How many there were.
    pub commands: usize,
    /// Nanoseconds: the middle one.
    pub p50_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// One controller with a queue.
struct Guest {
    queues: QueuePair,
    buffer: DmaBuffer,
    _controller: Controller,
}

/// How long a command may take at most: it may have to wait for the end of a sleep, and this machine do much else.
const PATIENCE: Duration = Duration::from_secs(10);
/// Until the server has forgotten that its guests were busy.
const SETTLE: Duration = Duration::from_secs(2);

/// Connects to all sockets, enables their controllers, and leaves them alone for `time`; then sends single commands after
/// `pauses` (milliseconds).
///
/// # Errors
/// A controller does not work, or the server's process cannot be watched.
pub fn measure(sockets: &[PathBuf], server: u32, time: Duration, pauses: &[u64]) -> Result<Idleness> {
    let mut guests = sockets.iter().map(|socket| Guest::new(socket)).collect::<Result<Vec<_>>>()?;
    for guest in &mut guests {
        guest.read()?;
    }
    std::thread::sleep(SETTLE);
    let (before, start) = (Account::of(server)?, Instant::now());
    std::thread::sleep(time);
    let (after, passed) = (Account::of(server)?, start.elapsed());
    let cpu = (after.ran - before.ran) as f64 / passed.as_nanos() as f64;
    let mut first = Vec::new();
    for pause_ms in pauses {
        // About two seconds of each.
        let commands = (2000 / pause_ms.max(&1)).clamp(3, 200) as usize;
        let mut times = Vec::new();
        for at in 0..commands {
            std::thread::sleep(Duration::from_millis(*pause_ms));
            let guest = at * 7 % guests.len();
            times.push(guests[guest].read()?.as_nanos() as u64);
        }
        times.sort_unstable();
        let (p50_ns, max_ns) = (times[times.len() / 2], times[times.len() - 1]);
        first.push(First { pause_ms: *pause_ms, commands, p50_ns, max_ns });
    }
    Ok(Idleness { controllers: guests.len(), cpu, first })
}

impl Guest {
    fn new(socket: &Path) -> Result<Self> {
        let options = Options { memory: 1 << 20, ..Options::default() };
        let controller = Controller::connect_wire(socket, options)
            .with_context(|| format!("connect to {}", socket.display()))?;
        controller.request_queues(1)?;
        let queues = controller.create_queue_pair(1, 16)?;
        let buffer = controller.arena().alloc(4096)?;
        Ok(Self { queues, buffer, _controller: controller })
    }

    /// Reads a block, and tells how long it took.
    fn read(&mut self) -> Result<Duration> {
        let command = io::read(1, 0, 1, Data::Prp(self.buffer.iova(), 0));
        let start = Instant::now();
        self.queues.submit(command)?;
        let mut completed = 0;
        while completed == 0 {
            let mut good = true;
            completed = self.queues.poll(1, |completion| good = completion.status().is_success())?;
            ensure!(good, "a read failed");
            ensure!(start.elapsed() < PATIENCE, "a read does not complete");
        }
        Ok(start.elapsed())
    }
}
