//! Doorbell Buffer Config (Base 5.11): PRP1 names the shadow doorbell buffer, PRP2 the EventIdx buffer, each one memory
//! page, page aligned.
//!
//! Both buffers are laid out as the doorbell registers are, with the same stride, from offset 0: the host writes the
//! doorbell value to the shadow, and to the register only when the value passes the EventIdx (Base B.5). Hosts may
//! leave the admin queue's entries alone and ring its registers; Linux does.

use crate::registers::{DOORBELLS, doorbell_offset};

/// The offset in either buffer of a queue's entry (4 bytes): the register's offset less 1000h (Base 5.11).
pub const fn entry_offset(qid: u16, is_cq: bool, dstrd: u8) -> u64 {
    doorbell_offset(qid, is_cq, dstrd) - DOORBELLS
}

/// The highest queue identifier for which both doorbells fit into a buffer of one page of `page` bytes.
pub const fn max_qid(page: u64, dstrd: u8) -> u64 {
    (page / (2 * (4 << (dstrd & 0xF)))).saturating_sub(1)
}

/// Whether a doorbell that moves from `old` to `new` passes `event_idx`, so that the register must be written
/// (Base B.5): all three count modulo 65536.
pub const fn passes_event(event_idx: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event_idx).wrapping_sub(1) < new.wrapping_sub(old)
}
