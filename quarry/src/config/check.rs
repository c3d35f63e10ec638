//! What a configuration's values mean together: references, cycles, sharing, identity, sockets.
//!
//! Threads are [`super::check_reactors`]'s; what depends on the machine (files, directories) is
//! [`super::check_machine`]'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use super::diagnostic::{At, Sink, Spot};
use super::model::{Config, Control, DeviceKind, Socket, SubsystemConfig, SubsystemRef};
use super::parse::names;
use super::{check_ceph, check_machine, check_reactors};
use crate::suggest;

/// The longest path that fits a `sockaddr_un`.
pub const MAX_SOCKET_PATH: usize = 107;

/// What to do about a control socket that is somebody else's.
pub(super) const OWN_PATH: &str =
    "give the control socket a path of its own, for example /run/quarry/control.sock";

/// What the checks need to know of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs that this process may use.
    pub cpus: Vec<usize>,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        Self { cpus: crate::affinity::allowed_cpus() }
    }
}

/// Looks for every mistake in `config`.
pub fn check(config: &Config, machine: &Machine, sink: &Sink) {
    check_reactors::check(config, machine, sink);
    devices(config, sink);
    check_ceph::check(config, sink);
    for (_, subsystem) in all_subsystems(config) {
        identity(subsystem, sink);
        namespaces(subsystem, config, sink);
    }
    unique_identities(config, sink);
    one_user_each(config, sink);
    controllers(config, sink);
    check_machine::check(config, sink);
    if !sink.has_errors() {
        leftovers(config, sink);
    }
}

/// Every subsystem: those with a table, and those of one controller.
pub(super) fn all_subsystems(config: &Config) -> impl Iterator<Item = (&Spot, &SubsystemConfig)> {
    let own = config.controllers.values().filter_map(|controller| match &controller.subsystem {
        SubsystemRef::Own(own) => Some((&controller.spot, own.as_ref())),
        SubsystemRef::Shared(_) => None,
    });
    config.subsystems.values().map(|subsystem| (&subsystem.spot, subsystem)).chain(own)
}

/// Complains of `reference` unless it is one of `known`.
pub(crate) fn resolve<'k>(
    reference: &At<String>,
    known: impl Iterator<Item = &'k str> + Clone,
    what: &str,
    sink: &Sink,
) -> bool {
    if known.clone().any(|name| name == reference.value) {
        return true;
    }
    let table = format!("[{what}s.{}]", reference.value);
    let help = match suggest::nearest(&reference.value, known.clone()) {
        Some(near) => format!("did you mean `{near}`? Otherwise add a table {table}"),
        None => {
            let all: Vec<String> = known.map(|name| format!("`{name}`")).collect();
            if all.is_empty() {
                format!("add a table {table}")
            } else {
                format!("name one of {}, or add a table {table}", all.join(", "))
            }
        }
    };
    sink.error(&reference.spot, format!("there is no {what} `{}`", reference.value), help);
    false
}

fn devices(config: &Config, sink: &Sink) {
    let known = names(&config.devices).chain(config.unreadable.iter().map(String::as_str));
    for device in config.devices.values() {
        for inner in device.kind.inner() {
            resolve(inner, known.clone(), "device", sink);
        }
        let (size, block_size) = match &device.kind {
            DeviceKind::Memory(plain, _) | DeviceKind::Null(plain) => {
                (Some(&plain.size), plain.block_size.value)
            }
            DeviceKind::File(file) => (file.size.as_ref(), file.block_size.value),
            DeviceKind::Rbd(_) | DeviceKind::Rados(_) | DeviceKind::Opal(_) | DeviceKind::Fault(_) => {
                (None, 512)
            }
        };
        if let Some(size) = size {
            check_size(size, block_size, sink);
        }
    }
    cycles(config, sink);
}

/// Complains of a size that is no whole number of blocks.
pub(super) fn check_size(size: &At<u64>, block_size: u32, sink: &Sink) {
    let block = u64::from(block_size);
    if size.value == 0 {
        sink.error(&size.spot, "a disk of no bytes", "give it a size, for example \"10G\"");
    } else if !size.value.is_multiple_of(block) {
        let (below, above) = (size.value / block * block, size.value.next_multiple_of(block));
        let help = if below == 0 { format!("use {above}") } else { format!("use {below} or {above}") };
        sink.error(
            &size.spot,
            format!("{} bytes are not a multiple of the block size {block}", size.value),
            help,
        );
    }
}

