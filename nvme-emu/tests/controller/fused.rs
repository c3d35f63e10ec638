//! Compare and Write as one operation: pairs, halves, and what becomes of both.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::rig::{Build, DATA, PAGE, Rig, admin, nvm};
use block::fault::{Action, FaultDevice, FaultHandle, Ops, Rule};
use block::testing::CasDevice;
use block_memory::MemoryDevice;
use nvme_emu::{ControllerConfig, Limits, NamespaceConfig, Statistics};
use nvme_spec::identify::{IdentifyController, IdentifyNamespace};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::registers::doorbell_offset;
use nvme_spec::status::Status;
use vfio_user_server::{PciFunction, Reset};

/// Where the compared and the written bytes are.
const OLD: u64 = DATA;
const NEW: u64 = DATA + 2 * PAGE;
/// For reads.
const FOUND: u64 = DATA + 4 * PAGE;

/// Namespace 1 has the operation, namespace 2 does not.
fn rig(config: ControllerConfig) -> (Rig, FaultHandle) {
    let disk = FaultDevice::new(Arc::new(CasDevice::new(512, 1024)));
    let handle = disk.handle();
    let mut rig = Rig::new(vec![Arc::new(disk), Arc::new(MemoryDevice::new(1 << 20).unwrap())], config);
    rig.create_queue(1, 64);
    (rig, handle)
}

fn first(lba: u64, blocks: u32) -> Build {
    nvm(NvmOpcode::COMPARE, 1, lba, blocks, OLD).fuse(1)
}

fn second(lba: u64, blocks: u32) -> Build {
    nvm(NvmOpcode::WRITE, 1, lba, blocks, NEW).fuse(2)
}

fn read() -> Build {
    nvm(NvmOpcode::READ, 1, 0, 1, FOUND)
}

/// The statuses of commands that are submitted with one store to the doorbell, which must complete in their order.
#[track_caller]
fn run<const N: usize>(rig: &mut Rig, qid: u16, commands: [Build; N]) -> [Status; N] {
    let cids = rig.submit_together(qid, commands);
    cids.map(|cid| {
        let completion = rig.wait(qid);
        assert_eq!(completion.cid.get(), cid);
        completion.status().code()
    })
}

/// The first bytes of some blocks.
fn found(rig: &mut Rig, lba: u64, blocks: u32) -> Vec<u8> {
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, lba, blocks, FOUND)), Status::SUCCESS);
    rig.read_memory(FOUND, blocks as usize * 512).into_iter().step_by(512).collect()
}

const BOTH: [Status; 2] = [Status::SUCCESS; 2];
const MISMATCH: [Status; 2] = [Status::COMPARE_FAILURE, Status::COMMAND_ABORTED_FAILED_FUSED];
const INVALID: Status = Status::INVALID_FIELD_IN_COMMAND;
const MISSING: Status = Status::COMMAND_ABORTED_MISSING_FUSED;

#[test]
fn a_pair_writes_what_matches() {
    let (mut rig, _) = rig(ControllerConfig::default());
    rig.write_memory(NEW, &[7; 4096]);
    assert_eq!(run(&mut rig, 1, [first(3, 8), second(3, 8)]), BOTH);
    assert_eq!(found(&mut rig, 2, 8), [0, 7, 7, 7, 7, 7, 7, 7]);
    let written = Statistics { reads: 2, writes: 1, bytes_read: 8192, bytes_written: 4096, media_errors: 0 };
    assert_eq!(rig.controller.statistics(), written);
    // The device holds something else now.
    rig.write_memory(NEW, &[9; 4096]);
    assert_eq!(run(&mut rig, 1, [first(10, 2), second(10, 2)]), MISMATCH);
    assert_eq!(found(&mut rig, 10, 2), [7, 0]);
    rig.write_memory(OLD, &[7; 512]);
    assert_eq!(run(&mut rig, 1, [read(), first(10, 2), second(10, 2), read()])[1..3], BOTH);
    assert_eq!(found(&mut rig, 10, 2), [9, 9]);
}

