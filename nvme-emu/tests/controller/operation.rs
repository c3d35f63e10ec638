//! What an operator sees of a controller and changes of it.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::rig::{DATA, MEMORY, Rig, admin, nvm};
use block::fault::{Action, FaultDevice, Rule};
use block::future::yield_now;
use block::{Channel, Device, Error, Info, Io, IoFuture, Reactor, Submission};
use block_memory::MemoryDevice;
use nvme_emu::{ControllerConfig, Limits, Statistics};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::status::Status;
use vfio_user_server::{PciFunction, Reset};

fn rig(config: ControllerConfig) -> Rig {
    Rig::new(vec![Arc::new(MemoryDevice::new(1 << 20).unwrap())], config)
}

#[test]
fn trapped_doorbells_are_not_mapped_but_work() {
    let mut rig = rig(ControllerConfig { trapped_doorbells: true, ..ControllerConfig::default() });
    assert!(!rig.controller.has_mapped_doorbells() && rig.controller.mappable(0).is_none());
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
}

#[test]
fn statistics_are_the_sum_over_the_workers() {
    let mut rig = rig(ControllerConfig { workers: 2, ..ControllerConfig::default() });
    assert!(rig.controller.has_mapped_doorbells() && rig.controller.mappable(0).is_some());
    assert_eq!(rig.controller.statistics(), Statistics::default());
    for qid in [1, 2] {
        rig.create_queue(qid, 16);
        assert_eq!(rig.io(qid, nvm(NvmOpcode::WRITE, 1, 0, 2, DATA)), Status::SUCCESS);
        assert_eq!(rig.io(qid, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
    }
    let expected = Statistics { reads: 2, writes: 2, bytes_read: 1024, bytes_written: 2048, media_errors: 0 };
    assert_eq!(rig.controller.statistics(), expected);
}

#[test]
fn limits_are_kept_and_changed() {
    let limits = |iops| Limits { iops: Some(iops), ..Limits::default() };
    let mut rig = rig(ControllerConfig { limits: limits(1_000_000), ..ControllerConfig::default() });
    assert_eq!(rig.controller.limits(), limits(1_000_000));
    assert_eq!(rig.subsystem.limits(1).unwrap(), Limits::default());
    rig.controller.set_limits(limits(2_000_000));
    rig.subsystem.set_limits(1, limits(3_000_000)).unwrap();
    assert_eq!(rig.controller.limits(), limits(2_000_000));
    assert_eq!(rig.subsystem.limits(1).unwrap(), limits(3_000_000));
    assert_eq!(rig.subsystem.set_limits(2, limits(1)).unwrap_err().to_string(), "there is no namespace 2");
    // The workers take the messages, and go on.
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
}

/// A burst of a millisecond: one command at these rates.
fn strict(limits: Limits) -> Limits {
    Limits { burst: Duration::from_millis(1), ..limits }
}

#[test]
fn commands_beyond_the_limit_wait_in_order_and_complete() {
    let limits = strict(Limits { iops: Some(1000), ..Limits::default() });
    let mut rig = rig(ControllerConfig { limits, ..ControllerConfig::default() });
    rig.create_queue(1, 64);
    let start = Instant::now();
    let sent: Vec<u16> = (0..50).map(|lba| rig.submit(1, nvm(NvmOpcode::READ, 1, lba, 1, DATA))).collect();
    rig.turns(5);
    assert!(rig.workers[0].in_flight() > 40, "they wait");
    assert!(rig.workers[0].needs_turns(), "and nobody wakes them");
    let done: Vec<u16> = sent.iter().map(|_| rig.wait(1).cid.get()).collect();
    assert_eq!(done, sent);
    // 50 commands, two of them at once: never faster, however slow the machine is.
    assert!(start.elapsed() >= Duration::from_millis(47), "{:?}", start.elapsed());
    // Without a limit nothing waits.
    rig.controller.set_limits(Limits::default());
    rig.turn();
    for lba in 0..50 {
        rig.submit(1, nvm(NvmOpcode::READ, 1, lba, 1, DATA));
    }
    rig.turns(3);
    assert_eq!(rig.workers[0].in_flight(), 0);
}

#[test]
fn writes_that_wait_let_reads_pass() {
    let mut rig = rig(ControllerConfig::default());
    rig.create_queue(1, 64);
    let limits = Limits { write_bandwidth: Some(1), ..Limits::default() };
    rig.subsystem.set_limits(1, strict(limits)).unwrap();
    rig.turn();
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS, "the first one is free");
    let write = rig.submit(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA));
    for _ in 0..20 {
        assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::SUCCESS);
    }
    assert_eq!(rig.workers[0].in_flight(), 1);
    // It would wait for an hour. Who cannot wait aborts it.
    let abort = admin(AdminOpcode::ABORT, 0).dwords(u32::from(write) << 16 | 1, 0);
    assert_eq!(rig.admin(abort), (Status::SUCCESS, 0));
    let completion = rig.wait(1);
    assert_eq!((completion.cid.get(), completion.status().code()), (write, Status::COMMAND_ABORT_REQUESTED));
    // Or the limit is raised.
    let write = rig.submit(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA));
    rig.turns(10);
    rig.subsystem.set_limits(1, Limits { write_bandwidth: Some(1 << 40), ..Limits::default() }).unwrap();
    assert_eq!(rig.wait(1).cid.get(), write);
}

