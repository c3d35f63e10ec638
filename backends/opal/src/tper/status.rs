//! [`Status`]: how a method ended (TCG Core 2.01, 5.1.5, table 166).

/// Why a method did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Nobody in this session may do that; also where there is no such object or method.
    NotAuthorized = 0x01,
    /// Another session has the SP open for writing.
    SpBusy = 0x03,
    /// There are as many sessions as there can be.
    NoSessionsAvailable = 0x07,
    /// A name exists already.
    UniquenessConflict = 0x08,
    /// A table is full.
    InsufficientSpace = 0x09,
    /// Parameters are missing, malformed, or have values that are not possible.
    InvalidParameter = 0x0C,
    /// A defect, or the medium of the security state does not answer.
    TperMalfunction = 0x0F,
    /// A transaction cannot be started.
    TransactionFailure = 0x10,
    /// The answer does not fit into what the host can take.
    ResponseOverflow = 0x11,
    /// Too many wrong PINs.
    AuthorityLockedOut = 0x12,
    /// Anything else.
    Fail = 0x3F,
}

/// The result of a method.
pub type Outcome<T> = Result<T, Status>;
