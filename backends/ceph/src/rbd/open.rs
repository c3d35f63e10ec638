//! Opening an image, and telling why that fails.

use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::time::Duration;

use block::{Abilities, Info};

use super::image::{Found, Image};
use super::{Lock, RbdOptions};
use crate::cluster::{Cluster, Pool, denied, unanswered};
use crate::error::{OpenError, OpenErrorKind as Kind};
use crate::ffi::{
    self, ConfigOption, Errno, FEATURE_EXCLUSIVE_LOCK, ImageSpec, ImageT, LOCK_EXCLUSIVE, Rbd, SnapInfo,
    check, first_name, text,
};
use crate::patience::in_time;

/// How long a client that died is missed by the image's watch (osd_client_watch_timeout), with what breaking its lock takes.
const WATCH: Duration = Duration::from_secs(45);

/// Opens the image, or says within the time for it why not.
pub(super) fn open(cluster: &Arc<Cluster>, options: &RbdOptions) -> Result<Arc<Image>, OpenError> {
    let rbd = ffi::rbd()?;
    // A lock that is to be kept may be that of a client that died.
    let patience = if options.lock == Lock::Keep { WATCH } else { Duration::ZERO };
    let time = cluster.options().timeout + patience;
    let work = (cluster.clone(), options.clone());
    let opened = in_time(time, work, move |(cluster, options)| open_now(rbd, cluster, options));
    opened.map_or_else(|| Err(too_slow(cluster, options, time.as_secs())), |(_, opened)| opened)
}

fn too_slow(cluster: &Cluster, options: &RbdOptions, seconds: u64) -> OpenError {
    OpenError::new(
        Kind::Timeout,
        format!("the cluster answers, but has not opened {} for {seconds} s", options.spec()),
        unanswered(cluster, &options.pool),
    )
}

fn open_now(
    rbd: &'static Rbd,
    cluster: &Arc<Cluster>,
    options: &RbdOptions,
) -> Result<Arc<Image>, OpenError> {
    let pool = Arc::new(Pool::open(cluster, &options.pool, &options.namespace)?);
    namespace(rbd, &pool, options)?;
    let handle = match open_raw(rbd, &pool, options) {
        Ok(handle) => handle,
        Err(errno) => return Err(explain(rbd, &pool, options, errno)),
    };
    let found = match look(rbd, handle, cluster, options) {
        Ok(found) => found,
        Err(error) => {
            // SAFETY: just opened; nothing uses it.
            unsafe { (rbd.rbd_close)(handle) };
            return Err(error);
        }
    };
    // Closes it from here on.
    let image = Arc::new(Image::new(rbd, handle, pool.clone(), found));
    if options.lock == Lock::Keep && is_writable(options) {
        // SAFETY: open.
        check(unsafe { (rbd.rbd_lock_acquire)(handle, LOCK_EXCLUSIVE) })
            .map_err(|errno| locked(options, errno))?;
    }
    image.watch().map_err(|errno| match errno {
        Errno(libc::EPERM | libc::EACCES) => {
            denied(cluster, &options.pool, &format!("the image `{}`", options.image))
        }
        _ => OpenError::new(
            Kind::Other,
            format!("changes of {} cannot be watched: {errno}", options.spec()),
            "look at `ceph -s`",
        ),
    })?;
    // It may have changed before it was watched.
    image.look_again();
    Ok(image)
}

fn is_writable(options: &RbdOptions) -> bool {
    !options.read_only && options.snapshot.is_none()
}

fn open_raw(rbd: &Rbd, pool: &Pool, options: &RbdOptions) -> Result<ImageT, Errno> {
    let mut handle = null_mut();
    let name = text(&options.image);
    let snapshot = options.snapshot.as_deref().map(text);
    let snapshot = snapshot.as_ref().map_or(null(), |name| name.as_ptr());
    // The last client of an image that was written to must not be one that only reads: it could not replay a journal.
    let open = if is_writable(options) { rbd.rbd_open } else { rbd.rbd_open_read_only };
    // SAFETY: the pool is open and the texts live until the call ends, which writes the handle.
    check(unsafe { open(pool.handle(), name.as_ptr(), &mut handle, snapshot) }).map(|_| handle)
}

fn namespace(rbd: &Rbd, pool: &Pool, options: &RbdOptions) -> Result<(), OpenError> {
    if options.namespace.is_empty() {
        return Ok(());
    }
    // Namespaces are listed outside of them.
    let outside = Pool::open(pool.cluster(), pool.name(), "")?;
    let (name, mut exists) = (text(&options.namespace), true);
    // SAFETY: the pool is open; the answer is written.
    let asked = check(unsafe { (rbd.rbd_namespace_exists)(outside.handle(), name.as_ptr(), &mut exists) });
    // Who may not ask may still use it.
    if asked.is_ok() && !exists {
        return Err(OpenError::new(
            Kind::Namespace,
            format!("the pool `{}` has no namespace `{}`", options.pool, options.namespace),
            format!("create it: rbd namespace create {}/{}", options.pool, options.namespace),
        ));
    }
    Ok(())
}

