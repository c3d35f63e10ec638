//! The tables of `[devices]`: which types there are and which keys each has.

use std::path::Path;
use std::time::Duration;

use block::ErrorKind;
use block::fault::{Action, Ops};
use block_memory::HugePages;
use block_opal::OpalOptions;
use block_opal::crypto::kdf::Cost;
use block_opal::device_key::DeviceKeySource;

use super::diagnostic::{At, Spot};
use super::model::{DeviceKind, Direct, FaultDevice, FaultRule, FileDevice, OpalDevice, Plain};
use super::parse::absolute;
use super::reader::Section;
use super::{defaults, parse_ceph};

#[derive(Clone, Copy)]
enum Type {
    Memory,
    Null,
    File,
    Rbd,
    Rados,
    Opal,
    Fault,
}

const TYPES: [(&str, Type); 7] = [
    ("file", Type::File),
    ("rbd", Type::Rbd),
    ("rados", Type::Rados),
    ("memory", Type::Memory),
    ("null", Type::Null),
    ("opal", Type::Opal),
    ("fault", Type::Fault),
];

const DIRECT: [(&str, Direct); 3] = [("auto", Direct::Auto), ("on", Direct::On), ("off", Direct::Off)];

const HUGE_PAGES: [(&str, HugePages); 3] =
    [("auto", HugePages::Auto), ("on", HugePages::On), ("off", HugePages::Off)];

const OPERATIONS: [(&str, Ops); 6] = [
    ("read", Ops::READ),
    ("write", Ops::WRITE),
    ("flush", Ops::FLUSH),
    ("discard", Ops::DISCARD),
    ("write_zeroes", Ops::WRITE_ZEROES),
    ("compare_and_write", Ops::COMPARE_AND_WRITE),
];

/// Errors that a fault rule can name.
const ERRORS: [(&str, ErrorKind); 9] = [
    ("unrecovered_read", ErrorKind::UnrecoveredRead),
    ("write_fault", ErrorKind::WriteFault),
    ("no_space", ErrorKind::NoSpace),
    ("timeout", ErrorKind::Timeout),
    ("unreachable", ErrorKind::Unreachable),
    ("access_denied", ErrorKind::AccessDenied),
    ("read_only", ErrorKind::ReadOnly),
    ("aborted", ErrorKind::Aborted),
    ("internal", ErrorKind::Internal),
];

/// Reads a device's table to its end.
pub(super) fn device(section: Section<'_>, base: &Path) -> Option<DeviceKind> {
    if section.get("type").is_none() {
        // Without a type no other key can be judged.
        return section.missing("type", "\"file\"");
    }
    let kind = match section.choice("type", &TYPES)?.value {
        Type::Memory => {
            let pages =
                section.choice("huge_pages", &HUGE_PAGES).map_or_else(HugePages::default, |at| at.value);
            plain(&section).map(|plain| DeviceKind::Memory(plain, pages))
        }
        Type::Null => plain(&section).map(DeviceKind::Null),
        Type::File => file(&section, base).map(DeviceKind::File),
        Type::Rbd => parse_ceph::rbd(&section).map(|rbd| DeviceKind::Rbd(Box::new(rbd))),
        Type::Rados => parse_ceph::rados(&section).map(|rados| DeviceKind::Rados(Box::new(rados))),
        Type::Opal => opal(&section, base).map(DeviceKind::Opal),
        Type::Fault => fault(&section).map(DeviceKind::Fault),
    };
    section.finish();
    kind
}

fn plain(section: &Section<'_>) -> Option<Plain> {
    let size = required_size(section);
    let block_size = block_size(section);
    Some(Plain { size: size?, block_size })
}

fn required_size(section: &Section<'_>) -> Option<At<u64>> {
    match section.get("size") {
        Some(_) => section.size("size"),
        None => section.missing("size", "\"10G\""),
    }
}

