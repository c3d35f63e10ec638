//! The command line: what it accepts, and what its help says.

pub mod control;
pub mod opal;
pub mod volume;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::check::Machine;
use crate::config::diagnostic::{At, Sink, Spot};
use crate::config::model::{
    Config, ControllerConfig, DeviceConfig, Doorbells, NamespaceConfig, Socket, SubsystemConfig, SubsystemRef,
};
use crate::config::{self, Checked, Report, defaults, parse};
use crate::{logging, spec};

const EXAMPLES: &str = "\
Examples:
  Serve a file as a disk, creating it with 10 GiB if need be:
    quarry serve --socket /run/quarry/vm.sock --disk file:disk.img,size=10G
  Give it to a virtual machine:
    qemu-system-x86_64 -m 1G -machine q35,memory-backend=ram \\
      -object memory-backend-memfd,id=ram,size=1G,share=on \\
      -device pcie-root-port,id=rp0 \\
      -device '{\"driver\":\"vfio-user-pci\",\"bus\":\"rp0\",
        \"socket\":{\"type\":\"unix\",\"path\":\"/run/quarry/vm.sock\"},
        \"x-msg-timeout\":60000}' ...
    cloud-hypervisor --memory size=1G,shared=on \\
      --user-device socket=/run/quarry/vm.sock ...
  Find every mistake in a configuration, then serve it:
    quarry check /etc/quarry/quarry.toml
    quarry serve /etc/quarry/quarry.toml
  See what a running server does, if it has a control socket:
    quarry control status

Exit status:
  0  ended as asked, everything flushed
  1  could not start, or failed; `control`: could not be done
  2  the command line is wrong
  3  the configuration has mistakes
  101  a thread panicked (also 134 if the process aborted)
  130, 143  a second SIGINT or SIGTERM cut the shutdown short";

const SERVE_EXAMPLES: &str = "\
Disks:
  file:PATH[,size=SIZE][,direct=auto|on|off]
  rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][,lock=keep]
  rados:POOL/[NAMESPACE/]VOLUME
    Of both: [,conf=PATH][,user=NAME][,keyring=PATH][,namespace=NAME]
      [,timeout=SECONDS][,io_timeout=SECONDS][,in_flight=SIZE]
  mem:SIZE
  null:SIZE
  Each may go on with [,block_size=512|4096][,read_only][,uuid=UUID].
  Sizes take K, M, G, T and P (binary). A comma in a path is written twice.

Examples:
  quarry serve /etc/quarry/quarry.toml
  quarry serve --socket /run/quarry/vm.sock --disk file:disk.img,size=10G
  quarry serve --socket vm.sock --disk mem:1G --block-size 4096
  quarry serve --socket vm.sock --disk file:base.img,read_only \\
    --disk file:data.img,size=1T
  quarry serve --socket vm.sock --disk rbd:rbd/vm-1
  quarry serve --socket vm.sock --disk rbd:rbd/base@golden,user=vms \\
    --disk rados:fast/vm-1,conf=/etc/ceph/site.conf,block_size=4096
  quarry serve --fd 3 --disk null:1T    # a listening socket from the caller

Signals:
  SIGTERM, SIGINT and SIGHUP flush every disk and end with status 0; a second
  SIGTERM or SIGINT ends at once.";

/// Native NVMe disks for virtual machines, over vfio-user.
#[derive(Debug, Parser)]
#[command(name = "quarry", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// How log lines look
    #[arg(long, value_enum, default_value_t, global = true, value_name = "FORMAT")]
    pub log_format: logging::Format,
    /// Which log lines: error, warn, info, debug, trace, or a filter as RUST_LOG has it [default: RUST_LOG, or info]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve disks until SIGTERM or SIGINT
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Name every mistake in a configuration, without starting anything; Ceph clusters are asked, and nothing changes there
    Check {
        /// Do not ask Ceph clusters whether what is named is there and may be used
        #[arg(long)]
        offline: bool,
        /// The configuration
        #[arg(value_name = "CONFIG")]
        config: PathBuf,
    },
    /// Look at a running server and change it: modes, queues, limits
    #[command(after_help = control::EXAMPLES)]
    Control(control::Control),
    /// Look at the self-encrypting disks of a running server
    #[command(after_help = opal::EXAMPLES)]
    Opal(opal::Opal),
    /// Make, look at, resize and remove volumes on a Ceph cluster
    #[command(after_help = volume::EXAMPLES)]
    Volume(volume::Volume),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The configuration; instead of it, one controller can be described by the options below
    #[arg(
        value_name = "CONFIG",
        required_unless_present_any = ["disk", "socket", "fd"],
        conflicts_with_all = ["socket", "fd", "socket_mode", "disk", "block_size", "read_only", "serial", "nqn", "model"]
    )]
    pub config: Option<PathBuf>,
    /// Where the VMM connects; created, and removed at the end
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket: Option<PathBuf>,
    /// A listening socket that the caller passes as this descriptor
    #[arg(long, value_name = "N")]
    pub fd: Option<i32>,
    /// Permissions of the socket, octal, for VMMs that run as another user [default: 0600]
    #[arg(long, value_name = "MODE", requires = "socket")]
    pub socket_mode: Option<String>,
    /// A disk, see below; given again, the controller has several namespaces
    #[arg(long, value_name = "SPEC")]
    pub disk: Vec<String>,
    /// Bytes in a block, for disks that do not say
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
    pub block_size: String,
    /// Refuse writes, to every disk
    #[arg(long)]
    pub read_only: bool,
    /// Serial number [default: derived from the socket]
    #[arg(long)]
    pub serial: Option<String>,
    /// NVMe Qualified Name [default: derived from the socket]
    #[arg(long)]
    pub nqn: Option<String>,
    /// Model number [default: Quarry NVMe Disk]
    #[arg(long)]
    pub model: Option<String>,
}

