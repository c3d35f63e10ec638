//! A controller in this process with a host at its side: guest memory, registers, an admin queue and I/O queues.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{Device, Reactor};
use nvme_emu::{
    Controller, ControllerConfig, Limits, NamespaceConfig, Subsystem, SubsystemConfig, Worker, WorkerSeed,
};
use nvme_spec::command::{Command, Completion, DataPointer, Fuse};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::registers::{ACQ, AQA, ASQ, CC, CSTS, Csts, doorbell_offset};
use nvme_spec::status::Status;
use rustix::fs::MemfdFlags;
use vfio_user_server::dma::MapFlags;
use vfio_user_server::{Host, PciFunction};
use zerocopy::{FromBytes, IntoBytes};

pub const PAGE: u64 = 4096;
/// Bytes of guest memory at address 0.
pub const MEMORY: u64 = 8 << 20;
/// Where tests may put data.
pub const DATA: u64 = 1 << 20;

/// Generous: nothing here takes long, but the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host with one controller.
pub struct Rig {
    pub subsystem: Arc<Subsystem>,
    pub controller: Arc<Controller>,
    pub host: Arc<Host>,
    pub reactor: Reactor,
    pub workers: Vec<Worker>,
    pub memory: OwnedFd,
    queues: Vec<Queue>,
    next_cid: u16,
}

/// The host's side of a submission and a completion queue.
struct Queue {
    sq: u64,
    cq: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: bool,
}

impl Rig {
    /// A controller over these devices as namespaces 1 and on, enabled, with its admin queue.
    pub fn new(devices: Vec<Arc<dyn Device>>, config: ControllerConfig) -> Self {
        let mut rig = Self::disabled(devices, config);
        rig.enable();
        rig
    }

    /// The same, not enabled.
    pub fn disabled(devices: Vec<Arc<dyn Device>>, config: ControllerConfig) -> Self {
        let subsystem = Subsystem::new(SubsystemConfig {
            nqn: "nqn.2026-11.example:test".into(),
            serial: "S1".into(),
            model: "Test".into(),
        })
        .unwrap();
        for device in devices {
            let config = NamespaceConfig {
                nsid: None,
                device,
                uuid: [7; 16],
                read_only: false,
                limits: Limits::default(),
            };
            subsystem.add_namespace(config).unwrap();
        }
        let (controller, seeds) = Controller::new(subsystem.clone(), config).unwrap();
        Self::of(subsystem, controller, seeds)
    }

    /// Another host, with another controller of the same subsystem, enabled.
    pub fn beside(&self, controller: Arc<Controller>, seeds: Vec<WorkerSeed>) -> Self {
        let mut rig = Self::of(self.subsystem.clone(), controller, seeds);
        rig.enable();
        rig
    }

