//! Namespaces that change their size while a host uses them.

use std::sync::Arc;

use crate::rig::{Build, DATA, Rig, admin, nvm};
use block::fault::FaultDevice;
use block::testing::CasDevice;
use nvme_emu::{Controller, ControllerConfig, Limits, NamespaceConfig};
use nvme_spec::event::AsyncEvent;
use nvme_spec::identify::{IdentifyController, IdentifyNamespace};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::status::Status;

const BLOCKS: u64 = 1000;

/// A controller on two disks, the first behind a layer.
fn rig(workers: usize) -> (Rig, Arc<CasDevice>, Arc<CasDevice>) {
    let disks = [(); 2].map(|()| Arc::new(CasDevice::new(512, BLOCKS)));
    let layer = Arc::new(FaultDevice::new(disks[0].clone()));
    let config = ControllerConfig { workers, ..ControllerConfig::default() };
    let mut rig = Rig::new(vec![layer, disks[1].clone()], config);
    for qid in 1..=workers as u16 {
        rig.create_queue(qid, 16);
    }
    let [first, second] = disks;
    (rig, first, second)
}

/// Asynchronous Event Configuration: namespace notices and nothing else, or nothing at all.
fn notices(on: bool) -> Build {
    admin(AdminOpcode::SET_FEATURES, 0).dwords(0x0B, u32::from(on) << 8)
}

fn want_notices(rig: &mut Rig, on: bool) {
    assert_eq!(rig.admin(notices(on)).0, Status::SUCCESS);
}

fn request_event(rig: &mut Rig) -> u16 {
    rig.submit(0, admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0))
}

/// Takes the event that request `cid` ends with.
#[track_caller]
fn expect_event(rig: &mut Rig, cid: u16) {
    let completion = rig.wait(0);
    assert_eq!((completion.cid.get(), completion.status()), (cid, Status::SUCCESS));
    assert_eq!(completion.dw0.get(), AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.into_bits());
}

#[track_caller]
fn expect_no_event(rig: &mut Rig) {
    rig.turns(50);
    assert!(rig.completion(0).is_none());
}

/// The Changed Attached Namespace List.
#[track_caller]
fn changed(rig: &mut Rig, retain: bool) -> Vec<u32> {
    let numd_z = 1023;
    let get = admin(AdminOpcode::GET_LOG_PAGE, 0xFFFF_FFFF)
        .prp(DATA, 0)
        .dwords(numd_z << 16 | u32::from(retain) << 15 | 4, 0);
    assert_eq!(rig.admin(get).0, Status::SUCCESS);
    let page = rig.read_memory(DATA, 4096);
    let entries = page.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    entries.take_while(|nsid| *nsid != 0).collect()
}

fn size(rig: &mut Rig, nsid: u32) -> [u128; 4] {
    let identify = admin(AdminOpcode::IDENTIFY, nsid).prp(DATA, 0).dwords(0, 0);
    assert_eq!(rig.admin(identify).0, Status::SUCCESS);
    let data: IdentifyNamespace = rig.read_struct(DATA);
    [data.nsze.get().into(), data.ncap.get().into(), data.nuse.get().into(), data.nvmcap.get()]
}

fn read(rig: &mut Rig, qid: u16, lba: u64) -> Status {
    rig.io(qid, nvm(NvmOpcode::READ, 1, lba, 1, DATA))
}

#[test]
fn a_resize_is_told_once_and_used_at_once() {
    let (mut rig, disk, _) = rig(2);
    let identify = admin(AdminOpcode::IDENTIFY, 0).prp(DATA, 0).dwords(1, 0);
    assert_eq!(rig.admin(identify).0, Status::SUCCESS);
    assert!(rig.read_struct::<IdentifyController>(DATA).oaes.namespace_attribute_notices());
    want_notices(&mut rig, true);
    let request = request_event(&mut rig);
    for qid in [1, 2] {
        assert_eq!(read(&mut rig, qid, BLOCKS), Status::LBA_OUT_OF_RANGE);
    }
    expect_no_event(&mut rig);

    disk.set_blocks(2 * BLOCKS);
    expect_event(&mut rig, request);
    assert_eq!(size(&mut rig, 1), [2000, 2000, 2000, 2000 * 512]);
    assert_eq!(size(&mut rig, 2)[0], 1000);
    assert_eq!(changed(&mut rig, false), [1]);
    assert!(changed(&mut rig, false).is_empty());
    for qid in [1, 2] {
        assert_eq!(read(&mut rig, qid, 2 * BLOCKS - 1), Status::SUCCESS);
        assert_eq!(read(&mut rig, qid, 2 * BLOCKS), Status::LBA_OUT_OF_RANGE);
    }
    // Nothing has changed since.
    request_event(&mut rig);
    disk.call_listeners();
    disk.set_blocks(2 * BLOCKS);
    expect_no_event(&mut rig);
}

#[test]
fn what_is_cut_off_is_out_of_range() {
    let (mut rig, disk, _) = rig(1);
    assert_eq!(read(&mut rig, 1, BLOCKS - 1), Status::SUCCESS);
    // The worker may see the command before it hears of the change, and after.
    disk.set_blocks(BLOCKS / 2);
    for _ in 0..2 {
        for opcode in [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES, NvmOpcode::COMPARE] {
            for lba in [BLOCKS / 2, BLOCKS - 1] {
                let command = nvm(opcode, 1, lba, 1, DATA);
                assert_eq!(rig.io(1, command), Status::LBA_OUT_OF_RANGE, "{opcode:?} {lba}");
            }
        }
        rig.turns(10);
    }
    assert_eq!(read(&mut rig, 1, BLOCKS / 2 - 1), Status::SUCCESS);
}

