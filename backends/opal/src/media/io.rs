//! [`BlockIo`]: blocking reads and writes of a channel.

use std::ptr::NonNull;
use std::rc::Rc;

use block::{Abilities, AlignedBuf, Channel, Error, ErrorKind, Flags, Io, Op, Reactor, Segment};

/// Bytes of one read or write below, at most.
const PIECE: usize = 128 << 10;
/// Enough for every device's O_DIRECT.
const ALIGN: usize = 4096;

/// A channel whose operations are waited for, by a thread with a reactor of its own.
#[derive(Clone)]
pub struct BlockIo {
    reactor: Reactor,
    channel: Rc<dyn Channel>,
    block_size: u32,
    abilities: Abilities,
}

impl BlockIo {
    /// The operations of `channel`, which was opened for `reactor`, on a device with blocks of `block_size` bytes.
    pub fn new(reactor: Reactor, channel: Rc<dyn Channel>, block_size: u32, abilities: Abilities) -> Self {
        Self { reactor, channel, block_size, abilities }
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> usize {
        self.block_size as usize
    }

    /// What the device can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn run(&self, io: Io) -> Result<(), Error> {
        self.reactor.block_on(self.channel.submit(io).wait()).result
    }

    fn whole_blocks(&self, len: usize) -> Result<(), Error> {
        // Pieces are whole blocks only if the size divides them.
        let is_sound = self.block_size() > 0 && PIECE.is_multiple_of(self.block_size());
        if is_sound && len.is_multiple_of(self.block_size()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, "not whole blocks"))
    }

    /// An operation with `bytes` of memory, which `before` fills and `after` reads: both get a segment of it.
    fn with_memory(
        &self,
        op: Op,
        lba: u64,
        bytes: usize,
        before: impl FnOnce(&Segment),
        after: impl FnOnce(&Segment),
    ) -> Result<(), Error> {
        let memory = Rc::new(AlignedBuf::new(bytes, ALIGN)?);
        let ptr = NonNull::new(memory.as_ptr()).unwrap_or(NonNull::dangling());
        let segment = || {
            // SAFETY: `bytes` bytes of the buffer, which is held by the `Io`'s guard and, for the segments that stay here,
            // by `memory`. It is only asked for its address: no reference to its bytes is ever made.
            unsafe { Segment::new(ptr, bytes) }
        };
        before(&segment());
        let blocks = (bytes / self.block_size()) as u64;
        self.run(Io::new(op, lba, blocks, vec![segment()], Some(memory.clone()), 0))?;
        after(&segment());
        Ok(())
    }

    /// Reads whole blocks from block `lba` on.
    ///
    /// # Errors
    /// Those of the device; [`ErrorKind::InvalidInput`] if they are not whole blocks. `out` is of no use then.
    pub fn read(&self, lba: u64, out: &mut [u8]) -> Result<(), Error> {
        self.whole_blocks(out.len())?;
        let mut lba = lba;
        for piece in out.chunks_mut(PIECE) {
            let len = piece.len();
            let copy = |segment: &Segment| {
                segment.read(0, piece);
            };
            self.with_memory(Op::Read, lba, len, |_| {}, copy)?;
            lba = lba.saturating_add((len / self.block_size()) as u64);
        }
        Ok(())
    }

    /// Writes whole blocks from block `lba` on. Not durable before [`Self::flush`].
    ///
    /// # Errors
    /// Those of the device; [`ErrorKind::InvalidInput`] if they are not whole blocks. Some of the blocks may be written.
    pub fn write(&self, lba: u64, bytes: &[u8]) -> Result<(), Error> {
        self.whole_blocks(bytes.len())?;
        let mut lba = lba;
        for piece in bytes.chunks(PIECE) {
            let copy = |segment: &Segment| {
                segment.write(0, piece);
            };
            self.with_memory(Op::Write, lba, piece.len(), copy, |_| {})?;
            lba = lba.saturating_add((piece.len() / self.block_size()) as u64);
        }
        Ok(())
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// Those of the device: what was written since the last flush may be there or not.
    pub fn flush(&self) -> Result<(), Error> {
        self.run(Io::new(Op::Flush, 0, 0, Vec::new(), None, 0))
    }

    /// An operation on `blocks` blocks that has no data. `flags` as in [`Io`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn plain(&self, op: Op, lba: u64, blocks: u64, flags: Flags) -> Result<(), Error> {
        self.run(Io::new(op, lba, blocks, Vec::new(), None, 0).with_flags(flags))
    }
}
