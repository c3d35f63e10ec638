//! [`Security`]: what a device answers to security protocols (SPC-5 SECURITY PROTOCOL IN and OUT; NVMe Base 5.25 and 5.26,
//! Security Receive and Security Send). A device that is a security subsystem (a TCG TPer) gives it out by
//! [`Device::security`](crate::Device::security); layers above pass it on.

/// One command of a security protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityCommand {
    /// SECURITY PROTOCOL (SECP): 00h information, 01h and 02h TCG.
    pub protocol: u8,
    /// SECURITY PROTOCOL SPECIFIC (SPSP), as a number: for TCG the ComID.
    pub specific: u16,
    /// Which way the data goes.
    pub transfer: SecurityTransfer,
}

/// Which way a command's data goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecurityTransfer {
    /// Security Send, IF-SEND: these bytes, all of the transfer length.
    Send(Vec<u8>),
    /// Security Receive, IF-RECV: at most so many bytes, the allocation length.
    Receive(u32),
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecurityError {
    /// Protocol, ComID or length are not served. Nothing has changed. (NVMe: Invalid Field in Command.)
    InvalidField,
    /// Not in this state of the ComID: the synchronous protocol was violated. (NVMe: Command Sequence Error.)
    Sequence,
    /// A defect, or the medium of the security state does not answer. (NVMe: Internal Error.)
    Internal,
}

/// Called once, on any thread, with the data of a Receive (never more than was asked for, and nothing for a Send).
pub type SecurityReply = Box<dyn FnOnce(Result<Vec<u8>, SecurityError>) + Send>;

/// What happened to the controllers through which commands come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecurityEvent {
    /// A controller went down by a reset of its own: CC.EN was cleared, NSSR was written.
    ControllerReset,
    /// The VMM reset a controller's function: a virtual machine that reboots.
    FunctionReset,
    /// The last client has gone: the virtual machine ended, or the device was unplugged.
    Detached,
}

/// A security subsystem: shared by all controllers, which call it from their reactors.
pub trait Security: Send + Sync {
    /// Starts a command. Does not block; commands and events are handled in the order of the calls.
    fn submit(&self, command: SecurityCommand, reply: SecurityReply);

    /// Tells what happened. Does not block.
    fn event(&self, event: SecurityEvent);
}
