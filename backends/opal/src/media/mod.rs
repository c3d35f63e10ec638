//! What belongs to the drive itself on the device below (see `layout`): its state ([`store`]) and the byte tables
//! ([`tables`]). All of it is for a thread that may block, not for a reactor of the data path.

mod cipher;
pub mod io;
pub mod store;
pub mod tables;

pub use io::BlockIo;
pub use store::{FormatError, LoadError, Loaded, Store};
pub use tables::ByteTable;
