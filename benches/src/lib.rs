//! Measures Quarry: a client that drives a running server ([`target`], [`run`]), what the machine allows at most
//! ([`limits`]), and a controller in this thread whose instructions and allocations are counted ([`rig`]).
//!
//! Not here: what the figures are compared with and how they are shown. `cargo xtask bench` does that.

pub mod alloc;
pub mod clock;
pub mod cpu;
pub mod histogram;
pub mod idle;
pub mod lane;
pub mod limits;
pub mod memory;
pub mod pattern;
pub mod rig;
pub mod run;
pub mod target;
