//! librbd.

use std::ffi::{c_char, c_int, c_void};

use libc::{size_t, ssize_t};

use super::{Callback, IoCtxT, Text, library};

/// `rbd_image_t`: an open image.
pub(crate) type ImageT = *mut c_void;
/// `rbd_completion_t`.
pub(crate) type RbdCompletion = *mut c_void;

/// RBD_WRITE_ZEROES_FLAG_THICK_PROVISION: zeroes that take space.
pub(crate) const THICK_PROVISION: c_int = 1;
/// RBD_LOCK_MODE_EXCLUSIVE.
pub(crate) const LOCK_EXCLUSIVE: c_int = 0;
/// RBD_FEATURE_EXCLUSIVE_LOCK.
pub(crate) const FEATURE_EXCLUSIVE_LOCK: u64 = 1 << 2;

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageSpec {
    pub(crate) id: *mut c_char,
    pub(crate) name: *mut c_char,
}

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapInfo {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) name: Text,
}

/// `rbd_config_option_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConfigOption {
    pub(crate) name: *mut c_char,
    pub(crate) value: *mut c_char,
    /// `rbd_config_source_t`.
    pub(crate) source: c_int,
}

library! {
    /// Functions of librbd.
    Rbd, "librbd.so.1", "librbd1":
    fn rbd_open(IoCtxT, Text, *mut ImageT, Text) -> c_int;
    fn rbd_open_read_only(IoCtxT, Text, *mut ImageT, Text) -> c_int;
    fn rbd_close(ImageT) -> c_int;
    fn rbd_list2(IoCtxT, *mut ImageSpec, *mut size_t) -> c_int;
    fn rbd_image_spec_list_cleanup(*mut ImageSpec, size_t);
    fn rbd_namespace_exists(IoCtxT, Text, *mut bool) -> c_int;
    fn rbd_snap_list(ImageT, *mut SnapInfo, *mut c_int) -> c_int;
    fn rbd_snap_list_end(*mut SnapInfo);
    fn rbd_get_size(ImageT, *mut u64) -> c_int;
    fn rbd_get_features(ImageT, *mut u64) -> c_int;
    fn rbd_get_id(ImageT, *mut c_char, size_t) -> c_int;
    fn rbd_get_stripe_unit(ImageT, *mut u64) -> c_int;
    fn rbd_config_image_list(ImageT, *mut ConfigOption, *mut c_int) -> c_int;
    fn rbd_config_image_list_cleanup(*mut ConfigOption, c_int);
    fn rbd_update_watch(ImageT, *mut u64, extern "C" fn(*mut c_void), *mut c_void) -> c_int;
    fn rbd_update_unwatch(ImageT, u64) -> c_int;
    fn rbd_lock_acquire(ImageT, c_int) -> c_int;
    fn rbd_is_exclusive_lock_owner(ImageT, *mut c_int) -> c_int;
    fn rbd_aio_create_completion(*mut c_void, Callback, *mut RbdCompletion) -> c_int;
    fn rbd_aio_get_return_value(RbdCompletion) -> ssize_t;
    fn rbd_aio_release(RbdCompletion);
    fn rbd_aio_read(ImageT, u64, size_t, *mut c_char, RbdCompletion) -> c_int;
    fn rbd_aio_write(ImageT, u64, size_t, Text, RbdCompletion) -> c_int;
    fn rbd_aio_discard(ImageT, u64, u64, RbdCompletion) -> c_int;
    fn rbd_aio_write_zeroes(ImageT, u64, size_t, RbdCompletion, c_int, c_int) -> c_int;
    fn rbd_aio_compare_and_write(ImageT, u64, size_t, Text, Text, RbdCompletion, *mut u64, c_int) -> ssize_t;
    fn rbd_aio_flush(ImageT, RbdCompletion) -> c_int;
}
