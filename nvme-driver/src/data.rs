//! Data pointers: [`Prps`] and [`Sgl`], built right. Wrong ones are easily made of [`Data`] by hand.

use std::sync::Arc;

use nvme_spec::Command;
use nvme_spec::command::{DataPointer, Psdt};
use nvme_spec::sgl::{PRP_ENTRY_BYTES, SglDescriptor};

use crate::error::Result;
use crate::memory::{Arena, DmaBuffer, PAGE};

/// Where a command's data is, as it stands in the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// None.
    None,
    /// PRP1 and PRP2.
    Prp(u64, u64),
    /// The first SGL descriptor (PSDT 1).
    Sgl(SglDescriptor),
}

impl Data {
    /// Puts the data pointer and PSDT into a command.
    pub fn apply(self, command: &mut Command) {
        let (dptr, psdt) = match self {
            Self::None => (DataPointer::default(), Psdt::PRP),
            Self::Prp(prp1, prp2) => (DataPointer::from_prps(prp1, prp2), Psdt::PRP),
            Self::Sgl(descriptor) => (DataPointer::from_sgl(descriptor), Psdt::SGL_METADATA_BUFFER),
        };
        command.dptr = dptr;
        command.flags.set_psdt(psdt);
    }
}

/// The page addresses of `len` bytes at `iova`: the first with its offset, the others aligned.
pub fn prp_entries(iova: u64, len: usize) -> impl Iterator<Item = u64> {
    let page = PAGE as u64;
    let first_len = (page - iova % page).min(len as u64);
    let rest = (len as u64 - first_len).div_ceil(page);
    std::iter::once(iova).chain((0..rest).map(move |index| iova + first_len + index * page))
}

/// A PRP data pointer with the lists that it needs. The lists must live as long as the command.
#[derive(Debug)]
pub struct Prps {
    data: Data,
    lists: Vec<DmaBuffer>,
}

impl Prps {
    /// For `len` bytes at `iova`, contiguous for the device. Lists come from `arena`.
    pub fn new(arena: &Arc<Arena>, iova: u64, len: usize) -> Result<Self> {
        Self::of_pages(arena, prp_entries(iova, len), 0)
    }

    /// For any pages in any order; the first list begins `list_offset` bytes (a multiple of 8) into its page.
    pub fn of_pages(
        arena: &Arc<Arena>,
        entries: impl IntoIterator<Item = u64>,
        list_offset: usize,
    ) -> Result<Self> {
        let mut entries = entries.into_iter();
        let prp1 = entries.next().unwrap_or(0);
        let rest: Vec<u64> = entries.collect();
        if rest.len() < 2 {
            return Ok(Self { data: Data::Prp(prp1, rest.first().copied().unwrap_or(0)), lists: Vec::new() });
        }
        let mut lists = vec![arena.alloc(PAGE)?];
        let prp2 = lists[0].iova() + list_offset as u64;
        let mut at = list_offset;
        for (index, entry) in rest.iter().enumerate() {
            let last_slot = at + PRP_ENTRY_BYTES == PAGE;
            if last_slot && index + 1 < rest.len() {
                let next = arena.alloc(PAGE)?;
                lists[lists.len() - 1].put_words(at, [next.iova().to_le()]);
                lists.push(next);
                at = 0;
            }
            lists[lists.len() - 1].put_words(at, [entry.to_le()]);
            at += PRP_ENTRY_BYTES;
        }
        Ok(Self { data: Data::Prp(prp1, prp2), lists })
    }

    /// What goes into the command.
    pub fn data(&self) -> Data {
        self.data
    }

    /// The list pages, in order.
    pub fn lists(&self) -> &[DmaBuffer] {
        &self.lists
    }
}

/// An SGL data pointer with the segments that it needs. The segments must live as long as the command.
#[derive(Debug)]
pub struct Sgl {
    data: Data,
    segments: Vec<DmaBuffer>,
}

impl Sgl {
    /// One contiguous block, in the command itself.
    pub fn block(iova: u64, len: usize) -> Data {
        Data::Sgl(SglDescriptor::data_block(iova, len as u32))
    }

