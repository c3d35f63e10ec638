//! What the drive keeps on the device below: its state, and the byte tables. Everything here blocks: it runs on the drive's own
//! thread.

mod disk;
pub mod store;
mod tables;

pub use disk::Disk;
pub use tables::ByteTable;
