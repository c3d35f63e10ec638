//! Level 0 Discovery (TCG Core 2.01, 3.3.6; Opal 2.01, 3.1.1; the feature sets' own sections).

use super::objects::Geometry;
use super::state::{ADMINS, MAX_DATA_STORES, RANGES, State, USERS};
use crate::layout::DATA_STORE_BYTES;

/// What discovery says besides the tables.
pub struct Condition {
    /// The static ComID.
    pub com_id: u16,
    /// Block SID is in force; whether a hardware reset ends it.
    pub sid_blocked: Option<bool>,
}

/// A feature descriptor: code, version, and the bytes that follow its header.
fn feature(out: &mut Vec<u8>, code: u16, version: u8, body: &[u8]) {
    out.extend(code.to_be_bytes());
    out.push(version << 4);
    out.push(body.len() as u8);
    out.extend_from_slice(body);
}

/// Bits in ascending order as a byte.
fn bits(bits: &[bool]) -> u8 {
    bits.iter().enumerate().fold(0, |byte, (at, bit)| byte | u8::from(*bit) << at)
}

/// A body of `len` bytes with `parts` at their offsets.
fn body<const N: usize>(parts: &[(usize, &[u8])]) -> [u8; N] {
    let mut body = [0; N];
    for (at, part) in parts {
        body[*at..at + part.len()].copy_from_slice(part);
    }
    body
}

/// The response.
pub fn discovery(state: &State, geometry: Geometry, condition: &Condition) -> Vec<u8> {
    let locking = &state.locking;
    let mut out = vec![0; 48];
    out[4..8].copy_from_slice(&1_u32.to_be_bytes());

    // TPer: Sync, Streaming, ComID management.
    let tper = bits(&[true, false, false, false, true, false, true]);
    feature(&mut out, 0x0001, 1, &body::<12>(&[(0, &[tper])]));

    let is_locked = locking.active && locking.ranges.iter().any(|range| range.locks() != (false, false));
    // Supported, enabled, locked, media encryption, MBR enabled, MBR done.
    let flags = bits(&[true, locking.active, is_locked, true, locking.mbr.enable, locking.mbr.done]);
    feature(&mut out, 0x0002, 2, &body::<12>(&[(0, &[flags])]));

    feature(
        &mut out,
        0x0003,
        1,
        &body::<28>(&[
            (0, &[1]), // ranges have to be aligned
            (8, &geometry.block_size.to_be_bytes()),
            (12, &geometry.alignment().to_be_bytes()),
        ]),
    );

    let (any, all, policy) = match &locking.single_user {
        None => (false, false, false),
        Some(mode) => (mode.ranges != 0, mode.ranges == (1 << RANGES) - 1, mode.admins_set_geometry),
    };
    let single = bits(&[any, all, policy]);
    feature(&mut out, 0x0201, 1, &body::<12>(&[(0, &u32::from(RANGES).to_be_bytes()), (4, &[single])]));

    feature(
        &mut out,
        0x0202,
        1,
        &body::<12>(&[
            (2, &MAX_DATA_STORES.to_be_bytes()),
            (4, &(DATA_STORE_BYTES as u32).to_be_bytes()),
            (8, &1_u32.to_be_bytes()),
        ]),
    );

    feature(
        &mut out,
        0x0203,
        2,
        &body::<16>(&[
            (0, &condition.com_id.to_be_bytes()),
            (2, &1_u16.to_be_bytes()),
            // Byte 4: commands may cross ranges. 9 and 10: the SID's PIN is the MSID, at first and after a revert.
            (5, &u16::from(ADMINS).to_be_bytes()),
            (7, &u16::from(USERS).to_be_bytes()),
        ]),
    );

    let sid = bits(&[!state.sid.credential.is_msid(), condition.sid_blocked.is_some()]);
    let reset = bits(&[condition.sid_blocked == Some(true)]);
    feature(&mut out, 0x0402, 1, &body::<12>(&[(0, &[sid, reset])]));

    // Data removal: by a new key alone (bit 2), which takes no time.
    feature(&mut out, 0x0404, 1, &body::<32>(&[(2, &[0b100])]));

    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}
