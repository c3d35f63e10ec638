//! [`Ring`]: the memory of a queue, resolved once and again whenever the DMA table changes.

use std::ptr::NonNull;

use vfio_user_server::{Access, DmaFault, DmaTable, Hint};

/// Where a ring lies in this process.
pub(super) enum Backing {
    /// In one piece.
    Contiguous(NonNull<u8>),
    /// In several mappings: each entry is looked up.
    Scattered,
    /// Nowhere at the moment.
    Gone,
}

/// The memory of a queue.
pub(crate) struct Ring {
    pub(super) iova: u64,
    pub(super) entries: u32,
    entry_bytes: usize,
    access: Access,
    pub(super) backing: Backing,
}

impl Ring {
    /// A ring of `entries` entries at `iova`; not mapped yet.
    pub(crate) fn new(iova: u64, entries: u32, entry_bytes: usize, access: Access) -> Self {
        Self { iova, entries, entry_bytes, access, backing: Backing::Gone }
    }

    /// Resolves the ring in `table`. On a fault it rests.
    pub(crate) fn map(&mut self, table: &DmaTable) -> Result<(), DmaFault> {
        let mut first: Option<(NonNull<u8>, usize)> = None;
        let mut scattered = false;
        let len = self.entries as usize * self.entry_bytes;
        self.backing = Backing::Gone;
        table.resolve(self.iova, len, self.access, &mut Hint::default(), |ptr, len| match &mut first {
            None => first = Some((ptr, len)),
            Some((start, have)) if start.as_ptr().addr() + *have == ptr.as_ptr().addr() => *have += len,
            Some(_) => scattered = true,
        })?;
        self.backing = match first {
            Some((ptr, _)) if !scattered => Backing::Contiguous(ptr),
            _ => Backing::Scattered,
        };
        Ok(())
    }

    pub(crate) fn is_mapped(&self) -> bool {
        !matches!(self.backing, Backing::Gone)
    }

    pub(crate) fn unmap(&mut self) {
        self.backing = Backing::Gone;
    }

    pub(super) fn next(&self, index: u32) -> u32 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }

    pub(super) fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { to + self.entries - from }
    }
}
