//! [`Target`]: a namespace behind a controller, with queues and buffers for a workload.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nvme_driver::namespace::geometry;
use nvme_driver::queue::Doorbell;
use nvme_driver::{Controller, Data, DmaBuffer, PAGE, Prps, QueuePair, Sgl, io};
use nvme_spec::doorbell_buffer::entry_offset;
use nvme_spec::{AdminOpcode, Command};

use crate::lane::{Lane, Rings};
use crate::pattern::{Order, Pattern};
use crate::run::{Failure, Limit, Outcome, Wait, run};

/// The address of the first arena as the controller sees it.
pub const IOVA: u64 = 0x1_0000_0000;

/// What to do to a namespace.
#[derive(Clone, Debug)]
pub struct Workload {
    /// In which order.
    pub order: Order,
    /// Of 100 commands so many are writes.
    pub writes: u32,
    /// Bytes of a command, a multiple of the block size, up to 1 MiB.
    pub bytes: usize,
    /// Commands in flight on each queue, 1 to 256.
    pub depth: usize,
    /// Queues that are driven, 1 to 128.
    pub queues: u16,
    /// Queues beyond them that are created and left idle.
    pub idle_queues: u16,
    /// Name data by SGLs and not by PRPs.
    pub sgl: bool,
}

impl Workload {
    /// The memory that its queues, buffers and lists need, in bytes.
    pub fn memory(&self) -> usize {
        let queues = usize::from(self.queues + self.idle_queues);
        let rings = queues * (self.entries() as usize * 80).next_multiple_of(8192);
        let commands = usize::from(self.queues) * self.depth;
        // The buffer, the page between it and the next, and a list page.
        let buffers = commands * (self.bytes.next_multiple_of(4096) + 2 * 4096);
        (rings + buffers + (16 << 20)).next_multiple_of(2 << 20)
    }

    /// Queue entries: SPDK's 256, if that is enough.
    fn entries(&self) -> u32 {
        if self.depth < 256 { 256 } else { 512 }
    }
}

/// Queues, buffers and lists of a workload on a controller.
pub struct Target {
    queues: Vec<QueuePair>,
    /// Created so that the controller has them to look after.
    _idle: Vec<QueuePair>,
    /// By queue, then by command.
    commands: Vec<Vec<Command>>,
    _buffers: Vec<DmaBuffer>,
    _lists: Vec<Prps>,
    /// Doorbells and EventIdx, where the registers are not in shared memory.
    shadows: Option<(DmaBuffer, DmaBuffer)>,
    /// Of the doorbells.
    stride: u8,
    bytes: usize,
    span: u64,
    blocks: u64,
    workload: Workload,
}

/// How admin commands get through: blocking, or with a controller that has to be turned meanwhile.
pub type Admin<'a> = dyn Fn(&Controller, Command) -> Result<()> + 'a;

impl Target {
    /// Creates everything on a controller of another process. With `vectors` each queue pair has an interrupt vector: its
    /// identifier.
    ///
    /// # Errors
    /// The controller does not have what the workload needs, or refuses it.
    pub fn new(controller: &Controller, namespace: u32, workload: &Workload, vectors: bool) -> Result<Self> {
        let (blocks, block_size) = geometry(controller, namespace)?;
        ensure!(blocks > 0, "the controller has no namespace {namespace}");
        let (wanted, limit) =
            (u32::from(workload.queues + workload.idle_queues), u32::from(controller.cap().mqes_z()) + 1);
        let (granted, _) = controller.request_queues(wanted as u16)?;
        ensure!(granted >= wanted, "the controller grants {granted} of {wanted} queues");
        ensure!(
            workload.entries() <= limit,
            "the controller's queues have {limit} entries at most; depth {} needs {}",
            workload.depth,
            workload.entries()
        );
        let admin = |controller: &Controller, command| Ok(controller.admin_ok(command).map(drop)?);
        Self::with_geometry(controller, namespace, (blocks, block_size), workload, vectors, &admin)
    }

