//! A worker's view of guest memory: its own hold on the current DMA table, and copies through it.

use std::any::Any;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use block::Segment;
use vfio_user_server::{Access, DmaFault, DmaTable, Hint, Host, RegionMask};

/// A table as `Io`s hold it: the guard that keeps their segments mapped.
pub(crate) struct Snapshot {
    pub(crate) table: Arc<DmaTable>,
}

/// The DMA table that one worker works with.
pub(crate) struct Memory {
    host: Arc<Host>,
    snapshot: Rc<Snapshot>,
}

impl Memory {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        let snapshot = Rc::new(Snapshot { table: host.dma.table() });
        Self { host, snapshot }
    }

    /// Takes the host's current table if it is a newer one. Returns the regions that are gone since.
    pub(crate) fn refresh(&mut self) -> Option<RegionMask> {
        if !self.is_stale() {
            return None;
        }
        let table = self.host.dma.table();
        let removed = self.snapshot.table.removed(&table);
        self.snapshot = Rc::new(Snapshot { table });
        Some(removed)
    }

    /// Whether the host has a newer table. To be asked again after a doorbell was seen: what the guest mapped
    /// before it rang must be there.
    pub(crate) fn is_stale(&self) -> bool {
        self.host.dma.generation() != self.snapshot.table.generation()
    }

    /// The table.
    pub(crate) fn table(&self) -> &DmaTable {
        &self.snapshot.table
    }

    /// The table's hold, for guards.
    pub(crate) fn snapshot(&self) -> &Rc<Snapshot> {
        &self.snapshot
    }
}

/// A guard of one command's `Io`s: as long as nobody but the owner of this holds it, neither a channel nor the kernel can
/// touch the guest memory that the command named.
pub(crate) struct SlotGuard(Option<Held>);

struct Held {
    snapshot: Rc<Snapshot>,
    erased: Rc<dyn Any>,
}

impl SlotGuard {
    /// A guard of nothing, which becomes one when it is needed.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Whether it guards the given table, or nothing.
    pub(crate) fn is_of(&self, snapshot: &Rc<Snapshot>) -> bool {
        self.0.as_ref().is_none_or(|held| Rc::ptr_eq(&held.snapshot, snapshot))
    }

    /// A hold for an `Io` on the memory of `snapshot`. Allocates only if that is another one than before, or an `Io`
    /// still holds it.
    #[inline(always)]
    pub(crate) fn hold_for(&mut self, snapshot: &Rc<Snapshot>) -> block::io::Guard {
        match &self.0 {
            Some(held) if Rc::ptr_eq(&held.snapshot, snapshot) && Rc::strong_count(&held.erased) == 1 => {
                held.erased.clone()
            }
            _ => self.renew(snapshot),
        }
    }

    #[cold]
    fn renew(&mut self, snapshot: &Rc<Snapshot>) -> block::io::Guard {
        // An allocation of its own, so that its count is this command's count.
        let erased: Rc<dyn Any> = Rc::new(snapshot.clone());
        self.0.insert(Held { snapshot: snapshot.clone(), erased }).erased.clone()
    }

    /// Whether no `Io` holds it.
    pub(crate) fn is_free(&self) -> bool {
        self.0.as_ref().is_none_or(|held| Rc::strong_count(&held.erased) == 1)
    }
}

/// Collects host segments of a command's data, merging neighbours.
pub(crate) struct Gather<'a> {
    table: &'a DmaTable,
    hint: &'a mut Hint,
    access: Access,
    segments: &'a mut Vec<Segment>,
    open: Option<(NonNull<u8>, usize)>,
    mask: RegionMask,
}

impl<'a> Gather<'a> {
    /// Gathers into `segments` (emptied by the caller) for the given access by the device.
    pub(crate) fn new(
        table: &'a DmaTable,
        hint: &'a mut Hint,
        access: Access,
        segments: &'a mut Vec<Segment>,
    ) -> Self {
        Self { table, hint, access, segments, open: None, mask: 0 }
    }

    /// Appends guest memory.
    pub(crate) fn push(&mut self, iova: u64, len: usize) -> Result<(), DmaFault> {
        let Self { table, hint, access, segments, open, mask } = self;
        *mask |= table.resolve(iova, len, *access, hint, |ptr, len| append(segments, open, ptr, len))?;
        Ok(())
    }

    /// Appends a page of a list. Those of a large buffer follow each other, mostly in one region.
    #[inline]
    pub(crate) fn push_page(&mut self, iova: u64, len: usize) -> Result<(), DmaFault> {
        if let Some((ptr, mask)) = self.table.resolve_again(iova, len, self.access, *self.hint) {
            self.mask |= mask;
            match &mut self.open {
                Some((start, have)) if start.as_ptr().addr() + *have == ptr.as_ptr().addr() => *have += len,
                _ => append(self.segments, &mut self.open, ptr, len),
            }
            return Ok(());
        }
        self.push(iova, len)
    }

    /// Appends host memory that lives for ever.
    pub(crate) fn push_static(&mut self, ptr: NonNull<u8>, len: usize) {
        append(self.segments, &mut self.open, ptr, len);
    }

    /// The table, to read lists and descriptors from.
    pub(crate) fn table(&self) -> &DmaTable {
        self.table
    }

    /// Ends the last segment; returns which regions were touched.
    pub(crate) fn finish(self) -> RegionMask {
        if let Some((ptr, len)) = self.open {
            self.segments.push(segment(ptr, len));
        }
        self.mask
    }
}

fn append(
    segments: &mut Vec<Segment>,
    open: &mut Option<(NonNull<u8>, usize)>,
    ptr: NonNull<u8>,
    len: usize,
) {
    match open {
        Some((start, have)) if start.as_ptr().addr() + *have == ptr.as_ptr().addr() => *have += len,
        _ => {
            if let Some((ptr, len)) = open.replace((ptr, len)) {
                segments.push(segment(ptr, len));
            }
        }
    }
}

/// A piece of guest memory, for an `Io`.
#[inline]
pub(crate) fn segment(ptr: NonNull<u8>, len: usize) -> Segment {
    // SAFETY: resolved from a DMA table that the slot's guard holds for the life of the `Io` (or static
    // memory); guest memory is never referenced from Rust.
    unsafe { Segment::new(ptr, len) }
}
