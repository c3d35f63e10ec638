//! Devices on Ceph: opening them, looking at them before that, and what is said when it fails.
//!
//! Each takes tens of milliseconds and more, waiting for the network: all are opened side by side, over
//! [connections](Connections) that they share. A cluster that does not answer fails once, not for each of its devices.

pub mod preemption;
pub mod probe;
mod side_by_side;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use block::Device;
use block_ceph::{
    Cluster, ClusterOptions, Connections, OpenError, OpenErrorKind as Kind, RadosDevice, RbdDevice,
};

use crate::config::Config;
use crate::config::diagnostic::Spot;
use crate::config::model::{ClusterConfig, DeviceConfig, DeviceKind};
use crate::devices::Devices;
use crate::flush::Patience;
use crate::server::StartError;
use crate::suggest;
use side_by_side::until_one_fails;

/// Images that are opened at the same time.
const AT_ONCE: usize = 16;

/// The longest that a server that ends waits for clusters.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// A device on a cluster.
struct OnCluster<'c> {
    name: &'c str,
    device: &'c DeviceConfig,
    cluster: ClusterConfig,
}

/// All devices on clusters, in the order of their names.
fn devices_of(config: &Config) -> Vec<OnCluster<'_>> {
    let found = config.devices.iter().filter_map(|(name, device)| {
        let cluster = config.cluster(device.kind.place()?, &device.spot)?.into_owned();
        Some(OnCluster { name, device, cluster })
    });
    found.collect()
}

