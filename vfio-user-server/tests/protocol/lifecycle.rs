//! Clients come and go; sockets are found and left.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use vfio_user_server::wire::{Header, SetIrqs, command};
use vfio_user_server::{Listener, serve};
use zerocopy::IntoBytes;

use super::dma::map;
use super::support::*;

fn use_it(client: &mut Client, memory: &OwnedFd) {
    client.ask_with(command::DMA_MAP, map(0, 2 * PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    client.ask_with(command::DMA_MAP, map(1 << 32, PAGE, PAGE, 1).as_bytes(), &[memory.as_fd()]).ok();
    let events: Vec<_> = (0..16).map(|_| eventfd()).collect();
    let set = SetIrqs { argsz: 20, flags: 0x24, index: 2, start: 0, count: 16 };
    client.ask_with(command::DEVICE_SET_IRQS, set.as_bytes(), &borrow(&events)).ok();
    client.ask(command::REGION_WRITE, &[4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 6, 0]).ok();
}

#[test]
fn a_hundred_clients_one_after_the_other_leave_nothing() {
    let server = Server::start();
    let memory = guest(2);
    drop(server.connect());
    let client = server.connect();
    let (before, maps) = (holdings(), mappings());
    drop(client);
    for round in 0..100 {
        let mut client = server.connect();
        use_it(&mut client, &memory);
        assert!(server.fake.host.bus_master());
        match round % 4 {
            // In the middle of a message, with descriptors; in the middle of a pipeline; politely; rudely.
            0 => client.send(&[1, 2, 3], &[memory.as_fd()]),
            1 => (0..20).for_each(|_| {
                let message = client.message(command::DEVICE_RESET, b"");
                client.send(&message, &[]);
            }),
            2 => client.stream.shutdown(std::net::Shutdown::Both).unwrap(),
            _ => client.send(&[0xff; 16], &[]),
        }
        drop(client);
        server.wait_detached(round + 3);
    }
    let _client = server.connect();
    expect_holdings(before);
    assert!(mappings() <= maps + 16, "{maps} mappings became {}", mappings());
    let host = &server.fake.host;
    assert!(!host.bus_master() && host.dma.table().is_empty() && !host.interrupts.msix_enabled());
}

/// Runs this test binary's `a_client_to_be_killed` as a process, and kills it.
#[test]
fn a_client_that_is_killed_leaves_nothing() {
    leaves_nothing(|server, client| {
        drop(std::mem::replace(client, Client::new(UnixStream::pair().unwrap().0)));
        server.wait_detached(2);
        let detached = server.fake.detached.load(Ordering::SeqCst);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifecycle::a_client_to_be_killed"])
            .env("QUARRY_TEST_SOCKET", &server.path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        eventually("the child to use the device", || server.fake.host.bus_master());
        child.kill().unwrap();
        child.wait().unwrap();
        server.wait_detached(detached + 1);
    });
}

/// Run by the test above, as a process of its own; by itself it does nothing.
#[test]
fn a_client_to_be_killed() {
    let Some(path) = std::env::var_os("QUARRY_TEST_SOCKET") else { return };
    let mut client = Client::new(UnixStream::connect(path).unwrap());
    client.hello();
    use_it(&mut client, &guest(2));
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn one_client_at_a_time() {
    let server = Server::start();
    let mut first = server.connect();
    for _ in 0..20 {
        let start = Instant::now();
        assert!(server.dial().is_closed_by_server());
        assert!(start.elapsed() < PATIENCE, "turned away, not left waiting");
    }
    assert!(first.is_healthy());
    // Who comes when the first has just left is served, though the server may not have seen that yet.
    for left in 1..50 {
        drop(first);
        first = server.connect();
        assert!(first.is_healthy());
        assert_eq!(server.fake.detached.load(Ordering::SeqCst), left);
    }
}

#[test]
fn disconnect_while_a_reset_waits() {
    let server = Server::start();
    let mut client = server.connect();
    *server.fake.hold.lock().unwrap() = Some(Arc::new(Notify::new()));
    let message = client.message(command::DEVICE_RESET, b"");
    client.send(&message, &[]);
    client.send(&message, &[]);
    eventually("the reset to start", || !server.fake.resets.lock().unwrap().is_empty());
    drop(client);
    server.wait_detached(1);
    *server.fake.hold.lock().unwrap() = None;
    assert!(server.connect().is_healthy());
}

#[test]
fn the_next_client_finds_the_function_as_after_power_on() {
    let server = Server::start();
    let mut client = server.connect();
    client.ask(command::REGION_WRITE, &[4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0, 6, 4]).ok();
    drop(client);
    let mut client = server.connect();
    let answer = client.ask(command::REGION_READ, &[4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0]).ok();
    assert_eq!(answer.body[16..], [0, 0]);
    assert!(!server.fake.host.bus_master());
}

/// Two functions served by one thread, until this is dropped.
struct Together(Arc<Notify>, Option<std::thread::JoinHandle<()>>);

fn serve_on_one_thread(paths: &[PathBuf; 2], fakes: &[Arc<Fake>; 2]) -> Together {
    let listeners = paths.clone().map(|path| Listener::bind(&path, None).unwrap());
    let (stop, fakes) = (Arc::new(Notify::new()), fakes.clone());
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        block_on(async {
            let [a, b] = listeners;
            let [fa, fb] = fakes;
            let first = serve(a, fa.host.clone(), fa.clone(), stopped.notified());
            let second = serve(b, fb.host.clone(), fb.clone(), stopped.notified());
            let _ = tokio::join!(first, second);
        });
    });
    Together(stop, Some(thread))
}

impl Drop for Together {
    fn drop(&mut self) {
        self.0.notify_waiters();
        let ended = self.1.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// Two functions on one thread: one client stalls in every way there is, the other one's requests are
/// answered all the same.
#[test]
fn a_stalled_client_stalls_nobody() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| directory.path().join(name));
    let fakes = [Fake::new(), Fake::new()];
    let together = serve_on_one_thread(&paths, &fakes);
    let memory = guest(2);
    let mut healthy = Client::new(UnixStream::connect(&paths[1]).unwrap());
    healthy.hello();
    // Half a message.
    let mut stalled = Client::new(UnixStream::connect(&paths[0]).unwrap());
    stalled.hello();
    stalled.send(&[9; 7], &[]);
    assert!(healthy.is_healthy());
    drop(stalled);
    // Does not read its answers.
    let mut stalled = Client::new(UnixStream::connect(&paths[0]).unwrap());
    stalled.hello();
    let info = stalled.message(command::DEVICE_GET_INFO, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    stalled.stream.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut stalled.stream, &info).is_ok() {}
    assert!(healthy.is_healthy());
    drop(stalled);
    // Waits for an unmap.
    let mut stalled = Client::new(UnixStream::connect(&paths[0]).unwrap());
    stalled.hello();
    stalled.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    *fakes[0].hold.lock().unwrap() = Some(Arc::new(Notify::new()));
    let unmap = stalled.message(command::DMA_UNMAP, super::dma::unmap(0, PAGE, 0).as_bytes());
    stalled.send(&unmap, &[]);
    stalled.stream.set_nonblocking(true).unwrap();
    let mut served = 0;
    while served < 50 && std::io::Read::read(&mut &stalled.stream, &mut [0]).is_err() {
        assert!(healthy.is_healthy());
        served += 1;
    }
    // The unmap waits for seconds. Had the others to wait with it, it would be one of them, or two.
    assert!(served >= 5, "{served} requests of others were answered while the unmap waited");
    drop((stalled, healthy));
    drop(together);
}

/// Two functions on one thread, as in `a_stalled_client_stalls_nobody`: whoever comes again and again to the one takes no
/// time from the other.
#[test]
fn a_crowd_at_the_door_keeps_nobody_else_waiting() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| directory.path().join(name));
    let fakes = [Fake::new(), Fake::new()];
    let together = serve_on_one_thread(&paths, &fakes);
    let mut inside = Client::new(UnixStream::connect(&paths[0]).unwrap());
    inside.hello();
    let mut healthy = Client::new(UnixStream::connect(&paths[1]).unwrap());
    healthy.hello();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    drop(UnixStream::connect(&paths[0]));
                }
            });
        }
        for _ in 0..200 {
            assert!(healthy.is_healthy() && inside.is_healthy());
        }
        over.store(true, Ordering::Relaxed);
    });
    drop((inside, healthy));
    drop(together);
}

