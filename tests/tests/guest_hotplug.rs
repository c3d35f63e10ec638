//! Disks that come and go: several in a guest, plugged in and out under load, guests that are killed, servers too.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use qemu_configs::Guest;
use quarry_tests::guest::{assert_no_warnings, guest_mappings};
use quarry_tests::{Server, Vm};

/// Writes until it is stopped, or the disk is gone. Only the first half of a disk of 128 MiB.
const LOAD: &str = "fio --name=load --ioengine=io_uring --direct=1 --rw=randrw --bssplit=4k/70:128k/30 --iodepth=16 \
                    --size=64M --time_based --runtime=600";

/// Marks the second half of the disk.
fn mark(vm: &Vm) -> String {
    vm.ok("head -c 8M /dev/urandom | dd of=/dev/nvme0n1 bs=1M seek=64 oflag=direct iflag=fullblock 2>&1");
    marked(vm, "nvme0n1")
}

fn marked(vm: &Vm, disk: &str) -> String {
    vm.ok(&format!("dd if=/dev/{disk} bs=1M skip=64 count=8 iflag=direct | sha256sum"))
}

/// Starts the load and returns when it is under way.
fn load(vm: &Vm) {
    vm.ok(&format!("{LOAD} --filename=/dev/nvme0n1 > /tmp/load 2>&1 < /dev/null &"));
    vm.wait_for("[ $(awk '{print $1 + $5}' /sys/block/nvme0n1/stat) -gt 200 ]");
}

/// The server holds no memory of a guest any more.
#[track_caller]
fn assert_guest_is_forgotten(server: &Server) {
    let start = Instant::now();
    while guest_mappings(server.pid()) > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "memory of a guest that is gone is still mapped");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_controllers_and_two_namespaces_in_one_guest() {
    let server = Server::config(
        r#"
        [devices.a1]
        type = "file"
        path = "a1.img"
        size = "64M"

        [devices.a7]
        type = "memory"
        size = "32M"
        block_size = 4096

        [devices.b1]
        type = "memory"
        size = "48M"

        [controllers.a]
        socket = "a.sock"
        serial = "A"
        namespaces = [{ device = "a1" }, { device = "a7", nsid = 7 }]

        [controllers.b]
        socket = "b.sock"
        serial = "B"
        namespaces = [{ device = "b1" }]
        "#,
        &["a.sock", "b.sock"],
    );
    let vm = Vm::with_disks([server.socket("a.sock"), server.socket("b.sock")]);
    vm.wait_for("[ $(ls /sys/block | grep -cE 'nvme[0-9]+n') = 3 ]");
    // Size in blocks of 512 bytes, block size, namespace, by disk: all three are told apart.
    let mut disks: Vec<[String; 4]> = Vec::new();
    for disk in vm.ok("ls /sys/block | grep -E 'nvme[0-9]+n'").lines() {
        let facts = vm.ok(&format!(
            "cd /sys/block/{disk} && echo $(cat size queue/logical_block_size nsid) && nvme id-ns /dev/{disk} > /dev/null"
        ));
        let facts: Vec<&str> = facts.split_whitespace().collect();
        disks.push([disk.to_owned(), facts[0].to_owned(), facts[1].to_owned(), facts[2].to_owned()]);
    }
    disks.sort_by_key(|disk| disk[1].parse::<u64>().unwrap_or_default());
    let facts: Vec<_> = disks.iter().map(|disk| (&disk[1][..], &disk[2][..], &disk[3][..])).collect();
    assert_eq!(facts, [("65536", "4096", "7"), ("98304", "512", "1"), ("131072", "512", "1")], "{disks:?}");

    // All at once, each with a seed of its own; then once more read, when all three have been written.
    let mut jobs = String::new();
    for (seed, [disk, ..]) in disks.iter().enumerate() {
        write!(jobs, " --name=on-{disk} --filename=/dev/{disk} --randseed={} --verify=crc32c", seed + 1)
            .unwrap();
    }
    let common = "--ioengine=io_uring --direct=1 --rw=randwrite --bssplit=4k/60:64k/40 --iodepth=8 --size=24M \
                  --verify=crc32c --verify_fatal=1";
    vm.ok(&format!("fio {common}{jobs}"));
    vm.ok(&format!("fio {common} --verify_only=1{jobs}"));
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}

