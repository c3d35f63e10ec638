//! `quarry volume`: volumes on a Ceph cluster, which devices of the type `rados` serve.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block_ceph::{
    Cluster, ClusterOptions, CreateOptions, OpenError, Volume as Volumes, VolumeInfo, VolumeSpec,
};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::ceph::help;
use crate::config::diagnostic::{At, Sink, Spot};
use crate::config::model::volume_spec;
use crate::config::parse::{self, absolute};
use crate::config::parse_ceph::{Named, check_name, check_option, check_user};
use crate::config::{Report, Source, check::resolve};
use crate::size::{self, Size};

/// The sizes that a volume's objects can have.
const OBJECT_SIZES: std::ops::RangeInclusive<u64> = (64 << 10)..=(32 << 20);

pub(super) const EXAMPLES: &str = "\
Examples:
  quarry volume create fast/vm-1 --size 10G
  quarry volume create fast/tenant/vm-1 --size 1T --data-pool ec
  quarry volume info fast/vm-1 --json | jq .size
  quarry volume resize fast/vm-1 --size 20G    # also while it is served
  quarry volume remove fast/vm-1 --user quarry --keyring quarry.keyring
  quarry volume info fast/vm-1 --config quarry.toml --cluster main

Serve one: quarry serve --socket vm.sock --disk rados:fast/vm-1";

/// Arguments of `volume`.
#[derive(Args, Debug)]
pub struct Volume {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    cluster: ClusterArguments,
}

/// How to reach the cluster.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Cluster")]
struct ClusterArguments {
    /// Ceph's configuration file [default: /etc/ceph/ceph.conf]
    #[arg(long, value_name = "PATH", global = true)]
    conf: Option<PathBuf>,
    /// The user, without `client.` [default: admin]
    #[arg(long, value_name = "NAME", global = true)]
    user: Option<String>,
    /// The file with the user's key [default: what Ceph's configuration file says]
    #[arg(long, value_name = "PATH", global = true)]
    keyring: Option<PathBuf>,
    /// An option of Ceph's own; may be given again
    #[arg(long = "option", value_name = "KEY=VALUE", global = true)]
    options: Vec<String>,
    /// How long the cluster may take for an answer, in seconds [default: 30]
    #[arg(long, value_name = "SECONDS", global = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: Option<u64>,
    /// A configuration of Quarry that has the cluster, instead of the options above
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        conflicts_with_all = ["conf", "user", "keyring", "options", "timeout"]
    )]
    config: Option<PathBuf>,
    /// Which of its clusters [default: the only one]
    #[arg(long, value_name = "NAME", global = true, requires = "config")]
    cluster: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume
    Create {
        /// Where, and its name
        #[arg(value_name = "POOL/[NAMESPACE/]NAME")]
        volume: String,
        /// Bytes, such as 10G
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        size: u64,
        /// Bytes in an object: a power of two from 64K to 32M
        #[arg(long, value_name = "SIZE", default_value = "4M", value_parser = object_size)]
        object_size: u32,
        /// Another pool for the data, an erasure-coded one for example
        #[arg(long, value_name = "POOL")]
        data_pool: Option<String>,
    },
    /// Show what a volume is, and who has it open
    Info {
        /// The volume
        #[arg(value_name = "POOL/[NAMESPACE/]NAME")]
        volume: String,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Change a volume's size, also while it is served
    Resize {
        /// The volume
        #[arg(value_name = "POOL/[NAMESPACE/]NAME")]
        volume: String,
        /// Bytes, such as 20G
        #[arg(long, value_name = "SIZE", value_parser = bytes)]
        size: u64,
        /// Let it become smaller: what is beyond the new size is lost
        #[arg(long)]
        shrink: bool,
        /// Shrink it even if its last owner did not give it back: that client is locked out
        #[arg(long)]
        force: bool,
    },
    /// Remove a volume that nobody has open, and its data
    #[command(alias = "rm")]
    Remove {
        /// The volume
        #[arg(value_name = "POOL/[NAMESPACE/]NAME")]
        volume: String,
        /// Also if its last owner did not give it back: that client is locked out
        #[arg(long)]
        force: bool,
    },
}

fn bytes(text: &str) -> Result<u64, String> {
    match size::parse(text) {
        Ok(0) => Err("a volume of no bytes; write for example 10G".to_owned()),
        Ok(bytes) if !bytes.is_multiple_of(4096) => {
            Err(format!("{bytes} bytes are no whole number of blocks; use a multiple of 4K"))
        }
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{error}; write for example 10G")),
    }
}

