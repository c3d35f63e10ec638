//! Clients come and go, politely or not; controllers are reset in every way. Data stays, nothing else does.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use nvme_driver::{Controller, Data, Namespace, Options, PAGE, io};
use nvme_spec::Status;
use nvme_spec::registers::{ASQ, CC, CSTS, Cc, Csts, NSSR, NSSR_MAGIC};
use quarry_tests::data::{buffer, check_works};
use quarry_tests::{Resources, Server, io_queues, pattern};

const FILE: &str = "file:disk.img,size=64M";

fn disk(controller: &Controller) -> Namespace {
    Namespace::open(controller, 1, io_queues(controller)).unwrap()
}

fn verify(controller: &Controller, seed: u64) {
    let mut data = vec![0; 256 << 10];
    disk(controller).read(0, &mut data).unwrap();
    assert!(data == pattern(seed, data.len()), "what the client before has written");
}

/// What the server holds while it has a client that it has served, which is returned too. With none it may be on the way to that:
/// what the next client gets takes the place of what the last one had.
fn while_served(server: &Server, seed: u64) -> (Controller, Resources) {
    let controller = server.controller();
    verify(&controller, seed);
    (controller, server.resources())
}

/// Fifty clients, one after the other; `leave` says how they go.
fn fifty(spec: &str, leave: impl Fn(Controller, u64)) {
    let server = Server::disk(spec);
    // The first client may leave behind what is made once: caches, threads, arenas of the allocator.
    for round in 0..3 {
        let controller = server.controller();
        disk(&controller).write(0, &pattern(round, 256 << 10)).unwrap();
        leave(controller, round);
    }
    let before = while_served(&server, 2).1;
    for round in 3..50 {
        let controller = server.controller();
        verify(&controller, round - 1);
        controller.enable().unwrap();
        disk(&controller).write(0, &pattern(round, 256 << 10)).unwrap();
        leave(controller, round);
    }
    let (controller, _) = while_served(&server, 49);
    before.assert_settles(server.pid());
    drop(controller);
    server.stop();
}

#[test]
fn fifty_polite_clients() {
    fifty("mem:64M", |controller, _| controller.close().unwrap());
}

#[test]
fn fifty_polite_clients_of_a_file() {
    fifty(FILE, |controller, _| controller.close().unwrap());
}

#[test]
fn fifty_clients_that_drop_their_socket() {
    fifty("mem:64M", |controller, _| drop(controller));
}

/// They leave with reads and writes of other blocks under way, and with eventfds connected.
#[test]
fn fifty_clients_that_drop_their_socket_in_the_middle() {
    fifty(FILE, |controller, round| {
        controller.enable().unwrap();
        let _vectors = controller.connect_vectors(0, 2).unwrap();
        let mut queues = io_queues(&controller);
        let (_memory, prps) = buffer(&controller, 1 << 20);
        for index in 0..40 {
            let lba = 4096 + index * 2048;
            let command = if round % 2 == 0 {
                io::read(1, lba, 2048, prps.data())
            } else {
                io::write(1, lba, 2048, prps.data())
            };
            queues.push(&command).unwrap();
        }
        queues.ring().unwrap();
        controller.disconnect();
    });
}

