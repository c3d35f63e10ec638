//! [`Cluster`]: a connection to a cluster, which many images and volumes share ([`Connections`]).

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::error::{OpenError, OpenErrorKind as Kind};
use crate::ffi::{self, Errno, IoCtxT, Rados, RadosT, check, first_name, text};
use crate::keeper::Keeper;
use crate::patience::{Open, in_time, let_end};

/// How to reach a cluster, and as whom. Devices whose clusters have equal options share connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterOptions {
    /// Ceph's configuration file, with the addresses of the monitors.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
    /// The file with the user's key; what `ceph.conf` says if missing.
    pub keyring: Option<PathBuf>,
    /// Options of Ceph's own, which override those of the file.
    pub options: BTreeMap<String, String>,
    /// How long connecting, opening and closing may take.
    pub timeout: Duration,
    /// After this an I/O that the cluster does not answer fails; never if missing.
    pub io_timeout: Option<Duration>,
    /// Devices that share one connection.
    pub images_per_connection: usize,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            conf: "/etc/ceph/ceph.conf".into(),
            user: "admin".to_owned(),
            keyring: None,
            options: BTreeMap::new(),
            timeout: Duration::from_secs(30),
            io_timeout: None,
            images_per_connection: 32,
        }
    }
}

/// Options that are Quarry's to decide, with the reason: the configuration refuses them.
pub const RESERVED_OPTIONS: &[(&str, &str)] = &[
    ("objecter_inflight_ops", "a limit there would block the threads of other disks"),
    ("objecter_inflight_op_bytes", "a limit there would block the threads of other disks"),
    ("client_mount_timeout", "`timeout` sets it"),
    ("rados_mon_op_timeout", "`timeout` sets it"),
    ("rados_osd_op_timeout", "`io_timeout` sets it"),
    ("keyring", "`keyring` sets it"),
];

/// A connection.
pub struct Cluster {
    rados: &'static Rados,
    handle: RadosT,
    options: ClusterOptions,
    fsid: String,
    keeper: Keeper,
    /// Until it is shut down.
    open: Option<Open>,
}