#[test]
fn a_change_is_not_lost_to_a_host_that_is_not_ready() {
    let (mut rig, disk, other) = rig(1);
    // Neither a request nor a wish for notices.
    disk.set_blocks(BLOCKS + 1);
    expect_no_event(&mut rig);
    let request = request_event(&mut rig);
    expect_no_event(&mut rig);
    let set = rig.submit(0, notices(true));
    expect_event(&mut rig, request);
    assert_eq!(rig.wait(0).cid.get(), set);

    // While the type is masked.
    let request = request_event(&mut rig);
    other.set_blocks(BLOCKS + 2);
    expect_no_event(&mut rig);
    assert_eq!(changed(&mut rig, true), [1, 2]);
    expect_no_event(&mut rig);
    assert_eq!(changed(&mut rig, false), [1, 2]);
    expect_no_event(&mut rig);
    disk.set_blocks(BLOCKS + 3);
    expect_event(&mut rig, request);

    // No request is there.
    assert_eq!(changed(&mut rig, false), [1]);
    disk.set_blocks(BLOCKS + 4);
    rig.turns(10);
    let request = request_event(&mut rig);
    expect_event(&mut rig, request);
    assert_eq!(changed(&mut rig, false), [1]);

    // A host that wants none gets none.
    want_notices(&mut rig, false);
    request_event(&mut rig);
    disk.set_blocks(BLOCKS + 5);
    expect_no_event(&mut rig);
    assert_eq!(changed(&mut rig, false), [1]);
}

/// A host that looks at the size by itself may use all of it at once.
#[test]
fn a_worker_that_has_not_heard_of_it_looks_at_the_device() {
    let (mut rig, disk, _) = rig(1);
    assert_eq!(read(&mut rig, 1, 0), Status::SUCCESS);
    disk.set_blocks_untold(BLOCKS * 4);
    assert_eq!(size(&mut rig, 1)[0], 4000);
    assert_eq!(read(&mut rig, 1, BLOCKS * 4 - 1), Status::SUCCESS);
    assert_eq!(read(&mut rig, 1, BLOCKS * 4), Status::LBA_OUT_OF_RANGE);
    disk.set_blocks_untold(10);
    assert_eq!(read(&mut rig, 1, 10), Status::LBA_OUT_OF_RANGE);
}

#[test]
fn a_reactor_that_sleeps_hears_of_a_change() {
    let (mut rig, disk, _) = rig(1);
    want_notices(&mut rig, true);
    let request = request_event(&mut rig);
    rig.turns(20);
    let start = std::time::Instant::now();
    let hour = std::time::Duration::from_secs(3600);
    rig.reactor.park(std::time::Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| disk.set_blocks(BLOCKS + 1));
        rig.reactor.park(hour);
    });
    assert!(start.elapsed() < hour, "nobody woke it");
    // Mail is seen by the home worker in the turn that takes it.
    rig.turn();
    expect_event(&mut rig, request);
}

#[test]
fn every_controller_hears_of_it() {
    let (mut rig, disk, _) = rig(1);
    let (other, seeds) = Controller::new(rig.subsystem.clone(), ControllerConfig::default()).unwrap();
    let mut second = rig.beside(other, seeds);
    for host in [&mut rig, &mut second] {
        want_notices(host, true);
    }
    let requests = [request_event(&mut rig), request_event(&mut second)];
    disk.set_blocks(BLOCKS + 1);
    for (host, request) in [&mut rig, &mut second].into_iter().zip(requests) {
        expect_event(host, request);
        assert_eq!(changed(host, false), [1]);
        assert_eq!(size(host, 1)[0], 1001);
    }
}

#[test]
fn a_device_keeps_no_subsystem_and_tells_of_no_other_namespace() {
    let (mut rig, disk, _) = rig(1);
    want_notices(&mut rig, true);
    rig.subsystem.remove_namespace(1).unwrap();
    let replaced = Arc::new(CasDevice::new(512, 77));
    let config = NamespaceConfig {
        nsid: Some(1),
        device: replaced.clone(),
        uuid: [8; 16],
        read_only: false,
        limits: Limits::default(),
    };
    rig.subsystem.add_namespace(config).unwrap();
    let request = request_event(&mut rig);
    expect_event(&mut rig, request);
    assert_eq!(changed(&mut rig, false), [1]);
    request_event(&mut rig);
    disk.set_blocks(BLOCKS * 2);
    expect_no_event(&mut rig);
    assert!(changed(&mut rig, false).is_empty());
    assert_eq!(read(&mut rig, 1, 76), Status::SUCCESS);
    assert_eq!(read(&mut rig, 1, 77), Status::LBA_OUT_OF_RANGE);

    let subsystem = Arc::downgrade(&rig.subsystem);
    drop(rig);
    assert!(subsystem.upgrade().is_none(), "a listener keeps the subsystem");
    replaced.set_blocks(5);
}