fn cycles(config: &Config, sink: &Sink) {
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for start in config.devices.keys() {
        let mut way: Vec<&str> = Vec::new();
        visit(start, config, &mut way, &mut done, sink);
    }
}

fn visit<'c>(
    name: &'c str,
    config: &'c Config,
    way: &mut Vec<&'c str>,
    done: &mut BTreeSet<&'c str>,
    sink: &Sink,
) {
    if done.contains(name) {
        return;
    }
    way.push(name);
    for inner in config.devices.get(name).map(|device| device.kind.inner()).unwrap_or_default() {
        if let Some(first) = way.iter().position(|above| *above == inner.value) {
            let mut circle = way[first..].to_vec();
            circle.push(&inner.value);
            sink.error(
                &inner.spot,
                format!("devices stand on each other in a circle: {}", circle.join(" -> ")),
                "let one of them stand on a device of another type, `file` for example",
            );
        } else {
            visit(&inner.value, config, way, done, sink);
        }
    }
    way.pop();
    done.insert(name);
}

fn identity(subsystem: &SubsystemConfig, sink: &Sink) {
    if let Some(nqn) = &subsystem.nqn {
        let text = &nqn.value;
        let help = "write nqn.YYYY-MM.reverse.domain:name, 223 bytes at most";
        if !text.starts_with("nqn.") || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            sink.error(&nqn.spot, format!("`{text}` is not an NVMe Qualified Name"), help);
        } else if text.len() > 223 {
            sink.error(&nqn.spot, format!("the NVMe Qualified Name has {} bytes", text.len()), help);
        }
    }
    for (text, most, what) in [(&subsystem.serial, 20, "serial"), (&subsystem.model, 40, "model")] {
        let Some(text) = text else { continue };
        let printable = text.value.bytes().all(|b| (0x20..0x7f).contains(&b));
        let help = format!("use 1 to {most} printable ASCII characters, no spaces at the ends");
        if !printable || text.value.trim().len() != text.value.len() {
            sink.error(&text.spot, format!("a {what} number cannot have these characters"), help);
        } else if text.value.is_empty() || text.value.len() > most {
            sink.error(&text.spot, format!("the {what} number has {} characters", text.value.len()), help);
        }
    }
}

fn namespaces(subsystem: &SubsystemConfig, config: &Config, sink: &Sink) {
    let known = names(&config.devices).chain(config.unreadable.iter().map(String::as_str));
    let mut by_nsid: HashMap<u32, &Spot> = HashMap::new();
    for namespace in &subsystem.namespaces {
        resolve(&namespace.device, known.clone(), "device", sink);
        if let Some(nsid) = &namespace.nsid
            && let Some(first) = by_nsid.insert(nsid.value, &namespace.spot)
        {
            sink.error(
                &nsid.spot,
                format!("the namespace identifier {} is taken by {}", nsid.value, first.key),
                "give each namespace its own, or remove `nsid` for the lowest free one",
            );
        }
    }
}

fn unique_identities(config: &Config, sink: &Sink) {
    let mut seen: BTreeMap<(&str, String), &Spot> = BTreeMap::new();
    let mut once = |what: &'static str, value: String, spot, help: &str, error: bool| {
        let Some(first) = seen.insert((what, value.clone()), spot) else { return };
        let message = format!("the {what} {value} is also that of {}", first.key);
        if error {
            sink.error(spot, message, help);
        } else {
            sink.warning(spot, message, help);
        }
    };
    for (_, subsystem) in all_subsystems(config) {
        if let Some(nqn) = &subsystem.nqn {
            let help = "give each subsystem its own; controllers of one subsystem name it with `subsystem`";
            once("NVMe Qualified Name", nqn.value.clone(), &nqn.spot, help, true);
        }
        if let Some(serial) = &subsystem.serial {
            let help = "give each subsystem its own, so that /dev/disk/by-id tells them apart";
            once("serial number", serial.value.clone(), &serial.spot, help, false);
        }
        for uuid in subsystem.namespaces.iter().filter_map(|namespace| namespace.uuid.as_ref()) {
            let help = "give each namespace its own, or remove `uuid` for a derived one";
            once("UUID", uuid.value.to_string(), &uuid.spot, help, true);
        }
    }
}