    /// Any descriptors, in a chain of segments that hold `per_segment` of them each (2 or more, with the pointer to the
    /// next segment), the last one as many as remain.
    pub fn chain(arena: &Arc<Arena>, descriptors: &[SglDescriptor], per_segment: usize) -> Result<Self> {
        assert!(per_segment >= 2, "a segment holds data and a pointer");
        let mut segments: Vec<DmaBuffer> = Vec::new();
        let mut first = None;
        let mut rest = descriptors;
        loop {
            let is_last = rest.len() <= per_segment;
            let (own, following) = rest.split_at(if is_last { rest.len() } else { per_segment - 1 });
            let count = own.len() + usize::from(!is_last);
            let segment = arena.alloc(count.max(1) * SglDescriptor::BYTES)?;
            for (index, descriptor) in own.iter().enumerate() {
                segment.put(index * SglDescriptor::BYTES, descriptor);
            }
            let len = (count * SglDescriptor::BYTES) as u32;
            let pointer = if is_last {
                SglDescriptor::last_segment(segment.iova(), len)
            } else {
                SglDescriptor::segment(segment.iova(), len)
            };
            match segments.last() {
                Some(previous) => previous.put(previous.len() - SglDescriptor::BYTES, &pointer),
                None => first = Some(pointer),
            }
            segments.push(segment);
            if is_last {
                break;
            }
            rest = following;
        }
        Ok(Self { data: first.map_or(Data::None, Data::Sgl), segments })
    }

    /// What goes into the command.
    pub fn data(&self) -> Data {
        self.data
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[DmaBuffer] {
        &self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Walks PRPs as a controller does.
    fn walk(prps: &Prps, len: usize) -> Vec<(u64, usize)> {
        let Data::Prp(prp1, prp2) = prps.data() else { panic!("no PRPs") };
        let first = (PAGE - prp1 as usize % PAGE).min(len);
        let mut pieces = vec![(prp1, first)];
        let mut left = len - first;
        if left > 0 && left <= PAGE {
            pieces.push((prp2, left));
            return pieces;
        }
        let mut at = prp2;
        while left > 0 {
            let list = prps.lists().iter().find(|list| list.iova() == at & !(PAGE as u64 - 1)).unwrap();
            let entry: u64 = list.get(at as usize % PAGE);
            if (at + 8).is_multiple_of(PAGE as u64) && left > PAGE {
                at = entry;
                continue;
            }
            pieces.push((entry, left.min(PAGE)));
            left -= left.min(PAGE);
            at += 8;
        }
        pieces
    }

    proptest! {
        #[test]
        fn prps_cover_every_byte_once(offset in 0u64..PAGE as u64, len in 1usize..5 << 20, list_offset in 0usize..512) {
            let arena = Arena::new(16 * PAGE, 0x10_0000).unwrap();
            let base = 0x8000_0000 + offset;
            let prps = Prps::of_pages(&arena, prp_entries(base, len), list_offset * 8).unwrap();
            let mut expected = base;
            for (index, (address, bytes)) in walk(&prps, len).into_iter().enumerate() {
                prop_assert_eq!(address, expected);
                prop_assert!(index == 0 || address % PAGE as u64 == 0);
                expected += bytes as u64;
            }
            prop_assert_eq!(expected, base + len as u64);
        }

        #[test]
        fn sgl_chains_hold_every_descriptor(count in 1usize..300, per_segment in 2usize..40) {
            let arena = Arena::new(400 * PAGE, 0x10_0000).unwrap();
            let descriptors: Vec<_> =
                (0..count).map(|index| SglDescriptor::data_block(index as u64 * 4096, 512)).collect();
            let sgl = Sgl::chain(&arena, &descriptors, per_segment).unwrap();
            let Data::Sgl(mut pointer) = sgl.data() else { panic!("no SGL") };
            let mut found = Vec::new();
            for segment in sgl.segments() {
                prop_assert_eq!(pointer.address.get(), segment.iova());
                prop_assert_eq!(pointer.length.get() as usize, segment.len());
                let all: Vec<SglDescriptor> =
                    (0..segment.len() / 16).map(|index| segment.get(index * 16)).collect();
                let (last, others) = all.split_last().unwrap();
                found.extend_from_slice(others);
                if pointer.identifier == SglDescriptor::last_segment(0, 0).identifier {
                    found.push(*last);
                } else {
                    pointer = *last;
                }
            }
            prop_assert_eq!(found, descriptors);
        }
    }
}
