//! What RBD images have besides blocks: snapshots, clones, sizes that change, the exclusive lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::{bed, eventually, rbd_image};
use block::testing::{Buffer, Rng, compare_and_write, plain, read, run, write};
use block::{Abilities, Channel, Device, ErrorKind, Flags, Op, Reactor};
use block_ceph::{Cluster, ClusterOptions, Lock, OpenErrorKind, RbdDevice, RbdOptions};

const BLOCK: u32 = 512;

struct Open {
    // In this order: the channel goes before its reactor and its device.
    channel: Box<dyn Channel>,
    reactor: Reactor,
    device: Arc<RbdDevice>,
}

impl Open {
    fn new(options: &RbdOptions) -> Self {
        Self::with(&bed().options(), options)
    }

    fn with(cluster: &ClusterOptions, options: &RbdOptions) -> Self {
        let cluster = Cluster::connect(cluster).expect("a connection");
        let device = Arc::new(RbdDevice::open(&cluster, options).expect("it opens"));
        let reactor = Reactor::new(64).unwrap();
        Self { channel: device.channel(&reactor).unwrap(), reactor, device }
    }

    fn write(&self, lba: u64, bytes: &[u8]) -> Result<(), block::Error> {
        self.reactor.block_on(write(&*self.channel, BLOCK, lba, bytes))
    }

    fn read(&self, lba: u64, blocks: u64) -> Vec<u8> {
        self.reactor.block_on(read(&*self.channel, BLOCK, lba, blocks)).expect("read")
    }
}

fn rbd(arguments: &str) -> String {
    bed().daemons().ok("rbd", arguments.split(' ')).expect(arguments)
}

/// The whole image as `rbd export` has it.
fn export(image: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    bed()
        .daemons()
        .ok("rbd", ["export", "--no-progress", image, &path.display().to_string()])
        .expect("export");
    std::fs::read(path).unwrap()
}

