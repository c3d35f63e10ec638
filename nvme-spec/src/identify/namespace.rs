//! Identify Namespace (NVM 4.1.5.1) and the part of it that holds for every I/O command set (Base 5.17.2.8).

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Identify Namespace, 4096 bytes (NVM 4.1.5.1; CNS 00h, 11h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Bytes 7:0, NSZE: size in logical blocks.
    pub nsze: U64,
    /// Bytes 15:8, NCAP: capacity, the most logical blocks that may be allocated at once.
    pub ncap: U64,
    /// Bytes 23:16, NUSE: logical blocks allocated.
    pub nuse: U64,
    /// Byte 24, NSFEAT.
    pub nsfeat: NsFeat,
    /// Byte 25, NLBAF: the number of LBA formats, counting from zero.
    pub nlbaf_z: u8,
    /// Byte 26, FLBAS: the LBA format in use.
    pub flbas: Flbas,
    /// Byte 27, MC: metadata capabilities.
    pub mc: Mc,
    /// Byte 28, DPC: protection capabilities.
    pub dpc: Dpc,
    /// Byte 29, DPS: protection settings.
    pub dps: Dps,
    /// Byte 30, NMIC: sharing.
    pub nmic: Nmic,
    /// Byte 31, RESCAP: reservations.
    pub rescap: ResCap,
    /// Byte 32, FPI: how much of a format remains.
    pub fpi: Fpi,
    /// Byte 33, DLFEAT: what deallocated blocks read as.
    pub dlfeat: DlFeat,
    /// Bytes 35:34, NAWUN: atomic write unit in logical blocks, counting from zero. Valid with NSFEAT.NSABP.
    pub nawun_z: U16,
    /// Bytes 37:36, NAWUPF: atomic write unit over power failure, in logical blocks, counting from zero.
    pub nawupf_z: U16,
    /// Bytes 39:38, NACWU: atomic compare and write unit, in logical blocks, counting from zero.
    pub nacwu_z: U16,
    /// Bytes 41:40, NABSN: atomic boundary size in logical blocks, counting from zero; 0 for no boundaries.
    pub nabsn_z: U16,
    /// Bytes 43:42, NABO: the logical block of the first atomic boundary.
    pub nabo: U16,
    /// Bytes 45:44, NABSPF: atomic boundary size over power failure, counting from zero; 0 for no boundaries.
    pub nabspf_z: U16,
    /// Bytes 47:46, NOIOB: optimal I/O boundary in logical blocks; 0 if not reported.
    pub noiob: U16,
    /// Bytes 63:48, NVMCAP: capacity in bytes.
    pub nvmcap: U128,
    /// Bytes 65:64, NPWG: preferred write granularity in logical blocks, counting from zero. Valid, as the next
    /// four are, with NSFEAT.OPTPERF.
    pub npwg_z: U16,
    /// Bytes 67:66, NPWA: preferred write alignment in logical blocks, counting from zero.
    pub npwa_z: U16,
    /// Bytes 69:68, NPDG: preferred deallocate granularity in logical blocks, counting from zero.
    pub npdg_z: U16,
    /// Bytes 71:70, NPDA: preferred deallocate alignment in logical blocks, counting from zero.
    pub npda_z: U16,
    /// Bytes 73:72, NOWS: optimal write size in logical blocks, counting from zero.
    pub nows_z: U16,
    /// Bytes 75:74, MSSRL: the most logical blocks of one source range of Copy.
    pub mssrl: U16,
    /// Bytes 79:76, MCL: the most logical blocks of one Copy.
    pub mcl: U32,
    /// Byte 80, MSRC: the most source ranges of one Copy, counting from zero.
    pub msrc_z: u8,
    /// Bytes 91:81.
    pub reserved81: [u8; 11],
    /// Bytes 95:92, ANAGRPID: ANA group; 0 if not reported.
    pub anagrpid: U32,
    /// Bytes 98:96.
    pub reserved96: [u8; 3],
    /// Byte 99, NSATTR.
    pub nsattr: NsAttr,
    /// Bytes 101:100, NVMSETID: NVM set; 0 if not reported.
    pub nvmsetid: U16,
    /// Bytes 103:102, ENDGID: endurance group; 0 if not reported.
    pub endgid: U16,
    /// Bytes 119:104, NGUID: globally unique identifier, big endian; zeroes for none.
    pub nguid: [u8; 16],
    /// Bytes 127:120, EUI64: IEEE extended unique identifier, big endian; zeroes for none.
    pub eui64: [u8; 8],
    /// Bytes 383:128, LBAF0 to LBAF63.
    pub lbaf: [LbaFormat; 64],
    /// Bytes 4095:384, vendor specific.
    pub vendor: [u8; 3712],
}
assert_size!(IdentifyNamespace => 4096);

