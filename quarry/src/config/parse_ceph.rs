//! `[clusters]`, and the tables of devices of the types `rbd` and `rados`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use block_ceph::{ClusterOptions, Lock, RESERVED_OPTIONS};
use toml::de::DeValue;

use super::diagnostic::{At, Sink};
use super::model::{ClusterConfig, Place, RadosDevice, RbdDevice};
use super::parse::absolute;
use super::parse_device::block_size;
use super::reader::Section;
use crate::size::Size;

/// The longest timeout, in seconds.
pub(crate) const MAX_TIMEOUT: u64 = 3600;
/// The least that may be on the way: the largest transfer of a command.
pub(crate) const MIN_IN_FLIGHT: u64 = 1 << 20;
/// What may be on the way if nothing is said.
pub(crate) const IN_FLIGHT: u64 = 64 << 20;

const LOCKS: [(&str, Lock); 2] = [("on_demand", Lock::OnDemand), ("keep", Lock::Keep)];

/// Reads a cluster's table to its end.
pub(super) fn cluster(section: Section<'_>, base: &Path) -> Option<ClusterConfig> {
    let sink = section.sink();
    let mut options = ClusterOptions::default();
    let mut good = true;
    let path = |key, example: &str| {
        let path = section.string(key, example)?;
        if path.value.is_empty() {
            sink.error(&path.spot, "the path is empty", format!("name a file: {key} = {example}"));
            return None;
        }
        Some(absolute(base, &path.value))
    };
    if let Some(conf) = path("conf", "\"/etc/ceph/ceph.conf\"") {
        options.conf = conf;
    }
    options.keyring = path("keyring", "\"/etc/ceph/ceph.client.admin.keyring\"");
    if let Some(user) = section.string("user", "\"admin\"") {
        good &= check_user(&user, sink);
        options.user = user.value;
    }
    if let Some(seconds) = section.integer("timeout", 1..=MAX_TIMEOUT) {
        options.timeout = Duration::from_secs(seconds.value);
    }
    let io_timeout = section.integer("io_timeout", 1..=MAX_TIMEOUT);
    options.io_timeout = io_timeout.map(|seconds| Duration::from_secs(seconds.value));
    if let Some(number) = section.integer("images_per_connection", 1..=1024) {
        options.images_per_connection = number.value as usize;
    }
    let mut spots = BTreeMap::new();
    for (name, At { value, spot }) in ceph_options(&section) {
        spots.insert(format!("options.{name}"), spot);
        options.options.insert(name, value);
    }
    for key in ["conf", "user", "keyring"] {
        spots.extend(section.get(key).map(|(_, spot)| (key.to_owned(), spot)));
    }
    let spot = section.spot().clone();
    section.finish();
    good.then_some(ClusterConfig { spot, spots, options })
}

/// A user without `client.`.
pub(crate) fn check_user(user: &At<String>, sink: &Sink) -> bool {
    let name = &user.value;
    let without = name.strip_prefix("client.").unwrap_or(name);
    let usable = !without.is_empty() && without.chars().all(|c| !c.is_whitespace() && !c.is_control());
    if !usable {
        let help = "name a user as `ceph auth ls` does, without `client.`: user = \"admin\"";
        sink.error(&user.spot, format!("`{name}` is no user of Ceph"), help);
    } else if name != without {
        let help = format!("write user = \"{without}\"");
        sink.error(&user.spot, "users are named without `client.` here", help);
    }
    usable && name == without
}

/// Options of Ceph's own, as texts.
fn ceph_options(section: &Section<'_>) -> Vec<(String, At<String>)> {
    let Some(options) = section.section("options", "{ ms_type = \"async+rdma\" }") else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (name, value, spot) in options.entries() {
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => number.to_string(),
                Err(_) => integer.to_string(),
            },
            _ => {
                let help = format!("for example: {name} = \"{}\"", example_of(&name));
                options.sink().error(&spot, "expected a string, a whole number, true or false", help);
                continue;
            }
        };
        if check_option(&At::new((name.as_str(), text.as_str()), spot.clone()), options.sink()) {
            all.push((name, At::new(text, spot)));
        }
    }
    all
}

