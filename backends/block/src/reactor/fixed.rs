//! Guest memory as registered ("fixed") buffers of the ring: the kernel pins their pages once, not for each I/O.
//!
//! Registered memory is pinned, so there is a budget, and only pieces that are used often are registered: one that was
//! asked for [`WARM`] times, at most one in each turn of the reactor, since that is a system call which may take long.
//! Nothing is given up for something warmer when the budget is used up.
//!
//! # Why no I/O reaches memory that is not its own
//!
//! A registration names pages, not addresses: were its addresses mapped to something else, I/O through it would still go
//! to the old pages. Three things keep that from happening.
//!
//! - An index is only given out for addresses in a region of [`Table::regions`]. The region leaves that list before its
//!   [`MemoryRegion`] lets go of what keeps the memory mapped, so nothing else can be at these addresses before.
//! - An operation that was given an index holds its memory, too (the contract of [`Reactor::submit`]). While it is queued
//!   or in the kernel, its addresses mean what they meant. The kernel keeps the pages of an operation that it has begun,
//!   whatever becomes of the table.
//! - An operation that is begun after its index was cleared or taken for another piece fails with EFAULT, since the
//!   kernel checks addresses against those of the registration; the other piece is elsewhere, by the second point. Who
//!   submits it tries again without.
//!
//! An entry that the kernel does not clear stays out of use.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use super::ring::Ring;
use super::{Inner, Reactor};

/// Bytes registered at once, at addresses that are multiples of it: as large as the huge pages that guest memory may be
/// in, so that the kernel has one of them for each.
pub const FIXED_PIECE: usize = 1 << PIECE_SHIFT;
const PIECE_SHIFT: u32 = 21;
/// Most pieces that a reactor registers (IORING_MAX_REG_BUFFERS).
pub const MAX_FIXED_PIECES: u32 = 1 << 14;

/// So many times a piece is asked for before it is registered.
pub(super) const WARM: u16 = 32;
/// States of a piece: below [`WARM`] how often it was asked for, [`WARM`] while it waits for the next turn, from here on
/// the index of its registration.
const REGISTERED: u16 = 1 << 15;

/// The registered buffers of a ring.
#[derive(Default)]
pub(super) struct Fixed {
    /// There are regions, and the ring has a table. All that is looked at if not.
    on: Cell<bool>,
    /// The piece to be registered in the next turn: its region's identity, its number.
    wanted: Cell<Option<(u64, usize)>>,
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// Sorted by address, disjoint.
    regions: Vec<Region>,
    /// Where the last lookup hit.
    last: usize,
    next_id: u64,
    /// Entries of the ring's table that hold nothing.
    free: Vec<u16>,
    /// How many there are.
    entries: usize,
    /// The kernel has no memory for more, until something is given back.
    exhausted: bool,
    /// It was said that it has not.
    complained: bool,
}

struct Region {
    id: u64,
    start: usize,
    len: usize,
    /// Handles of it.
    handles: usize,
    /// The kernel does not take memory of this kind.
    refused: bool,
    registered: usize,
    pieces: Vec<u16>,
}

impl Region {
    /// The piece in which an address of this region lies.
    fn piece_of(&self, address: usize) -> usize {
        (address >> PIECE_SHIFT) - (self.start >> PIECE_SHIFT)
    }

    /// Start and length of a piece.
    fn piece(&self, number: usize) -> (usize, usize) {
        let begin = ((self.start >> PIECE_SHIFT) + number) << PIECE_SHIFT;
        let start = begin.max(self.start);
        (start, (begin + (FIXED_PIECE - 1)).min(self.start + (self.len - 1)) - start + 1)
    }
}

impl Table {
    /// The region with this address.
    fn find(&self, address: usize) -> Option<usize> {
        let at = self.regions.partition_point(|region| region.start <= address).checked_sub(1)?;
        (address - self.regions[at].start < self.regions[at].len).then_some(at)
    }
}

