//! Message-signalled interrupts: how many there are, and when.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use block_memory::MemoryDevice;
use nvme_emu::ControllerConfig;
use nvme_spec::features::FeatureId;
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::status::Status;
use rustix::event::{EventfdFlags, eventfd};
use vfio_user_server::irq::index;

use crate::rig::{Build, DATA, Rig, admin, nvm};

/// A rig with one queue on vector 1, which is connected.
fn connected() -> (Rig, OwnedFd) {
    let disk = Arc::new(MemoryDevice::new(1 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    rig.host.interrupts.set_eventfds(index::MSIX, 1, vec![Some(event.try_clone().unwrap())]).unwrap();
    rig.create_queue_on(1, 64, 1);
    rig.turns(10);
    (rig, event)
}

fn signals(event: &OwnedFd) -> u64 {
    let mut data = [0; 8];
    rustix::io::read(event, &mut data).map_or(0, |_| u64::from_ne_bytes(data))
}

fn read(lba: u64) -> Build {
    nvm(NvmOpcode::READ, 1, lba, 1, DATA)
}

fn set_coalescing(rig: &mut Rig, threshold_z: u32, time: u32) {
    let set = admin(AdminOpcode::SET_FEATURES, 0)
        .dwords(u32::from(FeatureId::INTERRUPT_COALESCING.0), time << 8 | threshold_z);
    assert_eq!(rig.admin(set).0, Status::SUCCESS);
}

#[test]
fn a_run_of_completions_makes_one_interrupt() {
    let (mut rig, event) = connected();
    for lba in 0..20 {
        rig.submit(1, read(lba));
    }
    rig.turn();
    assert_eq!(signals(&event), 1);
    let mut taken = 0;
    while rig.completion(1).is_some() {
        taken += 1;
    }
    assert_eq!(taken, 20);
    rig.turns(10);
    assert_eq!(signals(&event), 0);
}

#[test]
fn a_guest_that_is_busy_gets_none_until_it_rests() {
    let (mut rig, event) = connected();
    rig.submit(1, read(0));
    rig.turn();
    assert_eq!(signals(&event), 1);
    // It has not looked yet: more is nothing new to it.
    rig.submit(1, read(1));
    rig.turn();
    assert_eq!(signals(&event), 0);
    // It takes both, and needs no interrupt.
    assert!(rig.completion(1).is_some() && rig.completion(1).is_some());
    rig.turns(10);
    assert!(!rig.workers[0].needs_turns());
    assert_eq!(signals(&event), 0);
    // It takes the first of two and leaves: the second must not be forgotten.
    rig.submit(1, read(2));
    rig.turn();
    assert_eq!(signals(&event), 1);
    rig.submit(1, read(3));
    rig.turn();
    assert!(rig.completion(1).is_some());
    rig.until(|_| (signals(&event) == 1).then_some(()));
    assert!(rig.completion(1).is_some());
}

#[test]
fn coalescing_waits_for_entries_or_time() {
    let (mut rig, event) = connected();
    set_coalescing(&mut rig, 3, 255); // four entries, or 25.5 ms
    for lba in 0..3 {
        rig.submit(1, read(lba));
        rig.turn();
    }
    assert_eq!(signals(&event), 0);
    assert!(rig.workers[0].needs_turns(), "the reactor may not sleep over it");
    rig.submit(1, read(3));
    rig.turn();
    assert_eq!(signals(&event), 1);
    while rig.completion(1).is_some() {}
    rig.submit(1, read(4));
    rig.turn();
    assert_eq!(signals(&event), 0);
    rig.until(|_| (signals(&event) == 1).then_some(()));
    while rig.completion(1).is_some() {}
    // The vector is taken out of it.
    let set = admin(AdminOpcode::SET_FEATURES, 0)
        .dwords(u32::from(FeatureId::INTERRUPT_VECTOR_CONFIGURATION.0), 1 << 16 | 1);
    assert_eq!(rig.admin(set).0, Status::SUCCESS);
    rig.submit(1, read(5));
    rig.turn();
    assert_eq!(signals(&event), 1);
}

#[test]
fn a_reset_forgets_coalescing() {
    let (mut rig, event) = connected();
    set_coalescing(&mut rig, 63, 255);
    rig.write_register(nvme_spec::registers::CC, 0x0046_0000);
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    rig.enable();
    rig.create_queue_on(1, 64, 1);
    rig.submit(1, read(0));
    rig.turn();
    assert_eq!(signals(&event), 1);
}

#[test]
fn what_was_posted_before_interrupts_were_connected_is_told_then() {
    let disk = Arc::new(MemoryDevice::new(1 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    rig.create_queue_on(1, 64, 1);
    rig.submit(1, read(0));
    rig.turns(3);
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    rig.host.interrupts.set_eventfds(index::MSIX, 1, vec![Some(event.try_clone().unwrap())]).unwrap();
    rig.turns(3);
    assert_eq!(signals(&event), 1);
}
