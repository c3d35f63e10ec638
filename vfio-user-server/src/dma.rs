//! Guest memory: [`DmaTable`], an immutable sorted snapshot of what the client mapped, and [`DmaSpace`],
//! which replaces it whole.
//!
//! A range is only ever compared as `len <= size - (iova - start)`: sums of guest addresses wrap.

mod copy;
mod mapped;
mod mapping;
mod origin;
mod retired;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::sigbus::{Breakage, RegisterError};
pub use mapped::Mapped;
use mapping::Mapping;
pub use retired::Retired;

/// The page size the server offers (capability `pgsizes`): addresses, sizes and offsets are multiples.
pub const PAGE_SIZE: u64 = 4096;
/// Regions a client may map (capability `max_dma_maps`). Each costs a mapping of this process, of which
/// vm.max_map_count allows 65530 by default; a client gets a quarter of what the others leave of them.
pub const MAX_REGIONS: usize = 8192;
/// Bytes a client may map with descriptors; no more than a quarter of what the others leave of 64 TiB.
pub const MAX_MAPPED: u64 = 8 << 40;

/// What the device wants to do with guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads guest memory (vfio-user DMA_MAP flag bit 0).
    Read,
    /// The device writes guest memory (bit 1).
    Write,
}

impl Access {
    const fn flag(self) -> MapFlags {
        match self {
            Self::Read => MapFlags::READ,
            Self::Write => MapFlags::WRITE,
        }
    }
}

bitflags::bitflags! {
    /// What the device may do with a region (DMA_MAP flags bits 0 and 1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// The device may read it.
        const READ = 1 << 0;
        /// The device may write it.
        const WRITE = 1 << 1;
    }
}

/// Why an address range is of no use to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaFault {
    /// Nothing is mapped there.
    #[error("guest address {iova:#x} is not mapped")]
    Unmapped {
        /// First address that failed.
        iova: u64,
    },
    /// The map does not allow this access.
    #[error("guest address {iova:#x} is mapped without the needed permission")]
    Forbidden {
        /// First address that failed.
        iova: u64,
    },
    /// The client mapped it without a descriptor, so it is out of this process's reach.
    #[error(
        "guest address {iova:#x} was mapped without a descriptor; start the VMM with shared memory (share=on)"
    )]
    NotShared {
        /// First address that failed.
        iova: u64,
    },
}

/// Why a region cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Size 0.
    #[error("the region is empty")]
    Empty,
    /// The region ends beyond 2^64.
    #[error("the region wraps around")]
    Wraps,
    /// Address, size or offset is not a multiple of [`PAGE_SIZE`].
    #[error("the region is not aligned to pages")]
    Misaligned,
    /// Part of it is mapped already.
    #[error("the region overlaps another")]
    Overlap,
    /// The client has [`MAX_REGIONS`] regions.
    #[error("too many regions")]
    TooMany,
    /// The client would have more than [`MAX_MAPPED`] bytes, or the file offset is out of range.
    #[error("the region is too large")]
    TooLarge,
    /// Others must be able to map something, too.
    #[error("{0}")]
    Share(RegisterError),
    /// The file is shorter than the region.
    #[error("the region ends at byte {end} of a file of {file}")]
    BeyondFile {
        /// End of the region in the file.
        end: u64,
        /// Size of the file.
        file: u64,
    },
    /// The descriptor is not a file.
    #[error("the descriptor is not memory")]
    NotMemory,
    /// The file's pages come from elsewhere, perhaps never.
    #[error(
        "the descriptor is a file on {0:?}, which may not answer: give the guest a memfd \
         (memory-backend-memfd, share=on), or a file on tmpfs, hugetlbfs or a local disk"
    )]
    Foreign(String),
    /// The system refused.
    #[error("cannot map: {0}")]
    Os(#[source] io::Error),
}

impl MapError {
    /// What the client is told.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Empty
            | Self::Wraps
            | Self::Misaligned
            | Self::BeyondFile { .. }
            | Self::NotMemory
            | Self::Foreign(_) => libc::EINVAL,
            Self::Overlap => libc::EEXIST,
            Self::TooMany | Self::Share(_) => libc::ENOSPC,
            Self::TooLarge => libc::E2BIG,
            Self::Os(error) => error.raw_os_error().unwrap_or(libc::ENOMEM),
        }
    }
}