#[test]
fn a_client_killed_in_the_middle() {
    let server = Server::disk(FILE);
    let controller = server.controller();
    disk(&controller).write(0, &pattern(1, 256 << 10)).unwrap();
    controller.close().unwrap();
    let before = while_served(&server, 1).1;
    for _ in 0..5 {
        let mut client = Command::new(env!("CARGO_BIN_EXE_quarry-test-client"))
            .arg(server.socket("vm.sock"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "busy\n");
        client.kill().unwrap();
        client.wait().unwrap();
        let controller = server.controller();
        verify(&controller, 1);
        drop(controller);
    }
    let (controller, _) = while_served(&server, 1);
    before.assert_settles(server.pid());
    drop(controller);
    server.stop();
}

/// The controller is where it was after power-on, and comes up again.
fn assert_reset_and_back(controller: &Controller) {
    controller
        .wait_status("the end of readiness", |csts| !csts.rdy())
        .expect("a reset controller is neither ready nor fatal");
    assert!(!Cc::from_bits(controller.link().read32(CC).unwrap()).en(), "CC.EN is clear");
    // Whatever the reset was, bus mastering may be off now; a guest's driver turns it on again.
    controller.link().config_write(4, &[6, 4]).unwrap();
    controller.enable().unwrap();
    verify(controller, 1);
}

fn busy_controller(server: &Server) -> Controller {
    let controller = server.controller();
    disk(&controller).write(0, &pattern(1, 256 << 10)).unwrap();
    controller.enable().unwrap();
    let mut queues = io_queues(&controller);
    let (_memory, prps) = buffer(&controller, 1 << 20);
    for index in 0..40 {
        queues.push(&io::read(1, 4096 + index * 2048, 2048, prps.data())).unwrap();
    }
    queues.ring().unwrap();
    controller
}

#[test]
fn reset_by_cc_en() {
    let server = Server::disk(FILE);
    let controller = busy_controller(&server);
    controller.disable().unwrap();
    assert_reset_and_back(&controller);
    // Quick toggles, without waiting for CSTS.
    for _ in 0..100 {
        controller.link().write32(CC, 0).unwrap();
        controller.link().write32(CC, Controller::ENABLE.into_bits()).unwrap();
    }
    controller.enable().unwrap();
    verify(&controller, 1);
    // ASQ survives a reset by CC.EN (Base 3.7.2): bring-up without writing it again works.
    let asq = controller.link().read64(ASQ).unwrap();
    controller.disable().unwrap();
    assert_eq!(controller.link().read64(ASQ).unwrap(), asq);
    server.stop();
}

#[test]
fn reset_of_the_subsystem() {
    let server = Server::disk(FILE);
    let controller = busy_controller(&server);
    assert!(controller.cap().nssrs(), "there is a subsystem reset");
    controller.link().write32(NSSR, 0x1234).unwrap();
    assert!(controller.status().unwrap().rdy(), "only the magic value resets");
    controller.link().write32(NSSR, NSSR_MAGIC).unwrap();
    assert_reset_and_back(&controller);
    assert!(controller.status().unwrap().nssro(), "it is told that the subsystem was reset");
    controller.link().write32(CSTS, Csts::new().with_nssro(true).into_bits()).unwrap();
    assert!(!controller.status().unwrap().nssro(), "and that can be cleared");
    server.stop();
}

#[test]
fn function_level_reset() {
    let server = Server::disk(FILE);
    let controller = busy_controller(&server);
    let pcie = controller.link().find_capability(0x10).unwrap().expect("a PCI Express capability");
    let abilities = u32::from_le_bytes(controller.link().config_read(pcie + 4).unwrap());
    assert_eq!(abilities >> 28 & 1, 1, "function level reset is announced");
    let control = u16::from_le_bytes(controller.link().config_read(pcie + 8).unwrap());
    controller.link().config_write(pcie + 8, &(control | 1 << 15).to_le_bytes()).unwrap();
    assert_reset_and_back(&controller);
    server.stop();
}

#[test]
fn reset_by_message() {
    let server = Server::disk(FILE);
    let controller = busy_controller(&server);
    controller.link().lock().reset().unwrap();
    assert_reset_and_back(&controller);
    server.stop();
}

#[test]
fn shutdown_flushes_and_a_reset_brings_it_back() {
    let server = Server::disk(FILE);
    let controller = busy_controller(&server);
    controller.shutdown().unwrap();
    assert_reset_after_shutdown(&controller);
    // An abrupt one.
    let cc = Cc::from_bits(controller.link().read32(CC).unwrap());
    let abrupt = cc.with_shn(nvme_spec::registers::ShutdownNotification::ABRUPT);
    controller.link().write32(CC, abrupt.into_bits()).unwrap();
    controller
        .wait_status("shutdown", |csts| csts.shst() == nvme_spec::registers::ShutdownStatus::COMPLETE)
        .unwrap();
    assert_reset_after_shutdown(&controller);
    server.stop();
}

fn assert_reset_after_shutdown(controller: &Controller) {
    controller.enable().unwrap();
    assert_eq!(controller.status().unwrap().shst(), nvme_spec::registers::ShutdownStatus::NORMAL);
    verify(controller, 1);
}

#[test]
fn bad_configurations_are_fatal_or_refused() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    for cc in [
        Controller::ENABLE.with_mps(15),
        Controller::ENABLE.with_css(nvme_spec::registers::CommandSetSelected(3)),
        Controller::ENABLE.with_ams(nvme_spec::registers::ArbitrationMechanism::VENDOR),
    ] {
        controller.disable().unwrap();
        controller.link().write32(CC, cc.into_bits()).unwrap();
        let up = controller.wait_status("readiness", |csts| csts.rdy());
        assert!(matches!(up, Err(nvme_driver::Error::Fatal)), "{cc:?}: {up:?}");
    }
    // Admin queues in memory that is not there.
    controller.disable().unwrap();
    controller.link().write64(ASQ, 0xDEAD_0000_0000).unwrap();
    controller.link().write32(CC, Controller::ENABLE.into_bits()).unwrap();
    let up = controller.wait_status("readiness", |csts| csts.rdy());
    assert!(matches!(up, Err(nvme_driver::Error::Fatal)), "{up:?}");
    controller.enable().unwrap();
    check_works(&controller, &mut io_queues(&controller), 0, 1);
    server.stop();
}

#[test]
fn without_bus_mastering_nothing_is_touched() {
    let server = Server::disk("mem:64M");
    let controller = server.controller_with("vm.sock", Options::default());
    let mut queues = io_queues(&controller);
    check_works(&controller, &mut queues, 0, 1);
    controller.link().config_write(4, &[2, 4]).unwrap();
    let (memory, _) = buffer(&controller, PAGE);
    let sent = queues.submit(io::read(1, 0, 8, Data::Prp(memory.iova(), 0))).unwrap();
    let answer = queues.wait(sent, Duration::from_millis(200));
    assert!(answer.is_err(), "no completion can be written: {answer:?}");
    assert!(memory.to_vec(0, PAGE).iter().all(|&byte| byte == 0), "no data is written");
    controller.link().config_write(4, &[6, 4]).unwrap();
    let completion = queues.wait(sent, controller.timeout()).unwrap();
    assert_eq!(completion.status().code(), Status::SUCCESS, "it goes on when it may");
    server.stop();
}
