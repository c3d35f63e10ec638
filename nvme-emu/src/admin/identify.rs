//! Identify (Base 5.17, NVM 4.1.5): what the subsystem, its controllers and its namespaces are.

use std::sync::Arc;

use block::{Abilities, Info};
use nvme_spec::NSID_BROADCAST;
use nvme_spec::command::Command;
use nvme_spec::identify::{
    Cmic, Ctratt, DeallocatedRead, DlFeat, FlushBroadcast, Frmw, Fuses, IoCommandSetVector, LbaFormat, Lpa,
    Mec, NStat, Nmic, NsAttr, NsFeat, Nvmsr, Oacs, Oaes, Oncs, QueueEntrySize, SglSupport, Sgls, Vwc, Vwci,
};
use nvme_spec::identify::{
    Cns, CommandSet, ControllerList, ControllerType, IdentifyCdw10, IdentifyCdw11, IdentifyController,
    IdentifyNamespace, IdentifyNamespaceIndependent, IdentifyNvmController, IdentifyNvmNamespace,
    IoCommandSetCombinations, NamespaceIdDescriptorHeader, NamespaceIdType, NamespaceList,
};
use nvme_spec::registers::Vs;
use nvme_spec::status::Status;
use zerocopy::{FromZeros, IntoBytes};

use super::{ABORT_LIMIT, events};
use crate::error_log;
use crate::shared::Shared;
use crate::subsystem::{MAX_NAMESPACES, Namespace, inactive_namespace};

/// The data structure that an Identify command asks for, 4096 bytes.
pub(super) fn identify(shared: &Shared, command: &Command) -> Result<Vec<u8>, Status> {
    let cdw10 = IdentifyCdw10::from_bits(command.cdw10());
    let csi = IdentifyCdw11::from_bits(command.cdw11()).csi();
    let nsid = command.nsid();
    let nvm_only = || {
        if csi == CommandSet::NVM { Ok(()) } else { Err(Status::INVALID_IO_COMMAND_SET.with_dnr()) }
    };
    match cdw10.cns() {
        Cns::NAMESPACE if nsid == NSID_BROADCAST => {
            // What all have in common is told only with Namespace Management (NVM 4.1.5.1).
            Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())
        }
        Cns::NAMESPACE | Cns::ALLOCATED_NAMESPACE => {
            with_namespace(shared, nsid, |namespace| namespace_data(shared, namespace).as_bytes().to_vec())
        }
        Cns::CONTROLLER => Ok(controller_data(shared).as_bytes().to_vec()),
        Cns::ACTIVE_NAMESPACE_LIST | Cns::ALLOCATED_NAMESPACE_LIST => namespace_list(shared, nsid),
        Cns::IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST => {
            nvm_only()?;
            namespace_list(shared, nsid)
        }
        Cns::NAMESPACE_ID_DESCRIPTOR_LIST => {
            let namespace = shared.subsystem.namespace(nsid).ok_or_else(|| inactive_namespace(nsid))?;
            Ok(descriptors(&namespace))
        }
        Cns::IO_COMMAND_SET_NAMESPACE => {
            nvm_only()?;
            let data = || IdentifyNvmNamespace::new_zeroed().as_bytes().to_vec();
            if nsid == NSID_BROADCAST { Ok(data()) } else { with_namespace(shared, nsid, |_| data()) }
        }
        Cns::IO_COMMAND_SET_CONTROLLER => {
            nvm_only()?;
            Ok(nvm_controller_data().as_bytes().to_vec())
        }
        Cns::NAMESPACE_INDEPENDENT => with_namespace(shared, nsid, |namespace| {
            let mut data = IdentifyNamespaceIndependent::new_zeroed();
            data.nmic = Nmic::new().with_shared(is_shared(shared));
            data.nsattr = NsAttr::new().with_write_protected(is_read_only(namespace));
            data.nstat = NStat::new().with_nrdy(true);
            data.as_bytes().to_vec()
        }),
        Cns::ATTACHED_CONTROLLER_LIST => {
            with_namespace(shared, nsid, |_| ()).map(|()| controller_list(shared, cdw10.cntid()))
        }
        Cns::CONTROLLER_LIST => Ok(controller_list(shared, cdw10.cntid())),
        Cns::IO_COMMAND_SET_COMBINATIONS => {
            let mut data = IoCommandSetCombinations::new_zeroed();
            data.vectors[0] = IoCommandSetVector::new().with_nvm(true);
            Ok(data.as_bytes().to_vec())
        }
        _ => Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr()),
    }
}

fn zeroed() -> Vec<u8> {
    vec![0; 4096]
}

