//! [`Rig`]: a controller, its worker and its reactor in this thread, with the client's lanes at its side: no socket, no
//! other thread, so that whatever is counted is counted exactly.
//!
//! [`nvme_driver::Controller`] wants a transport that can be sent to another thread, which a worker cannot be: it lives
//! in a thread-local place, and the transport turns it whenever a register is read.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use block::{Device, Reactor};
use nvme_driver::transport::{CONFIG, MappableArea, Transport};
use nvme_driver::{Arena, Controller, Error, MapAccess, Options};
use nvme_emu::{ControllerConfig, Limits, NamespaceConfig, Subsystem, SubsystemConfig, Worker};
use nvme_spec::Command;
use vfio_user_server::PciFunction;
use vfio_user_server::dma::MapFlags;

use crate::target::{Target, Workload};

/// The server's side.
struct Side {
    worker: Worker,
    reactor: Reactor,
}

thread_local! {
    static SIDE: RefCell<Option<Side>> = const { RefCell::new(None) };
}

/// One turn of the server: what its reactor's thread does again and again. Never inlined, so that a profiler knows
/// where the server begins and ends.
#[inline(never)]
pub fn server_turn() {
    SIDE.with_borrow_mut(|side| {
        if let Some(side) = side {
            side.worker.poll();
            side.reactor.turn();
        }
    });
}

/// A controller on a device, enabled. One in a thread at a time.
pub struct Rig {
    controller: Controller,
    geometry: (u64, usize),
}

impl Rig {
    /// A controller with `device` as namespace 1 and `memory` bytes of guest memory.
    ///
    /// # Errors
    /// The system refuses memory or an io_uring.
    pub fn new(device: Arc<dyn Device>, memory: usize) -> Result<Self> {
        Self::with_config(device, memory, ControllerConfig::default())
    }

    /// The same with a controller of any kind.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_config(device: Arc<dyn Device>, memory: usize, config: ControllerConfig) -> Result<Self> {
        let subsystem = Subsystem::new(SubsystemConfig {
            nqn: "nqn.2026-11.example:counts".into(),
            serial: "S1".into(),
            model: "Counts".into(),
        })?;
        let info = device.info();
        subsystem.add_namespace(NamespaceConfig {
            nsid: None,
            device,
            uuid: [1; 16],
            read_only: false,
            limits: Limits::default(),
        })?;
        let (function, seeds) = nvme_emu::Controller::new(subsystem, config)?;
        let reactor = Reactor::new(256)?;
        let worker = seeds.into_iter().next().context("a controller has a worker")?.start(&reactor);
        SIDE.with_borrow_mut(|side| *side = Some(Side { worker, reactor }));
        let options = Options { memory, iova: crate::target::IOVA, ..Options::default() };
        let controller = Controller::open(Box::new(InProcess { function }), options)?;
        Ok(Self { controller, geometry: (info.blocks, info.block_size as usize) })
    }

    /// The driver's side.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Queues, buffers and commands of a workload, on namespace 1. With `vectors` each queue pair has an interrupt
    /// vector: its identifier.
    ///
    /// # Errors
    /// The controller refuses something.
    pub fn target(&self, workload: &Workload, vectors: bool) -> Result<Target> {
        Target::with_geometry(&self.controller, 1, self.geometry, workload, vectors, &admin)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The worker before the reactor, as in a reactor's thread.
        SIDE.with_borrow_mut(|side| *side = None);
    }
}

/// Sends an admin command and turns the server until it is complete.
fn admin(controller: &Controller, command: Command) -> Result<()> {
    const TURNS: u32 = 100_000;
    let cid = controller.with_admin(|queue| queue.submit(command))?;
    for _ in 0..TURNS {
        server_turn();
        if let Some(completion) = controller.with_admin(|queue| queue.check(cid))? {
            ensure!(completion.status().is_success(), "{command:?}: {:?}", completion.status());
            return Ok(());
        }
    }
    anyhow::bail!("no completion of {command:?}")
}

/// The way to a function of this process.
struct InProcess {
    function: Arc<nvme_emu::Controller>,
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Io(std::io::Error::other(error))
}

impl Transport for InProcess {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> nvme_driver::Result<()> {
        server_turn();
        match region {
            CONFIG => data.fill(0),
            bar => self.function.bar_read(bar as u8, offset, data),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> nvme_driver::Result<()> {
        match region {
            // The driver only ever turns bus mastering on.
            CONFIG => self.function.host().set_bus_master(true),
            bar => self.function.bar_write(bar as u8, offset, data),
        }
        Ok(())
    }

    fn mappable(&mut self, region: u32) -> nvme_driver::Result<Vec<MappableArea>> {
        let Some(area) = self.function.mappable(region as u8) else { return Ok(Vec::new()) };
        // As the protocol server tells it: the area lies in the memfd where it lies in the BAR.
        let fd = area.memory.as_fd().try_clone_to_owned()?;
        Ok(vec![MappableArea { offset: area.offset, len: area.size, fd, fd_offset: area.offset }])
    }

    fn dma_map(&mut self, arena: &Arena, access: MapAccess) -> nvme_driver::Result<()> {
        let mut flags = MapFlags::empty();
        flags.set(MapFlags::READ, access.read);
        flags.set(MapFlags::WRITE, access.write);
        let fd = access.descriptor.then(|| arena.fd().try_clone_to_owned()).transpose()?;
        self.function.host().dma.map(arena.iova(), arena.len() as u64, fd, 0, flags).map_err(refused)
    }

    fn dma_unmap(&mut self, _: u64, _: u64) -> nvme_driver::Result<()> {
        Err(Error::Unsupported("taking memory away from a controller in process"))
    }

    fn irq_count(&mut self, index: u32) -> nvme_driver::Result<u32> {
        Ok(self.function.host().interrupts.vectors(index))
    }

    fn connect_irqs(&mut self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> nvme_driver::Result<()> {
        let fds = fds.iter().map(|fd| fd.try_clone_to_owned().map(Some)).collect::<Result<_, _>>()?;
        self.function.host().interrupts.set_eventfds(index, start, fds).map_err(refused)
    }

    fn disable_irqs(&mut self, index: u32) -> nvme_driver::Result<()> {
        self.function.host().interrupts.disable(index).map_err(refused)
    }

    fn reset(&mut self) -> nvme_driver::Result<()> {
        Err(Error::Unsupported("a reset of a controller in process"))
    }

    fn disconnect(&mut self) {}
}
