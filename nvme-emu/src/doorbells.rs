//! The doorbell area of BAR0: shared memory that the client maps, so that a guest's store reaches the workers
//! without a message. Doorbells written by REGION_WRITE go to the same place.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nvme_spec::registers::{DOORBELLS, doorbell_offset};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// CAP.DSTRD: 64 bytes between doorbells, a cache line for each, so that no queue's store disturbs another's.
pub(crate) const DSTRD: u8 = 4;

const PAGE: u64 = 4096;

/// The mapped doorbells of one controller.
pub(crate) struct Doorbells {
    memory: Arc<OwnedFd>,
    base: NonNull<u8>,
    /// Bytes of the area, a multiple of the page size.
    size: u64,
    queues: u16,
}

// SAFETY: the mapping lives as long as `self`, and is only accessed atomically.
unsafe impl Send for Doorbells {}
// SAFETY: as above.
unsafe impl Sync for Doorbells {}

impl Doorbells {
    /// Doorbells of queues 0 to `queues`, all zero. The memfd is sealed: the client cannot shrink it under us.
    pub(crate) fn new(queues: u16) -> io::Result<Arc<Self>> {
        let end = doorbell_offset(queues, true, DSTRD) + 4;
        let size = (end - DOORBELLS).next_multiple_of(PAGE);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Where vm.memfd_noexec insists; kernels before 6.3 do not know the flag.
        let memory = rustix::fs::memfd_create("nvme-doorbells", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create("nvme-doorbells", flags))?;
        rustix::fs::ftruncate(&memory, DOORBELLS + size)?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        // SAFETY: a fresh shared mapping of a file that cannot shrink; nothing else is replaced.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memory,
                DOORBELLS,
            )?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Arc::new(Self { memory: Arc::new(memory), base, size, queues }))
    }

    /// The memfd, for the client: the area lies at file offset [`DOORBELLS`].
    pub(crate) fn memory(&self) -> &Arc<OwnedFd> {
        &self.memory
    }

    /// Bytes of the mappable area.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn word(&self, byte: u64) -> &AtomicU32 {
        assert!(byte.is_multiple_of(4) && byte + 4 <= self.size);
        // SAFETY: in range by the check above, aligned since the base is a page; the memory is shared with the
        // client and only ever accessed atomically here.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(byte as usize).cast()) }
    }

    /// The doorbell of queue `qid`, which must exist.
    pub(crate) fn doorbell(self: &Arc<Self>, qid: u16, is_cq: bool) -> Doorbell {
        Doorbell { word: NonNull::from(self.of(qid, is_cq)), _area: self.clone() }
    }

    fn of(&self, qid: u16, is_cq: bool) -> &AtomicU32 {
        assert!(qid <= self.queues);
        self.word(doorbell_offset(qid, is_cq, DSTRD) - DOORBELLS)
    }

    /// What the guest stored last into the doorbell of queue `qid`, which must exist.
    pub(crate) fn load(&self, qid: u16, is_cq: bool) -> u32 {
        self.of(qid, is_cq).load(Ordering::Acquire)
    }

    /// Stores into the doorbell of queue `qid`, which must exist: for a REGION_WRITE, and to forget a value.
    pub(crate) fn store(&self, qid: u16, is_cq: bool, value: u32) {
        self.of(qid, is_cq).store(value, Ordering::Release);
    }

    /// Forgets what was stored: the queues are gone.
    pub(crate) fn clear(&self) {
        for qid in 0..=self.queues {
            self.store(qid, false, 0);
            self.store(qid, true, 0);
        }
    }

    /// Bytes of the area as REGION_READ sees them; what lies outside reads as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(i as u64);
            let word = at & !3;
            *byte = match word.checked_add(4) {
                Some(end) if end <= self.size => {
                    self.word(word).load(Ordering::Acquire).to_le_bytes()[(at & 3) as usize]
                }
                _ => 0,
            };
        }
    }

    /// Which doorbell a store of 4 bytes at `offset` of the area rings: queue, whether it is a completion
    /// queue's, or nothing if there is no doorbell.
    pub(crate) fn locate(&self, offset: u64) -> Option<(u16, bool)> {
        let stride = 4u64 << DSTRD;
        let index = offset / stride;
        let qid = u16::try_from(index / 2).ok()?;
        (offset.is_multiple_of(stride) && qid <= self.queues).then_some((qid, index % 2 == 1))
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing points into it: each `Doorbell` holds the area.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.size as usize) };
    }
}

/// One doorbell word, and a hold on the area it lies in.
pub(crate) struct Doorbell {
    word: NonNull<AtomicU32>,
    _area: Arc<Doorbells>,
}

impl Doorbell {
    /// What the guest stored last. What it wrote to memory before is visible afterwards.
    pub(crate) fn load(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    /// Stores a value: on queue creation.
    pub(crate) fn store(&self, value: u32) {
        self.word().store(value, Ordering::Release);
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: points into the mapping of `_area`, which is alive; only ever accessed atomically.
        unsafe { self.word.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_and_messages_are_one_truth() {
        let doorbells = Doorbells::new(128).unwrap();
        assert_eq!(doorbells.size(), 5 * 4096);
        doorbells.store(128, true, 0x0102_0304);
        assert_eq!(doorbells.doorbell(128, true).load(), 0x0102_0304);
        let mut data = [0; 8];
        doorbells.read((128 * 2 + 1) * 64, &mut data);
        assert_eq!(data, [4, 3, 2, 1, 0, 0, 0, 0]);
        doorbells.read(u64::MAX - 3, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn locate_knows_only_doorbells() {
        let doorbells = Doorbells::new(2).unwrap();
        assert_eq!(doorbells.locate(0), Some((0, false)));
        assert_eq!(doorbells.locate(64), Some((0, true)));
        assert_eq!(doorbells.locate(5 * 64), Some((2, true)));
        assert_eq!(doorbells.locate(6 * 64), None);
        assert_eq!(doorbells.locate(4), None);
    }

    #[test]
    fn the_client_cannot_shrink_it() {
        let doorbells = Doorbells::new(2).unwrap();
        assert!(rustix::fs::ftruncate(doorbells.memory(), 0).is_err());
    }
}
