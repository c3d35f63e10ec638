//! Volumes: what an operator does with them, who may write to them, what they leave behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::common::{bed, eventually, name, stall, volume};
use block::testing::{compare_and_write, plain, read, run, write};
use block::{Channel, Device, ErrorKind, Op, Reactor};
use block_ceph::{
    Cluster, ClusterOptions, CreateOptions, OpenErrorKind, Pool, RadosDevice, RadosOptions, Volume,
    VolumeSpec,
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
    Volume::resize(&cluster, &spec, 12 * MIB, false, false).expect("larger");
    eventually("12 MiB", || disk.device.info().size() == 12 * MIB && told.load(Ordering::SeqCst) == 1);
    disk.write(12 * 256 - 1, 8).expect("a write beyond the old end");
    // Discards give the space back.
    disk.reactor.block_on(run(&*disk.channel, plain(Op::Discard, 0, 4 * 256))).expect("discard");
    assert_eq!(objects("rbd", &info.id), 5);
    assert_eq!(disk.read(0), 0);
    // Smaller or away only when nobody has it.
    assert_eq!(
        Volume::resize(&cluster, &spec, 6 * MIB, false, false).unwrap_err().kind,
        OpenErrorKind::Image
    );
    assert_eq!(Volume::remove(&cluster, &spec, false).unwrap_err().kind, OpenErrorKind::InUse);
    drop(disk);
    assert_eq!(Volume::info(&cluster, &spec).expect("info").owner, None);
    Volume::resize(&cluster, &spec, 6 * MIB + 4096, true, false).expect("smaller");
    assert_eq!(objects("rbd", &info.id), 3);
    Volume::resize(&cluster, &spec, 8 * MIB, false, false).expect("larger");
    let disk = Open::new(&cluster, &options(&spec));
    assert_eq!(
        [disk.read(6 * 256), disk.read(6 * 256 + 1), disk.read(7 * 256)],
        [7, 0, 0],
        "what was cut off is back"
    );
    drop(disk);
    Volume::remove(&cluster, &spec, false).expect("removed");
    assert_eq!(objects("rbd", &info.id), 0);
    assert_eq!(Volume::info(&cluster, &spec).unwrap_err().kind, OpenErrorKind::Image);
    let nothing = Volume::remove(&cluster, &spec, false).unwrap_err();
    assert_eq!(nothing.message, format!("there is no volume {spec}"));
    let headers = bed().daemons().ok("rados", ["-p", "rbd", "ls"]).expect("rados ls");
    assert!(!headers.contains(&spec.name), "a lock has made an object: {headers}");
}

/// Whoever removes a volume between a look of another's and its lock leaves an object without a header to that one.
#[test]
fn an_object_without_a_header_is_no_volume_and_not_in_the_way() {
    if !bed().is_there() {
        return;
    }
    let cluster = bed().connection();
    let spec = VolumeSpec { pool: "rbd".to_owned(), namespace: String::new(), name: name("volume") };
    let object = format!("quarry_volume.{}", spec.name);
    bed().daemons().ok("rados", ["-p", "rbd", "lock", "get", &object, "quarry"]).expect("rados lock get");
    let nothing = Volume::remove(&cluster, &spec, false).unwrap_err();
    assert_eq!(nothing.message, format!("there is no volume {spec}"));
    bed().daemons().ok("rados", ["-p", "rbd", "lock", "get", &object, "quarry"]).expect("rados lock get");
    Volume::create(&cluster, &spec, &create(MIB)).expect("made");
    drop(Open::new(&cluster, &options(&spec)));
    Volume::create(&cluster, &spec, &create(MIB)).expect_err("there is one");
    Volume::info(&cluster, &spec).expect("it is still there");
}

/// Sets who has had the volume last.
fn set_owner(spec: &VolumeSpec, owner: &str) {
    let object = format!("quarry_volume.{}", spec.name);
    bed()
        .daemons()
        .ok("rados", ["-p", &spec.pool, "setxattr", &object, "owner", owner])
        .expect("rados setxattr");
}

fn blocklist() -> String {
    bed().daemons().ok("ceph", ["osd", "blocklist", "ls"]).expect("the blocklist")
}