// SAFETY: a `rados_t` may be used by any thread at any time once it is connected (librados.h).
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// Connects. Blocks for as long as the options allow: for control threads.
    pub fn connect(options: &ClusterOptions) -> Result<Arc<Self>, OpenError> {
        let rados = ffi::rados()?;
        if let Err(error) = std::fs::File::open(&options.conf) {
            let message = format!("{} cannot be read: {error}", options.conf.display());
            let remedy = "name the cluster's configuration file: conf = \"/etc/ceph/ceph.conf\"";
            return Err(OpenError::new(Kind::Configuration, message, remedy).of_setting("conf"));
        }
        if let Some(keyring) = &options.keyring
            && let Err(error) = std::fs::File::open(keyring)
        {
            let message = format!("the keyring {} cannot be read: {error}", keyring.display());
            let remedy = format!(
                "write it: ceph auth get client.{0} -o {1}, readable for this user",
                options.user,
                keyring.display()
            );
            return Err(OpenError::new(Kind::Configuration, message, remedy).of_setting("keyring"));
        }
        let made = Self::configure(rados, options)?;
        let timeout = options.timeout;
        let (made, result) = in_time(timeout + SLACK, made, |made| {
            // SAFETY: configured, and not yet connected.
            check(unsafe { (made.rados.rados_connect)(made.handle) })
        })
        .ok_or_else(|| {
            OpenError::new(Kind::Network, "the monitors do not answer", "look whether they run")
        })?;
        if let Err(errno) = result {
            return Err(made.explain_connect(errno));
        }
        let mut connected = made;
        let mut fsid = [0; 64];
        // SAFETY: connected; the buffer has the length that is told.
        check(unsafe { (rados.rados_cluster_fsid)(connected.handle, fsid.as_mut_ptr().cast(), fsid.len()) })
            .map_err(|errno| {
                OpenError::new(
                    Kind::Other,
                    format!("the cluster does not tell its fsid: {errno}"),
                    "look into its log",
                )
            })?;
        connected.fsid = first_name(&fsid);
        tracing::debug!(
            fsid = connected.fsid,
            user = options.user,
            version = version(rados),
            "connected to Ceph"
        );
        Ok(Arc::new(connected))
    }

    fn configure(rados: &'static Rados, options: &ClusterOptions) -> Result<Self, OpenError> {
        let mut handle = null_mut();
        let (cluster, user) = (text("ceph"), text(&format!("client.{}", options.user)));
        // SAFETY: the texts live until the call ends, the handle is written by it.
        check(unsafe { (rados.rados_create2)(&mut handle, cluster.as_ptr(), user.as_ptr(), 0) }).map_err(
            |errno| {
                OpenError::new(
                    Kind::Configuration,
                    format!("client.{}: {errno}", options.user),
                    "name a user as `ceph auth ls` does, without `client.`",
                )
                .of_setting("user")
            },
        )?;
        let made = Self {
            rados,
            handle,
            options: options.clone(),
            fsid: String::new(),
            keeper: Keeper::default(),
            open: Some(Open::begin()),
        };
        let conf = text(&options.conf.to_string_lossy());
        // SAFETY: as above.
        check(unsafe { (rados.rados_conf_read_file)(handle, conf.as_ptr()) }).map_err(|errno| {
            OpenError::new(
                Kind::Configuration,
                format!("{} is no configuration of Ceph: {errno}", options.conf.display()),
                "correct it; `ceph-conf --lookup mon_host -c FILE` tells whether Ceph can read it",
            )
            .of_setting("conf")
        })?;
        let seconds = |time: Duration| time.as_secs_f64().to_string();
        // What the server says itself, in place of Ceph's own words among them.
        made.set("log_to_stderr", "false")?;
        made.set("err_to_stderr", "false")?;
        made.set("rbd_cache", "false")?;
        // Without a change of threads on the way out: calls do not wait (no limit in the objecter, below).
        made.set("rbd_non_blocking_aio", "false")?;
        // On few CPUs more threads only take them from each other. What somebody has chosen stays.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        for (threads, usual, few) in
            [("ms_async_op_threads", "3", cpus.div_ceil(4)), ("librados_thread_count", "2", cpus.div_ceil(8))]
        {
            if made.option(threads).is_some_and(|chosen| chosen == usual) && few < 2 {
                made.set(threads, "1")?;
            }
        }
        // What comes in one segment is read at once: answers to small reads with their headers.
        if made.option("ms_tcp_prefetch_max_size").is_some_and(|chosen| chosen == "4096") {
            made.set("ms_tcp_prefetch_max_size", "16384")?;
        }
        for (option, value) in &options.options {
            made.set(option, value)?;
        }
        if let Some(keyring) = &options.keyring {
            made.set("keyring", &keyring.to_string_lossy())?;
        }
        made.set("objecter_inflight_ops", "0")?;
        made.set("objecter_inflight_op_bytes", "0")?;
        made.set("client_mount_timeout", &seconds(options.timeout))?;
        made.set("rados_mon_op_timeout", &seconds(options.timeout))?;
        // Ceph would forget an operation that the cluster may still carry out, at any time. `io_timeout` is Quarry's own.
        made.set("rados_osd_op_timeout", "0")?;
        Ok(made)
    }

    fn set(&self, option: &str, value: &str) -> Result<(), OpenError> {
        let (name, text_of) = (text(option), text(value));
        // SAFETY: the handle is there, the texts live until the call ends.
        let result =
            check(unsafe { (self.rados.rados_conf_set)(self.handle, name.as_ptr(), text_of.as_ptr()) });
        result.map(drop).map_err(|errno| {
            let (message, remedy) = match errno {
                Errno(libc::ENOENT) => (
                    format!("this Ceph has no option `{option}`"),
                    "correct its name, or remove it; `ceph config ls` lists all options".to_owned(),
                ),
                _ => (
                    format!("the option `{option}` cannot be {value:?}: {errno}"),
                    format!("correct it; `ceph config help {option}` tells what it takes"),
                ),
            };
            OpenError::new(Kind::Configuration, message, remedy).of_setting(format!("options.{option}"))
        })
    }

    /// The value of one of Ceph's options.
    pub(crate) fn option(&self, option: &str) -> Option<String> {
        let name = text(option);
        let mut value = vec![0u8; 4096];
        // SAFETY: the handle is there; the buffer has the length that is told.
        let result = unsafe {
            (self.rados.rados_conf_get)(self.handle, name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        check(result).is_ok().then(|| first_name(&value))
    }

    /// The cluster's identity.
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// How it was reached.
    pub fn options(&self) -> &ClusterOptions {
        &self.options
    }

    /// The user, as Ceph names it.
    pub(crate) fn user(&self) -> String {
        format!("client.{}", self.options.user)
    }

    /// For what may wait.
    pub(crate) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    pub(crate) fn handle(&self) -> RadosT {
        self.handle
    }

    /// Every pool's name.
    pub(crate) fn pools(&self) -> Vec<String> {
        let mut buffer = vec![0u8; 64 << 10];
        // SAFETY: connected; the buffer has the length that is told.
        let length =
            unsafe { (self.rados.rados_pool_list)(self.handle, buffer.as_mut_ptr().cast(), buffer.len()) };
        match check(length) {
            Ok(length) if length as usize <= buffer.len() => ffi::names(&buffer),
            _ => Vec::new(),
        }
    }

    fn explain_connect(&self, errno: Errno) -> OpenError {
        let user = self.user();
        let keyring = self.option("keyring").unwrap_or_default();
        // The first that can be read is used.
        let paths = keyring.split([',', ' ', ';']).filter(|path| !path.is_empty());
        let readable = paths.filter_map(|path| Some((path, std::fs::read_to_string(path).ok()?))).next();
        let set = |option| self.option(option).is_some_and(|value| !value.is_empty());
        let elsewhere = set("key") || set("keyfile");
        let section = format!("[{user}]");
        let no_key_in = readable.as_ref().filter(|(_, text)| text.lines().all(|line| line.trim() != section));
        match errno {
            Errno(libc::ETIMEDOUT) => self.explain_network(),
            Errno(libc::ENOENT) if self.option("mon_host").is_none_or(|hosts| hosts.is_empty()) => {
                OpenError::new(
                    Kind::Configuration,
                    format!("{} names no monitor", self.options.conf.display()),
                    "add `mon_host = ADDRESS`; `ceph config generate-minimal-conf` prints such a file",
                )
                .of_setting("conf")
            }
            // Ceph 16 and 18 both say EACCES for a key that is not in the keyring, not the cluster's, or of a user without any
            // capabilities or unknown to it; ENOENT without a keyring.
            Errno(libc::ENOENT | libc::EACCES | libc::EPERM) if readable.is_none() && !elsewhere => {
                OpenError::new(
                    Kind::Authentication,
                    format!("there is no key of {user}: none of these can be read: {keyring}"),
                    format!(
                        "name one: keyring = \"FILE\"; `ceph auth get {user}` prints what belongs into it"
                    ),
                )
            }
            Errno(libc::ENOENT | libc::EACCES | libc::EPERM)
                if let Some((path, _)) = no_key_in.filter(|_| !elsewhere) =>
            {
                OpenError::new(
                    Kind::Authentication,
                    format!("there is no key of {user} in {path}"),
                    format!(
                        "name the user whose key it has, or another keyring; `ceph auth get {user}` prints its own"
                    ),
                )
            }
            Errno(libc::EACCES | libc::EPERM) => OpenError::new(
                Kind::Authentication,
                format!(
                    "the cluster refuses {user}: it does not know the user, or not with this key, or the user has no capabilities"
                ),
                format!("compare the keyring with `ceph auth get {user}`, or name another user"),
            ),
            Errno(libc::EIO) => OpenError::new(
                Kind::Authentication,
                format!("the keyring is damaged: {keyring}"),
                format!("write it anew: ceph auth get {user} -o FILE"),
            )
            .of_setting("keyring"),
            Errno(libc::EINVAL) => OpenError::new(
                Kind::Configuration,
                format!(
                    "the monitors in {} have no addresses: {}",
                    self.options.conf.display(),
                    self.option("mon_host").unwrap_or_default()
                ),
                "correct mon_host, or look whether this machine can resolve the names in it",
            )
            .of_setting("conf"),
            Errno(libc::EOPNOTSUPP) => OpenError::new(
                Kind::Authentication,
                "the cluster and this client have no way to authenticate in common",
                "compare auth_client_required in ceph.conf with the cluster's",
            ),
            _ => OpenError::new(
                Kind::Other,
                format!("cannot connect as {user}: {errno}"),
                "look into the monitors' logs",
            ),
        }
    }

    fn explain_network(&self) -> OpenError {
        let hosts = self.option("mon_host").unwrap_or_default();
        let seconds = self.options.timeout.as_secs();
        let tried = addresses(&hosts).into_iter().map(|address| {
            match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
                Ok(_) => format!("{address} accepts connections, but no quorum or no cluster answers"),
                Err(error) => format!("{address}: {error}"),
            }
        });
        let tried: Vec<String> = tried.collect();
        let tried = if tried.is_empty() { hosts } else { tried.join("; ") };
        OpenError::new(
            Kind::Network,
            format!("no monitor has answered for {seconds} s ({tried})"),
            "look whether the monitors run and have a quorum (ceph -s), and whether mon_host and firewalls let this machine reach them",
        )
    }
}

