//! Log pages of optional abilities (Base 5.16.1): asymmetric namespace access, reservation notification, sanitize
//! status, device self-test.
//!
//! Telemetry, persistent events, endurance groups and predictable latency are not laid out here.

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The head of the Asymmetric Namespace Access log, 16 bytes, LID 0Ch (Base 5.16.1.13). Group descriptors follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnaLogHeader {
    /// Bytes 7:0: change count.
    pub change_count: U64,
    /// Bytes 9:8: the number of group descriptors.
    pub descriptors: U16,
    /// Bytes 15:10.
    pub reserved10: [u8; 6],
}
assert_size!(AnaLogHeader => 16);

/// The head of an ANA group descriptor, 32 bytes; `nsids` namespace identifiers of 4 bytes follow (Base 5.16.1.13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AnaGroupDescriptor {
    /// Bytes 3:0: ANA group identifier.
    pub group: U32,
    /// Bytes 7:4: the number of namespace identifiers.
    pub nsids: U32,
    /// Bytes 15:8: change count.
    pub change_count: U64,
    /// Byte 16: bits 3:0, the state.
    pub state: AnaState,
    /// Bytes 31:17.
    pub reserved17: [u8; 15],
}
assert_size!(AnaGroupDescriptor => 32);

open_enum! {
    /// Asymmetric namespace access states (Base 8.1, 5.16.1.13).
    pub struct AnaState(u8) {
        /// Optimized.
        OPTIMIZED = 0x1,
        /// Non-optimized.
        NON_OPTIMIZED = 0x2,
        /// Inaccessible.
        INACCESSIBLE = 0x3,
        /// Persistent loss.
        PERSISTENT_LOSS = 0x4,
        /// Change.
        CHANGE = 0xF,
    }
}

/// Reservation Notification, 64 bytes, LID 80h (Base 5.16.1.24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReservationNotificationLog {
    /// Bytes 7:0: log page count; 0 if the log is empty.
    pub count: U64,
    /// Byte 8: the type.
    pub kind: ReservationNotificationType,
    /// Byte 9: how many more log pages are available.
    pub available: u8,
    /// Bytes 11:10.
    pub reserved10: [u8; 2],
    /// Bytes 15:12: the namespace.
    pub nsid: U32,
    /// Bytes 63:16.
    pub reserved16: [u8; 48],
}
assert_size!(ReservationNotificationLog => 64);

open_enum! {
    /// Reservation notification types (Base 5.16.1.24).
    pub struct ReservationNotificationType(u8) {
        /// The log is empty.
        EMPTY = 0,
        /// Registration preempted.
        REGISTRATION_PREEMPTED = 1,
        /// Reservation released.
        RESERVATION_RELEASED = 2,
        /// Reservation preempted.
        RESERVATION_PREEMPTED = 3,
    }
}

/// Sanitize Status, 512 bytes, LID 81h (Base 5.16.1.25).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SanitizeStatusLog {
    /// Bytes 1:0, SPROG: progress in 1/65536; FFFFh when nothing runs.
    pub sprog: U16,
    /// Bytes 3:2, SSTAT.
    pub sstat: SanitizeStatus,
    /// Bytes 7:4, SCDW10: dword 10 of the Sanitize command that started it.
    pub scdw10: U32,
    /// Bytes 11:8: estimated seconds for overwrite; FFFFFFFFh if not reported.
    pub overwrite_seconds: U32,
    /// Bytes 15:12: estimated seconds for block erase.
    pub block_erase_seconds: U32,
    /// Bytes 19:16: estimated seconds for crypto erase.
    pub crypto_erase_seconds: U32,
    /// Bytes 23:20: estimated seconds for overwrite without deallocation.
    pub overwrite_no_deallocate_seconds: U32,
    /// Bytes 27:24: estimated seconds for block erase without deallocation.
    pub block_erase_no_deallocate_seconds: U32,
    /// Bytes 31:28: estimated seconds for crypto erase without deallocation.
    pub crypto_erase_no_deallocate_seconds: U32,
    /// Bytes 511:32.
    pub reserved32: [u8; 480],
}
assert_size!(SanitizeStatusLog => 512);

