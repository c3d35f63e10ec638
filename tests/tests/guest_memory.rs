//! A guest whose memory is its own: the server cannot reach it, says so once, and stays a server for others.

use qemu_configs::Guest;
use quarry_tests::guest::warnings;
use quarry_tests::{Server, Vm};

#[test]
fn memory_that_is_not_shared_is_told_once_and_harms_nobody() {
    let mut server = Server::disk("mem:64M");
    let socket = server.socket("vm.sock");
    // The later machine option wins: memory without a descriptor in place of the shared one.
    let private = ["-M", "memory-backend=private", "-object", "memory-backend-ram,id=private,size=512M"];
    // Linux looks at a controller that does not become ready for CAP.TO; the boot goes on afterwards.
    let vm = Vm::start(Guest::builder().args(private).disk(&socket));
    vm.wait_for("dmesg | grep -q 'nvme nvme0: Device not ready'");
    assert_eq!(
        vm.ok("ls /sys/block | grep -c nvme || true").trim(),
        "0",
        "a disk that cannot work is not there"
    );
    vm.poweroff();

    assert!(server.is_running(), "{}", server.log());
    let log = server.wait_for_log("share=on");
    let told = warnings(&log);
    assert_eq!(told.len(), 1, "firmware and kernel both tried, one line is enough:\n{log}");
    assert!(told[0].contains("share=on"), "the line names the remedy:\n{log}");

    // A guest that shares its memory finds all well.
    let vm = Vm::with_disks([&socket]);
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=16M");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_eq!(warnings(&server.stop()).len(), 1, "and nothing more is said");
}