impl Fixed {
    /// With a table of so many entries in `ring`; without if the kernel has no such thing.
    pub(super) fn new(ring: &Ring, pieces: u32) -> Self {
        let fixed = Self::default();
        let pieces = pieces.min(MAX_FIXED_PIECES);
        if pieces == 0 {
            return fixed;
        }
        if let Err(error) = ring.make_buffer_table(pieces) {
            tracing::warn!(%error, "no fixed buffers: the kernel has none before Linux 5.19");
            return fixed;
        }
        {
            let mut table = fixed.table.borrow_mut();
            // Taken from the end: the lowest first.
            table.free = (0..pieces as u16).rev().collect();
            table.entries = pieces as usize;
        }
        fixed
    }

    fn add(&self, start: usize, len: usize) -> Option<u64> {
        let mut table = self.table.borrow_mut();
        let last = start.checked_add(len.checked_sub(1)?)?;
        if table.entries == 0 {
            return None;
        }
        let at = table.regions.partition_point(|region| region.start < start);
        if let Some(same) = table.regions.get_mut(at)
            && (same.start, same.len) == (start, len)
        {
            same.handles += 1;
            return Some(same.id);
        }
        let overlaps = table.regions.get(at).is_some_and(|next| next.start <= last)
            || at.checked_sub(1).is_some_and(|at| start - table.regions[at].start < table.regions[at].len);
        if overlaps {
            tracing::error!("memory is added to a reactor that has a part of it: a defect");
            return None;
        }
        let id = table.next_id;
        table.next_id += 1;
        let pieces = vec![0; (last >> PIECE_SHIFT) - (start >> PIECE_SHIFT) + 1];
        let region = Region { id, start, len, handles: 1, refused: false, registered: 0, pieces };
        table.regions.insert(at, region);
        self.on.set(true);
        Some(id)
    }

    /// A handle of region `id` goes. With the last one the region goes, before this returns.
    fn remove(&self, id: u64, ring: &Ring) {
        let mut table = self.table.borrow_mut();
        let Some(at) = table.regions.iter().position(|region| region.id == id) else { return };
        table.regions[at].handles -= 1;
        if table.regions[at].handles > 0 {
            return;
        }
        let region = table.regions.remove(at);
        self.on.set(!table.regions.is_empty());
        let registered = region.pieces.iter().filter(|state| **state >= REGISTERED).take(region.registered);
        for index in registered.map(|state| state - REGISTERED) {
            // One by one: of many at once the kernel may clear a part.
            match ring.clear_buffer(index) {
                Ok(()) => {
                    table.free.push(index);
                    table.exhausted = false;
                }
                Err(error) => {
                    table.entries -= 1;
                    tracing::error!(%error, "cannot let go of a fixed buffer: its memory stays pinned");
                }
            }
        }
    }

    /// The index under which a range is registered. If it is not, then this counts as one of the uses after which it is.
    #[inline]
    fn index(&self, address: usize, len: usize) -> Option<u16> {
        if !self.on.get() {
            return None;
        }
        let table = &mut *self.table.borrow_mut();
        let is_last = |region: &Region| address >= region.start && address - region.start < region.len;
        if !table.regions.get(table.last).is_some_and(is_last) {
            table.last = table.find(address)?;
        }
        let region = table.regions.get_mut(table.last)?;
        if len == 0 || len > region.len - (address - region.start) {
            return None;
        }
        let number = region.piece_of(address);
        if region.piece_of(address + (len - 1)) != number {
            return None;
        }
        let state = region.pieces.get_mut(number)?;
        if *state >= REGISTERED {
            return Some(*state - REGISTERED);
        }
        if *state + 1 < WARM {
            *state += 1;
        } else if *state < WARM
            && !region.refused
            && !table.exhausted
            && !table.free.is_empty()
            && self.wanted.get().is_none()
        {
            *state = WARM;
            self.wanted.set(Some((region.id, number)));
        }
        None
    }

