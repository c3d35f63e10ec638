//! RBD images and volumes through NVMe, with Ceph's own tools on the other side.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ceph_cluster::{Cluster, Store};
use nvme_driver::{Controller, Namespace, Options};
use quarry_tests::ceph::{Bed, eventually};
use quarry_tests::{Server, io_queues, pattern};
use rustix::process::Signal;

const IMAGE: &str = "type = \"rbd\"\npool = \"rbd\"\nimage = \"disk\"";
const VOLUME: &str = "type = \"rados\"\npool = \"rbd\"\nvolume = \"disk\"";
const MIB: usize = 1 << 20;

/// A lock whose owner is dead is broken when Ceph's watch has timed out, after 30 s.
const PATIENT: Duration = Duration::from_secs(180);

fn bed() -> Option<Bed> {
    Bed::start(Cluster::builder().store(Store::Memory))
}

/// A disk through the socket of a server.
struct Disk {
    namespace: Namespace,
    _controller: Controller,
}

fn disk(server: &Server) -> Disk {
    let controller = server.controller_with("vm.sock", Options { timeout: PATIENT, ..Options::default() });
    let queues = io_queues(&controller);
    Disk { namespace: Namespace::open(&controller, 1, queues).unwrap(), _controller: controller }
}

impl Disk {
    /// Bytes from `at` on, both multiples of the block size.
    fn read(&mut self, at: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let block = self.namespace.block_size();
        self.namespace.read((at / block) as u64, &mut data).expect("read");
        data
    }

    fn write(&mut self, at: usize, data: &[u8]) -> nvme_driver::Result<()> {
        self.namespace.write((at / self.namespace.block_size()) as u64, data)
    }
}

#[test]
fn an_imported_image_is_read_and_what_is_written_is_exported() {
    let Some(bed) = bed() else { return };
    let mut expected = bed.import("rbd/disk", 24 * MIB, 1);
    let server = Server::config(&bed.config(IMAGE), &["vm.sock"]);
    let mut disk = disk(&server);
    assert_eq!(disk.namespace.blocks() as usize * disk.namespace.block_size(), 24 * MIB);
    for at in (0..24 * MIB).step_by(MIB) {
        assert!(disk.read(at, MIB) == expected[at..at + MIB], "at {at}");
    }
    // Within objects, over their borders, zeroes, discards, and compare and write.
    for (n, (at, len)) in
        [(0, 4096), (MIB + 512, 1024), (4 * MIB - 4096, 64 << 10), (10 * MIB, MIB)].into_iter().enumerate()
    {
        let data = pattern(n as u64 + 2, len);
        disk.write(at, &data).expect("write");
        expected[at..at + len].copy_from_slice(&data);
    }
    disk.namespace.write_zeroes((6 * MIB / 512) as u64, 4096).expect("zeroes");
    expected[6 * MIB..8 * MIB].fill(0);
    disk.namespace.deallocate(&[((16 * MIB / 512) as u64, (8 * MIB / 512) as u32)]).expect("deallocate");
    expected[16 * MIB..].fill(0); // two whole objects
    let old = expected[512..1024].to_vec();
    assert!(!disk.namespace.compare_and_write(1, &[9; 512], &[7; 512]).expect("compared"));
    assert!(disk.namespace.compare_and_write(1, &old, &[7; 512]).expect("compared"));
    expected[512..1024].fill(7);
    disk.namespace.flush().expect("flush");
    assert!(bed.export("rbd/disk") == expected, "what others see");
    bed.check_object_map("rbd/disk");
    drop(disk);
    server.stop();
    assert!(bed.export("rbd/disk") == expected);
    // The lock is given back, and nobody watches any more.
    let status = bed.ok("rbd status --format json rbd/disk");
    assert!(status.contains("\"watchers\":[]"), "{status}");
}

#[test]
fn a_snapshot_taken_under_load_is_a_moment() {
    let Some(bed) = bed() else { return };
    bed.ok("rbd create --size 32M rbd/disk");
    let server = Server::config(&bed.config(IMAGE), &["vm.sock"]);
    const BLOCKS: u64 = 32 << 11;
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let before = std::thread::scope(|scope| {
        // One block after the other, each when the one before is acknowledged.
        let writer = scope.spawn(|| {
            let mut disk = disk(&server);
            for lba in 0..BLOCKS {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let data = [(lba + 1) as u8 | 1; 512];
                disk.write(lba as usize * 512, &data).expect("write");
                written.store(lba + 1, Ordering::Release);
            }
        });
        eventually("500 writes", || written.load(Ordering::Acquire) > 500);
        let before = written.load(Ordering::Acquire);
        bed.ok("rbd snap create --no-progress rbd/disk@moment");
        let after = written.load(Ordering::Acquire);
        eventually("writes after the snapshot", || written.load(Ordering::Acquire) > after + 100);
        stop.store(true, Ordering::Release);
        writer.join().expect("the writer");
        before
    });
    let moment = bed.export("rbd/disk@moment");
    let there = moment.chunks(512).take_while(|block| block[0] != 0).count();
    assert!(there as u64 >= before, "{there} blocks of {before} that were acknowledged before");
    for (lba, block) in moment.chunks(512).enumerate() {
        let byte = if lba < there { (lba as u64 + 1) as u8 | 1 } else { 0 };
        assert!(
            block.iter().all(|found| *found == byte),
            "block {lba} of {there}: later writes, but not earlier ones"
        );
    }
    server.stop();
    // The snapshot is served too, for reading.
    let server = Server::config(&bed.config(&format!("{IMAGE}\nsnapshot = \"moment\"")), &["vm.sock"]);
    let mut disk = disk(&server);
    assert!(disk.read(0, 32 * MIB) == moment);
    assert!(disk.write(0, &[0; 512]).is_err());
    drop(disk);
    server.stop();
}

