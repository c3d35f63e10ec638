//! From a command's data pointer to host segments: PRPs (Base 4.1.1) and SGLs (Base 4.1.2).
//!
//! Lists and descriptors are copied out of guest memory once and checked in the copy. Loops are bounded by
//! the transfer's length (PRP) and by [`MAX_DESCRIPTORS`] (SGL).

use std::ptr::NonNull;
use std::sync::OnceLock;

use block::Segment;
use nvme_spec::command::{Command, Psdt};
use nvme_spec::sgl::{SglDescriptor, SglSubtype, SglType};
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaFault, DmaTable, Hint, RegionMask};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::memory::{self, Gather};

/// The most SGL descriptors one command may have, segment descriptors included.
pub(crate) const MAX_DESCRIPTORS: usize = 1024;

/// Why data cannot be transferred: the status for the guest, and the memory fault behind it, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransferError {
    pub(crate) status: Status,
    pub(crate) fault: Option<DmaFault>,
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self { status: status.with_dnr(), fault: None }
    }
}

impl From<DmaFault> for TransferError {
    fn from(fault: DmaFault) -> Self {
        Self { status: Status::DATA_TRANSFER_ERROR.with_dnr(), fault: Some(fault) }
    }
}

/// The data of a command.
#[derive(Clone, Copy)]
pub(crate) struct Transfer<'a> {
    pub(crate) command: &'a Command,
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) access: Access,
    /// CC.MPS in bytes.
    pub(crate) page: u64,
    /// Whether PSDT may say SGL: not in admin commands (Base 3.3.3.1).
    pub(crate) sgl_allowed: bool,
}

/// Resolves a command's data into `segments`. Returns the regions that they lie in.
#[inline(always)]
pub(crate) fn resolve(
    table: &DmaTable,
    hint: &mut Hint,
    transfer: Transfer<'_>,
    segments: &mut Vec<Segment>,
) -> Result<RegionMask, TransferError> {
    segments.clear();
    // Most commands name one page, or one block, in the region of the command before.
    if let Some(iova) = in_one_piece(transfer)
        && let Some((ptr, regions)) = table.resolve_again(iova, transfer.len, transfer.access, *hint)
    {
        segments.push(memory::segment(ptr, transfer.len));
        return Ok(regions);
    }
    resolve_any(table, hint, &transfer, segments)
}

/// Where the data is if the command itself says it all.
#[inline(always)]
fn in_one_piece(transfer: Transfer<'_>) -> Option<u64> {
    let Transfer { command, len, page, sgl_allowed, .. } = transfer;
    let psdt = command.psdt();
    if psdt == Psdt::PRP {
        let (prp1, first) = (command.prp1(), page - (command.prp1() & (page - 1)));
        return (prp1 & 3 == 0 && len as u64 <= first && len > 0).then_some(prp1);
    }
    let descriptor = command.sgl1();
    let is_block = descriptor.identifier.kind() == SglType::DATA_BLOCK
        && descriptor.identifier.subtype() == SglSubtype::ADDRESS;
    let is_whole = descriptor.length.get() as usize == len && len > 0;
    let is_aligned = (descriptor.address.get() | len as u64) & 3 == 0;
    let is_sgl = matches!(psdt, Psdt::SGL_METADATA_BUFFER | Psdt::SGL_METADATA_SGL);
    (sgl_allowed && is_sgl && is_block && is_whole && is_aligned).then(|| descriptor.address.get())
}

#[cold]
#[inline(never)]
fn resolve_any(
    table: &DmaTable,
    hint: &mut Hint,
    transfer: &Transfer<'_>,
    segments: &mut Vec<Segment>,
) -> Result<RegionMask, TransferError> {
    let Transfer { command, len, access, page, sgl_allowed } = *transfer;
    let mut gather = Gather::new(table, hint, access, segments);
    match command.psdt() {
        Psdt::PRP => resolve_prp(&mut gather, command.prp1(), command.prp2(), len as u64, page)?,
        Psdt::SGL_METADATA_BUFFER | Psdt::SGL_METADATA_SGL if sgl_allowed => {
            resolve_sgl(&mut gather, command.sgl1(), len as u64, access)?;
        }
        _ => return Err(Status::INVALID_FIELD_IN_COMMAND.into()),
    }
    Ok(gather.finish())
}

