//! [`RadosDevice`]: a [`Volume`] as a block device, through librados: plainly striped over objects, for where nothing but
//! speed and simplicity is wanted.

use std::sync::Arc;

use block::{Channel, Device, Error, Info, Reactor};

use crate::cluster::Cluster;
use crate::error::OpenError;

/// Names a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// The pool of its header, and of its data unless it has another for that.
    pub pool: String,
    /// The namespace in the pools; none if empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// How to make a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes.
    pub size: u64,
    /// Bytes in an object: a power of two, 64 KiB to 32 MiB.
    pub object_size: u32,
    /// Another pool for its data, an erasure-coded one for example.
    pub data_pool: Option<String>,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its identity, which no other volume ever has: 32 hexadecimal digits.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Bytes in an object.
    pub object_size: u32,
    /// The pool of its data.
    pub data_pool: String,
    /// How often its header was changed.
    pub generation: u64,
    /// The client that has it open for writing, by its address, if one has.
    pub owner: Option<String>,
}

/// Volumes, as an operator handles them. All of these block for as long as the cluster's options allow.
pub struct Volume;

impl Volume {
    /// Makes a volume.
    pub fn create(
        cluster: &Arc<Cluster>,
        spec: &VolumeSpec,
        options: &CreateOptions,
    ) -> Result<VolumeInfo, OpenError> {
        let _ = (cluster, spec, options);
        unimplemented!()
    }

    /// Looks at a volume.
    pub fn info(cluster: &Arc<Cluster>, spec: &VolumeSpec) -> Result<VolumeInfo, OpenError> {
        let _ = (cluster, spec);
        unimplemented!()
    }

    /// Changes a volume's size, also while it is served: the guest sees it. What is cut off is lost, so `shrink` has to be
    /// said.
    pub fn resize(
        cluster: &Arc<Cluster>,
        spec: &VolumeSpec,
        size: u64,
        shrink: bool,
    ) -> Result<VolumeInfo, OpenError> {
        let _ = (cluster, spec, size, shrink);
        unimplemented!()
    }

    /// Removes a volume that nobody has open.
    pub fn remove(cluster: &Arc<Cluster>, spec: &VolumeSpec) -> Result<(), OpenError> {
        let _ = (cluster, spec);
        unimplemented!()
    }
}

/// Which volume, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RadosOptions {
    /// The volume.
    pub volume: VolumeSpec,
    /// Open it for reading only.
    pub read_only: bool,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// Bytes of data that may be on the way to the cluster and back.
    pub in_flight: u64,
}

/// An open volume.
pub struct RadosDevice;

impl RadosDevice {
    /// Opens the volume. Blocks for as long as the cluster's options allow: for control threads.
    pub fn open(cluster: &Arc<Cluster>, options: &RadosOptions) -> Result<Self, OpenError> {
        let _ = (cluster, options);
        unimplemented!()
    }
}

impl Device for RadosDevice {
    fn info(&self) -> Info {
        unimplemented!()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        let _ = reactor;
        unimplemented!()
    }
}
