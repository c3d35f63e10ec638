//! [`Controller`]: bring-up, reset, shutdown and queues of one NVMe controller.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvme_spec::registers::{
    ACQ, AQA, ASQ, Aqa, CAP, CC, CSTS, Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, VS, Vs,
};
use nvme_spec::{Command, Completion};

use crate::admin::{CreateCq, CreateSq};
use crate::error::{Error, Result};
use crate::interrupt::EventFd;
use crate::memory::Arena;
use crate::queue::{CompletionQueue, Doorbells, QueuePair, SubmissionQueue, poll_until};
use crate::registers::Link;
use crate::transport::client::ClientTransport;
use crate::transport::wire::Wire;
use crate::transport::{MSIX, MapAccess, Transport};

/// How a controller is brought up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the first arena in bytes.
    pub memory: usize,
    /// Where the device sees the first arena.
    pub iova: u64,
    /// Entries of the admin queues, 2 to 4096.
    pub admin_entries: u16,
    /// Write ASQ and ACQ as two 4-byte halves, as Linux does, and not as 8 bytes, as SPDK does.
    pub register_halves: bool,
    /// Ring doorbells by REGION_WRITE even where they can be mapped.
    pub doorbells_by_message: bool,
    /// How long any command or state change may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            iova: 0x1_0000_0000,
            admin_entries: 32,
            register_halves: false,
            doorbells_by_message: false,
            timeout: Duration::from_secs(20),
        }
    }
}

/// One NVMe controller, driven from this process.
///
/// Dropping it closes the connection without a word to the controller, as a killed VMM does (once its queue pairs that
/// ring by message are gone too). [`Self::shutdown`] is the clean way.
pub struct Controller {
    link: Link,
    arena: Arc<Arena>,
    cap: Cap,
    doorbells: Doorbells,
    admin: Mutex<Option<QueuePair>>,
    options: Options,
}

impl Controller {
    /// Connects by the `vfio_user` crate's client and enables the controller.
    pub fn connect(path: &Path, options: Options) -> Result<Self> {
        Self::open(Box::new(ClientTransport::connect(path)?), options)
    }

    /// Connects by [`Wire`], which sees error replies, and enables the controller.
    pub fn connect_wire(path: &Path, options: Options) -> Result<Self> {
        Self::open(Box::new(Wire::connect(path)?), options)
    }

    /// Attaches to and enables the controller behind a transport.
    pub fn open(transport: Box<dyn Transport>, options: Options) -> Result<Self> {
        let controller = Self::attach(transport, options)?;
        controller.enable()?;
        Ok(controller)
    }

    /// Maps memory and doorbells and turns bus mastering on, but leaves the controller as it is.
    pub fn attach(transport: Box<dyn Transport>, options: Options) -> Result<Self> {
        // Memory space, bus master, INTx off.
        const COMMAND: u16 = 0x0406;
        let link = Link::new(transport);
        let arena = Arena::new(options.memory, options.iova)?;
        link.lock().dma_map(&arena, MapAccess::FULL)?;
        link.config_write(4, &COMMAND.to_le_bytes())?;
        let cap = Cap::from_bits(link.read64(CAP)?);
        let mut doorbells = Doorbells::new(link.clone(), cap.dstrd())?;
        if options.doorbells_by_message {
            doorbells = doorbells.by_message();
        }
        Ok(Self { link, arena, cap, doorbells, admin: Mutex::new(None), options })
    }

    /// Resets the controller and enables it with fresh admin queues. Queue pairs of before are dead.
    pub fn enable(&self) -> Result<()> {
        self.disable()?;
        let entries = u32::from(self.options.admin_entries);
        let sq = self.submission_queue(0, entries)?;
        let cq = self.completion_queue(0, entries)?;
        let z = self.options.admin_entries - 1;
        self.link.write32(AQA, Aqa::new().with_asqs_z(z).with_acqs_z(z).into_bits())?;
        self.write_address(ASQ, sq.memory().iova())?;
        self.write_address(ACQ, cq.memory().iova())?;
        *self.admin_slot() = Some(QueuePair::new(sq, cq));
        self.link.write32(CC, Self::ENABLE.into_bits())?;
        self.wait_status("CSTS.RDY", |csts| csts.rdy())
    }

    /// CC as [`Self::enable`] writes it: NVM command set, 4 KiB pages, 64-byte and 16-byte entries.
    pub const ENABLE: Cc = Cc::new().with_en(true).with_iosqes(6).with_iocqes(4);

    /// Clears CC.EN and waits until the controller is not ready any more: a controller reset.
    pub fn disable(&self) -> Result<()> {
        let cc = Cc::from_bits(self.link.read32(CC)?);
        self.link.write32(CC, cc.with_en(false).with_shn(ShutdownNotification::NONE).into_bits())?;
        // A fatal status is cleared by the reset, so it is no reason to give up here.
        poll_until(
            self.options.timeout,
            || "end of CSTS.RDY".to_owned(),
            || {
                let csts = self.status()?;
                Ok((!csts.rdy()).then_some(()))
            },
        )
    }

    /// Announces a normal shutdown and waits until it is complete.
    pub fn shutdown(&self) -> Result<()> {
        let cc = Cc::from_bits(self.link.read32(CC)?);
        self.link.write32(CC, cc.with_shn(ShutdownNotification::NORMAL).into_bits())?;
        self.wait_status("CSTS.SHST", |csts| csts.shst() == ShutdownStatus::COMPLETE)
    }

