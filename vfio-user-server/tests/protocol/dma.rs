//! Guest memory that comes and goes (C3 groups 6 to 8).

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use vfio_user_server::dma::MAX_REGIONS;
use vfio_user_server::wire::{DmaMap, DmaUnmap, command};
use zerocopy::IntoBytes;

use super::support::*;

const ALL: u32 = 1 << 1;

pub fn map(address: u64, size: u64, offset: u64, flags: u32) -> DmaMap {
    DmaMap { argsz: 32, flags, offset, address, size }
}

pub fn unmap(address: u64, size: u64, flags: u32) -> DmaUnmap {
    DmaUnmap { argsz: 24, flags, address, size }
}

#[test]
fn map_and_unmap_reach_the_clients_memory() {
    leaves_nothing(|server, client| {
        let memory = guest(4);
        let ask = map(0x10000, 2 * PAGE, PAGE, 3);
        let answer = client.ask_with(command::DMA_MAP, ask.as_bytes(), &[memory.as_fd()]).ok();
        assert!(answer.body.is_empty());
        let dma = &server.fake.host.dma;
        dma.table().write(0x10ffe, b"text").unwrap();
        let mut seen = [0; 4];
        rustix::io::pread(&memory, &mut seen, 2 * PAGE - 2).unwrap();
        assert_eq!(&seen, b"text");
        let ask = unmap(0x10000, 2 * PAGE, 0);
        // SPDK attaches a descriptor to this one, too.
        let answer = client.ask_with(command::DMA_UNMAP, ask.as_bytes(), &[memory.as_fd()]).ok();
        assert_eq!(answer.body, ask.as_bytes());
        assert!(dma.table().is_empty());
        client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 1).as_bytes(), &[memory.as_fd()]).ok();
        client.ask_with(command::DMA_MAP, map(0x8000, PAGE, 0, 2).as_bytes(), &[memory.as_fd()]).ok();
        // ROM of QEMU comes without a descriptor; so may anything.
        client.ask_struct(command::DMA_MAP, &map(0x4000, PAGE, 0, 1)).ok();
        client.ask_struct(command::DMA_UNMAP, &unmap(0, 0, ALL)).ok();
        assert!(dma.table().is_empty());
        assert_eq!(server.fake.retirements.lock().unwrap().len(), 2);
        client.ask_with(command::DMA_MAP, map(0, 4 * PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    });
}

#[test]
fn map_flags_of_access_modes() {
    leaves_nothing(|server, client| {
        let memory = guest(1);
        let mut next = 0;
        let mut ask = |flags, with_fd: bool| {
            next += PAGE;
            let fd = [memory.as_fd()];
            let ask = map(next, PAGE, 0, flags);
            (client.ask_with(command::DMA_MAP, ask.as_bytes(), &fd[..with_fd.into()]).errno(), next)
        };
        // MMAP, and MMAP with FILE_IO, are in reach; FILE_IO alone is not.
        for (flags, reach) in [(0x3, true), (0x7, true), (0xf, true), (0xb, false)] {
            let (errno, iova) = ask(flags, true);
            assert_eq!(errno, 0);
            assert_eq!(server.fake.host.dma.table().read(iova, &mut [0]).is_ok(), reach, "{flags:#x}");
        }
        assert_eq!(ask(0x7, false).0, libc::EINVAL);
        assert_eq!(ask(0xb, false).0, libc::EINVAL);
        assert_eq!(ask(0x13, true).0, libc::EINVAL);
        assert_eq!(ask(0, true).0, 0);
    });
}

