//! A guest behind an IOMMU of its own: each transfer is mapped before and unmapped after it.

use qemu_configs::Guest;
use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};

#[test]
fn fio_verifies_behind_a_guests_iommu() {
    let server = Server::disk("file:disk.img,size=64M");
    let guest = Guest::builder()
        .disk(server.socket("vm.sock"))
        .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
        // Strict: no mapping outlives its transfer.
        .cmdline("intel_iommu=on iommu.strict=1");
    let vm = Vm::start(guest);
    let kind = vm.ok("cat /sys/class/nvme/nvme0/device/iommu_group/type");
    assert_eq!(kind.trim(), "DMA", "the disk's transfers are translated, and strictly");
    let disk = "--filename=/dev/nvme0n1";
    vm.fio(&format!("{disk} --rw=randwrite --bssplit=512/30:4k/40:64k/20:512k/10 --iodepth=8 --size=4M"));
    vm.fio(&format!("{disk} --rw=randrw --bs=4k --iodepth=16 --size=2M --offset=16M"));
    vm.fio(&format!("{disk} --rw=write --bs=1M --iodepth=4 --size=8M --offset=32M"));
    vm.ok("nvme reset /dev/nvme0");
    vm.fio(&format!("{disk} --rw=randwrite --bs=4k --iodepth=4 --size=1M"));
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}
