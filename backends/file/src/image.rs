//! [`Image`]: an open, locked file or block device and what is known about it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block::{Abilities, AlignedBuf, Error, ErrorKind, Info, Op};
use rustix::fs::{AtFlags, CWD};

use crate::geometry::{self, Align, Holes, MAX_ALIGN};
use crate::lock;
use crate::options::{Direct, FileOptions, OpenError};
use crate::sync::{Syncs, is_refusal};

/// Bytes of zeroes that are written at once where nothing better is to be had.
pub(crate) const ZEROES: usize = 256 << 10;

/// How long somebody may have a block device locked. udev does whenever one that was open for writing is closed, as by the
/// server before this one.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Image {
    pub(crate) path: PathBuf,
    pub(crate) info: Info,
    /// What O_DIRECT asks for, if it is on.
    pub(crate) direct: Option<Align>,
    pub(crate) is_device: bool,
    /// Learned the hard way: this file system or device does not have it.
    pub(crate) no_punch: AtomicBool,
    pub(crate) no_zero_range: AtomicBool,
    /// Data that was written is lost, or may be.
    lost: AtomicBool,
    pub(crate) syncs: Syncs,
    zeroes: OnceLock<AlignedBuf>,
    /// Holds the lock.
    file: File,
}

impl Image {
    pub(crate) fn open(options: &FileOptions) -> Result<Self, OpenError> {
        let path = options.path.clone();
        let block_size = options.block_size;
        if ![512, 4096].contains(&block_size) {
            return Err(OpenError::BlockSize { path, block_size });
        }
        if let Some(size) = options.create {
            whole_blocks(&path, size, block_size)?;
        }
        let (mut file, is_device) = open_or_create(options)?;
        lock(&file, options, is_device)?;
        let size = geometry::size(&mut file).map_err(|source| failed(&path, "tell its size", source))?;
        if let Some(asked) = options.create
            && asked != size
        {
            return Err(OpenError::OtherSize { path, found: size, asked });
        }
        let blocks = whole_blocks(&path, size, block_size)?;
        let direct = direct(&file, options)?;
        let holes = match (options.read_only, is_device) {
            (true, _) => Holes::default(),
            (false, true) => geometry::holes_of_device(&file),
            (false, false) => geometry::holes_of_file(&file, size),
        };
        Ok(Self {
            info: info(block_size, blocks, options.read_only, holes),
            path,
            direct,
            is_device,
            no_punch: AtomicBool::new(!holes.punch),
            no_zero_range: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            syncs: Syncs::default(),
            zeroes: OnceLock::new(),
            file,
        })
    }

    /// Its own descriptor, for syncs: it is told of every error in writing back since the image was opened. And for what
    /// gives back and zeroes ranges: a block device is this one's alone (O_EXCL).
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Opens it once more: an open file of its own.
    pub(crate) fn open_again(&self) -> Result<File, Error> {
        let mut open = OpenOptions::new();
        open.read(true).write(self.info.abilities.contains(Abilities::WRITE));
        if self.direct.is_some() {
            open.custom_flags(libc::O_DIRECT);
        }
        // Not by its path: that may be another file's by now.
        open.open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).map_err(|error| {
            let kind = Error::from(io::Error::from(error.kind())).kind();
            let text =
                format!("{}: cannot open it once more through /proc/self/fd: {error}", self.path.display());
            Error::new(kind, text)
        })
    }

    /// What `errno` of an operation means for who submitted it.
    pub(crate) fn error(&self, op: Op, errno: i32) -> Error {
        let source = io::Error::from_raw_os_error(errno);
        let kind = match (op, Error::from(io::Error::from_raw_os_error(errno)).kind()) {
            (Op::Read, kind) => kind,
            (_, ErrorKind::UnrecoveredRead) => ErrorKind::WriteFault,
            (_, kind) => kind,
        };
        Error::new(kind, format!("{}: {op:?}: {source}", self.path.display()))
    }

    /// What `errno` of a sync, or of a write with one, means. The kernel tells of data that it could not write back
    /// only once, and drops the data: a later sync that succeeds says nothing about it. So there is none.
    pub(crate) fn sync_error(&self, op: Op, errno: i32) -> Error {
        let error = self.error(op, errno);
        if !is_refusal(errno) && !self.lost.swap(true, Ordering::AcqRel) {
            tracing::error!(
                %error,
                "written data may be lost: from now on every flush and every FUA write of this image fails, \
                 until it is opened anew"
            );
        }
        error
    }

    /// An error once a sync has failed: nothing is durable any more.
    pub(crate) fn check_durable(&self) -> Result<(), Error> {
        if !self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let text = "an earlier flush failed and data may be lost; check the data, then open the image anew";
        Err(Error::new(ErrorKind::WriteFault, format!("{}: {text}", self.path.display())))
    }

    /// [`ZEROES`] bytes of zeroes at an aligned address, for as long as the image.
    pub(crate) fn zeroes(&self) -> Result<&AlignedBuf, Error> {
        if let Some(zeroes) = self.zeroes.get() {
            return Ok(zeroes);
        }
        let zeroes = AlignedBuf::new(ZEROES, MAX_ALIGN)?;
        Ok(self.zeroes.get_or_init(|| zeroes))
    }
}

/// Takes the locks, if they are not taken already.
fn lock(file: &File, options: &FileOptions, is_device: bool) -> Result<(), OpenError> {
    let path = &options.path;
    let patience = if is_device { PATIENCE } else { Duration::ZERO };
    let start = Instant::now();
    loop {
        match lock::take(file, options.read_only) {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(20)),
            Ok(false) => return Err(OpenError::InUse { path: path.clone() }),
            Err(error) => return Err(failed(path, "lock it", error)),
        }
    }
}

