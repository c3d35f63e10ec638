//! Asynchronous events: what the completion of an Asynchronous Event Request says (Base 5.2, NVM 4.1.1).

use bitfield_struct::bitfield;

/// Completion dword 0 of Asynchronous Event Request (Base 5.2.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AsyncEvent {
    /// Bits 2:0: the type.
    #[bits(3)]
    pub kind: EventType,
    #[bits(5)]
    __: u8,
    /// Bits 15:8: information, of a meaning by type.
    pub info: u8,
    /// Bits 23:16: the log page to read, which clears the event.
    pub log_page: u8,
    #[bits(8)]
    __: u8,
}

open_enum! {
    /// Asynchronous event types (Base 5.2.1).
    pub struct EventType(u8) {
        /// Error status.
        ERROR = 0,
        /// SMART / health status.
        SMART_HEALTH = 1,
        /// Notice.
        NOTICE = 2,
        /// Immediate: there is no log page to read.
        IMMEDIATE = 3,
        /// I/O command specific status.
        IO_COMMAND_SPECIFIC = 6,
        /// Vendor specific.
        VENDOR = 7,
    }
}

macro_rules! events {
    ($($(#[$meta:meta])* $name:ident = $kind:ident, $info:literal, $log:ident;)*) => {
        impl AsyncEvent {
            $($(#[$meta])* pub const $name: Self =
                Self::of(EventType::$kind, $info, crate::log::LogPageId::$log.0);)*

            /// The constant's name, if the event has one here.
            pub const fn name(self) -> Option<&'static str> {
                $(if self.into_bits() == Self::$name.into_bits() {
                    return Some(stringify!($name));
                })*
                None
            }
        }
    };
}

impl AsyncEvent {
    /// An event of any kind.
    pub const fn of(kind: EventType, info: u8, log_page: u8) -> Self {
        Self::new().with_kind(kind).with_info(info).with_log_page(log_page)
    }
}

events! {
    /// Error: a doorbell of a queue that does not exist was written.
    WRITE_TO_INVALID_DOORBELL_REGISTER = ERROR, 0x00, ERROR_INFORMATION;
    /// Error: a doorbell was written with a value that is not valid.
    INVALID_DOORBELL_WRITE_VALUE = ERROR, 0x01, ERROR_INFORMATION;
    /// Error: diagnostic failure.
    DIAGNOSTIC_FAILURE = ERROR, 0x02, ERROR_INFORMATION;
    /// Error: persistent internal error.
    PERSISTENT_INTERNAL_ERROR = ERROR, 0x03, ERROR_INFORMATION;
    /// Error: transient internal error.
    TRANSIENT_INTERNAL_ERROR = ERROR, 0x04, ERROR_INFORMATION;
    /// Error: firmware image load error.
    FIRMWARE_IMAGE_LOAD_ERROR = ERROR, 0x05, ERROR_INFORMATION;
    /// SMART: the NVM subsystem's reliability is compromised.
    NVM_SUBSYSTEM_RELIABILITY = SMART_HEALTH, 0x00, SMART_HEALTH;
    /// SMART: a temperature threshold was crossed.
    TEMPERATURE_THRESHOLD = SMART_HEALTH, 0x01, SMART_HEALTH;
    /// SMART: available spare fell below its threshold.
    SPARE_BELOW_THRESHOLD = SMART_HEALTH, 0x02, SMART_HEALTH;
    /// Notice: a namespace came, went or changed.
    NAMESPACE_ATTRIBUTE_CHANGED = NOTICE, 0x00, CHANGED_NAMESPACE_LIST;
    /// Notice: firmware activation is starting.
    FIRMWARE_ACTIVATION_STARTING = NOTICE, 0x01, FIRMWARE_SLOT;
    /// Notice: the controller-initiated telemetry log changed.
    TELEMETRY_LOG_CHANGED = NOTICE, 0x02, TELEMETRY_CONTROLLER_INITIATED;
    /// Notice: asymmetric namespace access changed.
    ASYMMETRIC_NAMESPACE_ACCESS_CHANGE = NOTICE, 0x03, ASYMMETRIC_NAMESPACE_ACCESS;
    /// Notice: the predictable latency event aggregate log changed.
    PREDICTABLE_LATENCY_EVENT_AGGREGATE_CHANGE = NOTICE, 0x04, PREDICTABLE_LATENCY_EVENT_AGGREGATE;
    /// Notice: LBA status information alert (NVM 4.1.1).
    LBA_STATUS_INFORMATION_ALERT = NOTICE, 0x05, LBA_STATUS_INFORMATION;
    /// Notice: the endurance group event aggregate log changed.
    ENDURANCE_GROUP_EVENT_AGGREGATE_CHANGE = NOTICE, 0x06, ENDURANCE_GROUP_EVENT_AGGREGATE;
    /// Immediate: a normal NVM subsystem shutdown began.
    NORMAL_NVM_SUBSYSTEM_SHUTDOWN = IMMEDIATE, 0x00, SUPPORTED_LOG_PAGES;
    /// I/O command specific: a reservation notification is available.
    RESERVATION_LOG_PAGE_AVAILABLE = IO_COMMAND_SPECIFIC, 0x00, RESERVATION_NOTIFICATION;
    /// I/O command specific: a sanitize operation completed.
    SANITIZE_OPERATION_COMPLETED = IO_COMMAND_SPECIFIC, 0x01, SANITIZE_STATUS;
    /// I/O command specific: a sanitize operation completed with unexpected deallocation.
    SANITIZE_OPERATION_COMPLETED_WITH_UNEXPECTED_DEALLOCATION = IO_COMMAND_SPECIFIC, 0x02, SANITIZE_STATUS;
}
