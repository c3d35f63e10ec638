//! Status codes (Base 3.3.3.2.1, NVM 3.1).
//!
//! A [`Status`] is the 15-bit status field of a completion, without the phase. The constants carry code type and code
//! only; the retry delay, "more" and "do not retry" are added with [`Status::with_crd`], [`Status::with_more`] and
//! [`Status::with_dnr`].

use core::fmt;

/// Status field: SC in bits 7:0, SCT in bits 10:8, CRD in bits 12:11, M in bit 13, DNR in bit 14.
///
/// Equality is of the whole field; [`Status::is`] compares the code alone.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(u16);

open_enum! {
    /// SCT: status code type (Base 3.3.3.2.1).
    pub struct StatusCodeType(u8) {
        /// Generic command status.
        GENERIC = 0,
        /// Command specific status.
        COMMAND_SPECIFIC = 1,
        /// Media and data integrity errors.
        MEDIA_AND_DATA_INTEGRITY = 2,
        /// Path related status.
        PATH_RELATED = 3,
        /// Vendor specific.
        VENDOR = 7,
    }
}

const CODE_MASK: u16 = 0x07FF;
const CRD_SHIFT: u16 = 11;
const CRD_MASK: u16 = 0b11 << CRD_SHIFT;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;
const FIELD_MASK: u16 = 0x7FFF;

impl Status {
    /// A status of any type and code; bits of `sct` above the lowest three are dropped.
    #[inline]
    pub const fn new(sct: StatusCodeType, sc: u8) -> Self {
        Self(((sct.0 as u16 & 0b111) << 8) | sc as u16)
    }

    /// Any wire value of the 15-bit field; bit 15 is dropped.
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & FIELD_MASK)
    }

    /// The 15-bit field.
    #[inline]
    pub const fn into_bits(self) -> u16 {
        self.0
    }

    /// SC: the status code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// SCT: the status code type.
    pub const fn sct(self) -> StatusCodeType {
        StatusCodeType(((self.0 >> 8) & 0b111) as u8)
    }

    /// The same code without CRD, M and DNR, as the constants are.
    pub const fn code(self) -> Self {
        Self(self.0 & CODE_MASK)
    }

    /// Whether type and code equal another's, whatever CRD, M and DNR are.
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// Whether the command succeeded.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.code().0 == 0
    }

    /// DNR: the same command, sent again, would fail again.
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// With DNR set.
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// M: the error information log has more about it.
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// With M set.
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// CRD: which of Identify Controller's CRDT1 to CRDT3 to wait before a retry; 0 for none.
    pub const fn crd(self) -> u8 {
        ((self.0 & CRD_MASK) >> CRD_SHIFT) as u8
    }

    /// With CRD set to 0..=3; higher bits are dropped.
    pub const fn with_crd(self, crd: u8) -> Self {
        Self((self.0 & !CRD_MASK) | (((crd & 0b11) as u16) << CRD_SHIFT))
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "Status({:?}, {:#04x})", self.sct(), self.sc())?,
        }
        self.fmt_flags(f)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text)?,
            None => write!(f, "status code type {:#x}, status code {:#04x}", self.sct().0, self.sc())?,
        }
        self.fmt_flags(f)
    }
}

impl Status {
    fn fmt_flags(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.crd() != 0 {
            write!(f, " +CRD{}", self.crd())?;
        }
        if self.more() {
            f.write_str(" +M")?;
        }
        if self.dnr() {
            f.write_str(" +DNR")?;
        }
        Ok(())
    }
}

