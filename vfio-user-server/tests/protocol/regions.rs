//! Regions and configuration space (C3 group 10).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use vfio_user_server::wire::{MultiWrite, RegionAccess, RegionInfo, RegionIoFds, SparseMmap, command};
use vfio_user_server::{MappableArea, Reset};
use zerocopy::{FromBytes, IntoBytes};

use super::support::*;

fn info(argsz: u32, index: u32) -> RegionInfo {
    RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 }
}

fn read(client: &mut Client, region: u32, offset: u64, count: u32) -> Vec<u8> {
    let access = RegionAccess { offset, region, count };
    let answer = client.ask_struct(command::REGION_READ, &access).ok();
    assert_eq!(answer.body[..16], *access.as_bytes());
    answer.body[16..].to_vec()
}

fn write(client: &mut Client, region: u32, offset: u64, data: &[u8]) {
    let access = RegionAccess { offset, region, count: data.len() as u32 };
    let answer = client.ask(command::REGION_WRITE, &[access.as_bytes(), data].concat()).ok();
    assert_eq!(answer.body, access.as_bytes());
}

#[test]
fn region_info_of_every_region() {
    let server = Server::start();
    let mut client = server.connect();
    let expected = [(0xf, 0x4000), (0, 0), (0, 0), (0, 0), (3, 0x2000), (0, 0), (0, 0), (3, 4096), (0, 0)];
    for (index, (flags, size)) in (0..).zip(expected) {
        let answer = client.ask_struct(command::DEVICE_GET_REGION_INFO, &info(32, index)).ok();
        let got: RegionInfo = answer.fixed();
        assert_eq!((got.index, got.flags, got.size, got.offset), (index, flags, size, 0));
        assert_eq!(got.cap_offset, if index == 0 { 32 } else { 0 }, "where it will be; QEMU checks it");
        assert_eq!(got.argsz, if index == 0 { 64 } else { 32 });
        assert_eq!((answer.body.len(), answer.fds.len()), (32, 0), "the capability does not fit");
    }
    for (argsz, index) in [(31, 0), (0, 0), (32, 9), (32, u32::MAX)] {
        let answer = client.ask_struct(command::DEVICE_GET_REGION_INFO, &info(argsz, index));
        assert_eq!(answer.errno(), libc::EINVAL);
    }
}

#[test]
fn the_sparse_area_comes_with_one_descriptor_when_there_is_room() {
    leaves_nothing(|server, client| {
        // SPDK: 4064 bytes of payload; cloud-hypervisor and QEMU: 32, with the size that was asked for.
        for (argsz, payload) in [(64, 32), (4064, 4064), (65, 32), (u32::MAX, 32)] {
            let mut ask = info(argsz, 0).as_bytes().to_vec();
            ask.resize(payload, 0);
            let answer = client.ask(command::DEVICE_GET_REGION_INFO, &ask).ok();
            assert_eq!((answer.body.len(), answer.fds.len()), (64, 1));
            let got: RegionInfo = answer.fixed();
            assert_eq!((got.argsz, got.flags, got.cap_offset), (64, 0xf, 32));
            let area = SparseMmap::read_from_bytes(&answer.body[32..]).unwrap();
            assert_eq!((area.id, area.version, area.next, area.areas), (1, 1, 0, 1));
            assert_eq!((area.offset, area.size), (0x1000, 0x1000));
            // Offsets in the region are offsets in the file.
            let ours = &server_memory(server);
            rustix::io::pwrite(&answer.fds[0], b"bell", 0x1004).unwrap();
            let mut seen = [0; 4];
            rustix::io::pread(ours, &mut seen, 0x1004).unwrap();
            assert_eq!(&seen, b"bell");
        }
        for argsz in [33, 63] {
            let answer = client.ask_struct(command::DEVICE_GET_REGION_INFO, &info(argsz, 0)).ok();
            assert_eq!((answer.body.len(), answer.fds.len()), (32, 0));
        }
    });
}

