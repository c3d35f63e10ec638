//! What happens to commands that the device holds: abort, queue deletion, reset, memory taken away, a namespace
//! removed, an `Io` lost.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::rig::{DATA, MEMORY, PAGE, Rig, admin, nvm};
use block::fault::{Action, FaultDevice, FaultHandle, Ops, Rule};
use block::io::Guard;
use block::{Channel, Device, Error, ErrorKind, Info, Io, IoFuture, Op, Reactor, Submission};
use block_memory::MemoryDevice;
use nvme_emu::ControllerConfig;
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::registers::{CC, ShutdownStatus, doorbell_offset};
use nvme_spec::status::Status;
use vfio_user_server::{PciFunction, Quiesced, Reset};

/// A controller on a memory disk that holds whatever `ops` says.
fn holding(ops: Ops) -> (Rig, FaultHandle) {
    let disk = FaultDevice::new(Arc::new(MemoryDevice::new(16 << 20).unwrap()));
    let handle = disk.handle();
    let mut rig = Rig::new(vec![Arc::new(disk)], ControllerConfig::default());
    rig.create_queue(1, 64);
    handle.add(Rule::new(Action::Hold).on(ops));
    (rig, handle)
}

fn is_ready(future: &mut Quiesced) -> bool {
    matches!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
}

#[test]
fn a_held_command_completes_when_it_is_released() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.write_memory(DATA, &[0xAA; 4096]);
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 8, 8, DATA)), Status::SUCCESS);
    let cid = rig.submit(1, nvm(NvmOpcode::READ, 1, 8, 8, DATA + PAGE));
    rig.turns(100);
    assert!(rig.completion(1).is_none());
    assert!(rig.workers[0].in_flight() > 0);
    handle.release_all();
    assert_eq!(rig.wait(1).cid.get(), cid);
    assert_eq!(rig.read_memory(DATA + PAGE, 4096), [0xAA; 4096]);
    assert!(rig.workers[0].in_flight() == 0);
}

#[test]
fn abort_ends_a_command_that_the_device_holds() {
    let (mut rig, _handle) = holding(Ops::READ);
    let cid = rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    let abort = admin(AdminOpcode::ABORT, 0).dwords(u32::from(cid) << 16 | 1, 0);
    assert_eq!(rig.admin(abort), (Status::SUCCESS, 0));
    let completion = rig.wait(1);
    assert_eq!(completion.cid.get(), cid);
    assert_eq!(completion.status().code(), Status::COMMAND_ABORT_REQUESTED);
    assert_eq!(rig.admin(abort), (Status::SUCCESS, 1), "there is nothing to abort any more");
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS);
}

#[test]
fn deleting_a_queue_ends_its_commands_first() {
    let (mut rig, _handle) = holding(Ops::READ);
    for _ in 0..3 {
        rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    }
    rig.turns(10);
    let delete = admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete).0, Status::SUCCESS);
    for _ in 0..3 {
        let completion = rig.completion(1).expect("posted before the deletion completed");
        assert_eq!(completion.status().code(), Status::COMMAND_ABORTED_SQ_DELETION);
    }
    assert_eq!(rig.admin(delete).0, Status::INVALID_QUEUE_IDENTIFIER);
    let delete_cq = admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete_cq).0, Status::SUCCESS);
    rig.create_queue(1, 64);
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS);
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_posts_nothing() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.write_memory(DATA, &[0x55; 4096]);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    rig.write_register(CC, 0x0046_0000);
    rig.turns(50);
    assert!(rig.csts().rdy(), "a command still holds guest memory");
    handle.release_all();
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    assert!(rig.completion(1).is_none());
    handle.clear();
    rig.enable();
    rig.create_queue(1, 64);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::SUCCESS);
}

#[test]
fn a_reset_cancels_what_the_device_does_not_give_back() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.write_memory(DATA, &[0x55; 4096]);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    let mut reset = rig.controller.reset(Reset::Device);
    assert!(!is_ready(&mut reset));
    rig.until(|rig| {
        rig.turn();
        is_ready(&mut reset).then_some(())
    });
    assert!(!rig.csts().rdy());
    handle.release_all();
    rig.turns(50);
    assert_eq!(rig.read_memory(DATA, 4096), [0x55; 4096], "no late write into guest memory");
}