#[test]
fn a_reset_does_not_wait_for_limits() {
    let limits = strict(Limits { iops: Some(1), ..Limits::default() });
    let mut rig = rig(ControllerConfig { limits, ..ControllerConfig::default() });
    rig.create_queue(1, 64);
    for lba in 0..20 {
        rig.submit(1, nvm(NvmOpcode::READ, 1, lba, 1, DATA));
    }
    rig.turns(5);
    assert!(rig.workers[0].in_flight() > 0);
    let mut reset = rig.controller.reset(Reset::Device);
    let mut turns = 0;
    while reset.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        rig.turn();
        turns += 1;
        assert!(turns < 100, "the commands end at once");
    }
    assert_eq!(rig.workers[0].in_flight(), 0);
}

#[test]
fn memory_may_go_while_commands_wait_for_their_limits() {
    let limits = strict(Limits { iops: Some(1), ..Limits::default() });
    let mut rig = rig(ControllerConfig { limits, ..ControllerConfig::default() });
    rig.create_queue(1, 64);
    rig.map(MEMORY, 4096, 0);
    rig.turn();
    for _ in 0..3 {
        rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, MEMORY));
    }
    rig.turns(5);
    let _ = rig.host.dma.unmap(MEMORY, 4096).unwrap();
    let mut retired = rig.controller.retire_memory(Instant::now() + Duration::from_secs(50));
    rig.turns(3);
    assert!(retired.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready(), "they hold none");
    rig.controller.set_limits(Limits::default());
    let mut faults = 0;
    for _ in 0..3 {
        faults += u32::from(rig.wait(1).status().code() == Status::DATA_TRANSFER_ERROR);
    }
    assert!(faults >= 1);
}

