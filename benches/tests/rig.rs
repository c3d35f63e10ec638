//! The client's loop against a controller in this thread: what it sends is right, and it notices what is wrong.

use std::sync::Arc;

use block::Device;
use block_memory::{MemoryDevice, NullDevice};
use nvme_emu::ControllerConfig;
use quarry_bench::histogram::Histogram;
use quarry_bench::lane::{Job, Wrong};
use quarry_bench::pattern::{Order, Pattern};
use quarry_bench::rig::{Rig, server_turn};
use quarry_bench::target::{Target, Workload};

fn workload() -> Workload {
    Workload {
        order: Order::Random,
        writes: 50,
        bytes: 4096,
        depth: 8,
        queues: 2,
        idle_queues: 3,
        sgl: false,
    }
}

/// Runs some commands on every lane; `pattern` overrides the workload's.
fn drive(target: &Target, commands: u64, pattern: Option<Pattern>) -> Result<u64, Wrong> {
    let mut pattern = pattern.unwrap_or_else(|| target.pattern(5));
    let mut latencies = Histogram::default();
    let mut job =
        Job { pattern: &mut pattern, latencies: &mut latencies, left: commands, deadline: u64::MAX };
    let mut lanes = target.lanes().expect("mapped doorbells");
    lanes.iter_mut().for_each(|lane| lane.fill(&mut job));
    while lanes.iter().any(|lane| lane.in_flight() > 0) {
        server_turn();
        for lane in &mut lanes {
            while lane.turn(&mut job)? > 0 {}
        }
    }
    Ok(latencies.len())
}

#[test]
fn every_shape_of_command_completes() {
    for bytes in [512, 4096, 128 << 10, 1 << 20] {
        for sgl in [false, true] {
            let workload = Workload { bytes, sgl, ..workload() };
            let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(16 << 20).unwrap());
            let rig = Rig::new(device, workload.memory()).unwrap();
            let target = rig.target(&workload, false).unwrap();
            assert_eq!(drive(&target, 3000, None), Ok(3000), "{bytes} bytes, SGL: {sgl}");
        }
    }
}

/// Around the ends of queues, and again and again on the same ones.
#[test]
fn shadow_doorbells_carry_all_commands() {
    let device: Arc<dyn Device> = Arc::new(MemoryDevice::new(16 << 20).unwrap());
    let config =
        ControllerConfig { trapped_doorbells: true, shadow_doorbells: true, ..ControllerConfig::default() };
    let workload = Workload { depth: 100, ..workload() };
    let rig = Rig::with_config(device, workload.memory(), config).unwrap();
    assert!(!rig.controller().doorbells().are_mapped());
    let target = rig.target(&workload, false).unwrap();
    assert_eq!(drive(&target, 3000, None), Ok(3000));
}

#[test]
fn interrupts_are_no_more_than_runs() {
    let device: Arc<dyn Device> = Arc::new(NullDevice::new(1 << 30).unwrap());
    let workload = Workload { queues: 1, ..workload() };
    let rig = Rig::new(device, workload.memory()).unwrap();
    let eventfds = rig.controller().connect_vectors(0, 2).unwrap();
    let target = rig.target(&workload, true).unwrap();
    assert_eq!(drive(&target, 800, None), Ok(800));
    let signals = eventfds[1].take().unwrap();
    assert!((1..=100).contains(&signals), "{signals} interrupts for 100 runs of 8");
}

#[test]
fn a_status_that_is_no_success_is_noticed() {
    let device: Arc<dyn Device> = Arc::new(NullDevice::new(1 << 20).unwrap());
    let blocks = device.info().blocks;
    let rig = Rig::new(device, workload().memory()).unwrap();
    let target = rig.target(&workload(), false).unwrap();
    // The pattern believes in a namespace twice as large.
    let pattern = Pattern::new(Order::Sequential, 0, 8, blocks * 2, 1);
    let Err(Wrong::Status { status, .. }) = drive(&target, 1000, Some(pattern)) else {
        panic!("reads beyond the end were not noticed");
    };
    // LBA Out of Range (NVM 3.1): code 80h, Do Not Retry in bit 14.
    assert_eq!(status & 0xFF, 0x80);
}
