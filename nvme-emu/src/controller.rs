//! [`Controller`]: one NVMe controller as a PCI function: the control side of it.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nvme_spec::registers::DOORBELLS;
use vfio_user_server::{Bar, FunctionInfo, Host, MappableArea, PciFunction, Quiesced, Reset};

use crate::doorbells::Doorbells;
use crate::latch::latch;
use crate::limits::Limits;
use crate::placement::{MoveError, MoveReply, QueuePlace};
use crate::security::Gate;
use crate::shared::{DoorbellError, Message, Shared};
use crate::worker::HOME;
use crate::{Subsystem, WorkerSeed};

/// The identity that Red Hat leaves to everyone without registration (QEMU docs/specs/pci-ids, 1af4:10f0 to
/// 10ff). Not QEMU's own NVMe device: Linux distrusts the namespace identifiers of that one.
pub(crate) const VENDOR_ID: u16 = 0x1AF4;
const DEVICE_ID: u16 = 0x10F0;
pub(crate) const SUBSYSTEM_VENDOR_ID: u16 = 0x1AF4;
const SUBSYSTEM_ID: u16 = 0x1100;

/// Mass storage, non-volatile memory, NVM Express I/O controller (PCIe 3.1.1).
const CLASS_CODE: u32 = 0x01_08_02;

/// I/O queues whose doorbells fit into one page of shadow doorbells (Base 5.11).
const SHADOW_QUEUES: u16 = 31;

/// Limits of a controller.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// I/O queue pairs, 1 to 128.
    pub io_queues: u16,
    /// Entries of the longest queue, 2 to 65536.
    pub queue_entries: u32,
    /// Largest transfer in bytes: 8 KiB to 1 MiB, a power of two.
    pub max_transfer: u32,
    /// Offer the INTx pin for guests without message-signalled interrupts.
    pub intx: bool,
    /// Offer MSI, with at most 32 vectors, in place of MSI-X.
    pub msi: bool,
    /// Offer shadow doorbells (Doorbell Buffer Config), with at most 31 I/O queue pairs. Of use where the VMM
    /// does not map the doorbells.
    pub shadow_doorbells: bool,
    /// Do not let the VMM map the doorbells: each store into one comes as a message, and wakes who polls.
    pub trapped_doorbells: bool,
    /// For the sum over all namespaces and queues.
    pub limits: Limits,
    /// Reactors that its queues are spread over, at least 1.
    pub workers: usize,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            io_queues: 128,
            queue_entries: 1024,
            max_transfer: 1 << 20,
            intx: false,
            msi: false,
            shadow_doorbells: false,
            trapped_doorbells: false,
            limits: Limits::default(),
            workers: 1,
        }
    }
}

impl ControllerConfig {
    fn check(mut self) -> io::Result<Self> {
        let problem = if !(1..=128).contains(&self.io_queues) {
            "io_queues must be 1 to 128"
        } else if !(2..=65536).contains(&self.queue_entries) {
            "queue_entries must be 2 to 65536"
        } else if !self.max_transfer.is_power_of_two() || !(8192..=1 << 20).contains(&self.max_transfer) {
            // MDTS counts in powers of two of 4 KiB, and 0 would be no limit.
            "max_transfer must be a power of two from 8 KiB to 1 MiB"
        } else if !(1..=256).contains(&self.workers) {
            "workers must be 1 to 256"
        } else if self.intx && self.workers > 1 {
            // The pin's level is one worker's to say.
            "a controller with intx needs a single reactor"
        } else {
            if self.shadow_doorbells {
                self.io_queues = self.io_queues.min(SHADOW_QUEUES);
            }
            return Ok(self);
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }
}

/// The PCI device serial number: a hash (FNV-1a) of who the subsystem is, and the controller's number.
fn serial_number(nqn: &str, cntlid: u16) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let hash = nqn.bytes().fold(0xCBF2_9CE4_8422_2325, step);
    hash & !0xFFFF | u64::from(cntlid)
}

/// What a controller has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Read commands that succeeded.
    pub reads: u64,
    /// Write commands that succeeded.
    pub writes: u64,
    /// Bytes that these read.
    pub bytes_read: u64,
    /// Bytes that these wrote.
    pub bytes_written: u64,
    /// Commands that failed for the media: unrecovered reads and write faults.
    pub media_errors: u64,
}

