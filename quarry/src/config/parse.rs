//! Text to [`Config`]: syntax, types and ranges of single values. What values mean together is [`super::check`]'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use block::reactor::{FIXED_PIECE, MAX_FIXED_PIECES};
use toml::de::DeTable;

use super::diagnostic::{At, Sink, Spot};
use super::model::{
    Config, Control, ControllerConfig, DeviceConfig, Doorbells, Mode, Modes, NamespaceConfig, Reactors,
    Socket, SubsystemConfig, SubsystemRef, Threads,
};
pub(crate) use super::parse_device::checked_block_size;
use super::reader::Section;
use super::{defaults, parse_ceph, parse_device, parse_limits};
use crate::size::Size;

const DEVICE_EXAMPLE: &str = "{ type = \"file\", path = \"disk.img\", size = \"10G\" }";
const CLUSTER_EXAMPLE: &str = "{ conf = \"/etc/ceph/ceph.conf\", user = \"admin\" }";
const SUBSYSTEM_EXAMPLE: &str = "{ namespaces = [{ device = \"disk\" }] }";
const CONTROLLER_EXAMPLE: &str = "{ socket = \"/run/quarry/vm.sock\", namespaces = [{ device = \"disk\" }] }";
const NAMESPACE_EXAMPLE: &str = "{ device = \"disk\" }";

const DOORBELLS: [(&str, Doorbells); 2] = [("mapped", Doorbells::Mapped), ("trapped", Doorbells::Trapped)];

/// Reads a configuration out of `text`. Relative paths in it start at `base`. Mistakes go to `sink`; what could
/// not be read is left out of the result, so that the rest can be checked.
///
/// Returns nothing when the text is not TOML: everything after would be guesswork.
pub fn parse(text: &str, base: &Path, sink: &Sink) -> Option<Config> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let spot = Spot { key: String::new(), span: error.span() };
        sink.error(
            &spot,
            format!("not valid TOML: {}", error.message().replace('\n', "; ")),
            "correct this line; the meaning of the file is checked once its syntax is right",
        );
    }
    if !errors.is_empty() {
        return None;
    }
    let root = Section::new(document.get_ref(), Spot { key: String::new(), span: None }, sink);
    let mut config = Config { reactors: reactors(&root), control: control(&root, base), ..Config::default() };
    for (name, section) in root.named_sections("clusters", CLUSTER_EXAMPLE) {
        if let Some(cluster) = parse_ceph::cluster(section, base) {
            config.clusters.insert(name, cluster);
        } else {
            config.unreadable_clusters.insert(name);
        }
    }
    for (name, section) in root.named_sections("devices", DEVICE_EXAMPLE) {
        let spot = section.spot().clone();
        if let Some(kind) = parse_device::device(section, base) {
            config.devices.insert(name, DeviceConfig { spot, kind });
        } else {
            config.unreadable.insert(name);
        }
    }
    for (name, section) in root.named_sections("subsystems", SUBSYSTEM_EXAMPLE) {
        let subsystem = subsystem(&section);
        section.finish();
        config.subsystems.insert(name, subsystem);
    }
    for (name, section) in root.named_sections("controllers", CONTROLLER_EXAMPLE) {
        if let Some(controller) = controller(&section, base) {
            config.controllers.insert(name, controller);
        }
        section.finish();
    }
    let controllers = document.get_ref().get("controllers").map(|value| value.get_ref().as_table());
    if controllers.is_none_or(|table| table.is_some_and(|table| table.is_empty())) {
        sink.error(
            &Spot::default(),
            "the file has no controllers, so there is nothing to serve",
            format!("add: [controllers.vm] with {}", CONTROLLER_EXAMPLE.trim_matches(['{', '}', ' '])),
        );
    }
    root.finish();
    Some(config)
}

fn reactors(root: &Section<'_>) -> Reactors {
    let Some(section) = root.section("reactors", "{ count = 1 }") else { return Reactors::default() };
    let count = section.integer("count", 1..=1024);
    let cpus = section.integers("cpus", 0..=u64::from(u16::MAX));
    let cpus_spot = section.get("cpus").map(|(_, spot)| spot);
    let cpus_empty =
        section.get("cpus").is_some_and(|(v, _)| v.get_ref().as_array().is_some_and(|a| a.is_empty()));
    let modes = modes(&section).unwrap_or_default();
    let fixed_buffers = section.size("fixed_buffers");
    let fixed_pieces = fixed_buffers.and_then(|size| fixed_pieces(size, section.sink())).unwrap_or(0);
    let threads = match (count, cpus_spot) {
        (Some(count), Some(_)) => {
            let number = count.value as usize;
            if number != cpus.len() {
                section.sink().error(
                    &count.spot,
                    format!("count is {number} but cpus names {}", cpus.len()),
                    "remove `count`: there is one reactor for each of `cpus`",
                );
            }
            Threads::Cpus(cpus.into_iter().map(|cpu| cpu.map(|n| n as usize)).collect())
        }
        (None, Some(spot)) => {
            if cpus_empty {
                section.sink().error(&spot, "no CPU is named", "name at least one, or remove `cpus`");
            }
            Threads::Cpus(cpus.into_iter().map(|cpu| cpu.map(|n| n as usize)).collect())
        }
        (Some(count), None) => Threads::Count(count.map(|n| n as usize)),
        (None, None) => Threads::Default,
    };
    section.finish();
    Reactors { threads, modes, fixed_pieces }
}

