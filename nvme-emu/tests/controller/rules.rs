//! Rules of the specification that only some hosts come upon.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::rig::{DATA, MEMORY, PAGE, Rig, admin, nvm};
use block::{Abilities, Channel, Device, Error, Flags, Info, Io, IoFuture, Op, Reactor, Submission};
use block_memory::MemoryDevice;
use nvme_emu::ControllerConfig;
use nvme_spec::command::Completion;
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::registers::{ACQ, AQA, ASQ, CC, doorbell_offset};
use nvme_spec::status::Status;
use vfio_user_server::PciFunction;
use zerocopy::IntoBytes;

fn memory_disk() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(1 << 20).unwrap())
}

/// Doorbell Buffer Config again, while a queue lives whose doorbell register says nothing any more (Base 5.11).
#[test]
fn new_shadow_doorbells_go_on_where_the_old_ones_were() {
    let config = ControllerConfig { shadow_doorbells: true, io_queues: 8, ..ControllerConfig::default() };
    let mut rig = Rig::new(vec![memory_disk()], config);
    rig.create_queue(1, 64);
    let configure = |at: u64| admin(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0).prp(at, at + PAGE);
    let (sq, cq) = (0x1_8000, 0x1_C000);
    let tail = |rig: &Rig, buffer: u64, value: u32| {
        rig.write_memory(buffer + (doorbell_offset(1, false, 4) - 0x1000), &value.to_le_bytes());
    };
    let head = |rig: &Rig, buffer: u64, value: u32| {
        rig.write_memory(buffer + (doorbell_offset(1, true, 4) - 0x1000), &value.to_le_bytes());
    };
    let entry = |rig: &Rig, at: u64| rig.read_struct::<Completion>(cq + at * 16);
    for index in 0..8u64 {
        let mut command = nvm(NvmOpcode::READ, 1, 0, 1, DATA).0;
        command.cid = (100 + index as u16).into();
        rig.write_memory(sq + index * 64, command.as_bytes());
    }
    let (first, second) = (DATA + 16 * PAGE, DATA + 32 * PAGE);
    assert_eq!(rig.admin(configure(first)).0, Status::SUCCESS);
    // Five commands, rung and taken through the shadow buffers alone.
    tail(&rig, first, 5);
    rig.until(|rig| entry(rig, 4).phase().then_some(()));
    head(&rig, first, 5);
    rig.turns(10);
    assert_eq!(rig.admin(configure(second)).0, Status::SUCCESS);
    rig.turns(10);
    assert!(!entry(&rig, 5).phase(), "a command is carried out once more");
    tail(&rig, second, 7);
    rig.until(|rig| entry(rig, 6).phase().then_some(()));
    let cids: Vec<u16> = (0..7).map(|at| entry(&rig, at).cid.get()).collect();
    assert_eq!(cids, [100, 101, 102, 103, 104, 105, 106]);
}

/// A host may read SQES and CQES first, for which the controller has to be enabled (Base 3.1.3.5).
#[test]
fn entry_sizes_may_be_set_when_the_controller_is_enabled() {
    let mut rig = Rig::disabled(vec![memory_disk()], ControllerConfig::default());
    rig.enable();
    rig.write_register(CC, 0x0000_0001);
    rig.turns(10);
    assert!(rig.csts().rdy(), "not a reset");
    let create = admin(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0).prp(0x1_C000, 0).dwords(63 << 16 | 1, 1);
    assert_eq!(rig.admin(create).0, Status::INVALID_QUEUE_SIZE);
    rig.write_register(CC, 0x0046_0001);
    rig.create_queue(1, 64);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
}

/// A ring over two mappings that are no neighbours: an entry's status comes with its phase, whole.
#[test]
fn statuses_are_whole_in_a_ring_of_pieces() {
    let mut rig = Rig::new(vec![memory_disk()], ControllerConfig::default());
    // Two pages next to each other for the guest, in the other order here.
    rig.map(MEMORY, PAGE, (3 << 20) + PAGE);
    rig.map(MEMORY + PAGE, PAGE, 3 << 20);
    rig.turn();
    let create_cq = admin(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0).prp(MEMORY, 0).dwords(511 << 16 | 1, 1);
    assert_eq!(rig.admin(create_cq).0, Status::SUCCESS);
    let (sq, entries) = (2 << 20, 512u64);
    let create_sq =
        admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0).prp(sq, 0).dwords(511 << 16 | 1, 1 << 16 | 1);
    assert_eq!(rig.admin(create_sq).0, Status::SUCCESS);
    // Good and bad ones by turns, so that each lap writes something else to the same place.
    for number in 0..3 * entries {
        let slot = number % entries;
        let lba = if (number / 7) % 2 == 0 { 0 } else { u64::MAX / 2 };
        let mut command = nvm(NvmOpcode::READ, 1, lba, 1, DATA).0;
        command.cid = (number as u16).into();
        rig.write_memory(sq + slot * 64, command.as_bytes());
        rig.write_register(doorbell_offset(1, false, 4), ((slot + 1) % entries) as u32);
        let at = if slot * 16 < PAGE { (3 << 20) + PAGE + slot * 16 } else { (3 << 20) + slot * 16 - PAGE };
        let phase = (number / entries) % 2 == 0;
        let entry = rig.until(|rig| {
            let entry: Completion = rig.read_struct(at);
            (entry.phase() == phase).then_some(entry)
        });
        assert_eq!(entry.cid.get(), number as u16);
        let expected = if lba == 0 { Status::SUCCESS } else { Status::LBA_OUT_OF_RANGE.with_dnr() };
        assert_eq!(entry.status(), expected, "command {number}");
        rig.write_register(doorbell_offset(1, true, 4), ((slot + 1) % entries) as u32);
    }
}