/// One NVMe controller.
pub struct Controller {
    shared: Arc<Shared>,
    info: FunctionInfo,
}

impl Controller {
    /// A controller of `subsystem`, and the seed of each of its workers (`config.workers` of them), each to
    /// be started on its reactor's thread. The first one is the controller's home: it runs the admin queue.
    pub fn new(
        subsystem: Arc<Subsystem>,
        config: ControllerConfig,
    ) -> io::Result<(Arc<Self>, Vec<WorkerSeed>)> {
        let config = config.check()?;
        // One vector for the admin queue and one for each I/O queue pair; of MSI a power of two.
        let wanted = config.io_queues + 1;
        let msix_vectors = if config.msi { wanted.next_power_of_two().min(32) } else { wanted };
        let host = Arc::new(if config.msi { Host::with_msi(msix_vectors) } else { Host::new(msix_vectors) });
        let doorbells = Doorbells::new(config.io_queues)?;
        let cntlid = subsystem.reserve_controller();
        let info = FunctionInfo {
            vendor_id: VENDOR_ID,
            device_id: DEVICE_ID,
            subsystem_vendor_id: SUBSYSTEM_VENDOR_ID,
            subsystem_id: SUBSYSTEM_ID,
            revision: 1,
            class_code: CLASS_CODE,
            serial_number: serial_number(&subsystem.config.nqn, cntlid),
            bars: vec![Bar { index: 0, size: (DOORBELLS + doorbells.size()).next_power_of_two() }],
            msix_vectors,
            msi: config.msi,
            intx: config.intx,
        };
        let workers = config.workers;
        let shared = Arc::new(Shared::new(host, subsystem, config, cntlid, doorbells));
        shared.subsystem.attach_controller(&shared);
        let seeds = (0..workers).map(|index| WorkerSeed { shared: shared.clone(), index }).collect();
        Ok((Arc::new(Self { shared, info }), seeds))
    }

    /// Guest memory and interrupts of this function, for the protocol server.
    pub fn host(&self) -> &Arc<Host> {
        &self.shared.host
    }

    /// What it has done so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.ports.iter().fold(Statistics::default(), |sum, port| {
            let counters = &port.counters;
            Statistics {
                reads: sum.reads.wrapping_add(counters.reads.load(Ordering::Relaxed)),
                writes: sum.writes.wrapping_add(counters.writes.load(Ordering::Relaxed)),
                bytes_read: sum.bytes_read.wrapping_add(counters.bytes_read.load(Ordering::Relaxed)),
                bytes_written: sum.bytes_written.wrapping_add(counters.bytes_written.load(Ordering::Relaxed)),
                media_errors: sum.media_errors.wrapping_add(counters.media_errors.load(Ordering::Relaxed)),
            }
        })
    }

    /// The I/O queues there are.
    pub fn queues(&self) -> Vec<QueuePlace> {
        self.shared.places().clone()
    }

    /// Moves a completion queue, with the submission queues that complete on it, to another worker. Commands in flight
    /// end where they are; the guest sees nothing but a moment without completions.
    pub fn move_queue(
        &self,
        cqid: u16,
        worker: usize,
    ) -> impl Future<Output = Result<(), MoveError>> + Send + 'static {
        let (token, latch) = latch();
        let result = Arc::new(Mutex::new(Err(MoveError::NotEnabled)));
        let reply = MoveReply::new(result.clone(), token);
        self.shared.send(HOME, Message::Move { cqid, to: worker, reply });
        async move {
            latch.await;
            *result.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    /// Whether the client may map the doorbells: a store into them wakes nobody then.
    pub fn has_mapped_doorbells(&self) -> bool {
        !self.shared.config.trapped_doorbells
    }

    /// Whether the guest has it enabled.
    pub fn is_enabled(&self) -> bool {
        self.shared.is_running()
    }

    /// The subsystem that it belongs to.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        &self.shared.subsystem
    }

    /// The limits of this controller.
    pub fn limits(&self) -> Limits {
        self.shared.limiter.limits()
    }

    /// Changes the limits of this controller, at once.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.limiter.set(limits);
        self.shared.send_all(|| Message::LimitsChanged);
    }

    fn write_doorbells(&self, offset: u64, data: &[u8]) {
        let area = self.shared.doorbells();
        // Doorbells are written as dwords (PCIe 3.1.2); other sizes change nothing.
        for (i, bytes) in data.chunks(4).enumerate() {
            let (at, Ok(bytes)) = (offset + 4 * i as u64, <[u8; 4]>::try_from(bytes)) else { continue };
            match area.locate(at) {
                Some((qid, is_cq)) => {
                    area.store(qid, is_cq, u32::from_le_bytes(bytes));
                    if is_cq {
                        self.shared.lower_intx();
                    }
                }
                // The rest of a wider store covers the padding between doorbells.
                None if i > 0 => {}
                None => {
                    self.shared.send(HOME, Message::InvalidDoorbell(DoorbellError::Register));
                }
            }
        }
        self.shared.wake_all();
    }

    fn subsystem_reset(&self) {
        let controllers = self.shared.subsystem.controllers();
        self.shared.subsystem.gate.subsystem_reset(|| {
            controllers.iter().for_each(|controller| controller.registers().subsystem_reset());
        });
        controllers.iter().for_each(|controller| controller.configuration_changed());
    }

    /// To power-on state; resolves when the controller is down. `tell` tells the subsystem's security: at once, and
    /// not on the home worker, which may be busy, for a client of another controller may come meanwhile.
    fn power_on(&self, detach: bool, tell: impl FnOnce(&Gate, u16)) -> Quiesced {
        let (token, latch) = latch();
        self.shared.registers().power_on();
        tell(&self.shared.subsystem.gate, self.shared.cntlid);
        self.shared.send(HOME, Message::Reset { detach, done: token });
        Box::pin(latch)
    }
}

