//! Get Log Page (Base 5.16): its dwords, identifiers, and the log pages every controller has.
//!
//! The logs of optional abilities (namespace access, reservations, sanitize, self-test) are in [`optional`].

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::command::{Command, CompletionStatus};
use crate::identify::CommandSet;

pub mod optional;

open_enum! {
    /// LID: log page identifiers (Base 5.16.1).
    pub struct LogPageId(u8) {
        /// Supported Log Pages (Base 5.16.1.1).
        SUPPORTED_LOG_PAGES = 0x00,
        /// Error Information (Base 5.16.1.2).
        ERROR_INFORMATION = 0x01,
        /// SMART / Health Information (Base 5.16.1.3).
        SMART_HEALTH = 0x02,
        /// Firmware Slot Information (Base 5.16.1.4).
        FIRMWARE_SLOT = 0x03,
        /// Changed Namespace List (Base 5.16.1.5).
        CHANGED_NAMESPACE_LIST = 0x04,
        /// Commands Supported and Effects (Base 5.16.1.6).
        COMMANDS_SUPPORTED_AND_EFFECTS = 0x05,
        /// Device Self-test (Base 5.16.1.7).
        DEVICE_SELF_TEST = 0x06,
        /// Telemetry Host-Initiated (Base 5.16.1.8).
        TELEMETRY_HOST_INITIATED = 0x07,
        /// Telemetry Controller-Initiated (Base 5.16.1.9).
        TELEMETRY_CONTROLLER_INITIATED = 0x08,
        /// Endurance Group Information (Base 5.16.1.10).
        ENDURANCE_GROUP_INFORMATION = 0x09,
        /// Predictable Latency Per NVM Set (Base 5.16.1.11).
        PREDICTABLE_LATENCY_PER_NVM_SET = 0x0A,
        /// Predictable Latency Event Aggregate (Base 5.16.1.12).
        PREDICTABLE_LATENCY_EVENT_AGGREGATE = 0x0B,
        /// Asymmetric Namespace Access (Base 5.16.1.13).
        ASYMMETRIC_NAMESPACE_ACCESS = 0x0C,
        /// Persistent Event Log (Base 5.16.1.14).
        PERSISTENT_EVENT_LOG = 0x0D,
        /// LBA Status Information (NVM 4.1.4).
        LBA_STATUS_INFORMATION = 0x0E,
        /// Endurance Group Event Aggregate (Base 5.16.1.15).
        ENDURANCE_GROUP_EVENT_AGGREGATE = 0x0F,
        /// Media Unit Status (Base 5.16.1.16).
        MEDIA_UNIT_STATUS = 0x10,
        /// Supported Capacity Configuration List (Base 5.16.1.17).
        SUPPORTED_CAPACITY_CONFIGURATION_LIST = 0x11,
        /// Feature Identifiers Supported and Effects (Base 5.16.1.18).
        FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS = 0x12,
        /// NVMe-MI Commands Supported and Effects (Base 5.16.1.19).
        NVME_MI_COMMANDS_SUPPORTED_AND_EFFECTS = 0x13,
        /// Command and Feature Lockdown (Base 5.16.1.20).
        COMMAND_AND_FEATURE_LOCKDOWN = 0x14,
        /// Boot Partition (Base 5.16.1.21).
        BOOT_PARTITION = 0x15,
        /// Rotational Media Information (Base 5.16.1.22).
        ROTATIONAL_MEDIA_INFORMATION = 0x16,
        /// Discovery (Base 5.16.1.23).
        DISCOVERY = 0x70,
        /// Reservation Notification (Base 5.16.1.24).
        RESERVATION_NOTIFICATION = 0x80,
        /// Sanitize Status (Base 5.16.1.25).
        SANITIZE_STATUS = 0x81,
    }
}

/// Dword 10 of Get Log Page (Base 5.16).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetLogPageCdw10 {
    /// LID: the log page.
    #[bits(8)]
    pub lid: LogPageId,
    /// LSP: log specific.
    #[bits(7)]
    pub lsp: u8,
    /// RAE: retain the asynchronous event.
    pub rae: bool,
    /// NUMDL: number of dwords, lower half; the whole counts from zero.
    pub numdl_z: u16,
}

