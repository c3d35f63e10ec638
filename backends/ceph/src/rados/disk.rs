//! [`Disk`]: an open volume, and the calls of librados that move its data.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::io::Write as _;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use std::time::Instant;

use block::reactor::Ticket;
use block::{AlignedBuf, Error, ErrorKind, Info, Io, Listeners, Op, Reactor};

use super::header::{Header, ReadError};
use super::objects::WriteOp;
use super::owner::{Held, RENEWED, Renewal};
use crate::abandoned::Abandoned;
use crate::budget::Budget;
use crate::cluster::Pool;
use crate::error::of_io;
use crate::ffi::{self, Errno, Rados, RadosCompletion};
use crate::request::{Request, Target};

/// Removals that are under way at a time.
const REMOVALS: usize = 64;
/// What librados returns for a compare that does not match: this, less the place (`-MAX_ERRNO - place`).
const MISMATCH: i32 = -4095;

/// Where a volume's bytes are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
    object_size: u64,
}

/// Room for an object's name: the prefix, 16 digits, a NUL.
type Name = [u8; 64];

impl Layout {
    pub(super) fn of(header: &Header) -> Self {
        Self {
            prefix: format!("quarry_data.{}.", header.id_text()),
            object_size: u64::from(header.object_size),
        }
    }

    /// Bytes in an object.
    pub(super) fn object_size(&self) -> u64 {
        self.object_size
    }

    /// How many objects hold `size` bytes.
    pub(super) fn objects(&self, size: u64) -> u64 {
        size.div_ceil(self.object_size)
    }

    /// An object's name.
    pub(super) fn name(&self, object: u64) -> String {
        format!("{}{object:016x}", self.prefix)
    }

    /// The same for C, without an allocation.
    fn c_name(&self, object: u64) -> Name {
        let mut name = [0; 64];
        let room = &mut name[..63];
        // 12 + 32 + 1 + 16 bytes: they fit.
        let _ = write!(&mut *room, "{}{object:016x}", self.prefix);
        name
    }
}

/// An open volume. Given back when it is dropped; operations in flight hold it.
pub(crate) struct Disk {
    pub(super) budget: Budget,
    pub(super) abandoned: Abandoned,
    pub(super) listeners: Listeners,
    pub(super) layout: Layout,
    info: Info,
    blocks: AtomicU64,
    data: Arc<Pool>,
    header: Arc<Pool>,
    volume: String,
    spec: String,
    id: [u8; 16],
    fenced: AtomicBool,
    /// Ends the thread that renews the lock; goes before the lock.
    renewer: OnceLock<Sender<()>>,
    /// `None` where it is only read.
    owner: Option<Held>,
}

/// What is to be done with one object.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(super) what: What,
    pub(super) object: u64,
    /// The first byte in the object.
    pub(super) at: u32,
    pub(super) len: u32,
    /// The first byte in the I/O's data.
    pub(super) from: u32,
}

/// See [`Call`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Read,
    Write,
    CompareAndWrite,
    /// Reads as zeroes afterwards, and takes no space.
    Zero,
}

const _: () = assert!(size_of::<Request<Disk>>() <= block::future::INLINE_SIZE);

