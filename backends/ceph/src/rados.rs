//! [`RadosDevice`]: a [`Volume`] as a block device, through librados: plainly striped over objects, for where nothing but
//! speed and simplicity is wanted.

mod channel;
mod disk;
mod header;
mod objects;
mod ours;
mod owner;
mod volume;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use block::{Abilities, Channel, Device, Error, Info, Listener, Reactor};

use crate::cluster::{Cluster, Pool, denied, unanswered};
use crate::error::{OpenError, OpenErrorKind as Kind};
use crate::ffi::Errno;
use crate::patience::in_time;
use channel::RadosChannel;
use disk::Disk;
use header::{Header, ReadError};
use owner::{Owner, PATIENCE, Purpose};

pub use volume::{CreateOptions, Volume, VolumeInfo};

/// Names a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// The pool of its header, and of its data unless it has another for that.
    pub pool: String,
    /// The namespace in the pools; none if empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for VolumeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{}{namespace}{}/{}", self.pool, self.namespace, self.name)
    }
}

/// Which volume, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RadosOptions {
    /// The volume.
    pub volume: VolumeSpec,
    /// Open it for reading only.
    pub read_only: bool,
    /// Bytes in a block: 512 or 4096.
    pub block_size: u32,
    /// Bytes of data that may be on the way to the cluster and back.
    pub in_flight: u64,
}

/// An open volume.
pub struct RadosDevice {
    disk: Arc<Disk>,
    identity: String,
}

impl RadosDevice {
    /// Opens the volume. Blocks for as long as the cluster's options allow, and what waiting for the lock of a client that died
    /// takes: for control threads.
    pub fn open(cluster: &Arc<Cluster>, options: &RadosOptions) -> Result<Self, OpenError> {
        let time = cluster.options().timeout + if options.read_only { Default::default() } else { PATIENCE };
        let work = (cluster.clone(), options.clone());
        let opened = in_time(time, work, |(cluster, options)| open(cluster, options));
        opened.map_or_else(|| Err(too_slow(cluster, &options.volume, time)), |(_, opened)| opened)
    }
}

fn open(cluster: &Arc<Cluster>, options: &RadosOptions) -> Result<RadosDevice, OpenError> {
    let spec = &options.volume;
    let pool = Arc::new(Pool::open(cluster, &spec.pool, &spec.namespace)?);
    let (owner, header) = if options.read_only {
        (None, Header::read(&pool, &spec.name).map_err(|error| explain(&pool, spec, error))?)
    } else {
        let (owner, header) = Owner::take(&pool, spec, Purpose::Open)?;
        (Some(owner), header)
    };
    check_there(spec, &header)?;
    if header.size < u64::from(options.block_size) {
        return Err(OpenError::new(
            Kind::Image,
            format!("{spec} has {} bytes, less than a block", header.size),
            format!("give it a size: quarry volume resize {spec} --size 10G"),
        ));
    }
    let data = match header.data_pool_name(&spec.pool) {
        name if name == spec.pool => pool.clone(),
        name => Arc::new(Pool::open(cluster, name, &spec.namespace)?),
    };
    let mut info = Info::new(options.block_size, header.size / u64::from(options.block_size));
    info.preferred_granularity = (4096 / options.block_size).max(1);
    info.discard_granularity = (4096 / options.block_size).max(1);
    if owner.is_some() {
        info.abilities = Abilities::WRITE
            | Abilities::WRITE_ZEROES
            | Abilities::DISCARD
            | Abilities::DISCARD_ZEROES
            | Abilities::COMPARE_AND_WRITE;
        // Longer ranges may be in two objects.
        info.compare_and_write_blocks = 1;
    }
    let identity = format!("rados/{}/{}", cluster.fsid(), header.id_text());
    let names = (spec.name.clone(), spec.to_string());
    let disk = Disk::new((pool, data), names, &header, info, owner, options.in_flight);
    disk.look_after().map_err(|error| {
        OpenError::new(
            Kind::Other,
            format!("no thread for {spec}: {error}"),
            "look at the limits of processes",
        )
    })?;
    Ok(RadosDevice { disk, identity })
}

impl Device for RadosDevice {
    fn info(&self) -> Info {
        self.disk.info()
    }

    fn on_change(&self, listener: Listener) {
        self.disk.listeners.add(listener);
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(RadosChannel::new(self.disk.clone(), reactor.clone())))
    }
}

/// A volume that was removed in part is none.
fn check_there(spec: &VolumeSpec, header: &Header) -> Result<(), OpenError> {
    if header.size > 0 {
        return Ok(());
    }
    Err(OpenError::new(
        Kind::Image,
        format!("{spec} is being removed"),
        format!("if that was interrupted, remove it again: quarry volume remove {spec}"),
    ))
}

fn too_slow(cluster: &Cluster, spec: &VolumeSpec, waited: Duration) -> OpenError {
    let seconds = waited.as_secs();
    OpenError::new(
        Kind::Timeout,
        format!("the cluster answers, but not about {spec} for {seconds} s"),
        unanswered(cluster, &spec.pool),
    )
}

/// Why a volume's header cannot be used.
fn explain(pool: &Pool, spec: &VolumeSpec, error: ReadError) -> OpenError {
    match error {
        ReadError::Errno(Errno(libc::ENOENT)) => OpenError::new(
            Kind::Image,
            format!("there is no volume {spec}"),
            format!("create it: quarry volume create {spec} --size 10G"),
        ),
        ReadError::Errno(Errno(libc::ENODATA)) | ReadError::Malformed(_) => {
            let why = match error {
                ReadError::Malformed(why) => why,
                ReadError::Errno(_) => "it is damaged",
            };
            OpenError::new(
                Kind::Image,
                format!("the header of {spec} cannot be read: {why}"),
                format!(
                    "look at the object {} of the pool `{}`: rados get",
                    header::object(&spec.name),
                    spec.pool
                ),
            )
        }
        ReadError::Errno(Errno(libc::EPERM | libc::EACCES)) => {
            denied(pool.cluster(), &spec.pool, &format!("the volume `{}`", spec.name))
        }
        ReadError::Errno(Errno(libc::ETIMEDOUT)) => {
            let options = pool.cluster().options();
            too_slow(pool.cluster(), spec, options.io_timeout.unwrap_or(options.timeout))
        }
        ReadError::Errno(Errno(libc::EBUSY)) => OpenError::new(
            Kind::InUse,
            format!("another client has taken the volume {spec} over"),
            "look who: quarry volume info",
        ),
        ReadError::Errno(Errno(libc::ECANCELED)) => OpenError::new(
            Kind::InUse,
            format!("another client has changed the volume {spec} at the same time"),
            "try again",
        ),
        ReadError::Errno(Errno::BLOCKLISTED) => OpenError::new(
            Kind::Access,
            "the cluster has blocklisted this client",
            "look: ceph osd blocklist ls; another client may have taken the volume over",
        ),
        ReadError::Errno(errno) => {
            OpenError::new(Kind::Other, format!("the volume {spec}: {errno}"), "look at `ceph -s`")
        }
    }
}
