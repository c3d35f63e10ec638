//! Does KVM work here? That /dev/kvm can be opened proves nothing (there are machines whose KVM starts a guest and then
//! cannot run its kernel), so a guest is booted to see.

use super::{Accel, Builder};
use crate::Assets;
use std::fs;
use std::time::Duration;

/// Several times what a boot takes where KVM works. Too little costs speed and nothing else.
const PATIENCE: Duration = Duration::from_secs(20);

/// Boots a guest, or remembers that one booted since the host did. (One that did not may do so next time: there was
/// much else to do, or another hypervisor had the processor.)
pub fn works(assets: &Assets) -> bool {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("    /dev/kvm is there, but not for this user: usermod -aG kvm USER, or run as root");
            return false;
        }
        Err(_) => return false,
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let key = format!("{} {}", boot.trim(), assets.qemu.display());
    let memory = assets.cache.join("kvm-works");
    if fs::read_to_string(&memory).is_ok_and(|remembered| remembered == key) {
        return true;
    }
    let works = Builder::new().accel(Accel::Kvm).boot_timeout(PATIENCE).start_with(assets).is_ok();
    if works {
        let _ = fs::write(&memory, key);
    }
    works
}
