//! How an image is to be opened, and why it could not be.

use std::io;
use std::path::PathBuf;

/// Whether I/O goes past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// O_DIRECT if the file system has it for this block size, else buffered.
    #[default]
    Auto,
    /// Buffered I/O.
    Off,
    /// O_DIRECT, or an error.
    Require,
}

/// How an image is to be opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileOptions {
    /// The file or block special file.
    pub path: PathBuf,
    /// Size in bytes with which a missing file is made, sparse. A file that exists must have this size.
    pub create: Option<u64>,
    /// Refuse writes; share the image with others that only read.
    pub read_only: bool,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// Whether I/O goes past the page cache.
    pub direct: Direct,
}

impl FileOptions {
    /// The existing image at `path`, writable, in blocks of 512 bytes, with O_DIRECT if possible.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), create: None, read_only: false, block_size: 512, direct: Direct::Auto }
    }

    /// The same, made with `size` bytes if it does not exist.
    pub fn create(mut self, size: u64) -> Self {
        self.create = Some(size);
        self
    }

    /// The same, for reading only.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// The same, in blocks of `block_size` bytes.
    pub fn block_size(mut self, block_size: u32) -> Self {
        self.block_size = block_size;
        self
    }

    /// The same, with this choice about the page cache.
    pub fn direct(mut self, direct: Direct) -> Self {
        self.direct = direct;
        self
    }
}

/// Why an image could not be opened, and what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No file there, and no size to make one.
    #[error("{}: no such file; give a size to have it made", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// It exists with another size than the one asked for.
    #[error(
        "{}: has {found} bytes, not the {asked} asked for; {}, or choose another path",
        path.display(), other_size(*found, *asked)
    )]
    OtherSize {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size asked for.
        asked: u64,
    },
    /// Its size is not a whole number of blocks, at least one.
    #[error(
        "{}: {size} bytes are not a whole number of blocks of {block_size}, at least one; use another size{}",
        path.display(), if *block_size > 512 { ", or blocks of 512" } else { "" }
    )]
    OddSize {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The block size asked for.
        block_size: u32,
    },
    /// A block size that is not 512 or 4096.
    #[error("{}: block size {block_size}: use 512 or 4096", path.display())]
    BlockSize {
        /// The image.
        path: PathBuf,
        /// The block size asked for.
        block_size: u32,
    },
    /// Neither a file nor a block device.
    #[error("{}: is {found}; use a regular file or a block device", path.display())]
    NotADisk {
        /// The image.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Somebody else has it.
    #[error(
        "{}: is in use by another disk or server (find it with `fuser -v`); \
         stop that one, choose another path, or open both read-only", path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The system, or another server, has the block device.
    #[error(
        "{}: is in use: mounted or part of something (`lsblk` and `findmnt` tell; unmount it), \
         or by another disk or server (`fuser -v` tells; stop that one)", path.display()
    )]
    Busy {
        /// The block device.
        path: PathBuf,
    },
    /// O_DIRECT is required and not to be had.
    #[error("{}: no O_DIRECT: {why}; use `direct=auto`", path.display())]
    NotDirect {
        /// The image.
        path: PathBuf,
        /// What stands in the way.
        why: String,
    },
    /// The system refused.
    #[error("{}: cannot {action}: {source}{}", path.display(), remedy(source))]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Never one that would cut data off.
fn other_size(found: u64, asked: u64) -> String {
    if asked > found {
        return format!(
            "leave the size out to use it as it is, or make it longer with `truncate -s {asked}`"
        );
    }
    format!("give the size that it has, {found}, or leave the size out")
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "; give this user access to it, or open it read-only",
        Some(libc::EROFS) => "; open it read-only",
        Some(libc::ENOENT) => "; make its directory first",
        Some(libc::EFBIG) => "; this file system has no files of that size: use a smaller one, or xfs",
        Some(libc::ENOSPC | libc::EDQUOT) => "; make room on its file system",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
        Some(libc::ENOLCK | libc::EOPNOTSUPP) => "; its file system cannot lock files: put it on another one",
        _ => "",
    }
}

impl From<OpenError> for block::Error {
    fn from(error: OpenError) -> Self {
        use block::ErrorKind;
        let kind = match &error {
            OpenError::InUse { .. } | OpenError::Busy { .. } => ErrorKind::AccessDenied,
            OpenError::Io { source, .. } => {
                block::Error::from(io::Error::from_raw_os_error(source.raw_os_error().unwrap_or(libc::EIO)))
                    .kind()
            }
            _ => ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
