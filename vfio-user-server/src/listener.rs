//! [`Listener`]: where clients come from: a path, or a descriptor from whoever started this process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// A listening Unix stream socket.
#[derive(Debug)]
pub struct Listener {
    fd: Arc<OwnedFd>,
    /// What to remove at the end, and the inode that makes sure it is ours.
    path: Option<(PathBuf, u64)>,
}

impl Listener {
    /// Listens on `path`, with the permissions `mode` (default: 0600, the VMM runs as the same user).
    ///
    /// A socket that is there already is replaced if nobody listens on it (a server that was killed left it);
    /// anything else that is there is an error. The socket is removed when the listener is dropped.
    pub fn bind(path: &Path, mode: Option<u32>) -> io::Result<Self> {
        let mode = Mode::from_raw_mode(mode.unwrap_or(0o600) & 0o777);
        let address = SocketAddrUnix::new(path.as_os_str().as_bytes()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: a socket path has at most 107 bytes", path.display()),
            )
        })?;
        let fd = socket()?;
        // One server at a time looks and binds here: nobody mistakes a socket in the making for a dead one.
        let _guard = lock_directory(path)?;
        match rustix::fs::lstat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{}: exists and is not a socket", path.display()),
                ));
            }
            Ok(_) if is_served(&address)? => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("{}: another server listens there", path.display()),
                ));
            }
            Ok(_) => rustix::fs::unlink(path)?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // The mode that the socket's file gets, less the umask: never wider than asked, not even for a moment.
        rustix::fs::fchmod(&fd, mode)?;
        rustix::net::bind(&fd, &address)?;
        let inode = rustix::fs::lstat(path)?.st_ino;
        // From here on dropping it removes the file.
        let listener = Self { fd: Arc::new(fd), path: Some((path.to_owned(), inode)) };
        rustix::fs::chmodat(CWD, path, mode, rustix::fs::AtFlags::empty())?;
        rustix::net::listen(&listener.fd, 8)?;
        Ok(listener)
    }

    /// Takes over a listening socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
        let fits = socket_domain(&fd)? == AddressFamily::UNIX
            && socket_type(&fd)? == SocketType::STREAM
            && socket_acceptconn(&fd)?;
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not a listening Unix stream socket",
            ));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Arc::new(fd), path: None })
    }

    /// Takes over the listening socket that was inherited as descriptor `number`.
    pub fn inherited(number: RawFd) -> io::Result<Self> {
        if number < 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: borrowed for the two calls below only. That the number may not be open is what the first
        // call finds out (EBADF); nothing of memory depends on it.
        let theirs = unsafe { BorrowedFd::borrow_raw(number) };
        let fd = rustix::io::fcntl_dupfd_cloexec(theirs, 3)?;
        // The original stays open, for it may be somebody's; children shall not have it.
        rustix::io::fcntl_setfd(theirs, rustix::io::FdFlags::CLOEXEC)?;
        Self::from_fd(fd)
    }

    /// The name under which clients find it: its path, or in the abstract name space a zero byte and its name.
    pub fn name(&self) -> io::Result<Vec<u8>> {
        let address = SocketAddrUnix::try_from(rustix::net::getsockname(&self.fd)?)?;
        Ok(match (address.path(), address.abstract_name()) {
            (Some(path), _) => path.to_bytes().to_vec(),
            (None, Some(name)) => [b"\0", name].concat(),
            (None, None) => Vec::new(),
        })
    }

    pub(crate) fn handle(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }
}

/// For those who accept clients themselves. Non-blocking.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Accepts, without waiting.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, inode)) = &self.path else { return };
        if rustix::fs::lstat(path).is_ok_and(|stat| stat.st_ino == *inode) {
            let _ = rustix::fs::unlink(path);
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Whether somebody listens at the address.
fn is_served(address: &SocketAddrUnix) -> io::Result<bool> {
    match rustix::net::connect(&socket()?, address) {
        // A full backlog is somebody, too.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Locks the directory of a path against other servers. Gives up after a second: the lock is a courtesy.
fn lock_directory(path: &Path) -> io::Result<OwnedFd> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", directory.display())))?;
    for _ in 0..100 {
        if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(fd)
}
