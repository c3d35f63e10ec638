//! [`Arena`]: an allocator over mappings that the kernel keeps in RAM (mlock), leaves out of core dumps (MADV_DONTDUMP) and
//! does not give to children (MADV_DONTFORK: a child that touches a secret ends, it does not work on with a copy).
//!
//! Memory is zeroed when it is freed, so what is handed out is zeroes. Small pieces come in size classes from chunks of
//! [`CHUNK`] bytes that are kept for reuse, large ones from mappings of their own. What is known about the memory lies
//! outside of it. One lock: nothing here is on the way of an I/O.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Bytes of a chunk: a whole number of pages, and of pieces of every class.
const CHUNK: usize = 64 << 10;
/// Bytes of the smallest piece: a cache line, so that no two secrets share one.
const SMALLEST: usize = 64;
/// Size classes: powers of two up to 8 KiB.
const CLASSES: usize = 8;
const LARGEST: usize = SMALLEST << (CLASSES - 1);

/// Memory for keys cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum MemoryLockError {
    /// The kernel refuses.
    #[error(
        "cannot lock memory for keys: {cause} (RLIMIT_MEMLOCK is {limit}); allow more: LimitMEMLOCK=64M in the [Service] \
         section of the unit, or `ulimit -l 65536` in the shell that starts it"
    )]
    Refused {
        /// What the kernel said.
        cause: rustix::io::Errno,
        /// The limit, for people.
        limit: String,
    },
    /// A defect of how this program was linked: aws-lc's memory is not ours.
    #[error(
        "the cryptographic library does not keep its keys in locked memory: this program is built in a wrong way"
    )]
    Library,
}

impl MemoryLockError {
    pub(super) fn new(cause: rustix::io::Errno) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        Self::Refused {
            cause,
            limit: limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes >> 10)),
        }
    }
}

pub(super) struct Arena {
    state: Mutex<State>,
    /// That memory could not be locked was logged.
    complained: AtomicBool,
}

struct State {
    /// By their first byte.
    mappings: BTreeMap<usize, Mapping>,
    /// Free pieces of each class: their addresses.
    free: [Vec<usize>; CLASSES],
    /// Chunks without pieces so far.
    spare: Vec<usize>,
    /// Why some mapping is not locked.
    refused: Option<rustix::io::Errno>,
}

struct Mapping {
    at: NonNull<u8>,
    len: usize,
    /// Bytes of its pieces; one piece is all of a large mapping.
    piece: usize,
    locked: bool,
}

// SAFETY: the memory is bound to no thread; what is free is only touched under the lock, what is handed out only by its owner.
unsafe impl Send for Mapping {}

impl Arena {
    pub(super) const fn new() -> Self {
        let state = State {
            mappings: BTreeMap::new(),
            free: [const { Vec::new() }; CLASSES],
            spare: Vec::new(),
            refused: None,
        };
        Self { state: Mutex::new(state), complained: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` zeroes (or more) at a multiple of [`SMALLEST`], locked if the kernel allows. `None` without memory.
    pub(super) fn allocate(&self, len: usize) -> Option<NonNull<u8>> {
        let mut state = self.state();
        let piece = state.piece(len);
        let refused = state.refused;
        drop(state);
        if let Some(errno) = refused
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(error = %MemoryLockError::new(errno), "keys may be swapped out");
        }
        piece
    }

    /// Zeroes a piece and takes it back. Pointers that are not from here are left alone; returns false.
    ///
    /// # Safety
    /// If it is a piece of this arena, then nobody refers to it any more.
    pub(super) unsafe fn free(&self, at: NonNull<u8>) -> bool {
        let mut state = self.state();
        let Some((start, mapping)) = state.mapping(at) else { return false };
        // SAFETY: a piece of a mapping of ours, which nobody else refers to by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), mapping.piece) }.zeroize();
        match class(mapping.piece) {
            Some(class) => state.free[class].push(at.as_ptr().addr()),
            None => drop(state.mappings.remove(&start)),
        }
        true
    }

    /// Bytes of the piece at `at`, if it is from here.
    pub(super) fn size(&self, at: NonNull<u8>) -> Option<usize> {
        Some(self.state().mapping(at)?.1.piece)
    }

    /// Locks what is not locked yet, and has `ready` bytes of locked memory ready.
    pub(super) fn lock(&self, ready: usize) -> Result<(), MemoryLockError> {
        let mut state = self.state();
        for mapping in state.mappings.values_mut().filter(|mapping| !mapping.locked) {
            mapping.lock().map_err(MemoryLockError::new)?;
        }
        state.refused = None;
        while state.spare.len() * CHUNK < ready {
            let mut mapping = Mapping::new(CHUNK, 0).map_err(MemoryLockError::new)?;
            mapping.lock().map_err(MemoryLockError::new)?;
            let start = mapping.at.as_ptr().addr();
            state.mappings.insert(start, mapping);
            state.spare.push(start);
        }
        Ok(())
    }
}

/// The class of pieces of `len` bytes; `None` for what has a mapping of its own.
fn class(len: usize) -> Option<usize> {
    let size = len.max(SMALLEST).next_power_of_two();
    (len <= LARGEST).then(|| (size / SMALLEST).trailing_zeros() as usize)
}

impl State {
    /// The mapping that `at` lies in.
    fn mapping(&self, at: NonNull<u8>) -> Option<(usize, &Mapping)> {
        let (start, mapping) = self.mappings.range(..=at.as_ptr().addr()).next_back()?;
        (at.as_ptr().addr() - start < mapping.len).then_some((*start, mapping))
    }

    fn piece(&mut self, len: usize) -> Option<NonNull<u8>> {
        let Some(class) = class(len) else {
            let len = len.checked_next_multiple_of(rustix::param::page_size())?;
            return Some(self.map(len, len)?.0);
        };
        if self.free[class].is_empty() {
            let piece = SMALLEST << class;
            let start = match self.spare.pop() {
                Some(start) => start,
                None => self.map(CHUNK, piece)?.1,
            };
            self.mappings.get_mut(&start)?.piece = piece;
            // The first ones are handed out first.
            self.free[class].extend((0..CHUNK / piece).rev().map(|n| start + n * piece));
        }
        let at = self.free[class].pop()?;
        let (start, mapping) = self.mappings.range(..=at).next_back()?;
        // SAFETY: within the mapping: its pieces are made so.
        Some(unsafe { mapping.at.add(at - start) })
    }

    /// A new mapping, and where it starts.
    fn map(&mut self, len: usize, piece: usize) -> Option<(NonNull<u8>, usize)> {
        let mut mapping = Mapping::new(len, piece).ok()?;
        if let Err(errno) = mapping.lock() {
            self.refused = Some(errno); // for the log, and for who calls `Arena::lock`
        }
        let (at, start) = (mapping.at, mapping.at.as_ptr().addr());
        self.mappings.insert(start, mapping);
        Some((at, start))
    }
}

impl Mapping {
    fn new(len: usize, piece: usize) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let at = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let at = NonNull::new(at.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        let mapping = Self { at, len, piece, locked: false };
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: our own mapping; neither changes its contents.
            unsafe { madvise(mapping.at.as_ptr().cast(), len, advice) }?;
        }
        Ok(mapping)
    }

    fn lock(&mut self) -> rustix::io::Result<()> {
        // SAFETY: our own mapping; locking changes nothing of its contents.
        unsafe { mlock(self.at.as_ptr().cast(), self.len) }?;
        self.locked = true;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no piece is in use any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}
