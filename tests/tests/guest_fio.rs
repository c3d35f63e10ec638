//! fio with verification over sizes and depths, on several queues, on every sort of disk.

use qemu_configs::Guest;
use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};

/// Two CPUs, so two pairs of queues, in front of the controllers `a` and `b`.
fn two_disks(config: &str) -> (Server, Vm) {
    let server = Server::config(config, &["a.sock", "b.sock"]);
    let guest = Guest::builder().vcpus(2).disk(server.socket("a.sock")).disk(server.socket("b.sock"));
    let vm = Vm::start(guest);
    vm.wait_for("[ -b /dev/nvme0n1 ] && [ -b /dev/nvme1n1 ]");
    for disk in ["nvme0", "nvme1"] {
        let queues = vm.ok(&format!("cat /sys/class/nvme/{disk}/queue_count"));
        assert_eq!(queues.trim(), "3", "{disk}: the admin queue and one for each CPU");
    }
    (server, vm)
}

/// Random writes of many sizes, deep and from two CPUs; mixed reads and writes, shallow; long sequential writes. All of
/// it is read again and checked.
fn verify(vm: &Vm, disk: &str, smallest: &str) {
    let target = format!("--filename=/dev/{disk}");
    vm.fio(&format!(
        "{target} --rw=randwrite --bssplit={smallest}/25:4k/25:20k/20:64k/15:256k/10:1M/5 --iodepth=32 --size=24M \
         --numjobs=2 --offset_increment=32M --cpus_allowed=0,1 --cpus_allowed_policy=split"
    ));
    vm.fio(&format!(
        "{target} --rw=randrw --rwmixread=40 --bssplit={smallest}/40:8k/30:128k/30 --iodepth=4 --size=16M --offset=64M"
    ));
    vm.fio(&format!("{target} --rw=write --bs=1M --iodepth=8 --size=32M --offset=80M"));
    vm.fio(&format!(
        "{target} --rw=randwrite --bs={smallest} --iodepth=1 --size=512k --offset=112M --fsync=32"
    ));
}

/// Every CPU's queue has been at work, by its interrupts.
fn assert_queues_used(vm: &Vm, disk: &str) {
    let interrupts = vm.ok("cat /proc/interrupts");
    for queue in [format!("{disk}q1"), format!("{disk}q2")] {
        let line = interrupts.lines().find(|line| line.ends_with(&queue)).expect("a vector for each queue");
        let count: u64 = line.split_whitespace().skip(1).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        assert!(count > 10, "{queue} was not used: {interrupts}");
    }
}

fn finish(server: Server, vm: Vm) {
    assert_queues_used(&vm, "nvme0");
    assert_queues_used(&vm, "nvme1");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}

#[test]
fn fio_verifies_files_with_blocks_of_both_sizes() {
    let (server, vm) = two_disks(
        r#"
        [devices.small]
        type = "file"
        path = "small.img"
        size = "128M"

        [devices.large]
        type = "file"
        path = "large.img"
        size = "128M"
        block_size = 4096

        [controllers.a]
        socket = "a.sock"
        serial = "SMALL"
        namespaces = [{ device = "small" }]

        [controllers.b]
        socket = "b.sock"
        serial = "LARGE"
        namespaces = [{ device = "large" }]
        "#,
    );
    for (serial, block) in [("SMALL", "512"), ("LARGE", "4096")] {
        let disk = disk_with_serial(&vm, serial);
        let shown = vm.ok(&format!("cat /sys/block/{disk}/queue/logical_block_size"));
        assert_eq!(shown.trim(), block);
        assert_eq!(vm.ok(&format!("blockdev --getsize64 /dev/{disk}")).trim(), (128 << 20).to_string());
        verify(&vm, &disk, block);
    }
    finish(server, vm);
}

#[test]
fn fio_verifies_memory_with_and_without_shadow_doorbells() {
    let (server, vm) = two_disks(
        r#"
        [reactors]
        count = 2

        [devices.plain]
        type = "memory"
        size = "128M"

        [devices.shadow]
        type = "memory"
        size = "128M"
        block_size = 4096

        [controllers.a]
        socket = "a.sock"
        serial = "PLAIN"
        namespaces = [{ device = "plain" }]

        [controllers.b]
        socket = "b.sock"
        serial = "SHADOW"
        shadow_doorbells = true
        namespaces = [{ device = "shadow" }]
        "#,
    );
    for (serial, block, shadow) in [("PLAIN", "512", false), ("SHADOW", "4096", true)] {
        let disk = disk_with_serial(&vm, serial);
        let controller = disk.strip_suffix("n1").expect("a namespace 1");
        let identity = vm.json(&format!("nvme id-ctrl /dev/{controller} -o json"));
        let doorbell_buffers = identity["oacs"].as_u64().expect("oacs") & 1 << 8 != 0;
        assert_eq!(doorbell_buffers, shadow, "{serial}: doorbell buffer config is offered");
        verify(&vm, &disk, block);
    }
    finish(server, vm);
}

/// Controllers are probed side by side, so their order is not known.
fn disk_with_serial(vm: &Vm, serial: &str) -> String {
    let found = vm.ok(&format!(
        "for d in nvme0 nvme1; do grep -qx '{serial} *' /sys/class/nvme/$d/serial && echo ${{d}}n1; done; true"
    ));
    assert_eq!(found.lines().count(), 1, "{serial}: {found}");
    found.trim().to_owned()
}
