//! [`Shadow`]: a queue's words in the Shadow Doorbell and EventIdx buffers (Base 5.11).

use std::ptr::NonNull;

use vfio_user_server::{Access, DmaTable, Hint};

use super::event_index::{self, AtomicU32, Ordering};

/// A doorbell value's source in place of the doorbell register: the shadow buffer.
#[derive(Clone, Copy)]
pub(crate) struct Shadow {
    /// Guest addresses of the queue's word in the Shadow Doorbell and EventIdx buffers.
    doorbell_iova: u64,
    event_iova: u64,
    doorbell: Option<NonNull<AtomicU32>>,
    event: Option<NonNull<AtomicU32>>,
}

impl Shadow {
    pub(crate) fn new(doorbell_iova: u64, event_iova: u64) -> Self {
        Self { doorbell_iova, event_iova, doorbell: None, event: None }
    }

    /// Resolves the words in `table`.
    pub(super) fn map(&mut self, table: &DmaTable) {
        let word = |iova: u64, access| {
            let mut word = None;
            let resolved = table.resolve(iova, 4, access, &mut Hint::default(), |ptr, len| {
                word = (len == 4 && ptr.as_ptr().addr().is_multiple_of(4)).then(|| ptr.cast::<AtomicU32>());
            });
            resolved.ok().and(word)
        };
        self.doorbell = word(self.doorbell_iova, Access::Read);
        self.event = word(self.event_iova, Access::Write);
    }

    /// Takes the buffers into use, with `value` as what the guest wrote last.
    pub(super) fn start(&mut self, value: u32, table: &DmaTable) {
        self.map(table);
        let _ = table.write(self.doorbell_iova, &value.to_le_bytes());
        let _ = table.write(self.event_iova, &value.to_le_bytes());
    }

    /// The guest's value, or nothing while the buffer is not mapped.
    pub(super) fn load(&self) -> Option<u32> {
        // SAFETY: resolved from the current table, which the worker holds; re-resolved before a newer one
        // replaces it. Aligned by the check in `map`; shared with the guest, so only accessed atomically.
        self.doorbell.map(|word| unsafe { word.as_ref() }.load(Ordering::Acquire))
    }

    /// Asks the guest to ring the real doorbell when it passes `seen`. Returns what the shadow holds then; nothing while the
    /// buffers are not mapped.
    pub(super) fn ask(&self, seen: u32) -> Option<u32> {
        let (event, doorbell) = (self.event?, self.doorbell?);
        // SAFETY: as in `load`.
        let (event, doorbell) = unsafe { (event.as_ref(), doorbell.as_ref()) };
        Some(event_index::ask(event, doorbell, seen))
    }
}
