//! [`ByteTable`]: bytes on the device below, encrypted like the drive's own, that can be read and written at any place.
//!
//! A block that is all zeroes below was never written, and reads as zeroes.

use block::Error;

use super::Disk;
use crate::crypto::xts::{XtsCipher, XtsKey};

/// Bytes moved at once.
const PIECE: u64 = 64 << 10;

/// An area of the device below.
#[derive(Clone, Copy, Debug)]
pub struct ByteTable {
    /// Its first byte, at a block's start.
    pub start: u64,
    /// Its size in bytes, whole blocks.
    pub bytes: u64,
}

impl ByteTable {
    /// Reads `bytes.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// As the device says.
    pub fn read(&self, disk: &Disk, key: &XtsKey, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.pieces(disk, offset, bytes.len(), |first, skip, done, len| {
            let plain = self.load(disk, key, first, skip + len)?;
            bytes[done..done + len].copy_from_slice(&plain[skip..skip + len]);
            Ok(())
        })
    }

    /// Writes `bytes` from `offset` on. They are durable then.
    ///
    /// # Errors
    /// As the device says; some of them may be written.
    pub fn write(&self, disk: &Disk, key: &XtsKey, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.pieces(disk, offset, bytes.len(), |first, skip, done, len| {
            let mut plain = self.load(disk, key, first, skip + len)?;
            plain[skip..skip + len].copy_from_slice(&bytes[done..done + len]);
            let size = disk.block_size as usize;
            let cipher = XtsCipher::new(key)?;
            let (at, units) = (plain.as_mut_ptr(), plain.len() / size);
            // SAFETY: `units` whole units of the buffer, which is ours alone; in place is allowed.
            unsafe { cipher.encrypt(first, at, at, size, units) }?;
            disk.write(self.start / size as u64 + first, &plain)
        })?;
        disk.flush()
    }

    /// Makes all of it read as zeroes.
    ///
    /// # Errors
    /// As the device says.
    pub fn wipe(&self, disk: &Disk) -> Result<(), Error> {
        let size = u64::from(disk.block_size);
        disk.zero(self.start / size, self.bytes / size)?;
        disk.flush()
    }

    /// Cuts a range into pieces. `each` gets the first block (of the table) of one, where in it the piece starts, how many
    /// bytes are done, and how many it has.
    fn pieces(
        &self,
        disk: &Disk,
        offset: u64,
        len: usize,
        mut each: impl FnMut(u64, usize, usize, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let size = u64::from(disk.block_size);
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(block::ErrorKind::OutOfRange.into());
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let skip = at % size;
            let piece = (PIECE - skip).min((len - done) as u64);
            each(at / size, skip as usize, done, piece as usize)?;
            done += piece as usize;
        }
        Ok(())
    }

    /// The blocks that hold `bytes` bytes from block `first` on, decrypted.
    fn load(&self, disk: &Disk, key: &XtsKey, first: u64, bytes: usize) -> Result<Vec<u8>, Error> {
        let size = disk.block_size as usize;
        let mut blocks = vec![0; bytes.next_multiple_of(size)];
        disk.read(self.start / size as u64 + first, &mut blocks)?;
        let cipher = XtsCipher::new(key)?;
        for (unit, block) in (first..).zip(blocks.chunks_exact_mut(size)) {
            if block.iter().any(|byte| *byte != 0) {
                let at = block.as_mut_ptr();
                // SAFETY: one whole unit, which is ours alone; in place is allowed.
                unsafe { cipher.decrypt(unit, at, at, size, 1) }?;
            }
        }
        Ok(blocks)
    }
}