#[test]
fn bad_maps_are_refused_and_their_descriptors_closed() {
    leaves_nothing(|server, client| {
        let memory = guest(4);
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let directory = std::fs::File::open("/").unwrap();
        let read_only = std::fs::File::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap();
        let foreign = std::fs::File::open("/proc/self/maps").unwrap();
        let before = holdings();
        let bad = [
            (map(0, 0, 0, 3), libc::EINVAL),
            (map(u64::MAX - PAGE + 1, 2 * PAGE, 0, 3), libc::EINVAL),
            (map(1, PAGE, 0, 3), libc::EINVAL),
            (map(0, PAGE + 1, 0, 3), libc::EINVAL),
            (map(0, PAGE, 1, 3), libc::EINVAL),
            (map(0, 5 * PAGE, 0, 3), libc::EINVAL),
            (map(0, PAGE, 4 * PAGE, 3), libc::EINVAL),
            (map(0, PAGE, u64::MAX - PAGE + 1, 3), libc::E2BIG),
            (map(0, 1 << 62, 0, 3), libc::E2BIG),
            (map(0, PAGE, 0, 0x13), libc::EINVAL),
            (DmaMap { argsz: 31, ..map(0, PAGE, 0, 3) }, libc::EINVAL),
        ];
        for (ask, errno) in bad {
            let answer = client.ask_with(command::DMA_MAP, ask.as_bytes(), &[memory.as_fd()]);
            assert_eq!(answer.errno(), errno, "{ask:?}");
        }
        let ask = map(0, PAGE, 0, 3);
        let socket = client.stream.try_clone().unwrap();
        for fd in [pipe.as_fd(), directory.as_fd(), read_only.as_fd(), foreign.as_fd(), socket.as_fd()] {
            assert_ne!(client.ask_with(command::DMA_MAP, ask.as_bytes(), &[fd]).errno(), 0);
        }
        drop(socket);
        let two = [memory.as_fd(), memory.as_fd()];
        assert_eq!(client.ask_with(command::DMA_MAP, ask.as_bytes(), &two).errno(), libc::EINVAL);
        expect_holdings(before);
        assert!(server.fake.host.dma.table().is_empty());
        client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 1).as_bytes(), &[read_only.as_fd()]).ok();
    });
}

#[test]
fn overlaps_are_refused_and_neighbours_are_not() {
    leaves_nothing(|_, client| {
        let memory = guest(8);
        let mut ask = |start: u64, pages: u64| {
            let ask = map(start * PAGE, pages * PAGE, 0, 3);
            client.ask_with(command::DMA_MAP, ask.as_bytes(), &[memory.as_fd()]).errno()
        };
        assert_eq!(ask(4, 2), 0);
        for (start, pages) in [(4, 2), (4, 1), (5, 1), (3, 2), (5, 2), (3, 4), (0, 8)] {
            assert_eq!(ask(start, pages), libc::EEXIST, "{start} {pages}");
        }
        assert_eq!((ask(3, 1), ask(6, 1), ask(0, 3)), (0, 0, 0));
    });
}

#[test]
fn unmaps_that_cut_a_region_are_refused_and_others_are_not() {
    leaves_nothing(|server, client| {
        let memory = guest(8);
        for start in [2, 4, 6] {
            let ask = map(start * PAGE, 2 * PAGE, 0, 3);
            client.ask_with(command::DMA_MAP, ask.as_bytes(), &[memory.as_fd()]).ok();
        }
        let mut ask = |address, size, flags| {
            client.ask_struct(command::DMA_UNMAP, &unmap(address, size, flags)).errno()
        };
        assert_eq!(ask(2 * PAGE, PAGE, 0), libc::ENOENT);
        assert_eq!(ask(3 * PAGE, PAGE, 0), libc::ENOENT);
        assert_eq!(ask(2 * PAGE, 3 * PAGE, 0), libc::ENOENT);
        assert_eq!(ask(PAGE, u64::MAX, 0), libc::ENOENT);
        assert_eq!(ask(2 * PAGE, 0, 0), libc::EINVAL);
        assert_eq!(ask(PAGE, 0, ALL), libc::EINVAL);
        assert_eq!(ask(0, PAGE, ALL), libc::EINVAL);
        assert_eq!(ask(2 * PAGE, 2 * PAGE, 1), libc::EINVAL, "dirty bitmaps are not offered");
        assert_eq!(ask(2 * PAGE, 2 * PAGE, 4), libc::EINVAL);
        assert_eq!(server.fake.host.dma.table().len(), 3);
        // Nothing is there: unmapped already. cloud-hypervisor would hang on an error.
        assert_eq!(ask(0, 2 * PAGE, 0), 0);
        assert_eq!(ask(2 * PAGE, 4 * PAGE, 0), 0);
        assert_eq!(server.fake.host.dma.table().len(), 1);
        let short = DmaUnmap { argsz: 23, ..unmap(6 * PAGE, 2 * PAGE, 0) };
        assert_eq!(client.ask_struct(command::DMA_UNMAP, &short).errno(), libc::EINVAL);
    });
}

