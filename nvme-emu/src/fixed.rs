//! [`FixedMemory`]: tells a worker's reactor which guest memory there is, so that it can register what is used often.

use std::collections::BTreeMap;

use block::Reactor;
use block::reactor::MemoryRegion;
use vfio_user_server::DmaTable;

/// What the reactor knows of, by the regions' identities.
#[derive(Default)]
pub(crate) struct FixedMemory(BTreeMap<u64, MemoryRegion>);

impl FixedMemory {
    /// Tells of the regions of `table`, and lets go of those that are not in it. To be called before what is done with the
    /// old table is answered: a region stays mapped, and perhaps pinned, until then.
    pub(crate) fn follow(&mut self, table: &DmaTable, reactor: &Reactor) {
        if !reactor.takes_memory() {
            return;
        }
        let mut old = std::mem::take(&mut self.0);
        for mapped in table.mapped() {
            let region = old.remove(&mapped.id()).unwrap_or_else(|| {
                let (start, len) = (mapped.start(), mapped.len());
                // SAFETY: `mapped` keeps the memory mapped. Only a revocation puts other pages there: of a region that
                // left the table, when the worker has answered, that is, after this let go of it; or when it did not
                // answer in time, and the client is disconnected. What it submits until it comes here may then reach
                // pages that were the client's, as what the kernel has already does.
                unsafe { reactor.add_memory(start, len, mapped.clone()) }
            });
            self.0.insert(mapped.id(), region);
        }
    }
}
