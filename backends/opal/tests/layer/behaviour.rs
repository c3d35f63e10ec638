//! Locks, keys, zeroes and the MBR shadow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block::testing::{Buffer, CasDevice, Rng, compare_and_write, plain, read, run, write};
use block::{Abilities, Channel, Device, Error, ErrorKind, Info, Op, Reactor};
use block_opal::crypto::xts::{XtsCipher, XtsKey};
use block_opal::layer::outer_info;
use block_opal::{Extent, Layout, RangeMap};

use super::drive::{Drive, key, open};
use super::{OWN, all, memory};

const UNIT: u32 = 512;

struct Fixture {
    channel: Box<dyn Channel>,
    below: Box<dyn Channel>,
    reactor: Reactor,
    drive: Drive,
}

impl Fixture {
    fn new(drive: Drive) -> Self {
        let reactor = Reactor::new(8).unwrap();
        let (channel, below) = (drive.channel(&reactor).unwrap(), drive.inner.channel(&reactor).unwrap());
        Self { channel, below, reactor, drive }
    }

    fn sparse() -> Self {
        Self::new(Drive::locked(memory(UNIT), true))
    }

    fn full() -> Self {
        Self::new(Drive::locked(memory(UNIT), false))
    }

    fn publish(&self, extents: Vec<Extent>) {
        self.drive.shared.publish(RangeMap { extents, shadow: None });
    }

    fn read(&self, lba: u64, blocks: u64) -> Result<Vec<u8>, Error> {
        self.reactor.block_on(read(&*self.channel, UNIT, lba, blocks))
    }

    fn write(&self, lba: u64, bytes: &[u8]) -> Result<(), Error> {
        self.reactor.block_on(write(&*self.channel, UNIT, lba, bytes))
    }

    fn op(&self, op: Op, lba: u64, blocks: u64) -> Result<(), Error> {
        self.reactor.block_on(run(&*self.channel, plain(op, lba, blocks)))
    }

    /// What lies below the drive's blocks.
    fn below(&self, lba: u64, blocks: u64) -> Vec<u8> {
        let lba = self.drive.layout.data_start() + lba;
        self.reactor.block_on(read(&*self.below, UNIT, lba, blocks)).unwrap()
    }
}

fn assert_denied<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert_eq!(result.unwrap_err().kind(), ErrorKind::AccessDenied);
}

fn blocks(n: u64) -> usize {
    n as usize * UNIT as usize
}

#[test]
fn what_is_locked_is_left_alone() {
    let drive = Fixture::sparse();
    assert_denied(drive.read(0, 1)); // nothing was published yet
    assert_denied(drive.write(0, &[1; 512]));
    drive.op(Op::Flush, 0, 0).unwrap();
    let key = key(1);
    drive.drive.shared.publish(all(key.clone()));
    let data = Rng(1).bytes(blocks(40));
    drive.write(0, &data).unwrap();
    let below = drive.below(0, 40);
    // 0-9 open, 10-19 read-locked, 20-29 write-locked, from 30 on both.
    let extent = |end, read_locked, write_locked| {
        let key = (!(read_locked && write_locked)).then(|| key.clone());
        Extent { end, read_locked, write_locked, key }
    };
    let extents = [(10, false, false), (20, true, false), (30, false, true), (u64::MAX, true, true)];
    drive.publish(extents.map(|(end, reads, writes)| extent(end, reads, writes)).into());
    for (lba, n, reads, writes) in [
        (0, 10, true, true),
        (9, 2, false, true),
        (10, 10, false, true),
        (19, 2, false, false),
        (20, 10, true, false),
        (5, 20, false, false),
        (29, 2, false, false),
        (30, 1, false, false),
        (0, 40, false, false),
    ] {
        let buffer = Buffer::with(&vec![0x77; blocks(n)]);
        let result = drive.reactor.block_on(run(&*drive.channel, buffer.io(Op::Read, lba, n)));
        if reads {
            result.unwrap();
            assert!(buffer.to_vec() == data[blocks(lba)..][..blocks(n)]);
        } else {
            assert_denied(result);
            assert!(buffer.to_vec().iter().all(|byte| *byte == 0x77), "data was moved at {lba}+{n}");
        }
        let new = Rng(2).bytes(blocks(n));
        if writes {
            drive.write(lba, &new).unwrap();
            drive.op(Op::WriteZeroes, lba, n).unwrap();
            drive.op(Op::Discard, lba, n).unwrap();
            drive.write(lba, &data[blocks(lba)..][..blocks(n)]).unwrap();
        } else {
            assert_denied(drive.write(lba, &new));
            assert_denied(drive.op(Op::WriteZeroes, lba, n));
            assert_denied(drive.op(Op::Discard, lba, n));
        }
        assert!(drive.below(0, 40) == below, "something was changed at {lba}+{n}");
    }
    drive.op(Op::Flush, 0, 0).unwrap();
    // What is wrong is wrong in locked ranges, too, and nothing is never locked.
    assert_eq!(drive.op(Op::WriteZeroes, 30, u64::MAX).unwrap_err().kind(), ErrorKind::OutOfRange);
    drive.read(35, 0).unwrap();
}

