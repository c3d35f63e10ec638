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
    pub(crate) channel: Rc<dyn Channel>,
    pub(crate) info: Info,
    pub(crate) read_only: bool,
    pub(crate) limiter: Arc<Limiter>,
}

impl OpenNamespace {
    /// Opens a channel of the calling reactor.
    pub(crate) fn open(namespace: &Namespace, reactor: &block::Reactor) -> Result<Self, Error> {
        let channel = namespace.device.channel(reactor)?;
        let info = namespace.device.info();
        let read_only = namespace.read_only || !info.abilities.contains(Abilities::WRITE);
        Ok(Self { channel: channel.into(), info, read_only, limiter: namespace.limiter.clone() })
    }
}

/// What a command asks for, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Reads, writes and write zeroes.
    Blocks { op: Op, flags: Flags, lba: u64, blocks: u64, bytes: usize },
    /// Flush of one namespace.
    Flush,
    /// Deallocate: this many ranges are to be read from the host.
    Deallocate { ranges: usize },
    /// Nothing to do.
    Done,
}

/// Decodes a command for a namespace. `most` is MDTS in bytes.
#[inline]
pub(crate) fn decode(command: &Command, namespace: &OpenNamespace, most: usize) -> Result<Request, Status> {
    if command.fuse() != Fuse::NORMAL {
        return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
    }
    match command.nvm_opcode() {
        NvmOpcode::READ => blocks(command, namespace, Op::Read, most),
        NvmOpcode::WRITE => blocks(command, namespace, Op::Write, most),
        NvmOpcode::WRITE_ZEROES => blocks(command, namespace, Op::WriteZeroes, usize::MAX),
        NvmOpcode::FLUSH => Ok(Request::Flush),
        NvmOpcode::DATASET_MANAGEMENT => dataset_management(command, namespace),
        _ => Err(Status::INVALID_COMMAND_OPCODE.with_dnr()),
    }
}

#[inline]
fn blocks(command: &Command, namespace: &OpenNamespace, op: Op, most: usize) -> Result<Request, Status> {
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
    if lba.checked_add(blocks).is_none_or(|end| end > namespace.info.blocks) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    // At most 65536 blocks of 65536 bytes: 4 GiB.
    let bytes = (blocks * u64::from(namespace.info.block_size)) as usize;
    if bytes > most {
        return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
    }
    let mut flags = Flags::empty();
    flags.set(Flags::FUA, dword.fua());
    flags.set(Flags::LIMITED_RETRY, dword.lr());
    flags.set(Flags::MAY_UNMAP, op == Op::WriteZeroes && dword.deac());
    Ok(Request::Blocks { op, flags, lba, blocks, bytes })
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
pub(crate) fn check_ranges(ranges: &[DsmRange], info: &Info) -> Result<(), Status> {
    for range in ranges {
        let (lba, blocks) = (range.slba.get(), u64::from(range.nlb.get()));
        if lba.checked_add(blocks).is_none_or(|end| end > info.blocks) {
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

async fn run(channel: &dyn Channel, io: Io) -> Result<(), Error> {
    match channel.submit(io) {
        Submission::Done(completed) => completed.result,
        Submission::Pending(future) => future.await.result,
    }
}
