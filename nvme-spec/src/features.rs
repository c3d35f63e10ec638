//! Get Features (Base 5.15) and Set Features (Base 5.27): identifiers, dwords and data of the features.
//!
//! Unless said otherwise a bitfield named after a feature is dword 11 of Set Features and completion dword 0 of Get
//! Features alike. Keep Alive Timer is the bare dword: milliseconds (Base 5.27.1.12).
//!
//! LBA ranges, predictable latency, read recovery levels, endurance group events, spinup and metadata features have
//! their identifiers here but no layout.

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

open_enum! {
    /// FID: feature identifiers (Base 5.27.1, NVM 4.1.3).
    pub struct FeatureId(u8) {
        /// Arbitration (Base 5.27.1.1).
        ARBITRATION = 0x01,
        /// Power Management (Base 5.27.1.2).
        POWER_MANAGEMENT = 0x02,
        /// LBA Range Type (NVM 4.1.3.1).
        LBA_RANGE_TYPE = 0x03,
        /// Temperature Threshold (Base 5.27.1.3).
        TEMPERATURE_THRESHOLD = 0x04,
        /// Error Recovery (NVM 4.1.3.2).
        ERROR_RECOVERY = 0x05,
        /// Volatile Write Cache (Base 5.27.1.4).
        VOLATILE_WRITE_CACHE = 0x06,
        /// Number of Queues (Base 5.27.1.5).
        NUMBER_OF_QUEUES = 0x07,
        /// Interrupt Coalescing (Base 5.27.1.6).
        INTERRUPT_COALESCING = 0x08,
        /// Interrupt Vector Configuration (Base 5.27.1.7).
        INTERRUPT_VECTOR_CONFIGURATION = 0x09,
        /// Write Atomicity Normal (NVM 4.1.3.3).
        WRITE_ATOMICITY_NORMAL = 0x0A,
        /// Asynchronous Event Configuration (Base 5.27.1.8).
        ASYNC_EVENT_CONFIGURATION = 0x0B,
        /// Autonomous Power State Transition (Base 5.27.1.9).
        AUTONOMOUS_POWER_STATE_TRANSITION = 0x0C,
        /// Host Memory Buffer (Base 5.27.1.10).
        HOST_MEMORY_BUFFER = 0x0D,
        /// Timestamp (Base 5.27.1.11).
        TIMESTAMP = 0x0E,
        /// Keep Alive Timer (Base 5.27.1.12).
        KEEP_ALIVE_TIMER = 0x0F,
        /// Host Controlled Thermal Management (Base 5.27.1.13).
        HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10,
        /// Non-Operational Power State Config (Base 5.27.1.14).
        NON_OPERATIONAL_POWER_STATE_CONFIG = 0x11,
        /// Read Recovery Level Config (Base 5.27.1.15).
        READ_RECOVERY_LEVEL_CONFIG = 0x12,
        /// Predictable Latency Mode Config (Base 5.27.1.16).
        PREDICTABLE_LATENCY_MODE_CONFIG = 0x13,
        /// Predictable Latency Mode Window (Base 5.27.1.17).
        PREDICTABLE_LATENCY_MODE_WINDOW = 0x14,
        /// LBA Status Information Report Interval (NVM 4.1.3.5).
        LBA_STATUS_INFORMATION_REPORT_INTERVAL = 0x15,
        /// Host Behavior Support (Base 5.27.1.18).
        HOST_BEHAVIOR_SUPPORT = 0x16,
        /// Sanitize Config (Base 5.27.1.19).
        SANITIZE_CONFIG = 0x17,
        /// Endurance Group Event Configuration (Base 5.27.1.20).
        ENDURANCE_GROUP_EVENT_CONFIGURATION = 0x18,
        /// I/O Command Set Profile (Base 5.27.1.21).
        IO_COMMAND_SET_PROFILE = 0x19,
        /// Spinup Control (Base 5.27.1.22).
        SPINUP_CONTROL = 0x1A,
        /// Enhanced Controller Metadata (Base 5.27.1.23.1).
        ENHANCED_CONTROLLER_METADATA = 0x7D,
        /// Controller Metadata (Base 5.27.1.23.2).
        CONTROLLER_METADATA = 0x7E,
        /// Namespace Metadata (Base 5.27.1.23.3).
        NAMESPACE_METADATA = 0x7F,
        /// Software Progress Marker (Base 5.27.1.24).
        SOFTWARE_PROGRESS_MARKER = 0x80,
        /// Host Identifier (Base 5.27.1.25).
        HOST_IDENTIFIER = 0x81,
        /// Reservation Notification Mask (Base 5.27.1.26).
        RESERVATION_NOTIFICATION_MASK = 0x82,
        /// Reservation Persistence (Base 5.27.1.27).
        RESERVATION_PERSISTENCE = 0x83,
        /// Namespace Write Protection Config (Base 5.27.1.28).
        NAMESPACE_WRITE_PROTECTION_CONFIG = 0x84,
    }
}

