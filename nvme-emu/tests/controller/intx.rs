//! The INTx pin, as a VMM without MSI-X uses it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use block_memory::MemoryDevice;
use nvme_emu::ControllerConfig;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::registers::doorbell_offset;
use rustix::event::{EventfdFlags, eventfd};
use vfio_user_server::irq::index;

use crate::rig::{DATA, Rig, nvm};

/// A rig with a queue and the pin connected; the pin is unmasked.
fn connected() -> (Rig, OwnedFd) {
    let disk = Arc::new(MemoryDevice::new(1 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig { intx: true, ..ControllerConfig::default() });
    rig.create_queue(1, 64);
    rig.turns(10);
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    rig.host.interrupts.set_eventfds(index::INTX, 0, vec![Some(event.try_clone().unwrap())]).unwrap();
    (rig, event)
}

fn signals(event: &OwnedFd) -> u64 {
    let mut data = [0; 8];
    rustix::io::read(event, &mut data).map_or(0, |_| u64::from_ne_bytes(data))
}

fn unmask(rig: &Rig) {
    rig.host.interrupts.set_masked(index::INTX, 0, 1, false).unwrap();
}

#[test]
fn unmasking_after_the_completions_were_taken_does_not_signal() {
    let (mut rig, event) = connected();
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
    rig.turns(5);
    assert_eq!(signals(&event), 1);
    // As QEMU does: the doorbell is an access to the BAR, which it takes for the end of the interrupt. No
    // worker has had a turn in between.
    assert!(rig.completion(1).is_some());
    unmask(&rig);
    assert_eq!(signals(&event), 0, "there is nothing to find");
    rig.turns(5);
    assert_eq!(signals(&event), 0);
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
    rig.turns(5);
    assert_eq!(signals(&event), 1);
}

#[test]
fn completions_that_are_left_signal_again() {
    let (mut rig, event) = connected();
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
    rig.submit(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA));
    rig.turns(5);
    assert_eq!(signals(&event), 1);
    // One of two is taken.
    rig.write_register(doorbell_offset(1, true, 4), 1);
    unmask(&rig);
    rig.turns(5);
    assert_eq!(signals(&event), 1);
}
