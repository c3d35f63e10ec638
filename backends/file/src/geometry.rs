//! What a file or block device is like: size, alignment of O_DIRECT, what can be given back.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;

use block::AlignedBuf;
use rustix::fs::{AtFlags, FallocateFlags, OFlags, StatxFlags};
use rustix::io::Errno;

/// Largest alignment that any device asks for.
pub(crate) const MAX_ALIGN: usize = 4096;

/// What O_DIRECT asks of memory and of offsets and lengths, in bytes. Powers of two up to [`MAX_ALIGN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Align {
    pub(crate) memory: usize,
    pub(crate) offset: usize,
}

/// Size in bytes of an open file or block device.
pub(crate) fn size(file: &mut File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Turns O_DIRECT on and tells what it asks for; or leaves it off and tells why.
pub(crate) fn set_direct(file: &File) -> Result<Align, String> {
    const TMPFS: u32 = 0x0102_1994;
    // The field's type is the architecture's.
    if rustix::fs::fstatfs(file).is_ok_and(|stat| u32::try_from(stat.f_type) == Ok(TMPFS)) {
        return Err("tmpfs is the page cache".into());
    }
    let flags = rustix::fs::fcntl_getfl(file).map_err(|error| error.to_string())?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT)
        .map_err(|_| "the file system does not have it".to_owned())?;
    let align = reported(file).unwrap_or_else(|| tried(file));
    match align {
        Some(align) => Ok(align),
        None => {
            rustix::fs::fcntl_setfl(file, flags).map_err(|error| error.to_string())?;
            Err("the file system does not have it for this file".into())
        }
    }
}

/// As statx tells (Linux 6.1, most file systems): `Some(None)` means that there is no O_DIRECT.
fn reported(file: &File) -> Option<Option<Align>> {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return None;
    }
    let (memory, offset) = (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize);
    let usable = |align: usize| align.is_power_of_two() && align <= MAX_ALIGN;
    Some((usable(memory) && usable(offset)).then_some(Align { memory, offset }))
}

/// As reads of the first bytes tell.
fn tried(file: &File) -> Option<Align> {
    let mut buffer = AlignedBuf::new(MAX_ALIGN, MAX_ALIGN).ok()?;
    let (small, large) = (512, MAX_ALIGN);
    for align in [small, large] {
        // Aligned to this size and no better.
        let start = if align == large { 0 } else { align };
        if rustix::io::pread(file, &mut buffer[start..start + align], 0).is_ok() {
            return Some(Align { memory: align, offset: align });
        }
    }
    None
}

/// What can be done besides reading and writing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holes {
    /// Space can be given back, and reads as zeroes then.
    pub(crate) punch: bool,
    /// Space can be given back, and may read as anything then.
    pub(crate) discard: bool,
    /// The unit of giving back in bytes, 0 if unknown.
    pub(crate) granularity: u64,
}

/// Asks a writable regular file of `size` bytes, without changing it: a hole beyond the end is none.
pub(crate) fn holes_of_file(file: &File, size: u64) -> Holes {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let punch = match rustix::fs::fallocate(file, flags, size, 4096) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => false,
        Ok(()) | Err(_) => true, // a limit of size, perhaps; the first real one will tell
    };
    let granularity = rustix::fs::fstat(file).map_or(0, |stat| stat.st_blksize as u64);
    Holes { punch, discard: punch, granularity }
}

/// Asks sysfs about a block device.
pub(crate) fn holes_of_device(file: impl AsFd) -> Holes {
    let Ok(stat) = rustix::fs::fstat(file) else { return Holes::default() };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let base = format!("/sys/dev/block/{major}:{minor}");
    let limit = |name: &str| {
        // A partition has the queue of its disk.
        ["queue", "../queue"]
            .iter()
            .find_map(|queue| std::fs::read_to_string(format!("{base}/{queue}/{name}")).ok())
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    let punch = limit("write_zeroes_max_bytes") > 0;
    Holes {
        punch,
        discard: punch || limit("discard_max_bytes") > 0,
        granularity: limit("discard_granularity"),
    }
}
