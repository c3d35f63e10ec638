//! After the reply to DMA_UNMAP not one byte of the range changes, whatever is in flight; and the reply comes soon.

use std::time::{Duration, Instant};

use nvme_driver::{Arena, Controller, Data, MapAccess, PAGE, QueuePair, io};
use nvme_spec::Status;
use quarry_tests::data::{check_works, run};
use quarry_tests::{Server, UNMAP_LIMIT, io_queues, pattern};

const IOVA: u64 = 0x60_0000_0000;
const LEN: usize = 4 << 20;

fn server(rule: &str) -> Server {
    let text = format!(
        r#"
        [devices.disk]
        type = "memory"
        size = "64M"
        [devices.slow]
        type = "fault"
        on = "disk"
        rules = [{rule}]
        [controllers.vm]
        socket = "vm.sock"
        namespaces = [{{ device = "slow" }}]
        "#
    );
    Server::config(&text, &["vm.sock"])
}

/// Reads into `arena` are in flight, 32 of 64 KiB, on blocks from 32768 on: the controller has fetched them.
fn reads_in_flight(
    queues: &mut QueuePair,
    arena: &std::sync::Arc<Arena>,
    controller: &Controller,
) -> Vec<u16> {
    let sent = (0..32u64)
        .map(|index| {
            let iova = arena.iova() + index * 65536;
            let prps = nvme_driver::Prps::new(controller.arena(), iova, 65536).unwrap();
            let sent = queues.submit(io::read(1, 32768 + index * 128, 128, prps.data())).unwrap();
            // The list must outlive the command, which may take long.
            std::mem::forget(prps);
            sent
        })
        .collect();
    // Of another block, and behind them in the same queue.
    let page = controller.arena().alloc(PAGE).unwrap();
    let last = queues.submit(io::read(1, 0, 8, Data::Prp(page.iova(), 0))).unwrap();
    assert!(queues.wait(last, controller.timeout()).unwrap().status().is_success());
    sent
}