#[test]
fn who_compares_must_be_able_to_read() {
    let inner = Arc::new(CasDevice::new(UNIT, OWN / u64::from(UNIT) + 64));
    let drive = Fixture::new(Drive::locked(inner, false));
    let key = key(1);
    drive.drive.shared.publish(all(key.clone()));
    let (old, new) = (Rng(1).bytes(blocks(2)), Rng(2).bytes(blocks(2)));
    drive.write(3, &old).unwrap();
    for (read_locked, write_locked) in [(true, false), (false, true)] {
        let locked = Extent { end: u64::MAX, read_locked, write_locked, key: Some(key.clone()) };
        drive.publish(vec![open(4, key.clone()), locked]);
        assert_denied(drive.reactor.block_on(compare_and_write(&*drive.channel, UNIT, 3, &old, &new)));
    }
    drive.drive.shared.publish(all(key));
    assert!(drive.read(3, 2).unwrap() == old);
}

/// No block of 16 bytes is to be found below, wherever it was written to and however it was cut.
#[test]
fn no_plaintext_lies_below() {
    for drive in [Fixture::sparse(), Fixture::full()] {
        drive.publish(vec![open(7, key(1)), open(u64::MAX, key(2))]);
        let block: Vec<u8> = (0..16).map(|n| 0xc0 + n).collect();
        let buffer = Buffer::with(&block.repeat(64 * 32));
        let cuts: &[usize] = &[4, 508, 512, 1000, 24, 4096];
        drive.reactor.block_on(run(&*drive.channel, buffer.io_cut(Op::Write, 0, 64, cuts))).unwrap();
        let below = drive.below(0, 64);
        let mut found: Vec<&[u8]> = below.chunks(16).collect();
        assert!(!found.contains(&&block[..]));
        assert!(!below.windows(16).any(|window| window == block));
        // And equal plaintext makes equal ciphertext nowhere.
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 64 * 32);
    }
}

#[test]
fn another_key_makes_noise_of_what_was_there() {
    let drive = Fixture::sparse();
    let data = Rng(1).bytes(blocks(8));
    drive.drive.shared.publish(all(key(1)));
    drive.write(0, &data).unwrap();
    drive.publish(vec![open(4, key(2)), open(u64::MAX, key(1))]);
    let found = drive.read(0, 8).unwrap();
    assert!(found[blocks(4)..] == data[blocks(4)..]);
    for (found, data) in found[..blocks(4)].chunks(16).zip(data.chunks(16)) {
        assert!(found != data && found.iter().any(|byte| *byte != 0));
    }
    drive.drive.shared.publish(all(key(1)));
    assert!(drive.read(0, 8).unwrap() == data);
}

#[test]
fn holes_of_a_sparse_drive_are_zeroes() {
    let drive = Fixture::sparse();
    drive.drive.shared.publish(all(key(1)));
    assert!(drive.read(0, 64).unwrap().iter().all(|byte| *byte == 0), "never written");
    let data = Rng(1).bytes(blocks(16));
    drive.write(8, &data).unwrap();
    drive.op(Op::Discard, 10, 2).unwrap();
    drive.op(Op::WriteZeroes, 14, 3).unwrap();
    let mut expected = data.clone();
    expected[blocks(2)..blocks(4)].fill(0);
    expected[blocks(6)..blocks(9)].fill(0);
    assert!(drive.read(8, 16).unwrap() == expected);
    assert!(drive.below(10, 2).iter().all(|byte| *byte == 0), "space is given back");
    // Zeroes that are written are data like other data; and data that starts with zeroes is not a hole.
    drive.write(0, &[0; 512]).unwrap();
    assert!(drive.below(0, 1).iter().any(|byte| *byte != 0));
    assert!(drive.read(0, 1).unwrap().iter().all(|byte| *byte == 0));
    // Ciphertext whose first eight bytes are zeroes is decrypted nevertheless.
    let lba = drive.drive.layout.data_start() + 3;
    let mut cipher = vec![0; 512];
    cipher[511] = 1;
    drive.reactor.block_on(write(&*drive.below, UNIT, lba, &cipher)).unwrap();
    assert!(drive.read(3, 1).unwrap()[..16].iter().any(|byte| *byte != 0));
}