impl IdentifyNamespace {
    /// The LBA format in use, if FLBAS names one of the 64.
    pub fn current_format(&self) -> Option<LbaFormat> {
        // With 16 formats or fewer the upper bits of FLBAS are ignored (NVM 4.1.5.1).
        let index = if self.nlbaf_z < 16 { self.flbas.index_low() } else { self.flbas.index() };
        self.lbaf.get(usize::from(index)).copied()
    }
}

/// Identify Namespace, independent of the I/O command set, 4096 bytes (Base 5.17.2.8; CNS 08h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// Byte 0, NSFEAT.
    pub nsfeat: NsFeatIndependent,
    /// Byte 1, NMIC: sharing.
    pub nmic: Nmic,
    /// Byte 2, RESCAP: reservations.
    pub rescap: ResCap,
    /// Byte 3, FPI: how much of a format remains.
    pub fpi: Fpi,
    /// Bytes 7:4, ANAGRPID: ANA group; 0 if not reported.
    pub anagrpid: U32,
    /// Byte 8, NSATTR.
    pub nsattr: NsAttr,
    /// Byte 9.
    pub reserved9: u8,
    /// Bytes 11:10, NVMSETID: NVM set; 0 if not reported.
    pub nvmsetid: U16,
    /// Bytes 13:12, ENDGID: endurance group; 0 if not reported.
    pub endgid: U16,
    /// Byte 14, NSTAT.
    pub nstat: NStat,
    /// Bytes 4095:15.
    pub reserved15: [u8; 4081],
}
assert_size!(IdentifyNamespaceIndependent => 4096);

/// NSFEAT (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NsFeat {
    /// THINP: thin provisioning.
    pub thinp: bool,
    /// NSABP: NAWUN, NAWUPF and NACWU are to be used in place of the controller's.
    pub nsabp: bool,
    /// DAE: the deallocated or unwritten logical block error is supported.
    pub dae: bool,
    /// UIDREUSE: NGUID and EUI64 are never reused.
    pub uidreuse: bool,
    /// OPTPERF: NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub optperf: bool,
    #[bits(3)]
    __: u8,
}

/// NSFEAT of the independent structure (Base 5.17.2.8).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NsFeatIndependent {
    #[bits(3)]
    __: u8,
    /// UIDREUSE: NGUID and EUI64 are never reused.
    pub uidreuse: bool,
    /// RMEDIA: the medium rotates.
    pub rmedia: bool,
    #[bits(3)]
    __: u8,
}

/// FLBAS: formatted LBA size (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flbas {
    /// The LBA format's index, lower four bits.
    #[bits(4)]
    pub index_low: u8,
    /// Metadata is part of an extended LBA.
    pub extended_lba: bool,
    /// The LBA format's index, upper two bits.
    #[bits(2)]
    pub index_high: u8,
    #[bits(1)]
    __: u8,
}

impl Flbas {
    /// The LBA format's index, all six bits.
    pub const fn index(self) -> u8 {
        self.index_high() << 4 | self.index_low()
    }
}