/// Plugged in while the guest runs, unplugged while it writes. With MSI: QEMU 11.1 does not live through the unplugging of
/// a vfio-user device with MSI-X.
#[test]
fn plugging_under_load_leaves_nothing_behind() {
    const UNDER_LOAD: usize = 6;
    const TIMES: usize = 16;
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("vm.sock");
    let server = server_in(files.path(), "msi = true");
    let vm = Vm::start(Guest::builder().spare_ports(1));
    let mut data = None;
    let mut settled = None;
    for time in 0..TIMES {
        let id = vm.guest().disk_add(&socket).unwrap();
        vm.wait_disk("nvme0n1");
        assert!(guest_mappings(server.pid()) > 0, "the oracle knows the guest's memory");
        let found = data.get_or_insert_with(|| mark(&vm));
        assert_eq!(&marked(&vm, "nvme0n1"), found, "time {time}");
        if time < UNDER_LOAD {
            load(&vm);
        }
        vm.guest().device_del(&id).unwrap();
        vm.wait_no_disk();
        vm.wait_for("! pgrep -x fio > /dev/null");
        assert_guest_is_forgotten(&server);
        // What is made once is made by now, and what a client leaves is replaced when the server says so.
        if time == 1 {
            server.wait_for_logs("client gone, ready for the next", 2);
            settled = Some(server.resources());
        }
    }
    settled.expect("more than one time").assert_settles(server.pid());
    vm.poweroff();
    assert_no_warnings(&server.stop());
}

#[test]
fn next_guest_finds_the_data_of_one_that_was_killed() {
    let server = Server::disk("file:disk.img,size=128M");
    let mut data = None;
    for _ in 0..2 {
        let vm = Vm::with_disks([server.socket("vm.sock")]);
        let found = data.get_or_insert_with(|| mark(&vm));
        assert_eq!(&marked(&vm, "nvme0n1"), found);
        load(&vm);
        vm.guest().kill().unwrap();
        drop(vm);
        assert_guest_is_forgotten(&server);
    }
    let vm = Vm::with_disks([server.socket("vm.sock")]);
    assert_eq!(Some(marked(&vm, "nvme0n1")), data);
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=16M");
    vm.assert_no_complaints();
    vm.poweroff();
    let log = server.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

/// A server of one disk in a directory that outlives it, with a further line for its controller.
fn server_in(dir: &Path, line: &str) -> Server {
    let dir = dir.display();
    let config = format!(
        "[devices.disk]\ntype = \"file\"\npath = \"{dir}/disk.img\"\nsize = \"128M\"\n\
         [controllers.vm]\nsocket = \"{dir}/vm.sock\"\nnamespaces = [{{ device = \"disk\" }}]\n{line}\n"
    );
    Server::config(&config, &[&format!("{dir}/vm.sock")])
}

/// As docs/operating.md has it: unplug, and plug in again.
#[test]
fn disk_of_a_killed_server_is_plugged_in_again() {
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("vm.sock");
    let first = server_in(files.path(), "msi = true");
    let vm = Vm::with_disks([&socket]);
    let data = mark(&vm);
    load(&vm);
    // SIGKILL.
    drop(first);
    let second = server_in(files.path(), "msi = true");
    vm.guest().device_del("disk0").unwrap();
    vm.wait_no_disk();
    vm.wait_for("! pgrep -x fio > /dev/null");
    vm.guest().disk_add(&socket).unwrap();
    vm.wait_disk("nvme0n1");
    assert_eq!(marked(&vm, "nvme0n1"), data, "what was written before the server was killed");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=16M");
    vm.poweroff();
    assert_no_warnings(&second.stop());
}

/// With MSI-X QEMU's side of the lost disk must stay: the guest lets go of the disk that answers no more, and a disk is plugged into a spare port.
#[test]
fn disk_of_a_killed_server_comes_back_in_a_spare_port() {
    let files = tempfile::tempdir().unwrap();
    let socket = files.path().join("vm.sock");
    let first = server_in(files.path(), "");
    let vm = Vm::start(Guest::builder().disk(&socket).spare_ports(1));
    let data = mark(&vm);
    load(&vm);
    let pci = vm.ok("readlink -f /sys/class/nvme/nvme0/device");
    // SIGKILL.
    drop(first);
    // The guest goes on, and gives up the disk when it is told to.
    vm.ok(&format!("echo 1 > {}/remove", pci.trim()));
    vm.wait_no_disk();
    vm.wait_for("! pgrep -x fio > /dev/null");
    let second = server_in(files.path(), "");
    vm.guest().disk_add(&socket).unwrap();
    vm.wait_disk("nvme0n1");
    assert_eq!(marked(&vm, "nvme0n1"), data, "what was written before the server was killed");
    vm.fio("--filename=/dev/nvme0n1 --rw=randwrite --bs=16k --iodepth=8 --size=16M");
    vm.poweroff();
    assert_no_warnings(&second.stop());
}