    /// Registers the piece that is due, if there is one.
    #[inline]
    pub(super) fn turn(&self, ring: &RefCell<Ring>) {
        if let Some((id, piece)) = self.wanted.get() {
            self.wanted.set(None);
            self.register(id, piece, &ring.borrow());
        }
    }

    #[cold]
    fn register(&self, id: u64, number: usize, ring: &Ring) {
        let table = &mut *self.table.borrow_mut();
        let Some(region) = table.regions.iter_mut().find(|region| region.id == id) else { return };
        let Some(index) = table.free.pop() else { return };
        let (start, len) = region.piece(number);
        // SAFETY: the memory is mapped, since its region is in the table (the contract of `Reactor::add_memory`), which
        // is all that the system call needs; the module's head says why later I/O finds the right pages.
        let error = match unsafe { ring.set_buffer(index, start as *mut u8, len) } {
            Ok(()) => {
                region.pieces[number] = REGISTERED + index;
                region.registered += 1;
                return;
            }
            Err(error) => error,
        };
        table.free.push(index);
        region.pieces[number] = WARM - 1;
        if error.raw_os_error() != Some(libc::ENOMEM) {
            region.refused = true;
            tracing::warn!(%error, "the kernel does not register this guest memory as fixed buffers: its I/O goes without");
            return;
        }
        table.exhausted = true;
        if !std::mem::replace(&mut table.complained, true) {
            let bytes = (table.entries - table.free.len()) * FIXED_PIECE;
            tracing::warn!(
                %error,
                bytes,
                "no more fixed buffers: raise the limit of locked memory (ulimit -l, LimitMEMLOCK= in the unit) or \
                 lower fixed_buffers"
            );
        }
    }
}

/// Memory that a reactor may register. Dropping it ends that, then lets go of the memory.
#[must_use = "dropping it ends the registration"]
pub struct MemoryRegion {
    inner: Rc<Inner>,
    /// `None` for memory that the reactor does not care about.
    id: Option<u64>,
    /// Keeps the memory mapped: a field, so that it goes after `drop` has run.
    _hold: Box<dyn Any>,
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.inner.fixed.remove(id, &self.inner.ring.borrow());
        }
    }
}

impl Reactor {
    /// A reactor that registers memory which it is [told of](Self::add_memory) as fixed buffers when that is used often:
    /// up to `pieces` of [`FIXED_PIECE`] bytes, [`MAX_FIXED_PIECES`] at most. Without them if the kernel has no such thing.
    pub fn with_fixed_buffers(entries: u32, pieces: u32) -> io::Result<Self> {
        Self::build(entries, pieces)
    }

    /// Whether this reactor can register memory, and should be told of it.
    pub fn takes_memory(&self) -> bool {
        self.0.fixed.table.borrow().entries > 0
    }

    /// Tells of memory that I/O will use. Regions are disjoint, or the same.
    ///
    /// # Safety
    /// `start..start + len` stays mapped until `hold` is dropped. Were other pages put there meanwhile, I/O may go to those
    /// that were there before: whoever does so has to be content with that.
    pub unsafe fn add_memory(&self, start: NonNull<u8>, len: usize, hold: impl Any) -> MemoryRegion {
        let id = self.0.fixed.add(start.as_ptr().addr(), len);
        MemoryRegion { inner: self.0.clone(), id, _hold: Box::new(hold) }
    }

    /// The index to be named by an operation on these bytes with `ReadFixed` or `WriteFixed`, at once; `None` if it has to
    /// do without. An operation with an index may fail with EFAULT when its region goes before it is begun, and is to be
    /// tried again without.
    #[inline]
    pub fn fixed_index(&self, start: *const u8, len: usize) -> Option<u16> {
        self.0.fixed.index(start.addr(), len)
    }

    /// Pieces that are registered now.
    pub fn fixed_pieces(&self) -> usize {
        let table = self.0.fixed.table.borrow();
        table.regions.iter().map(|region| region.registered).sum()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
