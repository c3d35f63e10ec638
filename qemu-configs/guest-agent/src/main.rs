//! The test guest's agent. As PID 1 it loads the kernel modules, mounts the root image with a writable overlay, moves
//! there and starts itself again as the server of the host's requests: JSON lines over the virtio-serial port "agent".
//! When the server ends, the machine is switched off: the host then sees QEMU end instead of a guest that hangs.
#![forbid(unsafe_code)]

mod boot;
mod serve;

use rustix::process::WaitOptions;
use rustix::system::{RebootCommand, reboot};

/// Where the agent's own program lies after the move to the real root (/init is gone then).
const SELF: &str = "/run/agent";

fn main() {
    if std::process::id() != 1 {
        serve::serve();
    }
    boot::boot();
    if let Err(e) = std::process::Command::new(SELF).spawn() {
        boot::say(&format!("{SELF}: {e}"));
        end(RebootCommand::PowerOff);
    }
    // PID 1 reaps what others leave behind, until its one child of its own ends: then nobody is left to wait for.
    while !matches!(rustix::process::wait(WaitOptions::empty()), Err(rustix::io::Errno::CHILD)) {}
    boot::say("the server ended");
    end(RebootCommand::PowerOff)
}

/// Switches off or restarts the machine.
fn end(how: RebootCommand) -> ! {
    rustix::fs::sync();
    let _ = reboot(how);
    loop {
        std::thread::park();
    }
}
