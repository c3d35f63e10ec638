//! Whole small objects and their attributes, synchronously: for headers, and for what other layers keep for themselves. For
//! control threads: all of it waits for the cluster.

use std::ffi::c_int;
use std::io;
use std::ptr::null_mut;

use crate::cluster::Pool;
use crate::ffi::{CMPXATTR_EQ, CREATE_EXCLUSIVE, Errno, Rados, WriteOpT, check, text};

/// Objects of Quarry's own.
impl Pool {
    /// Reads an object of at most `most` bytes; `None` if there is none.
    pub fn read_object(&self, name: &str, most: usize) -> io::Result<Option<Vec<u8>>> {
        match self.read(name, most) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno(libc::ENOENT)) => Ok(None),
            Err(Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Writes an object whole, in place of what it was: wholly or not at all.
    pub fn write_object(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let written = self.operate(name, |op| op.write_full(bytes));
        written.map_err(|Errno(errno)| io::Error::from_raw_os_error(errno))
    }

    /// Removes an object; tells whether there was one.
    pub fn remove_object(&self, name: &str) -> io::Result<bool> {
        match self.operate(name, WriteOp::remove) {
            Ok(()) => Ok(true),
            Err(Errno(libc::ENOENT)) => Ok(false),
            Err(Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    pub(super) fn read(&self, name: &str, most: usize) -> Result<Vec<u8>, Errno> {
        let name = text(name);
        let mut bytes = vec![0u8; most];
        // SAFETY: the pool is open; the buffer has the length that is told.
        let read = unsafe {
            (self.rados().rados_read)(self.handle(), name.as_ptr(), bytes.as_mut_ptr().cast(), bytes.len(), 0)
        };
        bytes.truncate(check(read)? as usize);
        Ok(bytes)
    }

    pub(super) fn attribute(&self, name: &str, attribute: &str) -> Result<String, Errno> {
        let (name, attribute) = (text(name), text(attribute));
        let mut bytes = vec![0u8; 4096];
        // SAFETY: as above.
        let read = unsafe {
            let buffer = bytes.as_mut_ptr().cast();
            (self.rados().rados_getxattr)(
                self.handle(),
                name.as_ptr(),
                attribute.as_ptr(),
                buffer,
                bytes.len(),
            )
        };
        bytes.truncate(check(read)? as usize);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Carries out what `fill` puts together, as one.
    pub(super) fn operate(&self, name: &str, fill: impl FnOnce(&WriteOp)) -> Result<(), Errno> {
        let name = text(name);
        let op = WriteOp::new(self.rados());
        fill(&op);
        // SAFETY: the pool is open, the name and the operation live until the call ends.
        let done = unsafe {
            (self.rados().rados_write_op_operate)(op.handle, self.handle(), name.as_ptr(), null_mut(), 0)
        };
        check(done).map(drop)
    }
}

/// Operations on one object that are carried out as one, or not at all.
pub(super) struct WriteOp {
    rados: &'static Rados,
    handle: WriteOpT,
}

impl WriteOp {
    pub(super) fn new(rados: &'static Rados) -> Self {
        // SAFETY: makes a new one.
        Self { rados, handle: unsafe { (rados.rados_create_write_op)() } }
    }

    pub(super) fn handle(&self) -> WriteOpT {
        self.handle
    }

    /// Makes the object; all of it fails with EEXIST if there is one.
    pub(super) fn create(&self) {
        // SAFETY: of this and all that follow: the operation is there; bytes and texts are copied.
        unsafe {
            (self.rados.rados_write_op_create)(self.handle, CREATE_EXCLUSIVE as c_int, std::ptr::null())
        };
    }

    /// All of it fails with ENOENT if there is no such object.
    pub(super) fn assert_exists(&self) {
        // SAFETY: as above.
        unsafe { (self.rados.rados_write_op_assert_exists)(self.handle) };
    }

    /// All of it fails with ECANCELED unless the attribute has this value.
    pub(super) fn compare_attribute(&self, attribute: &str, value: &str) {
        let attribute = text(attribute);
        // SAFETY: as above.
        unsafe {
            let value_at = value.as_ptr().cast();
            (self.rados.rados_write_op_cmpxattr)(
                self.handle,
                attribute.as_ptr(),
                CMPXATTR_EQ,
                value_at,
                value.len(),
            );
        }
    }

    pub(super) fn set_attribute(&self, attribute: &str, value: &str) {
        let attribute = text(attribute);
        // SAFETY: as above.
        unsafe {
            let value_at = value.as_ptr().cast();
            (self.rados.rados_write_op_setxattr)(self.handle, attribute.as_ptr(), value_at, value.len());
        }
    }

    pub(super) fn write_full(&self, bytes: &[u8]) {
        // SAFETY: as above.
        unsafe { (self.rados.rados_write_op_write_full)(self.handle, bytes.as_ptr().cast(), bytes.len()) };
    }

    pub(super) fn remove(&self) {
        // SAFETY: as above.
        unsafe { (self.rados.rados_write_op_remove)(self.handle) };
    }

    pub(super) fn truncate(&self, size: u64) {
        // SAFETY: as above.
        unsafe { (self.rados.rados_write_op_truncate)(self.handle, size) };
    }

    pub(super) fn zero(&self, at: u64, len: u64) {
        // SAFETY: as above.
        unsafe { (self.rados.rados_write_op_zero)(self.handle, at, len) };
    }

    /// All of it fails with a number below -4094 unless the object has these bytes at `at`.
    ///
    /// # Safety
    /// `bytes` has `len` bytes.
    pub(super) unsafe fn compare(&self, bytes: *const u8, len: usize, at: u64) {
        // SAFETY: as above; the place of the mismatch is not asked for.
        unsafe { (self.rados.rados_write_op_cmpext)(self.handle, bytes.cast(), len, at, null_mut()) };
    }

    /// Writes bytes at `at`.
    ///
    /// # Safety
    /// `bytes` has `len` bytes.
    pub(super) unsafe fn write(&self, bytes: *const u8, len: usize, at: u64) {
        // SAFETY: as above.
        unsafe { (self.rados.rados_write_op_write)(self.handle, bytes.cast(), len, at) };
    }
}

impl Drop for WriteOp {
    fn drop(&mut self) {
        // SAFETY: made in `new`; what was begun with it has what it needs.
        unsafe { (self.rados.rados_release_write_op)(self.handle) };
    }
}