fn fixed_pieces(size: At<u64>, sink: &Sink) -> Option<u32> {
    let (piece, most) = (FIXED_PIECE as u64, u64::from(MAX_FIXED_PIECES) * FIXED_PIECE as u64);
    if (piece..=most).contains(&size.value) && size.value.is_multiple_of(piece) {
        return Some((size.value / piece) as u32);
    }
    let nearest = size.value.clamp(piece, most).next_multiple_of(piece);
    let (written, nearest) = (Size(size.value), Size(nearest));
    sink.error(
        &size.spot,
        format!("a reactor cannot have fixed buffers of {written}"),
        format!(
            "write a multiple of {} up to {}, for example \"{nearest}\"; or remove it for none",
            Size(piece),
            Size(most)
        ),
    );
    None
}

fn modes(section: &Section<'_>) -> Option<Modes> {
    let (value, spot) = section.get("mode")?;
    let Some(array) = value.get_ref().as_array() else {
        return section.choice("mode", &Mode::NAMES).map(|mode| Modes::All(mode.value));
    };
    let modes = section.choices("mode", &Mode::NAMES);
    // With one that could not be read their number says nothing.
    (modes.len() == array.len()).then_some(Modes::Each(At::new(modes, spot)))
}

fn control(root: &Section<'_>, base: &Path) -> Option<Control> {
    let section = root.section("control", "{ socket = \"/run/quarry/control.sock\" }")?;
    let socket = match section.get("socket") {
        Some(_) => section.string("socket", "\"/run/quarry/control.sock\""),
        None => section.missing("socket", "\"/run/quarry/control.sock\""),
    };
    let mode = section.string("socket_mode", "\"0660\"").and_then(|mode| parse_mode(mode, section.sink()));
    let socket = socket.and_then(|path| socket_path(path, base, section.sink(), "control.sock"));
    section.finish();
    Some(Control { socket: socket?, socket_mode: mode })
}

fn socket_path(path: At<String>, base: &Path, sink: &Sink, example: &str) -> Option<At<PathBuf>> {
    if path.value.is_empty() {
        let help = format!("name a socket: socket = \"/run/quarry/{example}\"");
        sink.error(&path.spot, "the path is empty", help);
        return None;
    }
    Some(path.map(|path| absolute(base, &path)))
}

fn subsystem(section: &Section<'_>) -> SubsystemConfig {
    SubsystemConfig {
        spot: section.spot().clone(),
        nqn: section.string("nqn", "\"nqn.2014-08.org.nvmexpress:uuid:...\""),
        serial: section.string("serial", "\"QRY0001\""),
        model: section.string("model", "\"Quarry NVMe Disk\""),
        namespaces: section
            .sections("namespaces", NAMESPACE_EXAMPLE)
            .into_iter()
            .filter_map(namespace)
            .collect(),
    }
}

fn namespace(section: Section<'_>) -> Option<NamespaceConfig> {
    let device = section.string("device", "\"disk\"");
    if section.get("device").is_none() {
        let _: Option<()> = section.missing("device", "\"disk\"");
    }
    let nsid = section.integer("nsid", 1..=0xffff_fffe);
    let uuid = section.string("uuid", "\"9f3c1f6e-6a57-4d7c-8f1e-3f5b1f0c7a11\"");
    let uuid = uuid.and_then(|uuid| parse_uuid(uuid, section.sink()));
    let read_only = section.flag("read_only");
    let limits = parse_limits::limits(&section);
    let spot = section.spot().clone();
    section.finish();
    let nsid = nsid.map(|n| n.map(|n| n as u32));
    Some(NamespaceConfig { spot, device: device?, nsid, uuid, read_only, limits })
}

/// A UUID that can identify something.
pub(crate) fn parse_uuid(text: At<String>, sink: &Sink) -> Option<At<uuid::Uuid>> {
    let help = "write 32 hexadecimal digits as `uuidgen` prints them, or remove the key for a derived one";
    match uuid::Uuid::parse_str(&text.value) {
        Ok(uuid) if uuid.is_nil() => {
            sink.error(&text.spot, "the nil UUID identifies nothing", help);
            None
        }
        Ok(uuid) => Some(At::new(uuid, text.spot)),
        Err(_) => {
            sink.error(&text.spot, format!("`{}` is not a UUID", text.value), help);
            None
        }
    }
}

