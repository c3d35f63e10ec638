//! [`Volume`]: volumes as an operator handles them.

use std::sync::Arc;

use block::Reactor;

use super::disk::{Layout, remove_objects};
use super::header::{Header, LARGEST, OBJECT_SIZES, ReadError};
use super::owner::{Owner, PATIENCE, Purpose, holder};
use super::{VolumeSpec, check_there, explain};
use crate::cluster::{Cluster, Pool, denied};
use crate::error::{OpenError, OpenErrorKind as Kind};
use crate::ffi::{Errno, check};
use crate::patience::in_time;

/// How to make a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes: a multiple of 4096.
    pub size: u64,
    /// Bytes in an object: a power of two, 64 KiB to 32 MiB.
    pub object_size: u32,
    /// Another pool for its data, an erasure-coded one for example.
    pub data_pool: Option<String>,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its identity, which no other volume ever has: 32 hexadecimal digits.
    pub id: String,
    /// Bytes; none if it is being removed.
    pub size: u64,
    /// Bytes in an object.
    pub object_size: u32,
    /// The pool of its data.
    pub data_pool: String,
    /// How often its header was changed.
    pub generation: u64,
    /// The client that has it open for writing, by its address, if one has.
    pub owner: Option<String>,
}

/// Makes, shows, resizes and removes volumes. All but the removal end within the time of the cluster's options, and what
/// waiting for an owner takes.
pub struct Volume;

impl Volume {
    /// Makes a volume.
    pub fn create(
        cluster: &Arc<Cluster>,
        spec: &VolumeSpec,
        options: &CreateOptions,
    ) -> Result<VolumeInfo, OpenError> {
        check_size(options.size)?;
        if !options.object_size.is_power_of_two() || !OBJECT_SIZES.contains(&options.object_size) {
            let message = format!("objects cannot have {} bytes", options.object_size);
            return Err(OpenError::new(
                Kind::Image,
                message,
                "use a power of two from 64K to 32M; 4M is usual",
            ));
        }
        let work = options.clone();
        timed(cluster, spec, move |cluster, spec| {
            let pool = Pool::open(cluster, &spec.pool, &spec.namespace)?;
            let data_pool = work.data_pool.filter(|name| *name != spec.pool).unwrap_or_default();
            let header = Header {
                id: random_id()?,
                size: work.size,
                reach: work.size,
                object_size: work.object_size,
                data_pool,
                generation: 0,
                owner: String::new(),
            };
            let data = Pool::open(cluster, header.data_pool_name(&spec.pool), &spec.namespace)?;
            check_pool(&data)?;
            match header.create(&pool, &spec.name) {
                Ok(()) => Ok(info(&pool, spec, &header)),
                Err(Errno(libc::EEXIST)) => Err(OpenError::new(
                    Kind::Image,
                    format!("there is a volume {spec} already"),
                    "choose another name, or remove that one: quarry volume remove",
                )),
                Err(errno) => Err(explain(&pool, spec, ReadError::Errno(errno))),
            }
        })
    }

    /// Looks at a volume.
    pub fn info(cluster: &Arc<Cluster>, spec: &VolumeSpec) -> Result<VolumeInfo, OpenError> {
        timed(cluster, spec, |cluster, spec| {
            let pool = Pool::open(cluster, &spec.pool, &spec.namespace)?;
            let header = Header::read(&pool, &spec.name).map_err(|error| explain(&pool, spec, error))?;
            Pool::open(cluster, header.data_pool_name(&spec.pool), &spec.namespace)?;
            Ok(info(&pool, spec, &header))
        })
    }

    /// Changes a volume's size. It may be made larger while it is served: the guest sees it. What is cut off is lost, so
    /// `shrink` has to be said, and nobody may have it open, or have had it and not given it back unless `force` says that
    /// this one is dead, or may be locked out.
    pub fn resize(
        cluster: &Arc<Cluster>,
        spec: &VolumeSpec,
        size: u64,
        shrink: bool,
        force: bool,
    ) -> Result<VolumeInfo, OpenError> {
        check_size(size)?;
        timed(cluster, spec, move |cluster, spec| {
            let pool = Arc::new(Pool::open(cluster, &spec.pool, &spec.namespace)?);
            loop {
                let mut header =
                    Header::read(&pool, &spec.name).map_err(|error| explain(&pool, spec, error))?;
                check_there(spec, &header)?;
                if size < header.size && !shrink {
                    return Err(OpenError::new(
                        Kind::Image,
                        format!("{spec} has {} bytes: what is beyond {size} would be lost", header.size),
                        "say so: --shrink",
                    ));
                }
                if size < header.size || header.reach > header.size {
                    return cut(cluster, &pool, spec, size, force).map_err(|mut error| {
                        if error.kind == Kind::InUse && size >= header.size {
                            error.message +=
                                ", and what an interrupted shrink has left beyond its end must go before it grows";
                        }
                        error
                    });
                }
                match header.update(&pool, &spec.name, |header| (header.size, header.reach) = (size, size)) {
                    Ok(()) => return Ok(info(&pool, spec, &header)),
                    Err(Errno(libc::ECANCELED)) => {}
                    Err(errno) => return Err(explain(&pool, spec, ReadError::Errno(errno))),
                }
            }
        })
    }