fn object_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text).map_err(|error| format!("{error}; write for example 4M"))?;
    let good = bytes.is_power_of_two() && OBJECT_SIZES.contains(&bytes);
    let size = u32::try_from(bytes).ok().filter(|_| good);
    size.ok_or_else(|| "objects have a power of two from 64K to 32M; write for example 4M".to_owned())
}

impl Volume {
    /// Does it; the text is for standard output.
    pub fn run(&self) -> Result<String, Report> {
        let sink = Sink::default();
        let spot = Spot::named(format!("volume {}", self.command.volume()));
        let volume = self.volume(&spot, &sink);
        let options = match self.cluster.options(&sink) {
            // Its places are in a file.
            Err(report) if !sink.has_errors() => return Err(report),
            options => options,
        };
        let (Some(volume), Ok(options)) = (volume, options) else {
            return Err(sink.into_report(Source::default()));
        };
        self.carry_out(&volume, &options).map_err(|error| {
            sink.error(&spot, error.message.clone(), help(&error));
            sink.into_report(Source::default())
        })
    }

    fn carry_out(&self, volume: &VolumeSpec, options: &ClusterOptions) -> Result<String, OpenError> {
        let cluster = Cluster::connect(options)?;
        self.command.carry_out(&cluster, volume)
    }

    fn volume(&self, spot: &Spot, sink: &Sink) -> Option<VolumeSpec> {
        let at = |text: &str| At::new(text.to_owned(), spot.clone());
        let Some(named) = Named::read(self.command.volume()).filter(|named| named.snapshot.is_none()) else {
            sink.error(spot, "this is not the name of a volume", "write POOL/NAME or POOL/NAMESPACE/NAME");
            return None;
        };
        let mut good =
            check_name("pool", &at(named.pool), sink) & check_name("volume", &at(named.name), sink);
        if let Some(namespace) = named.namespace {
            good &= check_name("namespace", &at(namespace), sink);
        }
        if let Command::Create { data_pool: Some(pool), .. } = &self.command {
            let pool = At::new(pool.clone(), Spot::named(format!("--data-pool {pool}")));
            good &= check_name("pool", &pool, sink);
        }
        good.then(|| VolumeSpec {
            pool: named.pool.to_owned(),
            namespace: named.namespace.unwrap_or_default().to_owned(),
            name: named.name.to_owned(),
        })
    }
}

impl ClusterArguments {
    /// Mistakes of a file are in the error, those of the command line in `sink`; the error is empty then.
    fn options(&self, sink: &Sink) -> Result<ClusterOptions, Report> {
        if let Some(path) = &self.config {
            return self.of_file(path);
        }
        let mut options = ClusterOptions::default();
        let mut good = true;
        if let Some(conf) = &self.conf {
            options.conf = absolute(Path::new(""), &conf.to_string_lossy());
        }
        options.keyring = self.keyring.as_ref().map(|path| absolute(Path::new(""), &path.to_string_lossy()));
        if let Some(user) = &self.user {
            good &= check_user(&At::new(user.clone(), Spot::named(format!("--user {user}"))), sink);
            options.user.clone_from(user);
        }
        if let Some(seconds) = self.timeout {
            options.timeout = Duration::from_secs(seconds);
        }
        for option in &self.options {
            let spot = Spot::named(format!("--option {option}"));
            match option.split_once('=') {
                Some((name, value)) => {
                    good &= check_option(&At::new((name, value), spot), sink);
                    options.options.insert(name.to_owned(), value.to_owned());
                }
                None => {
                    good = false;
                    sink.error(&spot, "no value", "write KEY=VALUE, for example ms_type=async+posix");
                }
            }
        }
        if good { Ok(options) } else { Err(Report::default()) }
    }

    fn of_file(&self, path: &Path) -> Result<ClusterOptions, Report> {
        let sink = Sink::default();
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let help = "name a configuration file that this user can read";
                sink.error(&Spot::named(format!("--config {name}")), error.to_string(), help);
                return Err(sink.into_report(Source::default()));
            }
        };
        let parsed = parse::parse(&text, path.parent().unwrap_or(Path::new("")), &sink);
        let Some(config) = parsed.filter(|_| !sink.has_errors()) else {
            return Err(sink.into_report(Source { name, text }));
        };
        let spot = Spot::named(format!("--config {name}"));
        let found = match &self.cluster {
            Some(cluster) => {
                let reference = At::new(cluster.clone(), Spot::named(format!("--cluster {cluster}")));
                resolve(&reference, parse::names(&config.clusters), "cluster", &sink);
                config.clusters.get(cluster)
            }
            None if config.clusters.len() == 1 => config.clusters.values().next(),
            None => {
                let all: Vec<String> =
                    config.clusters.keys().map(|name| format!("--cluster {name}")).collect();
                let (message, help) = match all.is_empty() {
                    true => ("it has no cluster", "add a table [clusters.main]".to_owned()),
                    false => ("it has several clusters", format!("add {}", all.join(" or "))),
                };
                sink.error(&spot, message, help);
                None
            }
        };
        found.map(|cluster| cluster.options.clone()).ok_or_else(|| sink.into_report(Source::default()))
    }
}