#[test]
fn an_owner_that_did_not_give_it_back_is_locked_out_for_good() {
    if !bed().is_there() {
        return;
    }
    let cluster = bed().connection();
    let spec = volume("rbd", &name("volume"), &create(8 * MIB));
    // What is no client's address never comes to the blocklist: these would lock out whole machines.
    for owner in ["10.9.8.7:0/0 x", "10.9.8.7 x", "10.9.8.0/24 x", " x"] {
        set_owner(&spec, owner);
        let error = RadosDevice::open(&cluster, &options(&spec)).map(drop).unwrap_err();
        assert!(error.message.contains("no address of a client"), "{owner:?}: {error}");
    }
    assert!(!blocklist().contains("10.9.8."));
    set_owner(&spec, ""); // the remedy
    drop(Open::new(&cluster, &options(&spec)));
    set_owner(&spec, "10.9.8.7:0/77 dead");
    for refused in [
        Volume::remove(&cluster, &spec, false).unwrap_err(),
        Volume::resize(&cluster, &spec, 4 * MIB, true, false).unwrap_err(),
    ] {
        assert_eq!(refused.kind, OpenErrorKind::InUse);
        assert!(refused.message.contains("10.9.8.7:0/77") && refused.remedy.contains("--force"), "{refused}");
    }
    assert!(!blocklist().contains("10.9.8."));
    drop(Open::new(&cluster, &options(&spec)));
    let listed = blocklist();
    let line = listed.lines().find(|line| line.starts_with("10.9.8.7:0/77 ")).expect("locked out");
    let year: u32 = line.split_whitespace().nth(1).and_then(|date| date.get(..4)?.parse().ok()).expect(line);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / (365 * 24 * 3600) + 1970;
    assert!(u64::from(year) > now + 5, "{line}");
    set_owner(&spec, "10.9.8.7:0/78 dead");
    Volume::resize(&cluster, &spec, 4 * MIB, true, true).expect("by force");
    set_owner(&spec, "10.9.8.7:0/79 dead");
    Volume::remove(&cluster, &spec, true).expect("by force");
    assert!(blocklist().contains("10.9.8.7:0/78 ") && blocklist().contains("10.9.8.7:0/79 "));
}

#[test]
fn a_process_does_not_lock_itself_out() {
    if !bed().is_there() {
        return;
    }
    let cluster = bed().connection();
    let spec = volume("rbd", &name("volume"), &create(8 * MIB));
    let other = volume("rbd", &name("volume"), &create(8 * MIB));
    let bystander = Open::new(&cluster, &options(&other));
    let attribute = |name: &str| {
        let object = format!("quarry_volume.{name}");
        bed().daemons().ok("rados", ["-p", "rbd", "getxattr", &object, "owner"]).expect("getxattr")
    };
    // The address of a connection that lives, of which nobody here knows that it had this volume.
    let owner = attribute(&other.name);
    let (address, _) = owner.trim().split_once(' ').expect("an address");
    set_owner(&spec, &format!("{address} 0123456789abcdef"));
    let error = RadosDevice::open(&bed().connection(), &options(&spec)).map(drop).unwrap_err();
    assert_eq!(error.kind, OpenErrorKind::InUse, "{error}");
    assert!(error.remedy.contains("start Quarry anew"), "{error}");
    // One that is open, whose lock somebody broke.
    set_owner(&spec, owner.trim());
    let error = RadosDevice::open(&bed().connection(), &options(&spec)).map(drop).unwrap_err();
    assert!(error.message.contains("this very process"), "{error}");
    bystander.write(0, 1).expect("it has its volume still");
    assert!(!blocklist().contains(address), "{}", blocklist());
}

/// An owner that the cluster did not let give its volume back takes it again, and no other disk of the connection suffers.
#[test]
fn what_was_not_given_back_is_taken_again_by_the_same_connection() {
    if !bed().is_there() {
        return;
    }
    let hasty = ClusterOptions { io_timeout: Some(Duration::from_secs(2)), ..bed().options() };
    let cluster = Cluster::connect(&hasty).expect("a connection");
    let spec = volume("rbd", &name("volume"), &create(8 * MIB));
    let other = volume("rbd", &name("volume"), &create(8 * MIB));
    let bystander = Open::new(&cluster, &options(&other));
    let disk = Open::new(&cluster, &options(&spec));
    disk.write(0, 7).expect("write");
    stall(true);
    drop(disk);
    stall(false);
    let mut again = None;
    eventually("open again", || {
        again = RadosDevice::open(&cluster, &options(&spec)).ok();
        again.is_some()
    });
    eventually("the other disk", || bystander.write(0, 2).is_ok());
    assert_eq!(bystander.read(0), 2);
}