/// Bytes in a block; the usual number if nothing is said.
pub(super) fn block_size(section: &Section<'_>) -> At<u32> {
    let fallback =
        || At::new(defaults::BLOCK_SIZE, Spot::named(format!("{}.block_size", section.spot().key)));
    let Some(written) = section.size("block_size") else { return fallback() };
    match checked_block_size(written.value) {
        Some(bytes) => At::new(bytes, written.spot),
        None => {
            section.sink().error(
                &written.spot,
                format!("guests cannot have blocks of {} bytes", written.value),
                "use 512 or 4096",
            );
            fallback()
        }
    }
}

/// `bytes` if blocks can have that size.
pub(crate) fn checked_block_size(bytes: u64) -> Option<u32> {
    matches!(bytes, 512 | 4096).then_some(bytes as u32)
}

fn file(section: &Section<'_>, base: &Path) -> Option<FileDevice> {
    let path = match section.get("path") {
        Some(_) => section.string("path", "\"disk.img\""),
        None => section.missing("path", "\"disk.img\""),
    };
    let size = section.size("size");
    let block_size = block_size(section);
    let direct = section.choice("direct", &DIRECT).map(|direct| direct.value).unwrap_or_default();
    let read_only = section.flag("read_only");
    let path = path?;
    if path.value.is_empty() {
        section.sink().error(&path.spot, "the path is empty", "name a file: path = \"disk.img\"");
        return None;
    }
    Some(FileDevice { path: path.map(|path| absolute(base, &path)), size, block_size, direct, read_only })
}

fn opal(section: &Section<'_>, base: &Path) -> Option<OpalDevice> {
    let on = match section.get("on") {
        Some(_) => section.string("on", "\"disk\""),
        None => section.missing("on", "\"disk\""),
    };
    let key = match section.get("key") {
        Some(_) => section.string("key", KEY_EXAMPLE),
        None => section.missing("key", KEY_EXAMPLE),
    };
    let key = key.and_then(|key| key_source(&key, base, section));
    let mut options = OpalOptions {
        sparse: section.get("discard").is_none() || section.flag("discard"),
        lock_on_reset: section.flag("lock_on_reset"),
        ..OpalOptions::default()
    };
    if let Some(memory) = section.size("pin_memory") {
        let cost = Cost { memory_kib: u32::try_from(memory.value >> 10).unwrap_or(u32::MAX), ..options.cost };
        if cost.is_allowed() {
            options.cost = cost;
        } else {
            let (least, most) = (Cost::LEAST.memory_kib >> 10, Cost::MOST.memory_kib >> 10);
            let message = format!("{} bytes are not what trying a PIN can take", memory.value);
            section.sink().error(&memory.spot, message, format!("use \"{least}M\" to \"{most}M\""));
        }
    }
    Some(OpalDevice { on: on?, key: key?, options })
}

const KEY_EXAMPLE: &str = "\"file:/etc/quarry/opal.key\"";

fn key_source(key: &At<String>, base: &Path, section: &Section<'_>) -> Option<At<DeviceKeySource>> {
    let text = match key.value.strip_prefix("file:") {
        Some(path) if !path.is_empty() => format!("file:{}", absolute(base, path).display()),
        _ => key.value.clone(),
    };
    match text.parse::<DeviceKeySource>() {
        Ok(source) => Some(At::new(source, key.spot.clone())),
        Err(error) => {
            let help = format!("for example: key = {KEY_EXAMPLE}; a key itself never stands here");
            section.sink().error(&key.spot, error.to_string(), help);
            None
        }
    }
}

fn fault(section: &Section<'_>) -> Option<FaultDevice> {
    let on = match section.get("on") {
        Some(_) => section.string("on", "\"disk\""),
        None => section.missing("on", "\"disk\""),
    };
    let rules = section.sections("rules", "{ action = \"fail\", operations = [\"read\"] }");
    let rules = rules.into_iter().filter_map(rule).collect();
    Some(FaultDevice { on: on?, rules })
}

