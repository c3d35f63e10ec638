//! Identify Controller (Base 5.17.2.1, with the fields of NVM 4.1.5.2). Its bit fields are in `controller_bits`.

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::controller_bits::*;

/// Identify Controller, 4096 bytes (Base 5.17.2.1; CNS 01h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyController {
    /// Bytes 1:0, VID: PCI vendor.
    pub vid: U16,
    /// Bytes 3:2, SSVID: PCI subsystem vendor.
    pub ssvid: U16,
    /// Bytes 23:4, SN: serial number, ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// Bytes 63:24, MN: model number, ASCII, padded with spaces.
    pub mn: [u8; 40],
    /// Bytes 71:64, FR: firmware revision, ASCII, padded with spaces.
    pub fr: [u8; 8],
    /// Byte 72, RAB: recommended arbitration burst, 2^RAB commands.
    pub rab: u8,
    /// Bytes 75:73, IEEE: organizationally unique identifier, least significant byte first.
    pub ieee: [u8; 3],
    /// Byte 76, CMIC: multi-path I/O and sharing.
    pub cmic: Cmic,
    /// Byte 77, MDTS: the most data of one command, 2^MDTS units of the smallest memory page; 0 for no limit.
    pub mdts: u8,
    /// Bytes 79:78, CNTLID: controller identifier.
    pub cntlid: U16,
    /// Bytes 83:80, VER: version, as in [`crate::registers::Vs`].
    pub ver: U32,
    /// Bytes 87:84, RTD3R: RTD3 resume latency in microseconds; 0 if not reported.
    pub rtd3r: U32,
    /// Bytes 91:88, RTD3E: RTD3 entry latency in microseconds; 0 if not reported.
    pub rtd3e: U32,
    /// Bytes 95:92, OAES: optional asynchronous events.
    pub oaes: Oaes,
    /// Bytes 99:96, CTRATT: controller attributes.
    pub ctratt: Ctratt,
    /// Bytes 101:100, RRLS: read recovery levels, a bit each.
    pub rrls: U16,
    /// Bytes 110:102.
    pub reserved102: [u8; 9],
    /// Byte 111, CNTRLTYPE: controller type.
    pub cntrltype: ControllerType,
    /// Bytes 127:112, FGUID: FRU globally unique identifier, big endian; zeroes for none.
    pub fguid: [u8; 16],
    /// Bytes 129:128, CRDT1: command retry delay 1 in units of 100 ms.
    pub crdt1: U16,
    /// Bytes 131:130, CRDT2: command retry delay 2 in units of 100 ms.
    pub crdt2: U16,
    /// Bytes 133:132, CRDT3: command retry delay 3 in units of 100 ms.
    pub crdt3: U16,
    /// Bytes 252:134.
    pub reserved134: [u8; 119],
    /// Byte 253, NVMSR: NVM subsystem report.
    pub nvmsr: Nvmsr,
    /// Byte 254, VWCI: vital product data write cycles.
    pub vwci: Vwci,
    /// Byte 255, MEC: management endpoint capabilities.
    pub mec: Mec,
    /// Bytes 257:256, OACS: optional admin commands.
    pub oacs: Oacs,
    /// Byte 258, ACL: the most concurrent Abort commands, counting from zero.
    pub acl_z: u8,
    /// Byte 259, AERL: the most concurrent Asynchronous Event Requests, counting from zero.
    pub aerl_z: u8,
    /// Byte 260, FRMW: firmware updates.
    pub frmw: Frmw,
    /// Byte 261, LPA: log page attributes.
    pub lpa: Lpa,
    /// Byte 262, ELPE: error information log entries, counting from zero.
    pub elpe_z: u8,
    /// Byte 263, NPSS: power states, counting from zero.
    pub npss_z: u8,
    /// Byte 264, AVSCC: bit 0, vendor admin commands use the standard format.
    pub avscc: u8,
    /// Byte 265, APSTA: bit 0, autonomous power state transitions are supported.
    pub apsta: u8,
    /// Bytes 267:266, WCTEMP: warning composite temperature in kelvin; 0 if not reported.
    pub wctemp: U16,
    /// Bytes 269:268, CCTEMP: critical composite temperature in kelvin; 0 if not reported.
    pub cctemp: U16,
    /// Bytes 271:270, MTFA: longest firmware activation in units of 100 ms; 0 if not reported.
    pub mtfa: U16,
    /// Bytes 275:272, HMPRE: preferred host memory buffer in units of 4 KiB; 0 for none.
    pub hmpre: U32,
    /// Bytes 279:276, HMMIN: smallest host memory buffer in units of 4 KiB.
    pub hmmin: U32,
    /// Bytes 295:280, TNVMCAP: total capacity in bytes.
    pub tnvmcap: U128,
    /// Bytes 311:296, UNVMCAP: unallocated capacity in bytes.
    pub unvmcap: U128,
    /// Bytes 315:312, RPMBS: replay protected memory block.
    pub rpmbs: Rpmbs,
    /// Bytes 317:316, EDSTT: extended device self-test time in minutes.
    pub edstt: U16,
    /// Byte 318, DSTO: bit 0, one device self-test at a time in the whole subsystem.
    pub dsto: u8,
    /// Byte 319, FWUG: firmware update granularity in units of 4 KiB; 0 if not reported, FFh for none.
    pub fwug: u8,
    /// Bytes 321:320, KAS: keep alive granularity in units of 100 ms; 0 if not supported.
    pub kas: U16,
    /// Bytes 323:322, HCTMA: bit 0, host controlled thermal management is supported.
    pub hctma: U16,
    /// Bytes 325:324, MNTMT: lowest thermal management temperature in kelvin.
    pub mntmt: U16,
    /// Bytes 327:326, MXTMT: highest thermal management temperature in kelvin.
    pub mxtmt: U16,
    /// Bytes 331:328, SANICAP: sanitize capabilities.
    pub sanicap: SaniCap,
    /// Bytes 335:332, HMMINDS: smallest host memory buffer descriptor in units of 4 KiB.
    pub hmminds: U32,
    /// Bytes 337:336, HMMAXD: the most host memory buffer descriptors.
    pub hmmaxd: U16,
    /// Bytes 339:338, NSETIDMAX: highest NVM set.
    pub nsetidmax: U16,
    /// Bytes 341:340, ENDGIDMAX: highest endurance group.
    pub endgidmax: U16,
    /// Byte 342, ANATT: longest ANA transition in seconds.
    pub anatt: u8,
    /// Byte 343, ANACAP: ANA capabilities.
    pub anacap: AnaCap,
    /// Bytes 347:344, ANAGRPMAX: highest ANA group.
    pub anagrpmax: U32,
    /// Bytes 351:348, NANAGRPID: number of ANA groups.
    pub nanagrpid: U32,
    /// Bytes 355:352, PELS: persistent event log size in units of 64 KiB.
    pub pels: U32,
    /// Bytes 357:356: domain; 0 if there is one only.
    pub domain_id: U16,
    /// Bytes 367:358.
    pub reserved358: [u8; 10],
    /// Bytes 383:368, MEGCAP: largest endurance group in bytes.
    pub megcap: U128,
    /// Bytes 511:384.
    pub reserved384: [u8; 128],
    /// Byte 512, SQES: submission queue entry size.
    pub sqes: QueueEntrySize,
    /// Byte 513, CQES: completion queue entry size.
    pub cqes: QueueEntrySize,
    /// Bytes 515:514, MAXCMD: the most outstanding commands of one queue; 0 if not reported.
    pub maxcmd: U16,
    /// Bytes 519:516, NN: the highest namespace identifier.
    pub nn: U32,
    /// Bytes 521:520, ONCS: optional I/O commands.
    pub oncs: Oncs,
    /// Bytes 523:522, FUSES: fused operations.
    pub fuses: Fuses,
    /// Byte 524, FNA: Format NVM attributes.
    pub fna: Fna,
    /// Byte 525, VWC: volatile write cache.
    pub vwc: Vwc,
    /// Bytes 527:526, AWUN: atomic write unit in logical blocks, counting from zero.
    pub awun_z: U16,
    /// Bytes 529:528, AWUPF: atomic write unit over power failure in logical blocks, counting from zero.
    pub awupf_z: U16,
    /// Byte 530, ICSVSCC: bit 0, vendor I/O commands use the standard format.
    pub icsvscc: u8,
    /// Byte 531, NWPC: namespace write protection.
    pub nwpc: Nwpc,
    /// Bytes 533:532, ACWU: atomic compare and write unit in logical blocks, counting from zero.
    pub acwu_z: U16,
    /// Bytes 535:534: Copy descriptor formats, a bit each.
    pub ocfs: U16,
    /// Bytes 539:536, SGLS: SGL support.
    pub sgls: Sgls,
    /// Bytes 543:540, MNAN: the most namespaces at once; 0 means NN.
    pub mnan: U32,
    /// Bytes 559:544, MAXDNA: the most namespace attachments of the domain; 0 for no limit.
    pub maxdna: U128,
    /// Bytes 563:560, MAXCNA: the most namespaces attached to this controller; 0 for no limit.
    pub maxcna: U32,
    /// Bytes 767:564.
    pub reserved564: [u8; 204],
    /// Bytes 1023:768, SUBNQN: NVM subsystem qualified name, UTF-8, padded with zeroes.
    pub subnqn: [u8; 256],
    /// Bytes 1791:1024.
    pub reserved1024: [u8; 768],
    /// Bytes 2047:1792: fabrics only.
    pub fabrics: FabricsAttributes,
    /// Bytes 3071:2048, PSD0 to PSD31.
    pub psd: [PowerState; 32],
    /// Bytes 4095:3072, vendor specific.
    pub vendor: [u8; 1024],
}
assert_size!(IdentifyController => 4096);