fn controller(section: &Section<'_>, base: &Path) -> Option<ControllerConfig> {
    let sink = section.sink();
    let path = section.string("socket", "\"/run/quarry/vm.sock\"");
    let fd = section.integer("fd", 0..=i32::MAX as u64);
    let has = |key| section.get(key).is_some();
    let socket = match (path, fd) {
        (Some(_), Some(fd)) => {
            sink.error(&fd.spot, "`socket` and `fd` are both given", "keep the one where the VMM connects");
            None
        }
        (Some(path), None) => socket_path(path, base, sink, "vm.sock").map(Socket::Path),
        (None, Some(fd)) => Some(Socket::Fd(fd.map(|fd| fd as i32))),
        (None, None) if has("socket") || has("fd") => None,
        (None, None) => section.missing("socket", "\"/run/quarry/vm.sock\""),
    };

    let socket_mode = section.string("socket_mode", "\"0660\"").and_then(|mode| parse_mode(mode, sink));
    let shared = section.string("subsystem", "\"disks\"");
    let own = subsystem(section);
    let subsystem = match shared {
        Some(shared) => {
            for key in ["namespaces", "nqn", "serial", "model"] {
                if let Some((_, spot)) = section.get(key) {
                    sink.error(
                        &spot,
                        format!("`{key}` belongs to the subsystem"),
                        format!("move it to [subsystems.{}], or remove `subsystem`", shared.value),
                    );
                }
            }
            Some(SubsystemRef::Shared(shared))
        }
        None if has("subsystem") => None,
        None => {
            if !has("namespaces") {
                section.sink().error(
                    section.spot(),
                    "the controller has no disk",
                    format!(
                        "add: namespaces = [{NAMESPACE_EXAMPLE}], or name a subsystem: subsystem = \"disks\""
                    ),
                );
            }
            Some(SubsystemRef::Own(Box::new(own)))
        }
    };

    let io_queues = section.integer("io_queues", 1..=128);
    let queue_entries = section.integer("queue_entries", 2..=65536);
    let max_transfer = section.size("max_transfer").and_then(|size| check_max_transfer(size, sink));
    let intx = section.flag("intx");
    let doorbells = section
        .choice("doorbells", &DOORBELLS)
        .unwrap_or_else(|| At::new(Doorbells::Mapped, section.spot().clone()));
    let trapped = doorbells.value == Doorbells::Trapped;
    // Each message costs an exit of the guest: it is best spared most of them.
    let shadow_doorbells = section.flag("shadow_doorbells") || (trapped && !has("shadow_doorbells"));
    let msi = section.flag("msi");
    let limits = parse_limits::limits(section);
    let most_queues = if shadow_doorbells { defaults::IO_QUEUES_WITH_SHADOW } else { defaults::IO_QUEUES };
    if let Some(queues) = io_queues.as_ref().filter(|queues| queues.value > u64::from(most_queues)) {
        sink.error(
            &queues.spot,
            format!("shadow doorbells reach {most_queues} I/O queues, not {}", queues.value),
            match has("shadow_doorbells") {
                true => format!("use {most_queues} at most, or remove `shadow_doorbells`"),
                false => format!("use {most_queues} at most, or write shadow_doorbells = false"),
            },
        );
    }
    let reactors = section.integers("reactors", 0..=1023);
    if let Some((value, spot)) = section.get("reactors")
        && reactors.is_empty()
        && value.get_ref().as_array().is_some_and(|array| array.is_empty())
    {
        sink.error(&spot, "no reactor is named", "name at least one, or remove the key to use all of them");
    }
    Some(ControllerConfig {
        spot: section.spot().clone(),
        socket: socket?,
        socket_mode,
        subsystem: subsystem?,
        io_queues: io_queues.map_or(most_queues, |n| n.value as u16),
        queue_entries: queue_entries.map_or(defaults::QUEUE_ENTRIES, |n| n.value as u32),
        max_transfer: max_transfer.unwrap_or(defaults::MAX_TRANSFER),
        intx,
        doorbells,
        shadow_doorbells,
        msi,
        reactors: reactors.into_iter().map(|n| n.map(|n| n as usize)).collect(),
        limits,
    })
}

/// Permissions as `chmod` has them: three octal digits, a zero before them allowed.
pub(crate) fn parse_mode(text: At<String>, sink: &Sink) -> Option<u32> {
    let digits = text.value.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(&text.value);
    let mode = u32::from_str_radix(digits, 8).ok().filter(|_| digits.len() == 3 && !digits.starts_with('+'));
    if mode.is_none() {
        sink.error(
            &text.spot,
            format!("`{}` are no permissions", text.value),
            "write octal digits as for chmod, for example \"0660\" to let the group connect",
        );
    }
    mode
}

fn check_max_transfer(size: At<u64>, sink: &Sink) -> Option<u32> {
    if size.value.is_power_of_two() && (8192..=1 << 20).contains(&size.value) {
        return Some(size.value as u32);
    }
    sink.error(
        &size.spot,
        format!("a controller cannot have a largest transfer of {} bytes", size.value),
        "use a power of two from 8K to 1M",
    );
    None
}

/// `path` as seen from `base`, absolute, without `.` and doubled slashes.
pub fn absolute(base: &Path, path: &str) -> PathBuf {
    let joined = base.join(path);
    std::path::absolute(&joined).unwrap_or(joined)
}

/// Names in a map, for suggestions.
pub fn names<T>(map: &BTreeMap<String, T>) -> impl Iterator<Item = &str> + Clone {
    map.keys().map(String::as_str)
}