/// Dword 11 of Get Log Page (Base 5.16).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetLogPageCdw11 {
    /// NUMDU: number of dwords, upper half; the whole counts from zero.
    pub numdu_z: u16,
    /// LSI: log specific identifier.
    pub lsi: u16,
}

/// Dword 14 of Get Log Page (Base 5.16). Dwords 13:12 are the offset.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetLogPageCdw14 {
    /// UUID index.
    #[bits(7)]
    pub uuid_index: u8,
    #[bits(16)]
    __: u16,
    /// OT: the offset is an index of entries, not of bytes.
    pub ot: bool,
    /// CSI: the I/O command set.
    #[bits(8)]
    pub csi: CommandSet,
}

/// All of Get Log Page's dwords, decoded (Base 5.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// LID: the log page.
    pub lid: LogPageId,
    /// LSP: log specific.
    pub lsp: u8,
    /// RAE: retain the asynchronous event.
    pub rae: bool,
    /// NUMD made into bytes: 4 to 2^34.
    pub bytes: u64,
    /// LSI: log specific identifier.
    pub lsi: u16,
    /// LPO: the offset in bytes, or an index with `offset_is_index`. Its lowest two bits must be 0 if it is bytes.
    pub offset: u64,
    /// OT: the offset is an index of entries.
    pub offset_is_index: bool,
    /// UUID index.
    pub uuid_index: u8,
    /// CSI: the I/O command set.
    pub csi: CommandSet,
}

impl GetLogPage {
    /// Decodes a command.
    pub const fn from_command(command: &Command) -> Self {
        let cdw10 = GetLogPageCdw10::from_bits(command.cdw10());
        let cdw11 = GetLogPageCdw11::from_bits(command.cdw11());
        let cdw14 = GetLogPageCdw14::from_bits(command.cdw14());
        let numd_z = (cdw11.numdu_z() as u64) << 16 | cdw10.numdl_z() as u64;
        Self {
            lid: cdw10.lid(),
            lsp: cdw10.lsp(),
            rae: cdw10.rae(),
            bytes: (numd_z + 1) * 4,
            lsi: cdw11.lsi(),
            offset: (command.cdw13() as u64) << 32 | command.cdw12() as u64,
            offset_is_index: cdw14.ot(),
            uuid_index: cdw14.uuid_index(),
            csi: cdw14.csi(),
        }
    }
}

/// Supported Log Pages, 1024 bytes, LID 00h (Base 5.16.1.1): one entry for each log page identifier.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SupportedLogPages {
    /// By log page identifier.
    pub lids: [LidSupported; 256],
}
assert_size!(SupportedLogPages => 1024);

/// LID supported and effects, 4 bytes (Base 5.16.1.1).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LidSupported {
    /// LSUPP: the log page is supported.
    pub lsupp: bool,
    /// IOS: an index offset is supported.
    pub ios: bool,
    #[bits(14)]
    __: u16,
    /// LID specific.
    pub lid_specific: u16,
}

/// One entry of the Error Information log, 64 bytes, LID 01h (Base 5.16.1.2). The newest comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorInformationEntry {
    /// Bytes 7:0: error count, unique over the controller's life; 0 for an entry that is not valid.
    pub error_count: U64,
    /// Bytes 9:8: the submission queue; FFFFh if the error is of none.
    pub sqid: U16,
    /// Bytes 11:10: the command; FFFFh if the error is of none.
    pub cid: U16,
    /// Bytes 13:12: the status as in the completion, phase included.
    pub status: CompletionStatus,
    /// Bytes 15:14: where in the command the error is.
    pub parameter_error_location: ParameterErrorLocation,
    /// Bytes 23:16: the first logical block that failed.
    pub lba: U64,
    /// Bytes 27:24: the namespace.
    pub nsid: U32,
    /// Byte 28: log page with vendor-specific information, or 0.
    pub vendor_specific_information: u8,
    /// Byte 29, TRTYPE: transport type; 0 for PCIe or none.
    pub trtype: u8,
    /// Bytes 31:30.
    pub reserved30: [u8; 2],
    /// Bytes 39:32: command specific information.
    pub command_specific: U64,
    /// Bytes 41:40: transport type specific information.
    pub transport_specific: U16,
    /// Bytes 63:42.
    pub reserved42: [u8; 22],
}
assert_size!(ErrorInformationEntry => 64);

