//! A layer that makes a block device a self-encrypting one: what is above sees a TCG Opal 2 drive, what is below sees
//! ciphertext.
//!
//! Two parts: the [TPer](tper) (sessions, tables, methods: pure, no I/O) and the encrypting [layer](layer). Between them
//! stands a [`RangeMap`]: which blocks are locked, and which key each has.
//!
//! What it leaves out: how commands come (see `block::security` and `nvme-emu`).

pub mod crypto;
pub mod device_key;
pub mod layer;
mod layout;
pub mod media;
pub mod secret;

pub use layer::map::{Extent, RangeMap};
pub use layout::Layout;
