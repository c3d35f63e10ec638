//! Interrupts (C3 group 9).

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vfio_user_server::wire::{IrqInfo, SetIrqs, command};
use zerocopy::IntoBytes;

use super::support::*;

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;
const N: u32 = VECTORS as u32;

fn set(flags: u32, index: u32, start: u32, count: u32) -> SetIrqs {
    SetIrqs { argsz: 20, flags, index, start, count }
}

#[test]
fn irq_info_of_every_index() {
    let server = Server::start();
    let mut client = server.connect();
    for (index, flags, count) in [(0, 7, 1), (1, 0, 0), (2, 1, N), (3, 1, 1), (4, 1, 1)] {
        let ask = IrqInfo { argsz: 16, flags: 0, index, count: 0 };
        let info: IrqInfo = client.ask_struct(command::DEVICE_GET_IRQ_INFO, &ask).ok().fixed();
        assert_eq!((info.argsz, info.flags, info.index, info.count), (16, flags, index, count));
    }
    for (argsz, index) in [(16, 5), (16, u32::MAX), (15, 0)] {
        let ask = IrqInfo { argsz, flags: 0, index, count: 0 };
        assert_eq!(client.ask_struct(command::DEVICE_GET_IRQ_INFO, &ask).errno(), libc::EINVAL);
    }
}

#[test]
fn set_irqs_that_make_no_sense_are_refused() {
    leaves_nothing(|server, client| {
        let event = eventfd();
        let before = holdings();
        let bad = [
            set(0, 2, 0, 1),
            set(TRIGGER, 2, 0, 1),
            set(NONE, 2, 0, 1),
            set(NONE | BOOL | TRIGGER, 2, 0, 1),
            set(NONE | MASK | UNMASK, 2, 0, 1),
            set(NONE | TRIGGER | 64, 2, 0, 1),
            set(NONE | TRIGGER, 5, 0, 1),
            set(NONE | TRIGGER, u32::MAX, 0, 0),
            set(NONE | TRIGGER, 1, 0, 1),
            set(NONE | TRIGGER, 2, 0, N + 1),
            set(NONE | TRIGGER, 2, N, 1),
            set(NONE | TRIGGER, 2, 1, u32::MAX),
            set(NONE | TRIGGER, 2, u32::MAX, u32::MAX),
            set(NONE | TRIGGER, 2, 1, 0),
            set(NONE | MASK, 2, 0, 0),
            set(BOOL | TRIGGER, 2, 0, 0),
            set(EVENTFD | TRIGGER, 2, 0, 0),
            set(NONE | MASK, 3, 0, 1),
            set(NONE | UNMASK, 4, 0, 1),
            set(NONE | TRIGGER, 3, 0, 2),
            SetIrqs { argsz: 19, ..set(NONE | TRIGGER, 2, 0, 1) },
        ];
        for ask in bad {
            assert_eq!(client.ask_struct(command::DEVICE_SET_IRQS, &ask).errno(), libc::EINVAL, "{ask:?}");
        }
        for flags in [NONE | TRIGGER, BOOL | TRIGGER] {
            let ask = [set(flags, 2, 0, 1).as_bytes(), &[1]].concat();
            let answer = client.ask_with(command::DEVICE_SET_IRQS, &ask, &[event.as_fd()]);
            assert_eq!(answer.errno(), libc::EINVAL, "descriptors with {flags}");
        }
        for (count, n) in [(2, 1), (1, 2), (N, 253)] {
            let fds: Vec<_> = (0..n).map(|_| event.as_fd()).collect();
            let ask = set(EVENTFD | TRIGGER, 2, 0, count);
            assert_eq!(client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &fds).errno(), libc::EINVAL);
        }
        for action in [MASK, UNMASK] {
            let ask = set(EVENTFD | action, 0, 0, 1);
            let answer = client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &[event.as_fd()]);
            assert_eq!(answer.errno(), libc::ENOTSUP);
        }
        for len in [0, 1, 3] {
            let ask = [set(BOOL | TRIGGER, 2, 0, 2).as_bytes(), &vec![1; len]].concat();
            assert_eq!(client.ask(command::DEVICE_SET_IRQS, &ask).errno(), libc::EINVAL, "{len} booleans");
        }
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let ask = set(EVENTFD | TRIGGER, 2, 0, 1);
        let answer = client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &[pipe.as_fd()]);
        assert_eq!(answer.errno(), libc::EINVAL, "not an eventfd");
        drop((pipe, _other));
        expect_holdings(before);
        assert!(!server.fake.host.interrupts.msix_enabled());
    });
}