/// What the image is.
fn look(rbd: &Rbd, handle: ImageT, cluster: &Cluster, options: &RbdOptions) -> Result<Found, OpenError> {
    let spec = options.spec();
    let failed = |what: &'static str| {
        let spec = spec.clone();
        move |errno| {
            OpenError::new(
                Kind::Other,
                format!("{spec}: its {what} cannot be told: {errno}"),
                "look at `rbd info` and `ceph -s`",
            )
        }
    };
    let (mut size, mut object_size, mut features) = (0, 0, 0);
    // SAFETY: of this and the next: the image is open; what is asked for is written.
    check(unsafe { (rbd.rbd_get_size)(handle, &mut size) }).map_err(failed("size"))?;
    // SAFETY: as above.
    check(unsafe { (rbd.rbd_get_stripe_unit)(handle, &mut object_size) }).map_err(failed("layout"))?;
    // SAFETY: as above.
    check(unsafe { (rbd.rbd_get_features)(handle, &mut features) }).map_err(failed("features"))?;
    let mut id = [0u8; 256];
    // SAFETY: as above; the buffer has the length that is told.
    check(unsafe { (rbd.rbd_get_id)(handle, id.as_mut_ptr().cast(), id.len()) }).map_err(failed("id"))?;
    if size < u64::from(options.block_size) {
        return Err(OpenError::new(
            Kind::Image,
            format!("{spec} has {size} bytes, less than a block"),
            format!("give it a size: rbd resize --size 10G {spec}"),
        ));
    }
    if options.lock == Lock::Keep && features & FEATURE_EXCLUSIVE_LOCK == 0 {
        return Err(OpenError::new(
            Kind::Image,
            format!("{spec} has no exclusive lock to keep"),
            format!("turn it on: rbd feature enable {spec} exclusive-lock; or remove `lock`"),
        ));
    }
    let config = Config::of(rbd, handle).map_err(failed("settings"))?;
    let writable = is_writable(options);
    let writes_back =
        writable && (config.is_on("rbd_cache") || config.is_other("rbd_persistent_cache_mode", "disabled"));
    let granularity = config.number("rbd_discard_granularity_bytes").unwrap_or(64 << 10).max(1);
    let mut info = Info::new(options.block_size, size / u64::from(options.block_size));
    info.preferred_granularity = (4096 / options.block_size).max(1);
    info.discard_granularity = u32::try_from(granularity / u64::from(options.block_size)).unwrap_or(1).max(1);
    if writable {
        info.abilities = Abilities::WRITE | Abilities::WRITE_ZEROES | Abilities::DISCARD;
        info.abilities.set(Abilities::VOLATILE_CACHE, writes_back);
        // librbd of Ceph 16 compares within one sector of 512 bytes. It looks for a mismatch from its place on for as many bytes
        // as were compared, and aborts the process where these are in two stripe units (`ObjectRequest.cc`, of 18.2 too).
        if options.block_size == 512 && object_size >= 1024 {
            info.abilities |= Abilities::COMPARE_AND_WRITE;
            info.compare_and_write_blocks = 1;
        }
    }
    // A name can be given to another image.
    let snapshot = options.snapshot.as_ref().map_or_else(String::new, |snapshot| format!("@{snapshot}"));
    let identity = format!("{}/{}{snapshot}", cluster.fsid(), first_name(&id));
    Ok(Found {
        spec,
        identity,
        info,
        writes_back,
        object_size: object_size.max(4096),
        in_flight: options.in_flight,
    })
}

/// An image's settings, which may be its own, its pool's, or the client's.
struct Config(Vec<(String, String)>);

impl Config {
    fn of(rbd: &Rbd, handle: ImageT) -> Result<Self, Errno> {
        let mut count = 1024;
        let mut options =
            vec![ConfigOption { name: null_mut(), value: null_mut(), source: 0 }; count as usize];
        // SAFETY: the image is open; there is room for as many options as is told.
        check(unsafe { (rbd.rbd_config_image_list)(handle, options.as_mut_ptr(), &mut count) })?;
        // SAFETY: the texts of a listed option are C strings until they are freed below.
        let owned = |text: *mut _| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        let found = options.iter().take(usize::try_from(count).unwrap_or(0));
        let found = found.filter(|option| !option.name.is_null() && !option.value.is_null());
        let all = found.map(|option| (owned(option.name), owned(option.value))).collect();
        // SAFETY: as listed, once.
        unsafe { (rbd.rbd_config_image_list_cleanup)(options.as_mut_ptr(), count) };
        Ok(Self(all))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// As Ceph reads it: `true` however it is spelt, or a number that is not 0. What cannot be read is on.
    fn is_on(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !value.eq_ignore_ascii_case("false") && value.trim().parse::<i64>() != Ok(0))
    }

