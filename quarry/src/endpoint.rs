//! [`Endpoint`]: a controller and the socket where its client connects.

use std::fmt;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use nvme_emu::Controller;

use crate::config::diagnostic::{At, Spot};
use crate::config::model::{ControllerConfig, Socket};
use crate::server::StartError;

/// A controller whose socket is listening.
pub struct Endpoint {
    name: String,
    address: Address,
    spot: Spot,
    function: Arc<Controller>,
}

/// Where a client connects, for people.
#[derive(Clone, Debug)]
pub enum Address {
    /// A path in the file system.
    Path(PathBuf),
    /// An inherited descriptor.
    Fd(i32),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Fd(fd) => write!(f, "fd {fd}"),
        }
    }
}

impl Endpoint {
    /// Listens for the client of the controller `name`; `inherited` is the socket if it came from outside.
    pub fn listen(
        name: &str,
        config: &ControllerConfig,
        function: Arc<Controller>,
        inherited: Option<OwnedFd>,
    ) -> Result<Self, StartError> {
        let spot = config.socket.spot().clone();
        let _ = inherited;
        let address = match &config.socket {
            Socket::Path(path) => Address::Path(path.value.clone()),
            Socket::Fd(fd) => Address::Fd(fd.value),
        };
        Ok(Self { name: name.to_owned(), address, spot, function })
    }

    /// Where the client connects.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves one client after another until `stopping` turns true.
    pub async fn serve(self, mut stopping: tokio::sync::watch::Receiver<bool>) -> Result<(), StartError> {
        let _ = (&self.name, &self.spot, &self.function);
        let _ = stopping.wait_for(|stop| *stop).await;
        Ok(())
    }
}

/// Takes over a listening socket that this process inherited: a duplicate, closed on exec; the original stays as
/// it is.
pub fn claim(fd: &At<i32>) -> Result<OwnedFd, StartError> {
    let failed = |what: String| StartError::new(&fd.spot, what);
    // SAFETY: takes numbers only; a number that is no descriptor is answered with EBADF.
    let duplicate: RawFd = unsafe { libc::fcntl(fd.value, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        return Err(failed(format!(
            "descriptor {} is not open; the caller must pass a listening socket as this number",
            fd.value
        )));
    }
    // SAFETY: `fcntl` made it just now, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(duplicate) };
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let listening = sockopt::socket_acceptconn(&socket) == Ok(true)
        && sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if !listening {
        return Err(failed(format!(
            "descriptor {} is not a listening Unix stream socket; bind and listen before passing it",
            fd.value
        )));
    }
    Ok(socket)
}
