//! [`RangeMap`]: what the TPer has told the layer. Immutable, replaced whole; channels see the new one at their next `Io`.

use std::sync::Arc;

use crate::crypto::xts::XtsKey;

/// Which blocks are locked, and which key each has.
#[derive(Debug)]
pub struct RangeMap {
    /// Without gaps from block 0 on, in order; the last one ends at `u64::MAX`.
    pub extents: Vec<Extent>,
    /// Reads below the MBR table's size show that table, which has this key, and nothing is written
    /// (MBRControl: Enable and not Done).
    pub shadow: Option<Arc<XtsKey>>,
}

/// Neighbouring blocks with the same key and locks.
#[derive(Clone, Debug)]
pub struct Extent {
    /// The block after its last one.
    pub end: u64,
    /// Reads get Access Denied.
    pub read_locked: bool,
    /// Writes, discards and zeroes get Access Denied.
    pub write_locked: bool,
    /// Missing only if both are locked.
    pub key: Option<Arc<XtsKey>>,
}