/// A device has one user: a namespace or a layer. Two would overwrite each other's data unseen.
fn one_user_each(config: &Config, sink: &Sink) {
    let mut users: BTreeMap<&str, &Spot> = BTreeMap::new();
    let layers = config.devices.values().flat_map(|device| device.kind.inner());
    let shown = all_subsystems(config)
        .flat_map(|(_, subsystem)| subsystem.namespaces.iter().map(|namespace| &namespace.device));
    let mut all: Vec<&At<String>> = layers.chain(shown).collect();
    all.sort_by_key(|user| user.spot.span.as_ref().map(|span| span.start));
    for user in all {
        if let Some(first) = users.get(user.value.as_str()) {
            sink.error(
                &user.spot,
                format!("the device `{}` is already used by {}", user.value, first.key),
                "use another device; controllers that are to show one disk share a subsystem: put the namespace \
                 into [subsystems.NAME] and write subsystem = \"NAME\" in each controller",
            );
        } else {
            users.insert(&user.value, &user.spot);
        }
    }
}

fn controllers(config: &Config, sink: &Sink) {
    let mut sockets: HashMap<String, &Spot> = HashMap::new();
    let mut in_order: Vec<_> = config.controllers.values().collect();
    in_order.sort_by_key(|controller| controller.spot.span.as_ref().map(|span| span.start));
    for controller in in_order {
        if let SubsystemRef::Shared(subsystem) = &controller.subsystem {
            resolve(subsystem, names(&config.subsystems), "subsystem", sink);
        }
        let spot = controller.socket.spot();
        let key = match &controller.socket {
            Socket::Path(path) => {
                path_length(path, sink);
                socket_key(path)
            }
            Socket::Fd(fd) => {
                if fd.value < 3 {
                    sink.error(
                        spot,
                        format!("descriptor {} is standard input or output", fd.value),
                        "pass the listening socket as descriptor 3 or higher",
                    );
                }
                format!("descriptor {}", fd.value)
            }
        };
        if let Some(first) = sockets.get(&key) {
            sink.error(
                spot,
                format!("{key} already belongs to {}", first.key),
                "give each controller a socket of its own: a socket serves one client at a time",
            );
        } else {
            sockets.insert(key, spot);
        }
    }
    if let Some(Control { socket, socket_mode: _ }) = &config.control {
        path_length(socket, sink);
        let key = socket_key(socket);
        if let Some(first) = sockets.get(&key) {
            sink.error(&socket.spot, format!("{key} already belongs to {}", first.key), OWN_PATH);
        }
    }
}

fn socket_key(path: &At<PathBuf>) -> String {
    format!("the socket {}", path.value.display())
}

fn path_length(path: &At<PathBuf>, sink: &Sink) {
    let length = path.value.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        sink.error(
            &path.spot,
            format!("the socket's path has {length} bytes; {MAX_SOCKET_PATH} is the kernel's limit"),
            "use a shorter path, for example below /run",
        );
    }
}

/// What can be served but was probably not meant.
fn leftovers(config: &Config, sink: &Sink) {
    let mut used_devices: BTreeSet<&str> = BTreeSet::new();
    for device in config.devices.values() {
        used_devices.extend(device.kind.inner().into_iter().map(|inner| inner.value.as_str()));
    }
    for (spot, subsystem) in all_subsystems(config) {
        used_devices.extend(subsystem.namespaces.iter().map(|namespace| namespace.device.value.as_str()));
        if subsystem.namespaces.is_empty() {
            sink.warning(
                spot,
                "no namespaces: guests will find a controller without a disk",
                "add: namespaces = [{ device = \"disk\" }]",
            );
        }
    }
    for (name, device) in &config.devices {
        if !used_devices.contains(name.as_str()) {
            sink.warning(
                &device.spot,
                "no namespace and no layer uses this device",
                "remove it, or put it into `namespaces` of a controller or subsystem",
            );
        }
    }
    check_ceph::leftovers(config, sink);
    let used_subsystems: BTreeSet<&str> = config
        .controllers
        .values()
        .filter_map(|controller| match &controller.subsystem {
            SubsystemRef::Shared(shared) => Some(shared.value.as_str()),
            SubsystemRef::Own(_) => None,
        })
        .collect();
    for (name, subsystem) in &config.subsystems {
        if !used_subsystems.contains(name.as_str()) {
            sink.warning(
                &subsystem.spot,
                "no controller belongs to this subsystem",
                format!("remove it, or write subsystem = \"{name}\" in a controller"),
            );
        }
    }
}