/// What connecting may take beyond the time that Ceph itself was given.
const SLACK: Duration = Duration::from_secs(5);

/// Addresses with ports in a `mon_host`, as far as they are plain numbers.
fn addresses(hosts: &str) -> Vec<SocketAddr> {
    let cleaned = hosts.replace("v1:", " ").replace("v2:", " ");
    let pieces = cleaned.split([',', ' ']);
    let plain = pieces.map(|piece| piece.trim_start_matches("[ ").trim_end_matches(']'));
    plain.filter_map(|piece| piece.split('/').next()?.parse().ok()).take(4).collect()
}

fn version(rados: &Rados) -> String {
    let (mut major, mut minor, mut extra) = (0, 0, 0);
    // SAFETY: the three numbers are written.
    unsafe { (rados.rados_version)(&mut major, &mut minor, &mut extra) };
    format!("{major}.{minor}.{extra}")
}

struct Handle(RadosT);

// SAFETY: see `Cluster`.
unsafe impl Send for Handle {}

impl Drop for Cluster {
    fn drop(&mut self) {
        let (rados, handle, open) = (self.rados, Handle(self.handle), self.open.take());
        // A cluster that does not answer can make it wait for long.
        let_end("disconnecting from Ceph", self.options.timeout, move || {
            let handle = handle;
            // SAFETY: nothing uses the handle any more: pools and images hold the `Cluster`.
            unsafe { (rados.rados_shutdown)(handle.0) };
            open.into_iter().for_each(Open::end);
        });
    }
}

