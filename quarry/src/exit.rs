//! What the process's exit status means.

/// All went well; a server ended because it was asked to, with everything flushed.
pub const OK: u8 = 0;
/// The server could not start, or something failed while it ran or ended.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The configuration has mistakes; nothing was started.
pub const CONFIG: u8 = 3;
/// A thread of the data path panicked: the process ends at once, because guests would hang otherwise.
pub const PANIC: u8 = 101;
/// A second SIGINT or SIGTERM ended the server before it had flushed (128 + the signal's number).
pub const fn signalled(signal: u8) -> u8 {
    128 + signal
}

/// Ends the process at once, with what was logged before. Nothing else of it comes to an end, destructors of libraries
/// included: those would take away what threads of theirs use that cannot be waited for.
pub fn at_once(status: u8) -> ! {
    crate::logging::flush();
    // SAFETY: ends the process; whatever invariants it has end with it.
    unsafe { libc::_exit(status.into()) }
}