/// Parameter error location (Base 5.16.1.2). FFFFh if the error is not of a parameter.
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ParameterErrorLocation {
    /// The byte in the command, 0 to 63.
    pub byte: u8,
    /// The bit in the byte.
    #[bits(3)]
    pub bit: u8,
    #[bits(5)]
    __: u8,
}

/// SMART / Health Information, 512 bytes, LID 02h (Base 5.16.1.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmartLog {
    /// Byte 0: critical warnings.
    pub critical_warning: CriticalWarning,
    /// Bytes 2:1: composite temperature in kelvin.
    pub composite_temperature: U16,
    /// Byte 3: available spare in percent.
    pub available_spare: u8,
    /// Byte 4: available spare threshold in percent.
    pub available_spare_threshold: u8,
    /// Byte 5: percentage used, may exceed 100; 255 for more.
    pub percentage_used: u8,
    /// Byte 6: endurance group critical warning summary.
    pub endurance_group_critical_warning_summary: u8,
    /// Bytes 31:7.
    pub reserved7: [u8; 25],
    /// Bytes 47:32: data units read, each 1000 × 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Bytes 63:48: data units written, each 1000 × 512 bytes, rounded up.
    pub data_units_written: U128,
    /// Bytes 79:64: host read commands.
    pub host_read_commands: U128,
    /// Bytes 95:80: host write commands.
    pub host_write_commands: U128,
    /// Bytes 111:96: controller busy time in minutes.
    pub controller_busy_time: U128,
    /// Bytes 127:112: power cycles.
    pub power_cycles: U128,
    /// Bytes 143:128: power on hours.
    pub power_on_hours: U128,
    /// Bytes 159:144: unsafe shutdowns.
    pub unsafe_shutdowns: U128,
    /// Bytes 175:160: media and data integrity errors.
    pub media_errors: U128,
    /// Bytes 191:176: number of error information log entries over the controller's life.
    pub error_log_entries: U128,
    /// Bytes 195:192: minutes above the warning composite temperature.
    pub warning_composite_temperature_time: U32,
    /// Bytes 199:196: minutes above the critical composite temperature.
    pub critical_composite_temperature_time: U32,
    /// Bytes 215:200: temperature sensors 1 to 8 in kelvin; 0 for none.
    pub temperature_sensors: [U16; 8],
    /// Bytes 219:216: transitions to thermal management temperature 1.
    pub thermal_1_transitions: U32,
    /// Bytes 223:220: transitions to thermal management temperature 2.
    pub thermal_2_transitions: U32,
    /// Bytes 227:224: seconds at thermal management temperature 1.
    pub thermal_1_seconds: U32,
    /// Bytes 231:228: seconds at thermal management temperature 2.
    pub thermal_2_seconds: U32,
    /// Bytes 511:232.
    pub reserved232: [u8; 280],
}
assert_size!(SmartLog => 512);

/// Critical warnings (Base 5.16.1.3).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CriticalWarning {
    /// Available spare is below its threshold.
    pub spare_below_threshold: bool,
    /// A temperature crossed its threshold.
    pub temperature: bool,
    /// Reliability is degraded.
    pub reliability_degraded: bool,
    /// All media are read only.
    pub read_only: bool,
    /// The volatile memory backup device failed.
    pub backup_failed: bool,
    /// The persistent memory region became read only or unreliable.
    pub pmr_read_only: bool,
    #[bits(2)]
    __: u8,
}

/// Firmware Slot Information, 512 bytes, LID 03h (Base 5.16.1.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Byte 0, AFI: active firmware info.
    pub afi: ActiveFirmwareInfo,
    /// Bytes 7:1.
    pub reserved1: [u8; 7],
    /// Bytes 63:8, FRS1 to FRS7: the revision in each slot, ASCII, zeroes for an empty slot.
    pub frs: [[u8; 8]; 7],
    /// Bytes 511:64.
    pub reserved64: [u8; 448],
}
assert_size!(FirmwareSlotLog => 512);