/// sched(7).
const SCHED_OTHER: u32 = 0;
const SCHED_BATCH: u32 = 3;

/// What the kernel's scheduler thinks of a process's threads, by their names (proc(5), /proc/PID/stat, field 41).
fn policies(pid: u32) -> Vec<(String, u32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |path: std::path::PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        Some((name.to_owned(), rest.split_whitespace().nth(38)?.parse().ok()?))
    };
    tasks.filter_map(|task| of(task.path())).collect()
}

#[test]
fn threads_on_the_way_to_a_cluster_let_others_finish() {
    let Some(bed) = bed() else { return };
    bed.ok("rbd create --size 16M rbd/disk");
    let server = Server::config(&bed.config(IMAGE), &["vm.sock"]);
    let is_batch = |name: &str| {
        let of: Vec<_> = policies(server.pid()).into_iter().filter(|(of, _)| of.starts_with(name)).collect();
        !of.is_empty() && of.iter().all(|(_, policy)| *policy == SCHED_BATCH)
    };
    for name in ["reactor-", "msgr-worker-", "io_context_pool"] {
        eventually(name, || is_batch(name));
    }
    assert!(policies(server.pid()).iter().any(|(_, policy)| *policy == SCHED_OTHER));
}

#[test]
fn the_lock_moves_to_qemu_io_and_back() {
    let Some(bed) = bed() else { return };
    bed.ok("rbd create --size 16M rbd/disk");
    let server = Server::config(&bed.config(IMAGE), &["vm.sock"]);
    let mut disk = disk(&server);
    let (conf, keyring) = (bed.cluster().conf().display(), bed.cluster().keyring().display());
    let image = format!("rbd:rbd/disk:id=admin:conf={conf}:keyring={keyring}:rbd_cache=false");
    for round in 1..4u8 {
        disk.write(0, &[round; 4096]).expect("write");
        let locked = bed.ok("rbd lock ls --format json rbd/disk");
        let write = format!("write -P {} 1M 64k", round + 100);
        let read = format!("read -P {round} 0 4k");
        let said =
            bed.cluster().ok("qemu-io", ["-f", "raw", "-c", &write, "-c", &read, &image]).expect("qemu-io");
        assert!(said.contains("wrote 65536/65536") && !said.contains("verification failed"), "{said}");
        let after = bed.ok("rbd lock ls --format json rbd/disk");
        assert_ne!(locked, after, "the lock has not moved");
        assert!(disk.read(MIB, 64 << 10) == vec![round + 100; 64 << 10]);
        disk.write(8 * MIB, &[round; 4096]).expect("the lock comes back");
    }
    bed.check_object_map("rbd/disk");
    drop(disk);
    server.stop();
}

#[test]
fn a_killed_server_is_followed_by_the_next() {
    let Some(bed) = bed() else { return };
    bed.ok("rbd create --size 16M rbd/disk");
    create_volume(&bed);
    for device in [IMAGE, VOLUME] {
        let first = Server::config(&bed.config(device), &["vm.sock"]);
        let mut old = disk(&first);
        old.write(0, &[1; 4096]).expect("write");
        first.kill();
        let second = Server::config(&bed.config(device), &["vm.sock"]);
        let mut new = disk(&second);
        assert!(new.read(0, 4096) == [1; 4096]);
        new.write(0, &[2; 4096]).expect("write");
        assert!(new.read(0, 4096) == [2; 4096]);
        drop(new);
        second.stop();
        // And it is free again: nobody waits.
        let third = Server::config(&bed.config(device), &["vm.sock"]);
        assert!(disk(&third).read(0, 4096) == [2; 4096]);
        third.stop();
    }
}

#[test]
fn a_server_that_was_asleep_for_too_long_writes_nothing_late() {
    let Some(bed) = bed() else { return };
    bed.ok("rbd create --size 16M rbd/disk");
    create_volume(&bed);
    for device in [IMAGE, VOLUME] {
        let sleeper = Server::config(&bed.config(device), &["vm.sock"]);
        let mut old = disk(&sleeper);
        old.write(0, &[1; 4096]).expect("write");
        sleeper.signal(Signal::STOP);
        // It is taken for dead, and locked out for good.
        let next = Server::config(&bed.config(device), &["vm.sock"]);
        let mut new = disk(&next);
        new.write(0, &[2; 4096]).expect("the next one has it");
        let listed = bed.ok("ceph osd blocklist ls --format json");
        assert!(listed.contains("addr"), "nobody is blocklisted: {listed}");
        sleeper.signal(Signal::CONT);
        for _ in 0..5 {
            let error = old.write(0, &[3; 4096]).expect_err("it is fenced");
            assert!(error.status().is_some(), "the guest gets a status, not {error}");
        }
        assert!(new.read(0, 4096) == [2; 4096], "a late write");
        new.write(4096, &[4; 4096]).expect("write");
        let log = sleeper.wait_for_log("fenced");
        assert!(log.contains("start Quarry anew"), "{log}");
        drop((old, new));
        next.stop();
        sleeper.kill();
    }
}

fn create_volume(bed: &Bed) {
    let quarry = quarry_tests::binary::quarry();
    let (conf, keyring) = (bed.cluster().conf(), bed.cluster().keyring());
    let mut command = std::process::Command::new(quarry);
    command
        .args(["volume", "create", "rbd/disk", "--size", "16M", "--conf"])
        .arg(conf)
        .arg("--keyring")
        .arg(keyring);
    let output = command.output().expect("quarry");
    assert!(output.status.success(), "{output:?}");
}
