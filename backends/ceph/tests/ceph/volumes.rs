//! Volumes: what an operator does with them, who may write to them, what they leave behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::{bed, name, volume};
use block::testing::{compare_and_write, plain, read, run, write};
use block::{Channel, Device, ErrorKind, Op, Reactor};
use block_ceph::{
    Cluster, CreateOptions, OpenErrorKind, Pool, RadosDevice, RadosOptions, Volume, VolumeSpec,
};

const BLOCK: u32 = 4096;
const MIB: u64 = 1 << 20;

fn create(size: u64) -> CreateOptions {
    CreateOptions { size, object_size: 1 << 20, data_pool: None }
}

fn options(volume: &VolumeSpec) -> RadosOptions {
    RadosOptions { volume: volume.clone(), read_only: false, block_size: BLOCK, in_flight: 64 << 20 }
}

struct Open {
    // In this order: the channel goes before its reactor and its device.
    channel: Box<dyn Channel>,
    reactor: Reactor,
    device: RadosDevice,
}

impl Open {
    fn new(cluster: &Arc<Cluster>, options: &RadosOptions) -> Self {
        let device = RadosDevice::open(cluster, options).expect("it opens");
        let reactor = Reactor::new(64).unwrap();
        Self { channel: device.channel(&reactor).unwrap(), reactor, device }
    }

    fn write(&self, lba: u64, byte: u8) -> Result<(), block::Error> {
        self.reactor.block_on(write(&*self.channel, BLOCK, lba, &[byte; BLOCK as usize]))
    }

    fn read(&self, lba: u64) -> u8 {
        let bytes = self.reactor.block_on(read(&*self.channel, BLOCK, lba, 1)).expect("read");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }
}

/// The objects of a volume's data.
fn objects(pool: &str, id: &str) -> usize {
    let all = bed().daemons().ok("rados", ["-p", pool, "ls"]).expect("rados ls");
    all.lines().filter(|name| name.starts_with(&format!("quarry_data.{id}."))).count()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn volumes_are_made_shown_resized_and_removed() {
    if !bed().is_there() {
        return;
    }
    let cluster = bed().connection();
    let spec = volume("rbd", &name("volume"), &create(8 * MIB));
    let info = Volume::info(&cluster, &spec).expect("info");
    assert_eq!(
        (info.size, info.object_size, info.data_pool.as_str(), info.owner),
        (8 * MIB, 1 << 20, "rbd", None)
    );
    assert_eq!(
        Volume::create(&cluster, &spec, &create(MIB)).unwrap_err().kind,
        OpenErrorKind::Image,
        "twice"
    );
    for bad in [
        create(0),
        create(1000),
        CreateOptions { object_size: 3 << 20, ..create(MIB) },
        CreateOptions { object_size: 4096, ..create(MIB) },
        CreateOptions { object_size: 64 << 20, ..create(MIB) },
    ] {
        let other = VolumeSpec { name: name("bad"), ..spec.clone() };
        assert_eq!(Volume::create(&cluster, &other, &bad).unwrap_err().kind, OpenErrorKind::Image, "{bad:?}");
        assert_eq!(Volume::info(&cluster, &other).unwrap_err().kind, OpenErrorKind::Image);
    }
    let elsewhere = CreateOptions { data_pool: Some("nowhere".to_owned()), ..create(MIB) };
    let other = VolumeSpec { name: name("bad"), ..spec.clone() };
    assert_eq!(Volume::create(&cluster, &other, &elsewhere).unwrap_err().kind, OpenErrorKind::Pool);

    let disk = Open::new(&cluster, &options(&spec));
    for lba in 0..8 * MIB / u64::from(BLOCK) {
        disk.write(lba, 7).expect("write");
    }
    assert_eq!(objects("rbd", &info.id), 8);
    assert!(Volume::info(&cluster, &spec).expect("info").owner.is_some());
    // Larger while it is open: it is seen and told.
    let told = Arc::new(AtomicU32::new(0));
    let counter = told.clone();
    disk.device.on_change(Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    Volume::resize(&cluster, &spec, 12 * MIB, false).expect("larger");
    eventually("12 MiB", || disk.device.info().size() == 12 * MIB && told.load(Ordering::SeqCst) == 1);
    disk.write(12 * 256 - 1, 8).expect("a write beyond the old end");
    // Discards give the space back.
    disk.reactor.block_on(run(&*disk.channel, plain(Op::Discard, 0, 4 * 256))).expect("discard");
    assert_eq!(objects("rbd", &info.id), 5);
    assert_eq!(disk.read(0), 0);
    // Smaller or away only when nobody has it.
    assert_eq!(Volume::resize(&cluster, &spec, 6 * MIB, false).unwrap_err().kind, OpenErrorKind::Image);
    assert_eq!(Volume::remove(&cluster, &spec).unwrap_err().kind, OpenErrorKind::InUse);
    drop(disk);
    assert_eq!(Volume::info(&cluster, &spec).expect("info").owner, None);
    Volume::resize(&cluster, &spec, 6 * MIB + 4096, true).expect("smaller");
    assert_eq!(objects("rbd", &info.id), 3);
    Volume::resize(&cluster, &spec, 8 * MIB, false).expect("larger");
    let disk = Open::new(&cluster, &options(&spec));
    assert_eq!(
        [disk.read(6 * 256), disk.read(6 * 256 + 1), disk.read(7 * 256)],
        [7, 0, 0],
        "what was cut off is back"
    );
    drop(disk);
    Volume::remove(&cluster, &spec).expect("removed");
    assert_eq!(objects("rbd", &info.id), 0);
    assert_eq!(Volume::info(&cluster, &spec).unwrap_err().kind, OpenErrorKind::Image);
    assert_eq!(Volume::remove(&cluster, &spec).unwrap_err().kind, OpenErrorKind::Image);
}

#[test]
fn blocks_that_were_never_written_compare_as_zeroes() {
    if !bed().is_there() {
        return;
    }
    for (pool, data_pool) in [("rbd", None), ("rbd", Some("ec"))] {
        let create = CreateOptions { data_pool: data_pool.map(str::to_owned), ..create(8 * MIB) };
        let disk = Open::new(&bed().connection(), &options(&volume(pool, &name("volume"), &create)));
        let cas = |lba, old: u8, new: u8| {
            let (old, new) = ([old; BLOCK as usize], [new; BLOCK as usize]);
            disk.reactor.block_on(compare_and_write(&*disk.channel, BLOCK, lba, &old, &new))
        };
        for lba in [0, 5, 255, 256, 2047] {
            let error = cas(lba, 1, 2).expect_err("it is zero");
            assert_eq!(error.kind(), ErrorKind::CompareMismatch, "{data_pool:?} {lba}: {error}");
            cas(lba, 0, 3).unwrap_or_else(|error| panic!("{data_pool:?} {lba}: {error}"));
            assert_eq!(disk.read(lba), 3);
        }
    }
}

#[test]
fn objects_of_other_layers() {
    if !bed().is_there() {
        return;
    }
    let pool = Pool::open(&bed().connection(), "ec", "layer").expect("a pool");
    assert_eq!(pool.read_object("a", 100).unwrap(), None);
    pool.write_object("a", b"long text").unwrap();
    pool.write_object("a", b"text").unwrap();
    assert_eq!(pool.read_object("a", 100).unwrap().as_deref(), Some(&b"text"[..]));
    assert_eq!(pool.read_object("a", 2).unwrap().as_deref(), Some(&b"te"[..]));
    assert!(pool.remove_object("a").unwrap() && !pool.remove_object("a").unwrap());
}
