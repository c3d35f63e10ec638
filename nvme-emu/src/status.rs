//! The one place where the errors of a block device and its security become NVMe status codes.

use block::ErrorKind;
use block::security::SecurityError;
use nvme_spec::status::Status;

/// The status for a failed `Io`. `write`: it was to change the medium.
pub(crate) fn from_block(kind: ErrorKind, write: bool) -> Status {
    match kind {
        ErrorKind::InvalidInput => Status::INVALID_FIELD_IN_COMMAND.with_dnr(),
        ErrorKind::OutOfRange => Status::LBA_OUT_OF_RANGE.with_dnr(),
        ErrorKind::Unsupported => Status::INVALID_COMMAND_OPCODE.with_dnr(),
        ErrorKind::ReadOnly => Status::NAMESPACE_IS_WRITE_PROTECTED.with_dnr(),
        ErrorKind::NoSpace => Status::CAPACITY_EXCEEDED.with_dnr(),
        ErrorKind::UnrecoveredRead if write => Status::WRITE_FAULT,
        ErrorKind::UnrecoveredRead => Status::UNRECOVERED_READ_ERROR,
        ErrorKind::WriteFault => Status::WRITE_FAULT,
        ErrorKind::Aborted => Status::COMMAND_ABORT_REQUESTED,
        // Command Interrupted is for hosts that asked for it (Host Behavior Support, ACRE).
        ErrorKind::Timeout => Status::INTERNAL_ERROR,
        ErrorKind::Unreachable => Status::INTERNAL_PATH_ERROR,
        ErrorKind::BadMemory => Status::DATA_TRANSFER_ERROR.with_dnr(),
        ErrorKind::AccessDenied => Status::ACCESS_DENIED.with_dnr(),
        ErrorKind::CompareMismatch => Status::COMPARE_FAILURE.with_dnr(),
        _ => Status::INTERNAL_ERROR,
    }
}

/// The status for a refused security command.
pub(crate) fn from_security(error: SecurityError) -> Status {
    match error {
        SecurityError::InvalidField => Status::INVALID_FIELD_IN_COMMAND.with_dnr(),
        SecurityError::Sequence => Status::COMMAND_SEQUENCE_ERROR,
        SecurityError::Internal => Status::INTERNAL_ERROR,
    }
}
