//! How a guest is put together: QEMU's command line.

use super::Guest;
use crate::Assets;
use crate::setup::CMDLINE;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself: the same on every machine. Tests use nothing else.
    #[default]
    Tcg,
    /// KVM where a guest really boots with it, QEMU itself elsewhere. The first answer on a machine can take 20 s.
    BestEffortKvm,
    /// KVM, whatever comes of it.
    Kvm,
}

/// The image with [`Builder::files`], in the guest's directory.
pub(super) const FILES: &str = "files.erofs";

/// The first program that the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Boot {
    /// The kernel, from the host's files, with a root image of its own: the disks under test are spare.
    #[default]
    Kernel,
    /// Firmware, which boots from the first disk: a copy of [`Assets::boot_disk`].
    Firmware(Firmware),
}

/// Firmware with a driver for NVMe of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// A PC BIOS.
    SeaBios,
    /// UEFI.
    Ovmf,
}

/// A guest's end of a cable to one other guest, over a Unix socket: nothing else is on it, the host neither.
#[derive(Clone, Debug)]
pub enum Network {
    /// The end that makes the socket.
    Listens(PathBuf),
    /// The other end. Its guest can start first.
    Connects(PathBuf),
}

/// A guest to be. See [`Guest::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    memory_mib: u32,
    vcpus: u32,
    accel: Accel,
    boot: Boot,
    disks: Vec<PathBuf>,
    pub(super) files: Vec<PathBuf>,
    network: Option<Network>,
    spare_ports: usize,
    arguments: Vec<String>,
    cmdline: String,
    pub(super) reboots: bool,
    pub(super) boot_timeout: Duration,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            memory_mib: 512,
            vcpus: 1,
            accel: Accel::default(),
            boot: Boot::default(),
            disks: Vec::new(),
            files: Vec::new(),
            network: None,
            spare_ports: 0,
            arguments: Vec::new(),
            cmdline: String::new(),
            reboots: false,
            // Seconds on an idle machine; minutes on a busy one, and behind firmware.
            boot_timeout: Duration::from_secs(300),
        }
    }

    /// The guest's memory (512 MiB); always shared, so that a vfio-user server can map it.
    #[must_use]
    pub fn memory_mib(mut self, size: u32) -> Self {
        self.memory_mib = size;
        self
    }

    /// Its CPUs (1).
    #[must_use]
    pub fn vcpus(mut self, count: u32) -> Self {
        self.vcpus = count;
        self
    }

    /// What runs it ([`Accel::Tcg`]).
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// What it boots ([`Boot::Kernel`]).
    #[must_use]
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Adds a vfio-user disk, on a root port of its own. Its server must listen already. The guest's [`Guest`] methods
    /// know it as `disk0`, `disk1` and so on.
    #[must_use]
    pub fn disk(mut self, socket: impl Into<PathBuf>) -> Self {
        self.disks.push(socket.into());
        self
    }

    /// Gives the guest copies of files of the host, read-only, in its directory `/host`: programs above all.
    #[must_use]
    pub fn files<P: Into<PathBuf>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.files.extend(paths.into_iter().map(Into::into));
        self
    }

    /// Adds a network interface: `eth0`, once the guest has loaded `virtio_net`, with packets of up to 9000 bytes.
    #[must_use]
    pub fn network(mut self, end: Network) -> Self {
        self.network = Some(end);
        self
    }

    /// Adds empty root ports, for devices that are plugged in later. (The port of a disk that was unplugged is free too.)
    #[must_use]
    pub fn spare_ports(mut self, count: usize) -> Self {
        self.spare_ports = count;
        self
    }

    /// Adds arguments for QEMU. They come before all devices, where `-device intel-iommu,intremap=on,caching-mode=on`
    /// belongs.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds words to the kernel's command line ([`Boot::Kernel`] only).
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline += " ";
        self.cmdline += words;
        self
    }

    /// Lets the guest restart ([`Guest::reboot`]). Otherwise a restart, a panic for example, ends QEMU.
    #[must_use]
    pub fn reboots(mut self, reboots: bool) -> Self {
        self.reboots = reboots;
        self
    }

    /// How long the agent may take to report (300 s).
    #[must_use]
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// Boots the guest and returns when its agent is ready.
    pub fn start(self) -> Result<Guest> {
        self.start_with(&Assets::locate()?)
    }

    /// The same, with assets at hand.
    pub fn start_with(mut self, assets: &Assets) -> Result<Guest> {
        if self.accel == Accel::BestEffortKvm {
            self.accel = if super::kvm::works(assets) { Accel::Kvm } else { Accel::Tcg };
        }
        Guest::start(&self, assets)
    }

    /// The root ports and what sits on each.
    pub(super) fn ports(&self) -> Vec<Option<String>> {
        let disks = (0..self.disks.len()).map(|n| Some(format!("disk{n}")));
        disks.chain(std::iter::repeat_n(None, self.spare_ports)).collect()
    }

    /// True where the guest ends up on KVM.
    pub(super) fn kvm(&self) -> bool {
        self.accel == Accel::Kvm
    }

    /// The block device with [`Builder::files`]: it comes after the root.
    pub(super) fn files_device(&self) -> &'static str {
        match self.boot {
            Boot::Kernel => "/dev/vdb",
            Boot::Firmware(_) => "/dev/vda",
        }
    }

    /// QEMU's arguments, for a guest whose files are in `directory`.
    pub(super) fn command_line(&self, assets: &Assets, directory: &Path) -> Result<Vec<String>> {
        let (d, mib) = (directory.display(), self.memory_mib);
        let mut line = Line::default();
        line.words("-M q35,memory-backend=mem0 -nodefaults -no-user-config -display none");
        match self.kvm() {
            true => line.words("-accel kvm -cpu host"),
            false => line.words("-accel tcg -cpu max"),
        }
        line.pair("-smp", self.vcpus).pair("-m", mib).pair("-object", memory(mib));
        if !self.reboots {
            line.words("-no-reboot");
        }
        line.pair("-chardev", format!("file,id=console,path={d}/console")).words("-serial chardev:console");
        line.pair("-chardev", format!("socket,id=qmp,path={d}/qmp"));
        line.words("-object monitor-qmp,id=monitor,chardev=qmp");
        line.0.extend(self.arguments.iter().cloned());
        line.pair("-chardev", format!("socket,id=agent,path={d}/agent"));
        line.words("-device virtio-serial-pci,max_ports=2 -device virtserialport,chardev=agent,name=agent");
        match self.boot {
            Boot::Kernel => {
                line.pair("-kernel", assets.kernel.display()).pair("-initrd", assets.initramfs.display());
                line.pair("-append", format!("{CMDLINE} groot=/dev/vda:erofs{}", self.cmdline));
                let root = assets.root.display();
                line.pair("-drive", format!("file={root},if=none,id=root,format=raw,readonly=on"));
                line.words("-device virtio-blk-pci,drive=root");
            }
            Boot::Firmware(Firmware::SeaBios) => {}
            Boot::Firmware(Firmware::Ovmf) => {
                let variables = directory.join("ovmf-variables");
                std::fs::copy(&assets.ovmf_vars, &variables)?;
                let code = assets.ovmf_code.display();
                line.pair("-drive", format!("if=pflash,format=raw,readonly=on,file={code}"));
                line.pair("-drive", format!("if=pflash,format=raw,file={}", variables.display()));
            }
        }
        if !self.files.is_empty() {
            line.pair("-drive", format!("file={d}/{FILES},if=none,id=files,format=raw,readonly=on"));
            line.words("-device virtio-blk-pci,drive=files");
        }
        if let Some(end) = &self.network {
            let (socket, how, mac) = match end {
                Network::Listens(socket) => (socket, "server=on", "02:00:00:00:00:01"),
                Network::Connects(socket) => (socket, "server=off,reconnect-ms=100", "02:00:00:00:00:02"),
            };
            let socket = socket.display();
            line.pair("-netdev", format!("stream,id=cable,addr.type=unix,addr.path={socket},{how}"));
            line.pair("-device", format!("virtio-net-pci,netdev=cable,mac={mac},host_mtu=9000,romfile="));
        }
        for n in 0..self.disks.len() + self.spare_ports {
            line.pair("-device", format!("pcie-root-port,id=port{n},chassis={0},slot={0}", n + 1));
        }
        for (n, socket) in self.disks.iter().enumerate() {
            let mut device = disk_device(socket);
            device["id"] = format!("disk{n}").into();
            device["bus"] = format!("port{n}").into();
            if n == 0 && self.boot != Boot::Kernel {
                device["bootindex"] = 1.into();
            }
            line.pair("-device", device);
        }
        Ok(line.0)
    }
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(str::to_owned));
    }

    fn pair(&mut self, option: &str, value: impl std::fmt::Display) -> &mut Self {
        self.0.extend([option.to_owned(), value.to_string()]);
        self
    }
}

