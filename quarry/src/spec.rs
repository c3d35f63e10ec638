//! `--disk SPEC`: one disk on a command line, as `KIND:WHAT[,OPTION[=VALUE]]…`.
//!
//! `file:PATH,size=10G`, `rbd:POOL/IMAGE`, `rados:POOL/VOLUME`, `mem:1G`, `null:1T`. A comma in a path is written twice, as QEMU has it.

use std::path::Path;

use crate::config::defaults;
use crate::config::diagnostic::{At, Sink, Spot};
use block_memory::HugePages;

use crate::config::model::{
    ClusterConfig, DeviceKind, Direct, FileDevice, Place, Plain, RadosDevice, RbdDevice,
};
use crate::config::parse::absolute;
use crate::config::parse_ceph::{self, Named};
use crate::config::reader::expected;
use crate::size;

/// A disk as a command line gives it: the device, and what the namespace over it needs.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// The device.
    pub device: DeviceKind,
    /// The cluster that it is on; the device names none.
    pub cluster: Option<ClusterConfig>,
    /// Refuse writes.
    pub read_only: bool,
    /// The namespace's UUID.
    pub uuid: Option<At<uuid::Uuid>>,
}

const KINDS: [&str; 5] = ["file", "rbd", "rados", "mem", "null"];

/// What holds for every disk of a command line unless its own options say otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    /// Bytes in a block.
    pub block_size: u32,
    /// Refuse writes.
    pub read_only: bool,
}

impl Default for Common {
    fn default() -> Self {
        Self { block_size: defaults::BLOCK_SIZE, read_only: false }
    }
}

/// Parses `text`. Mistakes go to `sink`, every one of them; then there is no result.
pub fn parse(text: &str, common: Common, sink: &Sink) -> Option<DiskSpec> {
    let spot = Spot::named(format!("--disk {text}"));
    let Some((kind, rest)) = text.split_once(':') else {
        let help = match KINDS.contains(&text) {
            true => format!("add what it is made of: {}", example(text)),
            false => "write file:PATH,size=10G or rbd:POOL/IMAGE or mem:1G or null:1T".to_owned(),
        };
        sink.error(&spot, format!("`{text}` is not a disk"), help);
        return None;
    };
    let mut parts = split(rest).into_iter();
    let what = parts.next().unwrap_or_default();
    let options = Options::read(parts, &spot, sink);
    let mut cluster = None;
    let parsed = match kind {
        "rbd" | "rados" => {
            cluster = options.cluster();
            options.on_cluster(kind, &what, common)
        }
        "file" => options.file(&what, common),
        "mem" | "memory" => {
            options.plain(&what, common).map(|plain| DeviceKind::Memory(plain, HugePages::default()))
        }
        "null" => options.plain(&what, common).map(DeviceKind::Null),
        _ => {
            sink.error(&spot, format!("`{kind}` is no kind of disk"), expected(kind, KINDS.into_iter()));
            return None;
        }
    };
    let read_only = options.flag("read_only") || common.read_only;
    let uuid = options.take("uuid").and_then(|text| {
        let uuid = crate::config::parse::parse_uuid(At::new(text, spot.clone()), sink);
        options.good.set(options.good.get() && uuid.is_some());
        uuid
    });
    let good = options.finish();
    Some(DiskSpec { device: parsed?, cluster, read_only, uuid }).filter(|_| good)
}

fn example(kind: &str) -> &'static str {
    match kind {
        "file" => "file:disk.img,size=10G",
        "rbd" => "rbd:POOL/IMAGE",
        "rados" => "rados:POOL/VOLUME",
        "mem" => "mem:1G",
        _ => "null:1T",
    }
}

/// Splits at single commas; a double one is a comma.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.peek() == Some(&',') => {
                chars.next();
                parts.last_mut().expect("never empty").push(',');
            }
            ',' => parts.push(String::new()),
            _ => parts.last_mut().expect("never empty").push(c),
        }
    }
    parts
}

/// The options after the first comma. As with a section of a file, what is asked for is known.
struct Options<'a> {
    spot: &'a Spot,
    sink: &'a Sink,
    given: Vec<(String, Option<String>)>,
    known: std::cell::RefCell<Vec<&'static str>>,
    good: std::cell::Cell<bool>,
}

impl<'a> Options<'a> {
    fn read(parts: impl Iterator<Item = String>, spot: &'a Spot, sink: &'a Sink) -> Self {
        let given = parts
            .map(|part| match part.split_once('=') {
                Some((key, value)) => (key.replace('-', "_"), Some(value.to_owned())),
                None => (part.replace('-', "_"), None),
            })
            .collect();
        Self { spot, sink, given, known: Default::default(), good: true.into() }
    }

