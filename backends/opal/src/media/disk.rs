//! [`Disk`]: the device below, read and written by a thread that may block.

use std::ptr::NonNull;
use std::rc::Rc;

use block::{Abilities, AlignedBuf, Channel, Device, Error, ErrorKind, Io, Op, Reactor, Segment};

/// Bytes moved at once.
pub const PIECE: usize = 1 << 20;

/// The device below.
pub struct Disk {
    reactor: Reactor,
    channel: Rc<dyn Channel>,
    /// Bytes in a block.
    pub block_size: u32,
    abilities: Abilities,
}

impl Disk {
    /// A way into `device` with a reactor of its own.
    ///
    /// # Errors
    /// There is no reactor, or the device gives no channel.
    pub fn open(device: &dyn Device) -> Result<Self, Error> {
        let reactor = Reactor::new(8).map_err(|error| Error::new(ErrorKind::Internal, error))?;
        let info = device.info();
        let channel = Rc::from(device.channel(&reactor)?);
        Ok(Self { reactor, channel, block_size: info.block_size, abilities: info.abilities })
    }

    /// A buffer for `bytes` bytes, zeroed.
    ///
    /// # Errors
    /// There is no memory.
    pub fn buffer(bytes: usize) -> Result<Rc<AlignedBuf>, Error> {
        AlignedBuf::new(bytes, 4096).map(Rc::new)
    }

    fn run(&self, op: Op, lba: u64, blocks: u64, buffer: Option<&Rc<AlignedBuf>>) -> Result<(), Error> {
        let (mut segments, mut guard) = (Vec::new(), None);
        if let Some(buffer) = buffer {
            let bytes = blocks as usize * self.block_size as usize;
            let ptr = NonNull::new(buffer.as_ptr()).filter(|_| bytes <= buffer.len());
            let ptr = ptr.ok_or(ErrorKind::Internal)?;
            // SAFETY: `bytes` bytes of the buffer, which the guard keeps; whoever owns the other handle waits here until the
            // `Io` is complete, and looks at the bytes only then.
            segments.push(unsafe { Segment::new(ptr, bytes) });
            guard = Some(buffer.clone() as Rc<dyn std::any::Any>);
        }
        let io = Io::new(op, lba, blocks, segments, guard, 0);
        self.reactor.block_on(self.channel.submit(io).wait()).result
    }

    /// Reads the blocks that fill `bytes`, a multiple of the block size.
    ///
    /// # Errors
    /// As the device says.
    pub fn read(&self, lba: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let mut lba = lba;
        for piece in bytes.chunks_mut(PIECE) {
            let buffer = Self::buffer(piece.len())?;
            let blocks = self.blocks(piece.len())?;
            self.run(Op::Read, lba, blocks, Some(&buffer))?;
            piece.copy_from_slice(&buffer);
            lba += blocks;
        }
        Ok(())
    }

    /// Writes `bytes`, a multiple of the block size.
    ///
    /// # Errors
    /// As the device says.
    pub fn write(&self, lba: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut lba = lba;
        for piece in bytes.chunks(PIECE) {
            let mut buffer = AlignedBuf::new(piece.len(), 4096)?;
            buffer.copy_from_slice(piece);
            let blocks = self.blocks(piece.len())?;
            self.run(Op::Write, lba, blocks, Some(&Rc::new(buffer)))?;
            lba += blocks;
        }
        Ok(())
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As the device says.
    pub fn flush(&self) -> Result<(), Error> {
        self.run(Op::Flush, 0, 0, None)
    }

    /// Makes blocks read as zeroes: in the device's own way, or by writing.
    ///
    /// # Errors
    /// As the device says.
    pub fn zero(&self, lba: u64, blocks: u64) -> Result<(), Error> {
        let step = (PIECE / self.block_size as usize) as u64;
        let (mut lba, end) = (lba, lba + blocks);
        let zeroes = vec![0; if self.abilities.contains(Abilities::WRITE_ZEROES) { 0 } else { PIECE }];
        while lba < end {
            let count = step.min(end - lba);
            if zeroes.is_empty() {
                let io = Io::new(Op::WriteZeroes, lba, count, Vec::new(), None, 0)
                    .with_flags(block::Flags::MAY_UNMAP);
                self.reactor.block_on(self.channel.submit(io).wait()).result?;
            } else {
                self.write(lba, &zeroes[..count as usize * self.block_size as usize])?;
            }
            lba += count;
        }
        Ok(())
    }

    fn blocks(&self, bytes: usize) -> Result<u64, Error> {
        let size = self.block_size as usize;
        if bytes.is_multiple_of(size) {
            Ok((bytes / size) as u64)
        } else {
            Err(ErrorKind::InvalidInput.into())
        }
    }
}
