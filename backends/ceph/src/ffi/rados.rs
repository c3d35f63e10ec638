//! librados.

use std::ffi::{c_char, c_int, c_void};

use libc::{size_t, ssize_t, time_t, timeval};

use super::{Callback, Text, library};

/// `rados_t`: a connection to a cluster.
pub(crate) type RadosT = *mut c_void;
/// `rados_ioctx_t`: a pool of a connection.
pub(crate) type IoCtxT = *mut c_void;
/// `rados_completion_t`.
pub(crate) type RadosCompletion = *mut c_void;
/// `rados_write_op_t`: operations on one object that are carried out as one.
pub(crate) type WriteOpT = *mut c_void;

/// LIBRADOS_LOCK_FLAG_MAY_RENEW.
pub(crate) const LOCK_MAY_RENEW: u8 = 1 << 0;
/// LIBRADOS_LOCK_FLAG_MUST_RENEW.
pub(crate) const LOCK_MUST_RENEW: u8 = 1 << 1;
/// LIBRADOS_CREATE_EXCLUSIVE.
pub(crate) const CREATE_EXCLUSIVE: c_int = 1;
/// LIBRADOS_CMPXATTR_OP_EQ.
pub(crate) const CMPXATTR_EQ: u8 = 1;

library! {
    /// Functions of librados.
    Rados, "librados.so.2", "librados2":
    fn rados_version(*mut c_int, *mut c_int, *mut c_int);
    fn rados_create2(*mut RadosT, Text, Text, u64) -> c_int;
    fn rados_conf_read_file(RadosT, Text) -> c_int;
    fn rados_conf_set(RadosT, Text, Text) -> c_int;
    fn rados_conf_get(RadosT, Text, *mut c_char, size_t) -> c_int;
    fn rados_connect(RadosT) -> c_int;
    fn rados_shutdown(RadosT);
    fn rados_cluster_fsid(RadosT, *mut c_char, size_t) -> c_int;
    fn rados_pool_list(RadosT, *mut c_char, size_t) -> c_int;
    fn rados_wait_for_latest_osdmap(RadosT) -> c_int;
    fn rados_blocklist_add(RadosT, *mut c_char, u32) -> c_int;
    fn rados_ioctx_create(RadosT, Text, *mut IoCtxT) -> c_int;
    fn rados_ioctx_destroy(IoCtxT);
    fn rados_ioctx_set_namespace(IoCtxT, Text);
    fn rados_ioctx_pool_requires_alignment2(IoCtxT, *mut c_int) -> c_int;
    fn rados_read(IoCtxT, Text, *mut c_char, size_t, u64) -> c_int;
    fn rados_getxattr(IoCtxT, Text, Text, *mut c_char, size_t) -> c_int;
    fn rados_lock_exclusive(IoCtxT, Text, Text, Text, Text, *mut timeval, u8) -> c_int;
    fn rados_unlock(IoCtxT, Text, Text, Text) -> c_int;
    fn rados_list_lockers(
        IoCtxT, Text, Text, *mut c_int, *mut c_char, *mut size_t, *mut c_char, *mut size_t, *mut c_char, *mut size_t,
        *mut c_char, *mut size_t,
    ) -> ssize_t;
    fn rados_aio_create_completion2(*mut c_void, Callback, *mut RadosCompletion) -> c_int;
    fn rados_aio_get_return_value(RadosCompletion) -> c_int;
    fn rados_aio_release(RadosCompletion);
    fn rados_aio_read(IoCtxT, Text, RadosCompletion, *mut c_char, size_t, u64) -> c_int;
    fn rados_aio_write(IoCtxT, Text, RadosCompletion, Text, size_t, u64) -> c_int;
    fn rados_aio_write_op_operate(WriteOpT, IoCtxT, RadosCompletion, Text, *mut time_t, c_int) -> c_int;
    fn rados_create_write_op() -> WriteOpT;
    fn rados_release_write_op(WriteOpT);
    fn rados_write_op_operate(WriteOpT, IoCtxT, Text, *mut time_t, c_int) -> c_int;
    fn rados_write_op_create(WriteOpT, c_int, Text);
    fn rados_write_op_assert_exists(WriteOpT);
    fn rados_write_op_cmpxattr(WriteOpT, Text, u8, Text, size_t);
    fn rados_write_op_cmpext(WriteOpT, Text, size_t, u64, *mut c_int);
    fn rados_write_op_setxattr(WriteOpT, Text, Text, size_t);
    fn rados_write_op_write(WriteOpT, Text, size_t, u64);
    fn rados_write_op_write_full(WriteOpT, Text, size_t);
    fn rados_write_op_remove(WriteOpT);
    fn rados_write_op_truncate(WriteOpT, u64);
    fn rados_write_op_zero(WriteOpT, u64, u64);
}
