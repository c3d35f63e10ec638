//! I/Os that take their time: cancelled, waiting for room, under way while keys change.

use std::cell::RefCell;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use block::fault::{Action, FaultDevice, FaultHandle, Ops, Rule};
use block::io::take_lost;
use block::testing::{Buffer, Rng, join_all, poll_once, read, run, write};
use block::{Channel, Device, ErrorKind, Io, IoFuture, Op, Reactor, Segment, Submission};
use block_opal::layer::{Shared, open_channel, open_channel_with};
use block_opal::{Extent, Layout, RangeMap};

use super::drive::{Drive, key};
use super::{all, memory};

const UNIT: u32 = 4096;
const LEN: usize = UNIT as usize;

struct Fixture {
    channel: Box<dyn Channel>,
    reactor: Reactor,
    drive: Drive,
    faults: FaultHandle,
}

/// A drive whose writes (or reads) are held below until they are released, with room for `room` blocks.
fn held(ops: Ops, room: usize) -> Fixture {
    let inner = FaultDevice::new(memory(UNIT));
    let faults = inner.handle();
    let drive = Drive { pool_bytes: room * LEN, ..Drive::locked(Arc::new(inner), true) };
    drive.shared.publish(all(key(1)));
    faults.add(Rule::new(Action::Hold).on(ops));
    let reactor = Reactor::new(8).unwrap();
    Fixture { channel: drive.channel(&reactor).unwrap(), reactor, drive, faults }
}

impl Fixture {
    /// Starts an `Io`, which does not end at once.
    fn start(&self, io: Io) -> Pin<Box<IoFuture>> {
        let Submission::Pending(future) = self.channel.submit(io) else { panic!("it is held") };
        let mut future = Box::pin(future);
        assert!(self.poll(&mut future).is_none());
        future
    }

    fn poll(&self, future: &mut Pin<Box<IoFuture>>) -> Option<Result<(), block::Error>> {
        self.reactor.block_on(poll_once(future)).map(|completed| completed.result)
    }

    fn held(&self) -> Vec<u64> {
        let data_start = self.drive.layout.data_start();
        self.faults.held().into_iter().map(|held| held.lba - data_start).collect()
    }
}

#[test]
fn who_finds_no_room_waits_in_order_and_holds_nothing() {
    let drive = held(Ops::WRITE, 2);
    let buffers: Vec<_> = (0..5).map(|n| Buffer::with(&Rng(n).bytes(LEN))).collect();
    let mut writes: Vec<_> = (0..5).map(|n| drive.start(buffers[n as usize].io(Op::Write, n, 1))).collect();
    assert_eq!(drive.held(), [0, 1]);
    // What waits is not encrypted yet: it is written as it is when there is room.
    let late = Rng(99).bytes(LEN);
    buffers[3].set(0, &late);
    // The third gives up; its memory is free at once, and the fourth is next.
    drop(writes.remove(2));
    assert!(!buffers[2].is_shared());
    assert_eq!(drive.faults.release_all(), 2);
    for write in &mut writes[..2] {
        drive.poll(write).unwrap().unwrap();
    }
    for write in &mut writes[2..] {
        assert!(drive.poll(write).is_none());
    }
    assert_eq!(drive.held(), [3, 4]);
    drive.faults.clear();
    drive.reactor.block_on(join_all(writes.drain(2..)));
    let found = drive.reactor.block_on(read(&*drive.channel, UNIT, 3, 1)).unwrap();
    assert!(found == late);
    assert!(drive.reactor.block_on(read(&*drive.channel, UNIT, 2, 1)).unwrap().iter().all(|byte| *byte == 0));
    assert!(buffers.iter().all(|buffer| !buffer.is_shared()));
    take_lost(0);
}

