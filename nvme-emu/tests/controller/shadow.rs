//! Shadow doorbells (Base 5.11): when the guest is asked to ring, and from which table the buffers are read.

use std::sync::Arc;

use block_memory::MemoryDevice;
use nvme_emu::ControllerConfig;
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::registers::{DOORBELLS, doorbell_offset};
use nvme_spec::status::Status;

use crate::rig::{Build, DATA, MEMORY, PAGE, Rig, admin, nvm};

const SHADOW: u64 = DATA + 0x10_0000;
const EVENTS: u64 = SHADOW + PAGE;

fn rig(config: ControllerConfig) -> Rig {
    let config = ControllerConfig { shadow_doorbells: true, trapped_doorbells: true, ..config };
    Rig::new(vec![Arc::new(MemoryDevice::new(1 << 20).unwrap())], config)
}

fn doorbell_buffer_config(shadow: u64, events: u64) -> Build {
    admin(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0).prp(shadow, events)
}

/// A queue's word in a buffer.
fn word(buffer: u64, qid: u16, is_cq: bool) -> u64 {
    buffer + doorbell_offset(qid, is_cq, 4) - DOORBELLS
}

fn read() -> Build {
    nvm(NvmOpcode::READ, 1, 0, 1, DATA)
}

#[test]
fn a_reactor_that_goes_to_sleep_asks_for_the_next_command() {
    let mut rig = rig(ControllerConfig::default());
    rig.create_queue(1, 16);
    assert_eq!(rig.admin(doorbell_buffer_config(SHADOW, EVENTS)).0, Status::SUCCESS);
    for tail in 1..=3u32 {
        // Into the shadow alone: a reactor that is awake sees it.
        rig.push(1, read());
        rig.write_memory(word(SHADOW, 1, false), &tail.to_le_bytes());
        assert_eq!(rig.wait(1).status().code(), Status::SUCCESS);
        assert_eq!(rig.read_struct::<[u8; 4]>(word(EVENTS, 1, false)), [0; 4], "which nobody moved");
    }
    assert!(!rig.workers[0].arm(), "there is nothing to do");
    assert_eq!(rig.read_struct::<[u8; 4]>(word(EVENTS, 1, false)), 3u32.to_le_bytes());
    rig.push(1, read());
    rig.write_memory(word(SHADOW, 1, false), &4u32.to_le_bytes());
    assert!(rig.workers[0].arm(), "now there is");
}

#[test]
fn reserved_bits_and_queues_that_rest_keep_nobody_awake() {
    let mut rig = rig(ControllerConfig::default());
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, read()), Status::SUCCESS);
    rig.write_register(doorbell_offset(1, false, 4), 0xABCD_0001);
    rig.turns(3);
    assert!(!rig.workers[0].arm());
    // Without bus mastering nothing is fetched, whatever is rung; with it, it is.
    rig.host.set_bus_master(false);
    rig.submit(1, read());
    rig.turns(3);
    assert!(!rig.workers[0].arm());
    rig.host.set_bus_master(true);
    assert_eq!(rig.wait(1).status().code(), Status::SUCCESS);
}

#[test]
fn a_pin_that_is_up_is_worth_a_ring() {
    let mut rig = rig(ControllerConfig { intx: true, ..ControllerConfig::default() });
    rig.create_queue(1, 16);
    assert_eq!(rig.admin(doorbell_buffer_config(SHADOW, EVENTS)).0, Status::SUCCESS);
    rig.push(1, read());
    rig.write_memory(word(SHADOW, 1, false), &1u32.to_le_bytes());
    rig.turns(5);
    assert!(rig.host.interrupts.intx());
    rig.workers[0].arm();
    // The guest takes the entry, and stores its head into the shadow alone.
    rig.write_memory(word(SHADOW, 1, true), &1u32.to_le_bytes());
    assert!(rig.workers[0].arm(), "the pin has to go down");
    rig.turns(3);
    assert!(!rig.host.interrupts.intx());
}

#[test]
fn buffers_in_memory_that_was_mapped_just_before_are_seen_by_all_workers() {
    let mut rig = rig(ControllerConfig { workers: 2, ..ControllerConfig::default() });
    for qid in [1, 2] {
        rig.create_queue(qid, 16);
        for _ in 0..3 {
            assert_eq!(rig.io(qid, read()), Status::SUCCESS);
        }
    }
    // Worker 1 sleeps while memory comes and the guest names its buffers in it.
    rig.map(MEMORY, 2 * PAGE, 4 << 20);
    rig.submit(0, doorbell_buffer_config(MEMORY, MEMORY + PAGE));
    for _ in 0..5 {
        rig.workers[0].poll();
    }
    rig.turns(5);
    assert_eq!(rig.completion(0).expect("complete").status().code(), Status::SUCCESS);
    for qid in [1, 2] {
        assert!(rig.completion(qid).is_none(), "no command runs a second time");
    }
    for qid in [1, 2u16] {
        rig.push(qid, read());
        rig.write_memory(word(4 << 20, qid, false), &4u32.to_le_bytes());
        assert_eq!(rig.wait(qid).status().code(), Status::SUCCESS);
    }
}