#[test]
fn what_is_no_pair_says_why() {
    let (mut rig, handle) = rig(ControllerConfig::default());
    // Two commands that do not belong together.
    for other in [
        second(4, 2),
        second(3, 1),
        nvm(NvmOpcode::WRITE, 2, 3, 2, NEW).fuse(2),
        nvm(NvmOpcode::READ, 1, 3, 2, NEW).fuse(2),
        nvm(NvmOpcode::COMPARE, 1, 3, 2, NEW).fuse(2),
    ] {
        assert_eq!(run(&mut rig, 1, [first(3, 2), other]), [INVALID; 2]);
    }
    // Halves.
    assert_eq!(run(&mut rig, 1, [first(3, 1), read()]), [MISSING, Status::SUCCESS]);
    assert_eq!(run(&mut rig, 1, [second(3, 1), read()]), [MISSING, Status::SUCCESS]);
    let halves = [first(3, 1), first(3, 1), second(3, 1), second(3, 1), second(3, 1)];
    let statuses = [MISSING, Status::SUCCESS, Status::SUCCESS, MISSING, MISSING];
    assert_eq!(run(&mut rig, 1, halves), statuses);
    // FUSE where it has no meaning.
    for opcode in [NvmOpcode::READ, NvmOpcode::WRITE_ZEROES, NvmOpcode::FLUSH, NvmOpcode::DATASET_MANAGEMENT]
    {
        for fuse in 1..=3 {
            assert_eq!(rig.io(1, nvm(opcode, 1, 0, 1, DATA).fuse(fuse)), INVALID, "{opcode:?} {fuse}");
        }
    }
    for command in [first(0, 1).fuse(2), first(0, 1).fuse(3), second(0, 1).fuse(1), second(0, 1).fuse(3)] {
        assert_eq!(rig.io(1, command), INVALID);
    }
    // What one of the two gets wrong.
    let failed = Status::COMMAND_ABORTED_FAILED_FUSED;
    let run = |rig: &mut Rig, pair| run(rig, 1, pair);
    let exceeded = Status::ATOMIC_WRITE_UNIT_EXCEEDED;
    assert_eq!(run(&mut rig, [first(3, 9), second(3, 9)]), [exceeded; 2]);
    assert_eq!(run(&mut rig, [first(1023, 2), second(1023, 2)]), [Status::LBA_OUT_OF_RANGE, failed]);
    let nowhere = 1 << 40;
    let lost = Status::DATA_TRANSFER_ERROR;
    assert_eq!(run(&mut rig, [first(3, 1).prp(nowhere, 0), second(3, 1)]), [lost, failed]);
    assert_eq!(run(&mut rig, [first(3, 1), second(3, 1).prp(nowhere, 0)]), [failed, lost]);
    handle.add(Rule::new(Action::Fail(block::ErrorKind::WriteFault)).on(Ops::COMPARE_AND_WRITE));
    assert_eq!(run(&mut rig, [first(3, 1), second(3, 1)]), [failed, Status::WRITE_FAULT]);
    handle.clear();
    assert_eq!(run(&mut rig, [first(3, 1), second(3, 1)]), BOTH);
}

#[test]
fn a_namespace_without_the_operation_refuses_both() {
    let (mut rig, _) = rig(ControllerConfig::default());
    let on = |mut command: Build, nsid: u32| {
        command.0.nsid = nsid.into();
        command
    };
    assert_eq!(run(&mut rig, 1, [on(first(3, 1), 2), on(second(3, 1), 2)]), [INVALID; 2]);
    assert_eq!(rig.io(1, nvm(NvmOpcode::COMPARE, 2, 3, 1, OLD)), Status::SUCCESS, "alone it is no matter");
    // One that is read-only refuses the write.
    let config = NamespaceConfig {
        nsid: Some(3),
        device: Arc::new(CasDevice::new(512, 64)),
        uuid: [9; 16],
        read_only: true,
        limits: Limits::default(),
    };
    rig.subsystem.add_namespace(config).unwrap();
    let protected = [Status::COMMAND_ABORTED_FAILED_FUSED, Status::NAMESPACE_IS_WRITE_PROTECTED];
    assert_eq!(run(&mut rig, 1, [on(first(3, 1), 3), on(second(3, 1), 3)]), protected);
}