    /// Removes a volume that nobody has open, or had open and did not give back unless `force` says that this one is dead, or
    /// may be locked out. Takes as long as removing its objects takes; if it is interrupted, remove it again.
    pub fn remove(cluster: &Arc<Cluster>, spec: &VolumeSpec, force: bool) -> Result<(), OpenError> {
        let taken = timed(cluster, spec, move |cluster, spec| {
            let pool = Arc::new(Pool::open(cluster, &spec.pool, &spec.namespace)?);
            let (owner, mut header) = Owner::take(&pool, spec, Purpose::Remove { force })?;
            let data = Pool::open(cluster, header.data_pool_name(&spec.pool), &spec.namespace)?;
            // From now on nobody opens it, whatever comes between.
            owner
                .change(&mut header, |header| header.size = 0)
                .map_err(|errno| explain(&pool, spec, ReadError::Errno(errno)))?;
            Ok((pool, owner, header, data))
        });
        let (pool, owner, header, data) = taken?;
        let layout = Layout::of(&header);
        let objects = 0..layout.objects(header.reach);
        remove_objects(&Arc::new(data), &layout, objects, &reactor()?, &|| owner.renew())
            .and_then(|()| owner.remove_header())
            .map_err(|errno| explain(&pool, spec, ReadError::Errno(errno)))
    }
}

/// Gives a volume that nobody has a size, and removes what is beyond it.
fn cut(
    cluster: &Arc<Cluster>,
    pool: &Arc<Pool>,
    spec: &VolumeSpec,
    size: u64,
    force: bool,
) -> Result<VolumeInfo, OpenError> {
    let (owner, mut header) = Owner::take(pool, spec, Purpose::Resize { force })?;
    let failed = |errno| explain(pool, spec, ReadError::Errno(errno));
    let data = Pool::open(cluster, header.data_pool_name(&spec.pool), &spec.namespace)?;
    // First what the volume is, so that it never has blocks that are gone; `reach` tells whoever comes after an interruption.
    owner.change(&mut header, |header| header.size = size.min(header.size)).map_err(failed)?;
    let (layout, end) = (Layout::of(&header), header.size);
    let kept = layout.objects(end);
    if !end.is_multiple_of(layout.object_size()) {
        let last = layout.name(kept - 1);
        let truncated = data.operate(&last, |op| {
            op.assert_exists();
            op.truncate(end % layout.object_size());
        });
        match truncated {
            Ok(()) | Err(Errno(libc::ENOENT)) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    let objects = kept..layout.objects(header.reach);
    remove_objects(&Arc::new(data), &layout, objects, &reactor()?, &|| owner.renew()).map_err(failed)?;
    owner.change(&mut header, |header| (header.size, header.reach) = (size, size)).map_err(failed)?;
    owner.give_back().map_err(failed)?;
    Ok(VolumeInfo { generation: header.generation + 1, ..info(pool, spec, &header) })
}

fn reactor() -> Result<Reactor, OpenError> {
    Reactor::new(8).map_err(|error| {
        OpenError::new(Kind::Other, format!("no io_uring: {error}"), "look at the kernel's limits")
    })
}

fn timed<R: Send + 'static>(
    cluster: &Arc<Cluster>,
    spec: &VolumeSpec,
    work: impl FnOnce(&Arc<Cluster>, &VolumeSpec) -> Result<R, OpenError> + Send + 'static,
) -> Result<R, OpenError> {
    let time = cluster.options().timeout + PATIENCE;
    let done = in_time(time, (cluster.clone(), spec.clone()), move |(cluster, spec)| work(cluster, spec));
    done.map_or_else(|| Err(super::too_slow(cluster, spec, time)), |(_, done)| done)
}

fn check_size(size: u64) -> Result<(), OpenError> {
    if size == 0 || size > LARGEST || !size.is_multiple_of(4096) {
        let message = format!("a volume cannot have {size} bytes");
        return Err(OpenError::new(Kind::Image, message, "use a multiple of 4096, for example 10G"));
    }
    Ok(())
}

/// Whether objects of the pool can be overwritten.
fn check_pool(pool: &Pool) -> Result<(), OpenError> {
    let mut appends_only = 0;
    // SAFETY: the pool is open; the answer is written.
    let asked = check(unsafe {
        (pool.rados().rados_ioctx_pool_requires_alignment2)(pool.handle(), &mut appends_only)
    });
    match asked {
        Ok(_) if appends_only == 0 => Ok(()),
        Ok(_) => Err(OpenError::new(
            Kind::Pool,
            format!("objects of the erasure-coded pool `{}` cannot be overwritten", pool.name()),
            format!("allow it: ceph osd pool set {} allow_ec_overwrites true", pool.name()),
        )),
        Err(Errno(libc::EPERM | libc::EACCES)) => Err(denied(pool.cluster(), pool.name(), "objects")),
        Err(errno) => Err(OpenError::new(
            Kind::Other,
            format!("the pool `{}`: {errno}", pool.name()),
            "look at `ceph -s`",
        )),
    }
}

fn random_id() -> Result<[u8; 16], OpenError> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
        OpenError::new(Kind::Other, format!("no random number: {error}"), "look at the system's log")
    })?;
    Ok(id)
}

fn info(pool: &Pool, spec: &VolumeSpec, header: &Header) -> VolumeInfo {
    VolumeInfo {
        id: header.id_text(),
        size: header.size,
        object_size: header.object_size,
        data_pool: header.data_pool_name(&spec.pool).to_owned(),
        generation: header.generation,
        owner: holder(pool, &spec.name).map(|holder| holder.address),
    }
}
