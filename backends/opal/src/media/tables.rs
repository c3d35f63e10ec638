//! [`ByteTable`]: the MBR table and the DataStore table, encrypted at rest.

use block::{Abilities, Error, ErrorKind, Flags, Op};
use zeroize::Zeroizing;

use super::{BlockIo, cipher};
use crate::crypto::xts::{XtsCipher, XtsKey};
use crate::layout::{DATA_STORE_BYTES, DATA_STORE_START, MBR_BYTES, MBR_START};

/// Bytes that are read, changed and written at once. A block is no larger.
const PIECE: usize = 64 << 10;
/// Bytes of zeroes that are written at once, where the device has no better way.
const ZEROES: usize = 1 << 20;

/// A byte table (Core 2.01, 3.2.5.2) on the device below. Its block `n` is data unit `n` of AES-256-XTS with the table's key,
/// and reads as zeroes if it is all zeroes below: it was never written.
///
/// A write that a power failure interrupts leaves each block old or new, as far as the device writes blocks at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteTable {
    /// Where it starts, in blocks of the device below.
    pub first_block: u64,
    /// Its bytes: whole blocks.
    pub bytes: u64,
}

/// Blocks of a table that some bytes of it lie in, and the place of these bytes.
struct Piece {
    /// The first block, within the table.
    block: u64,
    /// Bytes of all blocks.
    len: usize,
    /// Where the bytes start in them.
    skip: usize,
    /// How many there are.
    take: usize,
}

impl ByteTable {
    /// The MBR table on a device with blocks of `block_size` bytes.
    pub fn mbr(block_size: u32) -> Self {
        Self { first_block: MBR_START / u64::from(block_size), bytes: MBR_BYTES }
    }

    /// The DataStore table on a device with blocks of `block_size` bytes.
    pub fn data_store(block_size: u32) -> Self {
        Self { first_block: DATA_STORE_START / u64::from(block_size), bytes: DATA_STORE_BYTES }
    }

    fn check(&self, block_size: usize, offset: u64, len: usize) -> Result<(), Error> {
        if block_size == 0 || !PIECE.is_multiple_of(block_size) {
            return Err(Error::new(ErrorKind::InvalidInput, "a block size that tables do not have"));
        }
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(Error::new(ErrorKind::OutOfRange, "the range ends beyond the table"));
        }
        Ok(())
    }

    /// The first piece of `len` bytes from `offset` on; all within the table.
    fn piece(block_size: usize, offset: u64, len: usize) -> Piece {
        let skip = (offset % block_size as u64) as usize;
        let take = len.min(PIECE - skip);
        Piece {
            block: offset / block_size as u64,
            len: (skip + take).next_multiple_of(block_size),
            skip,
            take,
        }
    }

    /// Reads and decrypts the blocks of a piece.
    fn read_blocks(
        &self,
        io: &BlockIo,
        cipher: &XtsCipher,
        block: u64,
        blocks: &mut [u8],
    ) -> Result<(), Error> {
        io.read(self.first_block + block, blocks)?;
        for (number, bytes) in (block..).zip(blocks.chunks_mut(io.block_size())) {
            if bytes.iter().any(|byte| *byte != 0) {
                cipher::decrypt(cipher, number, io.block_size(), bytes)?;
            }
        }
        Ok(())
    }

    /// Reads the bytes from `offset` on.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`]: they end beyond the table. Otherwise those of the device. `out` is of no use then.
    pub fn read(&self, io: &BlockIo, key: &XtsKey, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        self.check(io.block_size(), offset, out.len())?;
        let cipher = XtsCipher::new(key)?;
        let mut memory = Zeroizing::new(vec![0; PIECE]);
        let (mut at, mut left) = (offset, out);
        while !left.is_empty() {
            let piece = Self::piece(io.block_size(), at, left.len());
            let blocks = &mut memory[..piece.len];
            self.read_blocks(io, &cipher, piece.block, blocks)?;
            let (now, later) = left.split_at_mut(piece.take);
            now.copy_from_slice(&blocks[piece.skip..][..piece.take]);
            left = later;
            at += piece.take as u64;
        }
        Ok(())
    }

    /// Writes the bytes from `offset` on. Durable when it returns.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`]: they end beyond the table, and nothing was written. Otherwise those of the device: some of
    /// them may be written.
    pub fn write(&self, io: &BlockIo, key: &XtsKey, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(io.block_size(), offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let cipher = XtsCipher::new(key)?;
        let mut memory = Zeroizing::new(vec![0; PIECE]);
        let (mut at, mut left) = (offset, bytes);
        while !left.is_empty() {
            let piece = Self::piece(io.block_size(), at, left.len());
            let blocks = &mut memory[..piece.len];
            if piece.take != piece.len {
                self.read_blocks(io, &cipher, piece.block, blocks)?;
            }
            let (now, later) = left.split_at(piece.take);
            blocks[piece.skip..][..piece.take].copy_from_slice(now);
            cipher::encrypt(&cipher, piece.block, io.block_size(), blocks)?;
            io.write(self.first_block + piece.block, blocks)?;
            left = later;
            at += piece.take as u64;
        }
        io.flush()
    }

    /// Makes all of it read as zeroes, with any key. Durable when it returns.
    ///
    /// # Errors
    /// Those of the device: some of it may be zeroes.
    pub fn wipe(&self, io: &BlockIo) -> Result<(), Error> {
        self.check(io.block_size(), 0, 0)?;
        let blocks = self.bytes.div_ceil(io.block_size() as u64);
        let discard = Abilities::DISCARD | Abilities::DISCARD_ZEROES;
        let result = if io.abilities().contains(Abilities::WRITE_ZEROES) {
            io.plain(Op::WriteZeroes, self.first_block, blocks, Flags::MAY_UNMAP)
        } else if io.abilities().contains(discard) {
            io.plain(Op::Discard, self.first_block, blocks, Flags::empty())
        } else {
            Err(ErrorKind::Unsupported.into())
        };
        match result {
            // Some devices learn only by trying that what is below them has no such thing.
            Err(error) if error.kind() == ErrorKind::Unsupported => self.write_zeroes(io, blocks)?,
            result => result?,
        }
        io.flush()
    }

    fn write_zeroes(&self, io: &BlockIo, blocks: u64) -> Result<(), Error> {
        let zeroes = vec![0; ZEROES];
        let step = (ZEROES / io.block_size()) as u64;
        let mut done = 0;
        while done < blocks {
            let now = step.min(blocks - done);
            io.write(self.first_block + done, &zeroes[..now as usize * io.block_size()])?;
            done += now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
