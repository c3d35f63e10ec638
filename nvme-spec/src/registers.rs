//! Controller properties in BAR0 (Base 3.1.3) and the doorbells behind them (PCIe 3.1.2).
//!
//! Controller memory buffer, boot partition and persistent memory region registers have their offsets here, but no
//! bit layout.

use bitfield_struct::bitfield;

/// Controller Capabilities, 8 bytes, read only (Base 3.1.3.1): [`Cap`].
pub const CAP: u64 = 0x00;
/// Version, 4 bytes, read only (Base 3.1.3.2): [`Vs`].
pub const VS: u64 = 0x08;
/// Interrupt Mask Set, 4 bytes, one bit per vector, write 1 to mask (Base 3.1.3.3). Not for MSI-X.
pub const INTMS: u64 = 0x0C;
/// Interrupt Mask Clear, 4 bytes, one bit per vector, write 1 to unmask (Base 3.1.3.4). Not for MSI-X.
pub const INTMC: u64 = 0x10;
/// Controller Configuration, 4 bytes (Base 3.1.3.5): [`Cc`].
pub const CC: u64 = 0x14;
/// Controller Status, 4 bytes (Base 3.1.3.6): [`Csts`].
pub const CSTS: u64 = 0x1C;
/// NVM Subsystem Reset, 4 bytes (Base 3.1.3.7): writing [`NSSR_MAGIC`] resets the subsystem; reads as 0.
pub const NSSR: u64 = 0x20;
/// Admin Queue Attributes, 4 bytes (Base 3.1.3.8): [`Aqa`].
pub const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address, 8 bytes, bits 63:12 of a page-aligned address (Base 3.1.3.9).
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address, 8 bytes, bits 63:12 of a page-aligned address (Base 3.1.3.10).
pub const ACQ: u64 = 0x30;
/// Controller Memory Buffer Location, 4 bytes (Base 3.1.3.11).
pub const CMBLOC: u64 = 0x38;
/// Controller Memory Buffer Size, 4 bytes (Base 3.1.3.12).
pub const CMBSZ: u64 = 0x3C;
/// Boot Partition Information, 4 bytes (Base 3.1.3.13).
pub const BPINFO: u64 = 0x40;
/// Boot Partition Read Select, 4 bytes (Base 3.1.3.14).
pub const BPRSEL: u64 = 0x44;
/// Boot Partition Memory Buffer Location, 8 bytes (Base 3.1.3.15).
pub const BPMBL: u64 = 0x48;
/// Controller Memory Buffer Memory Space Control, 8 bytes (Base 3.1.3.16).
pub const CMBMSC: u64 = 0x50;
/// Controller Memory Buffer Status, 4 bytes (Base 3.1.3.17).
pub const CMBSTS: u64 = 0x58;
/// Controller Memory Buffer Elasticity Buffer Size, 4 bytes (Base 3.1.3.18).
pub const CMBEBS: u64 = 0x5C;
/// Controller Memory Buffer Sustained Write Throughput, 4 bytes (Base 3.1.3.19).
pub const CMBSWTP: u64 = 0x60;
/// NVM Subsystem Shutdown, 4 bytes (Base 3.1.3.20): writing [`NSSD_NORMAL`] or [`NSSD_ABRUPT`] shuts down.
pub const NSSD: u64 = 0x64;
/// Controller Ready Timeouts, 4 bytes, read only (Base 3.1.3.21): [`Crto`].
pub const CRTO: u64 = 0x68;
/// Persistent Memory Region Capabilities, 4 bytes (Base 3.1.3.22).
pub const PMRCAP: u64 = 0xE00;
/// Persistent Memory Region Control, 4 bytes (Base 3.1.3.23).
pub const PMRCTL: u64 = 0xE04;
/// Persistent Memory Region Status, 4 bytes (Base 3.1.3.24).
pub const PMRSTS: u64 = 0xE08;
/// Persistent Memory Region Elasticity Buffer Size, 4 bytes (Base 3.1.3.25).
pub const PMREBS: u64 = 0xE0C;
/// Persistent Memory Region Sustained Write Throughput, 4 bytes (Base 3.1.3.26).
pub const PMRSWTP: u64 = 0xE10;
/// Persistent Memory Region Memory Space Control, lower half, 4 bytes (Base 3.1.3.27).
pub const PMRMSCL: u64 = 0xE14;
/// Persistent Memory Region Memory Space Control, upper half, 4 bytes (Base 3.1.3.28).
pub const PMRMSCU: u64 = 0xE18;
/// Where the doorbells begin (PCIe 3.1.2).
pub const DOORBELLS: u64 = 0x1000;