    fn error(&self, message: String, help: impl Into<String>) {
        self.good.set(false);
        self.sink.error(self.spot, message, help);
    }

    fn get(&self, key: &'static str) -> Option<&Option<String>> {
        self.known.borrow_mut().push(key);
        self.given.iter().find(|(given, _)| given == key).map(|(_, value)| value)
    }

    fn take(&self, key: &'static str) -> Option<String> {
        match self.get(key)? {
            Some(value) if !value.is_empty() => Some(value.clone()),
            _ => {
                self.error(format!("`{key}` has no value"), format!("write {key}=VALUE, or leave it out"));
                None
            }
        }
    }

    fn flag(&self, key: &'static str) -> bool {
        match self.get(key).map(Option::as_deref) {
            None | Some(Some("off" | "false" | "no")) => false,
            Some(None | Some("on" | "true" | "yes")) => true,
            Some(Some(other)) => {
                self.error(
                    format!("{key}={other} is neither on nor off"),
                    format!("write {key} alone, or leave it out"),
                );
                false
            }
        }
    }

    fn bytes(&self, text: &str) -> Option<At<u64>> {
        match size::parse(text) {
            Ok(bytes) => Some(At::new(bytes, self.spot.clone())),
            Err(error) => {
                self.error(error.to_string(), "for example: size=10G, mem:1G");
                None
            }
        }
    }

    fn block_size(&self, common: Common) -> At<u32> {
        let given = self.take("block_size").and_then(|text| self.bytes(&text));
        let bytes = given.map_or(common.block_size, |given| {
            crate::config::parse::checked_block_size(given.value).unwrap_or_else(|| {
                self.error(format!("guests cannot have blocks of {} bytes", given.value), "use 512 or 4096");
                common.block_size
            })
        });
        At::new(bytes, self.spot.clone())
    }

    fn plain(&self, what: &str, common: Common) -> Option<Plain> {
        let block_size = self.block_size(common);
        Some(Plain { size: self.bytes(what)?, block_size })
    }

    fn file(&self, path: &str, common: Common) -> Option<DeviceKind> {
        let size = self.take("size").and_then(|text| self.bytes(&text));
        let block_size = self.block_size(common);
        let direct = match self.take("direct").as_deref() {
            None | Some("auto") => Direct::Auto,
            Some("on") => Direct::On,
            Some("off") => Direct::Off,
            Some(other) => {
                self.error(
                    format!("direct={other} is not known"),
                    expected(other, ["auto", "on", "off"].into_iter()),
                );
                Direct::Auto
            }
        };
        if path.is_empty() {
            self.error("the path is empty".to_owned(), "name a file: file:disk.img,size=10G");
            return None;
        }
        let path = At::new(absolute(Path::new(""), path), self.spot.clone());
        let read_only = self.flag("read_only") || common.read_only;
        Some(DeviceKind::File(FileDevice { path, size, block_size, direct, read_only }))
    }

    /// A text of its own place, if there is one.
    fn text(&self, key: &'static str) -> Option<At<String>> {
        Some(At::new(self.take(key)?, self.spot.clone()))
    }

    fn judge(&self, good: bool) -> bool {
        self.good.set(self.good.get() && good);
        good
    }

    fn seconds(&self, key: &'static str) -> Option<std::time::Duration> {
        let text = self.take(key)?;
        let seconds = text.parse().ok().filter(|seconds| (1..=parse_ceph::MAX_TIMEOUT).contains(seconds));
        if seconds.is_none() {
            let help = format!("write whole seconds, from 1 to {}", parse_ceph::MAX_TIMEOUT);
            self.error(format!("{key}={text} is no time"), help);
        }
        seconds.map(std::time::Duration::from_secs)
    }

    fn cluster(&self) -> Option<ClusterConfig> {
        let mut options = block_ceph::ClusterOptions::default();
        let path = |key| self.take(key).map(|path| absolute(Path::new(""), &path));
        if let Some(conf) = path("conf") {
            options.conf = conf;
        }
        options.keyring = path("keyring");
        if let Some(user) = self.text("user")
            && self.judge(parse_ceph::check_user(&user, self.sink))
        {
            options.user = user.value;
        }
        if let Some(timeout) = self.seconds("timeout") {
            options.timeout = timeout;
        }
        options.io_timeout = self.seconds("io_timeout");
        Some(ClusterConfig { spot: self.spot.clone(), spots: Default::default(), options })
    }