#[test]
fn a_snapshot_shows_its_moment_and_a_clone_copies_up() {
    if !bed().is_there() {
        return;
    }
    let name = rbd_image("16M", &[]);
    let parent = Open::new(&RbdOptions::new("rbd", &name));
    let old = Rng(1).bytes(8 << 20);
    parent.write(0, &old).expect("write");
    rbd(&format!("snap create --no-progress rbd/{name}@moment"));
    rbd(&format!("snap protect rbd/{name}@moment"));
    parent.write(0, &vec![7; 1 << 20]).expect("write");

    let snapshot = RbdOptions { snapshot: Some("moment".to_owned()), ..RbdOptions::new("rbd", &name) };
    let moment = Open::new(&snapshot);
    assert!(!moment.device.info().abilities.contains(Abilities::WRITE));
    assert_eq!(moment.write(0, &[0; 512]).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(moment.read(0, 2048) == old[..1 << 20], "the snapshot has changed");
    assert!(parent.read(0, 2048) == vec![7; 1 << 20]);

    // 4 KiB within an object of 4 MiB: the rest of it comes from the parent.
    rbd(&format!("clone rbd/{name}@moment rbd/{name}-clone"));
    let clone = Open::new(&RbdOptions::new("rbd", format!("{name}-clone")));
    assert!(clone.read(2048, 14 * 1024) == old[1 << 20..], "the clone is not its parent");
    clone.write(10_000, &[9; 4096]).expect("write");
    let mut expected = old.clone();
    expected[10_000 * 512..][..4096].fill(9);
    expected.resize(16 << 20, 0);
    drop(clone);
    assert!(export(&format!("rbd/{name}-clone")) == expected, "copy-up lost something");
    assert!(moment.read(0, 16 * 1024) == old, "the parent has changed");
    // The discard of a part of what the parent has must not bring the parent's data back.
    let clone = Open::new(&RbdOptions::new("rbd", format!("{name}-clone")));
    clone.reactor.block_on(run(&*clone.channel, plain(Op::WriteZeroes, 0, 16 * 1024))).expect("zeroes");
    assert!(clone.read(0, 16 * 1024).iter().all(|byte| *byte == 0));
    for image in [name.clone(), format!("{name}-clone")] {
        let checked =
            bed().daemons().ok("rbd", ["object-map", "check", "--no-progress", &format!("rbd/{image}")]);
        assert!(!checked.expect("clean").contains("invalid"));
    }
}

#[test]
fn a_new_size_is_seen_and_told() {
    if !bed().is_there() {
        return;
    }
    let name = rbd_image("16M", &[]);
    let disk = Open::new(&RbdOptions::new("rbd", &name));
    let told = Arc::new(AtomicU32::new(0));
    let counter = told.clone();
    disk.device.on_change(Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    let blocks = || disk.device.info().blocks;
    assert_eq!(blocks(), 16 << 11);
    disk.write((16 << 11) - 1, &[5; 512]).expect("write");
    rbd(&format!("resize --no-progress --size 32M rbd/{name}"));
    eventually("32 MiB", || blocks() == 32 << 11);
    eventually("told", || told.load(Ordering::SeqCst) == 1);
    disk.write((32 << 11) - 1, &[6; 512]).expect("a write beyond the old end");
    rbd(&format!("resize --no-progress --allow-shrink --size 8M rbd/{name}"));
    eventually("8 MiB", || blocks() == 8 << 11);
    eventually("told", || told.load(Ordering::SeqCst) == 2);
    assert_eq!(disk.write(8 << 11, &[5; 512]).unwrap_err().kind(), ErrorKind::OutOfRange);
    rbd(&format!("resize --no-progress --size 16M rbd/{name}"));
    eventually("16 MiB", || blocks() == 16 << 11);
    assert!(disk.read((16 << 11) - 1, 1) == [0; 512], "what was cut off is back");
}

#[test]
fn the_lock_goes_to_who_asks_for_it_and_comes_back() {
    if !bed().is_there() {
        return;
    }
    let name = rbd_image("16M", &[]);
    let disk = Open::new(&RbdOptions::new("rbd", &name));
    assert!(!disk.device.has_lock(), "taken before it was needed");
    for round in 1..4 {
        disk.write(0, &[round; 512]).expect("write");
        assert!(disk.device.has_lock());
        // Elsewhere in the image.
        rbd(&format!("bench --io-type write --io-size 4096 --io-total 64K --io-threads 1 rbd/{name}"));
        assert!(!disk.device.has_lock(), "not handed over");
    }
    disk.write(8192, &[4; 512]).expect("write");
    assert!(disk.read(8192, 1) == [4; 512]);
}

#[test]
fn a_lock_that_is_kept_is_kept() {
    if !bed().is_there() {
        return;
    }
    let name = rbd_image("16M", &[]);
    let keep = RbdOptions { lock: Lock::Keep, ..RbdOptions::new("rbd", &name) };
    let disk = Open::new(&keep);
    assert!(disk.device.has_lock());
    let second = RbdDevice::open(&bed().connection(), &keep).map(drop).expect_err("it is kept");
    assert_eq!(second.kind, OpenErrorKind::InUse, "{second}");
    let other = Open::new(&RbdOptions::new("rbd", &name));
    let error = other.write(0, &[1; 512]).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    disk.write(0, &[2; 512]).expect("write");
    assert!(other.read(0, 1) == [2; 512]);
    drop(disk);
    other.write(0, &[3; 512]).expect("it is free");
    // Without the feature there is nothing to keep.
    let plain = RbdOptions {
        lock: Lock::Keep,
        ..RbdOptions::new("rbd", rbd_image("16M", &["--image-feature", "layering"]))
    };
    let error = RbdDevice::open(&bed().connection(), &plain).map(drop).expect_err("no lock");
    assert_eq!(error.kind, OpenErrorKind::Image, "{error}");
}

#[test]
fn a_fenced_client_gets_errors_and_writes_nothing() {
    if !bed().is_there() {
        return;
    }
    let name = rbd_image("16M", &[]);
    let disk = Open::new(&RbdOptions::new("rbd", &name));
    disk.write(0, &[1; 512]).expect("write");
    let locks = rbd(&format!("lock ls --format json rbd/{name}"));
    let address =
        locks.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an address");
    bed().daemons().ok("ceph", ["osd", "blocklist", "add", address]).expect("blocklisted");
    // Sooner or later every OSD knows; from then on nothing is written.
    eventually("fenced", || disk.write(0, &[2; 512]).is_err());
    let error = disk.write(0, &[3; 512]).expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let other = Open::new(&RbdOptions::new("rbd", &name));
    other.write(0, &[4; 512]).expect("the next one has it");
    for _ in 0..10 {
        assert_eq!(disk.write(0, &[5; 512]).expect_err("fenced").kind(), ErrorKind::Unreachable);
    }
    assert!(other.read(0, 1) == [4; 512], "a late write");
    let error = disk.reactor.block_on(read(&*disk.channel, BLOCK, 0, 1)).expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[test]
fn blocks_that_were_never_written_compare_as_zeroes() {
    if !bed().is_there() {
        return;
    }
    let disk = Open::new(&RbdOptions::new("rbd", rbd_image("16M", &[])));
    let cas = |lba, old: &[u8], new: &[u8]| {
        disk.reactor.block_on(compare_and_write(&*disk.channel, BLOCK, lba, old, new))
    };
    for lba in [0, 5, 8191, 8192, 20_000] {
        let error = cas(lba, &[1; 512], &[2; 512]).expect_err("it is zero");
        assert_eq!(error.kind(), ErrorKind::CompareMismatch, "{lba}: {error}");
        cas(lba, &[0; 512], &[3; 512]).unwrap_or_else(|error| panic!("{lba}: {error}"));
        assert!(disk.read(lba, 1) == [3; 512]);
    }
}

#[test]
fn librbds_cache_is_volatile_and_flushed() {
    if !bed().is_there() {
        return;
    }
    let mut options = bed().options();
    options.options.insert("rbd_cache".to_owned(), "true".to_owned());
    options.options.insert("rbd_cache_writethrough_until_flush".to_owned(), "false".to_owned());
    let name = rbd_image("16M", &[]);
    let disk = Open::with(&options, &RbdOptions::new("rbd", &name));
    let plainly = Open::new(&RbdOptions { read_only: true, ..RbdOptions::new("rbd", &name) });
    assert!(!plainly.device.info().abilities.contains(Abilities::VOLATILE_CACHE));
    assert!(disk.device.info().abilities.contains(Abilities::VOLATILE_CACHE));
    disk.write(0, &[1; 512]).expect("write");
    disk.reactor.block_on(run(&*disk.channel, plain(Op::Flush, 0, 0))).expect("flush");
    assert!(plainly.read(0, 1) == [1; 512], "flushed, but not there");
    let io = Buffer::with(&[2; 512]).io(Op::Write, 1, 1).with_flags(Flags::FUA);
    disk.reactor.block_on(run(&*disk.channel, io)).expect("a durable write");
    assert!(plainly.read(1, 1) == [2; 512], "durable, but not there");
}

#[test]
fn an_images_own_settings_are_read_as_ceph_reads_them() {
    if !bed().is_there() {
        return;
    }
    for (value, is_on) in [("1", true), ("TRUE", true), ("true", true), ("0", false), ("False", false)] {
        let name = rbd_image("16M", &[]);
        rbd(&format!("config image set rbd/{name} rbd_cache {value}"));
        let disk = Open::new(&RbdOptions::new("rbd", &name));
        let volatile = disk.device.info().abilities.contains(Abilities::VOLATILE_CACHE);
        assert_eq!(volatile, is_on, "rbd_cache = {value}");
    }
}

#[test]
fn librbd_never_sees_a_guests_memory() {
    if !bed().is_there() {
        return;
    }
    let name = rbd_image("16M", &[]);
    rbd(&format!("config image set rbd/{name} rbd_disable_zero_copy_writes 0"));
    let disk = Open::new(&RbdOptions::new("rbd", &name));
    disk.write(0, &[1; 512]).expect("write");
    let stall = |stalled: bool| {
        for id in 0..bed().daemons().osds() {
            let osd = bed().daemons().osd(id);
            if stalled { osd.pause() } else { osd.resume() }.expect("a signal");
        }
    };
    stall(true);
    let buffer = Buffer::with(&[2; 512]);
    let block::Submission::Pending(future) = disk.channel.submit(buffer.io(Op::Write, 8, 1)) else {
        panic!()
    };
    let mut future = Box::pin(future);
    assert!(disk.reactor.block_on(block::testing::poll_once(&mut future)).is_none());
    drop(future);
    // The guest's again.
    buffer.set(0, &[3; 512]);
    stall(false);
    assert!(disk.read(8, 1) == [2; 512], "what is written is what was there when it was submitted");
}

#[test]
fn stripes_as_small_as_blocks_are_not_compared() {
    if !bed().is_there() {
        return;
    }
    for (unit, compares) in [("512", false), ("1024", true)] {
        let striped = ["--stripe-unit", unit, "--stripe-count", "2", "--image-feature", "layering"];
        let disk = Open::new(&RbdOptions::new("rbd", rbd_image("16M", &striped)));
        let offers = disk.device.info().abilities.contains(Abilities::COMPARE_AND_WRITE);
        assert_eq!(offers, compares, "{unit}");
        // librbd would abort the process.
        let mut other = [0; 512];
        other[511] = 1;
        let compared = disk.reactor.block_on(compare_and_write(&*disk.channel, BLOCK, 1, &other, &[2; 512]));
        let expected = if compares { ErrorKind::CompareMismatch } else { ErrorKind::Unsupported };
        assert_eq!(compared.expect_err("it is zero").kind(), expected, "{unit}");
        assert!(disk.read(1, 1) == [0; 512]);
    }
}
