//! [`OpalDevice`]: the drive, over any device.

use std::sync::Arc;

use block::{Channel, Device, Error, Info, Listener, Reactor, Security};
use zeroize::Zeroizing;

use crate::crypto::kdf::Cost;
use crate::layer;
use crate::layout::{DATA_START, Layout};
use crate::media::{FormatError, LoadError};
use crate::secret::{self, MemoryLockError, Secret};
use crate::service::Service;
use crate::status::OpalStatus;

/// How a drive is.
#[derive(Clone, Debug)]
pub struct OpalOptions {
    /// Pass discards and zeroes down, see [`crate::layer`].
    pub sparse: bool,
    /// What it costs to try a PIN that is set from now on.
    pub cost: Cost,
    /// A reset of the function by the VMM (a guest that reboots) is a power cycle too.
    pub lock_on_reset: bool,
}

impl Default for OpalOptions {
    fn default() -> Self {
        Self { sparse: true, cost: Cost::default(), lock_on_reset: false }
    }
}

/// Why a drive cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Secrets would get into swap.
    #[error("{0}")]
    Memory(#[from] MemoryLockError),
    /// The device below has no room.
    #[error(
        "the device below has {0} bytes; an Opal disk takes {own} for itself, so it has to be larger than that",
        own = DATA_START
    )]
    TooSmall(u64),
    /// Blocks of this size have no room for what is kept in one.
    #[error("the device below has blocks of {0} bytes; an Opal disk needs 512 or 4096")]
    BlockSize(u32),
    /// The device below is read-only.
    #[error("the device below is read-only: an Opal disk stores its state there")]
    ReadOnly,
    /// No state.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// It cannot be made.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The state opens, and makes no sense to this release.
    #[error("the state of the disk is not one that this release knows: use the release that wrote it")]
    State,
    /// No random bytes, or no memory.
    #[error("the cryptographic library failed")]
    Random,
    /// Keys do not open, or the state cannot be stored.
    #[error("the disk's keys cannot be opened or its state not stored; see the log")]
    Start,
    /// No thread.
    #[error("the disk's thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// A defect.
    #[error("the disk's thread ended at once")]
    Died,
}

/// A self-encrypting drive over another device.
pub struct OpalDevice {
    inner: Arc<dyn Device>,
    shared: Arc<layer::Shared>,
    service: Option<Arc<Service>>,
}

impl OpalDevice {
    /// The drive on `inner`, which is made if `inner` is blank.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is changed then.
    pub fn open(
        inner: Arc<dyn Device>,
        device_key: Secret<32>,
        options: OpalOptions,
    ) -> Result<Self, OpenError> {
        secret::lock_memory()?;
        let info = inner.info();
        if !matches!(info.block_size, 512 | 4096) {
            return Err(OpenError::BlockSize(info.block_size));
        }
        if !info.abilities.contains(block::Abilities::WRITE) {
            return Err(OpenError::ReadOnly);
        }
        let layout = Layout::on(info.block_size, info.blocks).ok_or(OpenError::TooSmall(info.size()))?;
        let shared = layer::Shared::new(&info, layout, options.sparse);
        let service = Service::start(inner.clone(), device_key, options, layout, shared.clone())?;
        Ok(Self { inner, shared, service: Some(service) })
    }

    /// What can be shown of it. Waits for commands that it is at.
    pub fn status(&self) -> Option<OpalStatus> {
        self.service.as_ref()?.status()
    }

    /// The PIN on the label: with it, everything on the drive can be destroyed, and nothing read.
    pub fn psid(&self) -> Option<Zeroizing<String>> {
        self.service.as_ref()?.look(|tper| tper.psid().ok()).flatten()
    }
}

impl Device for OpalDevice {
    fn info(&self) -> Info {
        self.shared.info()
    }

    fn on_change(&self, listener: Listener) {
        let (inner, shared) = (Arc::downgrade(&self.inner), Arc::downgrade(&self.shared));
        let service = self.service.as_ref().map(Arc::downgrade);
        self.inner.on_change(Arc::new(move || {
            if let (Some(inner), Some(shared)) = (inner.upgrade(), shared.upgrade()) {
                let info = inner.info();
                if let Some(layout) = Layout::on(info.block_size, info.blocks) {
                    shared.resize(&info, layout);
                    if let Some(service) = service.as_ref().and_then(std::sync::Weak::upgrade) {
                        service.resize(layout);
                    }
                }
            }
            listener();
        }));
    }

    fn identity(&self) -> Option<String> {
        self.inner.identity().map(|inner| format!("{inner} (opal)"))
    }

    fn security(&self) -> Option<Arc<dyn Security>> {
        self.service.clone().map(|service| service as Arc<dyn Security>)
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        layer::open_channel(self.inner.channel(reactor)?, &self.shared, reactor)
    }
}

impl Drop for OpalDevice {
    fn drop(&mut self) {
        if let Some(service) = self.service.take() {
            service.stop();
        }
    }
}
