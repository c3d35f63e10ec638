//! The devices on real clusters. Each test has one of its own, which ends with it.

mod common;
mod conformance;
mod images;
mod stalls;
mod volumes;