fn resolve_prp(
    gather: &mut Gather<'_>,
    prp1: u64,
    prp2: u64,
    len: u64,
    page: u64,
) -> Result<(), TransferError> {
    if prp1 & 3 != 0 {
        return Err(Status::PRP_OFFSET_INVALID.into());
    }
    let first = (page - (prp1 & (page - 1))).min(len);
    gather.push(prp1, first as usize)?;
    let rest = len - first;
    if rest == 0 {
        return Ok(());
    }
    if rest <= page {
        if prp2 & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID.into());
        }
        gather.push(prp2, rest as usize)?;
        return Ok(());
    }
    resolve_prp_list(gather, prp2, rest, page)
}

/// Walks a PRP list. After the first list every chained one starts its page, so each hop yields at least 511
/// entries and the walk ends after `rest / page` of them.
fn resolve_prp_list(
    gather: &mut Gather<'_>,
    mut list: u64,
    mut rest: u64,
    page: u64,
) -> Result<(), TransferError> {
    const BATCH: usize = 64;
    if list & 7 != 0 {
        return Err(Status::PRP_OFFSET_INVALID.into());
    }
    loop {
        let in_page = (page - (list & (page - 1))) / 8;
        let needed = rest.div_ceil(page);
        let chained = needed > in_page;
        let mut data_entries = if chained { in_page - 1 } else { needed };
        let mut at = list;
        while data_entries > 0 {
            let mut entries = [0u64; BATCH];
            let n = (data_entries as usize).min(BATCH);
            gather.table().read(at, entries[..n].as_mut_bytes())?;
            for &entry in &entries[..n] {
                let entry = u64::from_le(entry);
                if entry & (page - 1) != 0 {
                    return Err(Status::PRP_OFFSET_INVALID.into());
                }
                let piece = rest.min(page);
                gather.push_page(entry, piece as usize)?;
                rest -= piece;
            }
            at = at.wrapping_add(n as u64 * 8);
            data_entries -= n as u64;
        }
        if !chained {
            return Ok(());
        }
        let mut next = [0; 8];
        gather.table().read(at, &mut next)?;
        list = u64::from_le_bytes(next);
        if list & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID.into());
        }
    }
}

fn resolve_sgl(
    gather: &mut Gather<'_>,
    first: SglDescriptor,
    len: u64,
    access: Access,
) -> Result<(), TransferError> {
    const BATCH: usize = 32;
    let mut walk = SglWalk { rest: len, access, budget: MAX_DESCRIPTORS };
    let mut segment = match walk.descriptor(gather, &first)? {
        Next::Data => return walk.end(),
        Next::Segment(segment) => segment,
    };
    loop {
        let mut left = segment.descriptors;
        let mut at = segment.address;
        let mut following = None;
        while left > 0 {
            let mut descriptors = [SglDescriptor::new_zeroed(); BATCH];
            let n = left.min(BATCH);
            gather.table().read(at, descriptors[..n].as_mut_bytes())?;
            for (i, descriptor) in descriptors[..n].iter().enumerate() {
                let is_last = left == n && i + 1 == n;
                match walk.descriptor(gather, descriptor)? {
                    Next::Data if is_last && !segment.last => {
                        return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.into());
                    }
                    Next::Data => {}
                    Next::Segment(next) if is_last && !segment.last => following = Some(next),
                    Next::Segment(_) => return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.into()),
                }
            }
            at = at.wrapping_add((n * SglDescriptor::BYTES) as u64);
            left -= n;
        }
        match following {
            Some(next) => segment = next,
            None => return walk.end(),
        }
    }
}

struct SglWalk {
    rest: u64,
    access: Access,
    budget: usize,
}

enum Next {
    Data,
    Segment(SglSegment),
}

struct SglSegment {
    address: u64,
    descriptors: usize,
    last: bool,
}