fn with_namespace<T>(shared: &Shared, nsid: u32, data: impl FnOnce(&Namespace) -> T) -> Result<T, Status>
where
    T: OrZeroes,
{
    if nsid == 0 || nsid > MAX_NAMESPACES {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    // An inactive identifier returns zeroes (Base 3.2.1.4).
    Ok(shared.subsystem.namespace(nsid).map_or_else(T::or_zeroes, |namespace| data(&namespace)))
}

/// What stands for a namespace that is not there.
trait OrZeroes {
    fn or_zeroes() -> Self;
}

impl OrZeroes for Vec<u8> {
    fn or_zeroes() -> Self {
        zeroed()
    }
}

impl OrZeroes for () {
    fn or_zeroes() -> Self {}
}

/// Whether there are several ways to a namespace. Hosts put a disk with one way under no multipath layer.
fn is_shared(shared: &Shared) -> bool {
    shared.subsystem.controllers().len() > 1
}

fn is_read_only(namespace: &Namespace) -> bool {
    namespace.is_read_only(&namespace.device.info())
}

fn controller_data(shared: &Shared) -> IdentifyController {
    let mut data = IdentifyController::new_zeroed();
    let identity = &shared.subsystem.config;
    let namespaces = shared.subsystem.namespaces();
    data.vid = crate::controller::VENDOR_ID.into();
    data.ssvid = crate::controller::SUBSYSTEM_VENDOR_ID.into();
    pad(&mut data.sn, &identity.serial);
    pad(&mut data.mn, &identity.model);
    pad(&mut data.fr, firmware_revision());
    data.rab = 6;
    data.cmic = Cmic::new().with_multi_controller(is_shared(shared));
    // In units of the minimum memory page size, 4 KiB, as a power of two.
    data.mdts = (shared.config.max_transfer / 4096).trailing_zeros() as u8;
    data.cntlid = shared.cntlid.into();
    data.ver = Vs::V2_0.into_bits().into();
    // In microseconds: how long a host should wait for a shutdown, which makes everything durable.
    data.rtd3e = 30_000_000.into();
    data.oaes = Oaes::new().with_namespace_attribute_notices(true);
    data.ctratt = Ctratt::new();
    data.cntrltype = ControllerType::IO;
    data.nvmsr = Nvmsr::new().with_storage_device(true);
    data.vwci = Vwci::new();
    data.mec = Mec::new();
    data.oacs = Oacs::new()
        .with_security(shared.subsystem.gate.is_secure())
        .with_doorbell_buffer_config(shared.config.shadow_doorbells);
    data.acl_z = ABORT_LIMIT - 1;
    data.aerl_z = events::REQUESTS as u8 - 1;
    data.frmw = Frmw::new().with_slot_1_read_only(true).with_slots(1);
    data.lpa = Lpa::new().with_command_effects(true).with_extended_data(true).with_supported_log_pages(true);
    data.elpe_z = error_log::ENTRIES as u8 - 1;
    data.wctemp = super::features::WARNING_TEMPERATURE.into();
    data.cctemp = super::features::CRITICAL_TEMPERATURE.into();
    data.sqes = QueueEntrySize::SQ;
    data.cqes = QueueEntrySize::CQ;
    data.nn = MAX_NAMESPACES.into();
    data.mnan = MAX_NAMESPACES.into();
    data.oncs = Oncs::new()
        .with_compare(true)
        .with_dataset_management(true)
        .with_write_zeroes(namespaces.iter().all(has(Abilities::WRITE_ZEROES)))
        .with_save_and_select(true)
        .with_timestamp(true);
    let fused = namespaces.iter().filter_map(|namespace| fused_blocks(namespace)).min();
    data.fuses = Fuses::new().with_compare_and_write(fused.is_some());
    // What all that have it can do; the namespaces say how much they can.
    data.acwu_z = blocks_z(fused.unwrap_or(0)).into();
    data.vwc = Vwc::new()
        .with_present(namespaces.iter().any(has(Abilities::VOLATILE_CACHE)))
        .with_flush_broadcast(FlushBroadcast::SUPPORTED);
    data.sgls = Sgls::new().with_support(SglSupport::DWORD_ALIGNED).with_bit_bucket(true);
    data.subnqn[..identity.nqn.len()].copy_from_slice(identity.nqn.as_bytes());
    // One power state of 25 W, a typical disk's, in units of 10 mW.
    data.psd[0].mp = 2500.into();
    data
}

fn has(ability: Abilities) -> impl Fn(&Arc<Namespace>) -> bool {
    move |namespace| namespace.device.info().abilities.contains(ability)
}

/// The most blocks of a fused Compare and Write, where there is one.
fn fused_blocks(namespace: &Namespace) -> Option<u32> {
    let info = namespace.device.info();
    let can = info.abilities.contains(Abilities::COMPARE_AND_WRITE) && !namespace.is_read_only(&info);
    can.then_some(info.compare_and_write_blocks)
}

/// FR: the program's version.
pub(super) fn firmware_revision() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// ASCII, padded with spaces on the right (Base 1.4.2).
pub(super) fn pad(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}

fn nvm_controller_data() -> IdentifyNvmController {
    let mut data = IdentifyNvmController::new_zeroed();
    // Write Zeroes takes whatever fits into NLB; deallocation 256 ranges of any size (NVM 4.1.5.2).
    data.wzsl = 0;
    data
}

/// A count of blocks, counting from zero, in a field of 16 bits.
fn blocks_z(blocks: u32) -> u16 {
    u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX)
}