    /// Shuts down, takes the memory back and closes the connection: all that a polite guest and VMM do.
    pub fn close(self) -> Result<()> {
        self.shutdown()?;
        let mut transport = self.link.lock();
        transport.dma_unmap(self.arena.iova(), self.arena.len() as u64)?;
        transport.disconnect();
        Ok(())
    }

    /// Closes the connection at once, as a killed VMM does.
    pub fn disconnect(&self) {
        self.link.lock().disconnect();
    }

    /// Waits until CSTS is as asked, or fatal.
    pub fn wait_status(&self, what: &str, is_there: impl Fn(Csts) -> bool) -> Result<()> {
        poll_until(
            self.options.timeout,
            || what.to_owned(),
            || {
                let csts = self.status()?;
                if csts.cfs() {
                    return Err(Error::Fatal);
                }
                Ok(is_there(csts).then_some(()))
            },
        )
    }

    /// CSTS.
    pub fn status(&self) -> Result<Csts> {
        Ok(Csts::from_bits(self.link.read32(CSTS)?))
    }

    /// VS.
    pub fn version(&self) -> Result<Vs> {
        Ok(Vs::from_bits(self.link.read32(VS)?))
    }

    /// CAP, as it was when attached.
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// Registers, configuration space and messages.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The first arena.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The doorbells, as the options ask.
    pub fn doorbells(&self) -> &Doorbells {
        &self.doorbells
    }

    /// How long any command may take.
    pub fn timeout(&self) -> Duration {
        self.options.timeout
    }

    fn write_address(&self, register: u64, address: u64) -> Result<()> {
        if self.options.register_halves {
            self.link.write64_halves(register, address)
        } else {
            self.link.write64(register, address)
        }
    }

    fn admin_slot(&self) -> MutexGuard<'_, Option<QueuePair>> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The admin queues, for everything that the other functions do not do.
    pub fn with_admin<T>(&self, with: impl FnOnce(&mut QueuePair) -> Result<T>) -> Result<T> {
        with(
            self.admin_slot()
                .as_mut()
                .ok_or(Error::Unsupported("admin commands before the controller is enabled"))?,
        )
    }

    /// Sends an admin command and waits for its completion, whatever its status.
    pub fn admin(&self, command: Command) -> Result<Completion> {
        self.with_admin(|admin| admin.execute(command, self.options.timeout))
    }

    /// Sends an admin command and waits for its success.
    pub fn admin_ok(&self, command: Command) -> Result<Completion> {
        self.with_admin(|admin| admin.execute_ok(command, self.options.timeout))
    }

    /// Gives the device another arena.
    pub fn map(&self, arena: &Arena, access: MapAccess) -> Result<()> {
        self.link.lock().dma_map(arena, access)
    }

    /// Takes an arena away from the device.
    pub fn unmap(&self, arena: &Arena) -> Result<()> {
        self.link.lock().dma_unmap(arena.iova(), arena.len() as u64)
    }

    /// Memory and bookkeeping of a submission queue that the controller does not know yet.
    pub fn submission_queue(&self, id: u16, entries: u32) -> Result<SubmissionQueue> {
        let memory = self.arena.alloc(entries as usize * Command::BYTES)?;
        Ok(SubmissionQueue::new(id, entries, memory, &self.doorbells))
    }

    /// Memory and bookkeeping of a completion queue that the controller does not know yet.
    pub fn completion_queue(&self, id: u16, entries: u32) -> Result<CompletionQueue> {
        let memory = self.arena.alloc(entries as usize * Completion::BYTES)?;
        Ok(CompletionQueue::new(id, entries, memory, &self.doorbells))
    }

    /// Creates an I/O completion queue, with an interrupt vector or without.
    pub fn create_cq(&self, id: u16, entries: u32, vector: Option<u16>) -> Result<CompletionQueue> {
        let cq = self.completion_queue(id, entries)?;
        self.admin_ok(CreateCq { vector, ..CreateCq::new(id, entries, cq.memory().iova()) }.command())?;
        Ok(cq)
    }

    /// Creates an I/O submission queue that completes on `cqid`.
    pub fn create_sq(&self, id: u16, entries: u32, cqid: u16) -> Result<SubmissionQueue> {
        let sq = self.submission_queue(id, entries)?;
        self.admin_ok(CreateSq::new(id, entries, sq.memory().iova(), cqid).command())?;
        Ok(sq)
    }

    /// Creates an I/O queue pair without interrupts.
    pub fn create_queue_pair(&self, id: u16, entries: u32) -> Result<QueuePair> {
        let cq = self.create_cq(id, entries, None)?;
        let sq = self.create_sq(id, entries, id)?;
        Ok(QueuePair::new(sq, cq))
    }

    /// Deletes a queue pair, and frees its memory when the controller has let go of it.
    pub fn delete_queue_pair(&self, queues: QueuePair) -> Result<()> {
        self.delete_sq(queues.sq.id())?;
        self.delete_cq(queues.cq.id())
    }

    /// Connects new eventfds to MSI-X vectors `start..start + count`.
    pub fn connect_vectors(&self, start: u32, count: usize) -> Result<Vec<EventFd>> {
        let eventfds = (0..count).map(|_| EventFd::new()).collect::<Result<Vec<_>>>()?;
        let fds: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
        self.link.lock().connect_irqs(MSIX, start, &fds)?;
        Ok(eventfds)
    }
}
