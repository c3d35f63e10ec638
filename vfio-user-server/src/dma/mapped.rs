//! [`Mapped`]: regions as memory of this process, for who has to do with whole regions.

use std::ptr::NonNull;
use std::sync::Arc;

use super::mapping::Mapping;
use super::{DmaTable, MapFlags};

/// A region that the device may read and write, as it is mapped into this process. It stays mapped while this is held,
/// but is of no more use once it left the table.
#[derive(Clone, Debug)]
pub struct Mapped {
    id: u64,
    len: usize,
    mapping: Arc<Mapping>,
}

impl Mapped {
    /// Its identity, unique for the life of the space.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its first byte. For raw access, while this is held.
    pub fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    /// Its bytes, at least one page.
    #[expect(clippy::len_without_is_empty, reason = "no region is empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl DmaTable {
    /// The regions that the device may read and write and that are in reach, by address.
    pub fn mapped(&self) -> impl Iterator<Item = Mapped> {
        self.regions
            .iter()
            .filter(|region| region.flags.contains(MapFlags::READ | MapFlags::WRITE))
            .filter_map(|region| {
                let mapping = region.mapping.clone()?;
                Some(Mapped { id: region.id, len: usize::try_from(region.size).ok()?, mapping })
            })
    }
}