/// Its lock has expired then, and nobody else wanted the volume.
#[test]
fn a_cluster_that_is_silent_for_longer_than_the_lock_holds_takes_nothing_away() {
    if !bed().is_there() {
        return;
    }
    let spec = volume("rbd", &name("volume"), &create(8 * MIB));
    let disk = Open::new(&bed().connection(), &options(&spec));
    disk.write(0, 1).expect("write");
    let object = format!("quarry_volume.{}", spec.name);
    let is_locked = || {
        let info = bed().daemons().ok("rados", ["-p", "rbd", "lock", "info", &object, "quarry"]);
        info.expect("lock info").contains("client.")
    };
    assert!(is_locked());
    stall(true);
    // EXPIRES, on the cluster's clock, and a renewal that was on its way.
    std::thread::sleep(Duration::from_secs(33));
    stall(false);
    disk.write(0, 2).expect("write");
    assert_eq!(disk.read(0), 2);
    eventually("renewed", is_locked);
    disk.write(0, 3).expect("it was not fenced meanwhile");
}

#[test]
fn what_an_interrupted_shrink_left_does_not_come_back() {
    if !bed().is_there() {
        return;
    }
    let cluster = bed().connection();
    let spec = volume("rbd", &name("volume"), &create(8 * MIB));
    let id = Volume::info(&cluster, &spec).expect("info").id;
    let disk = Open::new(&cluster, &options(&spec));
    for mib in 0..8 {
        disk.write(mib * 256, 7).expect("write");
    }
    drop(disk);
    // The header as it is between the first step of a shrink to 2 MiB and the last: the size, not yet the reach.
    let directory = std::env::temp_dir();
    let file = directory.join(format!("quarry-header-{}-{}", std::process::id(), spec.name));
    let (path, object) = (file.to_str().expect("UTF-8"), format!("quarry_volume.{}", spec.name));
    bed().daemons().ok("rados", ["-p", "rbd", "get", &object, path]).expect("rados get");
    let mut header = std::fs::read(&file).expect("a header");
    header[32..40].copy_from_slice(&(2 * MIB).to_le_bytes());
    std::fs::write(&file, &header).expect("written");
    bed().daemons().ok("rados", ["-p", "rbd", "put", &object, path]).expect("rados put");
    assert_eq!(objects("rbd", &id), 8);
    // Not while somebody has it: nobody else may remove its objects.
    let disk = Open::new(&cluster, &options(&spec));
    let refused = Volume::resize(&cluster, &spec, 8 * MIB, false, false).unwrap_err();
    assert_eq!(refused.kind, OpenErrorKind::InUse);
    assert!(refused.message.contains("interrupted shrink"), "{refused}");
    drop(disk);
    Volume::resize(&cluster, &spec, 8 * MIB, false, false).expect("larger");
    assert_eq!(objects("rbd", &id), 2);
    let disk = Open::new(&cluster, &options(&spec));
    assert_eq!([disk.read(256), disk.read(2 * 256), disk.read(7 * 256)], [7, 0, 0]);
    drop(disk);
    // And one that is removed in part: it has no bytes, and cannot be opened.
    header[32..40].copy_from_slice(&[0; 8]);
    std::fs::write(&file, &header).expect("written");
    bed().daemons().ok("rados", ["-p", "rbd", "put", &object, path]).expect("rados put");
    std::fs::remove_file(&file).expect("removed");
    for refused in [
        RadosDevice::open(&cluster, &options(&spec)).map(drop).unwrap_err(),
        Volume::resize(&cluster, &spec, 8 * MIB, false, false).map(drop).unwrap_err(),
    ] {
        assert!(refused.message.contains("is being removed"), "{refused}");
    }
    Volume::remove(&cluster, &spec, false).expect("removed");
    assert_eq!(objects("rbd", &id), 0);
}

#[test]
fn a_volume_that_is_gone_is_not_served_any_more() {
    if !bed().is_there() {
        return;
    }
    let cluster = bed().connection();
    let [anew, gone] = [(); 2].map(|()| volume("rbd", &name("volume"), &create(8 * MIB)));
    let reader = Open::new(&cluster, &RadosOptions { read_only: true, ..options(&anew) });
    let writer = Open::new(&cluster, &options(&gone));
    assert_eq!((reader.read(0), writer.read(0)), (0, 0));
    Volume::remove(&cluster, &anew, false).expect("removed");
    Volume::create(&cluster, &anew, &create(16 * MIB)).expect("another");
    let object = format!("quarry_volume.{}", gone.name);
    bed().daemons().ok("rados", ["-p", "rbd", "rm", &object]).expect("rados rm");
    for disk in [&reader, &writer] {
        let mut error = None;
        eventually("fenced", || {
            error = disk.reactor.block_on(read(&*disk.channel, BLOCK, 0, 1)).err();
            error.is_some()
        });
        assert_eq!(error.expect("an error").kind(), ErrorKind::Unreachable);
        assert_eq!(disk.device.info().size(), 8 * MIB);
    }
    drop(writer);
    let all = bed().daemons().ok("rados", ["-p", "rbd", "ls"]).expect("rados ls");
    assert!(!all.lines().any(|name| name == object), "a renewal has made an object");
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
