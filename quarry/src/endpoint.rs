//! [`Endpoint`]: a controller and the socket where its client connects.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nvme_emu::Controller;
use tokio::sync::watch;
use tracing::Instrument as _;
use vfio_user_server::Listener;

use crate::config::diagnostic::{At, Spot};
use crate::config::model::{ControllerConfig, Socket};
use crate::server::StartError;

/// A controller whose socket is listening.
pub struct Endpoint {
    name: String,
    address: Address,
    spot: Spot,
    listener: Listener,
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
        inherited: Option<Listener>,
    ) -> Result<Self, StartError> {
        let spot = config.socket.spot().clone();
        let (listener, address) = match (&config.socket, inherited) {
            (Socket::Path(path), _) => {
                let listener = Listener::bind(&path.value, config.socket_mode)
                    .map_err(|error| StartError::new(&spot, cannot_listen(&path.value, &error)))?;
                (listener, Address::Path(path.value.clone()))
            }
            (Socket::Fd(fd), Some(listener)) => (listener, Address::Fd(fd.value)),
            (Socket::Fd(fd), None) => (claim(fd)?, Address::Fd(fd.value)),
        };
        Ok(Self { name: name.to_owned(), address, spot, listener, function })
    }

    /// The controller.
    pub fn function(&self) -> &Arc<Controller> {
        &self.function
    }

    /// Where the client connects.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Serves one client after another until `stopping` turns true. Then the socket is gone, too.
    pub async fn serve(self, mut stopping: watch::Receiver<bool>) -> Result<(), StartError> {
        let Self { name, address: _, spot, listener, function } = self;
        let host = function.host().clone();
        let stopped = async move {
            // An error means that the server itself is gone, which is a reason to stop as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        vfio_user_server::serve(listener, host, function, stopped)
            .instrument(tracing::info_span!("controller", name))
            .await
            .map_err(|error| StartError::new(&spot, error))
    }
}

/// The name under which the client finds a controller's socket: see [`Listener::name`].
pub fn socket_name(socket: &Socket, inherited: Option<&Listener>) -> Result<Vec<u8>, StartError> {
    match (socket, inherited) {
        (Socket::Path(path), _) => Ok(path.value.as_os_str().as_bytes().to_vec()),
        (Socket::Fd(fd), Some(listener)) => {
            listener.name().map_err(|error| StartError::new(&fd.spot, format!("its name: {error}")))
        }
        (Socket::Fd(fd), None) => Err(StartError::new(&fd.spot, "the descriptor was not taken over")),
    }
}

/// That a socket cannot be made, and what to do about it.
pub(crate) fn cannot_listen(path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "; stop that server, or choose another path",
        io::ErrorKind::PermissionDenied => "; give this user write access to its directory",
        io::ErrorKind::NotFound => "; create its directory first",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a path below /run",
        _ => "",
    };
    format!("cannot listen on {}: {error}{remedy}", path.display())
}

/// Takes over a listening socket that this process inherited.
pub fn claim(fd: &At<i32>) -> Result<Listener, StartError> {
    let number = fd.value;
    Listener::inherited(number).map_err(|error| {
        let what = match error.kind() {
            io::ErrorKind::InvalidInput => error.to_string(),
            _ => format!("the descriptor cannot be used: {error}"),
        };
        let remedy = "the caller must pass a Unix stream socket that listens already";
        StartError::new(&fd.spot, format!("descriptor {number}: {what}; {remedy} as this number"))
    })
}
