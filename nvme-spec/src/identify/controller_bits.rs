//! Bit fields of Identify Controller (Base 5.17.2.1, NVM 4.1.5.2), in the order of the structure.

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CMIC: controller multi-path I/O and namespace sharing capabilities (byte 76).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cmic {
    /// The subsystem may have several ports.
    pub multi_port: bool,
    /// The subsystem may have several controllers.
    pub multi_controller: bool,
    /// The controller is of an SR-IOV virtual function.
    pub virtual_function: bool,
    /// Asymmetric namespace access is reported.
    pub ana_reporting: bool,
    #[bits(4)]
    __: u8,
}

/// OAES: optional asynchronous events supported (bytes 95:92).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oaes {
    __: u8,
    /// Namespace attribute notices.
    pub namespace_attribute_notices: bool,
    /// Firmware activation notices.
    pub firmware_activation_notices: bool,
    #[bits(1)]
    __: u8,
    /// Asymmetric namespace access change notices.
    pub ana_change_notices: bool,
    /// Predictable latency event aggregate log change notices.
    pub predictable_latency_notices: bool,
    /// LBA status information notices.
    pub lba_status_information_notices: bool,
    /// Endurance group event aggregate log change notices.
    pub endurance_group_notices: bool,
    /// Normal NVM subsystem shutdown event.
    pub normal_shutdown_event: bool,
    #[bits(11)]
    __: u16,
    /// Zone descriptor changed notices.
    pub zone_descriptor_changed_notices: bool,
    #[bits(3)]
    __: u8,
    /// Discovery log change notices.
    pub discovery_log_notices: bool,
}

/// CTRATT: controller attributes (bytes 99:96).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ctratt {
    /// Host identifiers of 128 bits.
    pub host_id_128: bool,
    /// Non-operational power state permissive mode.
    pub non_operational_permissive: bool,
    /// NVM sets.
    pub nvm_sets: bool,
    /// Read recovery levels.
    pub read_recovery_levels: bool,
    /// Endurance groups.
    pub endurance_groups: bool,
    /// Predictable latency mode.
    pub predictable_latency: bool,
    /// TBKAS: traffic based keep alive.
    pub traffic_based_keep_alive: bool,
    /// Namespace granularity.
    pub namespace_granularity: bool,
    /// SQ associations.
    pub sq_associations: bool,
    /// UUID list.
    pub uuid_list: bool,
    /// Multi-domain subsystem.
    pub multi_domain: bool,
    /// Fixed capacity management.
    pub fixed_capacity_management: bool,
    /// Variable capacity management.
    pub variable_capacity_management: bool,
    /// Delete endurance group.
    pub delete_endurance_group: bool,
    /// Delete NVM set.
    pub delete_nvm_set: bool,
    /// ELBAS: extended LBA formats.
    pub extended_lba_formats: bool,
    #[bits(16)]
    __: u16,
}

/// NVMSR: NVM subsystem report (byte 253).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nvmsr {
    /// NVMESD: part of an NVMe storage device.
    pub storage_device: bool,
    /// NVMEE: part of an NVMe enclosure.
    pub enclosure: bool,
    #[bits(6)]
    __: u8,
}

/// VWCI: vital product data write cycle information (byte 254).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vwci {
    /// VWCR: write cycles remaining, at most 127.
    #[bits(7)]
    pub remaining: u8,
    /// VWCRV: the number is valid.
    pub valid: bool,
}

/// MEC: management endpoint capabilities (byte 255).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Mec {
    /// TWPME: a management endpoint on a two-wire port.
    pub two_wire: bool,
    /// PCIEME: a management endpoint on a PCIe port.
    pub pcie: bool,
    #[bits(6)]
    __: u8,
}

/// OACS: optional admin command support (bytes 257:256).
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oacs {
    /// Security Send and Security Receive.
    pub security: bool,
    /// Format NVM.
    pub format: bool,
    /// Firmware Commit and Firmware Image Download.
    pub firmware: bool,
    /// Namespace Management and Namespace Attachment.
    pub namespace_management: bool,
    /// Device Self-test.
    pub device_self_test: bool,
    /// Directives.
    pub directives: bool,
    /// NVMe-MI Send and NVMe-MI Receive.
    pub nvme_mi: bool,
    /// Virtualization Management.
    pub virtualization_management: bool,
    /// Doorbell Buffer Config.
    pub doorbell_buffer_config: bool,
    /// Get LBA Status.
    pub get_lba_status: bool,
    /// Lockdown.
    pub lockdown: bool,
    #[bits(5)]
    __: u8,
}

/// FRMW: firmware updates (byte 260).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frmw {
    /// FFSRO: slot 1 is read only.
    pub slot_1_read_only: bool,
    /// NOFS: the number of slots, 1 to 7.
    #[bits(3)]
    pub slots: u8,
    /// FAWR: activation without reset.
    pub activation_without_reset: bool,
    /// SMUD: overlapping updates are detected.
    pub multiple_update_detection: bool,
    #[bits(2)]
    __: u8,
}

/// LPA: log page attributes (byte 261).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lpa {
    /// The SMART log of each namespace.
    pub smart_per_namespace: bool,
    /// The Commands Supported and Effects log.
    pub command_effects: bool,
    /// Extended data for Get Log Page: NUMDU and the offset.
    pub extended_data: bool,
    /// Telemetry logs.
    pub telemetry: bool,
    /// The Persistent Event log.
    pub persistent_event: bool,
    /// The Supported Log Pages log (LID 00h), and LIDs 12h and 13h.
    pub supported_log_pages: bool,
    /// Telemetry data area 4.
    pub telemetry_area_4: bool,
    #[bits(1)]
    __: u8,
}

