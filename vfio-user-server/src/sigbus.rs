//! Survives a client that takes its memory away: touching a page of a mapped file that was truncated
//! raises SIGBUS, which would end the process and every other client's disk with it.
//!
//! Each mapping of client memory is registered here. The handler puts anonymous memory over the whole
//! mapping that faulted, so that the access goes on (and reaches nobody), and marks the owner's
//! [`Breakage`]; the server sees that and closes the connection. A fault anywhere else goes to the handler
//! that was there before.
//!
//! A file sealed with F_SEAL_SHRINK cannot do this, but VMMs do not seal guest memory, so nothing here
//! depends on it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a client did that only the end of its connection answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It took away memory that it had mapped.
    Memory,
    /// It made an eventfd block.
    Eventfd,
}

/// Whether a client has to be disconnected, and the event that tells.
#[derive(Debug)]
pub struct Breakage {
    /// 0, or 1 more than a [`Cause`].
    broken: AtomicU8,
    /// Missing when the process was out of descriptors; the flag still works.
    event: Option<Arc<OwnedFd>>,
}

impl Breakage {
    /// Nothing broken yet.
    pub fn new() -> Self {
        use rustix::event::{EventfdFlags, eventfd};
        Self {
            broken: AtomicU8::new(0),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok().map(Arc::new),
        }
    }

    /// Whether the client has to be disconnected.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) != 0
    }

    /// What it did.
    pub fn cause(&self) -> Option<Cause> {
        let causes = [Cause::Memory, Cause::Eventfd];
        let broken = self.broken.load(Ordering::Acquire);
        causes.into_iter().find(|&cause| cause as u8 + 1 == broken)
    }

    /// Becomes readable when [`Self::is_broken`] turns true.
    pub fn event(&self) -> Option<Arc<OwnedFd>> {
        self.event.clone()
    }

    /// Forgets it, for the next client.
    pub fn repair(&self) {
        self.broken.store(0, Ordering::Release);
        if let Some(event) = &self.event {
            let _ = rustix::io::read(event, &mut [0u8; 8]);
        }
    }

    /// Async-signal-safe: one store and one write(2).
    pub(crate) fn set(&self, cause: Cause) {
        self.broken.store(cause as u8 + 1, Ordering::Release);
        if let Some(event) = &self.event {
            let one = 1u64.to_ne_bytes();
            // SAFETY: writes 8 bytes from a live array to a descriptor this struct owns; write(2) is
            // async-signal-safe (POSIX 2.4.3), and the result does not matter: a full counter is readable.
            unsafe { libc::write(event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }
}

impl Default for Breakage {
    fn default() -> Self {
        Self::new()
    }
}

/// One registered mapping. `base` 0 means free.
struct Slot {
    base: AtomicUsize,
    len: AtomicUsize,
    owner: AtomicPtr<Breakage>,
}

const CHUNK: usize = 1024;
const CHUNKS: usize = 64;

/// The registry: chunks are allocated when first needed and never freed, so the handler may read any of
/// them at any time.
static TABLE: [AtomicPtr<[Slot; CHUNK]>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];
/// Handlers running now. [`Registration`]'s drop waits for them.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);
static FREE: Mutex<Free> = Mutex::new(Free { slots: Vec::new(), chunks: 0 });
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

struct Free {
    slots: Vec<usize>,
    chunks: usize,
}

/// Keeps a mapping registered. Drop it before unmapping.
#[derive(Debug)]
pub struct Registration {
    index: usize,
    /// What the slot's pointer points to.
    _owner: Arc<Breakage>,
}

/// Registers the `len` mapped bytes at `base`, which the caller owns until the registration is dropped.
///
/// Fails when the process already has as many as it may: three quarters of vm.max_map_count, so that
/// clients cannot use up what the allocator needs.
pub fn register(base: NonNull<u8>, len: usize, owner: Arc<Breakage>) -> io::Result<Registration> {
    install()?;
    let index = {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.slots.is_empty() {
            grow(&mut free)?;
        }
        free.slots.pop().ok_or(io::ErrorKind::OutOfMemory)?
    };
    let slot = slot(index).ok_or(io::ErrorKind::OutOfMemory)?;
    slot.owner.store(Arc::as_ptr(&owner).cast_mut(), Ordering::Relaxed);
    slot.len.store(len, Ordering::Relaxed);
    slot.base.store(base.as_ptr().addr(), Ordering::SeqCst);
    Ok(Registration { index, _owner: owner })
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = slot(self.index) {
            slot.base.store(0, Ordering::SeqCst);
        }
        // A handler that counted itself before this load may have read the slot before the store above; the
        // next one sees it free. Handlers are a few instructions and one or two system calls long.
        while ACTIVE.load(Ordering::SeqCst) != 0 {
            std::hint::spin_loop();
        }
        FREE.lock().unwrap_or_else(PoisonError::into_inner).slots.push(self.index);
    }
}

fn grow(free: &mut Free) -> io::Result<()> {
    if free.chunks * CHUNK >= limit() {
        return Err(io::Error::from_raw_os_error(libc::ENOSPC));
    }
    let chunk = Box::new(
        [const {
            Slot {
                base: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                owner: AtomicPtr::new(ptr::null_mut()),
            }
        }; CHUNK],
    );
    TABLE[free.chunks].store(Box::into_raw(chunk), Ordering::Release);
    let first = free.chunks * CHUNK;
    free.slots.extend((first..first + CHUNK).rev());
    free.chunks += 1;
    Ok(())
}

/// Mappings this process may hold for clients.
fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let of_kernel = std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|s| s.trim().parse::<usize>().ok())
            .unwrap_or(65530);
        (of_kernel / 4 * 3).min(CHUNK * CHUNKS)
    })
}