/// A pool of a cluster, with a namespace.
pub struct Pool {
    cluster: Arc<Cluster>,
    name: String,
    handle: IoCtxT,
}

// SAFETY: I/O of a `rados_ioctx_t` may come from any thread; the namespace, which may not be set meanwhile (librados.h), is set
// only where it is made.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Opens the pool `name`.
    pub fn open(cluster: &Arc<Cluster>, name: &str, namespace: &str) -> Result<Self, OpenError> {
        let mut handle = null_mut();
        let name_text = text(name);
        // SAFETY: connected; the handle is written by the call.
        let result = check(unsafe {
            (cluster.rados.rados_ioctx_create)(cluster.handle, name_text.as_ptr(), &mut handle)
        });
        match result {
            Ok(_) => {}
            Err(Errno(libc::ENOENT)) => {
                return Err(OpenError::new(
                    Kind::Pool,
                    format!("the cluster has no pool `{name}`"),
                    format!("create it: ceph osd pool create {name} && rbd pool init {name}"),
                )
                .not_among(name, cluster.pools()));
            }
            Err(Errno(libc::EPERM | libc::EACCES)) => return Err(denied(cluster, name, "")),
            Err(errno) => {
                return Err(OpenError::new(
                    Kind::Other,
                    format!("the pool `{name}`: {errno}"),
                    "look at `ceph -s`",
                ));
            }
        }
        let namespace = text(namespace);
        // SAFETY: the handle is there and nothing uses it yet.
        unsafe { (cluster.rados.rados_ioctx_set_namespace)(handle, namespace.as_ptr()) };
        Ok(Self { cluster: cluster.clone(), name: name.to_owned(), handle })
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn handle(&self) -> IoCtxT {
        self.handle
    }

    pub(crate) fn rados(&self) -> &'static Rados {
        self.cluster.rados
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more: operations in flight hold the pool.
        unsafe { (self.cluster.rados.rados_ioctx_destroy)(self.handle) };
    }
}

