//! A cluster that does not answer: nothing waits for it but its own I/O, and nothing of what was given up comes late.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{bed, name, rbd_image, stall, volume};
use block::testing::{Buffer, poll_once, read, write};
use block::{Channel, Device, ErrorKind, Op, Reactor, Submission};
use block_ceph::{ClusterOptions, CreateOptions, RadosDevice, RadosOptions, RbdDevice, RbdOptions};

const BLOCK: u32 = 512;

/// An image and a volume, which must both behave like this; with the bytes that they may have in flight.
fn disks(in_flight: u64, options: &ClusterOptions) -> [(&'static str, Arc<dyn Device>); 2] {
    let cluster = block_ceph::Cluster::connect(options).expect("a connection");
    let image = RbdOptions { in_flight, ..RbdOptions::new("rbd", rbd_image("64M", &[])) };
    let create = CreateOptions { size: 64 << 20, object_size: 4 << 20, data_pool: None };
    let volume = volume("rbd", &name("volume"), &create);
    let volume = RadosOptions { volume, read_only: false, block_size: BLOCK, in_flight };
    [
        ("rbd", Arc::new(RbdDevice::open(&cluster, &image).expect("the image opens"))),
        ("rados", Arc::new(RadosDevice::open(&cluster, &volume).expect("the volume opens"))),
    ]
}

/// Starts an I/O, and polls it so often.
fn begin(
    reactor: &Reactor,
    channel: &dyn Channel,
    io: block::Io,
    polls: u32,
) -> std::pin::Pin<Box<block::IoFuture>> {
    let Submission::Pending(future) = channel.submit(io) else { panic!("done at once") };
    let mut future = Box::pin(future);
    for _ in 0..polls {
        assert!(reactor.block_on(poll_once(&mut future)).is_none(), "done though the cluster is stalled");
        reactor.turn();
    }
    future
}

#[test]
fn what_was_given_up_lets_go_of_the_guest_and_never_overtakes_what_came_later() {
    if !bed().is_there() {
        return;
    }
    for (kind, device) in disks(64 << 20, &bed().options()) {
        let reactor = Reactor::new(64).unwrap();
        let channel = device.channel(&reactor).unwrap();
        let block = |byte: u8| vec![byte; 8 * BLOCK as usize];
        reactor.block_on(write(&*channel, BLOCK, 0, &block(1))).expect("write");
        stall(true);
        let given_up: Vec<_> = (0..8).map(|_| Buffer::with(&block(2))).collect();
        let reading = Buffer::new(8 * BLOCK as usize);
        for buffer in &given_up {
            drop(begin(&reactor, &*channel, buffer.io(Op::Write, 0, 8), 3));
        }
        drop(begin(&reactor, &*channel, reading.io(Op::Read, 0, 8), 3));
        // As a reset sees it: nothing is in flight, no memory is held.
        assert!(given_up.iter().chain([&reading]).all(|buffer| !buffer.is_shared()), "{kind}");
        assert_eq!(reactor.in_flight(), 0, "{kind}");
        // The guest goes on with the same blocks, on another reactor. Its write waits for those before it.
        let other = Reactor::new(64).unwrap();
        let second = device.channel(&other).unwrap();
        let later = Buffer::with(&block(3));
        let mut write = begin(&other, &*second, later.io(Op::Write, 0, 8), 3);
        // What does not touch these blocks is not held up by that: it is in flight.
        let elsewhere = begin(&other, &*second, Buffer::with(&block(4)).io(Op::Write, 64, 8), 1);
        assert!(other.in_flight() > 0, "{kind}");
        stall(false);
        // The first reactor must run: it is the one that hears of what it gave up.
        let mut done = None;
        while done.is_none() {
            reactor.turn();
            other.turn();
            done = other.block_on(poll_once(&mut write));
            std::thread::yield_now();
        }
        done.unwrap().result.expect("write");
        other.block_on(elsewhere).result.expect("write");
        assert!(reading.to_vec().iter().all(|byte| *byte == 0), "{kind}: a read came late");
        let found = other.block_on(read(&*second, BLOCK, 0, 8)).expect("read");
        assert!(found == block(3), "{kind}: a write that was given up came late");
    }
}

#[test]
fn what_is_in_flight_is_bounded_however_often_a_guest_gives_up() {
    if !bed().is_there() {
        return;
    }
    for (kind, device) in disks(1 << 20, &bed().options()) {
        let reactor = Reactor::new(64).unwrap();
        let channel = device.channel(&reactor).unwrap();
        reactor.block_on(write(&*channel, BLOCK, 0, &[1; 512])).expect("write");
        stall(true);
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        let before = resident();
        let buffer = Buffer::new(256 << 10);
        // 64 resets, each with 64 reads of 256 KiB, would be a gigabyte.
        for _ in 0..64 {
            let reads: Vec<_> =
                (0..64).map(|n| begin(&reactor, &*channel, buffer.io(Op::Read, n * 512, 512), 1)).collect();
            drop(reads);
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 64 << 10, "{kind}: {grown} KiB");
        assert!(!buffer.is_shared());
        stall(false);
        let found = reactor.block_on(read(&*channel, BLOCK, 0, 1)).expect("read");
        assert!(found == [1; 512], "{kind}");
    }
}

#[test]
fn an_io_timeout_ends_in_an_error() {
    if !bed().is_there() {
        return;
    }
    let options = ClusterOptions { io_timeout: Some(Duration::from_secs(1)), ..bed().options() };
    for (kind, device) in disks(64 << 20, &options) {
        let reactor = Reactor::new(64).unwrap();
        let channel = device.channel(&reactor).unwrap();
        reactor.block_on(write(&*channel, BLOCK, 0, &[1; 512])).expect("write");
        stall(true);
        let start = std::time::Instant::now();
        let result = reactor.block_on(read(&*channel, BLOCK, 0, 1)).map(drop);
        let error = result.expect_err(&format!("{kind}: no answer {:?}", start.elapsed()));
        assert_eq!(error.kind(), ErrorKind::Timeout, "{kind}: {error}");
        stall(false);
        let found = reactor.block_on(read(&*channel, BLOCK, 0, 1)).expect("read");
        assert!(found == [1; 512], "{kind}");
    }
}

/// The library has to ask the cluster for the lock before the first write: not on the reactor's thread.
#[test]
fn a_first_write_does_not_hold_up_its_thread() {
    if !bed().is_there() {
        return;
    }
    for (kind, device) in disks(64 << 20, &bed().options()) {
        let reactor = Reactor::new(64).unwrap();
        let channel = device.channel(&reactor).unwrap();
        stall(true);
        let writes: Vec<_> = (0..32)
            .map(|n| {
                begin(
                    &reactor,
                    &*channel,
                    Buffer::with(&[7; 512]).io(Op::Write, n * 8192 % 131_072 + n, 1),
                    2,
                )
            })
            .collect();
        assert_eq!(reactor.in_flight(), 32, "{kind}");
        stall(false);
        for write in writes {
            reactor.block_on(write).result.expect("write");
        }
    }
}

#[test]
fn a_disk_on_a_cluster_that_is_gone_is_let_go_of_in_time() {
    if !bed().is_there() {
        return;
    }
    let options = ClusterOptions { timeout: Duration::from_secs(2), ..bed().options() };
    let [(_, image), (_, volume)] = disks(64 << 20, &options);
    stall(true);
    // Comes back although the cluster does not: the two, one after the other, and their connection.
    drop((image, volume));
    assert!(
        block_ceph::left_behind(Duration::ZERO),
        "the cluster is gone: the connection cannot have been closed"
    );
    stall(false);
    // What was left behind ends with the stall. Ceph's threads must not outlive the process's destructors.
    assert!(!block_ceph::left_behind(Duration::from_secs(240)));
}
