//! Clusters and what is on them, as far as the configuration tells: references, and disks that are one. Whether the
//! clusters agree is [`crate::ceph::probe`]'s to find out.

use std::collections::{BTreeMap, BTreeSet};

use super::check::resolve;
use super::diagnostic::{Sink, Spot};
use super::model::{Config, DeviceConfig, DeviceKind};
use super::parse::names;

/// Looks for mistakes in what devices say of their clusters.
pub(super) fn check(config: &Config, sink: &Sink) {
    let mut in_order: Vec<&DeviceConfig> = config.devices.values().collect();
    in_order.sort_by_key(|device| device.spot.span.as_ref().map(|span| span.start));
    let known = names(&config.clusters).chain(config.unreadable_clusters.iter().map(String::as_str));
    let mut first: BTreeMap<String, (&Spot, bool)> = BTreeMap::new();
    for device in in_order {
        let (Some(place), Some(on_cluster)) = (device.kind.place(), device.kind.on_cluster()) else {
            continue;
        };
        match &place.cluster {
            Some(cluster) => {
                resolve(cluster, known.clone(), "cluster", sink);
            }
            None if known.clone().nth(1).is_some() => {
                let all: Vec<String> = known.clone().map(|name| format!("`{name}`")).collect();
                sink.error(
                    &device.spot,
                    "there are several clusters, and the device names none",
                    format!("add the key `cluster` with one of {}", all.join(", ")),
                );
            }
            None => {}
        }
        let (what, read_only) = on_cluster;
        let Some(key) = data_of(device, config) else { continue };
        let spot = spot_of_name(device);
        match first.get(&key) {
            // Readers share.
            Some((_, true)) if read_only => {}
            Some((other, _)) => sink.error(
                spot,
                format!("{what} is also {}", other.key),
                "give each device an image of its own, use one device in one subsystem that controllers share, \
                 or make both `read_only`",
            ),
            None => {
                first.insert(key, (spot, read_only));
            }
        }
    }
}

/// The key that names what a device is on its cluster.
pub(super) fn spot_of_name(device: &DeviceConfig) -> &Spot {
    match &device.kind {
        DeviceKind::Rbd(rbd) => &rbd.image.spot,
        DeviceKind::Rados(rados) => &rados.volume.spot,
        DeviceKind::File(file) => &file.path.spot,
        DeviceKind::Memory(..) | DeviceKind::Null(_) | DeviceKind::Opal(_) | DeviceKind::Fault(_) => {
            &device.spot
        }
    }
}

/// Equal for devices that have the same data, whoever they reach it as. A snapshot's never changes: it is other data than its
/// image's.
pub(super) fn data_of(device: &DeviceConfig, config: &Config) -> Option<String> {
    let cluster = config.cluster(device.kind.place()?, &device.spot)?;
    let conf = super::check_machine::place(&cluster.options.conf);
    let hosts = cluster.options.options.get("mon_host").map_or("", String::as_str);
    let (what, _) = device.kind.on_cluster()?;
    Some(format!("{what} of {} {hosts}", conf.display()))
}

/// Clusters that nobody uses.
pub(super) fn leftovers(config: &Config, sink: &Sink) {
    let places = config.devices.values().filter_map(|device| device.kind.place());
    let used: BTreeSet<Option<&str>> =
        places.map(|place| place.cluster.as_ref().map(|name| name.value.as_str())).collect();
    for (name, cluster) in &config.clusters {
        // A device that names none means the only one.
        if !used.contains(&Some(name.as_str())) && !used.contains(&None) {
            sink.warning(
                &cluster.spot,
                "no device is on this cluster",
                format!("remove it, or write cluster = \"{name}\" in a device of type `rbd` or `rados`"),
            );
        }
    }
}