impl Command {
    fn volume(&self) -> &str {
        match self {
            Self::Create { volume, .. }
            | Self::Info { volume, .. }
            | Self::Resize { volume, .. }
            | Self::Remove { volume, .. } => volume,
        }
    }

    fn carry_out(&self, cluster: &Arc<Cluster>, volume: &VolumeSpec) -> Result<String, OpenError> {
        let name = volume_spec(volume);
        Ok(match self {
            Self::Create { size, object_size, data_pool, .. } => {
                let options =
                    CreateOptions { size: *size, object_size: *object_size, data_pool: data_pool.clone() };
                let made = Volumes::create(cluster, volume, &options)?;
                let objects = Size(made.object_size.into());
                format!("created {name}: {} in objects of {objects}\n", Size(made.size))
            }
            Self::Info { json, .. } => {
                let info = Volumes::info(cluster, volume)?;
                if *json { as_json(volume, &info) } else { for_people(volume, &info) }
            }
            Self::Resize { size, shrink, force, .. } => {
                let now = Volumes::resize(cluster, volume, *size, *shrink, *force)?;
                format!("{name} has {} now\n", Size(now.size))
            }
            Self::Remove { force, .. } => {
                Volumes::remove(cluster, volume, *force)?;
                format!("removed {name}\n")
            }
        })
    }
}

fn for_people(volume: &VolumeSpec, info: &VolumeInfo) -> String {
    let VolumeInfo { id, size, object_size, data_pool, generation, owner } = info;
    let mut out = format!("{}\n", volume_spec(volume));
    let mut line = |what: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "  {what:<12} {value}");
    };
    line("size", &format_args!("{} ({size} bytes)", Size(*size)));
    line("object size", &Size(u64::from(*object_size)));
    line("data pool", data_pool);
    line("id", id);
    line("generation", generation);
    line("open by", &owner.as_deref().unwrap_or("nobody"));
    out
}

