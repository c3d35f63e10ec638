//! DMA_MAP and DMA_UNMAP.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Errno, Handled, Pending, Progress, Session, Wait};
use crate::MapFlags;
use crate::dma::Retired;
use crate::frame::Message;
use crate::wire::{DmaMap, DmaUnmap, Header, dma_map, dma_unmap};

/// How long the function may go on with memory that the client unmaps. QEMU gives up after 5 s and takes the
/// memory away regardless.
const RETIRE: Duration = Duration::from_secs(3);
/// When a client whose memory is still held then is not answered, but disconnected.
const LAST: Duration = Duration::from_millis(3700);
/// A function that is done before this was not pressed for time: it cancels nothing yet.
const EARLY: Duration = Duration::from_secs(2);
/// Time between two looks whether memory is still held.
const LOOK: Duration = Duration::from_millis(3);

impl Session {
    pub(super) fn dma_map(&mut self, message: &Message, fds: &mut Vec<OwnedFd>) -> Result<Handled, Errno> {
        let map: DmaMap = message.fixed().ok_or(libc::EINVAL)?;
        let known = dma_map::READ | dma_map::WRITE | dma_map::MMAP | dma_map::FILE_IO;
        if (map.argsz as usize) < size_of::<DmaMap>() || map.flags & !known != 0 || fds.len() > 1 {
            return Err(libc::EINVAL);
        }
        // Stays among those to be closed unless it is mapped.
        let mut fd = fds.first().map(|fd| fd.as_fd());
        let how = map.flags & (dma_map::MMAP | dma_map::FILE_IO);
        if how != 0 && fd.is_none() {
            return Err(libc::EINVAL);
        }
        if how == dma_map::FILE_IO {
            // Only by read and write: as far away as memory without a descriptor.
            fd = None;
        }
        let shared = fd.is_some();
        let flags = MapFlags::from_bits_truncate(map.flags);
        match self.dma().map_borrowed(map.address, map.size, fd, map.offset, flags) {
            Ok(()) => {
                if shared && !flags.is_empty() {
                    // A file of this machine that the mapping holds open: nothing to wait for.
                    fds.clear();
                }
                tracing::debug!(iova = map.address, size = map.size, shared, ?flags, "guest memory mapped");
                self.function.host_changed();
                Ok(Handled::EMPTY)
            }
            Err(error) => {
                if let Some(suppressed) = self.host.complaints.check() {
                    tracing::warn!(iova = map.address, size = map.size, offset = map.offset, %error, suppressed, "cannot map guest memory");
                }
                Err(error.errno())
            }
        }
    }

    pub(super) fn dma_unmap(&mut self, message: &Message) -> Result<Handled, Errno> {
        let unmap: DmaUnmap = message.fixed().ok_or(libc::EINVAL)?;
        if (unmap.argsz as usize) < size_of::<DmaUnmap>() {
            return Err(libc::EINVAL);
        }
        let retired = match unmap.flags {
            0 if unmap.size == 0 => return Err(libc::EINVAL),
            0 => self.dma().unmap(unmap.address, unmap.size).map_err(|_| libc::ENOENT)?,
            dma_unmap::ALL if unmap.address == 0 && unmap.size == 0 => self.dma().unmap_all(),
            _ => return Err(libc::EINVAL),
        };
        // The bitmap of dirty pages that old clients could ask for is not offered: the echo is the structure.
        let body = message.payload[..size_of::<DmaUnmap>()].to_vec();
        if retired.is_empty() {
            return Ok(Handled::Answer(body, Vec::new()));
        }
        let asked = Instant::now();
        let deadline = asked + RETIRE;
        let done = self.function.retire_memory(deadline);
        Ok(Handled::Wait(Wait { done, deadline: Some(deadline) }, Pending::Unmap { retired, body, asked }))
    }

    /// The function is done, or out of time. If out of time, and something still holds the memory (I/O that
    /// the kernel has not ended goes to the same pages whatever is mapped), the client must not be told that
    /// it is free. A function that was done early knows that nothing uses these regions; what holds them then
    /// is I/O on other regions, which holds the table as a whole.
    pub(super) fn unmap(retired: Retired, body: Vec<u8>, asked: Instant) -> Handled {
        let took = asked.elapsed();
        let held = took >= EARLY && retired.is_held();
        if held && took < LAST {
            let done = Box::pin(async { tokio::time::sleep(LOOK).await });
            return Handled::Wait(Wait { done, deadline: None }, Pending::Unmap { retired, body, asked });
        }
        let result = Arc::new(Mutex::new(None));
        let done = {
            let result = result.clone();
            Box::pin(async move {
                let revoked = retired.let_go().await;
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(revoked);
            })
        };
        Handled::Wait(Wait { done, deadline: None }, Pending::Unmapped { result, body, held })
    }

    /// The memory is out of this process's reach.
    pub(super) fn unmapped(
        &mut self,
        header: Header,
        result: io::Result<usize>,
        body: Vec<u8>,
        held: bool,
    ) -> Progress {
        match result {
            Ok(_) if !held => self.conclude(header, Handled::Answer(body, Vec::new())),
            Ok(regions) => {
                if let Some(suppressed) = self.host.complaints.check() {
                    tracing::error!(
                        regions,
                        suppressed,
                        "I/O on memory that the client unmaps does not end; closing the connection. Look \
                         after the storage behind the disk, and restart the VM"
                    );
                }
                self.fail(header, libc::EIO, "memory still in use", true)
            }
            Err(error) => {
                if let Some(suppressed) = self.host.complaints.check() {
                    tracing::error!(%error, suppressed, "cannot take guest memory away; closing the connection");
                }
                self.fail(header, libc::EIO, "memory still in use", true)
            }
        }
    }
}
