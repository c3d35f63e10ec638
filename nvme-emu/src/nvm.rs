//! NVM commands (NVM 3.2): from a fetched command to an `Io`, or a status.

use block::future::yield_now;
use block::io::Guard;
use block::{Abilities, Channel, Error, Flags, Info, Io, Op, Submission};
use nvme_spec::command::{Command, Fuse};
use nvme_spec::nvm::{DsmCdw10, DsmCdw11, DsmRange, IoCdw12};
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;
use std::rc::Rc;
use std::sync::Arc;

use crate::limits::Limiter;
use crate::subsystem::Namespace;

/// A namespace as one worker sees it: its own channel.
pub(crate) struct OpenNamespace {
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) channel: Rc<dyn Channel>,
    /// Of the device as this worker last heard of it.
    pub(crate) info: Info,
    pub(crate) read_only: bool,
    /// Its `Io`s need a guard.
    pub(crate) keeps_segments: bool,
    /// Its channel wants hints of what comes.
    pub(crate) prefetches: bool,
    pub(crate) limiter: Arc<Limiter>,
}

impl OpenNamespace {
    /// Opens a channel of the calling reactor.
    pub(crate) fn open(namespace: Arc<Namespace>, reactor: &block::Reactor) -> Result<Self, Error> {
        let channel = namespace.device.channel(reactor)?;
        let info = namespace.device.info();
        let read_only = namespace.is_read_only(&info);
        let (keeps_segments, prefetches) = (channel.keeps_segments(), channel.prefetches());
        let limiter = namespace.limiter.clone();
        Ok(Self { namespace, channel: channel.into(), info, read_only, keeps_segments, prefetches, limiter })
    }

    /// The device has changed.
    pub(crate) fn refresh(&mut self) {
        self.info = self.namespace.device.info();
        self.read_only = self.namespace.is_read_only(&self.info);
    }

    /// Whether Compare and Write can be fused.
    fn fuses(&self) -> bool {
        self.info.abilities.contains(Abilities::COMPARE_AND_WRITE)
    }

    /// Whether there are such blocks.
    #[inline(always)]
    fn has(&self, lba: u64, blocks: u64) -> bool {
        lba.checked_add(blocks).is_some_and(|end| end <= self.info.blocks || self.has_grown_to(end))
    }

    /// The host may have seen the device's new size before this worker heard of it. (What has become smaller answers
    /// by itself.)
    #[cold]
    fn has_grown_to(&self, end: u64) -> bool {
        end <= self.namespace.device.info().blocks
    }
}

/// Blocks that a command names, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) flags: Flags,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    pub(crate) bytes: usize,
}

/// What a command that neither reads nor writes asks for, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Write zeroes.
    Zero(Range),
    /// Compare.
    Compare(Range),
    /// Compare that is the first command of a fused operation.
    Fused,
    /// Flush of one namespace.
    Flush,
    /// Deallocate: this many ranges are to be read from the host.
    Deallocate { ranges: usize },
    /// Nothing to do.
    Done,
}

/// Whether the command is the first of two that are fused.
pub(crate) fn begins_pair(command: &Command, namespace: &OpenNamespace) -> bool {
    command.nvm_opcode() == NvmOpcode::COMPARE && command.fuse() == Fuse::FIRST && namespace.fuses()
}

/// The status of half of a fused operation without the other half (Base 3.4.2).
pub(crate) fn missing_half() -> Status {
    Status::COMMAND_ABORTED_MISSING_FUSED.with_dnr()
}

/// The status of a command with FUSE that is served by itself: there is no such operation, or its first half is missing.
#[cold]
fn alone(command: &Command, namespace: &OpenNamespace) -> Status {
    let is_second = command.nvm_opcode() == NvmOpcode::WRITE && command.fuse() == Fuse::SECOND;
    if is_second && namespace.fuses() { missing_half() } else { Status::INVALID_FIELD_IN_COMMAND.with_dnr() }
}

/// Decodes a command that neither reads nor writes. `most` is MDTS in bytes.
pub(crate) fn decode(command: &Command, namespace: &OpenNamespace, most: usize) -> Result<Request, Status> {
    if begins_pair(command, namespace) {
        return Ok(Request::Fused);
    }
    if command.fuse() != Fuse::NORMAL {
        return Err(alone(command, namespace));
    }
    match command.nvm_opcode() {
        NvmOpcode::COMPARE => Ok(Request::Compare(range(command, namespace, Op::Read, most)?)),
        NvmOpcode::WRITE_ZEROES => {
            let mut range = blocks(command, namespace, Op::WriteZeroes, usize::MAX)?;
            range.flags.set(Flags::MAY_UNMAP, IoCdw12::from_bits(command.cdw12()).deac());
            Ok(Request::Zero(range))
        }
        NvmOpcode::FLUSH => Ok(Request::Flush),
        NvmOpcode::DATASET_MANAGEMENT => dataset_management(command, namespace),
        _ => Err(Status::INVALID_COMMAND_OPCODE.with_dnr()),
    }
}

