//! What `quarry check` asks the clusters: whether everything that the configuration names is there and may be used. It opens
//! for reading only: no lock is taken, nothing is changed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use block_ceph::{Cluster, OpenError, OpenErrorKind as Kind, RbdDevice, RbdOptions, Volume};

use super::{OnCluster, by_cluster, devices_of, help, side_by_side::all, spot_of};
use crate::config::Config;
use crate::config::diagnostic::{Sink, Spot};
use crate::config::model::{ClusterConfig, DeviceKind};

/// Images of a cluster that are looked at at the same time.
const AT_ONCE: usize = 32;

/// Looks for mistakes on the clusters of a configuration that has none by itself. All clusters are asked at the same time, each
/// for as long as its `timeout` allows; one that does not answer is told once.
pub fn check(config: &Config, sink: &Sink) {
    let devices = devices_of(config);
    let groups = by_cluster(&devices);
    let found = all(&groups, groups.len(), |(cluster, group)| one_cluster(cluster, group), || false);
    for (spot, error) in found.into_iter().flatten().flatten() {
        sink.error(&spot, error.message.clone(), help(&error));
    }
}

fn one_cluster(cluster: &ClusterConfig, group: &[&OnCluster<'_>]) -> Vec<(Spot, OpenError)> {
    let connection = match Cluster::connect(&cluster.options) {
        Ok(connection) => connection,
        Err(error) => return vec![(cluster.spot_of(&error).clone(), error)],
    };
    // Pools whose OSDs do not answer: each image of theirs would take as long, and the message would be the same.
    let stuck: Mutex<BTreeSet<&str>> = Mutex::default();
    let results = all(
        group,
        AT_ONCE,
        |on| {
            let pool = on.device.kind.place()?.pool.value.as_str();
            let lock = || stuck.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if lock().contains(pool) {
                return None;
            }
            let error = look(&connection, &on.device.kind).err()?;
            if error.kind == Kind::Timeout && !lock().insert(pool) {
                return None;
            }
            Some((spot_of(&error, on).clone(), error))
        },
        || false,
    );
    results.into_iter().flatten().flatten().collect()
}

fn look(cluster: &Arc<Cluster>, kind: &DeviceKind) -> Result<(), OpenError> {
    match kind {
        // What `lock` asks of the image is looked at; a lock is only taken by who writes.
        DeviceKind::Rbd(rbd) => {
            RbdDevice::open(cluster, &RbdOptions { read_only: true, ..rbd.options() }).map(drop)
        }
        DeviceKind::Rados(rados) => Volume::info(cluster, &rados.options().volume).map(drop),
        DeviceKind::Memory(..)
        | DeviceKind::Null(_)
        | DeviceKind::File(_)
        | DeviceKind::Opal(_)
        | DeviceKind::Fault(_) => Ok(()),
    }
}
