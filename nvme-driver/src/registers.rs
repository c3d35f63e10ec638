//! [`Link`]: the shared way to a function's registers and configuration space, by messages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::transport::{BAR0, CONFIG, Transport};

/// A transport that several parts of the driver share. Messages go one at a time.
#[derive(Clone)]
pub struct Link(Arc<Mutex<Box<dyn Transport>>>);

impl Link {
    /// Shares a transport.
    pub fn new(transport: Box<dyn Transport>) -> Self {
        Self(Arc::new(Mutex::new(transport)))
    }

    /// The transport, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, Box<dyn Transport>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a 4-byte register of BAR0.
    pub fn read32(&self, offset: u64) -> Result<u32> {
        let mut data = [0; 4];
        self.lock().region_read(BAR0, offset, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    /// Reads an 8-byte register of BAR0.
    pub fn read64(&self, offset: u64) -> Result<u64> {
        let mut data = [0; 8];
        self.lock().region_read(BAR0, offset, &mut data)?;
        Ok(u64::from_le_bytes(data))
    }

    /// Writes a 4-byte register of BAR0.
    pub fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.lock().region_write(BAR0, offset, &value.to_le_bytes())
    }

    /// Writes an 8-byte register of BAR0, in one access.
    pub fn write64(&self, offset: u64, value: u64) -> Result<()> {
        self.lock().region_write(BAR0, offset, &value.to_le_bytes())
    }

    /// Writes an 8-byte register of BAR0 as two 4-byte halves, lower half first, as Linux and QEMU do.
    pub fn write64_halves(&self, offset: u64, value: u64) -> Result<()> {
        self.write32(offset, value as u32)?;
        self.write32(offset + 4, (value >> 32) as u32)
    }

    /// Reads from the configuration space.
    pub fn config_read<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut data = [0; N];
        self.lock().region_read(CONFIG, offset, &mut data)?;
        Ok(data)
    }

    /// Writes to the configuration space.
    pub fn config_write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.lock().region_write(CONFIG, offset, data)
    }

    /// The offset of a PCI capability.
    pub fn find_capability(&self, id: u8) -> Result<Option<u64>> {
        let [mut at] = self.config_read::<1>(0x34)?;
        // The list cannot be longer than the space it is in.
        for _ in 0..48 {
            if at < 0x40 {
                return Ok(None);
            }
            let [found, next] = self.config_read(u64::from(at))?;
            if found == id {
                return Ok(Some(u64::from(at)));
            }
            at = next & !3;
        }
        Ok(None)
    }
}