/// Turns until `victim`'s command has completed.
fn turns_of_one_command(rig: &mut Rig, victim: u16) -> u32 {
    rig.submit(victim, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
    for turn in 1.. {
        rig.turn();
        if rig.completion(victim).is_some() {
            return turn;
        }
    }
    unreachable!()
}

#[test]
fn a_flooding_queue_does_not_starve_another() {
    let mut rig = rig(ControllerConfig::default());
    for qid in 1..=8 {
        rig.create_queue(qid, 64);
    }
    // Seven queues are always full; the eighth wants one command now and then.
    let mut served = 0;
    for _ in 0..50 {
        for qid in 1..8 {
            while rig.room(qid) > 0 {
                rig.submit(qid, nvm(NvmOpcode::READ, 1, 0, 16, DATA));
            }
        }
        // Each turn serves 64 commands, a batch of two queues. The eighth is one of eight.
        assert!(turns_of_one_command(&mut rig, 8) <= 5);
        for qid in 1..8 {
            while rig.completion(qid).is_some() {
                served += 1;
            }
        }
    }
    assert!(served > 1000, "and the others go on: {served}");
}

/// A PRP list, behind the first page at [`DATA`], of pages that follow it.
fn list_of_pages(rig: &Rig, pages: u64) -> u64 {
    let list = DATA + (1 << 20);
    for page in 1..pages {
        rig.write_memory(list + (page - 1) * 8, &(DATA + page * 4096).to_le_bytes());
    }
    list
}

#[test]
fn a_turn_is_short_for_the_sake_of_other_controllers() {
    let mut rig = rig(ControllerConfig::default());
    rig.create_queue(1, 64);
    let data = list_of_pages(&rig, 64);
    for _ in 0..30 {
        let mut read = nvm(NvmOpcode::READ, 1, 0, 512, DATA).prp(DATA, data);
        read.0.cdw12 = 511.into();
        rig.submit(1, read);
    }
    rig.workers[0].poll();
    let mut done = 0;
    while rig.completion(1).is_some() {
        done += 1;
    }
    assert_eq!(done, 2, "two of 256 KiB each");
}

/// A disk in the kernel's page cache: what it is given is done when the kernel returns, but not earlier.
struct Cached(MemoryDevice);

struct CachedChannel;

impl Device for Cached {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn channel(&self, _: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(CachedChannel))
    }
}

impl Channel for CachedChannel {
    fn submit(&self, io: Io) -> Submission {
        Submission::Pending(IoFuture::new(async move {
            yield_now().await;
            io.complete(Ok(()))
        }))
    }
}

/// The kernel is to begin at once, but is not to be entered for each command, also where it has none from the turn before.
#[test]
fn a_batch_goes_to_the_kernel_in_growing_parts() {
    let disk = || MemoryDevice::new(1 << 20).unwrap();
    let slow = FaultDevice::new(Arc::new(disk()));
    slow.handle().add(Rule::new(Action::Hold));
    let devices: [Arc<dyn Device>; 2] = [Arc::new(Cached(disk())), Arc::new(slow)];
    for device in devices {
        let mut rig = Rig::new(vec![device], ControllerConfig::default());
        rig.create_queue(1, 64);
        let read = || nvm(NvmOpcode::READ, 1, 0, 8, DATA);
        (0..31).for_each(|_| _ = rig.push(1, read()));
        rig.submit(1, read());
        let mut parts = Vec::new();
        while parts.iter().sum::<u32>() < 32 {
            rig.turn();
            parts.push(rig.workers[0].started());
            assert!(parts.len() <= 32, "{parts:?}");
        }
        assert_eq!(parts, [1, 2, 4, 8, 16, 1]);
    }
}

#[test]
fn one_command_for_the_kernel_is_not_much_work() {
    let mut rig =
        Rig::new(vec![Arc::new(Cached(MemoryDevice::new(1 << 20).unwrap()))], ControllerConfig::default());
    rig.create_queue(1, 64);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA));
    rig.turn();
    assert_eq!((rig.workers[0].started(), rig.workers[0].work()), (1, 1), "the kernel moves its data");
}

/// A reactor that slept judges by that whether the guest waited for somebody to look.
#[test]
fn commands_that_a_turn_completes_were_under_way_before_it() {
    let disk = FaultDevice::new(Arc::new(MemoryDevice::new(1 << 20).unwrap()));
    let handle = disk.handle();
    handle.add(Rule::new(Action::Hold));
    let mut rig = Rig::new(vec![Arc::new(disk)], ControllerConfig::default());
    rig.create_queue(1, 64);
    let read = || nvm(NvmOpcode::READ, 1, 0, 8, DATA);
    (0..4).for_each(|_| _ = rig.submit(1, read()));
    rig.turns(3);
    assert_eq!(rig.workers[0].in_flight(), 4);
    handle.release_all();
    rig.submit(1, read());
    rig.turn();
    assert_eq!((rig.workers[0].started(), rig.workers[0].in_flight(), rig.workers[0].before()), (1, 1, 4));
}

