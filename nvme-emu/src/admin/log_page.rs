//! Get Log Page (Base 5.16).

use std::sync::atomic::Ordering;

use nvme_spec::NSID_BROADCAST;
use nvme_spec::command::Command;
use nvme_spec::log::{
    ActiveFirmwareInfo, CommandEffects, CommandsSupportedAndEffects, CriticalWarning, FeatureEffects,
    FeaturesSupportedAndEffects, FirmwareSlotLog, GetLogPage, LidSupported, LogPageId, Scope, SmartLog,
    SupportedLogPages,
};
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaTable, Hint};
use zerocopy::{FromZeros, IntoBytes};

use super::{Admin, Answer, features, identify};
use crate::shared::{Counters, Shared};
use crate::transfer;

const PAGES: [LogPageId; 7] = [
    LogPageId::SUPPORTED_LOG_PAGES,
    LogPageId::ERROR_INFORMATION,
    LogPageId::SMART_HEALTH,
    LogPageId::FIRMWARE_SLOT,
    LogPageId::CHANGED_NAMESPACE_LIST,
    LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS,
    LogPageId::FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS,
];

impl Admin {
    pub(super) fn get_log_page(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
    ) -> Result<Answer, Status> {
        let request = GetLogPage::from_command(command);
        let page = self.log_page(&request, command.nsid())?;
        if request.offset_is_index || !request.offset.is_multiple_of(4) || request.offset > page.len() as u64
        {
            return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
        }
        // NUMD is a 32-bit count of dwords: up to 16 GiB may be asked for, as much as a page has is copied,
        // and nothing is reserved for more.
        if request.bytes > u64::from(self.shared.config.max_transfer) {
            return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
        }
        let data = &page[request.offset as usize..];
        self.resolve(table, hint, command, request.bytes as usize, Access::Write)?;
        let data = &data[..data.len().min(request.bytes as usize)];
        transfer::write_to_host(&self.segments, data);
        // What is beyond the page's end is zero.
        transfer::zero_in_host(&self.segments, data.len());
        if !request.rae {
            self.events.log_page_read(request.lid);
        }
        Ok(Answer::Done(0))
    }

    fn log_page(&self, request: &GetLogPage, nsid: u32) -> Result<Vec<u8>, Status> {
        let shared = &self.shared;
        match request.lid {
            LogPageId::SUPPORTED_LOG_PAGES => {
                let mut page = SupportedLogPages::new_zeroed();
                for lid in PAGES {
                    page.lids[usize::from(lid.into_bits())] = LidSupported::new().with_lsupp(true);
                }
                Ok(page.as_bytes().to_vec())
            }
            LogPageId::ERROR_INFORMATION => {
                let errors = shared.errors();
                let mut page: Vec<u8> =
                    errors.entries().flat_map(|entry| entry.as_bytes().to_vec()).collect();
                page.resize(crate::error_log::ENTRIES * 64, 0);
                Ok(page)
            }
            LogPageId::SMART_HEALTH => {
                // LPA says that it is of the controller, not of a namespace.
                if !matches!(nsid, 0 | NSID_BROADCAST) {
                    return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
                }
                Ok(self.smart().as_bytes().to_vec())
            }
            LogPageId::FIRMWARE_SLOT => {
                let mut page = FirmwareSlotLog::new_zeroed();
                page.afi = ActiveFirmwareInfo::new().with_active_slot(1);
                identify::pad(&mut page.frs[0], identify::firmware_revision());
                Ok(page.as_bytes().to_vec())
            }
            LogPageId::CHANGED_NAMESPACE_LIST => {
                let mut page: Vec<u8> =
                    self.events.changed_namespaces().iter().flat_map(|nsid| nsid.to_le_bytes()).collect();
                page.resize(4096, 0);
                Ok(page)
            }
            LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS => Ok(effects(shared).as_bytes().to_vec()),
            LogPageId::FEATURE_IDENTIFIERS_SUPPORTED_AND_EFFECTS => {
                let mut page = FeaturesSupportedAndEffects::new_zeroed();
                for (id, of_namespace) in features::supported() {
                    let scope = Scope::new().with_namespace(of_namespace).with_controller(!of_namespace);
                    page.fids[usize::from(id.into_bits())] =
                        FeatureEffects::new().with_fsupp(true).with_scope(scope);
                }
                Ok(page.as_bytes().to_vec())
            }
            _ => Err(Status::INVALID_LOG_PAGE.with_dnr()),
        }
    }

    fn smart(&self) -> SmartLog {
        let shared = &self.shared;
        let sum = |counter: fn(&Counters) -> &std::sync::atomic::AtomicU64| -> u64 {
            shared.ports.iter().map(|port| counter(&port.counters).load(Ordering::Relaxed)).sum()
        };
        // Data units are thousands of 512 bytes, rounded up (Base 5.16.1.3).
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000));
        let mut page = SmartLog::new_zeroed();
        page.critical_warning = CriticalWarning::new().with_temperature(self.temperature_is_critical());
        page.composite_temperature = features::TEMPERATURE.into();
        page.available_spare = 100;
        page.available_spare_threshold = 10;
        page.data_units_read = units(sum(|counters| &counters.bytes_read)).into();
        page.data_units_written = units(sum(|counters| &counters.bytes_written)).into();
        page.host_read_commands = u128::from(sum(|counters| &counters.reads)).into();
        page.host_write_commands = u128::from(sum(|counters| &counters.writes)).into();
        page.power_cycles = 1.into();
        page.power_on_hours = u128::from(shared.started.elapsed().as_secs() / 3600).into();
        page.media_errors = u128::from(sum(|counters| &counters.media_errors)).into();
        page.error_log_entries = u128::from(shared.errors().count()).into();
        page
    }
}

fn effects(shared: &Shared) -> CommandsSupportedAndEffects {
    let mut page = CommandsSupportedAndEffects::new_zeroed();
    let supported = CommandEffects::new().with_csupp(true);
    let mut admin = |opcode: AdminOpcode| page.acs[usize::from(opcode.into_bits())] = supported;
    admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE);
    admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE);
    admin(AdminOpcode::GET_LOG_PAGE);
    admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE);
    admin(AdminOpcode::CREATE_IO_COMPLETION_QUEUE);
    admin(AdminOpcode::IDENTIFY);
    admin(AdminOpcode::ABORT);
    admin(AdminOpcode::SET_FEATURES);
    admin(AdminOpcode::GET_FEATURES);
    admin(AdminOpcode::ASYNC_EVENT_REQUEST);
    if shared.config.shadow_doorbells {
        admin(AdminOpcode::DOORBELL_BUFFER_CONFIG);
    }
    if shared.subsystem.gate.is_secure() {
        // A key that is replaced, or a shadow MBR that is shown, changes what blocks read as.
        page.acs[usize::from(AdminOpcode::SECURITY_SEND.into_bits())] = supported.with_lbcc(true);
        page.acs[usize::from(AdminOpcode::SECURITY_RECEIVE.into_bits())] = supported;
    }
    let mut io = |opcode: NvmOpcode, changes: bool| {
        page.iocs[usize::from(opcode.into_bits())] = supported.with_lbcc(changes);
    };
    io(NvmOpcode::FLUSH, false);
    io(NvmOpcode::WRITE, true);
    io(NvmOpcode::READ, false);
    io(NvmOpcode::COMPARE, false);
    io(NvmOpcode::WRITE_ZEROES, true);
    io(NvmOpcode::DATASET_MANAGEMENT, true);
    page
}
