//! Set Features and Get Features (Base 5.15, 5.27).

use std::sync::atomic::Ordering;
use std::time::Instant;

use block::Abilities;
use nvme_spec::NSID_BROADCAST;
use nvme_spec::command::Command;
use nvme_spec::features::{
    FeatureCapabilities, FeatureId, FeatureSelect, GetFeaturesCdw10, HostBehaviorSupport,
    InterruptVectorConfiguration, NumberOfQueues, SetFeaturesCdw10, TemperatureThreshold, ThresholdType,
    Timestamp, TimestampOrigin,
};
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaTable, Hint};
use zerocopy::{FromZeros, IntoBytes};

use super::{Admin, Answer};
use crate::engine::CoalescingTable;
use crate::shared::Shared;
use crate::transfer;

/// WCTEMP and CCTEMP in Kelvin: 70 °C and 80 °C.
pub(super) const WARNING_TEMPERATURE: u16 = 343;
pub(super) const CRITICAL_TEMPERATURE: u16 = 353;

/// What the composite temperature always is, in Kelvin: 30 °C.
pub(super) const TEMPERATURE: u16 = 303;

/// A feature that this controller has.
struct Known {
    namespace_specific: bool,
    changeable: bool,
}

fn known(id: FeatureId) -> Option<Known> {
    let (namespace_specific, changeable) = match id {
        FeatureId::ERROR_RECOVERY => (true, true),
        FeatureId::INTERRUPT_VECTOR_CONFIGURATION
        | FeatureId::ARBITRATION
        | FeatureId::POWER_MANAGEMENT
        | FeatureId::TEMPERATURE_THRESHOLD
        | FeatureId::VOLATILE_WRITE_CACHE
        | FeatureId::NUMBER_OF_QUEUES
        | FeatureId::INTERRUPT_COALESCING
        | FeatureId::WRITE_ATOMICITY_NORMAL
        | FeatureId::ASYNC_EVENT_CONFIGURATION
        | FeatureId::TIMESTAMP
        | FeatureId::HOST_BEHAVIOR_SUPPORT => (false, true),
        _ => return None,
    };
    Some(Known { namespace_specific, changeable })
}

/// Feature identifiers that this controller has.
pub(super) fn supported() -> impl Iterator<Item = (FeatureId, bool)> {
    (0..=u8::MAX).map(FeatureId).filter_map(|id| known(id).map(|known| (id, known.namespace_specific)))
}

/// Current values, lost in a reset.
pub(super) struct Features {
    arbitration: u32,
    over_temperature: u16,
    under_temperature: u16,
    error_recovery: u32,
    volatile_write_cache: u32,
    interrupt_coalescing: u32,
    /// Vectors with coalescing disabled.
    uncoalesced: Vec<bool>,
    write_atomicity: u32,
    timestamp: (u64, Instant, TimestampOrigin),
    host_behavior: HostBehaviorSupport,
}

impl Features {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            arbitration: 0,
            over_temperature: WARNING_TEMPERATURE,
            under_temperature: 0,
            error_recovery: 0,
            volatile_write_cache: 1,
            interrupt_coalescing: 0,
            uncoalesced: vec![false; usize::from(shared.host.interrupts.msix_vectors())],
            write_atomicity: 0,
            timestamp: (0, Instant::now(), TimestampOrigin::CLEARED_BY_RESET),
            host_behavior: HostBehaviorSupport::new_zeroed(),
        }
    }
}

impl Admin {
    fn has_volatile_cache(&self) -> bool {
        let volatile = |info: block::Info| info.abilities.contains(Abilities::VOLATILE_CACHE);
        self.shared.subsystem.namespaces().iter().any(|namespace| volatile(namespace.device.info()))
    }