/// Who serves it has let go of it.
impl Drop for Controller {
    fn drop(&mut self) {
        self.shared.subsystem.gate.forget(self.shared.cntlid);
    }
}

impl PciFunction for Controller {
    fn info(&self) -> &FunctionInfo {
        &self.info
    }

    fn attach(&self) {
        self.shared.subsystem.gate.attach(self.shared.cntlid);
    }

    fn mappable(&self, bar: u8) -> Option<MappableArea> {
        (bar == 0 && self.has_mapped_doorbells()).then(|| {
            let doorbells = self.shared.doorbells();
            MappableArea { offset: DOORBELLS, size: doorbells.size(), memory: doorbells.memory().clone() }
        })
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != 0 {
            return;
        }
        let below = DOORBELLS.saturating_sub(offset).min(data.len() as u64) as usize;
        let (registers, doorbells) = data.split_at_mut(below);
        if !registers.is_empty() {
            self.shared.registers().read(offset, registers);
        }
        if !doorbells.is_empty() {
            self.shared.doorbells().read((offset + below as u64) - DOORBELLS, doorbells);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != 0 {
            return;
        }
        let below = DOORBELLS.saturating_sub(offset).min(data.len() as u64) as usize;
        let (registers, doorbells) = data.split_at(below);
        if !registers.is_empty() {
            let effects = self.shared.registers().write(offset, registers);
            if effects.interrupt_mask {
                self.shared.update_intx();
            }
            if effects.disabled {
                self.shared.subsystem.gate.controller_reset(self.shared.cntlid);
            }
            if effects.configuration {
                self.shared.configuration_changed();
            }
            if effects.subsystem_reset {
                self.subsystem_reset();
            }
        }
        if !doorbells.is_empty() {
            self.write_doorbells((offset + below as u64) - DOORBELLS, doorbells);
        }
    }

    fn reset(&self, reset: Reset) -> Quiesced {
        tracing::debug!(controller = self.shared.cntlid, ?reset, "reset");
        self.power_on(
            false,
            match reset {
                Reset::Device => Gate::function_reset,
                // By the guest: they reset the controller and no more (Base 3.7.2).
                Reset::FunctionLevel | Reset::PowerState => Gate::controller_reset,
            },
        )
    }

    fn host_changed(&self) {
        self.shared.wake_all();
    }

    fn retire_memory(&self, deadline: Instant) -> Quiesced {
        let (token, latch) = latch();
        self.shared.send_all(|| Message::Retire { deadline, done: token.clone() });
        drop(token);
        Box::pin(latch)
    }

    fn detach(&self, _deadline: Instant) -> Quiesced {
        self.shared.forget_client();
        self.power_on(true, Gate::detach)
    }
}
