//! The NVM command set: dwords and data of its commands (NVM 3.2).
//!
//! The starting LBA of a command that has one is dwords 11:10: [`Command::slba`].

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::command::Command;

impl Command {
    /// SLBA, dwords 11:10 of Read, Write and their kin, in logical blocks (NVM 3.2).
    pub const fn slba(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }
}

/// Dword 12 of Read, Write, Compare, Verify, Write Zeroes and Write Uncorrectable (NVM 3.2.1, 3.2.4 to 3.2.8). Not
/// every command has every field; what it lacks is reserved.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoCdw12 {
    /// NLB: the number of logical blocks, counting from zero.
    pub nlb_z: u16,
    #[bits(4)]
    __: u8,
    /// DTYPE: directive type (Write and Write Uncorrectable).
    #[bits(4)]
    pub dtype: u8,
    /// STC: check the storage tag.
    pub stc: bool,
    /// DEAC: deallocate (Write Zeroes only).
    pub deac: bool,
    /// PRINFO: what to do with protection information.
    #[bits(4)]
    pub prinfo: ProtectionInfo,
    /// FUA: force unit access.
    pub fua: bool,
    /// LR: limited retry.
    pub lr: bool,
}

impl IoCdw12 {
    /// The number of logical blocks, counting from one: 1 to 65536.
    pub const fn blocks(self) -> u32 {
        self.nlb_z() as u32 + 1
    }
}

/// PRINFO, four bits (NVM 3.2, 5.2).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ProtectionInfo {
    /// PRCHK bit 0: check the reference tag.
    pub check_reference_tag: bool,
    /// PRCHK bit 1: check the application tag.
    pub check_application_tag: bool,
    /// PRCHK bit 2: check the guard.
    pub check_guard: bool,
    /// PRACT: the controller adds or strips protection information.
    pub pract: bool,
    #[bits(4)]
    __: u8,
}

/// Dword 13 of Read and Write (NVM 3.2.4, 3.2.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoCdw13 {
    /// DSM: access frequency, a hint; 0 for none.
    #[bits(4)]
    pub access_frequency: u8,
    /// DSM: access latency, a hint; 0 for none, then idle, normal, low.
    #[bits(2)]
    pub access_latency: u8,
    /// DSM: the command is part of a sequential run.
    pub sequential: bool,
    /// DSM: the data cannot be compressed.
    pub incompressible: bool,
    #[bits(8)]
    __: u8,
    /// DSPEC: directive specific (Write).
    pub dspec: u16,
}

/// Dword 10 of Dataset Management (NVM 3.2.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DsmCdw10 {
    /// NR: the number of ranges, counting from zero.
    pub nr_z: u8,
    #[bits(24)]
    __: u32,
}

/// Dword 11 of Dataset Management (NVM 3.2.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DsmCdw11 {
    /// IDR: optimise for reads as one object.
    pub idr: bool,
    /// IDW: optimise for writes as one object.
    pub idw: bool,
    /// AD: deallocate.
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// One range of Dataset Management, 16 bytes (NVM 3.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    /// Bytes 3:0: context attributes.
    pub attributes: DsmContextAttributes,
    /// Bytes 7:4: the number of logical blocks, counting from one.
    pub nlb: U32,
    /// Bytes 15:8: the first logical block.
    pub slba: U64,
}
assert_size!(DsmRange => 16);

impl DsmRange {
    /// The most ranges one command can carry (NVM 3.2.3).
    pub const MAX: usize = 256;
}

/// Context attributes of a range, hints (NVM 3.2.3.1).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DsmContextAttributes {
    /// AF: access frequency.
    #[bits(4)]
    pub access_frequency: u8,
    /// AL: access latency.
    #[bits(2)]
    pub access_latency: u8,
    #[bits(2)]
    __: u8,
    /// SR: sequential read.
    pub sequential_read: bool,
    /// SW: sequential write.
    pub sequential_write: bool,
    /// WP: about to be written.
    pub write_prepare: bool,
    #[bits(13)]
    __: u16,
    /// Command access size: logical blocks expected in one read or write.
    pub access_size: u8,
}

/// Dword 12 of Copy (NVM 3.2.2); dwords 11:10 are the destination's starting LBA.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CopyCdw12 {
    /// NR: the number of source ranges, counting from zero.
    pub nr_z: u8,
    /// The format of the source range descriptors.
    #[bits(4)]
    pub descriptor_format: CopyDescriptorFormat,
    /// PRINFOR: protection information of the read part.
    #[bits(4)]
    pub prinfo_read: ProtectionInfo,
    #[bits(4)]
    __: u8,
    /// DTYPE: directive type of the write part.
    #[bits(4)]
    pub dtype: u8,
    /// STCW: check the storage tag of the write part.
    pub stc_write: bool,
    /// STCR: check the storage tag of the read part.
    pub stc_read: bool,
    /// PRINFOW: protection information of the write part.
    #[bits(4)]
    pub prinfo_write: ProtectionInfo,
    /// FUA: force unit access of the write part.
    pub fua: bool,
    /// LR: limited retry.
    pub lr: bool,
}

open_enum! {
    /// Source range descriptor formats of Copy (NVM 3.2.2).
    pub struct CopyDescriptorFormat(u8) {
        /// Format 0: 16-bit guard protection information.
        FORMAT_0 = 0,
        /// Format 1: 32-bit and 64-bit guard protection information.
        FORMAT_1 = 1,
    }
}

/// Source range of Copy, format 0, 32 bytes (NVM 3.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyRange0 {
    /// Bytes 7:0.
    pub reserved0: [u8; 8],
    /// Bytes 15:8: the first logical block.
    pub slba: U64,
    /// Bytes 17:16: the number of logical blocks, counting from zero.
    pub nlb_z: U16,
    /// Bytes 23:18.
    pub reserved18: [u8; 6],
    /// Bytes 27:24: expected initial logical block reference tag.
    pub eilbrt: U32,
    /// Bytes 29:28: expected logical block application tag.
    pub elbat: U16,
    /// Bytes 31:30: expected logical block application tag mask.
    pub elbatm: U16,
}
assert_size!(CopyRange0 => 32);

/// Source range of Copy, format 1, 40 bytes (NVM 3.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyRange1 {
    /// Bytes 7:0.
    pub reserved0: [u8; 8],
    /// Bytes 15:8: the first logical block.
    pub slba: U64,
    /// Bytes 17:16: the number of logical blocks, counting from zero.
    pub nlb_z: U16,
    /// Bytes 25:18.
    pub reserved18: [u8; 8],
    /// Bytes 35:26: expected logical block storage tag and initial reference tag.
    pub elbt: [u8; 10],
    /// Bytes 37:36: expected logical block application tag.
    pub elbat: U16,
    /// Bytes 39:38: expected logical block application tag mask.
    pub elbatm: U16,
}
assert_size!(CopyRange1 => 40);
