//! The reactor against the real kernel.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::AlignedBuf;
use crate::testing::{join_all, poll_once};

struct CountsDrop(Rc<Cell<u32>>, #[expect(dead_code, reason = "kept for the kernel")] (AlignedBuf, OwnedFd));

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A read from an empty pipe: pending until something is written.
fn pipe_read(reactor: &Reactor, drops: &Rc<Cell<u32>>) -> (OwnedFd, RingOp<CountsDrop>) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let buffer = AlignedBuf::new(64, 64).unwrap();
    let entry = opcode::Read::new(types::Fd(reader.as_raw_fd()), buffer.as_ptr(), 64).build();
    let keep = CountsDrop(drops.clone(), (buffer, reader));
    // SAFETY: `keep` owns the buffer (on the heap) and the descriptor, and looks at neither.
    (writer, unsafe { reactor.submit(entry, keep) })
}

fn nop(reactor: &Reactor) -> RingOp<()> {
    // SAFETY: the entry points to nothing.
    unsafe { reactor.submit(opcode::Nop::new().build(), ()) }
}

#[test]
fn operations_complete_with_their_result_and_keep() {
    let reactor = Reactor::new(8).unwrap();
    let drops = Rc::new(Cell::new(0));
    let (writer, read) = pipe_read(&reactor, &drops);
    assert_eq!(reactor.turn(), 0);
    assert_eq!(reactor.in_flight(), 1);
    rustix::io::write(&writer, b"hello").unwrap();
    let (result, keep) = reactor.block_on(read);
    assert_eq!(result, 5);
    assert_eq!(drops.get(), 0);
    drop(keep);
    assert_eq!(drops.get(), 1);
    assert_eq!(reactor.in_flight(), 0);
}

#[test]
fn far_more_operations_than_entries_all_complete() {
    let reactor = Reactor::new(8).unwrap();
    let nops: Vec<_> = (0..5000).map(|_| nop(&reactor)).collect();
    let results = reactor.block_on(join_all(nops));
    assert_eq!(results.len(), 5000);
    assert!(results.iter().all(|(result, ())| *result == 0));
    assert_eq!(reactor.in_flight(), 0);
}

#[test]
fn a_dropped_operation_is_cancelled_and_its_memory_lives_until_then() {
    let reactor = Reactor::new(8).unwrap();
    let drops = Rc::new(Cell::new(0));
    let (_writer, mut read) = pipe_read(&reactor, &drops);
    assert!(reactor.block_on(poll_once(&mut read)).is_none());
    reactor.turn();
    drop(read);
    assert_eq!(drops.get(), 0, "the kernel still has it");
    let deadline = Instant::now() + Duration::from_secs(60);
    while reactor.in_flight() > 0 {
        assert!(Instant::now() < deadline, "never cancelled");
        reactor.turn();
    }
    assert_eq!(drops.get(), 1);
}

#[test]
fn dropping_the_reactor_waits_for_the_kernel() {
    let drops = Rc::new(Cell::new(0));
    let reactor = Reactor::new(8).unwrap();
    let mut writers = Vec::new();
    for submitted in [true, false] {
        for _ in 0..20 {
            let (writer, read) = pipe_read(&reactor, &drops);
            writers.push(writer);
            if submitted {
                reactor.turn();
            }
            drop(read);
        }
    }
    drop(reactor);
    assert_eq!(drops.get(), 40);
}

#[test]
fn a_completed_operation_may_be_dropped_unseen() {
    let reactor = Reactor::new(8).unwrap();
    let op = nop(&reactor);
    while reactor.in_flight() > 0 {
        reactor.turn();
    }
    drop(op);
    // Its slot is used again, under another name.
    let (result, ()) = reactor.block_on(nop(&reactor));
    assert_eq!(result, 0);
    assert_eq!(reactor.0.ops.borrow().in_kernel(), 0);
}

#[test]
fn timers_wake_a_park() {
    let reactor = Reactor::new(8).unwrap();
    let begin = Instant::now();
    // In which order: see `timers`.
    reactor.block_on(join_all([30u64, 10, 20].map(|ms| reactor.sleep(Duration::from_millis(ms)))));
    assert!(begin.elapsed() >= Duration::from_millis(30));
    assert!(begin.elapsed() < Duration::from_secs(60));
    // A sleep that never ends does not overflow anything, and can be dropped.
    let mut forever = Box::pin(reactor.sleep(Duration::MAX));
    assert!(reactor.block_on(poll_once(&mut forever)).is_none());
}