#[test]
fn msix_connect_fire_replace_and_disable() {
    leaves_nothing(|server, client| {
        let irqs = &server.fake.host.interrupts;
        let before = holdings();
        // QEMU: first one vector without a descriptor, then all in runs.
        client.ask_struct(command::DEVICE_SET_IRQS, &set(EVENTFD | TRIGGER, 2, 0, 1)).ok();
        assert!(irqs.msix_enabled());
        irqs.trigger(3);
        let events: Vec<_> = (0..N).map(|_| eventfd()).collect();
        let ask = set(EVENTFD | TRIGGER, 2, 0, N);
        client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &borrow(&events)).ok();
        assert_eq!(count(&events[3]), 1, "what was pending comes with the eventfd");
        irqs.trigger(32);
        irqs.trigger(33);
        assert_eq!(count(&events[32]), 1);
        // The client can fire them, too.
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | TRIGGER, 2, 5, 2)).ok();
        let ask = [set(BOOL | TRIGGER, 2, 5, 3).as_bytes(), &[0, 1, 1]].concat();
        client.ask(command::DEVICE_SET_IRQS, &ask).ok();
        assert_eq!([4, 5, 6, 7, 8].map(|i| count(&events[i])), [0, 1, 2, 1, 0]);
        // Mask, unmask.
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | MASK, 2, 0, 1)).ok();
        irqs.trigger(0);
        assert_eq!(count(&events[0]), 0);
        let ask = [set(BOOL | UNMASK, 2, 0, 2).as_bytes(), &[1, 0]].concat();
        client.ask(command::DEVICE_SET_IRQS, &ask).ok();
        assert_eq!(count(&events[0]), 1);
        // Disconnect one, connect another.
        client.ask_struct(command::DEVICE_SET_IRQS, &set(EVENTFD | TRIGGER, 2, 7, 1)).ok();
        irqs.trigger(7);
        assert_eq!(count(&events[7]), 0);
        let new = eventfd();
        client
            .ask_with(command::DEVICE_SET_IRQS, set(EVENTFD | TRIGGER, 2, 7, 1).as_bytes(), &[new.as_fd()])
            .ok();
        assert_eq!(count(&new), 1);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | TRIGGER, 2, 0, 0)).ok();
        assert!(!irqs.msix_enabled());
        irqs.trigger(1);
        assert_eq!(count(&events[1]), 0);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | TRIGGER, 1, 0, 0)).ok();
        drop((events, new));
        expect_holdings(before);
        // ERR and REQ take eventfds; what is still connected goes with the connection.
        for index in [3, 4, 0, 2] {
            let event = eventfd();
            let ask = set(EVENTFD | TRIGGER, index, 0, 1);
            client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &[event.as_fd()]).ok();
        }
    });
}