#[test]
fn identify_says_who_has_it() {
    fn identify<T: zerocopy::FromBytes>(rig: &mut Rig, cns: u32, nsid: u32) -> T {
        let command = admin(AdminOpcode::IDENTIFY, nsid).prp(DATA, 0).dwords(cns, 0);
        assert_eq!(rig.admin(command).0, Status::SUCCESS);
        rig.read_struct(DATA)
    }
    let (mut rig, _) = rig(ControllerConfig::default());
    let controller: IdentifyController = identify(&mut rig, 1, 0);
    assert!(controller.oncs.compare() && controller.fuses.compare_and_write());
    assert_eq!(controller.acwu_z.get(), 7);
    let namespaces: [IdentifyNamespace; 2] = [1, 2].map(|nsid| identify(&mut rig, 0, nsid));
    assert_eq!(namespaces.each_ref().map(|data| data.nsfeat.nsabp()), [true, false]);
    assert_eq!(namespaces.each_ref().map(|data| data.nacwu_z.get()), [7, 0]);
    let log = admin(AdminOpcode::GET_LOG_PAGE, 0).prp(DATA, 0).dwords(1023 << 16 | 5, 0);
    assert_eq!(rig.admin(log).0, Status::SUCCESS);
    assert_eq!(
        rig.read_memory(DATA + 1024 + 5 * 4, 4),
        [1, 0, 0, 0],
        "Compare is supported and changes nothing"
    );

    rig.subsystem.remove_namespace(1).unwrap();
    let controller: IdentifyController = identify(&mut rig, 1, 0);
    assert!(controller.oncs.compare() && !controller.fuses.compare_and_write());
    assert_eq!(controller.acwu_z.get(), 0);
}

/// Whatever is before the pair, and wherever the ring or a batch ends.
#[test]
fn a_pair_may_lie_anywhere() {
    let (mut rig, _) = rig(ControllerConfig::default());
    rig.write_memory(NEW, &[1; 512]);
    for before in (0..=61).chain([29, 30, 31, 32, 33]) {
        let pair = [first(5, 1), second(5, 1)];
        for command in (0..before).map(|_| read()) {
            rig.push(1, command);
        }
        let cids = rig.submit_together(1, pair);
        for _ in 0..before {
            assert_eq!(rig.wait(1).status(), Status::SUCCESS);
        }
        for cid in cids {
            let completion = rig.wait(1);
            assert_eq!((completion.cid.get(), completion.status()), (cid, Status::SUCCESS), "after {before}");
        }
        // The blocks hold zeroes again.
        assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE_ZEROES, 1, 5, 1, 0)), Status::SUCCESS);
    }
}

#[test]
fn the_second_may_come_late_and_keeps_nobody_awake() {
    let (mut rig, _) = rig(ControllerConfig::default());
    rig.write_memory(NEW, &[1; 512]);
    let cid = rig.submit(1, first(5, 1));
    rig.turns(3000);
    assert!(rig.completion(1).is_none());
    assert_eq!(rig.workers[0].in_flight(), 0);
    assert!(!rig.workers[0].needs_turns() && !rig.workers[0].arm(), "the reactor may sleep");
    let second = rig.submit(1, second(5, 1));
    assert!(rig.workers[0].arm(), "there is something to do");
    assert_eq!(rig.wait(1).cid.get(), cid);
    let completion = rig.wait(1);
    assert_eq!((completion.cid.get(), completion.status()), (second, Status::SUCCESS));
    // And what comes instead of it is served.
    let cid = rig.submit(1, first(5, 1));
    rig.turns(20);
    let other = rig.submit(1, read());
    let completion = rig.wait(1);
    assert_eq!((completion.cid.get(), completion.status().code()), (cid, MISSING));
    assert_eq!(rig.wait(1).cid.get(), other);
}

