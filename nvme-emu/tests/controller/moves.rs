//! Queues that move between the workers of a controller.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block::fault::{Action, FaultDevice, FaultHandle, Ops, Rule};
use block_memory::MemoryDevice;
use nvme_emu::{ControllerConfig, MoveError, QueuePlace};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::registers::CC;
use nvme_spec::status::Status;
use proptest::prelude::*;

use crate::rig::{DATA, PAGE, Rig, admin, nvm};

fn rig(workers: usize, shadow_doorbells: bool) -> (Rig, FaultHandle) {
    let disk = FaultDevice::new(Arc::new(MemoryDevice::new(16 << 20).unwrap()));
    let handle = disk.handle();
    let config = ControllerConfig { workers, shadow_doorbells, ..ControllerConfig::default() };
    (Rig::new(vec![Arc::new(disk)], config), handle)
}

/// Asks for a move; `Some` when it is over.
struct Move(std::pin::Pin<Box<dyn Future<Output = Result<(), MoveError>>>>);

impl Move {
    fn new(rig: &Rig, cqid: u16, worker: usize) -> Self {
        Self(Box::pin(rig.controller.move_queue(cqid, worker)))
    }

    fn result(&mut self) -> Option<Result<(), MoveError>> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

fn move_queue(rig: &mut Rig, cqid: u16, worker: usize) -> Result<(), MoveError> {
    let mut moving = Move::new(rig, cqid, worker);
    rig.until(|_| moving.result())
}

fn worker_of(rig: &Rig, sqid: u16) -> Option<usize> {
    rig.controller.queues().iter().find(|place| place.sqid == sqid).map(|place| place.worker)
}

#[test]
fn queues_are_spread_and_say_where_they_are() {
    let (mut rig, _) = rig(2, false);
    for qid in 1..=4 {
        rig.create_queue(qid, 16);
    }
    let on = |worker| rig.controller.queues().iter().filter(|place| place.worker == worker).count();
    assert_eq!((on(0), on(1)), (2, 2));
    assert_eq!(rig.controller.queues()[0], QueuePlace { sqid: 1, cqid: 1, worker: 0 });
}

#[test]
fn a_moved_queue_goes_on_where_it_was() {
    let (mut rig, _) = rig(3, false);
    rig.create_queue(1, 8);
    for round in 0..40u64 {
        rig.write_memory(DATA, &[round as u8; 4096]);
        assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, round * 8, 8, DATA)), Status::SUCCESS);
        let to = round as usize % 3;
        move_queue(&mut rig, 1, to).unwrap();
        assert_eq!(worker_of(&rig, 1), Some(to));
        assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, round * 8, 8, DATA + PAGE)), Status::SUCCESS);
        assert_eq!(rig.read_memory(DATA + PAGE, 4096), [round as u8; 4096]);
    }
}

#[test]
fn commands_in_flight_end_where_they_are_and_the_next_wait() {
    let (mut rig, handle) = rig(2, false);
    rig.create_queue(1, 16);
    handle.add(Rule::new(Action::Hold).on(Ops::READ).count(1));
    let held = rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    let mut moving = Move::new(&rig, 1, 1);
    rig.turns(10);
    let next = rig.submit(1, nvm(NvmOpcode::READ, 1, 8, 8, DATA));
    rig.turns(50);
    assert_eq!(moving.result(), None);
    assert!(rig.completion(1).is_none(), "no command overtakes the move");
    handle.release_all();
    assert_eq!(rig.until(|_| moving.result()), Ok(()));
    assert_eq!(rig.wait(1).cid.get(), held);
    assert_eq!(rig.wait(1).cid.get(), next);
    assert_eq!(worker_of(&rig, 1), Some(1));
}

#[test]
fn what_cannot_be_moved_is_told() {
    let (mut rig, handle) = rig(2, false);
    assert_eq!(move_queue(&mut rig, 1, 1), Err(MoveError::NoSuchQueue));
    rig.create_queue(1, 16);
    assert_eq!(move_queue(&mut rig, 1, 2), Err(MoveError::NoSuchWorker));
    assert_eq!(move_queue(&mut rig, 1000, 0), Err(MoveError::NoSuchQueue));
    handle.add(Rule::new(Action::Hold).on(Ops::READ));
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    let mut moving = Move::new(&rig, 1, 1);
    rig.turns(10);
    assert_eq!(move_queue(&mut rig, 1, 1), Err(MoveError::Busy));
    // A reset takes the queues and ends the move.
    handle.clear();
    rig.write_register(CC, 0x0046_0000);
    assert_eq!(rig.until(|_| moving.result()), Err(MoveError::NotEnabled));
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    assert_eq!(move_queue(&mut rig, 1, 1), Err(MoveError::NotEnabled));
    assert_eq!(rig.controller.queues(), []);
    rig.enable();
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS);
}

