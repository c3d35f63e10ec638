//! [`NullDevice`]: accepts everything and keeps nothing.

use block::{Abilities, Channel, Device, Error, Info, Io, Reactor, Submission};

/// A disk without contents, for measuring everything above it. Completes on the spot and touches no buffer, as
/// SPDK's does: a read leaves its buffers as they were, so what a guest reads is whatever its memory held.
pub struct NullDevice {
    info: Info,
}

impl NullDevice {
    /// A disk of `size` bytes (up to 8 EiB) in blocks of 512 bytes.
    pub fn new(size: u64) -> Result<Self, Error> {
        Self::with_block_size(size, 512)
    }

    /// A disk of `size` bytes (up to 8 EiB) in blocks of `block_size` bytes.
    pub fn with_block_size(size: u64, block_size: u32) -> Result<Self, Error> {
        let mut info = Info::new(block_size, crate::blocks(size, block_size)?);
        // Not DISCARD_ZEROES: nothing here reads as anything.
        info.abilities = Abilities::WRITE | Abilities::DISCARD | Abilities::WRITE_ZEROES;
        Ok(Self { info })
    }
}

impl Device for NullDevice {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn channel(&self, _: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(NullChannel { info: self.info.clone() }))
    }
}

struct NullChannel {
    info: Info,
}

impl Channel for NullChannel {
    /// Reads and writes are over when they are submitted.
    fn keeps_segments(&self) -> bool {
        false
    }

    fn submit(&self, io: Io) -> Submission {
        let result = io.check(&self.info);
        Submission::Done(io.complete(result))
    }
}