/// A device with a volatile cache that counts flushes and forced writes.
struct Cached(MemoryDevice, Arc<Counts>);

#[derive(Default)]
struct Counts {
    flushes: AtomicU32,
    forced: AtomicU32,
}

struct CachedChannel(Box<dyn Channel>, Arc<Counts>);

impl Device for Cached {
    fn info(&self) -> Info {
        let mut info = self.0.info();
        info.abilities |= Abilities::VOLATILE_CACHE;
        info
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(CachedChannel(self.0.channel(reactor)?, self.1.clone())))
    }
}

impl Channel for CachedChannel {
    fn submit(&self, io: Io) -> Submission {
        self.1.flushes.fetch_add(u32::from(io.op == Op::Flush), Ordering::Relaxed);
        let forced = io.op == Op::Write && io.flags.contains(Flags::FUA);
        self.1.forced.fetch_add(u32::from(forced), Ordering::Relaxed);
        self.0.submit(io)
    }
}

/// The host flushes no more from then on: what was written goes to the medium, and so does every write.
#[test]
fn without_the_write_cache_all_is_durable() {
    let disk = Arc::new(Cached(MemoryDevice::new(1 << 20).unwrap(), Arc::default()));
    let counts = disk.1.clone();
    let seen = || (counts.flushes.load(Ordering::Relaxed), counts.forced.load(Ordering::Relaxed));
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    rig.create_queue(1, 64);
    let set = |on| admin(AdminOpcode::SET_FEATURES, 0).dwords(6, on);
    let write = nvm(NvmOpcode::WRITE, 1, 0, 8, DATA);
    assert_eq!((rig.admin(set(1)).0, rig.io(1, write)), (Status::SUCCESS, Status::SUCCESS));
    assert_eq!(seen(), (0, 0));
    assert_eq!(rig.admin(set(0)).0, Status::SUCCESS);
    assert_eq!(seen(), (1, 0));
    assert_eq!(rig.io(1, write), Status::SUCCESS);
    assert_eq!(seen(), (1, 1));
}

/// A device whose reads leave a second `Io` behind, uncompleted, when they are done: as a layer with a defect would.
struct Leaving(MemoryDevice);

struct LeavingChannel(Rc<dyn Channel>, Rc<RefCell<u32>>);

impl Device for Leaving {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(LeavingChannel(self.0.channel(reactor)?.into(), Rc::default())))
    }
}

impl Channel for LeavingChannel {
    fn submit(&self, io: Io) -> Submission {
        if io.op != Op::Read {
            return self.0.submit(io);
        }
        *self.1.borrow_mut() += 1;
        let (inner, leaves) = (self.0.clone(), *self.1.borrow() == 1);
        Submission::Pending(IoFuture::new(async move {
            let tag = io.tag();
            for _ in 0..3 {
                block::future::yield_now().await;
            }
            let completed = inner.submit(io).wait().await;
            if leaves {
                drop(Io::new(Op::Read, 0, 1, Vec::new(), None, tag));
            }
            completed
        }))
    }
}

#[test]
fn an_io_that_is_lost_late_does_not_fail_the_next_command() {
    // In one of these the second command takes the slot of the first in the very turn in which that ends.
    for turns in 0..8 {
        let disk = Arc::new(Leaving(MemoryDevice::new(1 << 20).unwrap()));
        let mut rig = Rig::new(vec![disk], ControllerConfig::default());
        rig.create_queue(1, 64);
        rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
        rig.turns(turns);
        rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
        for _ in 0..2 {
            assert_eq!(rig.wait(1).status(), Status::SUCCESS, "{turns} turns between the two");
        }
    }
}

/// An event and commands at the same time: together they get no more places than there are.
#[test]
fn events_take_no_place_that_a_command_was_promised() {
    let mut rig = Rig::disabled(vec![memory_disk()], ControllerConfig::default());
    rig.write_register(AQA, 3 << 16 | 31);
    rig.controller.bar_write(0, ASQ, &0x1000u64.to_le_bytes());
    rig.controller.bar_write(0, ACQ, &0x2000u64.to_le_bytes());
    rig.write_register(CC, 0x0046_0001);
    rig.until(|rig| rig.csts().rdy().then_some(()));
    let number_of_queues = admin(AdminOpcode::GET_FEATURES, 0).dwords(7, 0);
    let commands =
        [admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0), number_of_queues, number_of_queues, number_of_queues];
    for (slot, mut command) in (0u16..).zip(commands) {
        command.0.cid = (100 + slot).into();
        rig.write_memory(0x1000 + u64::from(slot) * 64, command.0.as_bytes());
    }
    rig.write_register(doorbell_offset(0, false, 4), 1);
    rig.turns(10);
    // Beyond all queues: told by a message, which is there in the turn that sees the commands.
    rig.write_register(doorbell_offset(200, false, 4), 1);
    rig.write_register(doorbell_offset(0, false, 4), 4);
    rig.turns(50);
    let entry = |rig: &Rig, at: u64| rig.read_struct::<Completion>(0x2000 + at % 4 * 16);
    assert!(!entry(&rig, 3).phase(), "three fit into a queue of four");
    let mut cids: Vec<u16> = (0..3).map(|at| entry(&rig, at).cid.get()).collect();
    rig.write_register(doorbell_offset(0, true, 4), 3);
    rig.until(|rig| entry(rig, 3).phase().then_some(()));
    cids.push(entry(&rig, 3).cid.get());
    cids.sort_unstable();
    assert_eq!(cids, [100, 101, 102, 103], "each once");
}