/// A range to be unmapped would cut a region in two, or is no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{size:#x} bytes at {iova:#x} are not whole regions")]
pub struct UnmapError {
    /// Start of the range.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

/// A set of regions, as a 64-bit filter of their identities: two disjoint masks share no region.
pub type RegionMask = u64;

/// Remembers the last region a lookup hit. One per queue; never shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint(usize);

/// A mapped region of guest memory.
#[derive(Clone, Debug)]
struct Region {
    start: u64,
    /// At least 1, and `start + (size - 1)` does not wrap.
    size: u64,
    flags: MapFlags,
    /// Unique for the life of the space.
    id: u64,
    /// Missing when the client sent no descriptor.
    mapping: Option<Arc<Mapping>>,
}

impl Region {
    fn last(&self) -> u64 {
        self.start + (self.size - 1)
    }

    fn mask(&self) -> RegionMask {
        1 << (self.id % 64)
    }
}

/// What a lookup needs of a region, together in one place.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    size: u64,
    /// Host address of `start`; meaningless unless `usable` has bits.
    host: NonNull<u8>,
    mask: RegionMask,
    /// Accesses that need no further look: allowed by the client, and in reach.
    usable: MapFlags,
    allowed: MapFlags,
}

/// An immutable snapshot of guest memory. While it is held, its memory stays mapped into this process.
#[derive(Debug)]
pub struct DmaTable {
    generation: u64,
    /// Sorted by address, disjoint; one for each of `regions`.
    entries: Vec<Entry>,
    regions: Vec<Region>,
}

// SAFETY: the raw addresses in `entries` belong to the mappings in `regions`, which are Send and Sync.
unsafe impl Send for DmaTable {}
// SAFETY: as above; a table never changes.
unsafe impl Sync for DmaTable {}

impl DmaTable {
    fn new(generation: u64, regions: Vec<Region>) -> Self {
        let entries = regions
            .iter()
            .map(|r| Entry {
                start: r.start,
                size: r.size,
                host: r.mapping.as_ref().map_or(NonNull::dangling(), |m| m.start()),
                mask: r.mask(),
                usable: if r.mapping.is_some() { r.flags } else { MapFlags::empty() },
                allowed: r.flags,
            })
            .collect();
        Self { generation, entries, regions }
    }

    /// Counts the replacements of the table: a later table has a larger generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Resolves `len` bytes at guest address `iova` to host memory: calls `piece` with pointer and length of
    /// each contiguous piece in order. Returns which regions were touched. On a fault some pieces may have
    /// been reported before. `len` 0 resolves to nothing.
    ///
    /// The pointers are good for raw access while this table is held.
    #[inline]
    pub fn resolve(
        &self,
        iova: u64,
        len: usize,
        access: Access,
        hint: &mut Hint,
        mut piece: impl FnMut(NonNull<u8>, usize),
    ) -> Result<RegionMask, DmaFault> {
        if let Some((host, mask)) = self.resolve_again(iova, len, access, *hint) {
            piece(host, len);
            return Ok(mask);
        }
        self.resolve_slow(iova, len, access, hint, &mut piece)
    }

    /// Resolves what lies in the region that the last lookup hit, which is nearly everything: where it is, and which
    /// region that is. `None` says nothing but that [`Self::resolve`] has to look.
    #[inline(always)]
    pub fn resolve_again(
        &self,
        iova: u64,
        len: usize,
        access: Access,
        hint: Hint,
    ) -> Option<(NonNull<u8>, RegionMask)> {
        let entry = self.entries.get(hint.0)?;
        let offset = iova.wrapping_sub(entry.start);
        // `len - 1` wraps for 0, which then takes the long way.
        let is_inside = offset < entry.size && (len as u64).wrapping_sub(1) < entry.size - offset;
        if !is_inside || !entry.usable.contains(access.flag()) {
            return None;
        }
        // SAFETY: `offset < size`, and `size` bytes are mapped at `host` while the table lives.
        Some((unsafe { entry.host.add(offset as usize) }, entry.mask))
    }