fn example_of(name: &str) -> &'static str {
    if name.starts_with("ms") { "async+posix" } else { "1" }
}

/// Whether an option may be given on to Ceph.
pub(crate) fn check_option(option: &At<(&str, &str)>, sink: &Sink) -> bool {
    let At { value: (name, value), spot } = option;
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if let Some((_, reason)) = RESERVED_OPTIONS.iter().find(|(reserved, _)| reserved == name) {
        sink.error(spot, format!("the option `{name}` cannot be set here: {reason}"), "remove it");
        return false;
    }
    if !is_name(name) {
        let help = "write it as `ceph config ls` does: small letters, digits and `_`";
        sink.error(spot, format!("`{name}` is no name of an option of Ceph"), help);
        return false;
    }
    if value.contains('\0') {
        sink.error(spot, "a value with a NUL character", "remove that character");
        return false;
    }
    true
}

/// Reads the keys of an image.
pub(super) fn rbd(section: &Section<'_>) -> Option<RbdDevice> {
    let place = place(section);
    let image = name(section, "image", "\"vm-1\"");
    let snapshot = match section.get("snapshot") {
        Some(_) => name(section, "snapshot", "\"daily\"").map(Some),
        None => Some(None),
    };
    let lock = section.choice("lock", &LOCKS);
    let rbd = RbdDevice {
        place: place?,
        image: image?,
        snapshot: snapshot?,
        lock: lock.as_ref().map_or_else(Lock::default, |lock| lock.value),
    };
    if let Some(lock) = lock.filter(|lock| lock.value == Lock::Keep)
        && rbd.is_read_only()
    {
        let what = if rbd.snapshot.is_some() { "a snapshot" } else { "a disk that is only read" };
        section.sink().error(&lock.spot, format!("{what} takes no lock that it could keep"), "remove `lock`");
        return None;
    }
    Some(rbd)
}

/// Reads the keys of a volume.
pub(super) fn rados(section: &Section<'_>) -> Option<RadosDevice> {
    let place = place(section);
    let volume = name(section, "volume", "\"vm-1\"");
    Some(RadosDevice { place: place?, volume: volume? })
}

fn place(section: &Section<'_>) -> Option<Place> {
    let cluster = section.string("cluster", "\"main\"");
    let pool = name(section, "pool", "\"rbd\"");
    let namespace = match section.get("namespace") {
        Some(_) => name(section, "namespace", "\"tenant\"").map(Some),
        None => Some(None),
    };
    let read_only = section.flag("read_only");
    let block_size = block_size(section);
    let in_flight = match section.size("in_flight") {
        Some(size) => check_in_flight(&size, section.sink()).then_some(size.value),
        None => Some(IN_FLIGHT),
    };
    Some(Place { cluster, pool: pool?, namespace: namespace?, read_only, block_size, in_flight: in_flight? })
}

/// Whether a disk can work with so many bytes on the way.
pub(crate) fn check_in_flight(size: &At<u64>, sink: &Sink) -> bool {
    let good = size.value >= MIN_IN_FLIGHT;
    if !good {
        sink.error(
            &size.spot,
            format!(
                "with {} on the way a command of {} could never be sent",
                Size(size.value),
                Size(MIN_IN_FLIGHT)
            ),
            "write \"1M\" or more; remove it for \"64M\"",
        );
    }
    good
}

fn name(section: &Section<'_>, key: &'static str, example: &str) -> Option<At<String>> {
    if section.get(key).is_none() {
        return section.missing(key, example);
    }
    section.string(key, example).filter(|name| check_name(key, name, section.sink()))
}