/// Guest memory that a vfio-user server can map.
fn memory(mib: u32) -> String {
    format!("memory-backend-memfd,id=mem0,size={mib}M,share=on")
}

/// The vfio-user disk whose server listens at `socket`, as QEMU's `-device` and `device_add` take it (without `id` and
/// `bus`). QEMU's own patience of 5 s is too short: an access that comes later than that breaks the conversation for good.
pub fn disk_device(socket: &Path) -> Value {
    json!({
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": socket.display().to_string()},
        "x-msg-timeout": 60_000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The launch script for people and the harness start the same disk.
    #[test]
    fn the_launch_script_agrees() {
        let script = include_str!("../../launch/qemu.sh");
        let json = script.split('\'').find(|part| part.contains("vfio-user-pci")).expect("a device in JSON");
        let rest = script.split_once(json).expect("just found").1;
        // The script closes its quotes around the socket: '{…"path":"'"$SOCKET"'"}…}'.
        let tail = rest.split('\'').nth(2).expect("the rest of the device");
        let mut device: Value = serde_json::from_str(&format!("{json}/s{tail}")).expect("valid JSON");
        assert_eq!(device["bus"], "port0", "on a root port");
        assert!(script.contains("pcie-root-port,id=port0"));
        device.as_object_mut().expect("an object").retain(|key, _| key != "bus");
        assert_eq!(device, disk_device(Path::new("/s")));
        let memory = memory(7).replace("7M", "$MEMORY");
        assert!(script.contains(&memory), "{memory}");
    }
}
