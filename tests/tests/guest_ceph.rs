//! Guests on a real Ceph cluster, on which things go wrong.

use std::time::Duration;

use ceph_cluster::{Cluster, Store};
use qemu_configs::Guest;
use quarry_tests::ceph::{Bed, eventually};
use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};

const IMAGE: &str = "type = \"rbd\"\npool = \"rbd\"\nimage = \"disk\"";

/// Longer than a monitor is missed.
const SILENCE: Duration = Duration::from_secs(20);

fn blocks(vm: &Vm) -> u64 {
    vm.ok("cat /sys/block/nvme0n1/size").trim().parse().expect("a number")
}

#[test]
fn an_osd_that_dies_a_silent_monitor_and_a_new_size_are_no_errors() {
    let Some(bed) = Bed::start(Cluster::builder().store(Store::Blue)) else { return };
    bed.ok("rbd create --size 128M rbd/disk");
    let server = Server::config(&bed.config(IMAGE), &["vm.sock"]);
    let vm = Vm::with_disks([server.socket("vm.sock")]);
    vm.wait_disk("nvme0n1");
    let load = vm.begin_fio(
        "--filename=/dev/nvme0n1 --rw=randrw --bssplit=4k/60:64k/40 --iodepth=8 --size=48M --verify_backlog=32 \
         --time_based --runtime=50",
    );
    let written =
        || vm.ok("awk '{print $5}' /sys/block/nvme0n1/stat").trim().parse::<u64>().expect("a number");
    let goes_on = |what: &str| {
        let before = written();
        eventually(what, || written() > before + 20);
    };
    goes_on("writes before anything happens");
    let osd = bed.cluster().osd(1);
    osd.kill().expect("killed");
    goes_on("writes without an OSD");
    bed.cluster().monitor().pause().expect("paused");
    // What is tested is a time.
    std::thread::sleep(SILENCE);
    bed.cluster().monitor().resume().expect("resumed");
    osd.start().expect("started");
    osd.wait_up().expect("up");
    goes_on("writes with all of them");
    bed.ok("rbd resize --no-progress --size 192M rbd/disk");
    eventually("the guest sees 192 MiB", || blocks(&vm) == 192 << 11);
    vm.end_fio(load);
    vm.fio("--filename=/dev/nvme0n1 --rw=write --bs=64k --iodepth=4 --offset=128M --size=32M");
    vm.assert_no_complaints();
    let data = vm.ok("sha256sum < /dev/nvme0n1");
    vm.poweroff();
    assert_no_warnings(&server.stop());
    // What others see, is that.
    let path = bed.cluster().directory().join("export");
    bed.ok(&format!("rbd export --no-progress rbd/disk {}", path.display()));
    let sum = std::process::Command::new("sha256sum").arg(&path).output().expect("sha256sum");
    let hash = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(
        hash(&data),
        hash(&String::from_utf8_lossy(&sum.stdout)),
        "the guest's data and the cluster's"
    );
    bed.check_object_map("rbd/disk");
}

#[test]
fn a_cluster_that_is_gone_is_aborted_and_reset_and_works_when_it_is_back() {
    let Some(bed) = Bed::start(Cluster::builder().store(Store::Memory)) else { return };
    bed.ok("rbd create --size 64M rbd/disk");
    let server = Server::config(&bed.config(IMAGE), &["vm.sock"]);
    // The kernel notices after 4 s instead of 30.
    let guest = Guest::builder().disk(server.socket("vm.sock")).cmdline("nvme_core.io_timeout=4");
    let vm = Vm::start(guest);
    vm.wait_disk("nvme0n1");
    vm.ok("head -c 1M /dev/urandom > /tmp/data; dd if=/tmp/data of=/dev/nvme0n1 bs=64k oflag=direct 2>&1");
    bed.stall(true);
    vm.ok("dd if=/tmp/data of=/dev/nvme0n1 bs=64k oflag=direct seek=32 > /tmp/dd 2>&1 < /dev/null & true");
    vm.wait_for("dmesg | grep -q 'nvme nvme0.*timeout, aborting'");
    // What was aborted came back, so the kernel does not take the controller for dead; it gives up after some attempts.
    vm.wait_for("! pgrep -x dd > /dev/null");
    vm.ok("grep -q 'Input/output error' /tmp/dd");
    assert_eq!(vm.ok("cat /sys/class/nvme/nvme0/state").trim(), "live");
    // Every kind of reset, while nothing answers, and what was aborted is still on its way.
    vm.ok("nvme reset /dev/nvme0");
    vm.ok("echo 1 > /sys/class/nvme/nvme0/device/reset");
    vm.wait_for("[ $(cat /sys/class/nvme/nvme0/state) = live ]");
    vm.ok("nvme id-ctrl /dev/nvme0 > /dev/null");
    bed.stall(false);
    vm.ok("dd if=/tmp/data of=/dev/nvme0n1 bs=64k oflag=direct seek=32 2>&1");
    vm.ok("dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct | cmp - /tmp/data");
    vm.ok("dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct skip=32 | cmp - /tmp/data");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=16M");
    vm.poweroff();
    server.stop();
}