/// AFI (Base 5.16.1.4).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ActiveFirmwareInfo {
    /// The slot the running firmware came from, 1 to 7.
    #[bits(3)]
    pub active_slot: u8,
    #[bits(1)]
    __: u8,
    /// The slot to be activated at the next controller level reset; 0 if not known.
    #[bits(3)]
    pub next_slot: u8,
    #[bits(1)]
    __: u8,
}

/// The most entries of the Changed Namespace List, LID 04h, in ascending order, 4 bytes each (Base 5.16.1.5).
pub const CHANGED_NAMESPACE_LIST_ENTRIES: usize = 1024;

/// The first entry of a Changed Namespace List that would need more than 1024; all others are 0 (Base 5.16.1.5).
pub const CHANGED_NAMESPACE_LIST_OVERFLOW: u32 = 0xFFFF_FFFF;

/// Commands Supported and Effects, 4096 bytes, LID 05h (Base 5.16.1.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandsSupportedAndEffects {
    /// Bytes 1023:0, ACS: admin commands by opcode.
    pub acs: [CommandEffects; 256],
    /// Bytes 2047:1024, IOCS: I/O commands by opcode, of the command set asked for.
    pub iocs: [CommandEffects; 256],
    /// Bytes 4095:2048.
    pub reserved: [u8; 2048],
}
assert_size!(CommandsSupportedAndEffects => 4096);

/// Command supported and effects, 4 bytes (Base 5.16.1.6).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandEffects {
    /// CSUPP: the command is supported.
    pub csupp: bool,
    /// LBCC: it may change logical block contents.
    pub lbcc: bool,
    /// NCC: it may change namespace capabilities.
    pub ncc: bool,
    /// NIC: it may change the number of namespaces or what is attached.
    pub nic: bool,
    /// CCC: it may change controller capabilities.
    pub ccc: bool,
    #[bits(11)]
    __: u16,
    /// CSE: what must not be in flight meanwhile.
    #[bits(3)]
    pub cse: SubmissionExecution,
    /// It takes a UUID index.
    pub uuid_selection: bool,
    /// CSP: what it affects; all zeroes if not reported.
    #[bits(12)]
    pub scope: Scope,
}

open_enum! {
    /// CSE: command submission and execution (Base 5.16.1.6).
    pub struct SubmissionExecution(u8) {
        /// No restriction.
        NONE = 0,
        /// No other command to the same namespace.
        ONE_PER_NAMESPACE = 1,
        /// No other command to any namespace.
        ONE_AT_ALL = 2,
    }
}

/// Scope of a command or feature, twelve bits (Base 5.16.1.6, 5.16.1.18).
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Scope {
    /// A namespace.
    pub namespace: bool,
    /// The controller.
    pub controller: bool,
    /// An NVM set.
    pub nvm_set: bool,
    /// An endurance group.
    pub endurance_group: bool,
    /// A domain.
    pub domain: bool,
    /// The NVM subsystem.
    pub nvm_subsystem: bool,
    #[bits(10)]
    __: u16,
}

/// Feature Identifiers Supported and Effects, 1024 bytes, LID 12h (Base 5.16.1.18).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FeaturesSupportedAndEffects {
    /// By feature identifier.
    pub fids: [FeatureEffects; 256],
}
assert_size!(FeaturesSupportedAndEffects => 1024);

/// FID supported and effects, 4 bytes (Base 5.16.1.18).
#[bitfield(u32, repr = U32, from = U32::new, into = U32::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FeatureEffects {
    /// FSUPP: the feature is supported.
    pub fsupp: bool,
    /// UDCC: setting it may change user data contents.
    pub udcc: bool,
    /// NCC: setting it may change namespace capabilities.
    pub ncc: bool,
    /// NIC: setting it may change the number of namespaces or what is attached.
    pub nic: bool,
    /// CCC: setting it may change controller capabilities.
    pub ccc: bool,
    #[bits(14)]
    __: u16,
    /// It takes a UUID index.
    pub uuid_selection: bool,
    /// FSP: what it affects.
    #[bits(12)]
    pub scope: Scope,
}
