//! Creation and deletion of queues in every order, full completion queues, doorbells right and wrong.

use std::time::{Duration, Instant};

use nvme_driver::admin::{CreateCq, CreateSq, delete_cq, delete_sq};
use nvme_driver::{Arena, Controller, Data, MapAccess, Options, PAGE, io};
use nvme_spec::event::AsyncEvent;
use nvme_spec::queue::QueuePriority;
use nvme_spec::{Command, Status};
use quarry_tests::data::{buffer, check_works, run};
use quarry_tests::{PATIENCE, Server, io_queues, status};

fn setup() -> (Server, Controller) {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    controller.request_queues(8).unwrap();
    (server, controller)
}

#[test]
fn completion_queue_parameters() {
    let (server, controller) = setup();
    let (memory, _) = buffer(&controller, 1 << 20);
    let good = CreateCq::new(1, 16, memory.iova());
    let create = |cq: CreateCq| status(controller.admin(cq.command()));
    assert_eq!(create(CreateCq { id: 0, ..good }), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(
        create(CreateCq { id: 9, ..good }),
        Status::INVALID_QUEUE_IDENTIFIER,
        "beyond what was granted"
    );
    assert_eq!(create(CreateCq { id: 0xFFFF, ..good }), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(create(CreateCq { entries_z: 0, ..good }), Status::INVALID_QUEUE_SIZE);
    if let Some(beyond) = controller.cap().mqes_z().checked_add(1) {
        assert_eq!(create(CreateCq { entries_z: beyond, ..good }), Status::INVALID_QUEUE_SIZE);
    }
    if controller.cap().cqr() {
        assert_eq!(create(CreateCq { contiguous: false, ..good }), Status::INVALID_FIELD_IN_COMMAND);
    }
    assert_eq!(create(CreateCq { vector: Some(0xFFFF), ..good }), Status::INVALID_INTERRUPT_VECTOR);
    assert_eq!(create(CreateCq { vector: Some(2049), ..good }), Status::INVALID_INTERRUPT_VECTOR);
    assert_eq!(create(CreateCq { base: memory.iova() + 16, ..good }), Status::PRP_OFFSET_INVALID);
    assert_eq!(create(good), Status::SUCCESS);
    assert_eq!(create(good), Status::INVALID_QUEUE_IDENTIFIER, "it exists");
    assert_eq!(create(CreateCq { id: 8, entries_z: controller.cap().mqes_z(), ..good }), Status::SUCCESS);
    server.stop();
}

#[test]
fn submission_queue_parameters() {
    let (server, controller) = setup();
    let (memory, _) = buffer(&controller, 1 << 20);
    let _cq = controller.create_cq(1, 16, None).unwrap();
    let good = CreateSq::new(1, 16, memory.iova(), 1);
    let create = |sq: CreateSq| status(controller.admin(sq.command()));
    assert_eq!(create(CreateSq { id: 0, ..good }), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(
        create(CreateSq { id: 9, ..good }),
        Status::INVALID_QUEUE_IDENTIFIER,
        "beyond what was granted"
    );
    assert_eq!(create(CreateSq { entries_z: 0, ..good }), Status::INVALID_QUEUE_SIZE);
    if let Some(beyond) = controller.cap().mqes_z().checked_add(1) {
        assert_eq!(create(CreateSq { entries_z: beyond, ..good }), Status::INVALID_QUEUE_SIZE);
    }
    assert_eq!(
        create(CreateSq { cqid: 2, ..good }),
        Status::COMPLETION_QUEUE_INVALID,
        "there is no such queue"
    );
    // Base 5.5: 0 (the admin queue) and what is out of range are invalid identifiers.
    assert_eq!(create(CreateSq { cqid: 0, ..good }), Status::INVALID_QUEUE_IDENTIFIER);
    assert_eq!(create(CreateSq { cqid: 0xFFFF, ..good }), Status::INVALID_QUEUE_IDENTIFIER);
    if controller.cap().cqr() {
        assert_eq!(create(CreateSq { contiguous: false, ..good }), Status::INVALID_FIELD_IN_COMMAND);
    }
    assert_eq!(create(CreateSq { base: memory.iova() + 64, ..good }), Status::PRP_OFFSET_INVALID);
    assert_eq!(create(CreateSq { priority: QueuePriority::LOW, ..good }), Status::SUCCESS, "it is ignored");
    assert_eq!(create(good), Status::INVALID_QUEUE_IDENTIFIER, "it exists");
    server.stop();
}

/// A queue where there is no memory is refused, or it rests until the memory comes.
#[test]
fn queues_without_memory_do_no_harm() {
    let (server, controller) = setup();
    let late = Arena::new(1 << 20, 0xDEAD_0000_0000).unwrap();
    for base in [late.iova(), !0 << 12] {
        let cq = status(controller.admin(CreateCq::new(1, 16, base).command()));
        let sq = status(
            controller.admin(CreateSq::new(1, 16, base.wrapping_add(PAGE as u64) & !0xFFF, 1).command()),
        );
        controller.doorbells().of(1, false).ring(3).unwrap();
        let mut other = controller.create_queue_pair(2, 16).unwrap();
        check_works(&controller, &mut other, 0, 1);
        controller.delete_queue_pair(other).unwrap();
        if cq.is_success() && sq.is_success() && base == late.iova() {
            // Three commands wait there: all zeroes, which is Flush of namespace 0.
            controller.map(&late, MapAccess::FULL).unwrap();
            let whole = late.whole();
            let start = Instant::now();
            while !whole.get::<nvme_spec::Completion>(32).phase() {
                assert!(start.elapsed() < PATIENCE, "the queue does not go on when its memory comes");
            }
            controller.unmap(&late).unwrap();
        }
        if sq.is_success() {
            controller.delete_sq(1).unwrap();
        }
        if cq.is_success() {
            controller.delete_cq(1).unwrap();
        }
    }
    server.stop();
}

#[test]
fn deletion_in_every_order() {
    let (server, controller) = setup();
    let delete_sq = |id| status(controller.admin(delete_sq(id)));
    let delete_cq = |id| status(controller.admin(delete_cq(id)));
    for id in [0, 1, 8, 9, 0xFFFF] {
        assert_eq!(delete_sq(id), Status::INVALID_QUEUE_IDENTIFIER, "submission queue {id}");
        assert_eq!(delete_cq(id), Status::INVALID_QUEUE_IDENTIFIER, "completion queue {id}");
    }
    let pair = controller.create_queue_pair(1, 16).unwrap();
    let other = controller.create_sq(2, 16, 1).unwrap();
    assert_eq!(delete_cq(1), Status::INVALID_QUEUE_DELETION, "two submission queues use it");
    assert_eq!(delete_sq(1), Status::SUCCESS);
    assert_eq!(delete_sq(1), Status::INVALID_QUEUE_IDENTIFIER, "twice");
    assert_eq!(delete_cq(1), Status::INVALID_QUEUE_DELETION, "one submission queue uses it");
    assert_eq!(delete_sq(2), Status::SUCCESS);
    assert_eq!(delete_cq(1), Status::SUCCESS);
    assert_eq!(delete_cq(1), Status::INVALID_QUEUE_IDENTIFIER, "twice");
    drop((pair, other));
    // An identifier is as good as new.
    for round in 0..50 {
        let mut pair = controller.create_queue_pair(1, 2 + round).unwrap();
        for seed in 0..5 {
            check_works(&controller, &mut pair, 8, seed);
        }
        controller.delete_queue_pair(pair).unwrap();
    }
    server.stop();
}

#[test]
fn queue_numbers_are_settled_before_queues_exist() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    let set =
        |cdw11| status(controller.admin(nvme_driver::admin::set_features(7, false, 0, cdw11, Data::None)));
    assert_eq!(set(0xFFFF), Status::INVALID_FIELD_IN_COMMAND);
    assert_eq!(set(0xFFFF_0000), Status::INVALID_FIELD_IN_COMMAND);
    assert_eq!(controller.request_queues(4).unwrap(), (4, 4));
    assert_eq!(controller.feature(7).unwrap(), 0x0003_0003);
    let granted = controller.request_queues(0x1000).unwrap();
    assert_eq!(granted, (128, 128), "more than there are is cut");
    let pair = controller.create_queue_pair(3, 16).unwrap();
    assert_eq!(set(0x0003_0003), Status::COMMAND_SEQUENCE_ERROR);
    controller.delete_queue_pair(pair).unwrap();
    server.stop();
}

#[test]
fn longest_queue_wraps() {
    let (server, controller) = setup();
    let entries = u32::from(controller.cap().mqes_z()) + 1;
    let mut pair = controller.create_queue_pair(1, entries).unwrap();
    let (memory, _) = buffer(&controller, PAGE);
    let command = io::read(1, 0, 1, Data::Prp(memory.iova(), 0));
    let mut done = 0;
    for _ in 0..3 {
        while pair.sq.free() > 0 {
            pair.push(&command).unwrap();
        }
        pair.ring().unwrap();
        for _ in 0..entries - 1 {
            let completion = pair.wait_any(controller.timeout()).unwrap();
            assert!(completion.status().is_success());
            done += 1;
        }
    }
    assert_eq!(done, 3 * (entries - 1));
    server.stop();
}

#[test]
fn full_completion_queue_stops_and_resumes() {
    let (server, controller) = setup();
    let mut cq = controller.create_cq(1, 4, None).unwrap();
    let mut sq = controller.create_sq(1, 32, 1).unwrap();
    let (memory, _) = buffer(&controller, PAGE);
    for cid in 0..20u16 {
        let command = io::read(1, u64::from(cid), 1, Data::Prp(memory.iova(), 0));
        sq.push(&Command { cid: cid.into(), ..command }).unwrap();
    }
    sq.ring().unwrap();
    let mut seen = Vec::new();
    while seen.len() < 20 {
        let start = Instant::now();
        let mut run = Vec::new();
        while run.is_empty() {
            assert!(start.elapsed() < PATIENCE, "nothing comes after {} completions", seen.len());
            run.extend(cq.poll());
        }
        // Three fit, and nothing more comes until a slot is given back.
        std::thread::sleep(Duration::from_millis(20));
        while let Some(completion) = cq.poll() {
            run.push(completion);
        }
        assert!(run.len() <= 3, "{} completions in a queue of 4", run.len());
        assert!(run.iter().all(|completion| completion.status().is_success()), "{run:?}");
        seen.extend(run.iter().map(|completion| completion.cid.get()));
        cq.ring().unwrap();
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..20), "each exactly once: {seen:?}");
    server.stop();
}

#[test]
fn doorbells_by_message_and_by_mapping_are_one() {
    let (server, controller) = setup();
    let mut pair = controller.create_queue_pair(1, 16).unwrap();
    let mapped = controller.doorbells();
    let messages = mapped.by_message();
    let (memory, _) = buffer(&controller, PAGE);
    let command = io::read(1, 0, 1, Data::Prp(memory.iova(), 0));
    for round in 0..40 {
        pair.push(&command).unwrap();
        let (way, other) = if round % 2 == 0 { (mapped, &messages) } else { (&messages, mapped) };
        way.of(1, false).ring(pair.sq.tail()).unwrap();
        assert_eq!(mapped.of(1, false).value().unwrap(), pair.sq.tail(), "one register");
        let mut completion = None;
        let start = Instant::now();
        while completion.is_none() {
            completion = pair.cq.poll();
            assert!(start.elapsed() < PATIENCE, "round {round}");
        }
        pair.sq.completed(&completion.unwrap());
        other.of(1, true).ring(pair.cq.head()).unwrap();
        assert_eq!(mapped.of(1, true).value().unwrap(), pair.cq.head(), "one register");
    }
    drop(pair);
    controller.close().unwrap();
    // A whole session without the mapping.
    let options = Options { doorbells_by_message: true, ..Options::default() };
    let controller = server.controller_with("vm.sock", options);
    let mut pair = io_queues(&controller);
    for seed in 0..20 {
        check_works(&controller, &mut pair, 0, seed);
    }
    server.stop();
}

/// Takes the one event that is expected, and unmasks its type by reading the error log.
fn expect_event(controller: &Controller, aer: u16, expected: AsyncEvent) {
    let completion = controller.with_admin(|admin| admin.wait(aer, PATIENCE)).unwrap();
    assert!(completion.status().is_success());
    assert_eq!(AsyncEvent::from_bits(completion.dw0.get()), expected);
    controller.log_page(1, nvme_spec::NSID_BROADCAST, 0, 64).unwrap();
}

#[test]
fn invalid_doorbells_raise_events_and_spare_the_rest() {
    let (server, controller) = setup();
    let mut pair = controller.create_queue_pair(1, 16).unwrap();
    let mut other = controller.create_queue_pair(2, 16).unwrap();
    let message = controller.doorbells().by_message();
    check_works(&controller, &mut pair, 0, 1);

    // Queues that do not exist, or exist no more.
    for (queue, is_cq) in [(5, false), (5, true), (100, false)] {
        let aer = controller.request_event().unwrap();
        message.of(queue, is_cq).ring(1).unwrap();
        expect_event(&controller, aer, AsyncEvent::WRITE_TO_INVALID_DOORBELL_REGISTER);
    }
    // Tails beyond the queue, by message and by mapping. The register keeps what was written and each bad value is told
    // once, so every one is another.
    let mapped = controller.doorbells();
    for (doorbells, value) in [(&message, 16), (mapped, 17), (&message, 0xFFFF), (mapped, 0x8000)] {
        let aer = controller.request_event().unwrap();
        doorbells.of(1, false).ring(value).unwrap();
        expect_event(&controller, aer, AsyncEvent::INVALID_DOORBELL_WRITE_VALUE);
    }
    mapped.of(1, false).ring(pair.sq.tail()).unwrap();
    check_works(&controller, &mut pair, 0, 2);
    // Heads beyond the queue and beyond its tail. The controller looks at a head when it needs room.
    let (memory, _) = buffer(&controller, PAGE);
    for value in [16, 0xFFFF, (pair.cq.head() + 15) % 16] {
        let aer = controller.request_event().unwrap();
        pair.cq.doorbell().ring(value).unwrap();
        for _ in 0..15 {
            pair.push(&io::read(1, 0, 1, Data::Prp(memory.iova(), 0))).unwrap();
        }
        pair.ring().unwrap();
        let mut done = 0;
        while done < 15 {
            if let Some(completion) = pair.cq.poll() {
                pair.sq.completed(&completion);
                done += 1;
            }
            // Not before the event: a good head would hide the bad one.
            if controller.with_admin(|admin| admin.peek(aer)).unwrap() {
                pair.cq.ring().unwrap();
            }
        }
        expect_event(&controller, aer, AsyncEvent::INVALID_DOORBELL_WRITE_VALUE);
        pair.cq.ring().unwrap();
    }
    check_works(&controller, &mut pair, 0, 3);
    // The neighbour never noticed.
    check_works(&controller, &mut other, 64, 9);
    drop(pair);
    server.stop();
}

#[test]
fn deleting_a_queue_ends_its_commands() {
    let server = Server::config(
        r#"
        [devices.disk]
        type = "memory"
        size = "64M"
        [devices.stuck]
        type = "fault"
        on = "disk"
        rules = [{ action = "hold", operations = ["read"], blocks = [1000, 1100] }]
        [controllers.vm]
        socket = "vm.sock"
        namespaces = [{ device = "stuck" }]
        "#,
        &["vm.sock"],
    );
    let controller = server.controller();
    let mut pair = io_queues(&controller);
    let (memory, _) = buffer(&controller, PAGE);
    for cid in 0..10u16 {
        let lba = if cid % 2 == 0 { 1000 } else { 0 };
        let command = io::read(1, lba, 1, Data::Prp(memory.iova(), 0));
        pair.push(&Command { cid: cid.into(), ..command }).unwrap();
    }
    pair.ring().unwrap();
    for _ in 0..5 {
        let completion = pair.wait_any(controller.timeout()).unwrap();
        assert!(completion.status().is_success() && completion.cid.get() % 2 == 1, "{completion:?}");
    }
    controller.delete_sq(1).unwrap();
    // What was held is either announced as aborted, or completed by the deletion itself.
    pair.poll(64, |completion| {
        assert!(completion.status().is(Status::COMMAND_ABORTED_SQ_DELETION), "{completion:?}");
        assert_eq!(completion.cid.get() % 2, 0);
    })
    .unwrap();
    controller.delete_cq(1).unwrap();
    drop(pair);
    let mut pair = controller.create_queue_pair(1, 16).unwrap();
    assert_eq!(run(&controller, &mut pair, io::read(1, 0, 1, Data::Prp(memory.iova(), 0))), Status::SUCCESS);
    server.stop();
}