#[test]
fn what_is_cancelled_gives_its_room_back() {
    let drive = held(Ops::all(), 1);
    let buffers: Vec<_> = (0..3).map(|_| Buffer::with(&[7; LEN])).collect();
    let first = drive.start(buffers[0].io(Op::Write, 0, 1));
    let mut second = drive.start(buffers[1].io(Op::Write, 1, 1));
    assert_eq!(drive.held(), [0]);
    drop(first);
    assert!(!buffers[0].is_shared());
    assert!(drive.poll(&mut second).is_none());
    assert_eq!(drive.held(), [1]);
    // Reads need no room.
    let third = drive.start(buffers[2].io(Op::Read, 2, 1));
    assert_eq!(drive.held(), [1, 2]);
    drop(third);
    drop(second);
    assert!(buffers.iter().all(|buffer| !buffer.is_shared()));
    assert!(drive.held().is_empty());
    // And all goes on.
    drive.faults.clear();
    drive.reactor.block_on(async {
        write(&*drive.channel, UNIT, 0, &[1; 3 * LEN]).await.unwrap(); // more than there is, alone
        assert!(read(&*drive.channel, UNIT, 0, 3).await.unwrap() == [1; 3 * LEN]);
    });
    take_lost(0);
}

/// A channel below that goes on with what was cancelled, as a kernel does.
#[derive(Default)]
struct Stubborn(Rc<RefCell<Vec<block::io::Guard>>>);

impl Channel for Stubborn {
    fn submit(&self, io: Io) -> Submission {
        self.0.borrow_mut().extend(io.guard().cloned());
        Submission::Pending(IoFuture::new(async move {
            std::future::pending::<()>().await;
            io.complete(Ok(()))
        }))
    }
}

#[test]
fn room_and_memory_come_back_when_the_device_below_lets_go() {
    let kept = Rc::default();
    let reactor = Reactor::new(8).unwrap();
    let info = memory(UNIT).info();
    let shared = Shared::new(&info, Layout::on(UNIT, info.blocks).unwrap(), false);
    shared.publish(all(key(1)));
    let below = Box::new(Stubborn(Rc::clone(&kept)));
    let channel = open_channel_with(below, &shared, &reactor, LEN).unwrap();
    let buffers: Vec<_> = (0..2).map(|_| Buffer::with(&[7; LEN])).collect();
    let start = |n: usize| match channel.submit(buffers[n].io(Op::Write, n as u64, 1)) {
        Submission::Pending(future) => Box::pin(future),
        Submission::Done(_) => panic!("it never ends"),
    };
    let (first, mut second) = (start(0), start(1));
    assert!(reactor.block_on(poll_once(&mut second)).is_none());
    drop(first);
    assert_eq!(kept.borrow().len(), 1);
    assert!(buffers[0].is_shared(), "still under way");
    kept.borrow_mut().clear();
    assert!(!buffers[0].is_shared());
    assert!(reactor.block_on(poll_once(&mut second)).is_none());
    assert_eq!(kept.borrow().len(), 1, "there is room now");
    drop(second);
    kept.borrow_mut().clear();
    assert!(!buffers[1].is_shared());
    take_lost(0);
}