#[test]
fn a_half_goes_with_its_queue_and_with_a_reset() {
    let (mut rig, _) = rig(ControllerConfig::default());
    rig.submit(1, first(5, 1));
    rig.turns(10);
    let delete = admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete).0, Status::SUCCESS);
    assert!(rig.completion(1).is_none(), "it was never taken");
    let delete = admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete).0, Status::SUCCESS);
    rig.create_queue(1, 64);
    assert_eq!(rig.io(1, second(5, 1)), MISSING);
    rig.submit(1, first(5, 1));
    rig.turns(10);
    let mut quiesced = rig.controller.reset(Reset::Device);
    rig.until(|_| quiesced.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready().then_some(()));
    rig.enable();
    rig.create_queue(1, 64);
    assert_eq!(run(&mut rig, 1, [first(5, 1), second(5, 1)]), BOTH);
}

#[test]
fn a_half_moves_with_its_queue() {
    let (mut rig, _) = rig(ControllerConfig { workers: 2, ..ControllerConfig::default() });
    let cid = rig.submit(1, first(5, 1));
    rig.turns(10);
    let to = 1 - rig.controller.queues()[0].worker;
    let mut moving = Box::pin(rig.controller.move_queue(1, to));
    let moved = rig.until(|_| match moving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(result) => Some(result),
        std::task::Poll::Pending => None,
    });
    moved.unwrap();
    rig.turns(10);
    let second = rig.submit(1, second(5, 1));
    for cid in [cid, second] {
        let completion = rig.wait(1);
        assert_eq!((completion.cid.get(), completion.status()), (cid, Status::SUCCESS));
    }
}

#[test]
fn completions_need_a_place_each() {
    let (mut rig, _) = rig(ControllerConfig::default());
    rig.create_queue(2, 4);
    // Three entries fit, and the host takes none.
    rig.submit_together(2, [read(), read(), first(5, 1)]);
    rig.turns(20);
    // Into the places of the first ones, which the completion below says are free.
    assert_eq!(rig.wait(2).status(), Status::SUCCESS);
    assert_eq!(rig.wait(2).status(), Status::SUCCESS);
    rig.submit(2, second(5, 1));
    assert_eq!([rig.wait(2).status(), rig.wait(2).status()], BOTH);
    // A queue that never has two places.
    rig.create_queue(3, 2);
    let half = rig.submit(3, first(5, 1));
    let completion = rig.until(|rig| rig.completion(3));
    assert_eq!((completion.cid.get(), completion.status().code()), (half, MISSING));
    assert_eq!(rig.io(3, read()), Status::SUCCESS);
}

/// A completion queue with room for one more, and a pair that is there as a whole.
#[test]
fn a_pair_waits_for_two_places() {
    let (mut rig, _) = rig(ControllerConfig::default());
    rig.create_queue(2, 4);
    // A long submission queue on the short completion queue 2.
    let sq = 0x1_0000 + 3 * 0x8000;
    let create =
        admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0).prp(sq, 0).dwords(31 << 16 | 3, 2 << 16 | 1);
    assert_eq!(rig.admin(create).0, Status::SUCCESS);
    for (at, mut command) in (0u16..).zip([read(), read(), first(5, 1), second(5, 1)]) {
        command.0.cid = (500 + at).into();
        rig.write_memory(sq + u64::from(at) * 64, zerocopy::IntoBytes::as_bytes(&command.0));
    }
    rig.write_register(doorbell_offset(3, false, 4), 4);
    rig.turns(50);
    assert!(!rig.workers[0].arm(), "the reactor may sleep until the host has taken entries");
    for at in 0..4 {
        let completion = rig.wait(2);
        assert_eq!((completion.cid.get(), completion.status()), (500 + at, Status::SUCCESS));
    }
}

