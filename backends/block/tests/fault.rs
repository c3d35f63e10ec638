//! The fault layer over memory: every action, every way to match, from other threads, under the suite.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::conformance::Suite;
use block::fault::{Action, FaultDevice, FaultHandle, Ops, Rule};
use block::io::take_lost;
use block::testing::{Buffer, join_all, plain, poll_once, read, run, write};
use block::{Channel, Device, ErrorKind, Op, Reactor, Submission, conformance_tests};
use block_memory::MemoryDevice;

fn device() -> FaultDevice {
    FaultDevice::new(Arc::new(MemoryDevice::new(8 << 20).unwrap()))
}

fn with_rule(rule: Rule) -> FaultDevice {
    let device = device();
    device.handle().add(rule);
    device
}

conformance_tests!(passthrough, Suite::new(device));
// A rule that never acts, and rules that act without failing anything.
conformance_tests!(idle_rule, Suite::new(|| with_rule(Rule::new(Action::Hold).probability(0.0, 1))));
conformance_tests!(
    delay,
    Suite::new(|| with_rule(Rule::new(Action::Delay(Duration::from_micros(200))).probability(0.1, 1)))
);
conformance_tests!(
    reorder,
    Suite::new(|| {
        let action = Action::Reorder { window: 5, longest: Duration::from_micros(300) };
        with_rule(Rule::new(action).probability(0.3, 2))
    })
);

fn open() -> (FaultHandle, Reactor, Box<dyn Channel>) {
    let device = device();
    let reactor = Reactor::new(8).unwrap();
    let channel = device.channel(&reactor).unwrap();
    (device.handle(), reactor, channel)
}

/// Which of `n` reads of one block fail.
fn failing_reads(reactor: &Reactor, channel: &dyn Channel, n: u64) -> Vec<u64> {
    let failed = |lba| reactor.block_on(read(channel, 512, lba, 1)).is_err();
    (0..n).filter(|lba| failed(*lba)).collect()
}

#[test]
fn rules_match_by_operation_range_and_count() {
    let (handle, reactor, channel) = open();
    let fail = || Rule::new(Action::Fail(ErrorKind::UnrecoveredRead));
    let failing = |rule| {
        handle.clear();
        let id = handle.add(rule);
        (failing_reads(&reactor, &*channel, 20), handle.counters(id).unwrap())
    };
    assert_eq!(failing(fail()).0.len(), 20);
    assert_eq!(failing(fail().on(Ops::WRITE | Ops::FLUSH)).0, []);
    assert_eq!(failing(fail().blocks(3..5)).0, [3, 4]);
    let (failed, counters) = failing(fail().on(Ops::READ).skip(4).every(3).count(2));
    assert_eq!(failed, [4, 7]);
    assert_eq!((counters.matched, counters.applied), (8, 2));
    let by_chance = failing(fail().probability(0.5, 7)).0;
    assert!((3..18).contains(&by_chance.len()), "{by_chance:?}");
    assert_eq!(failing(fail().probability(0.5, 7)).0, by_chance);
    // A range that is touched from before; a flush has none.
    handle.clear();
    let id = handle.add(fail().blocks(8..9));
    assert!(reactor.block_on(read(&*channel, 512, 0, 16)).is_err());
    assert!(reactor.block_on(read(&*channel, 512, 0, 8)).is_ok());
    assert!(reactor.block_on(run(&*channel, plain(Op::Flush, 0, 0))).is_ok());
    assert_eq!(handle.remove(id).unwrap().applied, 1);
    assert!(handle.remove(id).is_none());
    assert!(failing_reads(&reactor, &*channel, 20).is_empty());
}

#[test]
fn failing_before_and_after() {
    let (handle, reactor, channel) = open();
    reactor.block_on(async {
        for (action, held) in
            [(Action::Fail(ErrorKind::WriteFault), 0), (Action::FailAfter(ErrorKind::WriteFault), 5)]
        {
            handle.add(Rule::new(action).on(Ops::WRITE).count(1));
            let error = write(&*channel, 512, 9, &[5; 512]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WriteFault);
            assert_eq!(read(&*channel, 512, 9, 1).await.unwrap(), [held; 512]);
        }
    });
}

#[test]
fn a_delay_is_kept_and_runs_beside_others() {
    let (handle, reactor, channel) = open();
    handle.add(Rule::new(Action::Delay(Duration::from_millis(40))));
    let begin = Instant::now();
    reactor.block_on(join_all((0..3000).map(|lba| read(&*channel, 512, lba, 1))));
    assert!(begin.elapsed() >= Duration::from_millis(40));
    assert!(begin.elapsed() < Duration::from_secs(120), "one after the other");
}