/// Dword 10 of Get Features (Base 5.15).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GetFeaturesCdw10 {
    /// FID: the feature.
    #[bits(8)]
    pub fid: FeatureId,
    /// SEL: which of the feature's values.
    #[bits(3)]
    pub sel: FeatureSelect,
    #[bits(21)]
    __: u32,
}

open_enum! {
    /// SEL (Base 5.15).
    pub struct FeatureSelect(u8) {
        /// The current value.
        CURRENT = 0,
        /// The default value.
        DEFAULT = 1,
        /// The saved value.
        SAVED = 2,
        /// What can be done with the feature: [`FeatureCapabilities`].
        SUPPORTED_CAPABILITIES = 3,
    }
}

/// Completion dword 0 of Get Features with [`FeatureSelect::SUPPORTED_CAPABILITIES`] (Base 5.15.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FeatureCapabilities {
    /// The value can be saved.
    pub saveable: bool,
    /// The feature is of a namespace.
    pub namespace_specific: bool,
    /// The value can be changed.
    pub changeable: bool,
    #[bits(29)]
    __: u32,
}

/// Dword 10 of Set Features (Base 5.27).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SetFeaturesCdw10 {
    /// FID: the feature.
    #[bits(8)]
    pub fid: FeatureId,
    #[bits(23)]
    __: u32,
    /// SV: keep the value over power cycles and resets.
    pub sv: bool,
}

/// Arbitration (Base 5.27.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Arbitration {
    /// AB: arbitration burst, 2^AB commands; 7 for no limit.
    #[bits(3)]
    pub ab: u8,
    #[bits(5)]
    __: u8,
    /// LPW: low priority weight in commands, counting from zero.
    pub lpw_z: u8,
    /// MPW: medium priority weight in commands, counting from zero.
    pub mpw_z: u8,
    /// HPW: high priority weight in commands, counting from zero.
    pub hpw_z: u8,
}

/// Power Management (Base 5.27.1.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PowerManagement {
    /// PS: power state.
    #[bits(5)]
    pub ps: u8,
    /// WH: workload hint.
    #[bits(3)]
    pub wh: u8,
    #[bits(24)]
    __: u32,
}

/// Temperature Threshold (Base 5.27.1.3). Get Features takes TMPSEL and THSEL in dword 11 too.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TemperatureThreshold {
    /// TMPTH: the threshold in kelvin.
    pub tmpth: u16,
    /// TMPSEL: 0 for the composite temperature, 1 to 8 for a sensor, Fh for all (Set Features only).
    #[bits(4)]
    pub tmpsel: u8,
    /// THSEL: over or under.
    #[bits(2)]
    pub thsel: ThresholdType,
    #[bits(10)]
    __: u16,
}

open_enum! {
    /// THSEL (Base 5.27.1.3).
    pub struct ThresholdType(u8) {
        /// Over temperature.
        OVER = 0,
        /// Under temperature.
        UNDER = 1,
    }
}

/// Error Recovery (NVM 4.1.3.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ErrorRecovery {
    /// TLER: time limit for recovery in units of 100 ms; 0 for none.
    pub tler: u16,
    /// DULBE: reads of deallocated or unwritten blocks fail.
    pub dulbe: bool,
    #[bits(15)]
    __: u16,
}