fn slot(index: usize) -> Option<&'static Slot> {
    let chunk = TABLE.get(index / CHUNK)?.load(Ordering::Acquire);
    // SAFETY: a chunk pointer is null or comes from `Box::into_raw` in `grow` and is never freed; its
    // contents are atomics, so shared references are all there ever is.
    let chunk = unsafe { chunk.as_ref() }?;
    chunk.get(index % CHUNK)
}

fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: `sigaction` is plain data for which all zeroes is a valid value.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: queries the present action into a live struct; changes nothing.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Known before the handler can run.
    let _ = PREVIOUS.set(previous);
    // SAFETY: as above, all zeroes is valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = (handler as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void))
        as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: installs a handler of the SA_SIGINFO signature that only does async-signal-safe things:
    // atomics, mmap(2), write(2), sigaction(2).
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: errno's address is always valid in the running thread.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo with SA_SIGINFO; `si_addr` is set for a SIGBUS that the
    // kernel raised, which is what a positive code means.
    let address = unsafe { if (*info).si_code > 0 { (*info).si_addr().addr() } else { 0 } };
    ACTIVE.fetch_add(1, Ordering::SeqCst);
    let ours = address != 0 && cover(address);
    ACTIVE.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if !ours {
        chain(signal, info, context);
    }
}

/// Puts anonymous memory over the registered mapping that holds `address`.
fn cover(address: usize) -> bool {
    for index in 0..CHUNK * CHUNKS {
        let Some(slot) = slot(index) else { return false };
        let base = slot.base.load(Ordering::SeqCst);
        let len = slot.len.load(Ordering::Relaxed);
        if base == 0 || address.wrapping_sub(base) >= len {
            continue;
        }
        // The slot is registered and cannot be released while ACTIVE counts us, so base, len and owner
        // belong together and the mapping exists.
        if anonymous_over(ptr::without_provenance_mut(base), len).is_err() {
            return false;
        }
        // SAFETY: the registration keeps its `Arc<Breakage>` until its drop has waited for ACTIVE.
        if let Some(owner) = unsafe { slot.owner.load(Ordering::Relaxed).as_ref() } {
            owner.set(Cause::Memory);
        }
        return true;
    }
    false
}

/// Replaces `len` bytes of a mapping at `base` by fresh anonymous memory. The caller owns the mapping.
/// Accesses that race with it reach either the old or the new memory.
pub(crate) fn anonymous_over(base: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: both callers pass exactly one whole mapping made by `dma::mapping`, which stays reserved for
    // it until munmap; nothing but raw pointers to guest memory point into it, and these tolerate that the
    // contents change. mmap(2) with MAP_FIXED replaces it atomically with respect to page faults.
    let at = unsafe {
        libc::mmap(
            base.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Hands a fault that is not ours to whoever was there before.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all zeroes is a valid `sigaction`: SIG_DFL, no flags, empty mask.
            let default: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: restores the default action, then returns: the access faults again and the process
            // ends as it would have without us. A SIGBUS sent by kill(2) does not come again by itself.
            unsafe {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the previous owner installed a function of this signature under SA_SIGINFO.
            let f: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(address) };
            f(signal, info, context);
        }
        address => {
            // SAFETY: the previous owner installed a function of this signature without SA_SIGINFO.
            let f: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(address) };
            f(signal);
        }
    }
}