/// The value that resets the subsystem when written to [`NSSR`]: "NVMe" (Base 3.1.3.7).
pub const NSSR_MAGIC: u32 = 0x4E56_4D65;
/// The value that shuts the subsystem down normally when written to [`NSSD`]: "Nrml" (Base 3.1.3.20).
pub const NSSD_NORMAL: u32 = 0x4E72_6D6C;
/// The value that shuts the subsystem down abruptly when written to [`NSSD`]: "Abpt" (Base 3.1.3.20).
pub const NSSD_ABRUPT: u32 = 0x4162_7074;

/// The distance between neighbouring doorbells in bytes, for CAP.DSTRD (PCIe 3.1.2): 4 << DSTRD.
pub const fn doorbell_stride(dstrd: u8) -> u64 {
    4 << (dstrd & 0xF)
}

/// The BAR0 offset of a queue's doorbell: the tail of submission queue `qid`, or with `is_cq` the head of completion
/// queue `qid` (PCIe 3.1.2.1, 3.1.2.2).
pub const fn doorbell_offset(qid: u16, is_cq: bool, dstrd: u8) -> u64 {
    DOORBELLS + (2 * qid as u64 + is_cq as u64) * doorbell_stride(dstrd)
}

/// Controller Capabilities (Base 3.1.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// MQES: the largest I/O queue size in entries, counting from zero.
    pub mqes_z: u16,
    /// CQR: I/O queues must be physically contiguous.
    pub cqr: bool,
    /// AMS bit 0: weighted round robin with urgent priority class is supported.
    pub ams_wrr: bool,
    /// AMS bit 1: a vendor-specific arbitration is supported.
    pub ams_vendor: bool,
    #[bits(5)]
    __: u8,
    /// TO: the longest time until CSTS.RDY follows CC.EN, in units of 500 ms.
    pub to: u8,
    /// DSTRD: the doorbell stride is 4 << DSTRD bytes.
    #[bits(4)]
    pub dstrd: u8,
    /// NSSRS: NVM subsystem reset is supported.
    pub nssrs: bool,
    /// CSS bit 0: the NVM command set is supported.
    pub css_nvm: bool,
    #[bits(5)]
    __: u8,
    /// CSS bit 6: one or more I/O command sets, reported by Identify.
    pub css_iocs: bool,
    /// CSS bit 7: no I/O command set, admin commands only.
    pub css_none: bool,
    /// BPS: boot partitions are supported.
    pub bps: bool,
    /// CPS: the scope of controller power, see [`ControllerPowerScope`].
    #[bits(2)]
    pub cps: ControllerPowerScope,
    /// MPSMIN: the smallest memory page is 2^(12 + MPSMIN) bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// MPSMAX: the largest memory page is 2^(12 + MPSMAX) bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// PMRS: a persistent memory region is supported.
    pub pmrs: bool,
    /// CMBS: a controller memory buffer is supported.
    pub cmbs: bool,
    /// NSSS: NVM subsystem shutdown is supported.
    pub nsss: bool,
    /// CRWMS: controller ready with media is supported.
    pub crwms: bool,
    /// CRIMS: controller ready independent of media is supported.
    pub crims: bool,
    #[bits(3)]
    __: u8,
}

open_enum! {
    /// CAP.CPS, the scope of controller power (Base 3.1.3.1).
    pub struct ControllerPowerScope(u8) {
        /// Not reported.
        NOT_REPORTED = 0,
        /// The controller alone.
        CONTROLLER = 1,
        /// The domain.
        DOMAIN = 2,
        /// The NVM subsystem.
        NVM_SUBSYSTEM = 3,
    }
}

