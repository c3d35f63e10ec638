//! A layer that makes a block device a self-encrypting one: what is above sees a TCG Opal 2 drive, what is below sees
//! ciphertext.
//!
//! Two parts: the [TPer](tper) (sessions, tables, methods: pure, no I/O) and the encrypting [layer]. Between them stands a
//! [`RangeMap`]: which blocks are locked, and which key each has. A drive's own thread brings commands to the TPer, what the
//! TPer keeps to the [device below](media), and its maps to the layer.
//!
//! What it leaves out: how commands come (see `block::security` and `nvme-emu`).

pub mod crypto;
mod device;
pub mod device_key;
pub mod layer;
mod layout;
pub mod media;
pub mod secret;
mod service;
mod status;
pub mod tper;

pub use device::{OpalDevice, OpalOptions, OpenError};
pub use layer::map::{Extent, RangeMap};
pub use layout::Layout;
pub use status::{OpalStatus, RangeStatus};
