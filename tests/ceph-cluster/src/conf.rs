//! What a cluster is made of: the builder, `ceph.conf`, the keyring.
//!
//! The meaning of the options is that of Ceph's own documentation and of `ceph config help`.

use crate::run;
use crate::{Cluster, packages, start};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the OSDs keep their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// In their memory (memstore), 2 GiB at most each. An OSD that is killed and started again begins empty, and its
    /// scrub sees no silent corruption.
    Memory,
    /// In sparse files of 8 GiB each (bluestore), as real clusters do on disks. Needs a filesystem with O_DIRECT.
    Blue,
}

/// How clients and daemons prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Not at all.
    None,
    /// By keys.
    Cephx,
}

/// What a cluster shall be.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(crate) store: Store,
    pub(crate) osds: u32,
    pub(crate) manager: bool,
    pub(crate) auth: Auth,
    pub(crate) address: IpAddr,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) directory: Option<PathBuf>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            store: Store::Blue,
            osds: 3,
            manager: false,
            auth: Auth::Cephx,
            address: Ipv4Addr::LOCALHOST.into(),
            options: Vec::new(),
            directory: None,
        }
    }
}

impl Builder {
    /// Where the OSDs keep their data; [`Store::Blue`] unless told.
    #[must_use]
    pub fn store(mut self, store: Store) -> Self {
        self.store = store;
        self
    }

    /// How many OSDs, three unless told. Fewer than three leave out the pool `ec`. Of several one that is gone is marked
    /// down within a second, one that is halted within ten; the only one is missed after ten.
    #[must_use]
    pub fn osds(mut self, osds: u32) -> Self {
        self.osds = osds;
        self
    }

    /// Whether there is a manager (package `ceph-mgr`). I/O needs none; `ceph -s` and `ceph df` count nothing without.
    #[must_use]
    pub fn manager(mut self, manager: bool) -> Self {
        self.manager = manager;
        self
    }

    /// How clients prove who they are; [`Auth::Cephx`] unless told.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// The address that all daemons listen on, 127.0.0.1 unless told.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// A line of ceph.conf's `[global]`. Takes the place of this crate's own setting, if it has one.
    #[must_use]
    pub fn option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((key.into(), value.into()));
        self
    }

    /// Where everything goes: an empty directory, or one to be made. It stays when the cluster ends. Unless told, it is a
    /// temporary directory that goes with the cluster.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Starts the cluster. Returns when a write to each pool was acknowledged.
    pub fn start(self) -> Result<Cluster> {
        start::start(self, run::Life::Ours)
    }

    /// What can be wrong before anything is started.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.osds > 0, "a cluster needs at least one OSD");
        packages::available().context("Ceph")?;
        if self.manager {
            packages::manager().context("Ceph's manager")?;
        }
        let broken = |text: &String| text.contains(['\n', '\r', '[', ']', '#', ';']);
        for (key, value) in &self.options {
            ensure!(!key.is_empty() && !key.contains('='), "option {key:?}: not a name of an option");
            ensure!(
                !broken(key) && !value.contains(['\n', '\r']),
                "option {key:?}: cannot be written into ceph.conf"
            );
        }
        Ok(())
    }

    /// How many copies the pool `rbd` keeps.
    pub(crate) fn copies(&self) -> u32 {
        self.osds.min(3)
    }

    /// Whether there are OSDs enough for k=2, m=1.
    pub(crate) fn has_ec(&self) -> bool {
        self.osds >= 3
    }

    /// The monitor's address as Ceph writes it.
    pub(crate) fn monitor(&self, port: u16) -> String {
        format!("v2:{}", SocketAddr::new(self.address, port))
    }

    /// `ceph.conf` for a cluster in `directory`.
    pub(crate) fn conf(&self, directory: &Path, fsid: &str, port: u16) -> Result<String> {
        let mut text =
            String::from("# A throwaway cluster of Quarry's tests (crate ceph-cluster).\n[global]\n");
        for (key, value) in self.global(directory, fsid, port)? {
            writeln!(text, "{key} = {value}")?;
        }
        // Daemons run in the directory: an admin socket's path has to be short, and its directory's may be long.
        // Of clients these would be files in whatever directory they run in.
        for (kind, data) in
            [("mon", "mon_data = mon.a"), ("mgr", "mgr_data = mgr.x"), ("osd", "osd_data = osd.$id")]
        {
            writeln!(
                text,
                "[{kind}]\n{data}\nkeyring = keyring\nrun_dir = run\nadmin_socket = run/$name.asok\n\
                 log_file = log/$name.log\ncrash_dir = log",
            )?;
        }
        Ok(text)
    }

    /// The section that holds for all.
    fn global(&self, directory: &Path, fsid: &str, port: u16) -> Result<Vec<(String, String)>> {
        let keyring = directory.join("keyring");
        let keyring = keyring.to_str().context("Ceph needs a directory whose path is UTF-8")?;
        ensure!(!keyring.contains(['\n', ',', ';', '#', '"']), "{keyring:?}: Ceph cannot take such a path");
        let auth = if self.auth == Auth::Cephx { "cephx" } else { "none" };
        let store = if self.store == Store::Memory { "memstore" } else { "bluestore" };
        let (address, copies) = (self.address.to_string(), self.copies().to_string());
        let (monitor, ipv6) = (self.monitor(port), self.address.is_ipv6().to_string());
        let ipv4 = self.address.is_ipv4().to_string();
        let mut lines: Vec<(&str, &str)> = vec![
            ("fsid", fsid),
            ("mon_host", &monitor),
            ("public_addr", &address),
            ("cluster_addr", &address),
            ("ms_bind_msgr1", "false"),
            ("ms_bind_ipv4", &ipv4),
            ("ms_bind_ipv6", &ipv6),
            ("auth_cluster_required", auth),
            ("auth_service_required", auth),
            ("auth_client_required", auth),
            ("auth_allow_insecure_global_id_reclaim", "false"),
            ("keyring", keyring),
            ("osd_objectstore", store),
            ("osd_pool_default_size", &copies),
        ];
        lines.extend(SETTINGS);
        // With one OSD nobody else can tell that it is gone: the monitor misses its beacons.
        if self.osds == 1 {
            lines.extend([
                ("osd_beacon_report_interval", "1"),
                ("mon_osd_report_timeout", "5"),
                ("mon_tick_interval", "1"),
            ]);
        }
        // As Ceph reads them: blanks and dashes are the same as underscores.
        let normal = |key: &str| key.trim().replace([' ', '-'], "_");
        let replaced = |key: &str| self.options.iter().any(|(own, _)| normal(own) == key);
        let ours = lines
            .into_iter()
            .filter(|(key, _)| !replaced(key))
            .map(|(key, value)| (key.into(), value.into()));
        Ok(ours.chain(self.options.iter().cloned()).collect())
    }
}