/// Volatile Write Cache (Base 5.27.1.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct VolatileWriteCache {
    /// WCE: the cache is enabled.
    pub wce: bool,
    #[bits(31)]
    __: u32,
}

/// Number of Queues (Base 5.27.1.5): requested in dword 11, allocated in completion dword 0.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NumberOfQueues {
    /// NSQR, NSQA: I/O submission queues, counting from zero. FFFFh is not a valid request.
    pub nsq_z: u16,
    /// NCQR, NCQA: I/O completion queues, counting from zero. FFFFh is not a valid request.
    pub ncq_z: u16,
}

/// Interrupt Coalescing (Base 5.27.1.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// THR: aggregation threshold in completions, counting from zero.
    pub thr_z: u8,
    /// TIME: aggregation time in units of 100 µs; 0 for none.
    pub time: u8,
    #[bits(16)]
    __: u16,
}

/// Interrupt Vector Configuration (Base 5.27.1.7). Get Features takes IV in dword 11 too.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InterruptVectorConfiguration {
    /// IV: the vector.
    pub iv: u16,
    /// CD: coalescing is disabled.
    pub cd: bool,
    #[bits(15)]
    __: u16,
}

/// Write Atomicity Normal (NVM 4.1.3.3).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct WriteAtomicity {
    /// DN: AWUN and NAWUN need not be honoured, only the power-fail units.
    pub dn: bool,
    #[bits(31)]
    __: u32,
}

/// Asynchronous Event Configuration (Base 5.27.1.8, NVM 4.1.3.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEventConfiguration {
    /// SMART / health critical warnings, as in [`crate::log::CriticalWarning`].
    pub smart_critical_warnings: u8,
    /// Namespace attribute notices.
    pub namespace_attribute_notices: bool,
    /// Firmware activation notices.
    pub firmware_activation_notices: bool,
    /// Telemetry log notices.
    pub telemetry_log_notices: bool,
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
    /// Discovery log page change notices (fabrics only).
    pub discovery_log_notices: bool,
}

/// Autonomous Power State Transition, dword 11 (Base 5.27.1.9). The data is 32 [`ApstEntry`].
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AutonomousPowerStateTransition {
    /// APSTE: transitions are enabled.
    pub apste: bool,
    #[bits(31)]
    __: u32,
}

/// One entry of the Autonomous Power State Transition data, 8 bytes, one for each power state (Base 5.27.1.9).
#[bitfield(u64, repr = U64, from = U64::new, into = U64::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ApstEntry {
    #[bits(3)]
    __: u8,
    /// ITPS: the power state to go to when idle.
    #[bits(5)]
    pub itps: u8,
    /// ITPT: the idle time before, in milliseconds; 0 for no transition.
    #[bits(24)]
    pub itpt: u32,
    #[bits(32)]
    __: u32,
}

/// Host Memory Buffer, dword 11 (Base 5.27.1.10). Dword 12 is the size in memory pages, dwords 14:13 the address of
/// the descriptor list, dword 15 the number of [`HostMemoryBufferDescriptor`] in it.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct HostMemoryBuffer {
    /// EHM: the controller may use the buffer.
    pub ehm: bool,
    /// MR: the memory was given before and is unchanged.
    pub mr: bool,
    #[bits(30)]
    __: u32,
}

/// Host memory buffer descriptor, 16 bytes (Base 5.27.1.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostMemoryBufferDescriptor {
    /// Bytes 7:0, BADD: address, aligned to a memory page.
    pub badd: U64,
    /// Bytes 11:8, BSIZE: size in memory pages.
    pub bsize: U32,
    /// Bytes 15:12.
    pub reserved: [u8; 4],
}
assert_size!(HostMemoryBufferDescriptor => 16);