    #[inline(never)]
    fn resolve_slow(
        &self,
        mut iova: u64,
        len: usize,
        access: Access,
        hint: &mut Hint,
        piece: &mut dyn FnMut(NonNull<u8>, usize),
    ) -> Result<RegionMask, DmaFault> {
        let mut mask = 0;
        let mut left = len as u64;
        while left > 0 {
            let index = self.entries.partition_point(|e| e.start <= iova).wrapping_sub(1);
            let entry = self.entries.get(index).ok_or(DmaFault::Unmapped { iova })?;
            let offset = iova - entry.start;
            if offset >= entry.size {
                return Err(DmaFault::Unmapped { iova });
            }
            if !entry.usable.contains(access.flag()) {
                let forbidden = !entry.allowed.contains(access.flag());
                return Err(if forbidden {
                    DmaFault::Forbidden { iova }
                } else {
                    DmaFault::NotShared { iova }
                });
            }
            let here = left.min(entry.size - offset);
            // SAFETY: `offset < size`, and `size` bytes are mapped at `host` while the table lives.
            piece(unsafe { entry.host.add(offset as usize) }, here as usize);
            hint.0 = index;
            mask |= entry.mask;
            left -= here;
            if left > 0 {
                // Behind the last address there is nothing.
                iova = iova.checked_add(here).ok_or(DmaFault::Unmapped { iova: u64::MAX })?;
            }
        }
        Ok(mask)
    }

    /// Copies guest memory at `iova` into `data`. On a fault the beginning may have been copied.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        let mut rest = &mut data[..];
        self.resolve(iova, rest.len(), Access::Read, &mut Hint::default(), |host, len| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            // SAFETY: `resolve` vouches for `len` bytes at `host` while this table is held.
            unsafe { copy::from_guest(host.as_ptr(), now) };
            rest = later;
        })
        .map(drop)
    }

    /// Copies `data` to guest memory at `iova`. On a fault the beginning may have been copied.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        let mut rest = data;
        self.resolve(iova, rest.len(), Access::Write, &mut Hint::default(), |host, len| {
            let (now, later) = rest.split_at(len);
            // SAFETY: `resolve` vouches for `len` bytes at `host` while this table is held.
            unsafe { copy::to_guest(now, host.as_ptr()) };
            rest = later;
        })
        .map(drop)
    }

    /// The regions of this table that `newer` no longer has.
    pub fn removed(&self, newer: &DmaTable) -> RegionMask {
        let still = |r: &&Region| {
            let found = newer.regions.binary_search_by_key(&r.start, |n| n.start);
            found.is_ok_and(|i| newer.regions[i].id == r.id)
        };
        self.regions.iter().filter(|r| !still(r)).fold(0, |mask, r| mask | r.mask())
    }
}

/// What only a change of the table needs.
#[derive(Debug, Default)]
struct Writer {
    /// The identity for the next region.
    next_id: u64,
    /// What left the table and may still be held by an older one.
    retired: Vec<Weak<Mapping>>,
}

impl Writer {
    fn retire(&mut self, regions: &[Region]) -> Retired {
        let retired = Retired::of(regions);
        self.retired.retain(|m| m.strong_count() > 0);
        self.retired.extend(retired.mappings.iter().map(Arc::downgrade));
        retired
    }
}

/// The current [`DmaTable`] of a function.
#[derive(Debug)]
pub struct DmaSpace {
    table: arc_swap::ArcSwap<DmaTable>,
    /// Follows the table: a reader that sees a generation here finds that table or a later one.
    generation: AtomicU64,
    /// Held while the table is replaced.
    writer: Mutex<Writer>,
    breakage: Arc<Breakage>,
}

impl DmaSpace {
    /// An empty address space.
    pub fn new() -> Self {
        Self {
            table: arc_swap::ArcSwap::from_pointee(DmaTable::new(0, Vec::new())),
            generation: AtomicU64::new(0),
            writer: Mutex::default(),
            breakage: Arc::new(Breakage::new()),
        }
    }

    /// The generation of the current table: one atomic load, for a reactor to see whether its own is stale.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The current table.
    pub fn table(&self) -> Arc<DmaTable> {
        self.table.load_full()
    }

    /// Maps `size` bytes at guest address `iova` to those of `fd` at `offset`. Without a descriptor the
    /// region is known but out of reach ([`DmaFault::NotShared`]).
    pub fn map(
        &self,
        iova: u64,
        size: u64,
        fd: Option<OwnedFd>,
        offset: u64,
        flags: MapFlags,
    ) -> Result<(), MapError> {
        self.map_borrowed(iova, size, fd.as_ref().map(OwnedFd::as_fd), offset, flags)
    }

