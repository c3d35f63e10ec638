//! What an operator sees of a controller and changes of it.

use std::sync::Arc;

use crate::rig::{DATA, Rig, nvm};
use block_memory::MemoryDevice;
use nvme_emu::{ControllerConfig, Limits, Statistics};
use nvme_spec::opcode::NvmOpcode;

use nvme_spec::status::Status;
use vfio_user_server::PciFunction;

fn rig(config: ControllerConfig) -> Rig {
    Rig::new(vec![Arc::new(MemoryDevice::new(1 << 20).unwrap())], config)
}

#[test]
fn trapped_doorbells_are_not_mapped_but_work() {
    let mut rig = rig(ControllerConfig { trapped_doorbells: true, ..ControllerConfig::default() });
    assert!(!rig.controller.has_mapped_doorbells() && rig.controller.mappable(0).is_none());
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
}

#[test]
fn statistics_are_the_sum_over_the_workers() {
    let mut rig = rig(ControllerConfig { workers: 2, ..ControllerConfig::default() });
    assert!(rig.controller.has_mapped_doorbells() && rig.controller.mappable(0).is_some());
    assert_eq!(rig.controller.statistics(), Statistics::default());
    for qid in [1, 2] {
        rig.create_queue(qid, 16);
        assert_eq!(rig.io(qid, nvm(NvmOpcode::WRITE, 1, 0, 2, DATA)), Status::SUCCESS);
        assert_eq!(rig.io(qid, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
    }
    let expected = Statistics { reads: 2, writes: 2, bytes_read: 1024, bytes_written: 2048, media_errors: 0 };
    assert_eq!(rig.controller.statistics(), expected);
}

#[test]
fn limits_are_kept_and_changed() {
    let limits = |iops| Limits { iops: Some(iops), ..Limits::default() };
    let mut rig = rig(ControllerConfig { limits: limits(1_000_000), ..ControllerConfig::default() });
    assert_eq!(rig.controller.limits(), limits(1_000_000));
    assert_eq!(rig.subsystem.limits(1).unwrap(), Limits::default());
    rig.controller.set_limits(limits(2_000_000));
    rig.subsystem.set_limits(1, limits(3_000_000)).unwrap();
    assert_eq!(rig.controller.limits(), limits(2_000_000));
    assert_eq!(rig.subsystem.limits(1).unwrap(), limits(3_000_000));
    assert_eq!(rig.subsystem.set_limits(2, limits(1)).unwrap_err().to_string(), "there is no namespace 2");
    // The workers take the messages, and go on.
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 1, DATA)), Status::SUCCESS);
}
