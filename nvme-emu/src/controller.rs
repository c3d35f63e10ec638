//! [`Controller`]: one NVMe controller, a PCI function.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vfio_user_server::{FunctionInfo, Host, PciFunction, Quiesced, Reset};

use crate::{Subsystem, WorkerSeed};

/// Limits of a controller.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// I/O queue pairs, 1 to 128.
    pub io_queues: u16,
    /// Entries of the longest queue, 2 to 65536.
    pub queue_entries: u32,
    /// Largest transfer in bytes: 4 KiB to 1 MiB, a power of two.
    pub max_transfer: u32,
    /// Offer the INTx pin for guests without MSI-X.
    pub intx: bool,
    /// Reactors that its queues are spread over, at least 1.
    pub workers: usize,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self { io_queues: 128, queue_entries: 1024, max_transfer: 1 << 20, intx: false, workers: 1 }
    }
}

/// One NVMe controller.
pub struct Controller {
    host: Arc<Host>,
    info: FunctionInfo,
}

impl Controller {
    /// A controller of `subsystem`, and the seed of each of its workers (`config.workers` of them), each to
    /// be started on its reactor's thread. The first one is the controller's home: it runs the admin queue.
    pub fn new(
        subsystem: Arc<Subsystem>,
        config: ControllerConfig,
    ) -> io::Result<(Arc<Self>, Vec<WorkerSeed>)> {
        let _ = (subsystem, config);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Guest memory and interrupts of this function, for the protocol server.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }
}

impl PciFunction for Controller {
    fn info(&self) -> &FunctionInfo {
        &self.info
    }
    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn reset(&self, _reset: Reset) -> Quiesced {
        Box::pin(std::future::ready(()))
    }
    fn retire_memory(&self, _deadline: Instant) -> Quiesced {
        Box::pin(std::future::ready(()))
    }
    fn detach(&self, _deadline: Instant) -> Quiesced {
        Box::pin(std::future::ready(()))
    }
}
