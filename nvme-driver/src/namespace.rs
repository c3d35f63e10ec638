//! [`Namespace`]: blocking reads and writes, for those who do not want to see a queue.

use std::sync::Arc;
use std::time::Duration;

use nvme_spec::{Command, Completion, Status};

use crate::controller::Controller;
use crate::data::{Data, Prps};
use crate::error::Result;
use crate::io;
use crate::memory::{Arena, DmaBuffer};
use crate::queue::{QueuePair, succeed};

/// One namespace with a queue pair of its own. Data is copied through one buffer; commands go one at a time.
pub struct Namespace {
    id: u32,
    block_size: usize,
    blocks: u64,
    queues: QueuePair,
    bounce: DmaBuffer,
    arena: Arc<Arena>,
    timeout: Duration,
}

/// The largest single command, if the controller sets no lower limit.
const MAX_TRANSFER: usize = 1 << 20;

impl Namespace {
    /// Identifies namespace `id`; its commands will go by `queues`.
    pub fn open(controller: &Controller, id: u32, queues: QueuePair) -> Result<Self> {
        let (blocks, block_size) = geometry(controller, id)?;
        // MDTS, Identify Controller byte 77: a power of two of 4 KiB pages, 0 for no limit.
        let mdts = controller.identify(1, 0)?[77];
        let limit = if mdts == 0 { MAX_TRANSFER } else { 4096usize << mdts.min(16) };
        Ok(Self {
            id,
            block_size,
            blocks,
            queues,
            bounce: controller.arena().alloc(limit.min(MAX_TRANSFER))?,
            arena: Arc::clone(controller.arena()),
            timeout: controller.timeout(),
        })
    }

    /// Its identifier.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of a logical block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Its size in logical blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Its queue pair.
    pub fn queues(&mut self) -> &mut QueuePair {
        &mut self.queues
    }

    /// Gives the queue pair back.
    pub fn into_queues(self) -> QueuePair {
        self.queues
    }

    fn count(&self, bytes: usize) -> u32 {
        assert!(bytes.is_multiple_of(self.block_size), "{bytes} bytes of blocks of {}", self.block_size);
        (bytes / self.block_size) as u32
    }

    fn data(&self, bytes: usize) -> Result<Prps> {
        Prps::new(&self.arena, self.bounce.iova(), bytes)
    }

    /// Reads whole blocks from `lba` on.
    pub fn read(&mut self, lba: u64, data: &mut [u8]) -> Result<()> {
        let mut lba = lba;
        for part in data.chunks_mut(self.bounce.len()) {
            let (blocks, prps) = (self.count(part.len()), self.data(part.len())?);
            self.queues.execute_ok(io::read(self.id, lba, blocks, prps.data()), self.timeout)?;
            self.bounce.read(0, part);
            lba += u64::from(blocks);
        }
        Ok(())
    }

    /// Writes whole blocks from `lba` on.
    pub fn write(&mut self, lba: u64, data: &[u8]) -> Result<()> {
        let mut lba = lba;
        for part in data.chunks(self.bounce.len()) {
            let (blocks, prps) = (self.count(part.len()), self.data(part.len())?);
            self.bounce.write(0, part);
            self.queues.execute_ok(io::write(self.id, lba, blocks, prps.data()), self.timeout)?;
            lba += u64::from(blocks);
        }
        Ok(())
    }

    /// Whether the blocks from `lba` on hold `data`.
    pub fn compare(&mut self, lba: u64, data: &[u8]) -> Result<bool> {
        let mut lba = lba;
        for part in data.chunks(self.bounce.len()) {
            let (blocks, prps) = (self.count(part.len()), self.data(part.len())?);
            self.bounce.write(0, part);
            let command = io::compare(self.id, lba, blocks, prps.data());
            if !is_equal(command, self.queues.execute(command, self.timeout)?)? {
                return Ok(false);
            }
            lba += u64::from(blocks);
        }
        Ok(true)
    }

    /// Writes `new` if the blocks from `lba` on hold `old`, as one fused operation; whether they did. Both have the same
    /// length, half of the largest command at most.
    pub fn compare_and_write(&mut self, lba: u64, old: &[u8], new: &[u8]) -> Result<bool> {
        let half = self.bounce.len() / 2;
        assert!(old.len() == new.len() && old.len() <= half, "{} and {} bytes", old.len(), new.len());
        let blocks = self.count(old.len());
        self.bounce.write(0, old);
        self.bounce.write(half, new);
        let prps = Prps::new(&self.arena, self.bounce.iova(), old.len())?;
        let new = Prps::new(&self.arena, self.bounce.iova() + half as u64, new.len())?;
        let pair = io::compare_and_write(self.id, lba, blocks, prps.data(), new.data());
        let cids = self.queues.submit_together(pair)?;
        let ends = [self.queues.wait(cids[0], self.timeout)?, self.queues.wait(cids[1], self.timeout)?];
        let equal = is_equal(pair[0], ends[0])?;
        if !equal && ends[1].status().code() == Status::COMMAND_ABORTED_FAILED_FUSED {
            return Ok(false);
        }
        succeed(pair[1], ends[1])?;
        Ok(equal)
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) -> Result<()> {
        self.queues.execute_ok(io::flush(self.id), self.timeout).map(drop)
    }

    /// Writes zeroes to `blocks` (1 to 65536) blocks.
    pub fn write_zeroes(&mut self, lba: u64, blocks: u32) -> Result<()> {
        self.queues.execute_ok(io::write_zeroes(self.id, lba, blocks), self.timeout).map(drop)
    }

    /// Deallocates up to 256 ranges of (first block, number of blocks).
    pub fn deallocate(&mut self, ranges: &[(u64, u32)]) -> Result<()> {
        for (index, (lba, blocks)) in ranges.iter().enumerate() {
            let range =
                nvme_spec::nvm::DsmRange { nlb: (*blocks).into(), slba: (*lba).into(), ..Default::default() };
            self.bounce.put(index * size_of_val(&range), &range);
        }
        let data = Data::Prp(self.bounce.iova(), 0);
        self.queues.execute_ok(io::deallocate(self.id, ranges.len() as u32, data), self.timeout).map(drop)
    }
}

/// What a completed Compare says.
fn is_equal(command: Command, completion: Completion) -> Result<bool> {
    if completion.status().code() == Status::COMPARE_FAILURE {
        return Ok(false);
    }
    succeed(command, completion).map(|_| true)
}

/// A namespace's size in blocks and the bytes of a block.
pub fn geometry(controller: &Controller, id: u32) -> Result<(u64, usize)> {
    // Identify Namespace: NSZE in bytes 7:0, FLBAS in byte 26, formats from byte 128, LBADS in bits 23:16 of each.
    let identify = controller.identify(0, id)?;
    let [nsze, ..] = identify.as_chunks().0 else { unreachable!("Identify gives 4096 bytes") };
    let format = usize::from(identify[26] & 0xF) | usize::from(identify[26] >> 5 & 3) << 4;
    Ok((u64::from_le_bytes(*nsze), 1 << identify[128 + 4 * format + 2]))
}