#[test]
fn zeroes_of_a_full_drive_are_ciphertext() {
    let drive = Fixture::full();
    drive.publish(vec![open(100, key(1)), open(u64::MAX, key(2))]);
    assert!(!drive.drive.info().abilities.intersects(Abilities::DISCARD | Abilities::DISCARD_ZEROES));
    assert_eq!(drive.op(Op::Discard, 0, 1).unwrap_err().kind(), ErrorKind::Unsupported);
    let data = Rng(1).bytes(blocks(5000));
    drive.write(0, &data).unwrap();
    drive.op(Op::WriteZeroes, 1, 4998).unwrap(); // several pieces
    let (found, below) = (drive.read(0, 5000).unwrap(), drive.below(0, 5000));
    assert!(found[..512] == data[..512] && found[blocks(4999)..] == data[blocks(4999)..]);
    assert!(found[512..blocks(4999)].iter().all(|byte| *byte == 0));
    assert!(below.chunks(16).all(|block| block.iter().any(|byte| *byte != 0)));
}

/// Writes a block of the MBR table as the drive's owner does.
fn put_into_table(drive: &Fixture, key: &XtsKey, lba: u64, plain: &[u8]) {
    let mut cipher = plain.to_vec();
    let at = cipher.as_mut_ptr();
    // SAFETY: all of `cipher`, in place.
    unsafe { XtsCipher::new(key).unwrap().encrypt(lba, at, at, 512, 1) }.unwrap();
    let below = drive.drive.layout.mbr_start() + lba;
    drive.reactor.block_on(write(&*drive.below, UNIT, below, &cipher)).unwrap();
}

#[test]
fn the_shadow_hides_the_drive() {
    let drive = Fixture::sparse();
    let (own, table) = (key(1), key(3));
    drive.drive.shared.publish(all(own.clone()));
    let data = Rng(1).bytes(blocks(8));
    drive.write(0, &data).unwrap();
    // One block of the table; the others hold nothing.
    let image = Rng(2).bytes(blocks(1));
    put_into_table(&drive, &table, 1, &image);
    let locked = Extent { end: u64::MAX, read_locked: true, write_locked: true, key: None };
    drive.drive.shared.publish(RangeMap { extents: vec![locked], shadow: Some(table) });
    let found = drive.read(0, 3).unwrap();
    assert!(found[512..1024] == image);
    assert!(found[..512].iter().chain(&found[1024..]).all(|byte| *byte == 0));
    drive.op(Op::Flush, 0, 0).unwrap();
    for op in [Op::WriteZeroes, Op::Discard] {
        assert_denied(drive.op(op, 0, 1));
    }
    assert_denied(drive.write(0, &data));
    drive.drive.shared.publish(all(own));
    assert!(drive.read(0, 8).unwrap() == data);
}

#[test]
fn beyond_the_shadow_locks_count() {
    let inner = block_memory::MemoryDevice::new(2 * OWN).unwrap();
    let drive = Fixture::new(Drive::locked(Arc::new(inner), true));
    let size = drive.drive.layout.mbr_blocks();
    let (own, table) = (key(1), key(3));
    let image = Rng(2).bytes(blocks(1));
    put_into_table(&drive, &table, size - 1, &image);
    drive.drive.shared.publish(all(own.clone()));
    let data = Rng(1).bytes(blocks(4));
    drive.write(size, &data).unwrap();
    let extents = vec![open(size + 2, own.clone()), Extent { read_locked: true, ..open(u64::MAX, own) }];
    drive.drive.shared.publish(RangeMap { extents, shadow: Some(table) });
    assert!(drive.read(size, 2).unwrap() == data[..1024]);
    assert_denied(drive.read(size + 1, 2));
    assert!(drive.read(size - 1, 1).unwrap() == image);
    assert_denied(drive.read(size - 1, 2));
    assert_denied(drive.write(size, &data[..512]));
}

