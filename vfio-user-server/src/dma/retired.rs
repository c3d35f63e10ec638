//! [`Retired`]: memory on its way out.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Region;
use super::mapping::Mapping;

/// Regions that left the table. What still holds an older table reaches them until they are revoked. A drop
/// only lets go of them: what is under way may still need them ([`super::DmaSpace::clear`] finds them again).
#[derive(Debug, Default)]
#[must_use = "a reply to the client may only follow the revocation"]
pub struct Retired {
    pub(super) regions: usize,
    pub(super) mappings: Vec<Arc<Mapping>>,
}

impl Retired {
    pub(super) fn of(regions: &[Region]) -> Self {
        let mappings = regions.iter().filter_map(|r| r.mapping.clone()).collect();
        Self { regions: regions.len(), mappings }
    }

    /// Number of regions, with descriptor and without.
    pub fn len(&self) -> usize {
        self.regions
    }

    /// Whether no region left the table.
    pub fn is_empty(&self) -> bool {
        self.regions == 0
    }

    /// Whether anything still holds a table with these regions.
    pub fn is_held(&self) -> bool {
        self.mappings.iter().any(|m| Arc::strong_count(m) > 1)
    }

    /// Takes the memory away from whoever still holds it: pointers into it stay good, and reach anonymous
    /// memory. Returns how many regions were still held.
    ///
    /// Kernel I/O that was submitted on the memory before keeps its pages; waiting for that is the
    /// function's part ([`crate::PciFunction::retire_memory`]).
    pub fn revoke(mut self) -> io::Result<usize> {
        revoke(&std::mem::take(&mut self.mappings))
    }
}

fn revoke(mappings: &[Arc<Mapping>]) -> io::Result<usize> {
    let mut held = 0;
    for mapping in mappings {
        // No table has it any more, so the count only falls.
        if Arc::strong_count(mapping) > 1 {
            mapping.revoke()?;
            held += 1;
        }
    }
    Ok(held)
}

/// Nobody waits for it any more (the client left while it was asked to). Whoever holds it last unmaps it, which
/// takes long if it is large: that is to be a thread of its own.
impl Drop for Retired {
    fn drop(&mut self) {
        if !self.is_large() {
            return;
        }
        let mappings = std::mem::take(&mut self.mappings);
        let hold = move || {
            while mappings.iter().any(|mapping| Arc::strong_count(mapping) > 1) {
                std::thread::sleep(LOOK);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("unmap".into()).spawn(hold) {
            tracing::debug!(%error, "no thread to unmap memory on");
        }
    }
}

/// Time between two looks whether anybody else holds it.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes of guest memory that are unmapped on the spot.
const UNMAP_AT_ONCE: u64 = 1 << 30;

impl Retired {
    /// Whether [`Self::revoke`] takes so long that others would notice: freeing the page tables of a large
    /// guest takes a second or two, and so do its pages, if a small mapping was the last that held the file.
    pub(crate) fn is_large(&self) -> bool {
        let mapped = self.mappings.iter().map(|m| m.len() as u64);
        let files = self.mappings.iter().map(|m| m.file_size());
        mapped.sum::<u64>() > UNMAP_AT_ONCE || files.max() > Some(UNMAP_AT_ONCE)
    }

    /// [`Self::revoke`], on another thread if it takes long.
    pub(crate) async fn let_go(self) -> io::Result<usize> {
        if !self.is_large() {
            return self.revoke();
        }
        let revoking = tokio::task::spawn_blocking(|| self.revoke());
        revoking.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}
