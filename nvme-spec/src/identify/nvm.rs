//! Identify structures of the NVM command set: controller limits and extended LBA formats (NVM 4.1.5).

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identify Controller of the NVM command set, 4096 bytes (NVM 4.1.5.4; CNS 06h, CSI 00h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNvmController {
    /// Byte 0, VSL: Verify size limit, 2^VSL units of the smallest memory page; 0 for no limit.
    pub vsl: u8,
    /// Byte 1, WZSL: Write Zeroes size limit, 2^WZSL units of the smallest memory page; 0 for no limit.
    pub wzsl: u8,
    /// Byte 2, WUSL: Write Uncorrectable size limit, 2^WUSL units of the smallest memory page; 0 for no limit.
    pub wusl: u8,
    /// Byte 3, DMRL: the most ranges of one Dataset Management; 0 for no limit.
    pub dmrl: u8,
    /// Bytes 7:4, DMRSL: the most logical blocks of one such range; 0 for no limit.
    pub dmrsl: U32,
    /// Bytes 15:8, DMSL: the most logical blocks of all its ranges together; 0 for no limit.
    pub dmsl: U64,
    /// Bytes 4095:16.
    pub reserved16: [u8; 4080],
}
assert_size!(IdentifyNvmController => 4096);

/// Identify Namespace of the NVM command set, 4096 bytes (NVM 4.1.5.3; CNS 05h, CSI 00h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNvmNamespace {
    /// Bytes 7:0, LBSTM: logical block storage tag mask.
    pub lbstm: U64,
    /// Byte 8, PIC: protection information capabilities.
    pub pic: Pic,
    /// Bytes 11:9.
    pub reserved9: [u8; 3],
    /// Bytes 267:12, ELBAF0 to ELBAF63.
    pub elbaf: [ExtendedLbaFormat; 64],
    /// Bytes 4095:268.
    pub reserved268: [u8; 3828],
}
assert_size!(IdentifyNvmNamespace => 4096);

/// PIC: protection information capabilities (NVM 4.1.5.3).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pic {
    /// 16BPISTS: storage tags are supported with the 16-bit guard.
    pub pi16_storage_tag: bool,
    /// 16BPISTM: with the 16-bit guard the storage tag mask must be all ones.
    pub pi16_storage_tag_mask: bool,
    /// STCRS: storage tag check of the read part of Copy is supported.
    pub storage_tag_check_read: bool,
    #[bits(5)]
    __: u8,
}

/// Extended LBA format, 4 bytes (NVM 4.1.5.3).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ExtendedLbaFormat {
    /// STS: storage tag size in bits.
    #[bits(7)]
    pub sts: u8,
    /// PIF: protection information format.
    #[bits(2)]
    pub pif: ProtectionFormat,
    #[bits(23)]
    __: u32,
}

open_enum! {
    /// PIF: protection information formats (NVM 4.1.5.3, 5.2.1).
    pub struct ProtectionFormat(u8) {
        /// 16-bit guard.
        GUARD_16 = 0,
        /// 32-bit guard.
        GUARD_32 = 1,
        /// 64-bit guard.
        GUARD_64 = 2,
    }
}
