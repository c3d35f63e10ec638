//! The `vfio_user` crate's client as a [`Transport`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use vfio_user::Client;

use super::{MapAccess, MappableArea, Transport, irq_flags};
use crate::error::{Error, Result};
use crate::memory::Arena;

/// The `vfio_user` crate's client.
///
/// It does not see refusals of DMA_MAP, DMA_UNMAP, SET_IRQS and DEVICE_RESET, and an error reply to anything else
/// leaves it waiting for bytes that never come (0.1.7).
pub struct ClientTransport(Client);

impl ClientTransport {
    /// Connects to a server's socket.
    pub fn connect(path: &Path) -> Result<Self> {
        Ok(Self(Client::new(path)?))
    }
}

impl Transport for ClientTransport {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        Ok(self.0.region_read(region, offset, data)?)
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        Ok(self.0.region_write(region, offset, data)?)
    }

    fn mappable(&mut self, region: u32) -> Result<Vec<MappableArea>> {
        let Some(info) = self.0.region(region) else { return Ok(Vec::new()) };
        let Some(file) = &info.file_offset else { return Ok(Vec::new()) };
        let area = |offset: u64, len: u64| -> io::Result<MappableArea> {
            let fd = file.file().as_fd().try_clone_to_owned()?;
            Ok(MappableArea { offset, len, fd, fd_offset: file.start() + offset })
        };
        let areas: io::Result<_> = if info.sparse_areas.is_empty() {
            area(0, info.size).map(|whole| vec![whole])
        } else {
            info.sparse_areas.iter().map(|sparse| area(sparse.offset, sparse.size)).collect()
        };
        Ok(areas?)
    }

    fn dma_map(&mut self, arena: &Arena, access: MapAccess) -> Result<()> {
        if access != MapAccess::FULL {
            return Err(Error::Unsupported(
                "the vfio_user client maps memory readable, writable and by descriptor",
            ));
        }
        Ok(self.0.dma_map(0, arena.iova(), arena.len() as u64, arena.fd().as_raw_fd())?)
    }

    fn dma_unmap(&mut self, iova: u64, len: u64) -> Result<()> {
        Ok(self.0.dma_unmap(iova, len)?)
    }

    fn irq_count(&mut self, index: u32) -> Result<u32> {
        Ok(self.0.get_irq_info(index)?.count)
    }

    fn connect_irqs(&mut self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let flags = irq_flags::DATA_EVENTFD | irq_flags::ACTION_TRIGGER;
        Ok(self.0.set_irqs(index, flags, start, fds.len() as u32, &fds)?)
    }

    fn disable_irqs(&mut self, index: u32) -> Result<()> {
        let flags = irq_flags::DATA_NONE | irq_flags::ACTION_TRIGGER;
        Ok(self.0.set_irqs(index, flags, 0, 0, &[])?)
    }

    fn reset(&mut self) -> Result<()> {
        Ok(self.0.reset()?)
    }

    fn disconnect(&mut self) {
        // An error means that the server was faster.
        let _ = self.0.shutdown();
    }
}