#[test]
fn intx_is_a_level() {
    leaves_nothing(|server, client| {
        let irqs = &server.fake.host.interrupts;
        let event = eventfd();
        client
            .ask_with(command::DEVICE_SET_IRQS, set(EVENTFD | TRIGGER, 0, 0, 1).as_bytes(), &[event.as_fd()])
            .ok();
        irqs.set_intx(true);
        assert_eq!(count(&event), 1);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | UNMASK, 0, 0, 1)).ok();
        assert_eq!(count(&event), 1, "still high");
        irqs.set_intx(false);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | UNMASK, 0, 0, 1)).ok();
        assert_eq!(count(&event), 0);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | MASK, 0, 0, 1)).ok();
        irqs.set_intx(true);
        assert_eq!(count(&event), 0);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | UNMASK, 0, 0, 1)).ok();
        assert_eq!(count(&event), 1);
        irqs.set_intx(false);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | TRIGGER, 0, 0, 0)).ok();
    });
}

#[test]
fn eventfds_are_replaced_while_a_reactor_signals() {
    leaves_nothing(|server, client| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    server.fake.host.interrupts.trigger(1);
                }
            });
            for _ in 0..200 {
                let event = eventfd();
                let ask = set(EVENTFD | TRIGGER, 2, 1, 1);
                client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &[event.as_fd()]).ok();
                eventually("an interrupt", || count(&event) > 0);
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_full_eventfd_stops_neither_the_reactor_nor_the_client() {
    leaves_nothing(|server, client| {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&event, &0xffff_ffff_ffff_fffeu64.to_ne_bytes()).unwrap();
        client
            .ask_with(command::DEVICE_SET_IRQS, set(EVENTFD | TRIGGER, 2, 0, 1).as_bytes(), &[event.as_fd()])
            .ok();
        server.fake.host.interrupts.trigger(0);
        client.ask_struct(command::DEVICE_SET_IRQS, &set(NONE | TRIGGER, 2, 0, 1)).ok();
    });
}

/// It does not help to leave before anybody has noticed.
#[test]
fn who_makes_an_eventfd_block_and_leaves_at_once_has_to_wait_too() {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let server = Server::start();
    let mut client = server.connect();
    let (start, event) = (Instant::now(), eventfd());
    let ask = set(EVENTFD | TRIGGER, 2, 0, 1);
    client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &[event.as_fd()]).ok();
    rustix::io::write(&event, &0xffff_ffff_ffff_fffeu64.to_ne_bytes()).unwrap();
    fcntl_setfl(&event, fcntl_getfl(&event).unwrap() - OFlags::NONBLOCK).unwrap();
    // The function lets go of the client when its reactor is back.
    let hold = std::sync::Arc::new(tokio::sync::Notify::new());
    *server.fake.hold_detach.lock().unwrap() = Some(hold.clone());
    std::thread::scope(|scope| {
        let reactor = scope.spawn(|| server.fake.host.interrupts.trigger(0));
        drop(client);
        server.wait_detached(1);
        reactor.join().unwrap();
        *server.fake.hold_detach.lock().unwrap() = None;
        hold.notify_one();
    });
    drop(server.connect());
    assert!(start.elapsed() > Duration::from_secs(4), "it could do so again and again");
}

#[test]
fn an_eventfd_that_is_made_to_block_costs_the_client_its_connection() {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    for by_reactor in [true, false] {
        leaves_nothing(|server, client| {
            let start = Instant::now();
            let event = eventfd();
            let ask = set(EVENTFD | TRIGGER, 2, 0, 1);
            client.ask_with(command::DEVICE_SET_IRQS, ask.as_bytes(), &[event.as_fd()]).ok();
            rustix::io::write(&event, &0xffff_ffff_ffff_fffeu64.to_ne_bytes()).unwrap();
            fcntl_setfl(&event, fcntl_getfl(&event).unwrap() - OFlags::NONBLOCK).unwrap();
            if by_reactor {
                server.fake.host.interrupts.trigger(0);
            } else {
                let fire = client.message(command::DEVICE_SET_IRQS, set(NONE | TRIGGER, 2, 0, 1).as_bytes());
                client.send(&fire, &[]);
            }
            assert!(client.is_closed_by_server());
            *client = server.connect();
            assert!(start.elapsed() > Duration::from_secs(4), "it could do so again and again");
        });
    }
}