#[test]
fn a_client_that_never_stops_talking_does_not_hold_up_the_end() {
    let mut server = Server::start();
    let client = server.connect();
    let talking = std::thread::spawn(move || {
        // Replies that nobody asked for: ignored, and there is always one more.
        let header = Header { id: 1, command: 1, size: 16, flags: 1, error: 0 };
        let many: Vec<u8> = header.as_bytes().repeat(4096);
        while std::io::Write::write_all(&mut &client.stream, &many).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(100));
    server.stop();
    eventually("the server to end", || server.has_ended());
    talking.join().unwrap();
}

#[test]
fn a_path_is_taken_over_from_the_dead_and_from_nobody_else() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    // A server that was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(exists(&path));
    let listener = Listener::bind(&path, None).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let error = Listener::bind(&path, None).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(exists(&path));
    drop(listener);
    assert!(!exists(&path));
    drop(Listener::bind(&path, Some(0o666)).map(|_| {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o666);
    }));
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(Listener::bind(&path, None).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
    // A successor that took the place is not removed.
    let old = Listener::bind(&path, None).unwrap();
    std::fs::remove_file(&path).unwrap();
    let new = Listener::bind(&path, None).unwrap();
    drop(old);
    assert!(exists(&path));
    drop(new);
    let long = directory.path().join("x".repeat(120));
    assert!(Listener::bind(&long, None).unwrap_err().to_string().contains("107"));
    assert!(Listener::bind(&directory.path().join("no/such"), None).is_err());
}