impl SglWalk {
    fn descriptor(&mut self, gather: &mut Gather<'_>, raw: &SglDescriptor) -> Result<Next, TransferError> {
        self.budget = self
            .budget
            .checked_sub(1)
            .ok_or(TransferError::from(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS))?;
        let (address, length) = (raw.address.get(), u64::from(raw.length.get()));
        if raw.identifier.subtype() != SglSubtype::ADDRESS {
            return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.into());
        }
        match raw.identifier.kind() {
            SglType::DATA_BLOCK => {
                // SGLS says dword alignment (Identify Controller bytes 539:536).
                if (address | length) & 3 != 0 {
                    return Err(Status::SGL_DATA_BLOCK_GRANULARITY_INVALID.into());
                }
                self.rest = self.rest.checked_sub(length).ok_or(Self::length_invalid())?;
                gather.push(address, length as usize)?;
                Ok(Next::Data)
            }
            SglType::BIT_BUCKET => {
                // Only data for the host can be thrown away; otherwise the descriptor is empty.
                if self.access == Access::Write {
                    if length & 3 != 0 {
                        return Err(Status::SGL_DATA_BLOCK_GRANULARITY_INVALID.into());
                    }
                    self.rest = self.rest.checked_sub(length).ok_or(Self::length_invalid())?;
                    push_bit_bucket(gather, length as usize)?;
                }
                Ok(Next::Data)
            }
            kind @ (SglType::SEGMENT | SglType::LAST_SEGMENT) => {
                if length == 0 || !length.is_multiple_of(SglDescriptor::BYTES as u64) || address & 7 != 0 {
                    return Err(Status::INVALID_SGL_SEGMENT_DESCRIPTOR.into());
                }
                let descriptors = length as usize / SglDescriptor::BYTES;
                if descriptors > self.budget {
                    return Err(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.into());
                }
                Ok(Next::Segment(SglSegment { address, descriptors, last: kind == SglType::LAST_SEGMENT }))
            }
            _ => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.into()),
        }
    }

    fn length_invalid() -> TransferError {
        Status::DATA_SGL_LENGTH_INVALID.into()
    }

    fn end(self) -> Result<(), TransferError> {
        if self.rest == 0 { Ok(()) } else { Err(Self::length_invalid()) }
    }
}

/// Where discarded data goes: one scratch area of the process that nobody reads.
fn push_bit_bucket(gather: &mut Gather<'_>, mut len: usize) -> Result<(), TransferError> {
    const SIZE: usize = 64 * 1024;
    struct Scratch(NonNull<u8>);
    // SAFETY: plain memory that is only ever written by devices and never read.
    unsafe impl Send for Scratch {}
    // SAFETY: as above.
    unsafe impl Sync for Scratch {}
    static SCRATCH: OnceLock<Option<Scratch>> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(|| {
        use rustix::mm::{MapFlags, ProtFlags};
        // SAFETY: a fresh anonymous mapping; it is never unmapped.
        let ptr = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        ptr.ok().and_then(|ptr| NonNull::new(ptr.cast())).map(Scratch)
    });
    let Some(Scratch(ptr)) = scratch else { return Err(Status::INTERNAL_ERROR.into()) };
    while len > 0 {
        let piece = len.min(SIZE);
        gather.push_static(*ptr, piece);
        len -= piece;
    }
    Ok(())
}

/// Copies `data` to the host memory that an admin command names; what the command has no room for is left
/// out by the caller.
pub(crate) fn write_to_host(segments: &[Segment], data: &[u8]) {
    let mut at = 0;
    for segment in segments {
        at += segment.write(0, &data[at.min(data.len())..]);
    }
}

/// Zeroes the host memory of a command from byte `from` on.
pub(crate) fn zero_in_host(segments: &[Segment], from: usize) {
    const ZEROES: [u8; 512] = [0; 512];
    let mut start = 0;
    for segment in segments {
        let mut at = from.saturating_sub(start);
        while at < segment.len() {
            at += segment.write(at, &ZEROES);
        }
        start += segment.len();
    }
}

/// Reads a structure that a command transfers from the host.
pub(crate) fn read_from_host(segments: &[Segment], data: &mut [u8]) {
    let mut at = 0;
    for segment in segments {
        let rest = &mut data[at..];
        at += segment.read(0, rest);
    }
}

/// A wire structure that a command transfers from the host.
pub(crate) fn read_struct<T: FromBytes + IntoBytes + FromZeros>(segments: &[Segment]) -> T {
    let mut value = T::new_zeroed();
    read_from_host(segments, value.as_mut_bytes());
    value
}

#[cfg(test)]
mod tests;
