//! Framing, negotiation, and requests that are none (C3 groups 1 to 5).

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_user_server::wire::{DeviceInfo, HEADER, Header, SetIrqs, command, flags};
use zerocopy::{FromBytes, IntoBytes};

use super::support::*;

const INFO: [u8; 16] = [16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn version(json: &[u8]) -> Vec<u8> {
    [&[0, 0, 1, 0][..], json].concat()
}

#[test]
fn negotiate_valid_with_and_without_json() {
    let server = Server::start();
    for json in [
        &b""[..],
        b"{}\0",
        b"{\"capabilities\":{}}\0",
        b"{\"capabilities\":{\"max_msg_fds\":1,\"unknown\":[{}]}}\0",
    ] {
        let mut client = server.dial();
        let answer = client.ask(command::VERSION, &version(json)).ok();
        assert_eq!(answer.body[..4], [0, 0, 1, 0]);
        assert_eq!(answer.body.last(), Some(&0));
        assert!(client.is_healthy());
    }
}

#[test]
fn negotiate_bad_versions_are_refused_and_the_connection_ends() {
    let server = Server::start();
    let deep = [&b"{\"capabilities\":"[..], &b"[".repeat(10_000), b"\0"].concat();
    let bad: [&[u8]; 13] = [
        b"",
        b"\0",
        b"\0\0\0",
        b"\x01\0\0\0",
        &version(b"{}"),
        &version(b"{\0"),
        &version(b"{\"capabilities\0"),
        &version(b"{\"capabilities\":1}\0"),
        &version(b"{\"capabilities\":{\"max_msg_fds\":\"1\"}}\0"),
        &version(b"{\"capabilities\":{\"max_msg_fds\":-1}}\0"),
        &version(b"{\"capabilities\":{\"max_msg_fds\":4294967296}}\0"),
        &version(b"{\"capabilities\":{\"migration\":{\"pgsize\":\"x\"}}}\0"),
        &version(&deep),
    ];
    for payload in bad {
        let mut client = server.dial();
        assert_eq!(client.ask(command::VERSION, payload).errno(), libc::EINVAL);
        assert!(client.is_closed_by_server());
    }
    let mut client = server.dial();
    assert_eq!(client.ask(command::DEVICE_GET_INFO, &INFO).errno(), libc::EINVAL, "before VERSION");
    assert!(client.is_closed_by_server());
    let mut client = server.connect();
    assert_eq!(client.ask(command::VERSION, &version(b"")).errno(), libc::EINVAL, "a second one");
    assert!(client.is_healthy());
}

#[test]
fn a_megabyte_of_capabilities_is_refused() {
    let server = Server::start();
    let mut client = server.dial();
    let json = [&b"{\"capabilities\":{\"x\":["[..], &b"0,".repeat(500_000), b"0]}}\0"].concat();
    assert_eq!(client.ask(command::VERSION, &version(&json)).errno(), libc::EINVAL);
    assert!(client.is_closed_by_server());
}

#[test]
fn sizes_that_no_message_has_end_the_connection() {
    let server = Server::start();
    for size in [0, 1, 15, (1 << 20) + 65, u32::MAX] {
        let mut client = server.connect();
        let header = Header { id: 7, command: command::REGION_READ, size, flags: 0, error: 0 };
        client.send(header.as_bytes(), &[]);
        assert_eq!(client.receive().unwrap().errno(), libc::EINVAL);
        assert!(client.is_closed_by_server());
    }
}

#[test]
fn requests_that_are_too_short_are_refused() {
    let server = Server::start();
    let mut client = server.connect();
    let needs = [
        (command::DMA_MAP, 32),
        (command::DMA_UNMAP, 24),
        (command::DEVICE_GET_INFO, 16),
        (command::DEVICE_GET_REGION_INFO, 32),
        (command::DEVICE_GET_REGION_IO_FDS, 16),
        (command::DEVICE_GET_IRQ_INFO, 16),
        (command::DEVICE_SET_IRQS, 20),
        (command::REGION_READ, 16),
        (command::REGION_WRITE, 16),
        (command::REGION_WRITE_MULTI, 8),
    ];
    for (command, need) in needs {
        for len in [0, 1, need / 2, need - 1] {
            assert_eq!(client.ask(command, &vec![0; len]).errno(), libc::EINVAL, "{command} with {len}");
        }
    }
    assert!(client.is_healthy());
}

#[test]
fn argsz_is_at_least_the_structure_and_may_be_anything_above() {
    let server = Server::start();
    let mut client = server.connect();
    for argsz in [0u32, 1, 15] {
        let ask = DeviceInfo { argsz, flags: 0, regions: 0, irqs: 0 };
        assert_eq!(client.ask_struct(command::DEVICE_GET_INFO, &ask).errno(), libc::EINVAL);
    }
    // 32: cloud-hypervisor counts the header.
    for argsz in [16u32, 32, 4064, u32::MAX] {
        let ask = DeviceInfo { argsz, flags: 0, regions: 0, irqs: 0 };
        let info = client.ask_struct(command::DEVICE_GET_INFO, &ask).ok();
        assert_eq!(info.body, [16, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0]);
    }
}

#[test]
fn unknown_commands_are_refused_and_the_connection_stays() {
    let server = Server::start();
    let mut client = server.connect();
    let unknown = [0, 11, 12, 14, 16, 17, 18, 19, 0xffff];
    for command in unknown {
        for len in [0, 8, 100] {
            assert_eq!(client.ask(command, &vec![0; len]).errno(), libc::ENOTSUP, "{command}");
        }
    }
    assert!(client.is_healthy());
}

#[test]
fn replies_are_ignored_and_unknown_types_refused() {
    let server = Server::start();
    let mut client = server.connect();
    let mut header = Header { id: 1, command: command::DMA_READ, size: 16, flags: flags::REPLY, error: 0 };
    client.send(header.as_bytes(), &[]);
    header.flags |= flags::ERROR;
    client.send(header.as_bytes(), &[]);
    assert!(client.is_healthy(), "no answer to an answer");
    for kind in 2..16 {
        header.flags = kind;
        client.send(header.as_bytes(), &[]);
        assert_eq!(client.receive().unwrap().errno(), libc::EINVAL);
    }
    // Bits without meaning are ignored.
    header.flags = 0xffff_ff00;
    header.command = command::DEVICE_RESET;
    client.send(header.as_bytes(), &[]);
    client.receive().unwrap().ok();
}

#[test]
fn no_reply_is_honoured_on_every_command() {
    let server = Server::start();
    let mut client = server.connect();
    for command in 0..32 {
        for payload in [&[0; 40][..], &[]] {
            let mut message = client.message(command, payload);
            let (header, _) = Header::mut_from_prefix(&mut message).unwrap();
            header.flags = flags::NO_REPLY;
            client.send(&message, &[]);
        }
    }
    assert!(client.is_healthy(), "the next reply is for the next request");
}

#[test]
fn messages_in_single_bytes() {
    let server = Server::start();
    let mut client = server.connect();
    for _ in 0..3 {
        for byte in client.message(command::DEVICE_GET_INFO, &INFO) {
            client.stream.write_all(&[byte]).unwrap();
        }
        client.receive().unwrap().ok();
    }
}

#[test]
fn descriptors_belong_to_the_message_they_came_with_even_byte_by_byte() {
    let server = Server::start();
    let mut client = server.connect();
    let memory = guest(1);
    for (iova, with_fd) in [(0, false), (PAGE, true), (2 * PAGE, false)] {
        let map = super::dma::map(iova, PAGE, 0, 3);
        let message = client.message(command::DMA_MAP, map.as_bytes());
        for (i, byte) in message.iter().enumerate() {
            // On the last byte, where nobody would expect it.
            let last = with_fd && i + 1 == message.len();
            client.send(
                &[*byte],
                if last { std::slice::from_ref(&memory) } else { &[] }
                    .iter()
                    .map(std::os::fd::AsFd::as_fd)
                    .collect::<Vec<_>>()
                    .as_slice(),
            );
        }
        client.receive().unwrap().ok();
    }
    let table = server.fake.host.dma.table();
    assert!(table.read(0, &mut [0]).is_err());
    assert!(table.read(PAGE, &mut [0]).is_ok());
    assert!(table.read(2 * PAGE, &mut [0]).is_err());
}

#[test]
fn many_messages_at_once_are_answered_in_order() {
    let server = Server::start();
    let mut client = server.connect();
    let stream: Vec<u8> = (0..500).flat_map(|_| client.message(command::DEVICE_GET_INFO, &INFO)).collect();
    let first = Header::read_from_prefix(&stream).unwrap().0.id;
    client.stream.write_all(&stream).unwrap();
    for id in first..first + 500 {
        assert_eq!(client.receive().unwrap().ok().header.id, id);
    }
}

#[test]
fn a_body_that_never_comes_delays_nobody_else() {
    let server = Server::start();
    let mut stalled = server.connect();
    let message = stalled.message(command::REGION_WRITE, &[0; 1000]);
    stalled.send(&message[..HEADER + 10], &[]);
    // Another function of this process, on the same thread even: see `lifecycle`. Here: further clients are
    // turned away at once, and the next one is served as soon as this one leaves.
    let start = Instant::now();
    assert!(server.dial().is_closed_by_server());
    assert!(start.elapsed() < PATIENCE);
    drop(stalled);
    server.wait_detached(1);
    assert!(server.connect().is_healthy());
}

#[test]
fn stray_descriptors_are_closed() {
    leaves_nothing(|_, client| {
        let before = holdings();
        for n in [1, 2, 17, 253] {
            let memory = guest(1);
            let fds: Vec<_> = (0..n).map(|_| memory.try_clone().unwrap()).collect();
            for command in (0..20).chain([0xffff]) {
                for payload in [&[0; 40][..], &[]] {
                    client.ask_with(command, payload, &borrow(&fds));
                }
            }
        }
        expect_holdings(before);
        assert!(client.is_healthy());
    });
}

#[test]
fn more_descriptors_than_a_message_may_have_are_closed() {
    leaves_nothing(|_, client| {
        let before = holdings();
        let fds: Vec<_> = (0..253).map(|_| eventfd()).collect();
        let message = client.message(command::DEVICE_GET_INFO, &INFO);
        client.send(&message[..1], &borrow(&fds));
        client.send(&message[1..2], &borrow(&fds));
        client.send(&message[2..], &[]);
        drop(fds);
        assert_eq!(client.receive().unwrap().errno(), libc::EMFILE);
        expect_holdings(before);
        assert!(client.is_healthy());
        // A message that is never completed: its descriptors go with the connection.
        let fds: Vec<_> = (0..253).map(|_| eventfd()).collect();
        client.send(&message[..1], &borrow(&fds));
    });
}

#[test]
fn a_slow_reader_gets_everything_and_is_read_no_further_meanwhile() {
    let server = Server::start();
    let mut client = server.connect();
    let mut read = client.message(command::REGION_READ, &[0; 16]);
    read[HEADER + 12..].copy_from_slice(&0x4000u32.to_ne_bytes());
    // 16 MB of answers: far more than the sockets hold.
    let writer = std::thread::spawn({
        let stream = client.stream.try_clone().unwrap();
        move || (0..1000).for_each(|_| (&stream).write_all(&read).unwrap())
    });
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..1000 {
        let answer = client.receive().unwrap().ok();
        assert_eq!(answer.body.len(), 16 + 0x4000);
        assert!(answer.body[16..].iter().enumerate().all(|(i, &byte)| byte == i as u8));
    }
    writer.join().unwrap();
    assert!(client.is_healthy());
}

#[test]
fn a_reader_that_leaves_with_answers_underway_is_let_go() {
    leaves_nothing(|_, client| {
        let mut read = client.message(command::REGION_READ, &[0; 16]);
        read[HEADER + 12..].copy_from_slice(&0x4000u32.to_ne_bytes());
        client.stream.set_nonblocking(true).unwrap();
        while client.stream.write_all(&read).is_ok() {}
    });
}

/// Closing what a client sends may take as long as the client likes.
#[test]
fn descriptors_that_take_for_ever_to_close_delay_nobody() {
    let mut ends = Vec::new();
    let server = Server::start();
    let mut client = server.connect();
    let info = client.message(command::DEVICE_GET_INFO, &INFO);
    // Sends one with the first byte and lets go of it before the rest: it is the server that closes it.
    let mut send = |client: &Client, bytes: &[u8]| {
        let (fd, end) = lingering();
        client.send(&bytes[..1], &[fd.as_fd()]);
        drop(fd);
        ends.push(end);
        client.send(&bytes[1..], &[]);
    };
    // Asked for by nobody; of no use as memory; no eventfd.
    send(&client, &info);
    assert_eq!(client.receive().unwrap().errno(), 0);
    let map = client.message(command::DMA_MAP, super::dma::map(0, PAGE, 0, 3).as_bytes());
    send(&client, &map);
    assert_eq!(client.receive().unwrap().errno(), libc::EINVAL);
    let irqs = SetIrqs { argsz: 20, flags: 0x24, index: 2, start: 0, count: 1 };
    let irqs = client.message(command::DEVICE_SET_IRQS, irqs.as_bytes());
    send(&client, &irqs);
    assert_eq!(client.receive().unwrap().errno(), libc::EINVAL);
    assert!(client.is_healthy());
    // Not read at all, behind a request that is being waited for.
    *server.fake.hold.lock().unwrap() = Some(std::sync::Arc::new(tokio::sync::Notify::new()));
    let reset = client.message(command::DEVICE_RESET, b"");
    client.send(&reset, &[]);
    eventually("the reset to start", || !server.fake.resets.lock().unwrap().is_empty());
    send(&client, &info);
    assert!(server.dial().is_closed_by_server(), "the control thread is there for others");
    drop(client);
    server.wait_detached(1);
    assert_eq!(server.fake.attached.load(Ordering::SeqCst), 1, "who was turned away never came");
    *server.fake.hold.lock().unwrap() = None;
    // In the middle of a message.
    let client = server.connect();
    send(&client, &info[..3]);
    drop(client);
    server.wait_detached(2);
    // More than a message may have.
    let mut client = server.connect();
    let events: Vec<_> = (0..253).map(|_| eventfd()).collect();
    client.send(&info[..1], &borrow(&events));
    let (fd, end) = lingering();
    ends.push(end);
    client.send(&info[1..2], &[fd.as_fd()]);
    // Whichever of the two closes it last.
    std::thread::spawn(move || drop(fd));
    client.send(&info[2..], &[]);
    assert_eq!(client.receive().unwrap().errno(), libc::EMFILE);
    assert!(client.is_healthy());
    drop((client, ends));
    assert!(server.connect().is_healthy());
}
