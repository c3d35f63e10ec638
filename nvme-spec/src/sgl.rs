//! How a command names its data: PRP entries (Base 4.1.1) and SGL descriptors (Base 4.1.2).

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The size of one PRP entry in bytes (Base 4.1.1).
pub const PRP_ENTRY_BYTES: usize = 8;

/// The number of bytes from a PRP's address to the end of its memory page; `page` is the page size in bytes, a power
/// of two (Base 4.1.1).
pub const fn prp_bytes_to_page_end(prp: u64, page: u64) -> u64 {
    page - (prp & (page - 1))
}

/// The number of entries from a PRP list pointer to the end of its page (Base 4.1.1). If data goes beyond them, the
/// last of them points to the next list.
pub const fn prp_list_entries_to_page_end(list: u64, page: u64) -> u64 {
    prp_bytes_to_page_end(list, page) / PRP_ENTRY_BYTES as u64
}

/// An SGL descriptor, 16 bytes (Base 4.1.2). The keyed type, of fabrics only, arranges bytes 8 to 14 otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SglDescriptor {
    /// Bytes 7:0: the address of the data or of the next segment; reserved in a bit bucket.
    pub address: U64,
    /// Bytes 11:8: length in bytes, of the data or of the segment (a multiple of 16).
    pub length: U32,
    /// Bytes 14:12.
    pub reserved: [u8; 3],
    /// Byte 15: type and subtype.
    pub identifier: SglIdentifier,
}
assert_size!(SglDescriptor => 16);

impl SglDescriptor {
    /// The size of a descriptor in bytes.
    pub const BYTES: usize = size_of::<Self>();

    /// A data block at an address.
    pub const fn data_block(address: u64, length: u32) -> Self {
        Self::new(SglType::DATA_BLOCK, address, length)
    }

    /// A pointer to a segment that is not the last one.
    pub const fn segment(address: u64, length: u32) -> Self {
        Self::new(SglType::SEGMENT, address, length)
    }

    /// A pointer to the last segment.
    pub const fn last_segment(address: u64, length: u32) -> Self {
        Self::new(SglType::LAST_SEGMENT, address, length)
    }

    /// Read data of this length is to be thrown away.
    pub const fn bit_bucket(length: u32) -> Self {
        Self::new(SglType::BIT_BUCKET, 0, length)
    }

    /// A descriptor of any type, of the "address" subtype.
    pub const fn new(kind: SglType, address: u64, length: u32) -> Self {
        Self {
            address: U64::new(address),
            length: U32::new(length),
            reserved: [0; 3],
            identifier: SglIdentifier::new().with_kind(kind).with_subtype(SglSubtype::ADDRESS),
        }
    }
}

/// SGL identifier, the last byte of a descriptor (Base 4.1.2).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SglIdentifier {
    /// Bits 3:0: the subtype.
    #[bits(4)]
    pub subtype: SglSubtype,
    /// Bits 7:4: the type.
    #[bits(4)]
    pub kind: SglType,
}

open_enum! {
    /// SGL descriptor types (Base 4.1.2).
    pub struct SglType(u8) {
        /// Data block.
        DATA_BLOCK = 0x0,
        /// Bit bucket.
        BIT_BUCKET = 0x1,
        /// Segment.
        SEGMENT = 0x2,
        /// Last segment.
        LAST_SEGMENT = 0x3,
        /// Keyed data block.
        KEYED_DATA_BLOCK = 0x4,
        /// Transport data block.
        TRANSPORT_DATA_BLOCK = 0x5,
        /// Vendor specific.
        VENDOR = 0xF,
    }
}

open_enum! {
    /// SGL descriptor subtypes (Base 4.1.2).
    pub struct SglSubtype(u8) {
        /// The address field is an address.
        ADDRESS = 0x0,
        /// The address field is an offset from the start of the capsule's data (or the transport's).
        OFFSET = 0x1,
    }
}