/// Decodes the blocks that a command names. `most` is MDTS in bytes.
#[inline(always)]
pub(crate) fn blocks(
    command: &Command,
    namespace: &OpenNamespace,
    op: Op,
    most: usize,
) -> Result<Range, Status> {
    if command.fuse() != Fuse::NORMAL {
        return Err(alone(command, namespace));
    }
    range(command, namespace, op, most)
}

/// The same for a command of any FUSE.
#[inline(always)]
pub(crate) fn range(
    command: &Command,
    namespace: &OpenNamespace,
    op: Op,
    most: usize,
) -> Result<Range, Status> {
    let dword = IoCdw12::from_bits(command.cdw12());
    if op != Op::Read && namespace.read_only {
        return Err(Status::NAMESPACE_IS_WRITE_PROTECTED.with_dnr());
    }
    // The namespaces have no protection information: PRACT and the checks are of no effect (NVM 5.2), but a
    // directive is refused since none is offered (Base 5.10).
    if op == Op::Write && dword.dtype() != 0 {
        return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
    }
    let (lba, blocks) = (command.slba(), u64::from(dword.blocks()));
    if !namespace.has(lba, blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    // At most 65536 blocks of 65536 bytes: 4 GiB.
    let bytes = (blocks * u64::from(namespace.info.block_size)) as usize;
    if bytes > most {
        return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
    }
    // FUA is bit 30, LR bit 31 of command dword 12 (NVM 3.2.4, 3.2.6).
    const _: () = assert!(Flags::FUA.bits() == 1 && Flags::LIMITED_RETRY.bits() == 2);
    let flags = Flags::from_bits_retain(command.cdw12() >> 30);
    Ok(Range { flags, lba, blocks, bytes })
}

fn dataset_management(command: &Command, namespace: &OpenNamespace) -> Result<Request, Status> {
    if namespace.read_only {
        return Err(Status::NAMESPACE_IS_WRITE_PROTECTED.with_dnr());
    }
    if !DsmCdw11::from_bits(command.cdw11()).ad() {
        return Ok(Request::Done); // the other attributes are hints
    }
    Ok(Request::Deallocate { ranges: usize::from(DsmCdw10::from_bits(command.cdw10()).nr_z()) + 1 })
}

/// Checks the ranges of a deallocation: all are in the namespace, or none is touched (NVM 3.2.3).
pub(crate) fn check_ranges(ranges: &[DsmRange], namespace: &OpenNamespace) -> Result<(), Status> {
    for range in ranges {
        if !namespace.has(range.slba.get(), u64::from(range.nlb.get())) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
        }
    }
    Ok(())
}

/// Bytes that a command gives back before others get their turn: a device may complete each range on the spot.
const STEP: u64 = 1 << 20;

/// Deallocates ranges one after the other. A device without discard keeps its data, as is allowed.
pub(crate) async fn deallocate(
    channel: Rc<dyn Channel>,
    can_discard: bool,
    ranges: Vec<DsmRange>,
    tag: u64,
    guard: Guard,
) -> Result<(), Error> {
    let mut bytes = 0;
    for range in ranges {
        let (lba, blocks) = (range.slba.get(), u64::from(range.nlb.get()));
        if blocks > 0 && can_discard {
            run(&*channel, Io::new(Op::Discard, lba, blocks, Vec::new(), Some(guard.clone()), tag)).await?;
            // Blocks are of 512 bytes or more, and what is small has its price too.
            bytes += (blocks * 512).max(STEP / 16);
            if bytes >= STEP {
                bytes = 0;
                yield_now().await;
            }
        }
    }
    Ok(())
}

/// Makes several namespaces durable, one after the other.
pub(crate) async fn flush_all(
    channels: Vec<Rc<dyn Channel>>,
    tag: u64,
    guard: Option<Guard>,
) -> Result<(), Error> {
    let mut first_error = Ok(());
    for channel in channels {
        let flushed = run(&*channel, Io::new(Op::Flush, 0, 0, Vec::new(), guard.clone(), tag)).await;
        if first_error.is_ok() {
            first_error = flushed;
        }
    }
    first_error
}

pub(crate) async fn run(channel: &dyn Channel, io: Io) -> Result<(), Error> {
    match channel.submit(io) {
        Submission::Done(completed) => completed.result,
        Submission::Pending(future) => future.await.result,
    }
}