/// The user's capabilities are not enough.
pub(crate) fn denied(cluster: &Cluster, pool: &str, what: &str) -> OpenError {
    let user = cluster.user();
    OpenError::new(
        Kind::Access,
        format!("{user} may not use {what}{}the pool `{pool}`", if what.is_empty() { "" } else { " in " }),
        format!(
            "add mon 'profile rbd' and osd 'profile rbd pool={pool}' to what `ceph auth get {user}` shows; `ceph auth caps` \
             replaces all of it"
        ),
    )
}

/// What to look at when the OSDs of a pool do not answer. Those of Ceph 18 refuse the connection of a user without any
/// capabilities for OSDs, and the library tries again for ever; those of 16 answer EPERM.
pub(crate) fn unanswered(cluster: &Cluster, pool: &str) -> String {
    let user = cluster.user();
    format!(
        "look whether the OSDs of the pool `{pool}` are up: ceph -s; ceph osd df; and whether {user} has capabilities for \
         OSDs, without any it gets no answer: ceph auth get {user}"
    )
}

/// Connections that devices share, by the clusters' options.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<ClusterOptions, Arc<Shared>>>);

/// The connections of one cluster. One that does not answer is waited for by its own devices only.
type Shared = Mutex<Vec<Weak<Cluster>>>;

impl Connections {
    /// A connection with room for one more device. Blocks as [`Cluster::connect`] does when a new one is made.
    pub fn get(&self, options: &ClusterOptions) -> Result<Arc<Cluster>, OpenError> {
        let of_cluster = {
            let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            all.entry(options.clone()).or_default().clone()
        };
        let mut open = of_cluster.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.retain(|cluster| cluster.strong_count() > 0);
        // Each device holds its pool, which holds the connection.
        let with_room = open
            .iter()
            .filter_map(Weak::upgrade)
            .find(|cluster| Arc::strong_count(cluster) <= options.images_per_connection.max(1));
        if let Some(cluster) = with_room {
            return Ok(cluster);
        }
        let cluster = Cluster::connect(options)?;
        open.push(Arc::downgrade(&cluster));
        Ok(cluster)
    }
}

/// A pointer of a library that any thread may use.
#[derive(Clone, Copy)]
pub(crate) struct Foreign(pub(crate) *mut c_void);

// SAFETY: only made of handles whose libraries allow that.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitors_addresses_are_found() {
        let all = |hosts: &str| addresses(hosts).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(all("v2:127.0.0.1:3300/0"), ["127.0.0.1:3300"]);
        assert_eq!(
            all("[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0] 10.0.0.2:6789"),
            ["10.0.0.1:3300", "10.0.0.1:6789", "10.0.0.2:6789"]
        );
        assert!(all("mon1.example.com, 10.0.0.9").is_empty());
    }
}