#[test]
fn a_listening_socket_is_inherited_and_nothing_else_is() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let inherited = Listener::inherited(listener.as_raw_fd()).unwrap();
    drop(inherited);
    assert!(exists(&path), "not ours to remove");
    Listener::from_fd(listener.into()).unwrap();
    assert!(Listener::inherited(-1).is_err());
    assert!(Listener::inherited(987_654).is_err());
    assert!(Listener::from_fd(guest(1)).is_err());
    assert!(Listener::from_fd(UnixStream::pair().unwrap().0.into()).is_err());
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Listener::from_fd(tcp.into()).is_err());
}

/// The guard against truncated guest memory does not hide other faults.
#[test]
fn a_bus_error_elsewhere_still_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    let _alone = alone();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::a_bus_error_elsewhere"])
        .env("QUARRY_TEST_CHILD", "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// Run by the test above, as a process of its own; by itself it does nothing.
#[test]
fn a_bus_error_elsewhere() {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let Some(_) = std::env::var_os("QUARRY_TEST_CHILD") else { return };
    // Installs the guard.
    let space = vfio_user_server::DmaSpace::new();
    space.map(0, PAGE, Some(guest(1)), 0, vfio_user_server::MapFlags::READ).unwrap();
    let file = memfd("elsewhere", PAGE);
    // SAFETY: a fresh mapping touches nothing that exists; it is read below, raw, to provoke the fault.
    unsafe {
        let at = mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap();
        rustix::fs::ftruncate(&file, 0).unwrap();
        at.cast::<u8>().read_volatile();
    }
}

/// A function that has not finished with one client would work on for the next.
#[test]
fn the_next_client_waits_until_the_function_let_go_of_the_last() {
    let server = Server::start();
    let memory = guest(2);
    let mut client = server.connect();
    use_it(&mut client, &memory);
    let table = server.fake.host.dma.table();
    let hold = Arc::new(Notify::new());
    *server.fake.hold_detach.lock().unwrap() = Some(hold.clone());
    drop(client);
    server.wait_detached(1);
    let mut next = server.dial();
    let hello = next.message(command::VERSION, &[0, 0, 0, 0]);
    next.send(&hello, &[]);
    next.stream.set_read_timeout(Some(Duration::from_millis(4500))).unwrap();
    assert!(std::io::Read::read(&mut &next.stream, &mut [0]).is_err(), "no answer yet");
    // The memory of the one who left is out of reach by now.
    eventually("the memory to be out of reach", || {
        rustix::io::pwrite(&memory, &[0; 8], 0).unwrap();
        table.write(0, b"too late").unwrap();
        let mut seen = [1; 8];
        rustix::io::pread(&memory, &mut seen, 0).unwrap();
        seen == [0; 8]
    });
    *server.fake.hold_detach.lock().unwrap() = None;
    hold.notify_one();
    next.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    next.receive().unwrap().ok();
    assert!(next.is_healthy());
}

/// Counts the lines of a log.
struct Lines(Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Connecting again and again does not fill the log, whatever is wrong each time.
#[test]
fn clients_that_come_and_go_write_few_lines() {
    let lines = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let server = {
        // The thread of the server has this one, too.
        let lines = lines.clone();
        Server::start_with(move || Some(tracing::subscriber::set_default(Lines(lines))))
    };
    let start = Instant::now();
    for round in 0..300 {
        let mut client = server.dial();
        match round % 3 {
            0 => client.send(&[0xff; 16], &[]),
            1 => client.hello(),
            _ => client.send(&[1, 2, 3], &[]),
        }
        drop(client);
        server.wait_detached(round + 1);
    }
    // Twenty lines in a window of ten seconds.
    let windows = start.elapsed().as_secs() as usize / 10 + 2;
    let lines = lines.load(Ordering::SeqCst);
    assert!((1..=20 * windows).contains(&lines), "{lines} lines");
}
