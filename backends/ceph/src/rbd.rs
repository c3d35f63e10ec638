//! [`RbdDevice`]: an RBD image as a block device, through librbd.

mod channel;
mod image;
mod open;
mod request;

use std::sync::Arc;

use block::{Channel, Device, Error, Info, Listener, Reactor};

use crate::cluster::Cluster;
use crate::error::OpenError;
use channel::RbdChannel;
use image::Image;

/// Which image, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RbdOptions {
    /// Its pool.
    pub pool: String,
    /// Its namespace in the pool; none if empty.
    pub namespace: String,
    /// Its name.
    pub image: String,
    /// A snapshot of it, which is read-only.
    pub snapshot: Option<String>,
    /// Open it for reading only.
    pub read_only: bool,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// What to do with its exclusive lock.
    pub lock: Lock,
    /// Bytes of data that may be on the way to the cluster and back.
    pub in_flight: u64,
}

impl RbdOptions {
    /// The image `image` of `pool`, with the usual settings.
    pub fn new(pool: impl Into<String>, image: impl Into<String>) -> Self {
        Self {
            pool: pool.into(),
            namespace: String::new(),
            image: image.into(),
            snapshot: None,
            read_only: false,
            block_size: 512,
            lock: Lock::default(),
            in_flight: 64 << 20,
        }
    }

    /// As Ceph writes it: `pool/namespace/image@snapshot`.
    pub fn spec(&self) -> String {
        let namespace =
            if self.namespace.is_empty() { String::new() } else { format!("{}/", self.namespace) };
        let snapshot = self.snapshot.as_ref().map_or_else(String::new, |snapshot| format!("@{snapshot}"));
        format!("{}/{namespace}{}{snapshot}", self.pool, self.image)
    }
}

/// What to do with the exclusive lock of an image that has the feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// Take it at the first write, and hand it over when another client asks for it.
    #[default]
    OnDemand,
    /// Take it when the image is opened, or do not open it; refuse to hand it over.
    Keep,
}

/// An open image.
pub struct RbdDevice {
    image: Arc<Image>,
}

impl RbdDevice {
    /// Opens the image. Blocks for as long as the cluster's options allow: for control threads.
    pub fn open(cluster: &Arc<Cluster>, options: &RbdOptions) -> Result<Self, OpenError> {
        Ok(Self { image: open::open(cluster, options)? })
    }

    /// Whether this client has the image's exclusive lock now. May ask the cluster.
    pub fn has_lock(&self) -> bool {
        self.image.has_lock()
    }
}

impl Device for RbdDevice {
    fn info(&self) -> Info {
        self.image.info()
    }

    fn on_change(&self, listener: Listener) {
        self.image.listeners.add(listener);
    }

    fn identity(&self) -> Option<String> {
        Some(format!("rbd/{}", self.image.identity))
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(RbdChannel::new(self.image.clone(), reactor.clone())))
    }
}
