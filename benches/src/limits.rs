//! What the machine allows at most, whoever serves: measured on the same CPUs, next to what Quarry reaches.

pub mod copy;
pub mod echo;
pub mod line;
