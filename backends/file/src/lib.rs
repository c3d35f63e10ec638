//! Block devices on files and on block special files, through the reactor's io_uring.
//!
//! - O_DIRECT where the file system has it, buffered I/O elsewhere ([`Direct`]). What a guest's buffers lack in
//!   alignment is made up by bounce buffers.
//! - Sparse images, made on demand; discard and write zeroes by fallocate; flush by fdatasync, shared by those
//!   who ask for it together; FUA by RWF_DSYNC with O_DIRECT, by fdatasync without.
//! - One server per image: an exclusive lock (`flock`, and the byte locks of QEMU and its tools) for as long as the
//!   device or a channel of it lives, and `O_EXCL` on block devices, which the kernel refuses while they are mounted. Read-only devices share.
//!
//! A file that is made shorter behind the device's back gives read errors beyond its end, and grows again when it is
//! written there. What it leaves out: image formats (qcow2), resizing, registered buffers and files.

mod channel;
mod geometry;
mod image;
mod limited;
mod lock;
mod options;
mod pool;
mod sync;
mod transfer;
mod zero;

use std::sync::Arc;

use block::{Channel, Device, Error, Info, Reactor};

use channel::FileChannel;
use image::Image;

pub use options::{Direct, FileOptions, OpenError};

/// A disk that is a file or a block special file.
pub struct FileDevice {
    image: Arc<Image>,
}

impl FileDevice {
    /// Opens (or makes) and locks the image. Blocks: for control threads.
    pub fn open(options: &FileOptions) -> Result<Self, OpenError> {
        Ok(Self { image: Arc::new(Image::open(options)?) })
    }

    /// Whether I/O goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.image.direct.is_some()
    }
}

impl Device for FileDevice {
    fn info(&self) -> Info {
        self.image.info.clone()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(FileChannel::new(self.image.clone(), reactor.clone())?))
    }
}