#[test]
fn a_controller_enabled_again_before_it_was_down_comes_up_afresh() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    rig.write_register(CC, 0x0046_0000);
    rig.write_register(CC, 0x0046_0001);
    rig.turns(10);
    handle.clear();
    rig.until(|rig| (rig.workers[0].in_flight() == 0 && !rig.workers[0].needs_turns()).then_some(()));
    assert!(rig.csts().rdy());
    rig.start_queues_afresh();
    rig.create_queue(1, 64);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::SUCCESS);
}

#[test]
fn retired_memory_waits_for_commands_that_hold_it() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.map(MEMORY, PAGE * 4, 2 << 20);
    rig.turn();
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, MEMORY));
    rig.turns(10);
    let _ = rig.host.dma.unmap(MEMORY, PAGE * 4).unwrap();
    let mut retired = rig.controller.retire_memory(Instant::now() + Duration::from_secs(50));
    rig.turns(100);
    assert!(!is_ready(&mut retired));
    // Other memory is of no concern.
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 64, 8, DATA)), Status::SUCCESS);
    handle.release_all();
    rig.until(|_| is_ready(&mut retired).then_some(()));
    assert_eq!(rig.wait(1).status().code(), Status::SUCCESS);
}

#[test]
fn retired_memory_is_taken_from_a_command_at_the_deadline() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.map(MEMORY, PAGE * 4, 2 << 20);
    rig.turn();
    rig.write_memory(2 << 20, &[0x77; 4096]);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, MEMORY));
    rig.turns(10);
    let retired = rig.host.dma.unmap(MEMORY, PAGE * 4).unwrap();
    let mut done = rig.controller.retire_memory(Instant::now() + Duration::from_millis(300));
    rig.until(|_| is_ready(&mut done).then_some(()));
    assert_eq!(rig.wait(1).status().code(), Status::DATA_TRANSFER_ERROR);
    rig.turns(10);
    assert!(!retired.is_held(), "nothing keeps the mapping");
    handle.release_all();
    rig.turns(10);
    assert_eq!(rig.read_memory(2 << 20, 4096), [0x77; 4096]);
}

#[test]
fn unmapped_memory_is_not_kept_by_idle_slots() {
    let (mut rig, handle) = holding(Ops::READ);
    handle.clear();
    rig.map(MEMORY, PAGE * 4, 2 << 20);
    rig.turn();
    for _ in 0..100 {
        assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, MEMORY)), Status::SUCCESS);
    }
    let retired = rig.host.dma.unmap(MEMORY, PAGE * 4).unwrap();
    let mut done = rig.controller.retire_memory(Instant::now() + Duration::from_secs(50));
    rig.until(|_| is_ready(&mut done).then_some(()));
    rig.turn();
    assert!(!retired.is_held());
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, MEMORY)), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn queues_rest_while_their_memory_is_unmapped_and_go_on() {
    let (mut rig, handle) = holding(Ops::READ);
    let cid = rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    // The VMM shuffles its memory map while a command is in flight and another is written.
    let _ = rig.host.dma.unmap(0, MEMORY).unwrap();
    let mut retired = rig.controller.retire_memory(Instant::now() + Duration::from_secs(50));
    handle.release_all();
    rig.until(|_| is_ready(&mut retired).then_some(()));
    handle.clear();
    let next = rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(20);
    rig.map(0, MEMORY, 0);
    assert_eq!(rig.wait(1).cid.get(), cid, "the completion waited for the queue's memory");
    assert_eq!(rig.wait(1).cid.get(), next);
}

#[test]
fn a_removed_namespace_lets_its_commands_end() {
    let (mut rig, handle) = holding(Ops::READ);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    rig.subsystem.remove_namespace(1).unwrap();
    rig.turns(10);
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::INVALID_FIELD_IN_COMMAND);
    handle.release_all();
    assert_eq!(rig.wait(1).status().code(), Status::SUCCESS);
}