/// SSTAT (Base 5.16.1.25).
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SanitizeStatus {
    /// The state of the most recent operation.
    #[bits(3)]
    pub state: SanitizeState,
    /// Overwrite passes completed.
    #[bits(5)]
    pub passes: u8,
    /// GDE: nothing was written since manufacture or the last successful sanitize.
    pub global_data_erased: bool,
    #[bits(7)]
    __: u8,
}

open_enum! {
    /// The state of the most recent sanitize operation (Base 5.16.1.25).
    pub struct SanitizeState(u8) {
        /// Never sanitized.
        NEVER = 0,
        /// Completed successfully.
        COMPLETED = 1,
        /// In progress.
        IN_PROGRESS = 2,
        /// Failed.
        FAILED = 3,
        /// Completed, and deallocated although asked not to.
        COMPLETED_WITH_DEALLOCATION = 4,
    }
}

/// Device Self-test log, 564 bytes, LID 06h (Base 5.16.1.7).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceSelfTestLog {
    /// Byte 0: bits 3:0, the test in progress (a [`crate::admin::SelfTestCode`]); 0 for none.
    pub current_operation: u8,
    /// Byte 1: bits 6:0, percent completed.
    pub current_completion: u8,
    /// Bytes 3:2.
    pub reserved2: [u8; 2],
    /// Bytes 563:4: results, the newest first.
    pub results: [SelfTestResult; 20],
}
assert_size!(DeviceSelfTestLog => 564);

/// Self-test result, 28 bytes (Base 5.16.1.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SelfTestResult {
    /// Byte 0: status.
    pub status: SelfTestStatus,
    /// Byte 1: the first segment that failed.
    pub segment: u8,
    /// Byte 2: which of the fields below are valid.
    pub valid: SelfTestValid,
    /// Byte 3.
    pub reserved3: u8,
    /// Bytes 11:4: power on hours.
    pub power_on_hours: U64,
    /// Bytes 15:12: the namespace that failed.
    pub nsid: U32,
    /// Bytes 23:16: the logical block that failed.
    pub failing_lba: U64,
    /// Byte 24: bits 2:0, status code type.
    pub status_code_type: u8,
    /// Byte 25: status code.
    pub status_code: u8,
    /// Bytes 27:26.
    pub vendor: [u8; 2],
}
assert_size!(SelfTestResult => 28);

/// Byte 0 of a self-test result (Base 5.16.1.7).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SelfTestStatus {
    /// Bits 3:0: the outcome.
    #[bits(4)]
    pub outcome: SelfTestOutcome,
    /// Bits 7:4: the test.
    #[bits(4)]
    pub code: crate::admin::SelfTestCode,
}

open_enum! {
    /// Outcome of a self-test (Base 5.16.1.7).
    pub struct SelfTestOutcome(u8) {
        /// No error.
        PASSED = 0x0,
        /// Aborted by a Device Self-test command.
        ABORTED_BY_COMMAND = 0x1,
        /// Aborted by a controller level reset.
        ABORTED_BY_RESET = 0x2,
        /// Aborted because a namespace went away.
        ABORTED_BY_NAMESPACE_REMOVAL = 0x3,
        /// Aborted by Format NVM.
        ABORTED_BY_FORMAT = 0x4,
        /// A fatal or unknown error.
        FATAL = 0x5,
        /// Failed, segment unknown.
        FAILED_UNKNOWN_SEGMENT = 0x6,
        /// Failed in the segment reported.
        FAILED = 0x7,
        /// Aborted for an unknown reason.
        ABORTED_UNKNOWN = 0x8,
        /// Aborted by Sanitize.
        ABORTED_BY_SANITIZE = 0x9,
        /// The entry is not used.
        UNUSED = 0xF,
    }
}

/// Byte 2 of a self-test result (Base 5.16.1.7).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SelfTestValid {
    /// NSID is valid.
    pub nsid: bool,
    /// The failing LBA is valid.
    pub failing_lba: bool,
    /// The status code type is valid.
    pub status_code_type: bool,
    /// The status code is valid.
    pub status_code: bool,
    #[bits(4)]
    __: u8,
}
