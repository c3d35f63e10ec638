//! NVMe wire types: registers, commands, completions, data structures and codes, exactly as the specification lays
//! them out, and nothing that behaves.
//!
//! Sources, cited in short form throughout:
//!
//! * **Base**: NVM Express Base Specification, revision 2.0.
//! * **NVM**: NVM Express NVM Command Set Specification, revision 1.0.
//! * **PCIe**: NVM Express NVMe over PCIe Transport Specification, revision 1.0.
//!
//! Conventions:
//!
//! * Data structures in memory are `zerocopy` structs of alignment 1 with little-endian fields, on any host.
//!   A bit field *inside* such a structure is a little-endian bitfield too: its `into_bits` gives a
//!   little-endian integer (`.get()` makes it native). One-byte fields have no such distinction.
//! * Registers and command dwords are bitfields over native integers: `Cap::from_bits(u64)`,
//!   `NumberOfQueues::from_bits(cmd.cdw11())`.
//! * A field that counts from zero (0 means one) ends in `_z`.
//! * Codes are open enums: newtypes with named constants, so that unknown values stay representable.
//!
//! Not here: the zoned and key-value command sets, and everything that only exists over fabrics.

#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod macros;

pub mod admin;
pub mod command;
pub mod doorbell_buffer;
pub mod event;
pub mod features;
pub mod identify;
pub mod log;
pub mod nvm;
pub mod opcode;
pub mod queue;
pub mod registers;
pub mod sgl;
pub mod status;

pub use command::{Command, Completion, CompletionStatus};
pub use opcode::{AdminOpcode, NvmOpcode};
pub use status::Status;

/// The namespace identifier that names all namespaces (Base 3.2.1.2).
pub const NSID_BROADCAST: u32 = 0xFFFF_FFFF;
