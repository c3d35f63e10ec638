//! Does KVM work here? That /dev/kvm can be opened proves nothing (there are machines whose KVM starts a guest and then
//! cannot run its kernel), so a guest is booted to see.

use super::{Accel, Builder};
use crate::Assets;
use std::fs;
use std::time::Duration;

/// Several times what a boot takes where KVM works. Too little costs speed and nothing else.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a failure is remembered: there may have been much else to do, or another hypervisor had the processor.
const DOUBT: Duration = Duration::from_secs(3600);

/// Boots a guest, or remembers what came of it since the host's last boot.
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
    let memory = assets.cache.join("kvm-verdict");
    let remembered = fs::read_to_string(&memory).unwrap_or_default();
    let age =
        fs::metadata(&memory).and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
    match remembered.split_once('\n').filter(|(of, _)| *of == key) {
        Some((_, "works")) => return true,
        Some(_) if age.is_some_and(|age| age < DOUBT) => return false,
        _ => {}
    }
    let works = Builder::new().accel(Accel::Kvm).boot_timeout(PATIENCE).start_with(assets).is_ok();
    let _ = fs::write(&memory, format!("{key}\n{}", if works { "works" } else { "does not work" }));
    works
}
