//! One slot of the state as bytes: a header of [`HEADER`] bytes, then the sealed payload, then zeroes.
//!
//! | from | bytes | of the header, numbers in little endian |
//! |---|---|---|
//! | 0 | 16 | [`MAGIC`] |
//! | 16 | 4 | version of the format |
//! | 20 | 4 | bytes of the sealed payload |
//! | 24 | 16 | UUID of the disk |
//! | 40 | 8 | generation |
//! | 48 | 4 | flags: bit 0, the other slot is to be wiped |
//! | 52 | 12 | zeroes |
//! | 64 | 32 | SHA-256 over the header, with zeroes here, and the sealed payload |
//! | 96 | | zeroes |
//!
//! The first 64 bytes are the context of the seal. They and the checksum stay where they are in every version.

use aws_lc_rs::digest::{Context, SHA256};

use crate::layout::SLOT_BYTES;

/// Bytes of a slot.
pub const SLOT: usize = SLOT_BYTES as usize;
/// Bytes of the header.
pub const HEADER: usize = 4096;
/// The version that is written here.
pub const VERSION: u32 = 1;
/// Bytes that sealing adds: nonce and tag.
const SEAL: usize = 12 + 16;
/// The largest payload, in bytes.
pub const MAX_PAYLOAD: usize = SLOT - HEADER - SEAL;

const MAGIC: [u8; 16] = *b"quarry:opal:slot";
/// What the first slot begins with while the area is formatted, with zeroes after it. It has no byte in the place of
/// [`MAGIC`]'s that is the same, and none that is zero.
pub const MARKER: [u8; 32] = *b"OPAL FORMATTING is not finished!";
/// Bytes of the header that the seal has for its context.
pub const CONTEXT: usize = 64;
const CHECKSUM: std::ops::Range<usize> = 64..96;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub sealed: usize,
    pub uuid: [u8; 16],
    pub generation: u64,
    /// The other slot is to be wiped before this one is used.
    pub wipes_other: bool,
}

/// What a slot looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Zeroes.
    Blank,
    /// [`MARKER`] and zeroes.
    Marker,
    /// Some bytes of [`MARKER`] in their places, and zeroes.
    PartOfMarker,
    /// All that was written is there.
    Whole(Header),
    /// It has been ours, but not all is there.
    Torn,
    /// Something else.
    Unknown,
}

impl Header {
    /// The first bytes of the header, by which the payload is sealed.
    pub fn context(&self) -> [u8; CONTEXT] {
        let mut bytes = [0; CONTEXT];
        bytes[..16].copy_from_slice(&MAGIC);
        bytes[16..20].copy_from_slice(&self.version.to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.sealed as u32).to_le_bytes()); // at most SLOT
        bytes[24..40].copy_from_slice(&self.uuid);
        bytes[40..48].copy_from_slice(&self.generation.to_le_bytes());
        bytes[48] = u8::from(self.wipes_other);
        bytes
    }

    /// Writes the slot's bytes to the start of `slot`, whose rest is zeroes already. `sealed` has [`Self::sealed`] bytes, at
    /// most [`MAX_PAYLOAD`] and the seal's own.
    pub fn write(&self, sealed: &[u8], slot: &mut [u8]) {
        slot[..CONTEXT].copy_from_slice(&self.context());
        slot[HEADER..][..sealed.len()].copy_from_slice(sealed);
        let sum = checksum(&slot[..HEADER], sealed);
        slot[CHECKSUM].copy_from_slice(&sum);
    }

    fn parse(slot: &[u8; SLOT]) -> Self {
        let u32_at = |at: usize| slot[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let generation = slot[40..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self {
            version: u32_at(16),
            sealed: u32_at(20) as usize,
            uuid: slot[24..].first_chunk().copied().unwrap_or_default(),
            generation,
            wipes_other: slot[48] & 1 != 0,
        }
    }
}

fn checksum(header: &[u8], sealed: &[u8]) -> [u8; 32] {
    let mut sum = Context::new(&SHA256);
    sum.update(&header[..CHECKSUM.start]);
    sum.update(&[0; 32]);
    sum.update(&header[CHECKSUM.end..]);
    sum.update(sealed);
    sum.finish().as_ref().try_into().unwrap_or_default()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// What `slot` looks like.
pub fn look(slot: &[u8; SLOT]) -> Slot {
    let (head, rest) = slot.split_at(MARKER.len());
    if is_zero(rest) {
        if is_zero(head) {
            return Slot::Blank;
        }
        if head == MARKER {
            return Slot::Marker;
        }
        if head.iter().zip(MARKER).all(|(byte, marker)| *byte == 0 || *byte == marker) {
            return Slot::PartOfMarker;
        }
    }
    if !slot.starts_with(&MAGIC) {
        return Slot::Unknown;
    }
    let header = Header::parse(slot);
    let Some(sealed) = slot[HEADER..].get(..header.sealed) else { return Slot::Torn };
    // What was there before is gone only if the rest is zeroes.
    let is_whole =
        slot[CHECKSUM] == checksum(&slot[..HEADER], sealed) && is_zero(&slot[HEADER + header.sealed..]);
    if is_whole { Slot::Whole(header) } else { Slot::Torn }
}

/// How many bytes from its start a slot uses, up to the last one that is not zero.
pub fn used(slot: &[u8]) -> usize {
    slot.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}
