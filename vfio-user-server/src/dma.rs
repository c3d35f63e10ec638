//! Guest memory: [`DmaTable`], an immutable sorted snapshot of what the client mapped, and [`DmaSpace`],
//! which replaces it whole.

use std::ptr::NonNull;
use std::sync::Arc;

/// What the device wants to do with guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads guest memory (vfio-user DMA_MAP flag bit 0).
    Read,
    /// The device writes guest memory (bit 1).
    Write,
}

/// Why an address range is of no use to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaFault {
    /// Nothing is mapped there.
    #[error("guest address {iova:#x} is not mapped")]
    Unmapped {
        /// First address that failed.
        iova: u64,
    },
    /// The map does not allow this access.
    #[error("guest address {iova:#x} is mapped without the needed permission")]
    Forbidden {
        /// First address that failed.
        iova: u64,
    },
    /// The client mapped it without a descriptor, so it is out of this process's reach.
    #[error("guest address {iova:#x} was mapped without a descriptor; start the VMM with shared memory (share=on)")]
    NotShared {
        /// First address that failed.
        iova: u64,
    },
}

/// A set of regions, as a 64-bit filter of their identities: two disjoint masks share no region.
pub type RegionMask = u64;

/// Remembers the last region a lookup hit. One per queue; never shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint(#[expect(dead_code, reason = "stub")] usize);

/// An immutable snapshot of guest memory. While it is held, its memory stays mapped into this process.
#[derive(Debug)]
pub struct DmaTable {
    generation: u64,
}

impl DmaTable {
    /// Counts the replacements of the table: a later table has a larger generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Resolves `len` bytes at guest address `iova` to host memory: calls `piece` with pointer and length of
    /// each contiguous piece in order. Returns which regions were touched. On a fault some pieces may have
    /// been reported before. `len` 0 resolves to nothing.
    ///
    /// The pointers are good for raw access while this table is held.
    pub fn resolve(
        &self,
        iova: u64,
        len: usize,
        access: Access,
        hint: &mut Hint,
        piece: impl FnMut(NonNull<u8>, usize),
    ) -> Result<RegionMask, DmaFault> {
        let _ = (len, access, hint, piece);
        Err(DmaFault::Unmapped { iova })
    }

    /// Copies guest memory at `iova` into `data`.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let _ = data;
        Err(DmaFault::Unmapped { iova })
    }

    /// Copies `data` to guest memory at `iova`.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let _ = data;
        Err(DmaFault::Unmapped { iova })
    }

    /// The regions of this table that `newer` no longer has.
    pub fn removed(&self, newer: &DmaTable) -> RegionMask {
        let _ = newer;
        0
    }
}

/// The current [`DmaTable`] of a function.
#[derive(Debug)]
pub struct DmaSpace {
    table: arc_swap::ArcSwap<DmaTable>,
}

impl DmaSpace {
    /// An empty address space.
    pub fn new() -> Self {
        Self { table: arc_swap::ArcSwap::from_pointee(DmaTable { generation: 0 }) }
    }

    /// The generation of the current table: one atomic load, for a reactor to see whether its own is stale.
    pub fn generation(&self) -> u64 {
        self.table.load().generation()
    }

    /// The current table.
    pub fn table(&self) -> Arc<DmaTable> {
        self.table.load_full()
    }
}

impl Default for DmaSpace {
    fn default() -> Self {
        Self::new()
    }
}