/// The memory of one client's doorbells stays in its hands; the next one gets what the function has then.
#[test]
fn a_function_can_give_each_client_memory_of_its_own() {
    let server = Server::start();
    let mut first = server.connect();
    let theirs = first.ask_struct(command::DEVICE_GET_REGION_INFO, &info(64, 0)).ok();
    rustix::io::pwrite(&theirs.fds[0], b"old", 0x1000).unwrap();
    drop(first);
    server.wait_detached(1);
    let fresh = MappableArea { offset: 0x1000, size: 0x1000, memory: Arc::new(memfd("fresh", 0x2000)) };
    *server.fake.area.lock().unwrap() = fresh.clone();
    let mut next = server.connect();
    let answer = next.ask_struct(command::DEVICE_GET_REGION_INFO, &info(64, 0)).ok();
    assert_eq!((answer.body.len(), answer.fds.len()), (64, 1));
    rustix::io::pwrite(&answer.fds[0], b"new", 0x1000).unwrap();
    let mut seen = [0; 3];
    rustix::io::pread(&theirs.fds[0], &mut seen, 0x1000).unwrap();
    assert_eq!(&seen, b"old");
    rustix::io::pread(&*fresh.memory, &mut seen, 0x1000).unwrap();
    assert_eq!(&seen, b"new");
}