#[test]
fn a_command_of_a_leaving_queue_can_be_aborted() {
    let (mut rig, handle) = rig(2, false);
    rig.create_queue(1, 16);
    handle.add(Rule::new(Action::Hold).on(Ops::READ));
    let cid = rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    let mut moving = Move::new(&rig, 1, 1);
    rig.turns(10);
    let abort = admin(AdminOpcode::ABORT, 0).dwords(u32::from(cid) << 16 | 1, 0);
    assert_eq!(rig.admin(abort), (Status::SUCCESS, 0));
    assert_eq!(rig.wait(1).status().code(), Status::COMMAND_ABORT_REQUESTED);
    assert_eq!(rig.until(|_| moving.result()), Ok(()));
}

#[test]
fn a_leaving_queue_can_be_deleted() {
    let (mut rig, handle) = rig(2, false);
    rig.create_queue(1, 16);
    handle.add(Rule::new(Action::Hold).on(Ops::READ));
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    let mut moving = Move::new(&rig, 1, 1);
    rig.turns(10);
    let delete_sq = admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0).dwords(1, 0);
    let delete_cq = admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete_sq).0, Status::SUCCESS);
    assert_eq!(rig.admin(delete_cq).0, Status::SUCCESS);
    rig.until(|_| moving.result()).ok();
    handle.clear();
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS);
}

/// What a host and an operator may do, in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Turn(usize),
    Write(u16),
    Move(u16, usize),
    Recreate(u16),
    Hold(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3usize).prop_map(Step::Turn),
        4 => (1..4u16).prop_map(Step::Write),
        3 => (1..4u16, 0..3usize).prop_map(|(cqid, worker)| Step::Move(cqid, worker)),
        1 => (1..4u16).prop_map(Step::Recreate),
        1 => any::<bool>().prop_map(Step::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_moved_when_every_command_completes_once(
        steps in proptest::collection::vec(step(), 1..60), shadow in any::<bool>(),
    ) {
        let (mut rig, handle) = rig(3, shadow);
        for qid in 1..4 {
            rig.create_queue(qid, 8);
        }
        let mut waiting = [0; 4];
        let mut moves = Vec::new();
        for step in steps {
            match step {
                // One worker alone: the others are late.
                Step::Turn(worker) => drop(rig.workers[worker].poll()),
                Step::Write(qid) if waiting[usize::from(qid)] < 6 => {
                    rig.submit(qid, nvm(NvmOpcode::WRITE, 1, u64::from(qid), 1, DATA));
                    waiting[usize::from(qid)] += 1;
                }
                Step::Write(_) => {}
                Step::Move(cqid, worker) => moves.push(Move::new(&rig, cqid, worker)),
                Step::Recreate(qid) => {
                    handle.clear();
                    for opcode in [AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, AdminOpcode::DELETE_IO_COMPLETION_QUEUE] {
                        prop_assert_eq!(rig.admin(admin(opcode, 0).dwords(u32::from(qid), 0)).0, Status::SUCCESS);
                    }
                    waiting[usize::from(qid)] = 0;
                    rig.create_queue(qid, 8);
                }
                Step::Hold(true) => drop(handle.add(Rule::new(Action::Hold).on(Ops::WRITE))),
                Step::Hold(false) => handle.clear(),
            }
        }
        handle.clear();
        for qid in 1..4 {
            for _ in 0..waiting[usize::from(qid)] {
                prop_assert_eq!(rig.wait(qid).status().code(), Status::SUCCESS);
            }
        }
        for mut moving in moves {
            let _ = rig.until(|_| moving.result());
        }
        rig.turns(20);
        for qid in 1..4 {
            prop_assert!(rig.completion(qid).is_none());
            prop_assert_eq!(rig.io(qid, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
        }
    }
}