    fn of(subsystem: Arc<Subsystem>, controller: Arc<Controller>, seeds: Vec<WorkerSeed>) -> Self {
        let reactor = Reactor::new(64).unwrap();
        let workers = seeds.into_iter().map(|seed| seed.start(&reactor)).collect();
        let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY).unwrap();
        let host = controller.host().clone();
        let rig =
            Self { subsystem, controller, host, reactor, workers, memory, queues: Vec::new(), next_cid: 0 };
        rig.map(0, MEMORY, 0);
        rig.host.set_bus_master(true);
        rig.controller.attach();
        rig
    }

    /// Maps the guest's memory file, or a part of it, at a guest address.
    pub fn map(&self, iova: u64, size: u64, offset: u64) {
        let fd = self.memory.try_clone().unwrap();
        self.host.dma.map(iova, size, Some(fd), offset, MapFlags::READ | MapFlags::WRITE).unwrap();
    }

    /// One turn of everything.
    pub fn turn(&mut self) {
        for worker in &mut self.workers {
            worker.poll();
        }
        self.reactor.turn();
    }

    /// Turns until `done` has an answer.
    #[track_caller]
    pub fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.turn();
            if let Some(answer) = done(self) {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "nothing happened");
        }
    }

    /// Some turns, in which what could happen would have happened.
    pub fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.turn();
        }
    }

    pub fn read_register(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.controller.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write_register(&self, offset: u64, value: u32) {
        self.controller.bar_write(0, offset, &value.to_le_bytes());
    }

    pub fn csts(&self) -> Csts {
        Csts::from_bits(self.read_register(CSTS))
    }

    /// Sets up an admin queue of 32 entries and waits until the controller is ready.
    #[track_caller]
    pub fn enable(&mut self) {
        self.start_queues_afresh();
        self.write_register(AQA, 31 << 16 | 31);
        self.controller.bar_write(0, ASQ, &0x1000u64.to_le_bytes());
        self.controller.bar_write(0, ACQ, &0x2000u64.to_le_bytes());
        self.write_register(CC, 0x0046_0001);
        self.until(|rig| rig.csts().rdy().then_some(()));
    }

    /// The host's side of a controller that has just come up.
    pub fn start_queues_afresh(&mut self) {
        self.queues = vec![Queue { sq: 0x1000, cq: 0x2000, entries: 32, tail: 0, head: 0, phase: true }];
        self.write_memory(0x1000, &[0; 2 * PAGE as usize]);
    }

    pub fn write_memory(&self, at: u64, data: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.memory, data, at).unwrap(), data.len());
    }

    pub fn read_memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        assert_eq!(rustix::io::pread(&self.memory, &mut data[..], at).unwrap(), len);
        data
    }

    pub fn read_struct<T: FromBytes>(&self, at: u64) -> T {
        T::read_from_bytes(&self.read_memory(at, size_of::<T>())).ok().unwrap()
    }

    /// Queue pair `qid` of `entries` entries, its memory below [`DATA`].
    #[track_caller]
    pub fn create_queue(&mut self, qid: u16, entries: u32) {
        self.create_queue_on(qid, entries, 0);
    }

    /// The same with an interrupt vector.
    #[track_caller]
    pub fn create_queue_on(&mut self, qid: u16, entries: u32, vector: u32) {
        let sq = 0x1_0000 + u64::from(qid) * 0x8000;
        let cq = sq + 0x4000;
        self.write_memory(cq, &vec![0; entries as usize * 16]);
        let size = (entries - 1) << 16 | u32::from(qid);
        let create_cq =
            admin(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, 0).prp(cq, 0).dwords(size, vector << 16 | 3);
        assert_eq!(self.admin(create_cq).0, Status::SUCCESS);
        let create_sq = admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, 0)
            .prp(sq, 0)
            .dwords(size, u32::from(qid) << 16 | 1);
        assert_eq!(self.admin(create_sq).0, Status::SUCCESS);
        if self.queues.len() <= usize::from(qid) {
            self.queues.resize_with(usize::from(qid) + 1, || Queue {
                sq: 0,
                cq: 0,
                entries: 2,
                tail: 0,
                head: 0,
                phase: true,
            });
        }
        self.queues[usize::from(qid)] = Queue { sq, cq, entries, tail: 0, head: 0, phase: true };
    }

    /// Puts a command into a queue and rings; returns its identifier.
    pub fn submit(&mut self, qid: u16, command: Build) -> u16 {
        let cid = self.push(qid, command);
        let tail = self.queues[usize::from(qid)].tail;
        self.write_register(doorbell_offset(qid, false, 4), tail);
        cid
    }

    /// Puts commands into a queue and rings once; returns their identifiers.
    pub fn submit_together<const N: usize>(&mut self, qid: u16, commands: [Build; N]) -> [u16; N] {
        let cids = commands.map(|command| self.push(qid, command));
        let tail = self.queues[usize::from(qid)].tail;
        self.write_register(doorbell_offset(qid, false, 4), tail);
        cids
    }

    /// Puts a command into a queue; returns its identifier.
    pub fn push(&mut self, qid: u16, Build(mut command): Build) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        command.cid = cid.into();
        let queue = &mut self.queues[usize::from(qid)];
        let (at, tail) = (queue.sq + u64::from(queue.tail) * 64, (queue.tail + 1) % queue.entries);
        queue.tail = tail;
        self.write_memory(at, command.as_bytes());
        cid
    }

    /// How many more commands fit into a queue, if all that completed have been taken.
    pub fn room(&self, qid: u16) -> u32 {
        let queue = &self.queues[usize::from(qid)];
        (queue.head + queue.entries - 1 - queue.tail) % queue.entries
    }

    /// The next completion of a queue, if there is one; tells the controller that it was taken.
    pub fn completion(&mut self, qid: u16) -> Option<Completion> {
        let queue = &self.queues[usize::from(qid)];
        let entry: Completion = self.read_struct(queue.cq + u64::from(queue.head) * 16);
        if entry.phase() != queue.phase {
            return None;
        }
        let queue = &mut self.queues[usize::from(qid)];
        queue.head = (queue.head + 1) % queue.entries;
        queue.phase ^= queue.head == 0;
        let head = queue.head;
        self.write_register(doorbell_offset(qid, true, 4), head);
        Some(entry)
    }

    #[track_caller]
    pub fn wait(&mut self, qid: u16) -> Completion {
        self.until(|rig| rig.completion(qid))
    }

    /// Runs an admin command: status without retry hints, dword 0.
    #[track_caller]
    pub fn admin(&mut self, command: Build) -> (Status, u32) {
        let cid = self.submit(0, command);
        let completion = self.wait(0);
        assert_eq!(completion.cid.get(), cid);
        (completion.status().code(), completion.dw0.get())
    }

    /// Runs an I/O command.
    #[track_caller]
    pub fn io(&mut self, qid: u16, command: Build) -> Status {
        let cid = self.submit(qid, command);
        let completion = self.wait(qid);
        assert_eq!(completion.cid.get(), cid);
        completion.status().code()
    }
}

/// A command being put together.
#[derive(Clone, Copy)]
pub struct Build(pub Command);

/// An admin command.
pub fn admin(opcode: AdminOpcode, nsid: u32) -> Build {
    Build(Command { opcode: opcode.into_bits(), nsid: nsid.into(), ..Command::default() })
}

/// A read or write of `blocks` blocks with its data at a guest address.
pub fn nvm(opcode: NvmOpcode, nsid: u32, lba: u64, blocks: u32, data: u64) -> Build {
    let mut build = Build(Command { opcode: opcode.into_bits(), nsid: nsid.into(), ..Command::default() })
        .prp(data, data + PAGE);
    build.0.cdw10 = (lba as u32).into();
    build.0.cdw11 = ((lba >> 32) as u32).into();
    build.0.cdw12 = (blocks - 1).into();
    build
}

impl Build {
    pub fn prp(mut self, prp1: u64, prp2: u64) -> Self {
        self.0.dptr = DataPointer::from_prps(prp1, prp2);
        self
    }

    pub fn fuse(mut self, fuse: u8) -> Self {
        self.0.flags.set_fuse(Fuse(fuse));
        self
    }

    /// Dwords 10 and 11.
    pub fn dwords(mut self, cdw10: u32, cdw11: u32) -> Self {
        self.0.cdw10 = cdw10.into();
        self.0.cdw11 = cdw11.into();
        self
    }
}
