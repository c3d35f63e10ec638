//! Command opcodes. Bits 1:0 of an opcode tell the direction of its data (Base 3.3.3.1).

open_enum! {
    /// Admin command opcodes (Base 5, figure "Opcodes for Admin Commands").
    pub struct AdminOpcode(u8) {
        /// Delete I/O Submission Queue (Base 5.7).
        DELETE_IO_SUBMISSION_QUEUE = 0x00,
        /// Create I/O Submission Queue (Base 5.5).
        CREATE_IO_SUBMISSION_QUEUE = 0x01,
        /// Get Log Page (Base 5.16).
        GET_LOG_PAGE = 0x02,
        /// Delete I/O Completion Queue (Base 5.6).
        DELETE_IO_COMPLETION_QUEUE = 0x04,
        /// Create I/O Completion Queue (Base 5.4).
        CREATE_IO_COMPLETION_QUEUE = 0x05,
        /// Identify (Base 5.17).
        IDENTIFY = 0x06,
        /// Abort (Base 5.1).
        ABORT = 0x08,
        /// Set Features (Base 5.27).
        SET_FEATURES = 0x09,
        /// Get Features (Base 5.15).
        GET_FEATURES = 0x0A,
        /// Asynchronous Event Request (Base 5.2).
        ASYNC_EVENT_REQUEST = 0x0C,
        /// Namespace Management (Base 5.23).
        NAMESPACE_MANAGEMENT = 0x0D,
        /// Firmware Commit (Base 5.12).
        FIRMWARE_COMMIT = 0x10,
        /// Firmware Image Download (Base 5.13).
        FIRMWARE_IMAGE_DOWNLOAD = 0x11,
        /// Device Self-test (Base 5.8).
        DEVICE_SELF_TEST = 0x14,
        /// Namespace Attachment (Base 5.22).
        NAMESPACE_ATTACHMENT = 0x15,
        /// Keep Alive (Base 5.18).
        KEEP_ALIVE = 0x18,
        /// Directive Send (Base 5.10).
        DIRECTIVE_SEND = 0x19,
        /// Directive Receive (Base 5.9).
        DIRECTIVE_RECEIVE = 0x1A,
        /// Virtualization Management (Base 5.28).
        VIRTUALIZATION_MANAGEMENT = 0x1C,
        /// NVMe-MI Send (Base 5.21).
        NVME_MI_SEND = 0x1D,
        /// NVMe-MI Receive (Base 5.20).
        NVME_MI_RECEIVE = 0x1E,
        /// Capacity Management (Base 5.3).
        CAPACITY_MANAGEMENT = 0x20,
        /// Lockdown (Base 5.19).
        LOCKDOWN = 0x24,
        /// Doorbell Buffer Config (Base 5.11).
        DOORBELL_BUFFER_CONFIG = 0x7C,
        /// Fabrics commands (Base 6).
        FABRICS = 0x7F,
        /// Format NVM (Base 5.14).
        FORMAT_NVM = 0x80,
        /// Security Send (Base 5.26).
        SECURITY_SEND = 0x81,
        /// Security Receive (Base 5.25).
        SECURITY_RECEIVE = 0x82,
        /// Sanitize (Base 5.24).
        SANITIZE = 0x84,
        /// Get LBA Status (NVM 4.2.1).
        GET_LBA_STATUS = 0x86,
    }
}

impl AdminOpcode {
    /// The first of the vendor-specific opcodes, which reach to FFh.
    pub const VENDOR_FIRST: Self = Self(0xC0);
}

open_enum! {
    /// I/O command opcodes: those of the NVM command set (NVM 3) and those common to all sets (Base 7).
    pub struct NvmOpcode(u8) {
        /// Flush (Base 7.1).
        FLUSH = 0x00,
        /// Write (NVM 3.2.6).
        WRITE = 0x01,
        /// Read (NVM 3.2.4).
        READ = 0x02,
        /// Write Uncorrectable (NVM 3.2.7).
        WRITE_UNCORRECTABLE = 0x04,
        /// Compare (NVM 3.2.1).
        COMPARE = 0x05,
        /// Write Zeroes (NVM 3.2.8).
        WRITE_ZEROES = 0x08,
        /// Dataset Management (NVM 3.2.3).
        DATASET_MANAGEMENT = 0x09,
        /// Verify (NVM 3.2.5).
        VERIFY = 0x0C,
        /// Reservation Register (Base 7.3).
        RESERVATION_REGISTER = 0x0D,
        /// Reservation Report (Base 7.5).
        RESERVATION_REPORT = 0x0E,
        /// Reservation Acquire (Base 7.2).
        RESERVATION_ACQUIRE = 0x11,
        /// Reservation Release (Base 7.4).
        RESERVATION_RELEASE = 0x15,
        /// Copy (NVM 3.2.2).
        COPY = 0x19,
    }
}

impl NvmOpcode {
    /// The first of the vendor-specific opcodes, which reach to FFh.
    pub const VENDOR_FIRST: Self = Self(0x80);
}