#[test]
fn both_end_with_what_the_device_holds() {
    let (mut rig, handle) = rig(ControllerConfig::default());
    let hold = || handle.add(Rule::new(Action::Hold).on(Ops::COMPARE_AND_WRITE));
    rig.write_memory(NEW, &[1; 512]);
    hold();
    let cids = rig.submit_together(1, [first(5, 1), second(5, 1)]);
    rig.turns(20);
    assert!(rig.completion(1).is_none());
    assert_eq!((rig.workers[0].in_flight(), handle.held().len()), (1, 1));
    handle.release_all();
    for cid in cids {
        let completion = rig.wait(1);
        assert_eq!((completion.cid.get(), completion.status()), (cid, Status::SUCCESS));
    }
    let counted = Statistics { reads: 1, writes: 1, bytes_read: 512, bytes_written: 512, media_errors: 0 };
    assert_eq!(rig.controller.statistics(), counted);
    // A mismatch, late.
    let cids = rig.submit_together(1, [first(5, 1), second(5, 1)]);
    rig.turns(20);
    handle.release_all();
    let ends = [rig.wait(1), rig.wait(1)];
    assert_eq!(ends.map(|end| end.cid.get()), cids);
    assert_eq!(ends.map(|end| end.status().code()), MISMATCH);
    // An abort of either ends both.
    for which in [0, 1] {
        let cids = rig.submit_together(1, [first(5, 1), second(5, 1)]);
        rig.turns(20);
        let abort = admin(AdminOpcode::ABORT, 0).dwords(u32::from(cids[which]) << 16 | 1, 0);
        assert_eq!(rig.admin(abort), (Status::SUCCESS, 0));
        let ends = [rig.wait(1), rig.wait(1)];
        assert_eq!(ends.map(|end| end.cid.get()), cids);
        assert_eq!(ends.map(|end| end.status().code()), [Status::COMMAND_ABORT_REQUESTED; 2]);
    }
    // And so does the queue's deletion.
    rig.submit_together(1, [first(5, 1), second(5, 1)]);
    rig.turns(20);
    let delete = admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete).0, Status::SUCCESS);
    let ends = [rig.wait(1), rig.wait(1)];
    assert_eq!(ends.map(|end| end.status().code()), [Status::COMMAND_ABORTED_SQ_DELETION; 2]);
}

#[test]
fn pairs_are_limited_as_writes() {
    let burst = Duration::from_millis(1);
    let limits = Limits { write_iops: Some(1000), burst, ..Limits::default() };
    let (mut rig, _) = rig(ControllerConfig { limits, ..ControllerConfig::default() });
    let start = Instant::now();
    let sent: Vec<u16> = (0..20).flat_map(|_| rig.submit_together(1, [first(5, 1), second(5, 1)])).collect();
    // Reads of another queue are not.
    rig.create_queue(2, 16);
    assert_eq!(rig.io(2, read()), Status::SUCCESS);
    let done: Vec<u16> = sent.iter().map(|_| rig.wait(1).cid.get()).collect();
    assert_eq!(done, sent);
    // 20 writes, two of them at once: never faster, however slow the machine is.
    assert!(start.elapsed() >= Duration::from_millis(17), "{:?}", start.elapsed());
    // A higher limit is heard of at once.
    rig.controller.set_limits(Limits { write_bandwidth: Some(1), burst, ..Limits::default() });
    rig.turns(3);
    assert_eq!(run(&mut rig, 1, [first(5, 1), second(5, 1)]), BOTH);
    let cids = rig.submit_together(1, [first(5, 1), second(5, 1)]);
    rig.turns(100);
    assert!(rig.completion(1).is_none(), "it would wait for minutes");
    rig.controller.set_limits(Limits { write_bandwidth: Some(1 << 40), burst, ..Limits::default() });
    assert_eq!([rig.wait(1).cid.get(), rig.wait(1).cid.get()], cids);
}