/// What is the same for all clusters.
const SETTINGS: &[(&str, &str)] = &[
    // Quick decisions: the default gathers proposals for a second each.
    ("paxos_propose_interval", "0.05"),
    ("mon_allow_pool_delete", "true"),
    ("mon_allow_pool_size_one", "true"),
    ("mon_warn_on_pool_no_redundancy", "false"),
    ("mon_data_avail_crit", "1"),
    ("mon_data_avail_warn", "1"),
    // All OSDs are on one host, and no manager changes the number of PGs.
    ("osd_crush_chooseleaf_type", "0"),
    ("osd_crush_update_on_start", "false"),
    ("osd_pool_default_min_size", "1"),
    ("osd_pool_default_pg_autoscale_mode", "off"),
    // memstore has no checksums, of which the monitor makes a condition for overwrites in erasure coded pools.
    ("mon_debug_no_require_bluestore_for_ec_overwrites", "true"),
    // Nobody waits long for an OSD that is gone, and none is put out for having been gone often or for long.
    ("osd_heartbeat_interval", "1"),
    ("osd_heartbeat_grace", "6"),
    ("mon_osd_adjust_heartbeat_grace", "false"),
    ("mon_osd_min_down_reporters", "1"),
    ("mon_osd_reporter_subtree_level", "osd"),
    ("mon_osd_down_out_interval", "1000000"),
    ("osd_max_markdown_count", "1000000"),
    // Recovery at once, and without measuring the disk first, as 18.2's default scheduler does.
    ("osd_op_queue", "wpq"),
    ("osd_recovery_sleep_hdd", "0"),
    ("osd_recovery_sleep_hybrid", "0"),
    ("osd_max_backfills", "8"),
    // Small.
    ("memstore_device_bytes", "2147483648"),
    ("memstore_page_size", "4096"),
    ("bluestore_block_size", "8589934592"),
    ("bluestore_fsck_on_mkfs", "false"),
    ("osd_memory_target", "939524096"),
    ("osd_enable_op_tracker", "false"),
    ("debug_ms", "0/0"),
    ("debug_osd", "0/0"),
    ("debug_mon", "0/0"),
    ("debug_paxos", "0/0"),
    ("debug_bluestore", "0/0"),
    ("debug_bluefs", "0/0"),
    ("debug_rocksdb", "0/0"),
    ("debug_bdev", "0/0"),
    ("debug_objecter", "0/0"),
    ("debug_rados", "0/0"),
    ("debug_rbd", "0/0"),
    ("debug_optracker", "0/0"),
];

/// Writes the keyring: the daemons' keys and client.admin's.
pub(crate) fn write_keyring(path: &Path, builder: &Builder) -> Result<()> {
    let mut text = format!("[mon.]\n\tkey = {}\n\tcaps mon = \"allow *\"\n", key()?);
    let mut entity = |name: &str, mon: &str, osd: &str, mgr: &str| -> Result<()> {
        write!(text, "[{name}]\n\tkey = {}\n\tcaps mon = \"{mon}\"\n\tcaps osd = \"{osd}\"\n", key()?)?;
        Ok(writeln!(text, "\tcaps mgr = \"{mgr}\"")?)
    };
    entity("client.admin", "allow *", "allow *", "allow *")?;
    for id in 0..builder.osds {
        entity(&format!("osd.{id}"), "allow profile osd", "allow *", "allow profile osd")?;
    }
    if builder.manager {
        entity("mgr.x", "allow profile mgr", "allow *", "allow *")?;
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(std::io::Write::write_all(&mut file, text.as_bytes())?)
}

/// A new secret, as Ceph encodes one (`CryptoKey`): type 1 (AES), the time of its making, its length, 16 bytes.
pub(crate) fn key() -> Result<String> {
    let mut secret = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut bytes = Vec::with_capacity(28);
    bytes.extend(1u16.to_le_bytes());
    bytes.extend((now.as_secs() as u32).to_le_bytes());
    bytes.extend(now.subsec_nanos().to_le_bytes());
    bytes.extend((secret.len() as u16).to_le_bytes());
    bytes.extend(secret);
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// A random UUID.
pub(crate) fn uuid() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}