#[test]
fn a_full_completion_queue_stops_fetching_and_goes_on() {
    let disk = Arc::new(MemoryDevice::new(16 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    rig.create_queue(1, 4);
    rig.create_queue(2, 64);
    // A long submission queue on the short completion queue 1.
    let sq = 0x1_0000 + 3 * 0x8000;
    let create =
        admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0).prp(sq, 0).dwords(31 << 16 | 3, 1 << 16 | 1);
    assert_eq!(rig.admin(create).0, Status::SUCCESS);
    let read = nvm(NvmOpcode::READ, 1, 0, 1, DATA);
    for i in 0..20u64 {
        let mut command = read.0;
        command.cid = (100 + i as u16).into();
        rig.write_memory(sq + i * 64, zerocopy::IntoBytes::as_bytes(&command));
    }
    rig.write_register(doorbell_offset(3, false, 4), 20);
    rig.turns(50);
    assert!(rig.workers[0].in_flight() == 0, "three entries fit, the rest is not fetched");
    for i in 0..20u16 {
        let completion = rig.wait(1);
        assert_eq!((completion.cid.get(), completion.sqid.get()), (100 + i, 3));
        assert_eq!(completion.status().code(), Status::SUCCESS);
    }
    assert_eq!(rig.io(2, read), Status::SUCCESS);
}

/// A device that forgets its reads.
struct Forgetful(MemoryDevice);

struct ForgetfulChannel(Box<dyn Channel>);

impl Device for Forgetful {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(ForgetfulChannel(self.0.channel(reactor)?)))
    }
}

impl Channel for ForgetfulChannel {
    fn submit(&self, io: Io) -> Submission {
        if io.op == Op::Read {
            drop(io);
            return Submission::Pending(IoFuture::new(std::future::pending()));
        }
        self.0.submit(io)
    }
}

#[test]
fn a_lost_io_fails_its_command() {
    let disk = Forgetful(MemoryDevice::new(1 << 20).unwrap());
    let mut rig = Rig::new(vec![Arc::new(disk)], ControllerConfig::default());
    rig.create_queue(1, 64);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::INTERNAL_ERROR);
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS);
}

#[test]
fn a_failing_device_gives_the_status_of_its_kind() {
    let (mut rig, handle) = holding(Ops::READ);
    for (kind, write, status) in [
        (ErrorKind::UnrecoveredRead, false, Status::UNRECOVERED_READ_ERROR),
        (ErrorKind::WriteFault, true, Status::WRITE_FAULT),
        (ErrorKind::NoSpace, true, Status::CAPACITY_EXCEEDED),
        (ErrorKind::Unreachable, false, Status::INTERNAL_PATH_ERROR),
        (ErrorKind::BadMemory, false, Status::DATA_TRANSFER_ERROR),
        (ErrorKind::AccessDenied, false, Status::ACCESS_DENIED),
    ] {
        handle.clear();
        handle.add(Rule::new(Action::Fail(kind)));
        let opcode = if write { NvmOpcode::WRITE } else { NvmOpcode::READ };
        assert_eq!(rig.io(1, nvm(opcode, 1, 0, 8, DATA)), status, "{kind:?}");
    }
}