#[test]
fn a_queue_that_was_never_used_is_served_beside_busy_ones() {
    let held = |rule: Option<Rule>, blocks: u32, queues: std::ops::RangeInclusive<u16>| {
        let disk = FaultDevice::new(Arc::new(MemoryDevice::new(1 << 20).unwrap()));
        if let Some(rule) = rule {
            disk.handle().add(rule);
        }
        let mut rig = Rig::new(vec![Arc::new(disk)], ControllerConfig::default());
        for qid in 1..=3 {
            rig.create_queue(qid, 256);
        }
        let data = list_of_pages(&rig, 64);
        let mut sent = None;
        for turn in 0..40 {
            for qid in queues.clone() {
                while rig.completion(qid).is_some() {}
                while rig.room(qid) > 100 {
                    let mut read = nvm(NvmOpcode::READ, 1, 0, blocks, DATA).prp(DATA, data);
                    read.0.cdw12 = (blocks - 1).into();
                    rig.submit(qid, read);
                }
            }
            if turn == 20 {
                sent = Some(rig.submit(3, nvm(NvmOpcode::READ, 1, 0, 1, DATA)));
            }
            rig.turn();
            if let Some(completion) = rig.completion(3) {
                assert_eq!(Some(completion.cid.get()), sent);
                return;
            }
        }
        panic!("nobody looks at queue 3");
    };
    // Two queues use up a turn's commands, one its bytes.
    held(None, 1, 1..=2);
    held(None, 512, 1..=1);
}

#[test]
fn cancelled_commands_leave_the_lists_of_those_that_wait() {
    let limits = strict(Limits { iops: Some(1), ..Limits::default() });
    let mut rig = rig(ControllerConfig { limits, ..ControllerConfig::default() });
    rig.create_queue(1, 64);
    for lba in 0..10 {
        rig.submit(1, nvm(NvmOpcode::READ, 1, lba, 1, DATA));
    }
    rig.turns(3);
    for _ in 0..100 {
        rig.create_queue(2, 64);
        for lba in 0..60 {
            rig.submit(2, nvm(NvmOpcode::READ, 1, lba, 1, DATA));
        }
        rig.turns(3);
        for opcode in [AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, AdminOpcode::DELETE_IO_COMPLETION_QUEUE] {
            assert_eq!(rig.admin(admin(opcode, 0).dwords(2, 0)).0, Status::SUCCESS);
        }
        let places = rig.workers[0].places_in_lanes();
        assert!(places < 300, "{places} places for 70 commands");
    }
}

#[test]
fn commands_that_wait_for_limits_move_with_their_queue() {
    let mut rig = rig(ControllerConfig { workers: 2, ..ControllerConfig::default() });
    rig.create_queue(1, 64);
    rig.subsystem.set_limits(1, strict(Limits { write_bandwidth: Some(1), ..Limits::default() })).unwrap();
    rig.turn();
    assert_eq!(rig.io(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA)), Status::SUCCESS, "the first one is free");
    let waiting: Vec<u16> = (0..3).map(|_| rig.submit(1, nvm(NvmOpcode::WRITE, 1, 0, 8, DATA))).collect();
    rig.turns(3);
    let mut moving = Box::pin(rig.controller.move_queue(1, 1));
    rig.until(|_| match moving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    })
    .unwrap();
    assert_eq!((rig.workers[0].in_flight(), rig.workers[1].in_flight()), (0, 3));
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::SUCCESS, "reads pass them here, too");
    rig.subsystem.set_limits(1, Limits::default()).unwrap();
    let done: Vec<u16> = waiting.iter().map(|_| rig.wait(1).cid.get()).collect();
    assert_eq!(done, waiting);
}

#[test]
fn a_reactor_that_sleeps_hears_of_new_memory() {
    let rig = rig(ControllerConfig { trapped_doorbells: true, ..ControllerConfig::default() });
    let start = Instant::now();
    rig.reactor.park(Duration::ZERO);
    rig.controller.host_changed();
    rig.reactor.park(Duration::from_secs(60));
    assert!(start.elapsed() < Duration::from_secs(60), "nobody woke it");
}