#[test]
fn held_until_another_thread_releases() {
    let (handle, reactor, channel) = open();
    handle.add(Rule::new(Action::Hold).on(Ops::WRITE));
    let (done, ended) = std::sync::mpsc::channel();
    let operator = std::thread::spawn({
        let handle = handle.clone();
        move || {
            let deadline = Instant::now() + Duration::from_secs(60);
            while handle.held().len() < 4 {
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(1));
            }
            let held = handle.held();
            assert_eq!(held.iter().map(|held| held.lba).collect::<Vec<_>>(), [0, 10, 20, 30]);
            assert!(handle.fail(held[1].id, ErrorKind::Timeout));
            assert!(handle.release(held[3].id));
            assert!(!handle.release(held[3].id), "once");
            // Both of them are over before the others may go on.
            let mut first = [(); 2].map(|()| ended.recv().unwrap());
            first.sort_unstable();
            assert_eq!(first, [1, 3]);
            assert_eq!(handle.release_all(), 2);
        }
    });
    let results = reactor.block_on(join_all((0..4u64).map(|n| {
        let (channel, done) = (&*channel, &done);
        async move {
            let result = write(channel, 512, n * 10, &[1; 512]).await;
            let _ = done.send(n);
            result.map_err(|error| error.kind())
        }
    })));
    operator.join().unwrap();
    assert_eq!(results, [Ok(()), Err(ErrorKind::Timeout), Ok(()), Ok(())]);
    assert!(handle.held().is_empty());
}

#[test]
fn removing_a_rule_releases_its_own() {
    let (handle, reactor, channel) = open();
    let rules = [Ops::READ, Ops::WRITE].map(|ops| handle.add(Rule::new(Action::Hold).on(ops)));
    let buffer = Buffer::new(512);
    let mut futures = [Op::Read, Op::Write].map(|op| Box::pin(channel.submit(buffer.io(op, 0, 1)).wait()));
    reactor.block_on(async {
        for future in &mut futures {
            assert!(poll_once(future).await.is_none());
        }
        handle.remove(rules[0]);
        let [reading, writing] = &mut futures;
        assert!(poll_once(reading).await.unwrap().result.is_ok());
        assert!(poll_once(writing).await.is_none());
        handle.clear();
        assert!(poll_once(writing).await.unwrap().result.is_ok());
    });
}

#[test]
fn dropping_a_held_io_cancels_it() {
    let (handle, reactor, channel) = open();
    handle.add(Rule::new(Action::Hold));
    handle.add(Rule::new(Action::Hold));
    let buffer = Buffer::with(&[8; 512]);
    for polled in [false, true] {
        let Submission::Pending(future) = channel.submit(buffer.io(Op::Write, 0, 1)) else {
            panic!("not held")
        };
        let mut future = Box::pin(future);
        if polled {
            assert!(reactor.block_on(poll_once(&mut future)).is_none());
        }
        assert_eq!(handle.held().len(), 1);
        drop(future);
        assert!(handle.held().is_empty());
        assert!(!buffer.is_shared());
        assert_eq!(take_lost(0).len(), 1);
    }
    handle.clear();
    assert_eq!(reactor.block_on(read(&*channel, 512, 0, 1)).unwrap(), [0; 512]);
}

/// The order in which `n` reads complete.
fn order(reactor: &Reactor, channel: &dyn Channel, n: u64) -> Vec<u64> {
    let order = RefCell::new(Vec::new());
    reactor.block_on(join_all((0..n).map(|lba| {
        let order = &order;
        async move {
            read(channel, 512, lba, 1).await.unwrap();
            order.borrow_mut().push(lba);
        }
    })));
    order.into_inner()
}

#[test]
fn reordering_mixes_within_windows() {
    let mix = |window, seed| {
        let (handle, reactor, channel) = open();
        let longest = Duration::from_millis(20);
        handle.add(Rule::new(Action::Reorder { window, longest }).probability(1.0, seed));
        order(&reactor, &*channel, 19)
    };
    let mixed = mix(8, 3);
    assert_eq!(mixed.len(), 19);
    assert_ne!(mixed, (0..19).collect::<Vec<_>>());
    // The last three did not fill a window: they came when they had waited long enough.
    assert!(mixed[16..].iter().all(|lba| *lba >= 16), "{mixed:?}");
    assert_eq!(mix(19, 3), mix(19, 3), "the seed decides");
    assert_ne!(mix(19, 3), mix(19, 4));
}

#[test]
fn cancelled_ones_do_not_block_a_mixed_queue() {
    let (handle, reactor, channel) = open();
    handle.add(Rule::new(Action::Reorder { window: 6, longest: Duration::from_secs(60) }).count(6));
    let buffer = Buffer::new(512);
    let mut futures: Vec<_> =
        (0..6).map(|lba| Some(Box::pin(channel.submit(buffer.io(Op::Read, lba, 1)).wait()))).collect();
    reactor.block_on(async {
        for n in [1, 4, 0] {
            futures[n] = None;
        }
        let results = join_all(futures.into_iter().flatten()).await;
        assert!(results.len() == 3 && results.iter().all(|completed| completed.result.is_ok()));
    });
    assert!(handle.held().is_empty());
}
