//! Compare, which the engine carries out itself, so on devices of all kinds.

use std::sync::Arc;

use crate::rig::{Build, DATA, PAGE, Rig, admin, nvm};
use block::fault::{Action, FaultDevice, FaultHandle, Ops, Rule};
use block::{Device, ErrorKind};
use block_memory::MemoryDevice;
use nvme_emu::{ControllerConfig, Statistics};
use nvme_spec::command::{DataPointer, Psdt};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::sgl::SglDescriptor;
use nvme_spec::status::Status;

/// MDTS.
const LARGEST: u64 = 1 << 20;
/// Where a PRP list is built: pages of 1 MiB from [`LONG`] on.
const LIST: u64 = DATA + 64 * PAGE;
const LONG: u64 = 4 << 20;

fn rig(device: Arc<dyn Device>) -> Rig {
    let mut rig = Rig::new(vec![device], ControllerConfig::default());
    rig.create_queue(1, 64);
    // One for all tests: from LONG on, without the first page.
    let pages = 1..LARGEST / PAGE;
    let list: Vec<u8> = pages.flat_map(|page| (LONG + page * PAGE).to_le_bytes()).collect();
    rig.write_memory(LIST, &list);
    rig
}

fn memory_disk() -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::new(16 << 20).unwrap())
}

fn faulty() -> (Rig, FaultHandle) {
    let disk = FaultDevice::new(memory_disk());
    let handle = disk.handle();
    (rig(Arc::new(disk)), handle)
}

/// A command of 1 MiB.
fn long(opcode: NvmOpcode, lba: u64) -> Build {
    nvm(opcode, 1, lba, (LARGEST / 512) as u32, LONG).prp(LONG, LIST)
}

fn compare(lba: u64, blocks: u32) -> Build {
    nvm(NvmOpcode::COMPARE, 1, lba, blocks, DATA)
}

#[test]
fn each_byte_counts() {
    let mut rig = rig(memory_disk());
    let data: Vec<u8> = (0..LARGEST).map(|at| (at * 7 + at / 512) as u8).collect();
    rig.write_memory(LONG, &data);
    assert_eq!(rig.io(1, long(NvmOpcode::WRITE, 8)), Status::SUCCESS);
    assert_eq!(rig.io(1, long(NvmOpcode::COMPARE, 8)), Status::SUCCESS);
    let written = rig.controller.statistics();
    assert_eq!(
        written,
        Statistics { reads: 1, writes: 1, bytes_read: LARGEST, bytes_written: LARGEST, media_errors: 0 }
    );
    for at in [0, 1, 4095, 4096, LARGEST / 2 + 77, LARGEST - 1] {
        rig.write_memory(LONG + at, &[!data[at as usize]]);
        assert_eq!(rig.io(1, long(NvmOpcode::COMPARE, 8)), Status::COMPARE_FAILURE, "byte {at}");
        rig.write_memory(LONG + at, &[data[at as usize]]);
    }
    assert_eq!(rig.io(1, long(NvmOpcode::COMPARE, 8)), Status::SUCCESS);
    assert_eq!(rig.io(1, long(NvmOpcode::COMPARE, 9)), Status::COMPARE_FAILURE);

    // By an SGL: the guest's bytes in two pieces.
    let pieces = [SglDescriptor::data_block(LONG, 100), SglDescriptor::data_block(LONG + 100, 924)];
    rig.write_memory(DATA, zerocopy::IntoBytes::as_bytes(&pieces));
    let mut command = compare(8, 2);
    command.0.dptr = DataPointer::from_sgl(SglDescriptor::last_segment(DATA, 32));
    command.0.flags.set_psdt(Psdt::SGL_METADATA_BUFFER);
    assert_eq!(rig.io(1, command), Status::SUCCESS);
    rig.write_memory(LONG + 1023, &[!data[1023]]);
    assert_eq!(rig.io(1, command), Status::COMPARE_FAILURE);
}

