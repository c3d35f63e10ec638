//! What the device looks like: DEVICE_GET_INFO, _GET_REGION_INFO, _GET_REGION_IO_FDS, _GET_IRQ_INFO.

use zerocopy::IntoBytes;

use super::{Errno, Handled, Session};
use crate::frame::Message;
use crate::function::Bar;
use crate::irq::index;
use crate::pci::{CONFIG_SIZE, MSIX_BAR, msix::MsixLayout};
use crate::wire::{DeviceInfo, IrqInfo, RegionInfo, RegionIoFds, SparseMmap, irq_info, region};

/// Can be reset, is a PCI device (VFIO_DEVICE_FLAGS_*).
const DEVICE_FLAGS: u32 = 1 << 0 | 1 << 1;

impl Session {
    pub(super) fn device_info(&mut self, message: &Message) -> Result<Handled, Errno> {
        let asked: DeviceInfo = message.fixed().ok_or(libc::EINVAL)?;
        if (asked.argsz as usize) < size_of::<DeviceInfo>() {
            return Err(libc::EINVAL);
        }
        Ok(Handled::answer(&DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: DEVICE_FLAGS,
            regions: region::COUNT,
            irqs: index::COUNT,
        }))
    }

    pub(super) fn bar(&self, index: u32) -> Option<&Bar> {
        self.function.info().bars.iter().find(|bar| u32::from(bar.index) == index)
    }

    /// Size of a region; 0 for one that does not exist.
    pub(super) fn region_size(&self, index: u32) -> u64 {
        match index {
            region::CONFIG => CONFIG_SIZE as u64,
            _ if index == u32::from(MSIX_BAR) && self.function.info().msi => 0,
            _ if index == u32::from(MSIX_BAR) => MsixLayout::new(self.function.info().msix_vectors).bar_size,
            _ => self.bar(index).map_or(0, |bar| bar.size),
        }
    }

    pub(super) fn region_info(&mut self, message: &Message) -> Result<Handled, Errno> {
        const FIXED: u32 = size_of::<RegionInfo>() as u32;
        let asked: RegionInfo = message.fixed().ok_or(libc::EINVAL)?;
        if asked.argsz < FIXED || asked.index >= region::COUNT {
            return Err(libc::EINVAL);
        }
        let size = self.region_size(asked.index);
        let area = self.bar(asked.index).and_then(|bar| self.function.mappable(bar.index));
        let access = if size > 0 { region::READ | region::WRITE } else { 0 };
        // Offsets in the region are offsets in the descriptor.
        let mut info =
            RegionInfo { argsz: FIXED, flags: access, index: asked.index, cap_offset: 0, size, offset: 0 };
        let Some(area) = area else { return Ok(Handled::answer(&info)) };
        info.flags |= region::MMAP | region::CAPS;
        info.argsz += size_of::<SparseMmap>() as u32;
        // Also when the capability itself does not fit: QEMU checks it in every answer with CAPS.
        info.cap_offset = FIXED;
        if asked.argsz < info.argsz {
            // Tells how much room it needs; a descriptor would only go astray.
            return Ok(Handled::answer(&info));
        }
        let sparse = SparseMmap {
            id: 1,
            version: 1,
            next: 0,
            areas: 1,
            reserved: 0,
            offset: area.offset,
            size: area.size,
        };
        Ok(Handled::Answer([info.as_bytes(), sparse.as_bytes()].concat(), vec![area.memory]))
    }

    /// No region has ioeventfds: doorbells are polled.
    pub(super) fn region_io_fds(&mut self, message: &Message) -> Result<Handled, Errno> {
        let asked: RegionIoFds = message.fixed().ok_or(libc::EINVAL)?;
        if (asked.argsz as usize) < size_of::<RegionIoFds>()
            || asked.flags != 0
            || asked.count != 0
            || asked.index >= region::COUNT
        {
            return Err(libc::EINVAL);
        }
        Ok(Handled::answer(&RegionIoFds { argsz: size_of::<RegionIoFds>() as u32, ..asked }))
    }

    /// Number of vectors of an interrupt index, as the client sees it.
    pub(super) fn irq_count(&self, index: u32) -> u32 {
        if index == index::INTX && !self.function.info().intx { 0 } else { self.interrupts().vectors(index) }
    }

    pub(super) fn irq_info(&mut self, message: &Message) -> Result<Handled, Errno> {
        let asked: IrqInfo = message.fixed().ok_or(libc::EINVAL)?;
        if (asked.argsz as usize) < size_of::<IrqInfo>() || asked.index >= index::COUNT {
            return Err(libc::EINVAL);
        }
        let count = self.irq_count(asked.index);
        let flags = match asked.index {
            _ if count == 0 => 0,
            index::INTX => irq_info::EVENTFD | irq_info::MASKABLE | irq_info::AUTOMASKED,
            _ => irq_info::EVENTFD,
        };
        Ok(Handled::answer(&IrqInfo { argsz: size_of::<IrqInfo>() as u32, flags, index: asked.index, count }))
    }
}
