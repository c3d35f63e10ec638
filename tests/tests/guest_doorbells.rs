//! A guest whose doorbells are not mapped: Linux stores into its shadow doorbells, and rings only when it has to.

use qemu_configs::Guest;
use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};

fn works(shadow_doorbells: bool) {
    let config = format!(
        "[devices.disk]\ntype = \"memory\"\nsize = \"64M\"\n\
         [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{{ device = \"disk\" }}]\n\
         doorbells = \"trapped\"\nshadow_doorbells = {shadow_doorbells}\n"
    );
    let server = Server::config(&config, &["vm.sock"]);
    let vm = Vm::start(Guest::builder().disk(server.socket("vm.sock")));
    let oacs = vm.ok("nvme id-ctrl /dev/nvme0 | grep oacs");
    let (_, oacs) = oacs.trim().rsplit_once([' ', 'x']).expect("a line with a number");
    let oacs = u16::from_str_radix(oacs, 16).expect("hexadecimal");
    assert_eq!(oacs & 1 << 8 != 0, shadow_doorbells, "Doorbell Buffer Config");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=16 --size=4M");
    vm.ok("nvme reset /dev/nvme0");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=1 --size=1M");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}

#[test]
fn trapped_doorbells() {
    works(false);
}

#[test]
fn trapped_doorbells_with_shadows() {
    works(true);
}