open_enum! {
    /// CNTRLTYPE (Base 5.17.2.1).
    pub struct ControllerType(u8) {
        /// Not reported (before revision 1.4).
        NOT_REPORTED = 0,
        /// I/O controller.
        IO = 1,
        /// Discovery controller.
        DISCOVERY = 2,
        /// Administrative controller.
        ADMINISTRATIVE = 3,
    }
}

/// Attributes that apply over fabrics only, 256 bytes; zeroes over PCIe (Base 5.17.2.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FabricsAttributes {
    /// Bytes 1795:1792, IOCCSZ: I/O command capsule size in units of 16 bytes.
    pub ioccsz: U32,
    /// Bytes 1799:1796, IORCSZ: I/O response capsule size in units of 16 bytes.
    pub iorcsz: U32,
    /// Bytes 1801:1800, ICDOFF: in-capsule data offset in units of 16 bytes.
    pub icdoff: U16,
    /// Byte 1802, FCATT: bit 0, static controller model.
    pub fcatt: u8,
    /// Byte 1803, MSDBD: the most SGL data block descriptors.
    pub msdbd: u8,
    /// Bytes 1805:1804, OFCS: bit 0, Disconnect is supported.
    pub ofcs: U16,
    /// Bytes 2047:1806.
    pub reserved1806: [u8; 242],
}
assert_size!(FabricsAttributes => 256);

