//! Many I/Os, several threads, cancelled futures, and nothing left behind.

use std::time::{Duration, Instant};

use super::Suite;
use crate::io::take_lost;
use crate::testing::{Buffer, Rng, join_all, plain, poll_once, read, run, write};
use crate::{Abilities, Device, Info, Io, Op, Reactor, Submission};

const THREADS: u64 = 3;
const CHANNELS: usize = 2;
const DEPTH: usize = 48;
const ROUNDS: usize = 12;

/// Several threads with several channels each keep many I/Os in flight, each on blocks of its own.
pub fn several_threads(suite: &Suite) {
    let device = suite.device();
    let info = device.info();
    let writable = info.abilities.contains(Abilities::WRITE);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (device, info) = (&*device, &info);
            scope.spawn(move || {
                let reactor = Reactor::new(32).expect("a reactor");
                let channels: Vec<_> =
                    (0..CHANNELS).map(|_| device.channel(&reactor).expect("a channel")).collect();
                let share = info.blocks / THREADS;
                let slot = (share / DEPTH as u64).clamp(1, 32);
                let slots = (share / slot).min(DEPTH as u64);
                let works = (0..slots).map(|n| {
                    let lba = thread * share + n * slot;
                    let channel = &*channels[n as usize % CHANNELS];
                    let mut rng = Rng(thread << 32 | n);
                    async move {
                        for _ in 0..ROUNDS {
                            let blocks = 1 + rng.below(slot);
                            let bytes = rng.bytes((blocks * u64::from(info.block_size)) as usize);
                            if writable {
                                write(channel, info.block_size, lba, &bytes).await.expect("write");
                            }
                            let found = read(channel, info.block_size, lba, blocks).await.expect("read");
                            assert!(!suite.contents || !writable || found == bytes, "at {lba}+{blocks}");
                        }
                    }
                });
                let done = reactor.block_on(join_all(works)).len();
                assert_eq!(done as u64, slots);
                assert_eq!(reactor.in_flight(), 0, "completed, but still in the kernel");
                assert!(take_lost(0).is_empty(), "an Io was dropped");
            });
        }
    });
}

/// Threads that write and read the same blocks get no error; afterwards the device holds what is written last.
pub fn shared_blocks(suite: &Suite) {
    let device = suite.device();
    let info = device.info();
    if !info.abilities.contains(Abilities::WRITE) {
        return;
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (device, info) = (&*device, &info);
            scope.spawn(move || hammer(device, info, thread));
        }
    });
    let fixture_reactor = Reactor::new(8).expect("a reactor");
    let channel = device.channel(&fixture_reactor).expect("a channel");
    fixture_reactor.block_on(async {
        let bytes = Rng(9).bytes(16 * info.block_size as usize);
        write(&*channel, info.block_size, 0, &bytes).await.expect("write");
        let found = read(&*channel, info.block_size, 0, 16).await.expect("read");
        assert!(!suite.contents || found == bytes);
    });
}

fn hammer(device: &dyn Device, info: &Info, thread: u64) {
    let reactor = Reactor::new(32).expect("a reactor");
    let channel = device.channel(&reactor).expect("a channel");
    let mut rng = Rng(thread);
    let works: Vec<Io> = (0..400)
        .map(|_| {
            let (lba, blocks) = (rng.below(8), 1 + rng.below(8));
            let buffer = Buffer::new((blocks * u64::from(info.block_size)) as usize);
            let op = if rng.below(2) == 0 { Op::Read } else { Op::Write };
            buffer.io(op, lba, blocks)
        })
        .collect();
    for result in reactor.block_on(join_all(works.into_iter().map(|io| run(&*channel, io)))) {
        result.expect("an I/O on shared blocks");
    }
}