/// Unmaps, measures, fills the memory with a pattern of its own and watches it for `watch`.
#[track_caller]
fn unmap_and_watch(controller: &Controller, arena: &std::sync::Arc<Arena>, watch: Duration) {
    let start = Instant::now();
    controller.unmap(arena).unwrap();
    let took = start.elapsed();
    assert!(took < UNMAP_LIMIT, "the reply took {took:?}");
    let whole = arena.whole();
    let watermark = pattern(0xBAD, LEN);
    whole.write(0, &watermark);
    let start = Instant::now();
    while start.elapsed() < watch {
        assert!(
            whole.to_vec(0, LEN) == watermark,
            "memory changed {:?} after it was taken away",
            start.elapsed()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn fill(controller: &Controller, queues: &mut QueuePair) {
    let buffer = controller.arena().alloc(1 << 20).unwrap();
    buffer.write(0, &pattern(77, 1 << 20));
    let prps = nvme_driver::Prps::new(controller.arena(), buffer.iova(), 1 << 20).unwrap();
    for at in 0..2 {
        assert_eq!(
            run(controller, queues, io::write(1, 32768 + at * 2048, 2048, prps.data())),
            Status::SUCCESS
        );
    }
}

#[test]
fn reads_that_take_a_second() {
    let server = server(
        r#"{ action = "delay", milliseconds = 1000, operations = ["read"], blocks = [32768, 65536] }"#,
    );
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    fill(&controller, &mut queues);
    let arena = Arena::new(LEN, IOVA).unwrap();
    controller.map(&arena, MapAccess::FULL).unwrap();
    let sent = reads_in_flight(&mut queues, &arena, &controller);
    unmap_and_watch(&controller, &arena, Duration::from_millis(1500));
    for cid in sent {
        // Served before the memory went, or ended by its going.
        queues.wait(cid, controller.timeout()).unwrap();
    }
    check_works(&controller, &mut queues, 0, 1);
    server.stop();
}

#[test]
fn reads_that_never_come() {
    let server = server(r#"{ action = "hold", operations = ["read"], blocks = [32768, 65536] }"#);
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    let arena = Arena::new(LEN, IOVA).unwrap();
    controller.map(&arena, MapAccess::FULL).unwrap();
    let sent = reads_in_flight(&mut queues, &arena, &controller);
    unmap_and_watch(&controller, &arena, Duration::from_millis(300));
    for cid in sent {
        let completion = queues.wait(cid, controller.timeout()).unwrap();
        assert!(!completion.status().is_success(), "it was cancelled: {completion:?}");
    }
    check_works(&controller, &mut queues, 0, 1);
    server.stop();
}

/// I/O to other memory goes on meanwhile.
#[test]
fn others_do_not_wait() {
    let server = server(r#"{ action = "hold", operations = ["read"], blocks = [32768, 65536] }"#);
    let controller = server.controller();
    controller.request_queues(2).unwrap();
    let mut queues = controller.create_queue_pair(1, 64).unwrap();
    let mut other = controller.create_queue_pair(2, 16).unwrap();
    let arena = Arena::new(LEN, IOVA).unwrap();
    controller.map(&arena, MapAccess::FULL).unwrap();
    reads_in_flight(&mut queues, &arena, &controller);
    let page = controller.arena().alloc(PAGE).unwrap();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| controller.unmap(&arena));
        let mut meanwhile = 0;
        while !unmap.is_finished() {
            let sent = other.submit(io::read(1, 0, 8, Data::Prp(page.iova(), 0))).unwrap();
            let completion = other.wait(sent, UNMAP_LIMIT).unwrap();
            assert!(completion.status().is_success());
            meanwhile += 1;
        }
        unmap.join().unwrap().unwrap();
        // The unmap takes seconds. Had the reads to wait for it, there would be one or two.
        assert!(meanwhile >= 10, "only {meanwhile} reads of others");
    });
    server.stop();
}

/// Mapped, used and unmapped again and again; the same address means other memory each time.
#[test]
fn the_same_address_again_and_again() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    fill(&controller, &mut queues);
    let before = server.resources();
    for round in 0..100 {
        let arena = Arena::new(LEN, IOVA).unwrap();
        controller.map(&arena, MapAccess::FULL).unwrap();
        let sent = reads_in_flight(&mut queues, &arena, &controller);
        if round % 2 == 0 {
            for cid in &sent {
                assert!(queues.wait(*cid, controller.timeout()).unwrap().status().is_success());
            }
            assert!(arena.whole().to_vec(0, 1 << 20) == pattern(77, 1 << 20), "round {round}");
            unmap_and_watch(&controller, &arena, Duration::ZERO);
        } else {
            unmap_and_watch(&controller, &arena, Duration::from_millis(10));
            for cid in &sent {
                queues.wait(*cid, controller.timeout()).unwrap();
            }
        }
        let gone = run(&controller, &mut queues, io::read(1, 0, 8, Data::Prp(IOVA, 0)));
        assert_eq!(gone, Status::DATA_TRANSFER_ERROR);
    }
    before.assert_settles(server.pid());
    server.stop();
}

/// The memory of a queue goes: that queue is of no use any more, everything else is.
#[test]
fn memory_of_a_queue() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    controller.request_queues(2).unwrap();
    let mut other = controller.create_queue_pair(2, 16).unwrap();
    let arena = Arena::new(LEN, IOVA).unwrap();
    controller.map(&arena, MapAccess::FULL).unwrap();
    let cq = nvme_driver::CompletionQueue::new(1, 16, arena.alloc(PAGE).unwrap(), controller.doorbells());
    let sq = nvme_driver::SubmissionQueue::new(1, 16, arena.alloc(PAGE).unwrap(), controller.doorbells());
    let create = nvme_driver::admin::CreateCq::new(1, 16, cq.memory().iova()).command();
    controller.admin_ok(create).unwrap();
    let create = nvme_driver::admin::CreateSq::new(1, 16, sq.memory().iova(), 1).command();
    controller.admin_ok(create).unwrap();
    let mut queues = QueuePair::new(sq, cq);
    check_works(&controller, &mut queues, 0, 1);
    unmap_and_watch(&controller, &arena, Duration::from_millis(100));
    queues.ring().unwrap();
    queues.sq.doorbell().ring(7).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(arena.whole().to_vec(0, LEN) == pattern(0xBAD, LEN), "a doorbell changes nothing of that");
    // The controller may be fatal, but a reset brings it back.
    if controller.wait_status("anything", |_| true).is_ok() {
        check_works(&controller, &mut other, 0, 2);
    }
    controller.enable().unwrap();
    check_works(&controller, &mut io_queues(&controller), 0, 3);
    server.stop();
}
