//! What a configuration says of Ceph: clusters, and the devices on them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use block_ceph::{ClusterOptions, Lock, OpenError, RadosOptions, RbdOptions, VolumeSpec};

use super::diagnostic::{At, Spot};
use super::model::{Config, DeviceKind};

/// A cluster: how to reach it, and as whom.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its table.
    pub spot: Spot,
    /// Where its settings are written, by what [`block_ceph::OpenError::setting`] calls them.
    pub spots: BTreeMap<String, Spot>,
    /// Paths in it are absolute.
    pub options: ClusterOptions,
}

impl ClusterConfig {
    /// The key that an error is about.
    pub fn spot_of(&self, error: &OpenError) -> &Spot {
        error.setting.as_ref().and_then(|setting| self.spots.get(&**setting)).unwrap_or(&self.spot)
    }
}

/// What every device on a cluster says: where its data is, and how it is shown.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cluster's name; if missing, the only one, or one with all defaults if there is none.
    pub cluster: Option<At<String>>,
    /// The pool.
    pub pool: At<String>,
    /// The namespace in the pool.
    pub namespace: Option<At<String>>,
    /// Open it for reading only.
    pub read_only: bool,
    /// Bytes in a block.
    pub block_size: At<u32>,
    /// Bytes of data that may be on the way to the cluster and back.
    pub in_flight: u64,
}

impl Place {
    fn namespace(&self) -> String {
        self.namespace.as_ref().map(|namespace| namespace.value.clone()).unwrap_or_default()
    }
}

/// An RBD image.
#[derive(Clone, Debug)]
pub struct RbdDevice {
    /// Where it is.
    pub place: Place,
    /// Its name.
    pub image: At<String>,
    /// A snapshot of it.
    pub snapshot: Option<At<String>>,
    /// What to do with its exclusive lock.
    pub lock: Lock,
}

impl RbdDevice {
    /// For opening it.
    pub fn options(&self) -> RbdOptions {
        RbdOptions {
            pool: self.place.pool.value.clone(),
            namespace: self.place.namespace(),
            image: self.image.value.clone(),
            snapshot: self.snapshot.as_ref().map(|snapshot| snapshot.value.clone()),
            read_only: self.is_read_only(),
            block_size: self.place.block_size.value,
            lock: self.lock,
            in_flight: self.place.in_flight,
        }
    }

    /// Whether it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.place.read_only || self.snapshot.is_some()
    }
}

/// A volume, plainly striped over objects.
#[derive(Clone, Debug)]
pub struct RadosDevice {
    /// Where it is.
    pub place: Place,
    /// Its name.
    pub volume: At<String>,
}

impl RadosDevice {
    /// For opening it.
    pub fn options(&self) -> RadosOptions {
        RadosOptions {
            volume: VolumeSpec {
                pool: self.place.pool.value.clone(),
                namespace: self.place.namespace(),
                name: self.volume.value.clone(),
            },
            read_only: self.place.read_only,
            block_size: self.place.block_size.value,
            in_flight: self.place.in_flight,
        }
    }
}

impl DeviceKind {
    /// Where it is on a cluster, if it is on one.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Rbd(rbd) => Some(&rbd.place),
            Self::Rados(rados) => Some(&rados.place),
            Self::Memory(..) | Self::Null(_) | Self::File(_) | Self::Opal(_) | Self::Fault(_) => None,
        }
    }

    /// The same, to change it.
    pub(crate) fn place_mut(&mut self) -> Option<&mut Place> {
        match self {
            Self::Rbd(rbd) => Some(&mut rbd.place),
            Self::Rados(rados) => Some(&mut rados.place),
            Self::Memory(..) | Self::Null(_) | Self::File(_) | Self::Opal(_) | Self::Fault(_) => None,
        }
    }

    /// What it is on its cluster, as Ceph writes it, and whether it takes no writes.
    pub(crate) fn on_cluster(&self) -> Option<(String, bool)> {
        match self {
            Self::Rbd(rbd) => Some((format!("the image {}", rbd.options().spec()), rbd.is_read_only())),
            Self::Rados(rados) => {
                Some((format!("the volume {}", volume_spec(&rados.options().volume)), rados.place.read_only))
            }
            Self::Memory(..) | Self::Null(_) | Self::File(_) | Self::Opal(_) | Self::Fault(_) => None,
        }
    }
}

/// As an image is written: `POOL/NAMESPACE/NAME`.
pub(crate) fn volume_spec(volume: &VolumeSpec) -> String {
    let namespace =
        if volume.namespace.is_empty() { String::new() } else { format!("{}/", volume.namespace) };
    format!("{}/{namespace}{}", volume.pool, volume.name)
}

impl Config {
    /// The cluster of a device, whose own place is `device`: by its name, the only one, or one that is nowhere written.
    /// Nothing if it names none of several, or one that is not there; a checked configuration has none such.
    pub fn cluster(&self, place: &Place, device: &Spot) -> Option<Cow<'_, ClusterConfig>> {
        let found = match &place.cluster {
            Some(name) => self.clusters.get(&name.value)?,
            None if self.clusters.is_empty() && self.unreadable_clusters.is_empty() => {
                let options = ClusterOptions::default();
                return Some(Cow::Owned(ClusterConfig {
                    spot: device.clone(),
                    spots: BTreeMap::new(),
                    options,
                }));
            }
            None if self.clusters.len() == 1 => self.clusters.values().next()?,
            None => return None,
        };
        Some(Cow::Borrowed(found))
    }
}
