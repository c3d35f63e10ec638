//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

use zerocopy::{FromBytes, IntoBytes};

use super::{Errno, Handled, Pending, Session, Wait};
use crate::frame::{MAX_DATA, Message};
use crate::pci::MSIX_BAR;
use crate::wire::{MultiWrite, RegionAccess, region};

impl Session {
    pub(super) fn region_read(&mut self, message: &Message) -> Result<Handled, Errno> {
        let access: RegionAccess = message.fixed().ok_or(libc::EINVAL)?;
        let count = access.count as usize;
        let limit = self.client.map_or(MAX_DATA, |client| client.max_data_xfer_size);
        if count > limit {
            return Err(libc::EINVAL);
        }
        let mut body = vec![0; size_of::<RegionAccess>() + count];
        let (head, data) = body.split_at_mut(size_of::<RegionAccess>());
        head.copy_from_slice(access.as_bytes());
        self.read(access, data);
        Ok(Handled::Answer(body, Vec::new()))
    }

    pub(super) fn region_write(&mut self, message: &Message) -> Result<Handled, Errno> {
        let (access, data) = RegionAccess::read_from_prefix(&message.payload).map_err(|_| libc::EINVAL)?;
        if data.len() != access.count as usize || data.len() > MAX_DATA {
            return Err(libc::EINVAL);
        }
        let body = access.as_bytes().to_vec();
        Ok(match self.write(access, data) {
            None => Handled::Answer(body, Vec::new()),
            Some(wait) => Handled::Wait(wait, Pending::Answer { body }),
        })
    }

    /// Several small writes, from the `next`th on: one that resets the function is waited for before the
    /// one behind it is done.
    pub(super) fn region_write_multi(&mut self, message: Message, next: usize) -> Result<Handled, Errno> {
        if !self.client.is_some_and(|client| client.write_multiple) {
            return Err(libc::ENOTSUP);
        }
        let (count, rest) = u64::read_from_prefix(&message.payload).map_err(|_| libc::EINVAL)?;
        let writes = usize::try_from(count).map_err(|_| libc::EINVAL)?;
        if writes.checked_mul(size_of::<MultiWrite>()) != Some(rest.len()) {
            return Err(libc::EINVAL);
        }
        let writes = rest.chunks_exact(size_of::<MultiWrite>()).enumerate().skip(next);
        for (index, write) in writes {
            let write = MultiWrite::read_from_bytes(write).map_err(|_| libc::EINVAL)?;
            let data = write.data.get(..write.count as usize).ok_or(libc::EINVAL)?;
            let access = RegionAccess { offset: write.offset, region: write.region, count: write.count };
            if let Some(wait) = self.write(access, data) {
                return Ok(Handled::Wait(wait, Pending::Multi { message, next: index + 1 }));
            }
        }
        Ok(Handled::answer(&count))
    }

    /// Whether all of an access is inside of its region, and the region answers.
    fn reaches(&self, access: RegionAccess) -> bool {
        let size = self.region_size(access.region);
        let inside = access.offset <= size && u64::from(access.count) <= size - access.offset;
        let ok = inside && size > 0;
        if !ok && let Some(suppressed) = self.host.complaints.check() {
            let RegionAccess { offset, region, count } = access;
            tracing::warn!(region, offset, count, suppressed, "vfio-user client: access outside of a region");
        }
        ok && (access.region == region::CONFIG || !self.config.is_asleep())
    }

    fn read(&self, access: RegionAccess, data: &mut [u8]) {
        if !self.reaches(access) {
            data.fill(0xff);
            return;
        }
        match access.region {
            region::CONFIG => self.config.read(access.offset as usize, data, self.interrupts().intx()),
            bar if bar == u32::from(MSIX_BAR) => self.msix.read(access.offset, data, self.interrupts()),
            bar => self.function.bar_read(bar as u8, access.offset, data),
        }
    }

    /// Returns what to wait for.
    fn write(&mut self, access: RegionAccess, data: &[u8]) -> Option<Wait> {
        if !self.reaches(access) {
            return None;
        }
        match access.region {
            region::CONFIG => {
                // A reset applies what it leaves, and nothing of what was before it.
                match self.config.write(access.offset as usize, data) {
                    Some(kind) => return Some(self.reset(kind)),
                    None => self.apply_config(),
                }
            }
            bar if bar == u32::from(MSIX_BAR) => self.msix.write(access.offset, data),
            bar => self.function.bar_write(bar as u8, access.offset, data),
        }
        None
    }
}
