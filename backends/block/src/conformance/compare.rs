//! Compare and write: wholly or not at all, whoever else is there.

use super::{Fixture, Suite};
use crate::testing::{Buffer, Rng, compare_and_write as cas, plain, read, run, write};
use crate::{Abilities, Device, ErrorKind, Op, Reactor};

/// Adders of the counter, and how often each adds one.
const THREADS: u64 = 2;
const TIMES: u64 = 100;

/// What is equal is written, what is not is left alone; bad requests are refused; no update is lost.
pub fn compare_and_write(suite: &Suite) {
    let fixture = suite.open();
    if !suite.contents || !fixture.has(Abilities::WRITE | Abilities::COMPARE_AND_WRITE) {
        return;
    }
    writes_what_matches(&fixture);
    refuses(&fixture);
    counts(&*fixture.device);
}

fn writes_what_matches(fixture: &Fixture) {
    let (channel, block_size) = (&*fixture.channel, fixture.info.block_size);
    let most = u64::from(fixture.info.compare_and_write_blocks).min(256).min(fixture.info.blocks - 2);
    let mut rng = Rng(6);
    fixture.reactor.block_on(async {
        for blocks in [1, most] {
            let len = fixture.bytes(blocks);
            let around = rng.bytes(fixture.bytes(blocks + 2));
            write(channel, block_size, 0, &around).await.expect("write");
            let old = &around[fixture.bytes(1)..][..len];
            let new = rng.bytes(len);
            // A difference in the first, in the last and in some byte.
            for at in [0, len - 1, rng.below(len as u64) as usize] {
                let mut other = old.to_vec();
                other[at] ^= 1;
                let error = cas(channel, block_size, 1, &other, &new).await.expect_err("a mismatch");
                assert_eq!(error.kind(), ErrorKind::CompareMismatch, "{at} of {len}");
                let found = read(channel, block_size, 0, blocks + 2).await.expect("read");
                assert!(found == around, "a mismatch wrote something");
            }
            // Cut in both halves and across their border.
            let buffer = Buffer::with(&[old, &new].concat());
            let io = buffer.io_cut(Op::CompareAndWrite, 1, blocks, &[4, len - 8, 8]);
            run(channel, io).await.expect("a match");
            let mut expected = around.clone();
            expected[fixture.bytes(1)..][..len].copy_from_slice(&new);
            let found = read(channel, block_size, 0, blocks + 2).await.expect("read");
            assert!(found == expected, "after a match of {blocks} blocks");
        }
    });
}

fn refuses(fixture: &Fixture) {
    let channel = &*fixture.channel;
    let op = Op::CompareAndWrite;
    let (blocks, size) = (fixture.info.blocks, fixture.bytes(1));
    let kind = |io| fixture.reactor.block_on(run(channel, io)).err().map(|error| error.kind());
    let two = Buffer::new(2 * size);
    for io in [
        plain(op, 0, 1),
        Buffer::new(size).io(op, 0, 1),
        Buffer::new(2 * size - 4).io(op, 0, 1),
        Buffer::new(2 * size + 4).io(op, 0, 1),
        two.io(op, 0, 0),
        two.io(op, 0, 2),
    ] {
        assert_eq!(kind(io), Some(ErrorKind::InvalidInput));
    }
    for (lba, count) in [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1), (0, u64::MAX), (u64::MAX, u64::MAX)] {
        assert_eq!(kind(two.io(op, lba, count)), Some(ErrorKind::OutOfRange), "{lba}+{count}");
    }
    let many = u64::from(fixture.info.compare_and_write_blocks) + 1;
    if many <= blocks.min(4096) {
        let buffer = Buffer::new(2 * fixture.bytes(many));
        assert_eq!(kind(buffer.io(op, 0, many)), Some(ErrorKind::InvalidInput), "{many} blocks");
    }
}

/// Threads that add to a number in one block see each other's additions.
fn counts(device: &dyn Device) {
    let info = device.info();
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
    let open = || {
        let reactor = Reactor::new(8).expect("a reactor");
        let channel = device.channel(&reactor).expect("a channel");
        (channel, reactor)
    };
    let (channel, reactor) = open();
    let zeroes = vec![0; info.block_size as usize];
    reactor.block_on(write(&*channel, info.block_size, 3, &zeroes)).expect("write");
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let (channel, reactor) = open();
                reactor.block_on(async {
                    let mut added = 0;
                    while added < TIMES {
                        let old = read(&*channel, info.block_size, 3, 1).await.expect("read");
                        let mut new = old.clone();
                        new[..8].copy_from_slice(&(number(&old) + 1).to_le_bytes());
                        match cas(&*channel, info.block_size, 3, &old, &new).await {
                            Ok(()) => added += 1,
                            Err(error) => assert_eq!(error.kind(), ErrorKind::CompareMismatch, "{error}"),
                        }
                    }
                });
            });
        }
    });
    let found = reactor.block_on(read(&*channel, info.block_size, 3, 1)).expect("read");
    assert_eq!(number(&found), THREADS * TIMES, "an update was lost");
}
