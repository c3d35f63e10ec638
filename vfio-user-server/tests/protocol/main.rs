//! The server over real sockets: what the three known clients do, and what no client should.

mod client_crate;
mod dma;
mod irqs;
mod lifecycle;
mod regions;
mod requests;
mod support;
mod transcripts;