fn failed(path: &Path, action: &'static str, source: impl Into<io::Error>) -> OpenError {
    OpenError::Io { path: path.to_owned(), action, source: source.into() }
}

fn whole_blocks(path: &Path, size: u64, block_size: u32) -> Result<u64, OpenError> {
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) || i64::try_from(size).is_err() {
        return Err(OpenError::OddSize { path: path.to_owned(), size, block_size });
    }
    Ok(size / u64::from(block_size))
}

fn info(block_size: u32, blocks: u64, read_only: bool, holes: Holes) -> Info {
    let mut info = Info::new(block_size, blocks);
    info.preferred_granularity = (4096 / block_size).max(1);
    let granularity = (holes.granularity / u64::from(block_size)).max(1);
    info.discard_granularity = u32::try_from(granularity).unwrap_or(1);
    if !read_only {
        // The page cache or the disk's own: either way only a flush is durable.
        info.abilities = Abilities::WRITE | Abilities::WRITE_ZEROES | Abilities::VOLATILE_CACHE;
        info.abilities.set(Abilities::DISCARD, holes.discard);
        info.abilities.set(Abilities::DISCARD_ZEROES, holes.punch);
    }
    info
}

/// The open file, and whether it is a block device.
fn open_or_create(options: &FileOptions) -> Result<(File, bool), OpenError> {
    let path = &options.path;
    // Before it is opened: opening a pipe or a tape can block or do things.
    let found = match std::fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match options.create {
                Some(size) if !options.read_only => Ok((create(options, size)?, false)),
                _ => Err(OpenError::Missing { path: path.clone() }),
            };
        }
        Err(error) => return Err(failed(path, "look at it", error)),
    };
    let not_a_disk = |found| OpenError::NotADisk { path: path.clone(), found };
    let is_device = match found {
        kind if kind.is_file() => false,
        kind if kind.is_block_device() => true,
        kind if kind.is_dir() => return Err(not_a_disk("a directory")),
        kind if kind.is_char_device() => return Err(not_a_disk("a character device")),
        kind if kind.is_fifo() => return Err(not_a_disk("a pipe")),
        kind if kind.is_socket() => return Err(not_a_disk("a socket")),
        _ => return Err(not_a_disk("something else")),
    };
    let mut open = OpenOptions::new();
    open.read(true).write(!options.read_only);
    if is_device && !options.read_only {
        // Refused while it is mounted or part of something.
        open.custom_flags(libc::O_EXCL);
    }
    match open.open(path) {
        Ok(file) => Ok((file, is_device)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(OpenError::Busy { path: path.clone() })
        }
        Err(error) => Err(failed(path, "open it", error)),
    }
}

/// Makes a sparse file of `size` bytes, durably and locked; leaves none behind if that fails. Whoever finds it finds it
/// whole.
fn create(options: &FileOptions, size: u64) -> Result<File, OpenError> {
    let path = &options.path;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut open = OpenOptions::new();
    open.read(true).write(true).mode(0o600);
    // A file without a name, until it is ready.
    let (file, is_named) = match open.clone().custom_flags(libc::O_TMPFILE).open(parent) {
        Ok(file) => (file, false),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) =>
        {
            (open.create_new(true).open(path).map_err(|error| not_made(path, error))?, true)
        }
        Err(error) => return Err(failed(path, "make it", error)),
    };
    let name = || match is_named {
        true => Ok(()),
        false => {
            let anonymous = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, anonymous, CWD, path, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from)
        }
    };
    let make = || {
        file.set_len(size).and_then(|()| file.sync_all()).map_err(|error| not_made(path, error))?;
        lock(&file, options, false)?;
        let named = name().and_then(|()| File::open(parent)?.sync_all());
        named.map_err(|error| not_made(path, error))
    };
    match make() {
        Ok(()) => Ok(file),
        // Somebody else was faster: it is theirs, and whole.
        Err(error @ OpenError::InUse { .. }) => Err(error),
        Err(error) => {
            let inode = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
            if inode(std::fs::metadata(path)) == inode(file.metadata()) {
                let _ = std::fs::remove_file(path);
            }
            Err(error)
        }
    }
}

fn not_made(path: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        // Another server made it at this moment: it has it, too.
        io::ErrorKind::AlreadyExists => OpenError::InUse { path: path.to_owned() },
        _ => failed(path, "make it", error),
    }
}

fn direct(file: &File, options: &FileOptions) -> Result<Option<Align>, OpenError> {
    if options.direct == Direct::Off {
        return Ok(None);
    }
    let why = match geometry::set_direct(file) {
        Ok(align) if align.offset <= options.block_size as usize => return Ok(Some(align)),
        Ok(align) => {
            let flags = rustix::fs::fcntl_getfl(file)
                .and_then(|flags| rustix::fs::fcntl_setfl(file, flags - rustix::fs::OFlags::DIRECT));
            flags.map_err(|error| failed(&options.path, "turn O_DIRECT off", error))?;
            format!("it needs blocks of {} bytes", align.offset)
        }
        Err(why) => why,
    };
    if options.direct == Direct::Require {
        return Err(OpenError::NotDirect { path: options.path.clone(), why });
    }
    tracing::info!(path = %options.path.display(), why, "buffered I/O: no O_DIRECT");
    Ok(None)
}
