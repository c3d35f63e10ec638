//! One piece of a client's memory, mapped into this process.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::mm::{MapFlags as MmapFlags, ProtFlags, mmap, munmap};

use super::{MapError, MapFlags, origin};
use crate::sigbus::{self, Breakage, RegisterError, Registration};

/// statfs(2) f_type of hugetlbfs, whose mappings come in huge pages.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// A shared mapping of a client's file. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// The whole mapping, aligned to the file's pages.
    base: NonNull<u8>,
    len: usize,
    /// Where the client's range starts in it.
    start: usize,
    /// Of the file, when it was mapped; 0 for device memory.
    file_size: u64,
    /// Dropped (by hand, first) before the mapping goes.
    registration: Option<Registration>,
}

// SAFETY: the struct is an address range it alone unmaps; the memory behind it is only handed out as raw
// pointers, whose users answer for their accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; all methods take the range as given and change nothing in the struct.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of `fd` at `offset`. The descriptor is not needed afterwards.
    pub(super) fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        size: u64,
        flags: MapFlags,
        owner: Arc<Breakage>,
    ) -> Result<Self, MapError> {
        let (page, file_size) = check_file(fd, offset, size)?;
        let from = offset & !(page - 1);
        let start = offset - from;
        // No overflow: `check_file` bounded offset + size by a file size or a signed offset.
        let len = (start + size).next_multiple_of(page);
        let len = usize::try_from(len).map_err(|_| MapError::TooLarge)?;
        let mut prot = ProtFlags::empty();
        prot.set(ProtFlags::READ, flags.contains(MapFlags::READ));
        prot.set(ProtFlags::WRITE, flags.contains(MapFlags::WRITE));
        // SAFETY: a fresh mapping at an address of the kernel's choice cannot touch anything that exists.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MmapFlags::SHARED, fd, from) }
            .map_err(|e| MapError::Os(e.into()))?;
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(MapError::Os(io::ErrorKind::OutOfMemory.into()));
        };
        let mut mapping = Self { base, len, start: start as usize, file_size, registration: None };
        // SAFETY: exactly one whole mapping, which is only unmapped after the registration is gone (see `drop`).
        let registered = unsafe { sigbus::register(base, len, owner) };
        mapping.registration = Some(registered.map_err(|error| match error {
            RegisterError::Os(error) => MapError::Os(error),
            error => MapError::Share(error),
        })?);
        // A core dump of this process is none of the guest's memory's business. Advice: may fail.
        // SAFETY: the range is ours; the advice changes no contents.
        let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, rustix::mm::Advice::LinuxDontDump) };
        Ok(mapping)
    }

    /// The first byte of the client's range.
    pub(super) fn start(&self) -> NonNull<u8> {
        // SAFETY: `start < len` (start is a remainder below one page of the file, and len holds at least
        // start + size bytes), so the result is inside the mapping.
        unsafe { self.base.add(self.start) }
    }

    /// Bytes mapped.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the file.
    pub(super) fn file_size(&self) -> u64 {
        self.file_size
    }

    /// Takes the client's memory away from whoever still holds pointers into it: they reach anonymous
    /// memory from now on.
    pub(super) fn revoke(&self) -> io::Result<()> {
        sigbus::anonymous_over(self.base.as_ptr(), self.len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.registration = None;
        // SAFETY: `base` and `len` are exactly one mapping of ours; nobody holds pointers into it, for they
        // are good only as long as a table, and the tables hold this struct.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            tracing::error!(%error, len = self.len, "cannot unmap client memory");
        }
    }
}

/// Refuses what cannot be guest memory. Returns the sizes of the file's pages and of the file.
fn check_file(fd: BorrowedFd<'_>, offset: u64, size: u64) -> Result<(u64, u64), MapError> {
    let end = offset.checked_add(size).filter(|&end| i64::try_from(end).is_ok());
    let end = end.ok_or(MapError::TooLarge)?;
    // First: the questions below go to the file system.
    origin::check(fd).map_err(MapError::Foreign)?;
    let stat = rustix::fs::fstat(fd).map_err(|e| MapError::Os(e.into()))?;
    let mut page = rustix::param::page_size() as u64;
    let filesystem = rustix::fs::fstatfs(fd).map_err(|e| MapError::Os(e.into()))?;
    let file = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if end > stat.st_size as u64 => {
            return Err(MapError::BeyondFile { end, file: stat.st_size as u64 });
        }
        FileType::RegularFile => stat.st_size as u64,
        // Device memory (/dev/dax): mmap itself knows its size.
        FileType::CharacterDevice => 0,
        _ => return Err(MapError::NotMemory),
    };
    if filesystem.f_type == HUGETLBFS_MAGIC {
        page = page.max(filesystem.f_bsize as u64);
    }
    Ok((page, file))
}
