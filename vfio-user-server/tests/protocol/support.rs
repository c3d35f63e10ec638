//! A function that does as it is told, a server for it, a client that sends any bytes, and a count of what
//! this process holds.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::sync::{Notify, oneshot};
use vfio_user_server::wire::{HEADER, Header, command, flags};
use vfio_user_server::{Bar, FunctionInfo, Host, Listener, MappableArea, PciFunction, Quiesced, Reset};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const VECTORS: u16 = 33;
pub const PAGE: u64 = 4096;
/// Nothing here takes longer, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A function with 16 KiB of registers, whose second page can be mapped.
pub struct Fake {
    info: FunctionInfo,
    pub host: Arc<Host>,
    pub registers: Mutex<Vec<u8>>,
    /// What a client may map of BAR 0.
    pub area: Mutex<MappableArea>,
    pub resets: Mutex<Vec<Reset>>,
    pub attached: AtomicUsize,
    pub detached: AtomicUsize,
    /// Called by `detach`.
    pub on_detach: Mutex<Option<Box<dyn Fn() + Send>>>,
    /// While set, `detach` does not come to an end until it is notified.
    pub hold_detach: Mutex<Option<Arc<Notify>>>,
    /// Deadlines of the calls to `retire_memory`.
    pub retirements: Mutex<Vec<Instant>>,
    /// While set, `retire_memory` and `reset` do not come to an end until it is notified.
    pub hold: Mutex<Option<Arc<Notify>>>,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        let memory = memfd("doorbells", 0x2000);
        let area = MappableArea { offset: 0x1000, size: 0x1000, memory: Arc::new(memory) };
        Arc::new(Self {
            info: FunctionInfo {
                vendor_id: 0x1b36,
                device_id: 0x0010,
                subsystem_vendor_id: 0x1af4,
                subsystem_id: 0x1100,
                revision: 1,
                class_code: 0x01_08_02,
                serial_number: 0x0123_4567_89ab_cdef,
                bars: vec![Bar { index: 0, size: 0x4000 }],
                msix_vectors: VECTORS,
                msi: false,
                intx: true,
            },
            host: Arc::new(Host::new(VECTORS)),
            registers: Mutex::new((0..0x4000).map(|i| i as u8).collect()),
            area: Mutex::new(area),
            resets: Mutex::default(),
            attached: AtomicUsize::new(0),
            detached: AtomicUsize::new(0),
            on_detach: Mutex::default(),
            hold_detach: Mutex::default(),
            retirements: Mutex::default(),
            hold: Mutex::default(),
        })
    }

    fn held(&self) -> Quiesced {
        let hold = self.hold.lock().unwrap().clone();
        Box::pin(async move {
            if let Some(hold) = hold {
                hold.notified().await;
            }
        })
    }
}

impl PciFunction for Fake {
    fn info(&self) -> &FunctionInfo {
        &self.info
    }

    fn attach(&self) {
        self.attached.fetch_add(1, Ordering::SeqCst);
    }

    fn mappable(&self, bar: u8) -> Option<MappableArea> {
        (bar == 0).then(|| self.area.lock().unwrap().clone())
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        let offset = offset as usize;
        data.copy_from_slice(&self.registers.lock().unwrap()[offset..offset + data.len()]);
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        let offset = offset as usize;
        self.registers.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn reset(&self, reset: Reset) -> Quiesced {
        self.resets.lock().unwrap().push(reset);
        self.held()
    }

    fn retire_memory(&self, deadline: Instant) -> Quiesced {
        self.retirements.lock().unwrap().push(deadline);
        self.held()
    }

    fn detach(&self, _deadline: Instant) -> Quiesced {
        if let Some(call) = &*self.on_detach.lock().unwrap() {
            call();
        }
        let hold = self.hold_detach.lock().unwrap().clone();
        self.detached.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if let Some(hold) = hold {
                hold.notified().await;
            }
        })
    }
}

/// The counts are of the whole process, so one test at a time runs in it.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server on a socket in a directory of its own, on a thread of its own.
pub struct Server {
    pub fake: Arc<Fake>,
    pub path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    _directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(|| None)
    }

    /// `log` is called on the server's thread.
    pub fn start_with(
        log: impl FnOnce() -> Option<tracing::subscriber::DefaultGuard> + Send + 'static,
    ) -> Self {
        let alone = alone();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vfio-user.sock");
        let listener = Listener::bind(&path, None).unwrap();
        let fake = Fake::new();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let fake = fake.clone();
            move || {
                let _log = log();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let serving = vfio_user_server::serve(listener, fake.host.clone(), fake, async {
                    let _ = stopped.await;
                });
                runtime.block_on(is_send(serving))
            }
        });
        Self { fake, path, stop: Some(stop), thread: Some(thread), _directory: directory, _alone: alone }
    }

    /// A connection on which nothing has been said.
    pub fn dial(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).unwrap())
    }

    /// A connection with an agreed version (as QEMU does: REGION_WRITE_MULTI included).
    pub fn connect(&self) -> Client {
        let mut client = self.dial();
        client.hello();
        client
    }

    /// Asks it to end.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until `detach` was called `times` times.
    pub fn wait_detached(&self, times: usize) {
        eventually("the client to be detached", || self.fake.detached.load(Ordering::SeqCst) >= times);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap().unwrap();
            assert!(!self.path.exists(), "the socket is removed at the end");
        }
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