    /// Creates everything for a namespace of known size in blocks and bytes of a block. With `vectors` each queue pair
    /// has an interrupt vector: its identifier.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_geometry(
        controller: &Controller,
        namespace: u32,
        (span, block_size): (u64, usize),
        workload: &Workload,
        vectors: bool,
        admin: &Admin<'_>,
    ) -> Result<Self> {
        let Workload { bytes, depth, .. } = *workload;
        ensure!((1..=256).contains(&depth), "a depth of 1 to 256");
        ensure!((1..=128).contains(&(workload.queues + workload.idle_queues)), "1 to 128 queues");
        ensure!(
            bytes > 0 && bytes <= 1 << 20 && bytes.is_multiple_of(block_size),
            "{bytes} bytes are no number of blocks of {block_size} bytes up to 1 MiB"
        );
        let blocks = (bytes / block_size) as u64;
        ensure!(blocks <= span, "the namespace has {span} blocks, a command {blocks}");
        let arena = controller.arena();
        let (mut buffers, mut lists, mut commands) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..workload.queues {
            let mut prepared = Vec::new();
            for _ in 0..depth {
                // A page more than is needed, so that no buffer's end is another's start.
                let buffer = arena.alloc(bytes.next_multiple_of(4096) + 4096)?;
                buffer.fill(0xA5);
                let data = if workload.sgl {
                    Sgl::block(buffer.iova(), bytes)
                } else {
                    let prps = Prps::new(arena, buffer.iova(), bytes)?;
                    let data = prps.data();
                    lists.push(prps);
                    data
                };
                if data == Data::None {
                    bail!("no data pointer");
                }
                prepared.push(io::read(namespace, 0, blocks as u32, data));
                buffers.push(buffer);
            }
            commands.push(prepared);
        }
        // As Linux does: before there are queues.
        let shadows = if controller.doorbells().are_mapped() {
            None
        } else {
            let pages = (arena.alloc_zeroed(PAGE)?, arena.alloc_zeroed(PAGE)?);
            let mut command = Command { opcode: AdminOpcode::DOORBELL_BUFFER_CONFIG.0, ..Command::default() };
            Data::Prp(pages.0.iova(), pages.1.iova()).apply(&mut command);
            admin(controller, command).context("neither mapped doorbells nor shadow doorbells")?;
            Some(pages)
        };
        let pair = |id| -> Result<QueuePair> {
            use nvme_driver::admin::{CreateCq, CreateSq};
            let entries = workload.entries();
            let (cq, sq) =
                (controller.completion_queue(id, entries)?, controller.submission_queue(id, entries)?);
            let vector = vectors.then_some(id);
            admin(
                controller,
                CreateCq { vector, ..CreateCq::new(id, entries, cq.memory().iova()) }.command(),
            )?;
            admin(controller, CreateSq::new(id, entries, sq.memory().iova(), id).command())?;
            Ok(QueuePair::new(sq, cq))
        };
        let last = workload.queues + workload.idle_queues;
        let queues = (1..=workload.queues).map(pair).collect::<Result<_>>()?;
        let idle = (workload.queues + 1..=last).map(pair).collect::<Result<_>>()?;
        Ok(Self {
            queues,
            _idle: idle,
            commands,
            _buffers: buffers,
            _lists: lists,
            shadows,
            stride: controller.cap().dstrd(),
            bytes,
            span,
            blocks,
            workload: workload.clone(),
        })
    }

    /// The lanes, in the state of fresh queues: to be asked for once.
    ///
    /// # Errors
    /// The controller's doorbells are not in shared memory, and neither are their shadows.
    pub fn lanes(&self) -> Result<Vec<Lane<'_>>> {
        self.queues.iter().zip(&self.commands).map(|(pair, commands)| self.lane(pair, commands)).collect()
    }

    fn lane<'a>(&'a self, pair: &'a QueuePair, commands: &[Command]) -> Result<Lane<'a>> {
        let (sq, cq) = (pair.sq.memory(), pair.cq.memory());
        let (tail, head) = (pair.sq.doorbell(), pair.cq.doorbell());
        let (words, real) = match &self.shadows {
            None => {
                let none = "the server's doorbells cannot be mapped: there is no fast way to it";
                ([tail, head].map(Doorbell::word).map(|word| word.context(none)), None)
            }
            Some((shadow, event)) => {
                let at = [false, true].map(|is_cq| entry_offset(pair.id(), is_cq, self.stride) as usize);
                let of = |buffer: &'a DmaBuffer| at.map(|at| buffer.u32(at));
                let [tail_event, head_event] = of(event);
                (of(shadow).map(Ok), Some([(tail_event, tail), (head_event, head)]))
            }
        };
        let [tail, head] = words;
        let (sq, cq) = (sq.u64s(0, sq.len() / 8), cq.u64s(0, cq.len() / 8));
        Ok(Lane::new(Rings { id: pair.id(), sq, cq, tail: tail?, head: head?, real }, commands))
    }

    /// The workload's commands, from a seed.
    pub fn pattern(&self, seed: u64) -> Pattern {
        Pattern::new(self.workload.order, self.workload.writes, self.blocks, self.span, seed)
    }

    /// Writes the whole namespace once, in order, so that all of its memory exists.
    ///
    /// # Errors
    /// A write fails.
    pub fn write_all(&self, lanes: &mut [Lane<'_>], wait: Wait<'_>) -> Result<Outcome, Failure> {
        let mut pattern = Pattern::new(Order::Sequential, 100, self.blocks, self.span, 1);
        let limit = Limit::commands(self.span / self.blocks);
        run(lanes, &mut pattern, limit, self.bytes as u64, wait)
    }

    /// Runs the workload for a while.
    ///
    /// # Errors
    /// A command fails.
    pub fn run(
        &self,
        lanes: &mut [Lane<'_>],
        pattern: &mut Pattern,
        time: Duration,
        commands: u64,
        wait: Wait<'_>,
    ) -> Result<Outcome, Failure> {
        run(lanes, pattern, Limit { time, commands }, self.bytes as u64, wait)
    }
}