#[test]
fn too_many_regions_are_refused() {
    leaves_nothing(|_, client| {
        let total = MAX_REGIONS as u64;
        let reader = std::thread::spawn({
            let mut client = Client::new(client.stream.try_clone().unwrap());
            move || (0..=total).map(|_| client.receive().unwrap().errno()).collect::<Vec<_>>()
        });
        for i in 0..=total {
            let message = client.message(command::DMA_MAP, map(i * PAGE, PAGE, 0, 3).as_bytes());
            client.send(&message, &[]);
        }
        let errnos = reader.join().unwrap();
        assert!(errnos[..MAX_REGIONS].iter().all(|&errno| errno == 0));
        assert_eq!(errnos[MAX_REGIONS], libc::ENOSPC);
    });
}

#[test]
fn an_unmap_is_answered_when_the_function_let_go() {
    // What is done late is another matter (see below), so this is tried until it was done in time.
    for _ in 0..5 {
        if unmap_that_is_let_go() < Duration::from_millis(1500) {
            return;
        }
    }
    panic!("this machine is too busy to do anything within seconds");
}

/// Returns how long the function needed, for want of a processor.
fn unmap_that_is_let_go() -> Duration {
    let server = Server::start();
    let mut client = server.connect();
    let memory = guest(1);
    client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    let in_flight = server.fake.host.dma.table();
    let hold = Arc::new(Notify::new());
    *server.fake.hold.lock().unwrap() = Some(hold.clone());

    let message = client.message(command::DMA_UNMAP, unmap(0, PAGE, 0).as_bytes());
    let start = Instant::now();
    client.send(&message, &[]);
    // Pipelined behind it; it waits its turn.
    let info = client.message(command::DEVICE_GET_INFO, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    client.send(&info, &[]);
    eventually("the function to be asked", || !server.fake.retirements.lock().unwrap().is_empty());
    assert!(server.fake.host.dma.table().is_empty(), "new commands do not find it");
    in_flight.write(0, b"in flight").unwrap();
    client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(std::io::Read::read(&mut &client.stream, &mut [0]).is_err(), "no answer yet");
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    hold.notify_one();
    let answer = client.receive().unwrap();
    let took = start.elapsed();
    if took >= Duration::from_millis(1500) {
        return took;
    }
    assert_eq!(answer.ok().header.command, command::DMA_UNMAP);
    assert_eq!(client.receive().unwrap().ok().header.command, command::DEVICE_GET_INFO);
    let mut seen = [0; 9];
    rustix::io::pread(&memory, &mut seen, 0).unwrap();
    assert_eq!(&seen, b"in flight");
    // I/O on other memory holds the table all the same; it reaches nothing of this.
    in_flight.write(0, b"too late!").unwrap();
    rustix::io::pread(&memory, &mut seen, 0).unwrap();
    assert_eq!(&seen, b"in flight");
    took
}

/// QEMU takes the memory away after five seconds; it must not be told that it may.
#[test]
fn a_client_whose_memory_is_held_for_ever_is_not_told_that_it_is_free() {
    let server = Server::start();
    let mut client = server.connect();
    let memory = guest(1);
    client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    let in_flight = server.fake.host.dma.table();
    let hold = Arc::new(Notify::new());
    *server.fake.hold.lock().unwrap() = Some(hold.clone());
    let start = Instant::now();
    let message = client.message(command::DMA_UNMAP, unmap(0, 0, ALL).as_bytes());
    client.send(&message, &[]);
    // The function gives up shortly before its deadline; the I/O is not over for that.
    eventually("the function to be asked", || !server.fake.retirements.lock().unwrap().is_empty());
    let asked = Instant::now();
    eventually("the deadline to come near", || start.elapsed() > Duration::from_millis(2900));
    hold.notify_one();
    assert_eq!(client.receive().unwrap().errno(), libc::EIO);
    assert!(client.is_closed_by_server());
    let deadline = server.fake.retirements.lock().unwrap()[0];
    assert!(deadline >= start + Duration::from_secs(2) && deadline <= asked + Duration::from_secs(4));
    // Not one byte changes any more, whoever still holds the old table.
    in_flight.write(0, b"too late").unwrap();
    let mut seen = [1; 8];
    rustix::io::pread(&memory, &mut seen, 0).unwrap();
    assert_eq!(seen, [0; 8]);
    *server.fake.hold.lock().unwrap() = None;
}

/// A function that never answers, but holds nothing.
#[test]
fn an_unmap_does_not_wait_for_ever_for_a_function_that_holds_nothing() {
    let server = Server::start();
    let mut client = server.connect();
    let memory = guest(1);
    client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    *server.fake.hold.lock().unwrap() = Some(Arc::new(Notify::new()));
    client.ask_struct(command::DMA_UNMAP, &unmap(0, 0, ALL)).ok();
    *server.fake.hold.lock().unwrap() = None;
}

#[test]
fn disconnect_while_an_unmap_waits() {
    leaves_nothing(|server, client| {
        let memory = guest(1);
        *server.fake.hold.lock().unwrap() = Some(Arc::new(Notify::new()));
        let fake = &server.fake;
        // Noticed at once, not at the deadline. Several times, for any one may happen while the machine does other things.
        let noticed = (1..=5).any(|time| {
            client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
            let message = client.message(command::DMA_UNMAP, unmap(0, PAGE, 0).as_bytes());
            client.send(&message, &[]);
            client.send(&message, &[]);
            eventually("the function to be asked", || fake.retirements.lock().unwrap().len() == time);
            client.stream.shutdown(std::net::Shutdown::Both).unwrap();
            server.wait_detached(1 + time);
            let in_time = Instant::now() < fake.retirements.lock().unwrap()[time - 1];
            if !in_time {
                *client = server.connect();
            }
            in_time
        });
        assert!(noticed);
        *server.fake.hold.lock().unwrap() = None;
    });
}

/// A VMM that is killed while it unmaps: I/O under way reads and writes the guest's memory until the function is done with
/// it. Zeroes in its place would go to the disk.
#[test]
fn a_client_that_leaves_while_an_unmap_waits_leaves_its_memory_to_what_is_under_way() {
    let server = Server::start();
    let mut client = server.connect();
    let memory = guest(1);
    client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
    let in_flight = server.fake.host.dma.table();
    in_flight.write(0, b"data").unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    *server.fake.on_detach.lock().unwrap() = Some(Box::new({
        let seen = seen.clone();
        move || {
            let mut data = [0; 4];
            in_flight.read(0, &mut data).unwrap();
            seen.lock().unwrap().extend_from_slice(&data);
        }
    }));
    *server.fake.hold.lock().unwrap() = Some(Arc::new(Notify::new()));
    let message = client.message(command::DMA_UNMAP, unmap(0, PAGE, 0).as_bytes());
    client.send(&message, &[]);
    eventually("the function to be asked", || !server.fake.retirements.lock().unwrap().is_empty());
    drop(client);
    server.wait_detached(1);
    assert_eq!(*seen.lock().unwrap(), b"data");
    *server.fake.hold.lock().unwrap() = None;
    *server.fake.on_detach.lock().unwrap() = None;
}

#[test]
fn the_same_address_mapped_again_to_other_memory() {
    leaves_nothing(|server, client| {
        let (first, second) = (guest(1), guest(1));
        client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[first.as_fd()]).ok();
        let before = server.fake.host.dma.generation();
        client.ask_struct(command::DMA_UNMAP, &unmap(0, PAGE, 0)).ok();
        client.ask_with(command::DMA_MAP, map(0, PAGE, 0, 3).as_bytes(), &[second.as_fd()]).ok();
        let new = server.fake.host.dma.table();
        assert!(new.generation() > before);
        new.write(0, b"new").unwrap();
        let mut seen = [0; 3];
        rustix::io::pread(&second, &mut seen, 0).unwrap();
        assert_eq!(&seen, b"new");
    });
}

#[test]
fn truncated_memory_costs_the_client_its_connection_and_nobody_else_anything() {
    leaves_nothing(|server, client| {
        let memory = guest(4);
        client.ask_with(command::DMA_MAP, map(0, 4 * PAGE, 0, 3).as_bytes(), &[memory.as_fd()]).ok();
        rustix::fs::ftruncate(&memory, PAGE).unwrap();
        assert!(client.is_healthy(), "nobody has noticed");
        server.fake.host.dma.table().write(3 * PAGE, b"into the void").unwrap();
        assert!(client.is_closed_by_server());
        server.wait_detached(2);
        eventually("the damage to be repaired", || !server.fake.host.dma.is_broken());
    });
}
