//! What a controller says of itself where it depends on the subsystem around it.

use std::sync::Arc;

use crate::rig::{DATA, Rig, admin};
use block_memory::MemoryDevice;
use nvme_emu::{Controller, ControllerConfig};
use nvme_spec::identify::{IdentifyController, IdentifyNamespace};
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::status::Status;

fn identify<T: zerocopy::FromBytes>(rig: &mut Rig, cns: u32, nsid: u32) -> T {
    assert_eq!(rig.admin(admin(AdminOpcode::IDENTIFY, nsid).prp(DATA, 0).dwords(cns, 0)).0, Status::SUCCESS);
    rig.read_struct(DATA)
}

#[test]
fn only_a_subsystem_of_several_controllers_is_shared() {
    let disk = Arc::new(MemoryDevice::new(1 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    assert!(!identify::<IdentifyController>(&mut rig, 1, 0).cmic.multi_controller());
    assert!(!identify::<IdentifyNamespace>(&mut rig, 0, 1).nmic.shared());
    let (other, _seeds) = Controller::new(rig.subsystem.clone(), ControllerConfig::default()).unwrap();
    assert!(identify::<IdentifyController>(&mut rig, 1, 0).cmic.multi_controller());
    assert!(identify::<IdentifyNamespace>(&mut rig, 0, 1).nmic.shared());
    drop(other);
}
