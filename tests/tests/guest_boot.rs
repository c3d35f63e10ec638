//! Machines that boot from the disk: firmware's own NVMe drivers, then the boot loader's way, then the kernel's.

use std::fs;

use qemu_configs::{Assets, Boot, Firmware, Guest};
use quarry_tests::guest::{PATIENCE, assert_no_warnings};
use quarry_tests::{Server, Vm};

fn boots(firmware: Firmware) {
    let files = tempfile::tempdir().unwrap();
    let image = files.path().join("boot.img");
    fs::copy(Assets::locate().unwrap().boot_disk, &image).unwrap();
    let server = Server::disk(&format!("file:{}", image.display()));
    let vm = Vm::start(Guest::builder().boot(Boot::Firmware(firmware)).disk(server.socket("vm.sock")));
    let root = vm.ok("cat /proc/cmdline");
    assert!(root.contains("groot=/dev/nvme0n1p3:erofs"), "{root}");
    let efi = vm.guest().sh("[ -d /sys/firmware/efi ]", PATIENCE).unwrap();
    assert_eq!(efi.code == Some(0), firmware == Firmware::Ovmf);
    assert_eq!(
        vm.ok("ls /sys/block | grep -E '^(nvme[0-9]+n|vd|sd)'").trim(),
        "nvme0n1",
        "there is no other disk"
    );
    // Programs run from it, and it can be written.
    vm.ok("fio --version && head -c 1M /dev/urandom > /tmp/a && dd if=/tmp/a of=/dev/nvme0n1p2 bs=1M seek=60 oflag=direct");
    vm.ok("dd if=/dev/nvme0n1p2 bs=1M skip=60 count=1 iflag=direct | cmp - /tmp/a");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}

#[test]
fn machine_boots_from_its_disk_with_seabios() {
    boots(Firmware::SeaBios);
}

#[test]
fn machine_boots_from_its_disk_with_ovmf() {
    boots(Firmware::Ovmf);
}