/// Whether a pool, a namespace, an image, a snapshot or a volume can have this name.
pub(crate) fn check_name(key: &str, name: &At<String>, sink: &Sink) -> bool {
    let text = &name.value;
    if text.is_empty() {
        let help = match key {
            "namespace" => "name one, or remove the key for none".to_owned(),
            "snapshot" => "name one, or remove the key for the image itself".to_owned(),
            _ => format!("name one: {key} = \"{}\"", if key == "pool" { "rbd" } else { "vm-1" }),
        };
        sink.error(&name.spot, format!("the {key}'s name is empty"), help);
        return false;
    }
    if text.contains(['/', '@']) {
        let help = match apart(key, text) {
            Some(keys) => format!("write {keys}"),
            None => "give pool, namespace, image and snapshot each its own key".to_owned(),
        };
        sink.error(&name.spot, format!("`{text}` is not the name of one {key}"), help);
        return false;
    }
    if text.chars().any(char::is_control) {
        let help = "write it as `ceph osd pool ls` or `rbd ls` prints it";
        sink.error(&name.spot, format!("the {key}'s name has control characters"), help);
        return false;
    }
    true
}

/// What is named as Ceph's tools do: `POOL/[NAMESPACE/]NAME[@SNAPSHOT]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named<'t> {
    pub(crate) pool: &'t str,
    pub(crate) namespace: Option<&'t str>,
    pub(crate) name: &'t str,
    pub(crate) snapshot: Option<&'t str>,
}

impl<'t> Named<'t> {
    /// Takes `text` apart, if it has a pool and a name.
    pub(crate) fn read(text: &'t str) -> Option<Self> {
        let (path, snapshot) = match text.split_once('@') {
            Some((path, snapshot)) => (path, Some(snapshot)),
            None => (text, None),
        };
        let mut parts = path.split('/');
        let named = match (parts.next()?, parts.next()?, parts.next()) {
            (pool, name, None) => Self { pool, namespace: None, name, snapshot },
            (pool, namespace, Some(name)) => Self { pool, namespace: Some(namespace), name, snapshot },
        };
        parts.next().is_none().then_some(named)
    }
}

/// The keys for what is written as Ceph's tools have it: `pool/namespace/image@snapshot`.
fn apart(key: &str, text: &str) -> Option<String> {
    let (path, snapshot) = match text.split_once('@') {
        Some((path, snapshot)) => (path, Some(snapshot)),
        None => (text, None),
    };
    let last = if key == "volume" { "volume" } else { "image" };
    let parts: Vec<&str> = path.split('/').collect();
    let mut keys = match (key, parts.as_slice()) {
        ("pool", [pool, namespace]) => vec![("pool", *pool), ("namespace", *namespace)],
        ("pool", [pool, namespace, name]) => vec![("pool", *pool), ("namespace", *namespace), (last, *name)],
        ("namespace", [pool, namespace]) => vec![("pool", *pool), ("namespace", *namespace)],
        ("image" | "volume", [name]) => vec![(last, *name)],
        ("image" | "volume", [pool, name]) => vec![("pool", *pool), (last, *name)],
        ("image" | "volume", [pool, namespace, name]) => {
            vec![("pool", *pool), ("namespace", *namespace), (last, *name)]
        }
        ("snapshot", [pool, name]) if snapshot.is_some() => vec![("pool", *pool), (last, *name)],
        ("snapshot", [name]) if snapshot.is_some() => vec![(last, *name)],
        _ => return None,
    };
    if key == "volume" && snapshot.is_some() {
        return None;
    }
    keys.extend(snapshot.map(|snapshot| ("snapshot", snapshot)));
    let written = keys.iter().all(|(_, name)| !name.is_empty() && !name.contains(['/', '@']));
    let keys: Vec<String> = keys
        .iter()
        .filter(|(_, name)| !name.is_empty())
        .map(|(key, name)| format!("{key} = \"{name}\""))
        .collect();
    written.then(|| keys.join(", "))
}
