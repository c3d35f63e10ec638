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

impl Cause {
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Whether a client has to be disconnected, and the event that tells.
#[derive(Debug)]
pub struct Breakage {
    /// A bit for each [`Cause`].
    broken: AtomicU8,
    /// Missing when the process was out of descriptors; the flag still works.
    event: Option<Arc<OwnedFd>>,
    /// Mappings and bytes registered. Changed under the lock of [`FREE`].
    mappings: AtomicUsize,
    bytes: AtomicUsize,
}

/// Bytes that all clients together may have mapped: half of the addresses that a process has.
const ADDRESSES: usize = 64 << 40;
/// A client may take one part in this many of what the others left.
const SHARE: usize = 4;

/// Why a mapping is not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The process has too little left for this client to have more: too many mappings.
    #[error("this client has its share of the mappings that the process may have (vm.max_map_count)")]
    Mappings,
    /// The same; too many bytes.
    #[error("this client has its share of the addresses that the process may map")]
    Addresses,
    /// The guard could not be installed.
    #[error(transparent)]
    Os(#[from] io::Error),
}

/// Whether `taken` more than the `mine` I have is within my share of what others leave of `all`.
fn fits(mine: usize, taken: usize, all: usize, used: usize) -> bool {
    let left = all.saturating_sub(used.saturating_sub(mine));
    mine.checked_add(taken).is_some_and(|wanted| wanted <= left / SHARE)
}

impl Breakage {
    /// Nothing broken yet.
    pub fn new() -> Self {
        use rustix::event::{EventfdFlags, eventfd};
        Self {
            broken: AtomicU8::new(0),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok().map(Arc::new),
            mappings: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Whether the client has to be disconnected.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) != 0
    }

    /// What it did; the worse of two.
    pub fn cause(&self) -> Option<Cause> {
        let causes = [Cause::Eventfd, Cause::Memory];
        let broken = self.broken.load(Ordering::Acquire);
        causes.into_iter().find(|&cause| broken & cause.bit() != 0)
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

    /// Async-signal-safe: one atomic operation and one write(2).
    pub(crate) fn set(&self, cause: Cause) {
        self.broken.fetch_or(cause.bit(), Ordering::Release);
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
static FREE: Mutex<Free> = Mutex::new(Free { slots: Vec::new(), chunks: 0, used: 0, bytes: 0 });
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

struct Free {
    slots: Vec<usize>,
    chunks: usize,
    /// Registered by all owners.
    used: usize,
    bytes: usize,
}

/// Keeps a mapping registered. Drop it before unmapping.
#[derive(Debug)]
pub struct Registration {
    index: usize,
    len: usize,
    /// What the slot's pointer points to.
    owner: Arc<Breakage>,
}

/// Registers the `len` mapped bytes at `base`.
///
/// The process has three quarters of vm.max_map_count for this, so that clients cannot use up what the
/// allocator needs, and no client can take more than its share of what the others leave.
///
/// # Safety
/// Until the registration is dropped the range is one whole mapping of the caller's, whose contents may be
/// replaced by zeroes at any moment: only raw pointers lead into it.
pub(crate) unsafe fn register(
    base: NonNull<u8>,
    len: usize,
    owner: Arc<Breakage>,
) -> Result<Registration, RegisterError> {
    install()?;
    let index = {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if !fits(owner.mappings.load(Ordering::Relaxed), 1, limit(), free.used) {
            return Err(RegisterError::Mappings);
        }
        if !fits(owner.bytes.load(Ordering::Relaxed), len, ADDRESSES, free.bytes) {
            return Err(RegisterError::Addresses);
        }
        if free.slots.is_empty() {
            grow(&mut free)?;
        }
        let index = free.slots.pop().ok_or(RegisterError::Mappings)?;
        free.used += 1;
        free.bytes += len;
        owner.mappings.fetch_add(1, Ordering::Relaxed);
        owner.bytes.fetch_add(len, Ordering::Relaxed);
        index
    };
    // There: chunks are never freed, and only their slots are handed out.
    let slot = slot(index).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    slot.owner.store(Arc::as_ptr(&owner).cast_mut(), Ordering::Relaxed);
    slot.len.store(len, Ordering::Relaxed);
    slot.base.store(base.as_ptr().addr(), Ordering::SeqCst);
    Ok(Registration { index, len, owner })
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
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.slots.push(self.index);
        free.used -= 1;
        free.bytes -= self.len;
        self.owner.mappings.fetch_sub(1, Ordering::Relaxed);
        self.owner.bytes.fetch_sub(self.len, Ordering::Relaxed);
    }
}

fn grow(free: &mut Free) -> Result<(), RegisterError> {
    if free.chunks * CHUNK >= limit() {
        return Err(RegisterError::Mappings);
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
    // SAFETY: both callers pass exactly one whole mapping, as `register` was promised, made by `dma::mapping`; it
    // stays reserved until munmap; nothing but raw pointers to guest memory point into it, and these tolerate that
    // the contents change. mmap(2) with MAP_FIXED replaces it atomically with respect to page faults.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_a_quarter_of_what_the_others_leave() {
        assert!(fits(0, 25, 100, 0) && !fits(0, 26, 100, 0));
        assert!(fits(24, 1, 100, 24) && !fits(25, 1, 100, 25));
        assert!(fits(0, 10, 100, 60) && !fits(0, 11, 100, 60));
        assert!(fits(5, 5, 100, 65) && !fits(5, 6, 100, 65));
        assert!(!fits(0, 1, 100, 98) && !fits(1, usize::MAX, 100, 1) && !fits(0, 1, 100, 200));
    }

    #[test]
    fn one_client_cannot_take_what_others_need() {
        // SAFETY: nothing lies in the first terabytes of this process, so no fault there is taken for one of these.
        let register = |base, len, owner| unsafe { super::register(base, len, owner) };
        let at = NonNull::new(ptr::without_provenance_mut(4096)).unwrap();
        let (greedy, modest) = (Arc::new(Breakage::new()), Arc::new(Breakage::new()));
        let mut taken = Vec::new();
        let error = loop {
            match register(at, 1, greedy.clone()) {
                Ok(registration) => taken.push(registration),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, RegisterError::Mappings), "{error}");
        assert!(taken.len() <= limit() / SHARE);
        let others = register(at, 1, modest.clone()).unwrap();
        taken.clear();
        let error = register(at, ADDRESSES / SHARE + 1, greedy.clone()).unwrap_err();
        assert!(matches!(error, RegisterError::Addresses), "{error}");
        drop((others, register(at, ADDRESSES / 8, greedy.clone()).unwrap()));
        let held =
            |owner: &Breakage| owner.bytes.load(Ordering::Relaxed) + owner.mappings.load(Ordering::Relaxed);
        assert_eq!(held(&greedy) + held(&modest), 0);
    }
}