/// RPMBS: replay protected memory block support (bytes 315:312).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rpmbs {
    /// The number of units.
    #[bits(3)]
    pub units: u8,
    /// The authentication method: 0 is HMAC SHA-256.
    #[bits(3)]
    pub authentication: u8,
    #[bits(10)]
    __: u16,
    /// The size of each unit in units of 128 KiB, counting from zero.
    pub total_size_z: u8,
    /// The size of one access in units of 512 bytes, counting from zero.
    pub access_size_z: u8,
}

/// SANICAP: sanitize capabilities (bytes 331:328).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SaniCap {
    /// CES: crypto erase.
    pub crypto_erase: bool,
    /// BES: block erase.
    pub block_erase: bool,
    /// OWS: overwrite.
    pub overwrite: bool,
    #[bits(26)]
    __: u32,
    /// NDI: no-deallocate is inhibited.
    pub no_deallocate_inhibited: bool,
    /// NODMMAS: whether media are modified after a sanitize without deallocation: 0 not defined, 1 no, 2 yes.
    #[bits(2)]
    pub no_deallocate_modifies_media: u8,
}

/// ANACAP: asymmetric namespace access capabilities (byte 343).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AnaCap {
    /// Reports the optimized state.
    pub optimized: bool,
    /// Reports the non-optimized state.
    pub non_optimized: bool,
    /// Reports the inaccessible state.
    pub inaccessible: bool,
    /// Reports the persistent loss state.
    pub persistent_loss: bool,
    /// Reports the change state.
    pub change: bool,
    #[bits(1)]
    __: u8,
    /// ANAGRPID does not change while the namespace is attached.
    pub group_id_static: bool,
    /// Namespace Management takes a group other than 0.
    pub group_id_settable: bool,
}

/// SQES and CQES: queue entry sizes (bytes 512 and 513).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QueueEntrySize {
    /// The required (smallest) entry is 2^min bytes.
    #[bits(4)]
    pub min: u8,
    /// The largest entry is 2^max bytes.
    #[bits(4)]
    pub max: u8,
}

impl QueueEntrySize {
    /// Submission queue entries of 64 bytes.
    pub const SQ: Self = Self::from_bits(0x66);
    /// Completion queue entries of 16 bytes.
    pub const CQ: Self = Self::from_bits(0x44);
}

/// ONCS: optional NVM command support (bytes 521:520).
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Oncs {
    /// Compare.
    pub compare: bool,
    /// Write Uncorrectable.
    pub write_uncorrectable: bool,
    /// Dataset Management.
    pub dataset_management: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// The Save field of Set Features and the Select field of Get Features.
    pub save_and_select: bool,
    /// Reservations.
    pub reservations: bool,
    /// The Timestamp feature.
    pub timestamp: bool,
    /// Verify.
    pub verify: bool,
    /// Copy.
    pub copy: bool,
    #[bits(7)]
    __: u8,
}

/// FUSES: fused operation support (bytes 523:522).
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fuses {
    /// Compare and Write.
    pub compare_and_write: bool,
    #[bits(15)]
    __: u16,
}

/// FNA: Format NVM attributes (byte 524).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Fna {
    /// A format applies to all namespaces.
    pub format_all: bool,
    /// A secure erase applies to all namespaces.
    pub erase_all: bool,
    /// Cryptographic erase is supported.
    pub crypto_erase: bool,
    /// The broadcast NSID is not supported.
    pub no_broadcast: bool,
    #[bits(4)]
    __: u8,
}

/// VWC: volatile write cache (byte 525).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Vwc {
    /// There is a volatile write cache.
    pub present: bool,
    /// How Flush treats the broadcast NSID.
    #[bits(2)]
    pub flush_broadcast: FlushBroadcast,
    #[bits(5)]
    __: u8,
}

open_enum! {
    /// How Flush treats NSID FFFFFFFFh (Base 5.17.2.1, byte 525).
    pub struct FlushBroadcast(u8) {
        /// Not reported (before revision 1.4).
        NOT_REPORTED = 0,
        /// It is an error.
        NOT_SUPPORTED = 2,
        /// It flushes all namespaces.
        SUPPORTED = 3,
    }
}

/// NWPC: namespace write protection capabilities (byte 531).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Nwpc {
    /// No protection and write protection.
    pub write_protect: bool,
    /// Write protection until power cycle.
    pub until_power_cycle: bool,
    /// Permanent write protection.
    pub permanent: bool,
    #[bits(5)]
    __: u8,
}

/// SGLS: SGL support (bytes 539:536).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sgls {
    /// Whether I/O commands can have SGLs.
    #[bits(2)]
    pub support: SglSupport,
    /// Keyed data blocks.
    pub keyed: bool,
    #[bits(5)]
    __: u8,
    /// SDT: the recommended number of descriptors; 0 if not reported.
    pub descriptor_threshold: u8,
    /// Bit buckets.
    pub bit_bucket: bool,
    /// MPTR may be a byte aligned address of a contiguous buffer.
    pub mptr_byte_aligned: bool,
    /// SGLs may be longer than the data.
    pub excess_length: bool,
    /// MPTR may be the address of an SGL descriptor.
    pub mptr_sgl: bool,
    /// Addresses may be offsets.
    pub offset: bool,
    /// Transport data blocks.
    pub transport: bool,
    #[bits(10)]
    __: u16,
}

open_enum! {
    /// Whether I/O commands can have SGLs (Base 5.17.2.1, bytes 539:536).
    pub struct SglSupport(u8) {
        /// No.
        NOT_SUPPORTED = 0,
        /// Yes, with no alignment required.
        BYTE_ALIGNED = 1,
        /// Yes, with addresses and lengths of data blocks in multiples of 4 bytes.
        DWORD_ALIGNED = 2,
    }
}
