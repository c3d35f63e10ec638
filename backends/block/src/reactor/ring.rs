//! The io_uring of a reactor: set up with what the kernel offers, entered as rarely as possible.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

/// `IORING_ENTER_GETEVENTS`: run what completed but was not yet posted.
const GETEVENTS: u32 = 1;
/// Threads that the kernel may make for operations that have to wait (syncs, fallocate, writes that allocate). All
/// devices of a reactor share them: one that hangs must not take them all. They exist only while they are needed.
const WORKERS: u32 = 64;
/// Completions taken out of the ring at once.
pub(super) const BATCH: usize = 32;

pub(super) struct Ring {
    uring: IoUring,
    /// What found the submission queue full, in order.
    overflow: VecDeque<squeue::Entry>,
    /// A failure to enter the ring was logged: it would repeat every turn.
    complained: bool,
}

impl Ring {
    /// A ring with `entries` submission entries (rounded up to a power of two, clamped to the kernel's limit).
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let entries = entries.max(8);
        let mut first = None;
        for modes in 0..3 {
            let mut builder = IoUring::builder();
            // Room for a queue of operations far deeper than one turn submits; more than that is kept by the
            // kernel (NODROP) at the price of a system call.
            builder.setup_clamp().setup_cqsize(entries.saturating_mul(4));
            match modes {
                // Linux 6.1. Completions are posted when we enter the kernel and never interrupt the thread;
                // TASKRUN_FLAG tells by a bit in shared memory that it is worth entering. Measured: a tenth of
                // the CPU time of COOP_TASKRUN on O_DIRECT, because nothing runs behind our back.
                0 => {
                    builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
                    builder.setup_submit_all();
                }
                // Linux 5.19.
                1 => {
                    builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
                }
                _ => {}
            }
            match builder.build(entries) {
                Ok(uring) => return Self::check(uring),
                // Only an unknown flag makes another attempt worth while.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => first = Some(error),
                Err(error) => return Err(explain(error)),
            }
        }
        Err(explain(first.unwrap_or_else(|| io::ErrorKind::Unsupported.into())))
    }

    fn check(uring: IoUring) -> io::Result<Self> {
        if !uring.params().is_feature_nodrop() || !uring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring is too old (no EXT_ARG or NODROP): Linux 5.11 or later is needed",
            ));
        }
        // Failure leaves the kernel's own limit, four for each CPU.
        let _ = uring.submitter().register_iowq_max_workers(&mut [WORKERS, 0]);
        let overflow = VecDeque::with_capacity(uring.params().sq_entries() as usize);
        Ok(Self { uring, overflow, complained: false })
    }

    /// Makes a table of so many registered buffers, all empty. Once.
    pub(super) fn make_buffer_table(&self, entries: u32) -> io::Result<()> {
        self.uring.submitter().register_buffers_sparse(entries)
    }

    /// Registers memory at `index` of the table. On failure the entry is as it was, or empty.
    ///
    /// # Safety
    /// The memory is mapped. For as long as it is registered, no operation names `index` with addresses of it that are
    /// mapped to something else meanwhile.
    pub(super) unsafe fn set_buffer(&self, index: u16, start: *mut u8, len: usize) -> io::Result<()> {
        let iovec = libc::iovec { iov_base: start.cast(), iov_len: len };
        // SAFETY: by this function's contract. The kernel keeps the pages by itself.
        unsafe { self.uring.submitter().register_buffers_update(u32::from(index), &[iovec], None) }
    }

    /// Empties an entry of the table. Operations that the kernel has begun keep the pages until they end; this does not
    /// wait for them.
    pub(super) fn clear_buffer(&self, index: u16) -> io::Result<()> {
        // A null iovec empties an entry (io_uring_register(2)).
        let iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: no memory is registered.
        unsafe { self.uring.submitter().register_buffers_update(u32::from(index), &[iovec], None) }
    }

    /// Queues an entry for the next [`Ring::enter`].
    ///
    /// # Safety
    /// Everything that the entry points to stays valid until its completion was taken.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: by this function's contract.
        let pushed = self.overflow.is_empty() && unsafe { self.uring.submission().push(&entry) }.is_ok();
        if !pushed {
            self.overflow.push_back(entry);
        }
    }

    /// Moves what waits outside into the submission queue. True if all of it fitted.
    fn refill(&mut self) -> bool {
        if self.overflow.is_empty() {
            return true;
        }
        let mut queue = self.uring.submission();
        while let Some(entry) = self.overflow.front() {
            // SAFETY: the contract of `push` under which the entry came here.
            if unsafe { queue.push(entry) }.is_err() {
                return false;
            }
            self.overflow.pop_front();
        }
        true
    }

    /// Hands the submission queue to the kernel, and lets it post what completed: one system call, or none if
    /// there is neither.
    pub(super) fn enter(&mut self) {
        self.refill();
        let queue = self.uring.submission();
        let queued = queue.len();
        let flags = if queue.taskrun() || queue.cq_overflow() { GETEVENTS } else { 0 };
        drop(queue);
        if queued == 0 && flags == 0 {
            return;
        }
        // SAFETY: `queued` entries were pushed under the contract of `push`; no argument is passed.
        let entered = unsafe { self.uring.submitter().enter::<()>(queued as u32, 0, flags, None) };
        self.note(entered);
    }

    /// Like [`Ring::enter`], but sleeps until at least one completion is there, or `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) {
        if !self.refill() {
            return self.enter(); // what stays outside could be what we would wait for
        }
        let timespec = Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
        let args = SubmitArgs::new().timespec(&timespec);
        let entered = self.uring.submitter().submit_with_args(1, &args);
        self.note(entered);
    }

    fn note(&mut self, entered: io::Result<usize>) {
        let Err(error) = entered else { return };
        match error.raw_os_error() {
            // Timed out, interrupted, or short of memory or completion slots: the next turn tries again.
            Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {}
            _ if self.complained => {}
            _ => {
                self.complained = true;
                tracing::error!(%error, "io_uring_enter failed: I/O on this reactor may stall");
            }
        }
    }

    /// Takes up to [`BATCH`] completions.
    pub(super) fn reap<'a>(
        &mut self,
        batch: &'a mut [MaybeUninit<cqueue::Entry>; BATCH],
    ) -> &'a mut [cqueue::Entry] {
        self.uring.completion().fill(batch)
    }
}

/// An error of `io_uring_setup` with what can be done about it.
fn explain(error: io::Error) -> io::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring (Linux 5.11 or later is needed), or a container's seccomp profile hides it"
        }
        Some(libc::EPERM) => {
            "io_uring is forbidden: set sysctl kernel.io_uring_disabled=0, or allow it in the container's seccomp profile"
        }
        Some(libc::ENOMEM) => "raise the limit of locked memory (ulimit -l, LimitMEMLOCK= in the unit)",
        Some(libc::EMFILE | libc::ENFILE) => {
            "raise the limit of open files (ulimit -n, LimitNOFILE= in the unit)"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("io_uring_setup: {error}; {remedy}"))
}