/// The name of the controller that a command line describes.
const CONTROLLER: &str = "cli";

impl Serve {
    /// The configuration that these arguments describe, checked as a file is; only without CONFIG.
    pub fn configuration(&self, machine: &Machine) -> Result<Checked, Report> {
        let sink = Sink::default();
        let config = self.build(&sink);
        config::conclude_command_line(config, machine, sink)
    }

    fn build(&self, sink: &Sink) -> Option<Config> {
        let common = spec::Common {
            block_size: if self.block_size == "4096" { 4096 } else { 512 },
            read_only: self.read_only,
        };
        let mut config = Config::default();
        let mut namespaces = Vec::new();
        let mut good = !self.disk.is_empty();
        if !good {
            let spot = Spot::named("serve");
            let help = "add one, for example --disk file:disk.img,size=10G; or name a configuration instead";
            sink.error(&spot, "no disk to serve", help);
        }
        for (index, text) in self.disk.iter().enumerate() {
            let Some(disk) = spec::parse(text, common, sink) else {
                good = false;
                continue;
            };
            let name = if index == 0 { "disk".to_owned() } else { format!("disk{}", index + 1) };
            let spot = Spot::named(format!("--disk {text}"));
            let mut kind = disk.device;
            if let (Some(cluster), Some(place)) = (disk.cluster, kind.place_mut()) {
                place.cluster = Some(At::new(name.clone(), spot.clone()));
                config.clusters.insert(name.clone(), cluster);
            }
            config.devices.insert(name.clone(), DeviceConfig { spot: spot.clone(), kind });
            namespaces.push(NamespaceConfig {
                device: At::new(name, spot.clone()),
                spot,
                nsid: None,
                uuid: disk.uuid,
                read_only: disk.read_only,
                limits: Default::default(),
            });
        }
        let socket = match (&self.socket, self.fd) {
            (Some(path), _) => {
                let spot = Spot::named(format!("--socket {}", path.display()));
                let path = parse::absolute(Path::new(""), &path.to_string_lossy());
                Socket::Path(At::new(path, spot))
            }
            (None, Some(fd)) => Socket::Fd(At::new(fd, Spot::named(format!("--fd {fd}")))),
            (None, None) => {
                let spot = Spot::named("--disk");
                sink.error(&spot, "no place for the VMM to connect", "add --socket PATH (or --fd N)");
                return None;
            }
        };
        let text = |value: &Option<String>, option: &str| {
            value.as_ref().map(|value| At::new(value.clone(), Spot::named(format!("--{option} {value}"))))
        };
        let subsystem = SubsystemConfig {
            spot: Spot::named("--disk"),
            nqn: text(&self.nqn, "nqn"),
            serial: text(&self.serial, "serial"),
            model: text(&self.model, "model"),
            namespaces,
        };
        let socket_mode = match text(&self.socket_mode, "socket-mode") {
            Some(mode) => Some(parse::parse_mode(mode, sink)?),
            None => None,
        };
        let controller = ControllerConfig {
            spot: socket.spot().clone(),
            socket,
            socket_mode,
            subsystem: SubsystemRef::Own(Box::new(subsystem)),
            io_queues: defaults::IO_QUEUES,
            queue_entries: defaults::QUEUE_ENTRIES,
            max_transfer: defaults::MAX_TRANSFER,
            intx: false,
            doorbells: At::new(Doorbells::Mapped, Spot::default()),
            shadow_doorbells: false,
            msi: false,
            reactors: Vec::new(),
            limits: Default::default(),
        };
        config.controllers.insert(CONTROLLER.to_owned(), controller);
        Some(config).filter(|_| good)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Wrapped lines could not be pasted.
    #[test]
    fn examples_fit_a_terminal() {
        for line in EXAMPLES
            .lines()
            .chain(SERVE_EXAMPLES.lines())
            .chain(volume::EXAMPLES.lines())
            .chain(opal::EXAMPLES.lines())
            .chain(control::texts())
        {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_command_line_is_checked_as_a_file_is() {
        let serve = |arguments: &[&str]| {
            let cli = Cli::try_parse_from(["quarry", "serve"].iter().chain(arguments)).expect("parses");
            let Command::Serve(serve) = cli.command else { panic!() };
            serve.configuration(&Machine { cpus: vec![0] })
        };
        let checked =
            serve(&["--socket", "/tmp/q.sock", "--disk", "mem:1G", "--disk", "null:1T"]).expect("good");
        assert_eq!(checked.config.devices.keys().collect::<Vec<_>>(), ["disk", "disk2"]);
        assert_eq!(
            serve(&["--socket", "/nowhere/q.sock", "--disk", "mem:1000"]).unwrap_err().to_string(),
            "error: --disk mem:1000: 1000 bytes are not a multiple of the block size 512\n  \
             = help: use 512 or 1024\n\n\
             error: --socket /nowhere/q.sock: the directory /nowhere cannot be used: it does not exist\n  \
             = help: create it (mkdir -p /nowhere), or correct the path\n\n"
        );
        let missing = serve(&["--disk", "mem:1G"]).unwrap_err().to_string();
        assert!(missing.contains("add --socket PATH"), "{missing}");
        let missing = serve(&["--socket", "/tmp/q.sock"]).unwrap_err().to_string();
        assert!(missing.contains("no disk to serve") && missing.contains("--disk file:"), "{missing}");
    }
}