/// Version (Base 3.1.3.2), also Identify Controller's VER.
#[bitfield(u32)]
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Vs {
    /// TER: tertiary version number.
    pub ter: u8,
    /// MNR: minor version number.
    pub mnr: u8,
    /// MJR: major version number.
    pub mjr: u16,
}

impl Vs {
    /// Version 1.4.
    pub const V1_4: Self = Self::from_bits(0x0001_0400);
    /// Version 2.0.
    pub const V2_0: Self = Self::from_bits(0x0002_0000);
}

/// Controller Configuration (Base 3.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cc {
    /// EN: 1 enables, 0 resets the controller.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// CSS: the I/O command set selected.
    #[bits(3)]
    pub css: CommandSetSelected,
    /// MPS: the memory page is 2^(12 + MPS) bytes.
    #[bits(4)]
    pub mps: u8,
    /// AMS: the arbitration mechanism selected.
    #[bits(3)]
    pub ams: ArbitrationMechanism,
    /// SHN: shutdown notification.
    #[bits(2)]
    pub shn: ShutdownNotification,
    /// IOSQES: I/O submission queue entries are 2^IOSQES bytes (6 for the NVM command set).
    #[bits(4)]
    pub iosqes: u8,
    /// IOCQES: I/O completion queue entries are 2^IOCQES bytes (4 for the NVM command set).
    #[bits(4)]
    pub iocqes: u8,
    /// CRIME: controller ready independent of media is enabled.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

open_enum! {
    /// CC.CSS (Base 3.1.3.5).
    pub struct CommandSetSelected(u8) {
        /// The NVM command set.
        NVM = 0,
        /// All supported I/O command sets, as chosen by the I/O Command Set Profile feature.
        ALL = 6,
        /// Admin commands only.
        ADMIN_ONLY = 7,
    }
}

open_enum! {
    /// CC.AMS (Base 3.1.3.5).
    pub struct ArbitrationMechanism(u8) {
        /// Round robin.
        ROUND_ROBIN = 0,
        /// Weighted round robin with urgent priority class.
        WEIGHTED_ROUND_ROBIN_URGENT = 1,
        /// Vendor specific.
        VENDOR = 7,
    }
}

open_enum! {
    /// CC.SHN (Base 3.1.3.5).
    pub struct ShutdownNotification(u8) {
        /// No notification.
        NONE = 0,
        /// Normal shutdown.
        NORMAL = 1,
        /// Abrupt shutdown.
        ABRUPT = 2,
    }
}

/// Controller Status (Base 3.1.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Csts {
    /// RDY: ready to process commands.
    pub rdy: bool,
    /// CFS: a fatal error that could not be communicated otherwise.
    pub cfs: bool,
    /// SHST: shutdown status.
    #[bits(2)]
    pub shst: ShutdownStatus,
    /// NSSRO: an NVM subsystem reset occurred; write 1 to clear.
    pub nssro: bool,
    /// PP: command processing is paused.
    pub pp: bool,
    /// ST: SHST reports an NVM subsystem shutdown and not a controller shutdown.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

open_enum! {
    /// CSTS.SHST (Base 3.1.3.6).
    pub struct ShutdownStatus(u8) {
        /// Normal operation.
        NORMAL = 0,
        /// Shutdown is being processed.
        OCCURRING = 1,
        /// Shutdown is complete.
        COMPLETE = 2,
    }
}

/// Admin Queue Attributes (Base 3.1.3.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Aqa {
    /// ASQS: the admin submission queue's size in entries, counting from zero.
    #[bits(12)]
    pub asqs_z: u16,
    #[bits(4)]
    __: u8,
    /// ACQS: the admin completion queue's size in entries, counting from zero.
    #[bits(12)]
    pub acqs_z: u16,
    #[bits(4)]
    __: u8,
}

/// Controller Ready Timeouts (Base 3.1.3.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Crto {
    /// CRWMT: the longest time until ready with media, in units of 500 ms.
    pub crwmt: u16,
    /// CRIMT: the longest time until ready independent of media, in units of 500 ms.
    pub crimt: u16,
}