/// MC: metadata capabilities (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mc {
    /// Metadata can be part of an extended LBA.
    pub extended: bool,
    /// Metadata can be in a separate buffer.
    pub separate: bool,
    #[bits(6)]
    __: u8,
}

/// DPC: end-to-end data protection capabilities (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dpc {
    /// Type 1.
    pub type1: bool,
    /// Type 2.
    pub type2: bool,
    /// Type 3.
    pub type3: bool,
    /// In the first bytes of metadata.
    pub first: bool,
    /// In the last bytes of metadata.
    pub last: bool,
    #[bits(3)]
    __: u8,
}

/// DPS: end-to-end data protection settings (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dps {
    /// PIT: the type, 1 to 3; 0 for none.
    #[bits(3)]
    pub pit: u8,
    /// PIP: in the first bytes of metadata.
    pub first: bool,
    #[bits(4)]
    __: u8,
}

/// NMIC: multi-path I/O and sharing (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nmic {
    /// The namespace may be attached to several controllers at once.
    pub shared: bool,
    #[bits(7)]
    __: u8,
}

/// RESCAP: reservation capabilities (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ResCap {
    /// Persist through power loss.
    pub ptpl: bool,
    /// Write exclusive.
    pub write_exclusive: bool,
    /// Exclusive access.
    pub exclusive_access: bool,
    /// Write exclusive, registrants only.
    pub write_exclusive_registrants: bool,
    /// Exclusive access, registrants only.
    pub exclusive_access_registrants: bool,
    /// Write exclusive, all registrants.
    pub write_exclusive_all: bool,
    /// Exclusive access, all registrants.
    pub exclusive_access_all: bool,
    /// Ignore existing key is as of revision 1.3 and later.
    pub iekey_1_3: bool,
}

/// FPI: format progress indicator (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fpi {
    /// Percent that remains to be formatted.
    #[bits(7)]
    pub remaining: u8,
    /// The indicator is supported.
    pub supported: bool,
}

/// DLFEAT: deallocate logical block features (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DlFeat {
    /// What deallocated blocks read as.
    #[bits(3)]
    pub read_behavior: DeallocatedRead,
    /// Write Zeroes honours DEAC.
    pub write_zeroes_deac: bool,
    /// The guard of deallocated blocks is the CRC of the data read; otherwise FFFFh.
    pub guard_crc: bool,
    #[bits(3)]
    __: u8,
}

open_enum! {
    /// What deallocated blocks read as (NVM 4.1.5.1).
    pub struct DeallocatedRead(u8) {
        /// Not reported.
        NOT_REPORTED = 0,
        /// All bytes 00h.
        ZEROES = 1,
        /// All bytes FFh.
        ONES = 2,
    }
}

/// NSATTR: namespace attributes (NVM 4.1.5.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NsAttr {
    /// The namespace is write protected.
    pub write_protected: bool,
    #[bits(7)]
    __: u8,
}

/// NSTAT: namespace status (Base 5.17.2.8).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NStat {
    /// NRDY: ready.
    pub nrdy: bool,
    #[bits(7)]
    __: u8,
}

/// LBA format, 4 bytes (NVM 4.1.5.1).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LbaFormat {
    /// MS: metadata bytes of each logical block.
    pub ms: u16,
    /// LBADS: a logical block is 2^LBADS bytes (9 or more); 0 if the format is not available.
    pub lbads: u8,
    /// RP: relative performance.
    #[bits(2)]
    pub rp: RelativePerformance,
    #[bits(6)]
    __: u8,
}

open_enum! {
    /// RP: relative performance of an LBA format (NVM 4.1.5.1).
    pub struct RelativePerformance(u8) {
        /// Best.
        BEST = 0,
        /// Better.
        BETTER = 1,
        /// Good.
        GOOD = 2,
        /// Degraded.
        DEGRADED = 3,
    }
}