    fn is_other(&self, name: &str, value: &str) -> bool {
        self.get(name).is_some_and(|found| found != value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

fn explain(rbd: &Rbd, pool: &Pool, options: &RbdOptions, errno: Errno) -> OpenError {
    let spec = options.spec();
    match errno {
        Errno(libc::ENOENT) if options.snapshot.is_some() => {
            let without = RbdOptions { snapshot: None, read_only: true, ..options.clone() };
            match open_raw(rbd, pool, &without) {
                Ok(handle) => {
                    let known = snapshots(rbd, handle);
                    // SAFETY: just opened; nothing uses it.
                    unsafe { (rbd.rbd_close)(handle) };
                    let snapshot = options.snapshot.as_deref().unwrap_or_default();
                    OpenError::new(
                        Kind::Snapshot,
                        format!("the image {} has no snapshot `{snapshot}`", without.spec()),
                        format!("take it: rbd snap create {spec}"),
                    )
                    .not_among(snapshot, known)
                }
                Err(errno) => explain(rbd, pool, &without, errno),
            }
        }
        Errno(libc::ENOENT) => OpenError::new(
            Kind::Image,
            format!("there is no image {spec}"),
            format!("create it: rbd create --size 10G {spec}"),
        )
        .not_among(&options.image, images(rbd, pool)),
        Errno(libc::EPERM | libc::EACCES) => {
            denied(pool.cluster(), &options.pool, &format!("the image `{}`", options.image))
        }
        Errno(libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOEXEC) => OpenError::new(
            Kind::Image,
            format!("{spec} has features that this librbd does not know"),
            format!("update librbd1, or disable them: rbd info {spec}; rbd feature disable"),
        ),
        Errno::BLOCKLISTED => OpenError::new(
            Kind::Access,
            "the cluster has blocklisted this machine's address",
            "look: ceph osd blocklist ls; and remove it if it is no longer needed: ceph osd blocklist rm ADDRESS",
        ),
        Errno(libc::ETIMEDOUT) => {
            too_slow(pool.cluster(), options, pool.cluster().options().timeout.as_secs())
        }
        _ => OpenError::new(
            Kind::Other,
            format!("{spec} cannot be opened: {errno}"),
            "look at `rbd info` and `ceph -s`",
        ),
    }
}

fn locked(options: &RbdOptions, errno: Errno) -> OpenError {
    let spec = options.spec();
    match errno {
        Errno(libc::EROFS | libc::EBUSY | libc::EAGAIN) => OpenError::new(
            Kind::InUse,
            format!("another client keeps the exclusive lock of {spec}"),
            format!(
                "end that client: rbd lock ls {spec}; rbd status {spec}; or open it with read_only = true"
            ),
        ),
        _ => OpenError::new(
            Kind::Other,
            format!("the exclusive lock of {spec} cannot be taken: {errno}"),
            "look at `ceph -s`",
        ),
    }
}

/// The names of the pool's images.
fn images(rbd: &Rbd, pool: &Pool) -> Vec<String> {
    let mut count = 4096;
    let mut specs = vec![ImageSpec { id: null_mut(), name: null_mut() }; count];
    // SAFETY: the pool is open; there is room for as many images as is told.
    if check(unsafe { (rbd.rbd_list2)(pool.handle(), specs.as_mut_ptr(), &mut count) }).is_err() {
        return Vec::new();
    }
    let found = specs.iter().take(count).filter(|spec| !spec.name.is_null());
    // SAFETY: the names of listed images are C strings until they are freed below.
    let names =
        found.map(|spec| unsafe { CStr::from_ptr(spec.name) }.to_string_lossy().into_owned()).collect();
    // SAFETY: as listed, once.
    unsafe { (rbd.rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), count) };
    names
}

/// The names of an image's snapshots.
fn snapshots(rbd: &Rbd, handle: ImageT) -> Vec<String> {
    let mut count = 1024;
    let mut list = vec![SnapInfo { id: 0, size: 0, name: null() }; count as usize];
    // SAFETY: the image is open; there is room for as many snapshots as is told.
    let found = unsafe { (rbd.rbd_snap_list)(handle, list.as_mut_ptr(), &mut count) };
    let Ok(found @ 1..) = usize::try_from(found) else { return Vec::new() };
    let listed = list.iter().take(found).filter(|snapshot| !snapshot.name.is_null());
    // SAFETY: the names of listed snapshots are C strings until they are freed below.
    let names = listed
        .map(|snapshot| unsafe { CStr::from_ptr(snapshot.name) }.to_string_lossy().into_owned())
        .collect();
    // SAFETY: as listed, once.
    unsafe { (rbd.rbd_snap_list_end)(list.as_mut_ptr()) };
    names
}