impl Disk {
    pub(super) fn new(
        pools: (Arc<Pool>, Arc<Pool>),
        (volume, spec): (String, String),
        header: &Header,
        info: Info,
        owner: Option<Held>,
        in_flight: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            budget: Budget::new(in_flight),
            abandoned: Abandoned::default(),
            listeners: Listeners::default(),
            layout: Layout::of(header),
            blocks: AtomicU64::new(info.blocks),
            info,
            header: pools.0,
            data: pools.1,
            volume,
            spec,
            id: header.id,
            fenced: AtomicBool::new(false),
            renewer: OnceLock::new(),
            owner,
        })
    }

    pub(super) fn info(&self) -> Info {
        let mut info = self.info.clone();
        info.blocks = self.blocks.load(Ordering::Acquire);
        info
    }

    /// Renews the lock, in a thread of its own, for no other volume's header must make it wait; and looks at the size, as long as
    /// the volume is open.
    pub(super) fn look_after(self: &Arc<Self>) -> std::io::Result<()> {
        let disk: Weak<Self> = Arc::downgrade(self);
        let Some(owner) = self.owner.as_ref().map(Held::share) else {
            self.read_anew();
            return Ok(());
        };
        let (stop, stopped) = channel();
        let mut silent = false;
        std::thread::Builder::new().name("ceph-lock".to_owned()).spawn(move || {
            // Has the disk only for moments in which it does not wait: closing it waits for nothing here.
            loop {
                let renewal = owner.renew();
                let goes_on = disk.upgrade().is_some_and(|disk| disk.renewed(renewal, &mut silent));
                if !goes_on || stopped.recv_timeout(RENEWED) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        let _ = self.renewer.set(stop);
        Ok(())
    }

    /// Has the connection's keeper look at the size.
    fn read_anew(self: &Arc<Self>) {
        let disk: Weak<Self> = Arc::downgrade(self);
        let mut first = true;
        self.header.cluster().keeper().run(move || {
            if std::mem::replace(&mut first, false) {
                return Some(RENEWED);
            }
            let disk = disk.upgrade()?;
            let goes_on = match Header::read(&disk.header, &disk.volume) {
                Ok(header) => disk.look_at(&header),
                Err(ReadError::Errno(Errno(libc::ENOENT))) => {
                    disk.fence("the volume was removed");
                    false
                }
                Err(_) => true,
            };
            // This thread must not be the one that closes the connection.
            if let Some(last) = Arc::into_inner(disk) {
                let _ = std::thread::Builder::new().name("ceph-close".to_owned()).spawn(move || drop(last));
            }
            goes_on.then_some(RENEWED)
        });
    }

    /// Whether it is to be renewed again.
    fn renewed(&self, renewal: Renewal, silent: &mut bool) -> bool {
        match renewal {
            Renewal::Done(header) => {
                if std::mem::replace(silent, false) {
                    tracing::info!(volume = self.spec, "the cluster answers again");
                }
                self.look_at(&header)
            }
            Renewal::Lost => {
                self.fence(
                    "another client has taken the volume over, or an operator has blocklisted this one",
                );
                false
            }
            Renewal::Unknown(errno) => {
                if !std::mem::replace(silent, true) {
                    tracing::warn!(volume = self.spec, %errno, "the volume's lock cannot be renewed; trying on");
                }
                true
            }
        }
    }

    /// Whether it is the same volume, with the size that it has now.
    fn look_at(&self, header: &Header) -> bool {
        if header.id != self.id {
            self.fence("the volume was removed, and there is another with its name");
            return false;
        }
        let blocks = header.size / u64::from(self.info.block_size);
        if self.blocks.swap(blocks, Ordering::AcqRel) != blocks {
            tracing::info!(volume = self.spec, bytes = header.size, "resized");
            self.listeners.call();
        }
        true
    }

    /// No more I/O.
    fn fence(&self, why: &str) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(
                volume = self.spec,
                "fenced: {why}; from now on its I/O fails. When nobody else has it, start Quarry anew"
            );
        }
    }
}

impl Target for Disk {
    type Call = Call;

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn abandoned(&self) -> &Abandoned {
        &self.abandoned
    }

    fn error(&self, op: Op, errno: Errno) -> Error {
        if errno == Errno::BLOCKLISTED {
            self.fence("another client has taken the volume over, or an operator has blocklisted this one");
            return Error::new(ErrorKind::Unreachable, format!("{}: {op:?}: fenced", self.spec));
        }
        of_io(&self.spec, op, errno)
    }

    fn io_timeout(&self) -> Option<Duration> {
        self.header.cluster().options().io_timeout
    }

    fn gathers(&self, io: &Io) -> bool {
        io.segments().len() > 1
    }

    /// What is written is copied by librados before its call returns (librados.h: only what is read must stay), so the guest's
    /// own memory is handed over where it is in one piece; what is read comes into a buffer of ours.
    fn begin(&self, ticket: Ticket, call: Call, io: &Io, buffer: Option<&AlignedBuf>) {
        if self.fenced.load(Ordering::Relaxed) {
            return ticket.complete(-Errno::BLOCKLISTED.0);
        }
        let (rados, pool) = (self.data.rados(), self.data.handle());
        let name = self.layout.c_name(call.object);
        let name = name.as_ptr().cast::<c_char>();
        let memory = match (buffer, io.segments()) {
            (Some(buffer), _) => buffer.as_ptr().wrapping_add(call.from as usize),
            (None, [one]) => one.as_ptr(), // one call, so all of it
            _ => null_mut(),
        };
        let (at, len) = (u64::from(call.at), call.len as usize);
        begin_call(rados, ticket, |completion| match call.what {
            // SAFETY: of this and all that follow: the pool is open, which the operation holds until `done` was called, with the buffer. Segments
            // are mapped while `io` lives; what is written is read before the call returns.
            What::Read => unsafe { (rados.rados_aio_read)(pool, name, completion, memory.cast(), len, at) },
            // SAFETY: as above.
            What::Write => unsafe { (rados.rados_aio_write)(pool, name, completion, memory.cast(), len, at) },
            What::CompareAndWrite | What::Zero => {
                let op = WriteOp::new(rados);
                match call.what {
                    What::CompareAndWrite => {
                        // SAFETY: the buffer has both halves.
                        unsafe { op.compare(memory, len, at) };
                        // SAFETY: as above.
                        unsafe { op.write(memory.wrapping_add(len), len, at) };
                    }
                    _ if len as u64 == self.layout.object_size => op.remove(),
                    _ => op.zero(at, len as u64),
                }
                // SAFETY: as above; librados takes what the operation has.
                unsafe {
                    (rados.rados_aio_write_op_operate)(op.handle(), pool, completion, name, null_mut(), 0)
                }
            }
        });
    }