#[test]
fn nothing_is_fetched_while_completions_have_no_place() {
    let disk = Arc::new(MemoryDevice::new(16 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    rig.map(MEMORY, PAGE, 3 << 20);
    rig.turn();
    // The completion queue has a region of its own.
    let size = 7 << 16 | 1;
    let create_cq = admin(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0).prp(MEMORY, 0).dwords(size, 1);
    assert_eq!(rig.admin(create_cq).0, Status::SUCCESS);
    let create_sq =
        admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0).prp(0x1_8000, 0).dwords(31 << 16 | 1, 1 << 16 | 1);
    assert_eq!(rig.admin(create_sq).0, Status::SUCCESS);
    let _ = rig.host.dma.unmap(MEMORY, PAGE).unwrap();
    let read = nvm(NvmOpcode::READ, 1, 0, 1, DATA).0;
    for i in 0..20u64 {
        rig.write_memory(0x1_8000 + i * 64, zerocopy::IntoBytes::as_bytes(&read));
    }
    rig.write_register(doorbell_offset(1, false, 4), 20);
    rig.turns(50);
    rig.map(MEMORY, PAGE, 3 << 20);
    rig.turns(50);
    let posted = (0..8).filter(|i| rig.read_memory((3 << 20) + i * 16 + 14, 1)[0] & 1 == 1).count();
    assert_eq!(posted, 7, "as many as fit, not one more");
}

#[test]
fn nothing_is_posted_while_bus_mastering_is_off() {
    let (mut rig, handle) = holding(Ops::READ);
    let cid = rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    rig.host.set_bus_master(false);
    handle.release_all();
    rig.turns(50);
    assert!(rig.completion(1).is_none());
    rig.host.set_bus_master(true);
    assert_eq!(rig.wait(1).cid.get(), cid);
}

#[test]
fn doorbells_of_the_time_before_a_reset_are_no_errors() {
    let (mut rig, handle) = holding(Ops::READ);
    handle.clear();
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::SUCCESS);
    rig.write_register(CC, 0x0046_0000);
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    rig.enable();
    rig.turns(1000); // more than it takes to look at every doorbell
    let log = admin(AdminOpcode::GET_LOG_PAGE, u32::MAX).prp(DATA, 0).dwords(15 << 16 | 1, 0);
    assert_eq!(rig.admin(log).0, Status::SUCCESS);
    assert_eq!(rig.read_memory(DATA, 8), [0; 8], "no entry in the error log");
    // A store to no queue's doorbell is one.
    rig.write_register(doorbell_offset(9, false, 4), 1);
    rig.turns(1000);
    assert_eq!(rig.admin(log).0, Status::SUCCESS);
    assert_eq!(rig.read_memory(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_shutdown_after_a_reset_in_the_middle_of_one_completes() {
    let (mut rig, handle) = holding(Ops::FLUSH);
    rig.write_register(CC, 0x0046_4001);
    rig.turns(10);
    assert_eq!(rig.csts().shst(), ShutdownStatus::OCCURRING);
    rig.write_register(CC, 0x0046_0000);
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    rig.enable();
    assert_eq!(rig.csts().shst(), ShutdownStatus::NORMAL);
    rig.write_register(CC, 0x0046_4001);
    rig.turns(10);
    handle.release_all();
    rig.until(|rig| (rig.csts().shst() == ShutdownStatus::COMPLETE).then_some(()));
}

#[test]
fn a_shutdown_that_cannot_flush_does_not_say_it_is_complete() {
    let (mut rig, handle) = holding(Ops::READ);
    handle.add(Rule::new(Action::Fail(ErrorKind::WriteFault)).on(Ops::FLUSH));
    rig.write_register(CC, 0x0046_4001);
    rig.until(|rig| rig.csts().cfs().then_some(()));
    assert_ne!(rig.csts().shst(), ShutdownStatus::COMPLETE);
}

#[test]
fn a_client_gets_doorbells_that_the_one_before_does_not_have() {
    let (mut rig, _handle) = holding(Ops::READ);
    let before = rig.controller.mappable(0).unwrap().memory;
    let mut gone = rig.controller.detach(Instant::now());
    rig.until(|_| is_ready(&mut gone).then_some(()));
    let after = rig.controller.mappable(0).unwrap().memory;
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_ne!(inode(&before), inode(&after));
    rig.enable();
}

thread_local! {
    /// What the kernel would hold of cancelled I/O on storage that hangs.
    static HELD: RefCell<Vec<Guard>> = const { RefCell::new(Vec::new()) };
}

/// A device on storage that hangs: its reads cannot be taken back.
struct Hanging(MemoryDevice);

struct HangingChannel;

impl Device for Hanging {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn channel(&self, _: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(HangingChannel))
    }
}

impl Channel for HangingChannel {
    fn submit(&self, io: Io) -> Submission {
        HELD.with_borrow_mut(|held| held.extend(io.guard().cloned()));
        Submission::Pending(IoFuture::new(async move {
            let _io = io;
            std::future::pending().await
        }))
    }
}

/// The guest uses memory and blocks again once a reset is done: nothing of the time before may touch them then.
#[test]
fn a_reset_is_not_done_before_the_storage_has_let_go() {
    let mut rig =
        Rig::new(vec![Arc::new(Hanging(MemoryDevice::new(1 << 20).unwrap()))], ControllerConfig::default());
    rig.create_queue(1, 64);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turns(10);
    rig.write_register(CC, 0x0046_0000);
    // Longer than anybody's patience with storage.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(23) {
        rig.turn();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(rig.csts().rdy(), "a read may still write to the guest's memory");
    HELD.take();
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    rig.enable();
}
