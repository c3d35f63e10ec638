//! The configuration as data: what the file or the command line said, each value with its place.
//!
//! Leaves out how it is read ([`super::parse`]), whether it makes sense ([`super::check`]) and what becomes of it
//! ([`crate::server`]). A new kind of device is a new variant of [`DeviceKind`]; whatever it stands on is named by
//! [`DeviceKind::inner`], and the checks of references, cycles and sharing follow from that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use block::fault::{Action, Ops};
use block_memory::HugePages;
use nvme_emu::Limits;

use super::diagnostic::{At, Spot};
pub(crate) use super::model_ceph::volume_spec;
pub use super::model_ceph::{ClusterConfig, Place, RadosDevice, RbdDevice};

/// A whole configuration.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The threads of the data path.
    pub reactors: Reactors,
    /// The socket for those who operate the server; none if missing.
    pub control: Option<Control>,
    /// Ceph clusters by name.
    pub clusters: BTreeMap<String, ClusterConfig>,
    /// Block devices by name.
    pub devices: BTreeMap<String, DeviceConfig>,
    /// NVM subsystems by name.
    pub subsystems: BTreeMap<String, SubsystemConfig>,
    /// Controllers, each with its socket, by name.
    pub controllers: BTreeMap<String, ControllerConfig>,
    /// Devices whose tables hold mistakes: known by name, so that a reference to one is not a mistake of its
    /// own. A configuration without errors has none.
    pub unreadable: BTreeSet<String>,
    /// The same for clusters.
    pub unreadable_clusters: BTreeSet<String>,
}

/// The threads of the data path.
#[derive(Clone, Debug, Default)]
pub struct Reactors {
    /// How many, and where they run.
    pub threads: Threads,
    /// How they wait for work.
    pub modes: Modes,
    /// How much guest memory each may register as fixed buffers, in pieces of [`block::reactor::FIXED_PIECE`].
    pub fixed_pieces: u32,
}

impl Reactors {
    /// How many there are.
    pub fn number(&self) -> usize {
        match &self.threads {
            Threads::Default => 1,
            Threads::Count(count) => count.value,
            Threads::Cpus(cpus) => cpus.len(),
        }
    }

    /// How reactor `number` waits.
    pub fn mode(&self, number: usize) -> Mode {
        match &self.modes {
            Modes::All(mode) => *mode,
            Modes::Each(modes) => modes.value.get(number).copied().unwrap_or_default(),
        }
    }
}

/// How many reactors there are, and on which CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// One; see [`crate::affinity::placement`] for where.
    #[default]
    Default,
    /// That many, placed by the same rule.
    Count(At<usize>),
    /// One on each of these CPUs.
    Cpus(Vec<At<usize>>),
}

/// The modes of all reactors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modes {
    /// One for all.
    All(Mode),
    /// One for each.
    Each(At<Vec<Mode>>),
}

impl Default for Modes {
    fn default() -> Self {
        Self::All(Mode::default())
    }
}

/// How a reactor waits for work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Never: spin always.
    Poll,
    /// Spin while there is work, then sleep for growing times, for ever when no guest is there.
    #[default]
    Adaptive,
    /// Sleep until woken. Stores into mapped doorbells wake nobody.
    Interrupt,
}

impl Mode {
    /// Every mode by its name.
    pub const NAMES: [(&str, Self); 3] =
        [("adaptive", Self::Adaptive), ("poll", Self::Poll), ("interrupt", Self::Interrupt)];

    /// Its name in the configuration and on the control socket.
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Adaptive => "adaptive",
            Self::Interrupt => "interrupt",
        }
    }
}

/// The control socket.
#[derive(Clone, Debug)]
pub struct Control {
    /// Absolute; the server creates and removes it.
    pub socket: At<PathBuf>,
    /// Permissions of the socket's file; its owner's alone if missing.
    pub socket_mode: Option<u32>,
}

/// A block device.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Its table.
    pub spot: Spot,
    /// What it is.
    pub kind: DeviceKind,
}

/// What a device is, with its settings.
#[derive(Clone, Debug)]
pub enum DeviceKind {
    /// Bytes in memory, gone when the server ends.
    Memory(Plain, HugePages),
    /// Reads zeroes, forgets writes.
    Null(Plain),
    /// A file or a block special file.
    File(FileDevice),
    /// An image on a Ceph cluster.
    Rbd(Box<RbdDevice>),
    /// A volume on a Ceph cluster.
    Rados(Box<RadosDevice>),
    /// A self-encrypting drive over another device.
    Opal(OpalDevice),
    /// Injects faults over another device.
    Fault(FaultDevice),
}

impl DeviceKind {
    /// The value of `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Memory(..) => "memory",
            Self::Null(_) => "null",
            Self::File(_) => "file",
            Self::Rbd(_) => "rbd",
            Self::Rados(_) => "rados",
            Self::Opal(_) => "opal",
            Self::Fault(_) => "fault",
        }
    }

    /// The devices it stands on.
    pub fn inner(&self) -> Vec<&At<String>> {
        match self {
            Self::Memory(..) | Self::Null(_) | Self::File(_) | Self::Rbd(_) | Self::Rados(_) => Vec::new(),
            Self::Opal(opal) => vec![&opal.on],
            Self::Fault(fault) => vec![&fault.on],
        }
    }
}

