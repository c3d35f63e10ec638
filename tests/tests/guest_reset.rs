//! Resets of every kind, with and without I/O under way: the disk and its data come through.

use qemu_configs::Guest;
use quarry_tests::guest::{PATIENCE, assert_no_warnings};
use quarry_tests::{Server, Vm};

/// Told by the guest's shell: there was no fio any more.
const FIO_ENDED: i32 = 77;

/// The disk's place on the PCI bus.
const PCI: &str = "/sys/class/nvme/nvme0/device";

/// Work for some seconds, verified, over the first half of the disk.
const LOAD: &str =
    "--filename=/dev/nvme0n1 --rw=randwrite --bssplit=4k/60:64k/30:1M/10 --iodepth=16 --size=32M --loops=3";

/// Marks the second half of the disk, which nothing else writes to.
fn mark(vm: &Vm) -> String {
    vm.ok("head -c 4M /dev/urandom | dd of=/dev/nvme0n1 bs=1M seek=64 oflag=direct iflag=fullblock 2>&1");
    marked(vm)
}

fn marked(vm: &Vm) -> String {
    vm.ok("dd if=/dev/nvme0n1 bs=1M skip=64 count=4 iflag=direct | sha256sum")
}

/// Runs `reset` several times while fio runs; none of what fio wrote may be lost.
fn under_load(vm: &Vm, reset: &str) {
    // Between two resets work gets done, else the first ones are all that is seen.
    let command = format!(
        "completed() {{ awk '{{print $1 + $5}}' /sys/block/nvme0n1/stat; }}; was=$(completed); \
         until [ $(completed) -ge $((was + 20)) ]; do pgrep -x fio > /dev/null || exit {FIO_ENDED}; sleep 0.05; done; \
         {reset}"
    );
    let mut resets = 0;
    // fio may be faster than the resets: once more, then.
    for _ in 0..20 {
        let load = vm.begin_fio(LOAD);
        while resets < 5 {
            let output = vm.guest().sh(&command, PATIENCE).unwrap();
            if output.code == Some(FIO_ENDED) {
                break;
            }
            assert_eq!(output.code, Some(0), "{output:?}");
            resets += 1;
        }
        vm.end_fio(load);
        if resets >= 3 {
            break;
        }
    }
    assert!(resets >= 3, "only {resets} resets happened while fio ran");
    assert_eq!(vm.ok("cat /sys/class/nvme/nvme0/state").trim(), "live");
}

#[test]
fn resets_under_load_lose_nothing() {
    let server = Server::disk("file:disk.img,size=128M");
    // With this the kernel notices a lost command after 10 s instead of 30 s.
    let guest = Guest::builder().disk(server.socket("vm.sock")).cmdline("nvme_core.io_timeout=10");
    let vm = Vm::start(guest);
    let data = mark(&vm);

    under_load(&vm, "nvme reset /dev/nvme0");
    assert_eq!(marked(&vm), data, "after controller resets");

    let methods = vm.ok(&format!("cat {PCI}/reset_method"));
    assert!(methods.split_whitespace().any(|method| method == "flr"), "function level reset in {methods}");
    vm.ok(&format!("echo flr > {PCI}/reset_method"));
    under_load(&vm, &format!("echo 1 > {PCI}/reset"));
    assert_eq!(marked(&vm), data, "after function level resets");
    vm.assert_no_complaints();

    // The driver lets go of the function and takes it again.
    let address = vm.ok(&format!("basename $(readlink -f {PCI})"));
    let address = address.trim();
    for _ in 0..3 {
        vm.ok(&format!("echo {address} > /sys/bus/pci/drivers/nvme/unbind"));
        vm.wait_no_disk();
        vm.ok(&format!("echo {address} > /sys/bus/pci/drivers/nvme/bind"));
        vm.wait_disk("nvme0n1");
        assert_eq!(marked(&vm), data, "after unbind and bind");
    }
    vm.assert_no_complaints();

    // A subsystem reset disables the controller behind the kernel's back. The next command gets no answer; the kernel
    // looks at CSTS, sees CSTS.NSSRO and starts the controller again.
    vm.ok("nvme subsystem-reset /dev/nvme0");
    assert_eq!(marked(&vm), data, "after a subsystem reset");
    let complaints = vm.complaints();
    assert!(complaints.contains("controller is down; will reset: CSTS=0x10"), "{complaints}");
    assert_eq!(vm.ok("cat /sys/class/nvme/nvme0/state").trim(), "live");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=8M");
    // And with the kernel told so at once.
    vm.ok("nvme subsystem-reset /dev/nvme0 && nvme reset /dev/nvme0");
    assert_eq!(marked(&vm), data, "after a subsystem reset and a controller reset");

    vm.poweroff();
    assert_no_warnings(&server.stop());
}

#[test]
fn restart_of_the_guest_keeps_the_disk() {
    let server = Server::disk("file:disk.img,size=128M");
    let vm = Vm::start(Guest::builder().disk(server.socket("vm.sock")).reboots(true));
    let data = mark(&vm);
    vm.guest().reboot().unwrap();
    vm.wait_disk("nvme0n1");
    assert_eq!(marked(&vm), data, "after the guest's own restart");
    // The hard way: the machine is reset in the middle of I/O.
    let load = vm.guest().begin(
        "fio --name=load --filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=16 --size=48M --direct=1 \
         --ioengine=io_uring --time_based --runtime=600",
        PATIENCE,
    );
    vm.wait_for("[ $(awk '{print $5}' /sys/block/nvme0n1/stat) -gt 200 ]");
    drop(load);
    vm.guest().reboot().unwrap();
    vm.wait_disk("nvme0n1");
    assert_eq!(marked(&vm), data, "after a restart in the middle of I/O");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=8M");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}