macro_rules! statuses {
    ($($sct:literal, $sc:literal, $name:ident, $text:literal;)*) => {
        impl Status {
            $(
                #[doc = concat!($text, " (type ", stringify!($sct), "h, code ", stringify!($sc), ").")]
                pub const $name: Self = Self(($sct << 8) | $sc);
            )*

            /// Every status that has a name here.
            pub const NAMED: &'static [Self] = &[$(Self::$name),*];

            /// The constant's name, if the code has one here.
            pub const fn name(self) -> Option<&'static str> {
                match (self.sct().0, self.sc()) {
                    $(($sct, $sc) => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The specification's name of the code, if it is known here.
            pub const fn text(self) -> Option<&'static str> {
                match (self.sct().0, self.sc()) {
                    $(($sct, $sc) => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    // Generic command status (Base 3.3.3.2.1.1).
    0, 0x00, SUCCESS, "Successful Completion";
    0, 0x01, INVALID_COMMAND_OPCODE, "Invalid Command Opcode";
    0, 0x02, INVALID_FIELD_IN_COMMAND, "Invalid Field in Command";
    0, 0x03, COMMAND_ID_CONFLICT, "Command ID Conflict";
    0, 0x04, DATA_TRANSFER_ERROR, "Data Transfer Error";
    0, 0x05, ABORTED_POWER_LOSS_NOTIFICATION, "Commands Aborted due to Power Loss Notification";
    0, 0x06, INTERNAL_ERROR, "Internal Error";
    0, 0x07, COMMAND_ABORT_REQUESTED, "Command Abort Requested";
    0, 0x08, COMMAND_ABORTED_SQ_DELETION, "Command Aborted due to SQ Deletion";
    0, 0x09, COMMAND_ABORTED_FAILED_FUSED, "Command Aborted due to Failed Fused Command";
    0, 0x0A, COMMAND_ABORTED_MISSING_FUSED, "Command Aborted due to Missing Fused Command";
    0, 0x0B, INVALID_NAMESPACE_OR_FORMAT, "Invalid Namespace or Format";
    0, 0x0C, COMMAND_SEQUENCE_ERROR, "Command Sequence Error";
    0, 0x0D, INVALID_SGL_SEGMENT_DESCRIPTOR, "Invalid SGL Segment Descriptor";
    0, 0x0E, INVALID_NUMBER_OF_SGL_DESCRIPTORS, "Invalid Number of SGL Descriptors";
    0, 0x0F, DATA_SGL_LENGTH_INVALID, "Data SGL Length Invalid";
    0, 0x10, METADATA_SGL_LENGTH_INVALID, "Metadata SGL Length Invalid";
    0, 0x11, SGL_DESCRIPTOR_TYPE_INVALID, "SGL Descriptor Type Invalid";
    0, 0x12, INVALID_USE_OF_CONTROLLER_MEMORY_BUFFER, "Invalid Use of Controller Memory Buffer";
    0, 0x13, PRP_OFFSET_INVALID, "PRP Offset Invalid";
    0, 0x14, ATOMIC_WRITE_UNIT_EXCEEDED, "Atomic Write Unit Exceeded";
    0, 0x15, OPERATION_DENIED, "Operation Denied";
    0, 0x16, SGL_OFFSET_INVALID, "SGL Offset Invalid";
    0, 0x18, HOST_IDENTIFIER_INCONSISTENT_FORMAT, "Host Identifier Inconsistent Format";
    0, 0x19, KEEP_ALIVE_TIMER_EXPIRED, "Keep Alive Timer Expired";
    0, 0x1A, KEEP_ALIVE_TIMEOUT_INVALID, "Keep Alive Timeout Invalid";
    0, 0x1B, COMMAND_ABORTED_PREEMPT_AND_ABORT, "Command Aborted due to Preempt and Abort";
    0, 0x1C, SANITIZE_FAILED, "Sanitize Failed";
    0, 0x1D, SANITIZE_IN_PROGRESS, "Sanitize In Progress";
    0, 0x1E, SGL_DATA_BLOCK_GRANULARITY_INVALID, "SGL Data Block Granularity Invalid";
    0, 0x1F, COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB, "Command Not Supported for Queue in CMB";
    0, 0x20, NAMESPACE_IS_WRITE_PROTECTED, "Namespace is Write Protected";
    0, 0x21, COMMAND_INTERRUPTED, "Command Interrupted";
    0, 0x22, TRANSIENT_TRANSPORT_ERROR, "Transient Transport Error";
    0, 0x23, COMMAND_PROHIBITED_BY_LOCKDOWN, "Command Prohibited by Command and Feature Lockdown";
    0, 0x24, ADMIN_COMMAND_MEDIA_NOT_READY, "Admin Command Media Not Ready";
    0, 0x80, LBA_OUT_OF_RANGE, "LBA Out of Range";
    0, 0x81, CAPACITY_EXCEEDED, "Capacity Exceeded";
    0, 0x82, NAMESPACE_NOT_READY, "Namespace Not Ready";
    0, 0x83, RESERVATION_CONFLICT, "Reservation Conflict";
    0, 0x84, FORMAT_IN_PROGRESS, "Format In Progress";

    // Command specific status (Base 3.3.3.2.1.2).
    1, 0x00, COMPLETION_QUEUE_INVALID, "Completion Queue Invalid";
    1, 0x01, INVALID_QUEUE_IDENTIFIER, "Invalid Queue Identifier";
    1, 0x02, INVALID_QUEUE_SIZE, "Invalid Queue Size";
    1, 0x03, ABORT_COMMAND_LIMIT_EXCEEDED, "Abort Command Limit Exceeded";
    1, 0x05, ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED, "Asynchronous Event Request Limit Exceeded";
    1, 0x06, INVALID_FIRMWARE_SLOT, "Invalid Firmware Slot";
    1, 0x07, INVALID_FIRMWARE_IMAGE, "Invalid Firmware Image";
    1, 0x08, INVALID_INTERRUPT_VECTOR, "Invalid Interrupt Vector";
    1, 0x09, INVALID_LOG_PAGE, "Invalid Log Page";
    1, 0x0A, INVALID_FORMAT, "Invalid Format";
    1, 0x0B, FIRMWARE_ACTIVATION_REQUIRES_CONVENTIONAL_RESET, "Firmware Activation Requires Conventional Reset";
    1, 0x0C, INVALID_QUEUE_DELETION, "Invalid Queue Deletion";
    1, 0x0D, FEATURE_IDENTIFIER_NOT_SAVEABLE, "Feature Identifier Not Saveable";
    1, 0x0E, FEATURE_NOT_CHANGEABLE, "Feature Not Changeable";
    1, 0x0F, FEATURE_NOT_NAMESPACE_SPECIFIC, "Feature Not Namespace Specific";
    1, 0x10, FIRMWARE_ACTIVATION_REQUIRES_NVM_SUBSYSTEM_RESET, "Firmware Activation Requires NVM Subsystem Reset";
    1, 0x11, FIRMWARE_ACTIVATION_REQUIRES_CONTROLLER_LEVEL_RESET, "Firmware Activation Requires Controller Level Reset";
    1, 0x12, FIRMWARE_ACTIVATION_REQUIRES_MAXIMUM_TIME_VIOLATION, "Firmware Activation Requires Maximum Time Violation";
    1, 0x13, FIRMWARE_ACTIVATION_PROHIBITED, "Firmware Activation Prohibited";
    1, 0x14, OVERLAPPING_RANGE, "Overlapping Range";
    1, 0x15, NAMESPACE_INSUFFICIENT_CAPACITY, "Namespace Insufficient Capacity";
    1, 0x16, NAMESPACE_IDENTIFIER_UNAVAILABLE, "Namespace Identifier Unavailable";
    1, 0x18, NAMESPACE_ALREADY_ATTACHED, "Namespace Already Attached";
    1, 0x19, NAMESPACE_IS_PRIVATE, "Namespace Is Private";
    1, 0x1A, NAMESPACE_NOT_ATTACHED, "Namespace Not Attached";
    1, 0x1B, THIN_PROVISIONING_NOT_SUPPORTED, "Thin Provisioning Not Supported";
    1, 0x1C, CONTROLLER_LIST_INVALID, "Controller List Invalid";
    1, 0x1D, DEVICE_SELF_TEST_IN_PROGRESS, "Device Self-test In Progress";
    1, 0x1E, BOOT_PARTITION_WRITE_PROHIBITED, "Boot Partition Write Prohibited";
    1, 0x1F, INVALID_CONTROLLER_IDENTIFIER, "Invalid Controller Identifier";
    1, 0x20, INVALID_SECONDARY_CONTROLLER_STATE, "Invalid Secondary Controller State";
    1, 0x21, INVALID_NUMBER_OF_CONTROLLER_RESOURCES, "Invalid Number of Controller Resources";
    1, 0x22, INVALID_RESOURCE_IDENTIFIER, "Invalid Resource Identifier";
    1, 0x23, SANITIZE_PROHIBITED_WHILE_PMR_ENABLED, "Sanitize Prohibited While Persistent Memory Region is Enabled";
    1, 0x24, ANA_GROUP_IDENTIFIER_INVALID, "ANA Group Identifier Invalid";
    1, 0x25, ANA_ATTACH_FAILED, "ANA Attach Failed";
    1, 0x26, INSUFFICIENT_CAPACITY, "Insufficient Capacity";
    1, 0x27, NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED, "Namespace Attachment Limit Exceeded";
    1, 0x28, PROHIBITION_OF_COMMAND_EXECUTION_NOT_SUPPORTED, "Prohibition of Command Execution Not Supported";
    1, 0x29, IO_COMMAND_SET_NOT_SUPPORTED, "I/O Command Set Not Supported";
    1, 0x2A, IO_COMMAND_SET_NOT_ENABLED, "I/O Command Set Not Enabled";
    1, 0x2B, IO_COMMAND_SET_COMBINATION_REJECTED, "I/O Command Set Combination Rejected";
    1, 0x2C, INVALID_IO_COMMAND_SET, "Invalid I/O Command Set";
    1, 0x2D, IDENTIFIER_UNAVAILABLE, "Identifier Unavailable";
    1, 0x7F, STREAM_RESOURCE_ALLOCATION_FAILED, "Stream Resource Allocation Failed";

    // Command specific status of the NVM command set (NVM 3.1).
    1, 0x80, CONFLICTING_ATTRIBUTES, "Conflicting Attributes";
    1, 0x81, INVALID_PROTECTION_INFORMATION, "Invalid Protection Information";
    1, 0x82, ATTEMPTED_WRITE_TO_READ_ONLY_RANGE, "Attempted Write to Read Only Range";
    1, 0x83, COMMAND_SIZE_LIMIT_EXCEEDED, "Command Size Limit Exceeded";

    // Media and data integrity errors (Base 3.3.3.2.1.3, NVM 3.1).
    2, 0x80, WRITE_FAULT, "Write Fault";
    2, 0x81, UNRECOVERED_READ_ERROR, "Unrecovered Read Error";
    2, 0x82, END_TO_END_GUARD_CHECK_ERROR, "End-to-end Guard Check Error";
    2, 0x83, END_TO_END_APPLICATION_TAG_CHECK_ERROR, "End-to-end Application Tag Check Error";
    2, 0x84, END_TO_END_REFERENCE_TAG_CHECK_ERROR, "End-to-end Reference Tag Check Error";
    2, 0x85, COMPARE_FAILURE, "Compare Failure";
    2, 0x86, ACCESS_DENIED, "Access Denied";
    2, 0x87, DEALLOCATED_OR_UNWRITTEN_LOGICAL_BLOCK, "Deallocated or Unwritten Logical Block";
    2, 0x88, END_TO_END_STORAGE_TAG_CHECK_ERROR, "End-to-End Storage Tag Check Error";

    // Path related status (Base 3.3.3.2.1.4).
    3, 0x00, INTERNAL_PATH_ERROR, "Internal Path Error";
    3, 0x01, ASYMMETRIC_ACCESS_PERSISTENT_LOSS, "Asymmetric Access Persistent Loss";
    3, 0x02, ASYMMETRIC_ACCESS_INACCESSIBLE, "Asymmetric Access Inaccessible";
    3, 0x03, ASYMMETRIC_ACCESS_TRANSITION, "Asymmetric Access Transition";
    3, 0x60, CONTROLLER_PATHING_ERROR, "Controller Pathing Error";
    3, 0x70, HOST_PATHING_ERROR, "Host Pathing Error";
    3, 0x71, COMMAND_ABORTED_BY_HOST, "Command Aborted By Host";
}
