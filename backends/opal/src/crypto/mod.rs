//! Cryptography: what is here calls aws-lc and the Argon2 crate; nothing is invented.

pub mod exchange;
pub mod kdf;
pub mod seal;
pub mod xts;