/// The clusters of these devices, each once, with as many entries in the second as it has devices: those.
fn by_cluster<'d, 'c>(devices: &'d [OnCluster<'c>]) -> Vec<(&'d ClusterConfig, Vec<&'d OnCluster<'c>>)> {
    let mut numbers: HashMap<&ClusterOptions, usize> = HashMap::new();
    let mut groups: Vec<(&ClusterConfig, Vec<&OnCluster<'_>>)> = Vec::new();
    for device in devices {
        let number = *numbers.entry(&device.cluster.options).or_insert_with(|| {
            groups.push((&device.cluster, Vec::new()));
            groups.len() - 1
        });
        groups[number].1.push(device);
    }
    groups
}

/// Opens every device of a configuration that is on a cluster. Blocks.
pub fn open(config: &Config) -> Result<Devices, StartError> {
    let devices = devices_of(config);
    if devices.is_empty() {
        return Ok(Devices::new());
    }
    let connections = Connections::default();
    let groups = by_cluster(&devices);
    // A connection each that it is counted for, so that all are shared as the configuration says.
    let connected = until_one_fails(&groups, groups.len(), |(cluster, group)| {
        let connection = |_: &&OnCluster<'_>| connections.get(&cluster.options);
        let result: Result<Vec<Arc<Cluster>>, OpenError> = group.iter().map(connection).collect();
        result.map_err(|error| start_error(cluster.spot_of(&error), &error))
    })?;
    let all: Vec<(&OnCluster<'_>, Arc<Cluster>)> =
        groups.iter().zip(connected).flat_map(|((_, group), of)| group.iter().copied().zip(of)).collect();
    let opened = until_one_fails(&all, AT_ONCE, |(device, connection)| {
        let opened = open_one(&device.device.kind, connection);
        opened.map_err(|error| start_error(spot_of(&error, device), &error))
    })?;
    let opened: Vec<(&OnCluster<'_>, Arc<dyn Device>)> =
        all.iter().zip(opened).filter_map(|((device, _), opened)| Some((*device, opened?))).collect();
    one_writer(&opened)?;
    Ok(opened.into_iter().map(|(on, device)| (on.name.to_owned(), device)).collect())
}

/// What a server that ends has for its devices on clusters: as long as their clusters' options allow, but no longer than
/// [`LAST_PATIENCE`].
pub fn patience(config: &Config) -> Patience {
    let mut patience = Patience::default();
    for name in config.devices.keys() {
        let mut at = Some(name);
        // Ends after as many steps as there are devices, though a checked graph has no circles.
        for _ in 0..config.devices.len() {
            let Some(device) = at.and_then(|name| config.devices.get(name)) else { break };
            if let Some(cluster) = device.kind.place().and_then(|place| config.cluster(place, &device.spot)) {
                patience.time = patience.time.max(cluster.options.timeout.min(LAST_PATIENCE));
                patience.devices.insert(name.clone());
            }
            at = device.kind.inner().first().map(|inner| &inner.value);
        }
    }
    patience
}

fn open_one(kind: &DeviceKind, cluster: &Arc<Cluster>) -> Result<Option<Arc<dyn Device>>, OpenError> {
    Ok(match kind {
        DeviceKind::Rbd(rbd) => Some(Arc::new(RbdDevice::open(cluster, &rbd.options())?)),
        DeviceKind::Rados(rados) => Some(Arc::new(RadosDevice::open(cluster, &rados.options())?)),
        DeviceKind::Memory(..)
        | DeviceKind::Null(_)
        | DeviceKind::File(_)
        | DeviceKind::Opal(_)
        | DeviceKind::Fault(_) => None,
    })
}

/// The same image may be reached in two ways that a configuration does not tell apart: two addresses of a cluster.
fn one_writer(opened: &[(&OnCluster<'_>, Arc<dyn Device>)]) -> Result<(), StartError> {
    let mut first: HashMap<String, (&OnCluster<'_>, bool)> = HashMap::new();
    for (on, device) in opened {
        let (Some(data), Some((what, read_only))) = (device.identity(), on.device.kind.on_cluster()) else {
            continue;
        };
        match first.get(&data) {
            Some((_, true)) if read_only => {}
            Some((other, _)) => {
                let spot = name_of(on.device);
                let cause = format!("{what} is also {}", name_of(other.device).key);
                let help = "give each device an image of its own, or make both `read_only`";
                return Err(StartError::new(spot, cause).help(help));
            }
            None => {
                first.insert(data, (on, read_only));
            }
        }
    }
    Ok(())
}

fn start_error(spot: &Spot, error: &OpenError) -> StartError {
    StartError::new(spot, &error.message).help(help(error))
}

/// What to do about an error.
pub fn help(error: &OpenError) -> String {
    let near = error.names.as_ref().and_then(|(wanted, known)| {
        suggest::nearest(wanted, known.iter().map(String::as_str)).filter(|near| near != wanted)
    });
    match near {
        Some(near) => format!("did you mean `{near}`? Otherwise {}", error.remedy),
        None => error.remedy.clone(),
    }
}

/// The key that an error is about.
fn spot_of<'d>(error: &OpenError, on: &'d OnCluster<'_>) -> &'d Spot {
    let Some(place) = on.device.kind.place() else { return &on.device.spot };
    let snapshot = match &on.device.kind {
        DeviceKind::Rbd(rbd) => rbd.snapshot.as_ref(),
        _ => None,
    };
    match error.kind {
        Kind::Library | Kind::Configuration | Kind::Network | Kind::Authentication => {
            on.cluster.spot_of(error)
        }
        Kind::Pool | Kind::Access => &place.pool.spot,
        Kind::Namespace => place.namespace.as_ref().map_or(&place.pool.spot, |namespace| &namespace.spot),
        Kind::Snapshot => snapshot.map_or_else(|| name_of(on.device), |snapshot| &snapshot.spot),
        _ => name_of(on.device),
    }
}

/// The key that names what a device is on its cluster.
fn name_of(device: &DeviceConfig) -> &Spot {
    match &device.kind {
        DeviceKind::Rbd(rbd) => &rbd.image.spot,
        DeviceKind::Rados(rados) => &rados.volume.spot,
        _ => &device.spot,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, load};

    const TEXT: &str = r#"
        [clusters.main]
        keyring = "/etc/ceph/keyring"
        timeout = 4
        [clusters.slow]
        timeout = 3600
        [devices.a]
        type = "rbd"
        cluster = "main"
        pool = "rbd"
        namespace = "tenant"
        image = "a"
        snapshot = "daily"
        [devices.b]
        type = "rados"
        cluster = "main"
        pool = "rbd"
        volume = "b"
        [devices.over-b]
        type = "fault"
        on = "b"
        [devices.memory]
        type = "memory"
        size = "1M"
        [controllers.vm]
        socket = "/tmp/quarry-ceph.sock"
        namespaces = [{ device = "a" }, { device = "over-b" }, { device = "memory" }]
    "#;

    fn config(text: &str) -> Config {
        load("/quarry.toml", text, &Machine { cpus: vec![0] })
            .unwrap_or_else(|report| panic!("{report}"))
            .config
    }

    fn error(kind: Kind) -> OpenError {
        OpenError {
            kind,
            message: "broken".to_owned(),
            remedy: "mend it".to_owned(),
            names: None,
            setting: None,
        }
    }

    #[test]
    fn errors_are_told_at_their_keys() {
        let config = config(TEXT);
        let devices = devices_of(&config);
        assert_eq!(by_cluster(&devices).len(), 1, "both are on one cluster");
        let [a, b] = devices.as_slice() else { panic!() };
        for (kind, of_a, of_b) in [
            (Kind::Library, "clusters.main", "clusters.main"),
            (Kind::Configuration, "clusters.main", "clusters.main"),
            (Kind::Network, "clusters.main", "clusters.main"),
            (Kind::Authentication, "clusters.main", "clusters.main"),
            (Kind::Access, "devices.a.pool", "devices.b.pool"),
            (Kind::Pool, "devices.a.pool", "devices.b.pool"),
            (Kind::Namespace, "devices.a.namespace", "devices.b.pool"),
            (Kind::Image, "devices.a.image", "devices.b.volume"),
            (Kind::Snapshot, "devices.a.snapshot", "devices.b.volume"),
            (Kind::InUse, "devices.a.image", "devices.b.volume"),
            (Kind::Timeout, "devices.a.image", "devices.b.volume"),
            (Kind::Other, "devices.a.image", "devices.b.volume"),
        ] {
            let error = error(kind);
            assert_eq!(
                (spot_of(&error, a).key.as_str(), spot_of(&error, b).key.as_str()),
                (of_a, of_b),
                "{kind:?}"
            );
        }
        let mut error = error(Kind::Configuration);
        for (setting, key) in [("keyring", "clusters.main.keyring"), ("conf", "clusters.main")] {
            error.setting = Some(setting.into());
            assert_eq!(a.cluster.spot_of(&error).key, key);
        }
    }

    #[test]
    fn a_name_that_is_near_is_suggested() {
        let mut error = error(Kind::Image);
        assert_eq!(help(&error), "mend it");
        error.names = Some(("vm1".to_owned(), vec!["other".to_owned(), "vm-1".to_owned()]));
        assert_eq!(help(&error), "did you mean `vm-1`? Otherwise mend it");
        error.names = Some(("vm1".to_owned(), vec!["nothing".to_owned()]));
        assert_eq!(help(&error), "mend it");
        let start = start_error(&Spot::named("devices.a.image"), &error);
        assert_eq!(start.to_string(), "devices.a.image: broken; mend it");
    }

    #[test]
    fn a_server_that_ends_waits_for_clusters_for_seconds() {
        let patience = patience(&config(TEXT));
        assert_eq!(patience.time, Duration::from_secs(4));
        assert_eq!(patience.devices.iter().collect::<Vec<_>>(), ["a", "b", "over-b"]);
        let slow = super::patience(&config(&TEXT.replace("cluster = \"main\"", "cluster = \"slow\"")));
        assert_eq!(slow.time, LAST_PATIENCE);
    }
}