/// Checks again and again until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A reply.
#[derive(Debug)]
pub struct Answer {
    pub header: Header,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    pub fn errno(&self) -> i32 {
        if self.header.flags & flags::ERROR != 0 {
            assert_eq!(self.header.size as usize, HEADER, "an error is a header alone");
        }
        self.header.error as i32
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.header.flags, flags::REPLY, "{self:?}");
        assert_eq!(self.header.error, 0);
        self
    }

    pub fn fixed<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.body).ok().unwrap().0
    }
}

/// A client that sends what it is told.
pub struct Client {
    pub stream: UnixStream,
    id: u16,
}

impl Client {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, id: 0 }
    }

    pub fn hello(&mut self) {
        let json = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true}}\0";
        self.ask(command::VERSION, json).ok();
    }

    /// Sends bytes with descriptors.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent =
            restart(|| sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))
                .unwrap();
        // What a full socket did not take goes without the descriptors.
        (&self.stream).write_all(&bytes[sent..]).unwrap();
    }

    /// A request, as bytes.
    pub fn message(&mut self, command: u16, payload: &[u8]) -> Vec<u8> {
        self.id += 1;
        let size = (HEADER + payload.len()) as u32;
        let header = Header { id: self.id, command, size, flags: 0, error: 0 };
        [header.as_bytes(), payload].concat()
    }

    pub fn ask_with(&mut self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        let message = self.message(command, payload);
        self.send(&message, fds);
        let answer = self.receive().expect("an answer");
        assert_eq!((answer.header.id, answer.header.command), (self.id, command));
        answer
    }

    pub fn ask(&mut self, command: u16, payload: &[u8]) -> Answer {
        self.ask_with(command, payload, &[])
    }

    pub fn ask_struct(&mut self, command: u16, payload: &(impl IntoBytes + Immutable)) -> Answer {
        self.ask(command, payload.as_bytes())
    }

    /// The next message, as a strict client reads it: the header in one piece, descriptors with it.
    pub fn receive(&mut self) -> Option<Answer> {
        let mut header = Header::default();
        let (got, fds) = self.receive_bytes(header.as_mut_bytes());
        if got == 0 {
            return None;
        }
        assert_eq!(got, HEADER, "the header arrives in one piece");
        let mut body = vec![0; header.size as usize - HEADER];
        let mut filled = 0;
        while filled < body.len() {
            let (got, more) = self.receive_bytes(&mut body[filled..]);
            assert!(got > 0 && more.is_empty());
            filled += got;
        }
        Some(Answer { header, body, fds })
    }

    fn receive_bytes(&self, bytes: &mut [u8]) -> (usize, Vec<OwnedFd>) {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = restart(|| {
            recvmsg(&self.stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let got = match got {
            Ok(got) => got.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("waited in vain for the server: {error}"),
        };
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        (got, fds.flatten().collect())
    }

    /// Whether the server ends the connection, after any replies.
    pub fn is_closed_by_server(&mut self) -> bool {
        while let Some(answer) = self.receive() {
            drop(answer);
        }
        true
    }

    /// A simple request that works on any healthy connection.
    pub fn is_healthy(&mut self) -> bool {
        let info = self.ask(command::DEVICE_GET_INFO, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        info.ok().body.len() == 16
    }
}

/// A system call with a timeout, which a process that was stopped and continued does not restart by itself.
fn restart<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
}

pub fn memfd(name: &str, size: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    fd
}

/// Guest memory.
pub fn guest(pages: u64) -> OwnedFd {
    memfd("guest-memory", pages * PAGE)
}

pub fn eventfd() -> OwnedFd {
    use rustix::event::{EventfdFlags, eventfd};
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Reads and resets an eventfd.
pub fn count(fd: &OwnedFd) -> u64 {
    let mut data = [0; 8];
    rustix::io::read(fd, &mut data).map_or(0, |_| u64::from_ne_bytes(data))
}

pub fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

/// What this process holds: descriptors, and mappings of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    fds: usize,
    guest_maps: usize,
}

pub fn holdings() -> Holdings {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    Holdings {
        fds: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        guest_maps: maps.lines().filter(|line| line.contains("guest-memory")).count(),
    }
}

/// All mappings: compare with some slack, for threads and the allocator have theirs.
pub fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Fails unless this process comes back to what it held.
pub fn expect_holdings(before: Holdings) {
    let start = Instant::now();
    while holdings() != before {
        if start.elapsed() > PATIENCE {
            let links = std::fs::read_dir("/proc/self/fd").unwrap();
            let links: Vec<_> = links.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok()).collect();
            panic!("leak: {before:?} became {:?}: {links:?}", holdings());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a client's session against a fresh server and checks that nothing stays behind: not while the
/// client is connected (for what `f` gives back), and not after it left.
pub fn leaves_nothing(f: impl FnOnce(&Server, &mut Client)) {
    let server = Server::start();
    // The first connection and the first mapping set up what stays for good.
    drop(server.connect());
    // Once a client has its answer, nothing is left of the one before: this is what a client costs.
    let mut client = server.connect();
    let before = holdings();
    f(&server, &mut client);
    drop(client);
    let mut next = server.connect();
    assert!(next.is_healthy(), "the next client is served");
    expect_holdings(before);
}

/// Runs a future to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(pin!(future))
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A socket that takes for ever to close, and what ends that when it is dropped.
pub fn lingering() -> (OwnedFd, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let theirs = listener.accept().unwrap().0;
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 65536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&ours, Some(Duration::from_secs(3600))).unwrap();
    (ours.into(), theirs)
}
