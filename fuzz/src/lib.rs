//! What the NVMe targets share: a controller on a small memory disk, with guest memory at its side, driven
//! turn by turn in this thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use block::testing::CasDevice;
use block::{Device, Reactor};
use block_memory::MemoryDevice;
use nvme_emu::{Controller, ControllerConfig, NamespaceConfig, Subsystem, SubsystemConfig, Worker};
use vfio_user_server::dma::MapFlags;
use vfio_user_server::{Host, PciFunction, Quiesced, Reset};

/// Bytes of guest memory at address 0; the upper half is mapped a second time behind a hole, the last page
/// read-only, and one page more has no descriptor.
pub const MEMORY: u64 = 64 * 4096;

thread_local! {
    static REACTOR: Reactor = Reactor::new(32).unwrap();
}

/// A controller and its surroundings.
pub struct Rig {
    pub controller: Arc<Controller>,
    pub host: Arc<Host>,
    pub memory: OwnedFd,
    worker: Worker,
    reactor: Reactor,
}

impl Rig {
    /// A controller of two namespaces of 1 MiB, 512 and 4096 bytes per block; the second one compares and writes. Not
    /// enabled.
    pub fn new(shadow_doorbells: bool) -> Self {
        let subsystem = Subsystem::new(SubsystemConfig {
            nqn: "nqn.2026-11.example:fuzz".into(),
            serial: "S1".into(),
            model: "Fuzz".into(),
        })
        .unwrap();
        let devices: [Arc<dyn Device>; 2] =
            [Arc::new(MemoryDevice::new(1 << 20).unwrap()), Arc::new(CasDevice::new(4096, 256))];
        for (device, uuid) in devices.into_iter().zip([[1; 16], [2; 16]]) {
            subsystem
                .add_namespace(NamespaceConfig {
                    nsid: None,
                    device,
                    uuid,
                    read_only: false,
                    limits: Default::default(),
                })
                .unwrap();
        }
        let config = ControllerConfig { io_queues: 8, shadow_doorbells, intx: true, ..Default::default() };
        let (controller, seeds) = Controller::new(subsystem, config).unwrap();
        let reactor = REACTOR.with(Reactor::clone);
        let worker = seeds.into_iter().next().unwrap().start(&reactor);
        let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY).unwrap();
        let host = controller.host().clone();
        let both = MapFlags::READ | MapFlags::WRITE;
        let map = |iova, size, offset, flags| {
            host.dma.map(iova, size, Some(memory.try_clone().unwrap()), offset, flags).unwrap();
        };
        map(0, MEMORY, 0, both);
        map(MEMORY * 2, MEMORY / 2, MEMORY / 2, both);
        map(MEMORY * 3, 4096, MEMORY - 4096, MapFlags::READ);
        host.dma.map(MEMORY * 4, 4096, None, 0, both).unwrap();
        host.set_bus_master(true);
        Self { controller, host, memory, worker, reactor }
    }

    /// Some turns of the worker.
    pub fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.worker.poll();
            self.reactor.turn();
        }
    }

    /// Turns until `done` resolves: whatever happened before, it must.
    pub fn until(&mut self, mut done: Quiesced) {
        let limit = Instant::now() + Duration::from_secs(20);
        while done.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Pending {
            self.turns(1);
            assert!(Instant::now() < limit, "the controller does not come down");
        }
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        let at = at % MEMORY;
        let n = data.len().min((MEMORY - at) as usize);
        rustix::io::pwrite(&self.memory, &data[..n], at).unwrap();
    }

    pub fn register(&self, offset: u64, value: u64, bytes: usize) {
        self.controller.bar_write(0, offset, &value.to_le_bytes()[..bytes]);
    }

    /// After whatever happened, a reset brings the controller down and a well-behaved host brings it up.
    pub fn must_recover(&mut self) {
        let reset = self.controller.reset(Reset::Device);
        self.until(reset);
        self.enable();
        let mut csts = [0; 4];
        self.controller.bar_read(0, 0x1c, &mut csts);
        assert_eq!(csts[0] & 3, 1, "ready and not failed");
        let reset = self.controller.reset(Reset::Device);
        self.until(reset);
    }

    /// Enables the controller with an admin queue of 32 entries in the first two pages.
    pub fn enable(&mut self) {
        self.register(0x24, 31 << 16 | 31, 4);
        self.register(0x28, 0, 8);
        self.register(0x30, 0x1000, 8);
        self.register(0x14, 0x0046_0001, 4);
        self.turns(2);
    }
}

/// Takes bytes from the front of the input; zeroes when it is at its end.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let n = N.min(self.0.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        out
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}