fn as_json(volume: &VolumeSpec, info: &VolumeInfo) -> String {
    let VolumeInfo { id, size, object_size, data_pool, generation, owner } = info;
    let value = json!({
        "pool": volume.pool,
        "namespace": volume.namespace,
        "name": volume.name,
        "id": id,
        "size": size,
        "object_size": object_size,
        "data_pool": data_pool,
        "generation": generation,
        "owner": owner,
    });
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{self, Cli};

    fn parsed(arguments: &[&str]) -> Result<Volume, clap::Error> {
        let cli = Cli::try_parse_from(["quarry", "volume"].iter().chain(arguments))?;
        let cli::Command::Volume(volume) = cli.command else { panic!() };
        Ok(volume)
    }

    /// What is said before any cluster is asked.
    fn mistake(arguments: &[&str]) -> String {
        parsed(arguments).expect("parses").run().expect_err("a mistake").to_string()
    }

    #[test]
    fn arguments_are_read() {
        let create =
            parsed(&["create", "fast/t/vm-1", "--size", "10G", "--object-size", "1M", "--user", "u"]);
        let create = create.expect("good");
        let sink = Sink::default();
        assert_eq!(volume_spec(&create.volume(&Spot::default(), &sink).expect("a volume")), "fast/t/vm-1");
        let Command::Create { size, object_size, data_pool, .. } = &create.command else { panic!() };
        assert_eq!((*size, *object_size, data_pool), (10 << 30, 1 << 20, &None));
        let options = create.cluster.options(&sink).expect("options");
        assert_eq!(options, ClusterOptions { user: "u".to_owned(), ..ClusterOptions::default() });

        let info = parsed(&["--conf", "/c", "info", "a/b", "--option", "ms_type=x", "--timeout", "5"]);
        let options = info.expect("good").cluster.options(&sink).expect("options");
        assert_eq!((options.conf, options.timeout.as_secs()), ("/c".into(), 5));
        assert_eq!(options.options["ms_type"], "x");
        let remove = parsed(&["rm", "a/b", "--force"]).expect("good");
        assert!(matches!(remove.command, Command::Remove { force: true, .. }));
        let resize = parsed(&["resize", "a/b", "--size", "1G", "--shrink"]).expect("good");
        assert!(matches!(resize.command, Command::Resize { shrink: true, force: false, .. }));
        for bad in [
            &["create", "fast/vm-1"][..],
            &["create", "fast/vm-1", "--size", "1000"],
            &["create", "fast/vm-1", "--size", "0"],
            &["create", "fast/vm-1", "--size", "1G", "--object-size", "3M"],
            &["create", "fast/vm-1", "--size", "1G", "--object-size", "64M"],
            &["info", "fast/vm-1", "--cluster", "main"],
            &["info", "fast/vm-1", "--config", "x.toml", "--user", "u"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mistakes_have_remedies() {
        assert_eq!(
            mistake(&["info", "vm-1"]),
            "error: volume vm-1: this is not the name of a volume\n  \
             = help: write POOL/NAME or POOL/NAMESPACE/NAME\n\n"
        );
        assert!(mistake(&["info", "a/b@c"]).contains("write POOL/NAME"));
        assert!(mistake(&["info", "a/"]).contains("the volume's name is empty"));
        assert!(mistake(&["info", "a/b", "--user", "client.x"]).contains("write user = \"x\""));
        assert!(mistake(&["info", "a/b", "--option", "keyring=/x"]).contains("`keyring` sets it"));
        assert!(mistake(&["info", "a/b", "--option", "ms_type"]).contains("write KEY=VALUE"));
        assert!(mistake(&["info", "a/b", "--config", "/nowhere.toml"]).contains("that this user can read"));
        let create = ["create", "a/b", "--size", "1G", "--data-pool", "c/d"];
        assert!(mistake(&create).contains("--data-pool c/d: `c/d` is not the name of one pool"));
    }

    #[test]
    fn clusters_come_from_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("quarry.toml");
        let path = file.to_str().expect("UTF-8");
        let rest = "[controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = []\n";
        let write = |clusters: &str| std::fs::write(&file, format!("{clusters}{rest}")).expect("written");
        let options = |more: &[&str]| {
            let info = parsed(&[&["info", "a/b", "--config", path], more].concat()).expect("parses");
            info.cluster.options(&Sink::default()).map_err(|report| report.to_string())
        };
        write("[clusters.main]\nkeyring = \"key\"\n");
        assert_eq!(options(&[]).expect("the only one").keyring, Some(directory.path().join("key")));
        let misspelt = options(&["--cluster", "mian"]).expect_err("not there");
        assert!(misspelt.contains("did you mean `main`?"), "{misspelt}");
        write("[clusters.main]\n[clusters.other]\nuser = \"o\"\n");
        let several = options(&[]).expect_err("which?");
        assert!(several.contains("add --cluster main or --cluster other"), "{several}");
        assert_eq!(options(&["--cluster", "other"]).expect("named").user, "o");
        write("");
        assert!(options(&[]).expect_err("none").contains("add a table [clusters.main]"));
        write("[clusters.main]\nuser = \"client.x\"\n");
        let mistake = options(&[]).expect_err("a mistake");
        assert!(mistake.contains("quarry.toml:2:8"), "{mistake}");
    }

    #[test]
    fn volumes_are_shown() {
        let volume = VolumeSpec { pool: "fast".into(), namespace: String::new(), name: "vm-1".into() };
        let mut info = VolumeInfo {
            id: "00112233445566778899aabbccddeeff".to_owned(),
            size: 10 << 30,
            object_size: 4 << 20,
            data_pool: "ec".to_owned(),
            generation: 3,
            owner: None,
        };
        assert_eq!(
            for_people(&volume, &info),
            "fast/vm-1\n  size         10G (10737418240 bytes)\n  object size  4M\n  data pool    ec\n  \
             id           00112233445566778899aabbccddeeff\n  generation   3\n  open by      nobody\n"
        );
        info.owner = Some("10.0.0.1:0/7".to_owned());
        assert!(for_people(&volume, &info).ends_with("open by      10.0.0.1:0/7\n"));
        let value: serde_json::Value = serde_json::from_str(&as_json(&volume, &info)).expect("JSON");
        assert_eq!((&value["size"], &value["owner"]), (&json!(10_737_418_240_u64), &json!("10.0.0.1:0/7")));
        assert_eq!((&value["pool"], &value["namespace"]), (&json!("fast"), &json!("")));
    }
}