fn server_memory(server: &Server) -> std::os::fd::OwnedFd {
    use vfio_user_server::PciFunction;
    let area = server.fake.mappable(0).unwrap();
    area.memory.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn region_io_fds_are_none() {
    let server = Server::start();
    let mut client = server.connect();
    let ask = |argsz, flags, index, count| RegionIoFds { argsz, flags, index, count };
    for index in 0..9 {
        let answer = client.ask_struct(command::DEVICE_GET_REGION_IO_FDS, &ask(64, 0, index, 0)).ok();
        assert_eq!(answer.body, ask(16, 0, index, 0).as_bytes());
    }
    for bad in [ask(15, 0, 0, 0), ask(16, 1, 0, 0), ask(16, 0, 0, 1), ask(16, 0, 9, 0)] {
        assert_eq!(client.ask_struct(command::DEVICE_GET_REGION_IO_FDS, &bad).errno(), libc::EINVAL);
    }
}

#[test]
fn accesses_of_any_size_and_alignment_reach_the_function() {
    let server = Server::start();
    let mut client = server.connect();
    for (offset, count) in [(0, 4), (1, 3), (0xffd, 7), (0xffc, 8), (5, 5), (0x3ff8, 8), (0, 0x4000), (3, 0)]
    {
        let data = read(&mut client, 0, offset, count);
        assert!(data.iter().zip(offset..).all(|(&byte, at)| byte == at as u8));
        assert_eq!(data.len(), count as usize);
    }
    write(&mut client, 0, 0xffe, b"boundary");
    assert_eq!(&server.fake.registers.lock().unwrap()[0xffe..0x1006], b"boundary");
    write(&mut client, 0, 0, b"");
}

#[test]
fn accesses_outside_read_ones_and_write_nothing() {
    let server = Server::start();
    let mut client = server.connect();
    let outside = [
        (0, 0x4000, 4),
        (0, 0x3fff, 2),
        (0, u64::MAX, 1),
        (0, u64::MAX - 3, 8),
        (1, 0, 4),
        (2, 0, 4),
        (6, 0, 4),
        (7, 4096, 1),
        (7, 4095, 2),
        (8, 0, 1),
        (9, 0, 4),
        (u32::MAX, 0, 4),
        (0, 0, 0x4001),
    ];
    for (region, offset, count) in outside {
        assert!(read(&mut client, region, offset, count).iter().all(|&byte| byte == 0xff));
        write(&mut client, region, offset, &vec![0; count as usize]);
    }
    assert!(server.fake.registers.lock().unwrap().iter().enumerate().all(|(i, &byte)| byte == i as u8));
    let too_much = RegionAccess { offset: 0, region: 0, count: (1 << 20) + 1 };
    assert_eq!(client.ask_struct(command::REGION_READ, &too_much).errno(), libc::EINVAL);
    let too_much = RegionAccess { offset: 0, region: 0, count: u32::MAX };
    assert_eq!(client.ask_struct(command::REGION_READ, &too_much).errno(), libc::EINVAL);
    for (count, len) in [(4, 0), (4, 3), (4, 5), (u32::MAX, 4), (0, 1)] {
        let access = RegionAccess { offset: 0, region: 0, count };
        let ask = [access.as_bytes(), &vec![0; len]].concat();
        assert_eq!(client.ask(command::REGION_WRITE, &ask).errno(), libc::EINVAL, "{count} {len}");
    }
    // The largest message there is.
    read(&mut client, 0, 0, 1 << 20);
    write(&mut client, 0, 0, &vec![0; 1 << 20]);
}

fn multi(count: u64, writes: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut ask = count.to_ne_bytes().to_vec();
    for &(offset, region, count) in writes {
        let write = MultiWrite { offset, region, count, data: *b"multiple" };
        ask.extend_from_slice(write.as_bytes());
    }
    ask
}

#[test]
fn write_multi_does_what_fits_and_refuses_what_does_not() {
    let server = Server::start();
    let mut client = server.connect();
    let ask = multi(3, &[(0, 0, 8), (0x100, 0, 3), (0x3fff, 0, 1)]);
    assert_eq!(client.ask(command::REGION_WRITE_MULTI, &ask).ok().body, 3u64.to_ne_bytes());
    {
        let registers = server.fake.registers.lock().unwrap();
        assert_eq!((&registers[..8], &registers[0x100..0x104]), (&b"multiple"[..], &b"mul\x03"[..]));
    }
    assert_eq!(client.ask(command::REGION_WRITE_MULTI, &multi(0, &[])).ok().body, [0; 8]);
    let bad = [
        multi(2, &[(0, 0, 8)]),
        multi(0, &[(0, 0, 8)]),
        multi(u64::MAX, &[(0, 0, 8)]),
        multi(u64::MAX / 24 + 2, &[(0, 0, 8)]),
        multi(1, &[(0, 0, 9)]),
        multi(1, &[(0, 0, u32::MAX)]),
    ];
    for ask in bad {
        assert_eq!(client.ask(command::REGION_WRITE_MULTI, &ask).errno(), libc::EINVAL);
    }
    // Outside is nothing, as with single writes.
    client.ask(command::REGION_WRITE_MULTI, &multi(2, &[(u64::MAX, 0, 8), (0, 77, 8)])).ok();

    let mut plain = server_next(&server, client);
    plain.ask(command::VERSION, b"\0\0\0\0{}\0").ok();
    assert_eq!(
        plain.ask(command::REGION_WRITE_MULTI, &multi(0, &[])).errno(),
        libc::ENOTSUP,
        "not agreed on"
    );
}

fn server_next(server: &Server, client: Client) -> Client {
    drop(client);
    server.wait_detached(1);
    server.dial()
}

#[test]
fn config_space_bars_and_bus_master() {
    let server = Server::start();
    let mut client = server.connect();
    let host = &server.fake.host;
    assert_eq!(read(&mut client, 7, 0, 4), [0x36, 0x1b, 0x10, 0x00]);
    assert_eq!(read(&mut client, 7, 0, 4096).len(), 4096);
    write(&mut client, 7, 0, &[0xff; 4]);
    assert_eq!(read(&mut client, 7, 0, 4), [0x36, 0x1b, 0x10, 0x00]);
    // As cloud-hypervisor sizes BARs: 32 bits at a time.
    for (at, expected) in
        [(0x10, 0xffff_c004u32), (0x14, !0), (0x18, 0), (0x20, 0xffff_e004), (0x24, !0), (0x30, 0)]
    {
        write(&mut client, 7, at, &[0xff; 4]);
        assert_eq!(read(&mut client, 7, at, 4), expected.to_le_bytes(), "{at:#x}");
    }
    assert!(!host.bus_master());
    // As SPDK does: two bytes at 4.
    write(&mut client, 7, 4, &0x0404u16.to_le_bytes());
    assert!(host.bus_master());
    // D3hot: no DMA, and only configuration accesses are answered.
    write(&mut client, 7, 0x44, &[3, 0]);
    assert!(!host.bus_master());
    assert_eq!(read(&mut client, 0, 0, 4), [0xff; 4]);
    write(&mut client, 0, 0, &[0xaa; 4]);
    assert_eq!(server.fake.registers.lock().unwrap()[0], 0);
    write(&mut client, 7, 0x44, &[0, 0]);
    assert_eq!(server.fake.resets.lock().unwrap()[..], [Reset::PowerState]);
    assert_eq!(read(&mut client, 7, 4, 2), [0, 0], "as after power-on");
    assert_eq!(read(&mut client, 0, 0, 4), [0, 1, 2, 3]);
}

#[test]
fn resets_are_answered_when_they_are_done() {
    let server = Server::start();
    let mut client = server.connect();
    write(&mut client, 7, 4, &[6, 0]);
    client.ask(command::DEVICE_RESET, b"").ok();
    assert!(!server.fake.host.bus_master());
    // FLR, with the answer held back.
    write(&mut client, 7, 4, &[6, 0]);
    let hold = Arc::new(Notify::new());
    *server.fake.hold.lock().unwrap() = Some(hold.clone());
    let access = RegionAccess { offset: 0x50, region: 7, count: 2 };
    let message = client.message(command::REGION_WRITE, &[access.as_bytes(), &[0x10, 0xa8]].concat());
    client.send(&message, &[]);
    eventually("the reset to start", || server.fake.resets.lock().unwrap().len() == 2);
    client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(std::io::Read::read(&mut &client.stream, &mut [0]).is_err(), "no answer yet");
    client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    *server.fake.hold.lock().unwrap() = None;
    hold.notify_one();
    client.receive().unwrap().ok();
    assert!(!server.fake.host.bus_master());
    assert_eq!(server.fake.resets.lock().unwrap()[..], [Reset::Device, Reset::FunctionLevel]);
    // Two FLRs and a command in one message, in this order.
    let flr = MultiWrite { offset: 0x51, region: 7, count: 1, data: [0x80; 8] };
    let enable = MultiWrite { offset: 4, region: 7, count: 1, data: [6; 8] };
    let ask = [&3u64.to_ne_bytes(), flr.as_bytes(), flr.as_bytes(), enable.as_bytes()].concat();
    client.ask(command::REGION_WRITE_MULTI, &ask).ok();
    assert!(server.fake.host.bus_master());
    assert_eq!(server.fake.resets.lock().unwrap().len(), 4);
}

#[test]
fn the_msix_table_is_kept() {
    let server = Server::start();
    let mut client = server.connect();
    assert_eq!(read(&mut client, 4, 12, 4), [1, 0, 0, 0]);
    write(&mut client, 4, 16, &[0xaa; 16]);
    assert_eq!(read(&mut client, 4, 16, 4), [0xa8, 0xaa, 0xaa, 0xaa]);
    server.fake.host.interrupts.trigger(8);
    assert_eq!(read(&mut client, 4, 0x1000, 8), [0, 1, 0, 0, 0, 0, 0, 0]);
    client.ask(command::DEVICE_RESET, b"").ok();
    assert_eq!(read(&mut client, 4, 16, 16), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(read(&mut client, 4, 0x1000, 8), [0; 8], "nothing is pending");
}