#[test]
fn locks_hold_for_what_waits() {
    let drive = held(Ops::WRITE, 1);
    let buffer = Buffer::with(&[7; LEN]);
    let mut first = drive.start(buffer.io(Op::Write, 0, 1));
    let mut second = drive.start(buffer.io(Op::Write, 1, 1));
    let locked = Extent { end: u64::MAX, read_locked: false, write_locked: true, key: Some(key(1)) };
    drive.drive.shared.publish(RangeMap { extents: vec![locked], shadow: None });
    drive.faults.clear();
    drive.poll(&mut first).unwrap().unwrap(); // it was under way
    assert_eq!(drive.poll(&mut second).unwrap().unwrap_err().kind(), ErrorKind::AccessDenied);
    assert!(drive.reactor.block_on(read(&*drive.channel, UNIT, 1, 1)).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn reads_under_way_keep_their_keys_and_no_longer() {
    let drive = held(Ops::READ, 1);
    let data = Rng(1).bytes(2 * LEN);
    drive.reactor.block_on(write(&*drive.channel, UNIT, 0, &data)).unwrap();
    let buffer = Buffer::new(2 * LEN);
    let mut under_way = drive.start(buffer.io_cut(Op::Read, 0, 2, &[100, 4000]));
    drive.drive.shared.publish(all(key(2)));
    drive.reactor.turn();
    assert!(!drive.drive.shared.is_settled());
    drive.faults.clear();
    drive.poll(&mut under_way).unwrap().unwrap();
    assert!(buffer.to_vec() == data);
    assert!(drive.drive.shared.is_settled());
    // One that is cancelled lets go, too.
    drive.faults.add(Rule::new(Action::Hold));
    let under_way = drive.start(buffer.io(Op::Read, 0, 2));
    drive.drive.shared.publish(all(key(1)));
    drive.reactor.turn();
    assert!(!drive.drive.shared.is_settled());
    drop(under_way);
    assert!(drive.drive.shared.is_settled());
    take_lost(0);
}

#[test]
fn a_failure_below_is_a_failure() {
    for action in [Action::Fail(ErrorKind::UnrecoveredRead), Action::FailAfter(ErrorKind::UnrecoveredRead)] {
        let drive = held(Ops::empty(), 1);
        drive.faults.add(Rule::new(action));
        let buffer = Buffer::with(&[7; LEN]);
        for op in [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes] {
            let n = u64::from(op != Op::Flush);
            let result = drive.reactor.block_on(run(&*drive.channel, buffer.io(op, 0, n)));
            assert_eq!(result.unwrap_err().kind(), ErrorKind::UnrecoveredRead, "{op:?}");
        }
        assert!(!buffer.is_shared());
    }
}

/// A channel with a defect: it drops what it gets.
struct Loses;

impl Channel for Loses {
    fn submit(&self, io: Io) -> Submission {
        drop(io);
        Submission::Pending(IoFuture::new(std::future::pending()))
    }
}

#[test]
fn what_is_lost_below_is_known_above() {
    let reactor = Reactor::new(8).unwrap();
    let info = memory(UNIT).info();
    let shared = Shared::new(&info, Layout::on(UNIT, info.blocks).unwrap(), true);
    shared.publish(all(key(1)));
    let channel = open_channel(Box::new(Loses), &shared, &reactor).unwrap();
    for op in [Op::Read, Op::Write, Op::Discard] {
        let buffer = Buffer::new(LEN);
        let (tag, guard) = (5 << 32 | op as u64, Rc::new(buffer.clone()));
        let segments = if op == Op::Discard { Vec::new() } else { segments(&buffer, op) };
        let future = channel.submit(Io::new(op, 0, 1, segments, Some(guard), tag));
        assert_eq!(take_lost(5), [tag]);
        drop(future);
        take_lost(5);
    }
}

/// The segments of a buffer, for an `Io` of another kind than it makes itself: it must outlive that.
fn segments(buffer: &Buffer, op: Op) -> Vec<Segment> {
    let completed = buffer.io(op, 0, 1).complete(Ok(()));
    // SAFETY: `buffer` keeps them.
    let segments = unsafe { completed.segments() }.iter().map(|segment| {
        // SAFETY: as above.
        unsafe { Segment::new(NonNull::new(segment.as_ptr()).unwrap(), segment.len()) }
    });
    segments.collect()
}

/// Over a channel that does not keep segments there are no guards, and nothing waits.
#[test]
fn what_keeps_no_segments_needs_no_guards() {
    let reactor = Reactor::new(8).unwrap();
    let drive = Drive { pool_bytes: 0, ..Drive::locked(memory(UNIT), true) };
    drive.shared.publish(all(key(1)));
    let channel = drive.channel(&reactor).unwrap();
    assert!(!channel.keeps_segments() && channel.prefetches());
    channel.prefetch(Op::Read, u64::MAX, u64::MAX);
    let data = Rng(1).bytes(4 * LEN);
    let buffer = Buffer::with(&data);
    for op in [Op::Write, Op::Read] {
        let segments = segments(&buffer, op);
        let Submission::Done(completed) = channel.submit(Io::new(op, 0, 4, segments, None, 0)) else {
            panic!("it does not keep segments");
        };
        completed.result.unwrap();
        assert!(buffer.to_vec() == data);
    }
}
