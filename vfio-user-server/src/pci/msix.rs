//! The MSI-X table and pending bits, plain memory in a BAR of their own (PCIe 7.7.2).

use crate::Interrupts;

/// Bytes of a table entry: address, data, vector control.
const ENTRY: usize = 16;
const VECTOR_CONTROL: usize = 12;

/// Where the table and the pending bits lie in the BAR. The table is at 0.
#[derive(Clone, Copy, Debug)]
pub struct MsixLayout {
    /// Number of vectors, up to 2048.
    pub vectors: u16,
    /// Where the pending bits lie: on a page of their own, for a VMM traps the table's.
    pub pending_offset: u64,
    /// Bytes of the BAR: a power of two.
    pub bar_size: u64,
}

impl MsixLayout {
    /// For a number of vectors.
    pub fn new(vectors: u16) -> Self {
        let vectors = vectors.min(2048);
        let pending_offset = (u64::from(vectors) * ENTRY as u64).next_multiple_of(4096).max(4096);
        Self { vectors, pending_offset, bar_size: (pending_offset + 4096).next_power_of_two() }
    }
}

/// The contents of the BAR.
#[derive(Debug)]
pub struct MsixBar {
    layout: MsixLayout,
    table: Vec<u8>,
}

impl MsixBar {
    /// As after power-on: every vector masked.
    pub fn new(vectors: u16) -> Self {
        let layout = MsixLayout::new(vectors);
        let mut bar = Self { layout, table: vec![0; usize::from(layout.vectors) * ENTRY] };
        bar.reset();
        bar
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.table.fill(0);
        self.table.iter_mut().skip(VECTOR_CONTROL).step_by(ENTRY).for_each(|control| *control = 1);
    }

    /// Reads, any range; what is neither table nor pending bits reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8], interrupts: &Interrupts) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i as u64);
            *byte = match at.checked_sub(self.layout.pending_offset) {
                None => self.table.get(at as usize).copied().unwrap_or(0),
                Some(at) if at < u64::from(self.layout.vectors).div_ceil(8) => {
                    let first = at as u16 * 8;
                    (0..8).fold(0, |bits, i| bits | u8::from(interrupts.is_pending(first + i)) << i)
                }
                Some(_) => 0,
            };
        }
    }

    /// Writes, any range; only the table takes them, and of vector control only the mask bit.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (i, &new) in data.iter().enumerate() {
            let at = offset.saturating_add(i as u64);
            let Some(byte) = usize::try_from(at).ok().and_then(|at| self.table.get_mut(at)) else { return };
            *byte = match at as usize % ENTRY {
                // The address is a multiple of 4.
                0 => new & !3,
                VECTOR_CONTROL => new & 1,
                13..ENTRY => 0,
                _ => new,
            };
        }
    }
}