/// Power state descriptor, 32 bytes (Base 5.17.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PowerState {
    /// Bytes 1:0, MP: maximum power in units of 10 mW, or 0.1 mW with `max_power_scale`.
    pub mp: U16,
    /// Byte 2.
    pub reserved2: u8,
    /// Byte 3.
    pub flags: PowerStateFlags,
    /// Bytes 7:4, ENLAT: entry latency in microseconds.
    pub enlat: U32,
    /// Bytes 11:8, EXLAT: exit latency in microseconds.
    pub exlat: U32,
    /// Byte 12, RRT: bits 4:0, relative read throughput; lower is better, less than the number of states.
    pub rrt: u8,
    /// Byte 13, RRL: bits 4:0, relative read latency.
    pub rrl: u8,
    /// Byte 14, RWT: bits 4:0, relative write throughput.
    pub rwt: u8,
    /// Byte 15, RWL: bits 4:0, relative write latency.
    pub rwl: u8,
    /// Bytes 17:16, IDLP: idle power in units of IPS.
    pub idlp: U16,
    /// Byte 18, IPS: bits 7:6, idle power scale: 0 not reported, 1 0.1 mW, 2 10 mW.
    pub ips: u8,
    /// Byte 19.
    pub reserved19: u8,
    /// Bytes 21:20, ACTP: active power in units of APS.
    pub actp: U16,
    /// Byte 22: active power workload and scale.
    pub active: ActivePower,
    /// Bytes 31:23.
    pub reserved23: [u8; 9],
}
assert_size!(PowerState => 32);

/// Byte 3 of a power state descriptor (Base 5.17.2.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PowerStateFlags {
    /// MXPS: maximum power is in units of 0.1 mW.
    pub max_power_scale: bool,
    /// NOPS: no I/O is processed in this state.
    pub non_operational: bool,
    #[bits(6)]
    __: u8,
}

/// Byte 22 of a power state descriptor (Base 5.17.2.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ActivePower {
    /// APW: the workload active power was measured with.
    #[bits(3)]
    pub workload: u8,
    #[bits(3)]
    __: u8,
    /// APS: active power scale: 0 not reported, 1 0.1 mW, 2 10 mW.
    #[bits(2)]
    pub scale: u8,
}