/// The word for an action.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fail,
    FailAfter,
    Delay,
    Hold,
    Reorder,
}

const ACTIONS: [(&str, Kind); 5] = [
    ("fail", Kind::Fail),
    ("fail_after", Kind::FailAfter),
    ("delay", Kind::Delay),
    ("hold", Kind::Hold),
    ("reorder", Kind::Reorder),
];

fn rule(section: Section<'_>) -> Option<FaultRule> {
    if section.get("action").is_none() {
        let _: Option<()> = section.missing("action", "\"fail\"");
    }
    let kind = section.choice("action", &ACTIONS).map(|kind| kind.value);
    let action = action(&section, kind);
    let operations = section.choices("operations", &OPERATIONS);
    if let Some((value, spot)) = section.get("operations")
        && value.get_ref().as_array().is_some_and(|array| array.is_empty())
    {
        section.sink().error(
            &spot,
            "a rule for no operation does nothing",
            "name some: operations = [\"read\"]; or remove the key for all of them",
        );
    }
    let operations = operations.into_iter().reduce(|all, one| all | one).unwrap_or(Ops::all());
    let after = section.integer("after", 0..=u64::MAX).map_or(0, |n| n.value);
    let every = section.integer("every", 1..=u64::MAX).map_or(1, |n| n.value);
    let count = section.integer("count", 1..=u64::MAX).map(|n| n.value);
    let blocks = blocks(&section);
    let spot = section.spot().clone();
    section.finish();
    Some(FaultRule { spot, action: action?, operations, blocks, after, every, count })
}

/// The action with its own keys; complains of those that belong to another one.
fn action(section: &Section<'_>, kind: Option<Kind>) -> Option<Action> {
    let error = section.choice("error", &ERRORS);
    let milliseconds = section.integer("milliseconds", 1..=3_600_000);
    let window = section.integer("window", 2..=1024);
    let foreign = |spot: Option<&Spot>, key: &str, whose: &[Kind], names: &str| {
        if let (Some(spot), Some(kind)) = (spot, kind)
            && !whose.contains(&kind)
        {
            section.sink().error(
                spot,
                format!("this action has no `{key}`"),
                format!("remove it; it belongs to {names}"),
            );
        }
    };
    foreign(
        error.as_ref().map(|at| &at.spot),
        "error",
        &[Kind::Fail, Kind::FailAfter],
        "`fail` and `fail_after`",
    );
    let timed = [Kind::Delay, Kind::Reorder];
    foreign(milliseconds.as_ref().map(|at| &at.spot), "milliseconds", &timed, "`delay` and `reorder`");
    foreign(window.as_ref().map(|at| &at.spot), "window", &[Kind::Reorder], "`reorder`");

    let error = error.map_or(ErrorKind::Internal, |error| error.value);
    let duration = milliseconds.map(|n| Duration::from_millis(n.value));
    match kind? {
        Kind::Fail => Some(Action::Fail(error)),
        Kind::FailAfter => Some(Action::FailAfter(error)),
        Kind::Hold => Some(Action::Hold),
        Kind::Delay => match duration {
            Some(duration) => Some(Action::Delay(duration)),
            None if section.get("milliseconds").is_some() => None,
            None => section.missing("milliseconds", "10"),
        },
        Kind::Reorder => Some(Action::Reorder {
            window: window.map_or(8, |n| n.value as usize),
            longest: duration.unwrap_or(Duration::from_millis(10)),
        }),
    }
}

fn blocks(section: &Section<'_>) -> Option<(u64, u64)> {
    let range = section.integers("blocks", 0..=u64::MAX);
    let (_, spot) = section.get("blocks")?;
    match range.as_slice() {
        [first, end] if first.value < end.value => Some((first.value, end.value)),
        _ => {
            section.sink().error(
                &spot,
                "not a range of blocks",
                "write the first block and the one after the last: blocks = [0, 8]",
            );
            None
        }
    }
}