/// The settings of a device that is nothing but a size.
#[derive(Clone, Debug)]
pub struct Plain {
    /// Bytes.
    pub size: At<u64>,
    /// Bytes in a block.
    pub block_size: At<u32>,
}

/// A file or a block special file.
#[derive(Clone, Debug)]
pub struct FileDevice {
    /// Absolute.
    pub path: At<PathBuf>,
    /// Bytes: needed to create it, checked or grown if it exists.
    pub size: Option<At<u64>>,
    /// Bytes in a block.
    pub block_size: At<u32>,
    /// Whether to go around the page cache.
    pub direct: Direct,
    /// Open it for reading only.
    pub read_only: bool,
}

/// Whether I/O goes around the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// If the file system can.
    #[default]
    Auto,
    /// Or the device cannot be opened.
    On,
    /// Through the page cache.
    Off,
}

/// A self-encrypting drive over another device.
#[derive(Clone, Debug)]
pub struct OpalDevice {
    /// The device below.
    pub on: At<String>,
    /// Where the device key is.
    pub key: At<block_opal::device_key::DeviceKeySource>,
    /// How it is.
    pub options: block_opal::OpalOptions,
}

/// Faults over another device.
#[derive(Clone, Debug)]
pub struct FaultDevice {
    /// The device below.
    pub on: At<String>,
    /// The first rule that matches an operation decides.
    pub rules: Vec<FaultRule>,
}

/// What to do to which operations.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// Its table.
    pub spot: Spot,
    /// What happens.
    pub action: Action,
    /// To these operations.
    pub operations: Ops,
    /// Touching blocks from the first to before the second; anywhere if missing.
    pub blocks: Option<(u64, u64)>,
    /// Matching operations that are let through first.
    pub after: u64,
    /// Of those that come then, only each so manieth.
    pub every: u64,
    /// Operations it happens to; without end if missing.
    pub count: Option<u64>,
}

/// An NVM subsystem that several controllers can share.
#[derive(Clone, Debug, Default)]
pub struct SubsystemConfig {
    /// Its table.
    pub spot: Spot,
    /// NVMe Qualified Name; derived if missing.
    pub nqn: Option<At<String>>,
    /// Serial number; derived if missing.
    pub serial: Option<At<String>>,
    /// Model number.
    pub model: Option<At<String>>,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceConfig>,
}

/// A namespace.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// Its table.
    pub spot: Spot,
    /// The device that holds its blocks.
    pub device: At<String>,
    /// Its identifier; the lowest free one if missing.
    pub nsid: Option<At<u32>>,
    /// Derived if missing.
    pub uuid: Option<At<uuid::Uuid>>,
    /// Refuse writes.
    pub read_only: bool,
    /// For the sum over all controllers.
    pub limits: Limits,
}

/// A controller and its socket.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Its table.
    pub spot: Spot,
    /// Where its client connects.
    pub socket: Socket,
    /// Permissions of the socket's file; its owner's alone if missing.
    pub socket_mode: Option<u32>,
    /// What it belongs to.
    pub subsystem: SubsystemRef,
    /// I/O queue pairs.
    pub io_queues: u16,
    /// Entries of the longest queue.
    pub queue_entries: u32,
    /// Bytes of the largest transfer.
    pub max_transfer: u32,
    /// Offer the INTx pin.
    pub intx: bool,
    /// How stores into doorbells come here.
    pub doorbells: At<Doorbells>,
    /// Offer shadow doorbells (Doorbell Buffer Config); at most 31 I/O queue pairs then.
    pub shadow_doorbells: bool,
    /// Offer MSI in place of MSI-X.
    pub msi: bool,
    /// The reactors its queues are spread over, its home first; all of them if empty.
    pub reactors: Vec<At<usize>>,
    /// For the sum over all namespaces and queues.
    pub limits: Limits,
}

impl ControllerConfig {
    /// The reactors its queues are spread over, of `number`, its home first. `index` is the controller's own number,
    /// by which those that choose none get different homes.
    pub fn spread(&self, index: usize, number: usize) -> Vec<usize> {
        if self.reactors.is_empty() {
            (0..number).map(|n| (n + index) % number).collect()
        } else {
            self.reactors.iter().map(|reactor| reactor.value).collect()
        }
    }
}

/// How stores into doorbells come from the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// The VMM maps them into the guest: a store is seen by whoever looks.
    #[default]
    Mapped,
    /// The VMM sends a message for each, which wakes the reactor.
    Trapped,
}

/// Where a client connects.
#[derive(Clone, Debug)]
pub enum Socket {
    /// A path, absolute, which the server creates and removes.
    Path(At<PathBuf>),
    /// A listening socket that was inherited.
    Fd(At<i32>),
}

impl Socket {
    /// Its place.
    pub fn spot(&self) -> &Spot {
        match self {
            Self::Path(path) => &path.spot,
            Self::Fd(fd) => &fd.spot,
        }
    }
}

/// The subsystem of a controller.
#[derive(Clone, Debug)]
pub enum SubsystemRef {
    /// One that has a table of its own.
    Shared(At<String>),
    /// One that only this controller has: its `namespaces`, `nqn`, `serial` and `model`.
    Own(Box<SubsystemConfig>),
}
