//! [`Image`]: an open image, and what is known about it.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use block::{Error, Info, Listeners, Op};

use crate::abandoned::Abandoned;
use crate::budget::Budget;
use crate::cluster::{Foreign, Pool};
use crate::error::of_io;
use crate::ffi::{Errno, ImageT, Rbd, check};
use crate::patience::let_end;

/// An image. Closed when it is dropped; operations in flight hold it.
pub(crate) struct Image {
    pub(super) rbd: &'static Rbd,
    pub(super) handle: Foreign,
    pub(super) budget: Budget,
    pub(super) abandoned: Abandoned,
    /// Acknowledged writes are in librbd's memory only.
    pub(super) writes_back: bool,
    /// Bytes in an object, in whose pieces large discards are done.
    pub(super) object_size: u64,
    pub(super) io_timeout: Option<Duration>,
    pub(super) identity: String,
    pub(super) listeners: Listeners,
    spec: String,
    info: Info,
    blocks: AtomicU64,
    watch: Mutex<Option<Watch>>,
    fenced: AtomicBool,
    /// Let go of after the image is closed.
    pool: Arc<Pool>,
}

/// The registration for changes of the image, and what its callback gets.
struct Watch {
    id: u64,
    argument: Foreign,
}

/// What librbd hands to [`changed`].
struct Watched(Weak<Image>);

/// What is found out when an image is opened.
pub(super) struct Found {
    pub(super) spec: String,
    pub(super) identity: String,
    pub(super) info: Info,
    pub(super) writes_back: bool,
    pub(super) object_size: u64,
    pub(super) in_flight: u64,
}

impl Image {
    pub(super) fn new(rbd: &'static Rbd, handle: ImageT, pool: Arc<Pool>, found: Found) -> Self {
        Self {
            rbd,
            handle: Foreign(handle),
            budget: Budget::new(found.in_flight),
            abandoned: Abandoned::default(),
            writes_back: found.writes_back,
            object_size: found.object_size,
            io_timeout: pool.cluster().options().io_timeout,
            identity: found.identity,
            listeners: Listeners::default(),
            spec: found.spec,
            blocks: AtomicU64::new(found.info.blocks),
            info: found.info,
            watch: Mutex::default(),
            fenced: AtomicBool::new(false),
            pool,
        }
    }

    pub(super) fn info(&self) -> Info {
        let mut info = self.info.clone();
        info.blocks = self.blocks.load(Ordering::Acquire);
        info
    }

    pub(super) fn has_lock(&self) -> bool {
        let mut owner = 0;
        // SAFETY: the image is open; the answer is written.
        let asked = check(unsafe { (self.rbd.rbd_is_exclusive_lock_owner)(self.handle.0, &mut owner) });
        asked.is_ok() && owner != 0
    }

    /// What `errno` of an operation means for who submitted it. Tells, once, that there will be no more I/O.
    pub(super) fn explain(&self, op: Op, errno: Errno) -> Error {
        if errno == Errno::BLOCKLISTED && !self.fenced.swap(true, Ordering::Relaxed) {
            tracing::error!(
                image = self.spec,
                "fenced: another client has taken the image over, or an operator has blocklisted this one; from now on its I/O \
                 fails. When nobody else has it, start Quarry anew"
            );
        }
        of_io(&self.spec, op, errno)
    }

    /// Has changes of the image's size told from now on.
    pub(super) fn watch(self: &Arc<Self>) -> Result<(), Errno> {
        let argument = Box::into_raw(Box::new(Watched(Arc::downgrade(self))));
        let mut id = 0;
        // SAFETY: the image is open. The argument lives until the registration is undone, in `drop`.
        let watched =
            check(unsafe { (self.rbd.rbd_update_watch)(self.handle.0, &mut id, changed, argument.cast()) });
        match watched {
            Ok(_) => {
                let watch = Watch { id, argument: Foreign(argument.cast()) };
                *self.watch.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(watch);
                Ok(())
            }
            Err(errno) => {
                // SAFETY: from `into_raw` above; nobody has it.
                drop(unsafe { Box::from_raw(argument) });
                Err(errno)
            }
        }
    }

    /// Asks for the size. Blocks.
    pub(super) fn look_again(&self) {
        let mut size = 0;
        // SAFETY: the image is open; the size is written.
        if let Err(errno) = check(unsafe { (self.rbd.rbd_get_size)(self.handle.0, &mut size) }) {
            return tracing::warn!(image = self.spec, %errno, "the image has changed, but its size cannot be told");
        }
        let blocks = size / u64::from(self.info.block_size);
        if self.blocks.swap(blocks, Ordering::AcqRel) != blocks {
            tracing::info!(image = self.spec, bytes = size, "resized");
            self.listeners.call();
        }
    }
}

/// `rbd_update_callback_t`: on a thread of librbd's, which must not wait for librbd.
extern "C" fn changed(argument: *mut c_void) {
    // SAFETY: made in `watch`, and not freed before the registration has ended.
    let watched = unsafe { &*argument.cast::<Watched>() };
    let Some(image) = watched.0.upgrade() else { return };
    let later = Arc::downgrade(&image);
    image.pool.cluster().keeper().run(move || {
        if let Some(image) = later.upgrade() {
            image.look_again();
            drop_elsewhere(image);
        }
        None
    });
    drop_elsewhere(image);
}

/// The last handle would close the image on this thread, which is librbd's, or has other work.
fn drop_elsewhere(image: Arc<Image>) {
    if let Some(image) = Arc::into_inner(image) {
        let _ = std::thread::Builder::new().name("ceph-close".to_owned()).spawn(move || drop(image));
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let rbd = self.rbd;
        let handle = std::mem::replace(&mut self.handle, Foreign(null_mut()));
        let watch = self.watch.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let pool = self.pool.clone();
        let timeout = pool.cluster().options().timeout;
        let_end(&format!("closing {}", self.spec), timeout, move || {
            let (handle, watch) = (handle, watch);
            if let Some(Watch { id, argument }) = watch {
                // SAFETY: the image is open, the registration its own. Afterwards no callback runs.
                unsafe { (rbd.rbd_update_unwatch)(handle.0, id) };
                // SAFETY: from `into_raw` in `watch`.
                drop(unsafe { Box::from_raw(argument.0.cast::<Watched>()) });
            }
            // SAFETY: the image is open and nothing uses it any more: operations in flight hold the `Image`.
            if let Err(errno) = check(unsafe { (rbd.rbd_close)(handle.0) }) {
                tracing::warn!(%errno, "an image was not closed well");
            }
            drop(pool);
        });
    }
}