    /// Namespace rules (Base 5.15, figure of namespace use): a feature of the controller takes no namespace
    /// but 0 or all; one of a namespace needs one that is there.
    fn check_namespace(&self, known: &Known, nsid: u32, setting: bool) -> Result<(), Status> {
        if !known.namespace_specific {
            return match nsid {
                0 | NSID_BROADCAST => Ok(()),
                nsid if setting && self.shared.subsystem.namespace(nsid).is_some() => {
                    Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr())
                }
                nsid if self.shared.subsystem.namespace(nsid).is_some() => Ok(()),
                _ => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
            };
        }
        match nsid {
            NSID_BROADCAST if setting => Ok(()),
            nsid if self.shared.subsystem.namespace(nsid).is_some() => Ok(()),
            _ => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
        }
    }

    pub(super) fn get_features(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
    ) -> Result<Answer, Status> {
        let cdw10 = GetFeaturesCdw10::from_bits(command.cdw10());
        let invalid = Status::INVALID_FIELD_IN_COMMAND.with_dnr();
        let known = known(cdw10.fid()).ok_or(invalid)?;
        if cdw10.fid() == FeatureId::VOLATILE_WRITE_CACHE && !self.has_volatile_cache() {
            return Err(invalid);
        }
        self.check_namespace(&known, command.nsid(), false)?;
        let defaults;
        let values = match cdw10.sel() {
            FeatureSelect::CURRENT => &self.features,
            FeatureSelect::DEFAULT | FeatureSelect::SAVED => {
                defaults = Features::new(&self.shared);
                &defaults
            }
            FeatureSelect::SUPPORTED_CAPABILITIES => {
                let capabilities = FeatureCapabilities::new()
                    .with_namespace_specific(known.namespace_specific)
                    .with_changeable(known.changeable);
                return Ok(Answer::Done(capabilities.into_bits()));
            }
            _ => return Err(invalid),
        };
        let result = match cdw10.fid() {
            FeatureId::ARBITRATION => values.arbitration,
            FeatureId::POWER_MANAGEMENT => 0,
            FeatureId::TEMPERATURE_THRESHOLD => {
                let which = TemperatureThreshold::from_bits(command.cdw11());
                match (which.tmpsel(), which.thsel()) {
                    (0, ThresholdType::OVER) => u32::from(values.over_temperature),
                    (0, ThresholdType::UNDER) => u32::from(values.under_temperature),
                    _ => return Err(invalid),
                }
            }
            FeatureId::ERROR_RECOVERY => values.error_recovery,
            FeatureId::VOLATILE_WRITE_CACHE => values.volatile_write_cache,
            FeatureId::NUMBER_OF_QUEUES => {
                let granted = self.queues.granted() - 1;
                NumberOfQueues::new().with_nsq_z(granted).with_ncq_z(granted).into_bits()
            }
            FeatureId::INTERRUPT_COALESCING => values.interrupt_coalescing,
            FeatureId::INTERRUPT_VECTOR_CONFIGURATION => {
                let vector = InterruptVectorConfiguration::from_bits(command.cdw11()).iv();
                let disabled = values.uncoalesced.get(usize::from(vector)).ok_or(invalid)?;
                // The admin completion queue is never coalesced (Base 5.27.1.7).
                let disabled = *disabled || vector == 0;
                InterruptVectorConfiguration::new().with_iv(vector).with_cd(disabled).into_bits()
            }
            FeatureId::WRITE_ATOMICITY_NORMAL => values.write_atomicity,
            FeatureId::ASYNC_EVENT_CONFIGURATION => match cdw10.sel() {
                FeatureSelect::CURRENT => self.events.enabled,
                _ => 0,
            },
            FeatureId::TIMESTAMP => {
                let (base, since, origin) = values.timestamp;
                let milliseconds = base.wrapping_add(since.elapsed().as_millis() as u64) & 0xFFFF_FFFF_FFFF;
                let value = Timestamp::new().with_milliseconds(milliseconds).with_origin(origin);
                let bytes = value.into_bits().to_bytes();
                return self.reply_with(table, hint, command, &bytes);
            }
            FeatureId::HOST_BEHAVIOR_SUPPORT => {
                let data = values.host_behavior;
                return self.reply_with(table, hint, command, data.as_bytes());
            }
            _ => return Err(invalid),
        };
        Ok(Answer::Done(result))
    }

    pub(super) fn set_features(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
    ) -> Result<Answer, Status> {
        let cdw10 = SetFeaturesCdw10::from_bits(command.cdw10());
        let invalid = Status::INVALID_FIELD_IN_COMMAND.with_dnr();
        let value = command.cdw11();
        let known = known(cdw10.fid()).ok_or(invalid)?;
        if cdw10.sv() {
            return Err(Status::FEATURE_IDENTIFIER_NOT_SAVEABLE.with_dnr());
        }
        self.check_namespace(&known, command.nsid(), true)?;
        if !known.changeable {
            return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr());
        }
        match cdw10.fid() {
            FeatureId::ARBITRATION => self.features.arbitration = value,
            // There is one power state.
            FeatureId::POWER_MANAGEMENT if value & 0x1F == 0 => {}
            FeatureId::TEMPERATURE_THRESHOLD => {
                let threshold = TemperatureThreshold::from_bits(value);
                // Sensor 0 is the composite temperature, 1111b is all.
                match (threshold.tmpsel(), threshold.thsel()) {
                    (0 | 0xF, ThresholdType::OVER) => self.features.over_temperature = threshold.tmpth(),
                    (0 | 0xF, ThresholdType::UNDER) => self.features.under_temperature = threshold.tmpth(),
                    _ => return Err(invalid),
                }
                self.check_temperature();
            }
            FeatureId::ERROR_RECOVERY => {
                if value & 1 << 16 != 0 {
                    return Err(invalid); // DULBE: NSFEAT does not offer it
                }
                self.features.error_recovery = value & 0xFFFF;
            }
            FeatureId::VOLATILE_WRITE_CACHE => {
                if !self.has_volatile_cache() {
                    return Err(invalid);
                }
                // Without the cache every write is forced to the medium, and what is in it goes there now.
                self.features.volatile_write_cache = value & 1;
                self.shared.write_through.store(value & 1 == 0, Ordering::Relaxed);
                if value & 1 == 0 {
                    return Ok(Answer::Flush);
                }
            }
            FeatureId::NUMBER_OF_QUEUES => {
                let wanted = NumberOfQueues::from_bits(value);
                if self.queues.any() {
                    return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                }
                if wanted.nsq_z() == 0xFFFF || wanted.ncq_z() == 0xFFFF {
                    return Err(invalid);
                }
                // As many of each kind, so the larger wish counts.
                self.queues.grant(u32::from(wanted.nsq_z().max(wanted.ncq_z())) + 1);
                let granted = self.queues.granted() - 1;
                let result = NumberOfQueues::new().with_nsq_z(granted).with_ncq_z(granted);
                return Ok(Answer::Done(result.into_bits()));
            }
            FeatureId::INTERRUPT_COALESCING => {
                self.features.interrupt_coalescing = value & 0xFFFF;
                self.tell_coalescing();
            }
            FeatureId::INTERRUPT_VECTOR_CONFIGURATION => {
                let wanted = InterruptVectorConfiguration::from_bits(value);
                let vector = self.features.uncoalesced.get_mut(usize::from(wanted.iv())).ok_or(invalid)?;
                *vector = wanted.cd();
                self.tell_coalescing();
            }
            FeatureId::WRITE_ATOMICITY_NORMAL => self.features.write_atomicity = value & 1,
            FeatureId::ASYNC_EVENT_CONFIGURATION => {
                self.events.enabled = value;
                self.check_temperature();
            }
            FeatureId::TIMESTAMP => {
                self.resolve(table, hint, command, 8, Access::Read)?;
                let mut bytes = [0; 8];
                transfer::read_from_host(&self.segments, &mut bytes);
                let base = u64::from_le_bytes(bytes) & 0xFFFF_FFFF_FFFF;
                self.features.timestamp = (base, Instant::now(), TimestampOrigin::SET_BY_HOST);
            }
            FeatureId::HOST_BEHAVIOR_SUPPORT => {
                let len = size_of::<HostBehaviorSupport>();
                self.resolve(table, hint, command, len, Access::Read)?;
                let wanted: HostBehaviorSupport = transfer::read_struct(&self.segments);
                if wanted.acre > 1 {
                    return Err(invalid);
                }
                self.features.host_behavior.acre = wanted.acre;
            }
            _ => return Err(invalid),
        }
        Ok(Answer::Done(0))
    }

    fn tell_coalescing(&self) {
        let Features { interrupt_coalescing, uncoalesced, .. } = &self.features;
        self.shared.set_coalescing(CoalescingTable::new(*interrupt_coalescing, uncoalesced));
    }

    /// A threshold beyond the constant temperature raises its event (Base 5.27.1.3), if enabled.
    fn check_temperature(&mut self) {
        if self.temperature_is_critical() && self.events.enabled & 1 << 1 != 0 {
            self.events.raise(nvme_spec::event::AsyncEvent::TEMPERATURE_THRESHOLD);
        }
    }

    /// Whether the temperature is beyond a threshold that the host set.
    pub(super) fn temperature_is_critical(&self) -> bool {
        TEMPERATURE >= self.features.over_temperature || TEMPERATURE <= self.features.under_temperature
    }
}