    fn on_cluster(&self, kind: &str, what: &str, common: Common) -> Option<DeviceKind> {
        let at = |text: &str| At::new(text.to_owned(), self.spot.clone());
        let is_rbd = kind == "rbd";
        let block_size = self.block_size(common);
        let read_only = self.flag("read_only") || common.read_only;
        let written = self.text("namespace");
        let in_flight = self.take("in_flight").and_then(|text| self.bytes(&text));
        let in_flight = in_flight.filter(|size| self.judge(parse_ceph::check_in_flight(size, self.sink)));
        let lock = match is_rbd.then(|| self.take("lock")).flatten().as_deref() {
            None | Some("on_demand") => block_ceph::Lock::OnDemand,
            Some("keep") => block_ceph::Lock::Keep,
            Some(other) => {
                self.error(
                    format!("lock={other} is not known"),
                    expected(other, ["on_demand", "keep"].into_iter()),
                );
                return None;
            }
        };
        let Some(named) = Named::read(what) else {
            self.error(format!("`{what}` names no pool, or too much"), format!("write {}", example(kind)));
            return None;
        };
        if !is_rbd && named.snapshot.is_some() {
            self.error("a volume has no snapshots".to_owned(), format!("write {}", example(kind)));
            return None;
        }
        let namespace = match (named.namespace, written) {
            (Some(_), Some(_)) => {
                self.error("two namespaces".to_owned(), "keep one of them");
                return None;
            }
            (Some(namespace), None) => Some(at(namespace)),
            (None, written) => written,
        };
        let (pool, name, snapshot) = (at(named.pool), at(named.name), named.snapshot.map(at));
        let name_key = if is_rbd { "image" } else { "volume" };
        let mut names = vec![("pool", &pool), (name_key, &name)];
        names.extend(namespace.as_ref().map(|namespace| ("namespace", namespace)));
        names.extend(snapshot.as_ref().map(|snapshot| ("snapshot", snapshot)));
        for (key, name) in names {
            self.judge(parse_ceph::check_name(key, name, self.sink));
        }
        let in_flight = in_flight.map_or(parse_ceph::IN_FLIGHT, |size| size.value);
        let place = Place { cluster: None, pool, namespace, read_only, block_size, in_flight };
        if !is_rbd {
            return Some(DeviceKind::Rados(Box::new(RadosDevice { place, volume: name })));
        }
        let rbd = RbdDevice { place, image: name, snapshot, lock };
        if lock == block_ceph::Lock::Keep && rbd.is_read_only() {
            self.error(
                "a disk that is only read takes no lock that it could keep".to_owned(),
                "remove `lock`",
            );
        }
        Some(DeviceKind::Rbd(Box::new(rbd)))
    }

