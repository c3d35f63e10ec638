//! What benchmarks look at, each part of the data path alone. Behind the feature `internals`; no promise to anybody.

use std::sync::Arc;

use block::{Device, Op, Reactor, Segment};
use nvme_spec::Command;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaFault, DmaTable, Hint};

use crate::doorbells::Doorbells;
use crate::limits::Limits;
use crate::nvm::{self, OpenNamespace};
use crate::queue::{self, CompletionQueue};
use crate::subsystem::{Namespace, NamespaceConfig};
use crate::transfer::{self, Transfer};

/// Decodes commands for a namespace.
pub struct Decoder(OpenNamespace);

impl Decoder {
    /// For a writable namespace on `device`.
    ///
    /// # Errors
    /// The device gives no channel.
    pub fn new(device: Arc<dyn Device>, reactor: &Reactor) -> Result<Self, block::Error> {
        let limits = Limits::default();
        let config = NamespaceConfig { nsid: None, device, uuid: [0; 16], read_only: false, limits };
        OpenNamespace::open(Arc::new(Namespace::new(1, config)), reactor).map(Self)
    }

    /// Bytes of a read or write, or the status of a command that is none.
    ///
    /// # Errors
    /// What the guest would be told.
    pub fn decode(&self, command: &Command) -> Result<usize, Status> {
        let op = match command.nvm_opcode() {
            NvmOpcode::READ => Op::Read,
            NvmOpcode::WRITE => Op::Write,
            _ => return Err(Status::INVALID_COMMAND_OPCODE),
        };
        nvm::blocks(command, &self.0, op, 1 << 20).map(|range| range.bytes)
    }
}

/// Resolves data pointers, as a queue does: with a hint, into storage that is used again.
#[derive(Default)]
pub struct Resolver {
    hint: Hint,
    segments: Vec<Segment>,
}

impl Resolver {
    /// The number of host segments of `len` bytes, which the device will write.
    ///
    /// # Errors
    /// The status that the guest would be told.
    pub fn resolve(&mut self, table: &DmaTable, command: &Command, len: usize) -> Result<usize, Status> {
        let transfer = Transfer { command, len, access: Access::Write, page: 4096, sgl_allowed: true };
        transfer::resolve(table, &mut self.hint, transfer, &mut self.segments)
            .map_err(|error| error.status)?;
        Ok(self.segments.len())
    }
}

/// A completion queue whose host takes whatever is posted.
pub struct Completions {
    cq: CompletionQueue,
    doorbells: Arc<Doorbells>,
    entries: u32,
    head: u32,
}

impl Completions {
    /// A queue of `entries` entries at `iova`.
    ///
    /// # Errors
    /// The system refuses doorbells, or the table has no such memory.
    pub fn new(table: &DmaTable, iova: u64, entries: u32) -> std::io::Result<Self> {
        let doorbells = Doorbells::new(1)?;
        let mut cq = CompletionQueue::new(1, iova, entries, None, doorbells.doorbell(1, true));
        cq.map(table).map_err(|fault: DmaFault| std::io::Error::other(fault))?;
        Ok(Self { cq, doorbells, entries, head: 0 })
    }

    /// Posts a run of `count` completions, fewer than there are entries; the host takes them.
    pub fn run(&mut self, table: &DmaTable, count: u32) {
        let room = self.cq.room(count);
        debug_assert!(room.is_ok_and(|room| room >= count), "room for the run");
        for cid in 0..count {
            self.cq.reserve();
            self.cq.post(queue::completion(1, 0, cid as u16, Status::SUCCESS, 0));
        }
        self.cq.flush(table);
        self.head = (self.head + count) % self.entries;
        self.doorbells.store(1, true, self.head);
    }
}
