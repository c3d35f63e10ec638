//! The encrypting layer: from an `Io` on the drive to one on the device below.

pub mod map;