    /// The same; the descriptor is not needed afterwards.
    pub(crate) fn map_borrowed(
        &self,
        iova: u64,
        size: u64,
        fd: Option<BorrowedFd<'_>>,
        offset: u64,
        flags: MapFlags,
    ) -> Result<(), MapError> {
        if size == 0 {
            return Err(MapError::Empty);
        }
        let last = iova.checked_add(size - 1).ok_or(MapError::Wraps)?;
        if !(iova | size | offset).is_multiple_of(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.table.load();
        if old.regions.len() >= MAX_REGIONS {
            return Err(MapError::TooMany);
        }
        let at = old.regions.partition_point(|r| r.start <= iova);
        let before = at.checked_sub(1).map(|i| &old.regions[i]);
        if before.is_some_and(|r| r.last() >= iova) || old.regions.get(at).is_some_and(|r| r.start <= last) {
            return Err(MapError::Overlap);
        }
        // Without permission there is nothing to reach.
        let mapping = match fd {
            Some(fd) if !flags.is_empty() => {
                let mapped = old.regions.iter().filter(|r| r.mapping.is_some()).map(|r| r.size).sum::<u64>();
                if size > MAX_MAPPED - mapped {
                    return Err(MapError::TooLarge);
                }
                Some(Arc::new(Mapping::new(fd, offset, size, flags, self.breakage.clone())?))
            }
            _ => None,
        };
        let mut regions = Vec::with_capacity(old.regions.len() + 1);
        regions.extend_from_slice(&old.regions[..at]);
        regions.push(Region { start: iova, size, flags, id: writer.next_id, mapping });
        regions.extend_from_slice(&old.regions[at..]);
        writer.next_id += 1;
        self.replace(&old, regions);
        Ok(())
    }

    /// Unmaps every region in this range. A region that is partly in it refuses; a range in which nothing is
    /// mapped is unmapped already (clients unmap what could not be mapped, and a vIOMMU invalidates wholesale).
    pub fn unmap(&self, iova: u64, size: u64) -> Result<Retired, UnmapError> {
        let error = UnmapError { iova, size };
        let last = size.checked_sub(1).and_then(|n| iova.checked_add(n)).ok_or(error)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.table.load();
        let from = old.regions.partition_point(|r| r.last() < iova);
        let to = old.regions.partition_point(|r| r.start <= last);
        let gone = old.regions.get(from..to).unwrap_or_default();
        if gone.iter().any(|r| r.start < iova || r.last() > last) {
            return Err(error);
        }
        let retired = writer.retire(gone);
        if !gone.is_empty() {
            self.replace(&old, [&old.regions[..from], &old.regions[to..]].concat());
        }
        Ok(retired)
    }

    /// Unmaps everything.
    pub fn unmap_all(&self) -> Retired {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.table.load();
        let retired = writer.retire(&old.regions);
        if !old.regions.is_empty() {
            self.replace(&old, Vec::new());
        }
        retired
    }

    /// Unmaps everything, and returns it together with all that was unmapped before and is still held: for
    /// when the client is gone.
    pub fn clear(&self) -> Retired {
        let mut retired = self.unmap_all();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        retired.mappings = writer.retired.iter().filter_map(Weak::upgrade).collect();
        retired
    }

    /// Whether the client has to be disconnected: it took mapped memory away (truncated its file) and the
    /// device ran into it (what it read there was zeroes, what it wrote is lost), or it made a signal sleep.
    pub fn is_broken(&self) -> bool {
        self.breakage.is_broken()
    }

    /// Where it is said.
    pub(crate) fn breakage(&self) -> &Arc<Breakage> {
        &self.breakage
    }

    /// Becomes readable when [`Self::is_broken`] turns true.
    pub fn broken_event(&self) -> Option<Arc<OwnedFd>> {
        self.breakage.event()
    }

    /// Forgets it, for the next client.
    pub fn repair(&self) {
        self.breakage.repair();
    }

    /// Publishes `regions`. The caller holds the lock.
    fn replace(&self, old: &DmaTable, regions: Vec<Region>) {
        let generation = old.generation + 1;
        self.table.store(Arc::new(DmaTable::new(generation, regions)));
        self.generation.store(generation, Ordering::Release);
    }
}

impl Default for DmaSpace {
    fn default() -> Self {
        Self::new()
    }
}