fn namespace_data(shared: &Shared, namespace: &Namespace) -> IdentifyNamespace {
    let info: Info = namespace.device.info();
    let mut data = IdentifyNamespace::new_zeroed();
    data.nsze = info.blocks.into();
    data.ncap = info.blocks.into();
    data.nuse = info.blocks.into();
    let discard = info.abilities.contains(Abilities::DISCARD);
    let performance = info.preferred_granularity > 1 || info.discard_granularity > 1;
    let fused = fused_blocks(namespace);
    let atomic = info.atomic_write_blocks > 1 || fused.is_some();
    data.nsfeat = NsFeat::new().with_nsabp(atomic).with_optperf(performance).with_thinp(false);
    data.lbaf[0] = LbaFormat::new().with_lbads(info.block_size.trailing_zeros() as u8);
    data.nmic = Nmic::new().with_shared(is_shared(shared));
    let zeroes = discard && info.abilities.contains(Abilities::DISCARD_ZEROES);
    data.dlfeat = DlFeat::new()
        .with_read_behavior(if zeroes { DeallocatedRead::ZEROES } else { DeallocatedRead::NOT_REPORTED })
        .with_write_zeroes_deac(info.abilities.contains(Abilities::WRITE_ZEROES));
    if atomic {
        data.nawun_z = blocks_z(info.atomic_write_blocks).into();
        data.nawupf_z = blocks_z(info.atomic_write_blocks).into();
        data.nacwu_z = blocks_z(fused.unwrap_or(0)).into();
    }
    if performance {
        data.npwg_z = blocks_z(info.preferred_granularity).into();
        data.npwa_z = blocks_z(info.preferred_granularity).into();
        data.npdg_z = blocks_z(info.discard_granularity).into();
        data.npda_z = blocks_z(info.discard_granularity).into();
        data.nows_z = blocks_z(info.preferred_granularity).into();
    }
    data.nsattr = NsAttr::new().with_write_protected(is_read_only(namespace));
    data.nvmcap = u128::from(info.size()).into();
    data.nguid = namespace.uuid;
    data
}

/// The Namespace Identification Descriptor list (Base 5.17.2.3).
fn descriptors(namespace: &Namespace) -> Vec<u8> {
    let mut data = Vec::with_capacity(4096);
    let mut add = |kind, id: &[u8]| {
        data.extend_from_slice(NamespaceIdDescriptorHeader::new(kind).as_bytes());
        data.extend_from_slice(id);
    };
    add(NamespaceIdType::NGUID, &namespace.uuid);
    add(NamespaceIdType::UUID, &namespace.uuid);
    add(NamespaceIdType::CSI, &[CommandSet::NVM.into_bits()]);
    data.resize(4096, 0);
    data
}

/// Identifiers greater than `after`, in order (Base 5.17.2.2).
fn namespace_list(shared: &Shared, after: u32) -> Result<Vec<u8>, Status> {
    if after >= NSID_BROADCAST - 1 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let mut list = NamespaceList::new_zeroed();
    let namespaces = shared.subsystem.namespaces();
    let following = namespaces.iter().map(|namespace| namespace.nsid).filter(|nsid| *nsid > after);
    for (entry, nsid) in list.nsids.iter_mut().zip(following) {
        *entry = nsid.into();
    }
    Ok(list.as_bytes().to_vec())
}

fn controller_list(shared: &Shared, from: u16) -> Vec<u8> {
    let mut list = ControllerList::new_zeroed();
    let mut ids: Vec<u16> =
        shared.subsystem.controllers().iter().map(|controller| controller.cntlid).collect();
    ids.sort_unstable();
    ids.retain(|id| *id >= from);
    ids.truncate(list.cntlids.len());
    list.count = (ids.len() as u16).into();
    for (entry, id) in list.cntlids.iter_mut().zip(ids) {
        *entry = id.into();
    }
    list.as_bytes().to_vec()
}