    /// Complains of what nobody asked for; tells whether all was well.
    fn finish(self) -> bool {
        let known = self.known.borrow();
        for (index, (key, _)) in self.given.iter().enumerate() {
            if key.is_empty() {
                self.error(
                    "an empty option".to_owned(),
                    "remove a comma, or write `,,` for a comma in a path",
                );
            } else if !known.contains(&key.as_str()) {
                self.error(format!("unknown option `{key}`"), expected(key, known.iter().copied()));
            } else if self.given[..index].iter().any(|(earlier, _)| earlier == key) {
                self.error(format!("`{key}` is given twice"), "keep one of them");
            }
        }
        self.good.get()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Source;

    fn good(text: &str) -> DiskSpec {
        let sink = Sink::default();
        let spec = parse(text, Common::default(), &sink);
        let report = sink.into_report(Source::default());
        assert_eq!(report.diagnostics, [], "{text}");
        spec.unwrap_or_else(|| panic!("{text}"))
    }

    fn mistakes(text: &str) -> Vec<(String, String)> {
        let sink = Sink::default();
        assert!(parse(text, Common::default(), &sink).is_none(), "{text}");
        let report = sink.into_report(Source::default());
        report.diagnostics.into_iter().map(|d| (d.message, d.help)).collect()
    }

    #[test]
    fn reads_disks() {
        let DeviceKind::Memory(plain, _) = good("mem:1G").device else { panic!() };
        assert_eq!((plain.size.value, plain.block_size.value), (1 << 30, 512));
        let DeviceKind::Null(plain) = good("null:1T,block-size=4K").device else { panic!() };
        assert_eq!((plain.size.value, plain.block_size.value), (1 << 40, 4096));

        let spec = good("file:/a,,b.img,size=10G,direct=off,read_only");
        let DeviceKind::File(file) = spec.device else { panic!() };
        assert_eq!(file.path.value, PathBuf::from("/a,b.img"));
        assert_eq!(file.size.map(|size| size.value), Some(10 << 30));
        assert_eq!(file.direct, Direct::Off);
        assert!(spec.read_only && file.read_only);
        assert_eq!(good("file:/a=b").device.type_name(), "file");
    }

    #[test]
    fn reads_disks_on_clusters() {
        let spec = good("rbd:rbd/vm-1");
        let DeviceKind::Rbd(rbd) = spec.device else { panic!() };
        assert_eq!(rbd.options(), block_ceph::RbdOptions::new("rbd", "vm-1"));
        assert_eq!(spec.cluster.expect("a cluster").options, block_ceph::ClusterOptions::default());

        let spec =
            good("rbd:ssd/tenant/vm-1@daily,conf=/c,user=u,keyring=/k,timeout=5,io-timeout=60,in-flight=2M");
        let DeviceKind::Rbd(rbd) = spec.device else { panic!() };
        let options = rbd.options();
        assert_eq!(options.spec(), "ssd/tenant/vm-1@daily");
        assert!(options.read_only && options.in_flight == 2 << 20);
        let options = spec.cluster.expect("a cluster").options;
        assert_eq!((options.conf, options.keyring), ("/c".into(), Some("/k".into())));
        assert_eq!((options.user.as_str(), options.timeout.as_secs()), ("u", 5));
        assert_eq!(options.io_timeout.map(|time| time.as_secs()), Some(60));

        let DeviceKind::Rados(rados) = good("rados:fast/vm-1,namespace=tenant,read_only").device else {
            panic!()
        };
        let options = rados.options();
        assert_eq!(crate::config::model::volume_spec(&options.volume), "fast/tenant/vm-1");
        assert!(options.read_only);
        let DeviceKind::Rbd(rbd) = good("rbd:rbd/a,lock=keep,block_size=4096").device else { panic!() };
        assert_eq!((rbd.lock, rbd.place.block_size.value), (block_ceph::Lock::Keep, 4096));
    }

    #[test]
    fn says_what_is_wrong() {
        let one = |text: &str| {
            let mut all = mistakes(text);
            assert_eq!(all.len(), 1, "{text}: {all:?}");
            all.remove(0)
        };
        assert_eq!(one("disk.img").1, "write file:PATH,size=10G or rbd:POOL/IMAGE or mem:1G or null:1T");
        assert_eq!(one("mem").1, "add what it is made of: mem:1G");
        assert_eq!(one("fiel:x").1, "did you mean `file`?");
        assert_eq!(one("file:x,sise=1G").1, "did you mean `size`?");
        assert_eq!(one("file:x,size").0, "`size` has no value");
        assert_eq!(one("file:").0, "the path is empty");
        assert_eq!(one("file:x,size=1G,size=2G").0, "`size` is given twice");
        assert_eq!(one("file:x,").0, "an empty option");
        assert_eq!(one("file:x,direct=maybe").1, "use one of `auto`, `on`, `off`");
        assert_eq!(one("mem:1G,block_size=1K").1, "use 512 or 4096");
        assert_eq!(one("mem:1G,direct=on").0, "unknown option `direct`");
        assert_eq!(one("mem:1G,uuid=x").0, "`x` is not a UUID");
        assert_eq!(one("rbd:vm-1").1, "write rbd:POOL/IMAGE");
        assert_eq!(one("rados:a/b/c/d").1, "write rados:POOL/VOLUME");
        assert_eq!(one("rados:a/b@c").0, "a volume has no snapshots");
        assert_eq!(one("rbd:rbd/").0, "the image's name is empty");
        assert_eq!(one("rbd:rbd/a@").0, "the snapshot's name is empty");
        assert_eq!(one("rbd:rbd/a@b@c").0, "`b@c` is not the name of one snapshot");
        assert_eq!(one("rbd:rbd/n/a,namespace=m").0, "two namespaces");
        assert_eq!(one("rbd:rbd/a,user=client.x").1, "write user = \"x\"");
        assert_eq!(one("rbd:rbd/a,timeout=0").0, "timeout=0 is no time");
        assert_eq!(one("rbd:rbd/a,lock=keep,read_only").1, "remove `lock`");
        assert_eq!(one("rbd:rbd/a,in_flight=1K").1, "write \"1M\" or more; remove it for \"64M\"");
        assert_eq!(one("rados:rbd/a,lock=keep").0, "unknown option `lock`");
        assert_eq!(mistakes("file:x,size=1Q,direct=x,foo").len(), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(file|mem|null|rbd|rados|x)?:?.{0,40}") {
            let _ = parse(&text, Common::default(), &Sink::default());
        }
    }
}