#[test]
fn what_cannot_be_compared_says_why() {
    let (mut rig, handle) = faulty();
    let too_long = nvm(NvmOpcode::COMPARE, 1, 0, (LARGEST / 512) as u32 + 1, LONG).prp(LONG, LIST);
    assert_eq!(rig.io(1, too_long), Status::INVALID_FIELD_IN_COMMAND);
    assert_eq!(rig.io(1, compare(32768, 1)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(rig.io(1, compare(0, 1).prp(1 << 40, 0)), Status::DATA_TRANSFER_ERROR);
    assert_eq!(rig.io(1, compare(0, 1)), Status::SUCCESS);
    handle.add(Rule::new(Action::Fail(ErrorKind::UnrecoveredRead)).on(Ops::READ));
    assert_eq!(rig.io(1, compare(0, 1)), Status::UNRECOVERED_READ_ERROR);
    // A failed comparison is no defect of the medium.
    assert_eq!(rig.controller.statistics().media_errors, 1);
}

/// However many a guest sends, the buffers take so much memory and no more.
#[test]
fn many_at_once_wait_for_each_others_memory() {
    let (mut rig, handle) = faulty();
    handle.add(Rule::new(Action::Hold).on(Ops::READ));
    let sent: Vec<u16> = (0..20).map(|n| rig.submit(1, long(NvmOpcode::COMPARE, n))).collect();
    rig.turns(200);
    assert_eq!(rig.workers[0].in_flight(), 20);
    assert_eq!(handle.held().len(), 4, "4 MiB");
    // One that is over lets the next begin.
    assert!(handle.release(handle.held()[0].id));
    assert_eq!(rig.wait(1).cid.get(), sent[0]);
    rig.turns(50);
    let held: Vec<u64> = handle.held().iter().map(|held| held.lba).collect();
    assert_eq!(held, [1, 2, 3, 4]);
    // And so does one that is cancelled, while it is held or while it waits.
    for cid in [sent[1], sent[10]] {
        let abort = admin(AdminOpcode::ABORT, 0).dwords(u32::from(cid) << 16 | 1, 0);
        assert_eq!(rig.admin(abort), (Status::SUCCESS, 0));
        let completion = rig.wait(1);
        assert_eq!(
            (completion.cid.get(), completion.status().code()),
            (cid, Status::COMMAND_ABORT_REQUESTED)
        );
    }
    rig.turns(50);
    let held: Vec<u64> = handle.held().iter().map(|held| held.lba).collect();
    assert_eq!(held, [2, 3, 4, 5]);
    handle.clear();
    let mut done: Vec<u16> = (0..17).map(|_| rig.wait(1).cid.get()).collect();
    done.sort_unstable();
    let expected: Vec<u16> =
        sent.iter().copied().filter(|cid| ![sent[0], sent[1], sent[10]].contains(cid)).collect();
    assert_eq!(done, expected);
    assert_eq!(rig.workers[0].in_flight(), 0);
}

#[test]
fn a_queue_goes_with_what_waits_in_it() {
    let (mut rig, handle) = faulty();
    handle.add(Rule::new(Action::Hold).on(Ops::READ));
    for n in 0..20 {
        rig.submit(1, long(NvmOpcode::COMPARE, n));
    }
    rig.turns(50);
    let delete = admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete).0, Status::SUCCESS);
    for _ in 0..20 {
        assert_eq!(rig.wait(1).status().code(), Status::COMMAND_ABORTED_SQ_DELETION);
    }
    handle.clear();
    let delete = admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, 0).dwords(1, 0);
    assert_eq!(rig.admin(delete).0, Status::SUCCESS);
    rig.create_queue(1, 64);
    // All of the memory is there again.
    for n in 0..8 {
        rig.submit(1, long(NvmOpcode::COMPARE, n));
    }
    for _ in 0..8 {
        assert_eq!(rig.wait(1).status(), Status::SUCCESS);
    }
}