    fn judge(&self, call: Call, result: i32) -> Result<usize, Errno> {
        match (call.what, result) {
            (_, 0..) => Ok(result as usize),
            // Never written, so zeroes.
            (What::Read | What::Zero, _) if result == -libc::ENOENT => Ok(0),
            (What::CompareAndWrite, ..=MISMATCH) => Err(Errno(libc::EILSEQ)),
            _ => Err(Errno(-result)),
        }
    }

    fn place(&self, call: Call, _: &Io) -> Range<usize> {
        let from = call.from as usize;
        from..from + call.len as usize
    }
}

/// Gives one of librados' calls what is its own, and the ticket to who is called back. The result of `begin` is librados': below
/// zero if the call did not begin.
fn begin_call(rados: &Rados, ticket: Ticket, begin: impl FnOnce(RadosCompletion) -> i32) {
    let mut completion: RadosCompletion = null_mut();
    let argument = ticket.into_raw();
    // SAFETY: `done` takes the argument back, once.
    let made = unsafe { (rados.rados_aio_create_completion2)(argument, done, &mut completion) };
    let called = if made < 0 { made } else { begin(completion) };
    if made >= 0 {
        if called >= 0 {
            return; // `done` releases it
        }
        // SAFETY: not begun, so that nobody calls back.
        unsafe { (rados.rados_aio_release)(completion) };
    }
    // SAFETY: nobody else has it.
    unsafe { Ticket::from_raw(argument) }.complete(called);
}

/// `rados_callback_t`: on a thread of librados'.
extern "C" fn done(completion: RadosCompletion, argument: *mut c_void) {
    // It is loaded, since it calls.
    let result = ffi::rados().map_or(-libc::EIO, |rados| {
        // SAFETY: the completion is librados' argument, and released here, once.
        let result = unsafe { (rados.rados_aio_get_return_value)(completion) };
        // SAFETY: as above.
        unsafe { (rados.rados_aio_release)(completion) };
        result
    });
    // SAFETY: from `into_raw` in `begin_call`, given back once, here.
    unsafe { Ticket::from_raw(argument) }.complete(result);
}

/// Removes objects, many at a time, as long as `renew` says that they are this client's to remove: else EBUSY. Blocks.
pub(super) fn remove_objects(
    data: &Arc<Pool>,
    layout: &Layout,
    objects: Range<u64>,
    reactor: &Reactor,
    renew: &dyn Fn() -> Renewal,
) -> Result<(), Errno> {
    let mut running = VecDeque::new();
    let mut renewed = Instant::now();
    let mut objects = objects.into_iter();
    loop {
        let next = if running.len() < REMOVALS { objects.next() } else { None };
        if let Some(object) = next {
            let name = layout.c_name(object);
            running.push_back(reactor.remote(data.clone(), |ticket, data| {
                let (rados, name) = (data.rados(), name.as_ptr().cast::<c_char>());
                let op = WriteOp::new(rados);
                op.remove();
                begin_call(rados, ticket, |completion| {
                    // SAFETY: the pool is open while the operation holds it; librados takes the name and what `op` has.
                    unsafe {
                        (rados.rados_aio_write_op_operate)(
                            op.handle(),
                            data.handle(),
                            completion,
                            name,
                            null_mut(),
                            0,
                        )
                    }
                });
            }));
            continue;
        }
        let Some(first) = running.pop_front() else { return Ok(()) };
        match reactor.block_on(first).0 {
            0.. => {}
            result if result == -libc::ENOENT => {}
            result => return Err(Errno(-result)),
        }
        if renewed.elapsed() > RENEWED {
            renewed = Instant::now();
            if renew() == Renewal::Lost {
                return Err(Errno(libc::EBUSY));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_names_that_operators_see() {
        let header = Header {
            id: [0xab; 16],
            size: 10 << 20,
            reach: 10 << 20,
            object_size: 4 << 20,
            data_pool: String::new(),
            generation: 0,
            owner: String::new(),
        };
        let layout = Layout::of(&header);
        let name = format!("quarry_data.{}.00000000000001ff", "ab".repeat(16));
        assert_eq!(layout.name(0x1ff), name);
        assert_eq!(ffi::first_name(&layout.c_name(0x1ff)), name);
        assert_eq!(ffi::first_name(&layout.c_name(u64::MAX)).len(), 61);
        assert_eq!((layout.objects(10 << 20), layout.objects(0), layout.objects(8 << 20)), (3, 0, 2));
    }
}