#[test]
fn idle_channels_let_go_of_keys() {
    let drive = Fixture::sparse();
    let shared = &drive.drive.shared;
    assert!(shared.is_settled());
    let first = key(1);
    let alive = Arc::downgrade(&first);
    shared.publish(all(first));
    drive.read(0, 1).unwrap();
    shared.publish(all(key(2)));
    assert!(!shared.is_settled() && alive.strong_count() > 0, "the reactor has not turned");
    drive.reactor.turn();
    assert!(shared.is_settled());
    assert_eq!(alive.strong_count(), 0, "no Io came, and the key is gone");
    // Again and again; with an Io before, too.
    for n in 3..20 {
        shared.publish(all(key(n)));
        if n % 3 == 0 {
            drive.read(0, 1).unwrap();
        }
        drive.reactor.turn();
        assert!(shared.is_settled());
    }
    // A channel that is gone is not waited for.
    let other = drive.drive.channel(&drive.reactor).unwrap();
    shared.publish(all(key(1)));
    drive.reactor.turn();
    drop(other);
    assert!(shared.is_settled());
}

#[test]
fn a_reactor_that_sleeps_is_woken_to_let_go() {
    let drive = Fixture::sparse();
    drive.drive.shared.publish(all(key(1)));
    drive.read(0, 1).unwrap();
    drive.reactor.turn();
    let shared = drive.drive.shared.clone();
    let thread = std::thread::spawn(move || shared.publish(all(key(2))));
    // Without the wake-up this takes for ever.
    while drive.reactor.turn() == 0 {
        drive.reactor.park(Duration::MAX);
    }
    thread.join().unwrap();
    assert!(drive.drive.shared.is_settled());
}

/// Whoever knows that a range was locked gets nothing through any more, on any thread.
#[test]
fn locks_hold_at_once_everywhere() {
    const ROUNDS: u64 = 400;
    let drive = Drive::locked(memory(UNIT), true);
    let key = key(1);
    // Odd while it is known to be locked.
    let phase = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let reactor = Reactor::new(8).unwrap();
                let channel = drive.channel(&reactor).unwrap();
                loop {
                    let before = phase.load(Ordering::Acquire);
                    let result = reactor.block_on(write(&*channel, UNIT, 0, &[1; 512]));
                    let after = phase.load(Ordering::Acquire);
                    if before == after && before % 2 == 1 {
                        assert_eq!(result.unwrap_err().kind(), ErrorKind::AccessDenied);
                    }
                    if before >= 2 * ROUNDS {
                        break;
                    }
                    reactor.turn();
                }
            });
        }
        for _ in 0..ROUNDS {
            phase.fetch_add(1, Ordering::AcqRel);
            drive.shared.publish(all(key.clone()));
            let locked = Extent { end: u64::MAX, read_locked: true, write_locked: true, key: None };
            drive.shared.publish(RangeMap { extents: vec![locked], shadow: None });
            phase.fetch_add(1, Ordering::AcqRel);
            std::thread::yield_now();
        }
    });
    assert!(drive.shared.is_settled());
}

#[test]
fn what_the_drive_is_like() {
    let mut inner = Info::new(4096, (OWN >> 12) + 100);
    inner.abilities = Abilities::all();
    inner.preferred_granularity = 1 << 14; // 64 MiB: 144 MiB is no multiple
    inner.discard_granularity = 16;
    inner.compare_and_write_blocks = 8;
    inner.atomic_write_blocks = 4;
    let layout = Layout::on(4096, inner.blocks).unwrap();
    let sparse = outer_info(&inner, &layout, true);
    assert_eq!((sparse.blocks, sparse.preferred_granularity, sparse.discard_granularity), (100, 1, 16));
    assert_eq!((sparse.compare_and_write_blocks, sparse.atomic_write_blocks), (0, 4));
    assert_eq!(sparse.abilities, Abilities::all() - Abilities::COMPARE_AND_WRITE);
    let full = outer_info(&inner, &layout, false);
    assert_eq!(full.abilities, Abilities::all() - Abilities::DISCARD - Abilities::DISCARD_ZEROES);
    assert_eq!(full.compare_and_write_blocks, 8);
    inner.abilities = Abilities::VOLATILE_CACHE;
    assert_eq!(outer_info(&inner, &layout, true).abilities, Abilities::VOLATILE_CACHE);
}

#[test]
fn it_grows_with_what_is_below() {
    let own = OWN / u64::from(UNIT);
    let inner = Arc::new(CasDevice::new(UNIT, own + 64));
    let drive = Fixture::new(Drive::locked(inner.clone(), false));
    drive.drive.shared.publish(all(key(1)));
    assert_eq!(drive.read(64, 1).unwrap_err().kind(), ErrorKind::OutOfRange);
    inner.set_blocks(own + 70);
    let info = inner.info();
    drive.drive.shared.resize(&info, Layout::on(UNIT, info.blocks).unwrap());
    assert_eq!(drive.drive.info().blocks, 70);
    let data = Rng(1).bytes(blocks(6));
    drive.write(64, &data).unwrap();
    assert!(drive.read(64, 6).unwrap() == data);
}