/// Timestamp data, 8 bytes (Base 5.27.1.11).
#[bitfield(u64, repr = U64, from = U64::new, into = U64::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Timestamp {
    /// Milliseconds since 1970-01-01 00:00:00 UTC, or since the last controller level reset.
    #[bits(48)]
    pub milliseconds: u64,
    /// Synch: the controller may have stopped counting at times.
    pub may_have_stopped: bool,
    /// Timestamp origin.
    #[bits(3)]
    pub origin: TimestampOrigin,
    #[bits(12)]
    __: u16,
}

open_enum! {
    /// Timestamp origin (Base 5.27.1.11).
    pub struct TimestampOrigin(u8) {
        /// Set to 0 by a controller level reset.
        CLEARED_BY_RESET = 0,
        /// Set by Set Features.
        SET_BY_HOST = 1,
    }
}

/// Host Controlled Thermal Management (Base 5.27.1.13).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct HostControlledThermalManagement {
    /// TMT2: thermal management temperature 2 in kelvin (heavy throttling).
    pub tmt2: u16,
    /// TMT1: thermal management temperature 1 in kelvin (light throttling).
    pub tmt1: u16,
}

/// Non-Operational Power State Config (Base 5.27.1.14).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NonOperationalPowerStateConfig {
    /// NOPPME: background work may use more power than the non-operational state allows.
    pub noppme: bool,
    #[bits(31)]
    __: u32,
}

/// Host Behavior Support data, 512 bytes (Base 5.27.1.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostBehaviorSupport {
    /// Byte 0, ACRE: 1 if the host honours command retry delays and Command Interrupted.
    pub acre: u8,
    /// Byte 1, ETDAS: 1 if the host supports extended telemetry data area 4.
    pub etdas: u8,
    /// Byte 2, LBAFEE: 1 if the host supports extended LBA formats.
    pub lbafee: u8,
    /// Bytes 511:3.
    pub reserved: [u8; 509],
}
assert_size!(HostBehaviorSupport => 512);

/// Sanitize Config (Base 5.27.1.19).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SanitizeConfig {
    /// NODRM: no-deallocate is answered with a warning and not with an error.
    pub nodrm: bool,
    #[bits(31)]
    __: u32,
}

/// I/O Command Set Profile (Base 5.27.1.21).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IoCommandSetProfile {
    /// IOCSCI: the index of the combination in the I/O command set data structure.
    #[bits(9)]
    pub iocsci: u16,
    #[bits(23)]
    __: u32,
}

/// Software Progress Marker (Base 5.27.1.24).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SoftwareProgressMarker {
    /// PBSLC: successive loads of pre-boot software without operating system software having cleared it.
    pub pbslc: u8,
    #[bits(24)]
    __: u32,
}

/// Host Identifier, dword 11 (Base 5.27.1.25). The data is 8 bytes, or 16 with EXHID.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct HostIdentifier {
    /// EXHID: the identifier is of 128 bits.
    pub exhid: bool,
    #[bits(31)]
    __: u32,
}

/// Reservation Notification Mask (Base 5.27.1.26); a set bit suppresses the notification.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ReservationNotificationMask {
    #[bits(1)]
    __: u8,
    /// REGPRE: registration preempted.
    pub regpre: bool,
    /// RESREL: reservation released.
    pub resrel: bool,
    /// RESPRE: reservation preempted.
    pub respre: bool,
    #[bits(28)]
    __: u32,
}

/// Reservation Persistence (Base 5.27.1.27).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ReservationPersistence {
    /// PTPL: reservations persist through power loss.
    pub ptpl: bool,
    #[bits(31)]
    __: u32,
}

/// Namespace Write Protection Config (Base 5.27.1.28).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceWriteProtectionConfig {
    /// The write protection state.
    #[bits(3)]
    pub state: WriteProtectionState,
    #[bits(29)]
    __: u32,
}

open_enum! {
    /// Namespace write protection states (Base 5.27.1.28).
    pub struct WriteProtectionState(u8) {
        /// Not protected.
        NONE = 0,
        /// Write protected.
        WRITE_PROTECT = 1,
        /// Write protected until the next power cycle.
        WRITE_PROTECT_UNTIL_POWER_CYCLE = 2,
        /// Write protected for ever.
        PERMANENT_WRITE_PROTECT = 3,
    }
}
