//! A client for guests that have no cargo: fills a namespace with a pattern, or checks that it has it.
//!
//! `quarry-verify write SOCKET SEED`, `quarry-verify read SOCKET SEED`, and `quarry-verify pattern BYTES SEED`, which prints what
//! the first one writes.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nvme_driver::{Controller, DmaBuffer, Options, Prps, QueuePair, io, namespace};
use quarry_tests::pattern;

/// Bytes of a command.
const SIZE: usize = 64 << 10;
/// Commands in flight.
const DEPTH: usize = 8;
/// For whatever a server does on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, of, seed] = &arguments[..] else { bail!("write|read SOCKET SEED, or pattern BYTES SEED") };
    let seed: u64 = seed.parse().context("SEED")?;
    match what.as_str() {
        "pattern" => Ok(std::io::stdout().write_all(&pattern(seed, of.parse().context("BYTES")?))?),
        "write" => Namespace::with(Path::new(of), |namespace| namespace.write(seed)),
        "read" => Namespace::with(Path::new(of), |namespace| namespace.read(seed)),
        _ => bail!("{what}: write, read or pattern"),
    }
}

/// The first namespace, reached by one queue.
struct Namespace {
    queues: QueuePair,
    buffers: Vec<(DmaBuffer, Prps)>,
    blocks: u64,
    block_size: usize,
}

impl Namespace {
    /// Connects, does the work, and takes leave.
    fn with(socket: &Path, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let options = Options { timeout: PATIENCE, ..Options::default() };
        let controller = Controller::connect_wire(socket, options)?;
        let (blocks, block_size) = namespace::geometry(&controller, 1)?;
        controller.request_queues(1)?;
        let queues = controller.create_queue_pair(1, 64)?;
        let buffers = (0..DEPTH).map(|_| controller.admin_buffer(SIZE)).collect::<Result<_, _>>()?;
        work(&mut Self { queues, buffers, blocks, block_size })?;
        Ok(controller.shutdown()?)
    }

    fn write(&mut self, seed: u64) -> Result<()> {
        let data = pattern(seed, self.bytes()?);
        self.each(&data, true)?;
        Ok(self.queues.execute_ok(io::flush(1), PATIENCE).map(drop)?)
    }

    fn read(&mut self, seed: u64) -> Result<()> {
        let data = pattern(seed, self.bytes()?);
        self.each(&data, false)
    }

    fn bytes(&self) -> Result<usize> {
        Ok(usize::try_from(self.blocks)? * self.block_size)
    }

    /// Writes the data, or reads and compares, with several commands in flight.
    fn each(&mut self, data: &[u8], write: bool) -> Result<()> {
        for (round, batch) in data.chunks(SIZE * DEPTH).enumerate() {
            let mut sent = Vec::new();
            for (index, part) in batch.chunks(SIZE).enumerate() {
                let (buffer, prps) = &self.buffers[index];
                let lba = ((round * DEPTH + index) * SIZE / self.block_size) as u64;
                let blocks = (part.len() / self.block_size) as u32;
                let command = if write {
                    buffer.write(0, part);
                    io::write(1, lba, blocks, prps.data())
                } else {
                    buffer.fill(0);
                    io::read(1, lba, blocks, prps.data())
                };
                sent.push((self.queues.submit(command)?, lba, buffer, part));
            }
            for (cid, lba, buffer, part) in sent {
                let status = self.queues.wait(cid, PATIENCE)?.status().code();
                ensure!(status.is_success(), "block {lba}: {status:?}");
                ensure!(
                    write || buffer.to_vec(0, part.len()) == part,
                    "block {lba} and some after it: not what was written"
                );
            }
        }
        Ok(())
    }
}