/// Futures that are dropped at any time harm nobody, and the memory of their buffers comes free.
pub fn dropped_futures(suite: &Suite) {
    let fixture = suite.open();
    let writable = fixture.has(Abilities::WRITE);
    let buffers: Vec<_> = (0..64).map(|n| Buffer::at(4 * (n % 3), fixture.bytes(4))).collect();
    for (n, buffer) in buffers.iter().enumerate() {
        let op = if writable && n % 2 == 0 { Op::Write } else { Op::Read };
        match fixture.channel.submit(buffer.io(op, 8, 4)) {
            Submission::Done(completed) => completed.result.expect("an I/O"),
            Submission::Pending(future) => {
                let mut future = Box::pin(future);
                if n % 4 != 0 {
                    let _ = fixture.reactor.block_on(poll_once(&mut future));
                }
                if n % 4 == 3 {
                    fixture.reactor.turn();
                }
                drop(future);
            }
        }
    }
    if fixture.has(Abilities::WRITE | Abilities::WRITE_ZEROES)
        && let Submission::Pending(future) =
            fixture.channel.submit(plain(Op::WriteZeroes, 0, fixture.info.blocks))
    {
        let mut future = Box::pin(future);
        let _ = fixture.reactor.block_on(poll_once(&mut future));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while buffers.iter().any(Buffer::is_shared) || fixture.reactor.in_flight() > 0 {
        assert!(Instant::now() < deadline, "the buffers of cancelled I/Os are still held");
        fixture.reactor.turn();
        std::thread::yield_now();
    }
    take_lost(0); // of the dropped ones, as it should be
    fixture.reactor.block_on(async {
        if writable {
            let bytes = Rng(5).bytes(fixture.bytes(4));
            write(&*fixture.channel, fixture.info.block_size, 8, &bytes).await.expect("write");
            let found = read(&*fixture.channel, fixture.info.block_size, 8, 4).await.expect("read");
            assert!(!suite.contents || found == bytes);
        }
    });
    assert!(take_lost(0).is_empty());
}

/// Whatever still runs holds the guard of its `Io`: who sees it free may use memory and blocks for something else.
pub fn guards_are_held(suite: &Suite) {
    let fixture = suite.open();
    let channel = &*fixture.channel;
    let ops = [
        (Op::Read, Abilities::empty()),
        (Op::Write, Abilities::WRITE),
        (Op::WriteZeroes, Abilities::WRITE | Abilities::WRITE_ZEROES),
        (Op::Discard, Abilities::WRITE | Abilities::DISCARD),
    ];
    for (op, needs) in ops {
        if !fixture.has(needs) {
            continue;
        }
        for round in 0..24u64 {
            let blocks = 1 + round % 16;
            let buffer = Buffer::new(fixture.bytes(blocks));
            if let Submission::Pending(future) = channel.submit(buffer.io(op, round % 7, blocks)) {
                let mut future = Box::pin(future);
                for _ in 0..round % 4 {
                    let _ = fixture.reactor.block_on(poll_once(&mut future));
                    fixture.reactor.turn();
                }
                drop(future);
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            while fixture.reactor.in_flight() > 0 {
                assert!(buffer.is_shared(), "{op:?} is under way, but its guard is free");
                assert!(Instant::now() < deadline, "{op:?} does not end");
                fixture.reactor.turn();
                std::thread::yield_now();
            }
            assert!(!buffer.is_shared(), "{op:?} is over, but its guard is held");
            take_lost(0);
        }
    }
}

/// Opening, using and dropping a device again and again leaves no descriptor and no mapping open.
pub fn nothing_leaks(suite: &Suite) {
    const TIMES: usize = 64;
    let count = |what: &str| match what {
        "fd" => std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        _ => std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count()),
    };
    let open_and_drop = || {
        let fixture = suite.open();
        let (buffer, other) = (Buffer::new(fixture.bytes(1)), Buffer::new(fixture.bytes(1)));
        fixture.reactor.block_on(run(&*fixture.channel, buffer.io(Op::Read, 0, 1))).expect("read");
        // And one that is dropped with I/O under way.
        if let Submission::Pending(future) = fixture.channel.submit(other.io(Op::Read, 1, 1)) {
            let mut future = Box::pin(future);
            let _ = fixture.reactor.block_on(poll_once(&mut future));
        }
        take_lost(0);
    };
    open_and_drop();
    // Under cargo's own runner other tests of this process open and map things meanwhile: a leak grows every time.
    let grows = || {
        let before = ["fd", "maps"].map(count);
        (0..TIMES).for_each(|_| open_and_drop());
        let after = ["fd", "maps"].map(count);
        before.into_iter().zip(after).any(|(before, after)| after >= before + TIMES / 2)
    };
    assert!((0..5).any(|_| !grows()), "descriptors or mappings are left behind");
}