#[test]
fn park_ends_after_max() {
    let reactor = Reactor::new(8).unwrap();
    let begin = Instant::now();
    reactor.park(Duration::from_millis(20));
    assert!(begin.elapsed() >= Duration::from_millis(15));
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn an_unpark_before_the_park_ends_it_at_once() {
    let reactor = Reactor::new(8).unwrap();
    for _ in 0..3 {
        reactor.unparker().unpark();
        reactor.unparker().unpark();
        let begin = Instant::now();
        assert!(!reactor.park(Duration::from_secs(60)));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    // The wish was taken: the next one sleeps.
    let begin = Instant::now();
    reactor.park(Duration::from_millis(20));
    assert!(begin.elapsed() >= Duration::from_millis(15));
}

#[test]
fn an_unpark_that_was_taken_ends_no_park() {
    let reactor = Reactor::new(8).unwrap();
    assert!(!reactor.take_unpark());
    // A waker of its own I/O, as of another thread.
    reactor.unparker().unpark();
    assert!(reactor.take_unpark());
    assert!(!reactor.take_unpark());
    let parked = Instant::now();
    assert!(reactor.park(Duration::from_millis(20)));
    assert!(parked.elapsed() >= Duration::from_millis(20));
    reactor.unparker().unpark();
    assert!(!reactor.park(Duration::from_secs(60)));
}

#[test]
fn no_wake_up_of_another_thread_is_lost() {
    let reactor = Reactor::new(8).unwrap();
    let unparker = reactor.unparker();
    let (to_waker, from_reactor) = mpsc::channel::<u64>();
    let (to_reactor, from_waker) = mpsc::channel();
    let waker = thread::spawn(move || {
        for n in from_reactor {
            if n % 7 == 0 {
                thread::sleep(Duration::from_micros(n % 50));
            }
            to_reactor.send(n).unwrap();
            unparker.unpark();
        }
    });
    for n in 0..20_000 {
        to_waker.send(n).unwrap();
        while from_waker.try_recv().is_err() {
            let parked = Instant::now();
            reactor.park(Duration::from_secs(10));
            assert!(parked.elapsed() < Duration::from_secs(9), "lost at {n}");
            reactor.turn();
        }
    }
    drop(to_waker);
    waker.join().unwrap();
}

#[test]
fn an_operation_ends_a_park() {
    let reactor = Reactor::new(8).unwrap();
    let drops = Rc::new(Cell::new(0));
    let (writer, read) = pipe_read(&reactor, &drops);
    let writing = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        rustix::io::write(&writer, b"x").unwrap();
        writer
    });
    let begin = Instant::now();
    assert_eq!(reactor.block_on(read).0, 1);
    assert!(begin.elapsed() < Duration::from_secs(60));
    writing.join().unwrap();
}

#[test]
fn a_waker_may_use_the_reactor() {
    struct Reenters(std::sync::Mutex<Option<std::thread::ThreadId>>);
    impl Wake for Reenters {
        fn wake(self: Arc<Self>) {
            REACTOR.with_borrow(|reactor| {
                let reactor = reactor.as_ref().unwrap();
                drop(nop(reactor));
                reactor.turn();
            });
            *self.0.lock().unwrap() = Some(thread::current().id());
        }
    }
    thread_local! {
        static REACTOR: RefCell<Option<Reactor>> = const { RefCell::new(None) };
    }
    let reactor = Reactor::new(8).unwrap();
    REACTOR.set(Some(reactor.clone()));
    let reenters = Arc::new(Reenters(std::sync::Mutex::new(None)));
    let waker = Waker::from(reenters.clone());
    let mut op = nop(&reactor);
    assert!(std::pin::Pin::new(&mut op).poll(&mut Context::from_waker(&waker)).is_pending());
    while reactor.turn() == 0 {}
    assert!(reenters.0.lock().unwrap().is_some());
    REACTOR.set(None);
}

#[test]
fn other_threads_complete_operations_and_end_a_sleep() {
    let reactor = Reactor::new(8).unwrap();
    let (tickets, taken) = std::sync::mpsc::channel::<(super::Ticket, i32)>();
    let library = std::thread::spawn(move || {
        while let Ok((ticket, result)) = taken.recv() {
            ticket.complete(result);
        }
    });
    for round in 0..1000 {
        let ops: Vec<_> = (0..4)
            .map(|n| {
                reactor.remote(Box::new(n), |ticket, keep| {
                    tickets.send((ticket, round * 10 + **keep)).unwrap();
                })
            })
            .collect();
        assert!(reactor.in_flight() <= 4);
        for (n, op) in (0..).zip(ops) {
            assert_eq!(reactor.block_on(op), (round * 10 + n, Box::new(n)));
        }
        assert_eq!(reactor.in_flight(), 0);
    }
    drop(tickets);
    library.join().unwrap();
}

#[test]
fn an_abandoned_operation_keeps_its_memory_and_counts_no_more() {
    let reactor = Reactor::new(8).unwrap();
    let memory = Rc::new(());
    let mut ticket = None;
    let op = reactor.remote(memory.clone(), |given, _| ticket = Some(given));
    assert_eq!(reactor.in_flight(), 1);
    drop(op);
    assert_eq!((reactor.in_flight(), Rc::strong_count(&memory)), (0, 2));
    // As it goes through a C library.
    let raw = ticket.unwrap().into_raw();
    reactor.turn();
    assert_eq!(Rc::strong_count(&memory), 2);
    // SAFETY: from `into_raw`, once.
    unsafe { super::Ticket::from_raw(raw) }.complete(0);
    assert_eq!(reactor.turn(), 1);
    assert_eq!(Rc::strong_count(&memory), 1);
    // A ticket that is dropped completes as well.
    let op = reactor.remote((), |ticket, ()| drop(ticket));
    assert_eq!(reactor.block_on(op).0, -libc::ECANCELED);
}

#[test]
fn a_reactor_that_ends_waits_for_abandoned_operations_and_later_completions_harm_nobody() {
    let reactor = Reactor::new(8).unwrap();
    let (memory, mut tickets) = (Rc::new(()), Vec::new());
    for _ in 0..2 {
        drop(reactor.remote(memory.clone(), |ticket, _| tickets.push(ticket)));
    }
    let late = tickets.pop().unwrap();
    let ended = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        tickets.clear();
    });
    drop(reactor);
    ended.join().unwrap();
    // One has ended and was let go of; the other never came, so that its memory is leaked.
    assert_eq!(Rc::strong_count(&memory), 2);
    late.complete(0);
    assert_eq!(Rc::strong_count(&memory), 2);
}
