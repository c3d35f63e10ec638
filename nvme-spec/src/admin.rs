//! Dwords of the admin commands that have no module of their own.

use bitfield_struct::bitfield;

use crate::identify::CommandSet;

/// Dword 10 of Format NVM (Base 5.14).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FormatCdw10 {
    /// LBAFL: the LBA format's index, lower four bits.
    #[bits(4)]
    pub lbafl: u8,
    /// MSET: metadata is part of an extended LBA.
    pub mset: bool,
    /// PI: protection information type; 0 for none.
    #[bits(3)]
    pub pi: u8,
    /// PIL: protection information is in the first bytes of metadata.
    pub pil: bool,
    /// SES: secure erase.
    #[bits(3)]
    pub ses: SecureErase,
    /// LBAFU: the LBA format's index, upper two bits.
    #[bits(2)]
    pub lbafu: u8,
    #[bits(18)]
    __: u32,
}

impl FormatCdw10 {
    /// The LBA format's index.
    pub const fn lbaf(self) -> u8 {
        self.lbafu() << 4 | self.lbafl()
    }
}

open_enum! {
    /// SES of Format NVM (Base 5.14).
    pub struct SecureErase(u8) {
        /// None.
        NONE = 0,
        /// User data erase.
        USER_DATA = 1,
        /// Cryptographic erase.
        CRYPTOGRAPHIC = 2,
    }
}

/// Dword 10 of Security Send (Base 5.26) and Security Receive (Base 5.25). Dword 11 is the transfer or allocation
/// length in bytes.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SecurityCdw10 {
    /// NSSF: NVMe security specific field.
    pub nssf: u8,
    /// SPSP: security protocol specific, SPSP1 in the upper byte.
    pub spsp: u16,
    /// SECP: security protocol (SPC); 01h and 02h are TCG's, 00h asks which there are.
    pub secp: u8,
}

/// Dword 10 of Firmware Commit (Base 5.12).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FirmwareCommitCdw10 {
    /// FS: firmware slot; 0 lets the controller choose.
    #[bits(3)]
    pub fs: u8,
    /// CA: commit action.
    #[bits(3)]
    pub ca: FirmwareCommitAction,
    #[bits(25)]
    __: u32,
    /// BPID: boot partition.
    pub bpid: bool,
}

open_enum! {
    /// CA of Firmware Commit (Base 5.12).
    pub struct FirmwareCommitAction(u8) {
        /// Replace the image, do not activate.
        REPLACE = 0,
        /// Replace the image, activate at the next controller level reset.
        REPLACE_AND_ACTIVATE_AT_RESET = 1,
        /// Activate the image in the slot at the next controller level reset.
        ACTIVATE_AT_RESET = 2,
        /// Activate the image in the slot now.
        ACTIVATE_IMMEDIATELY = 3,
        /// Replace the boot partition.
        REPLACE_BOOT_PARTITION = 6,
        /// Activate the boot partition.
        ACTIVATE_BOOT_PARTITION = 7,
    }
}

/// Dword 10 of Device Self-test (Base 5.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeviceSelfTestCdw10 {
    /// STC: self-test code.
    #[bits(4)]
    pub stc: SelfTestCode,
    #[bits(28)]
    __: u32,
}

open_enum! {
    /// STC of Device Self-test (Base 5.8).
    pub struct SelfTestCode(u8) {
        /// Start a short test.
        SHORT = 0x1,
        /// Start an extended test.
        EXTENDED = 0x2,
        /// Vendor specific.
        VENDOR = 0xE,
        /// Abort the test.
        ABORT = 0xF,
    }
}

/// Dword 10 of Sanitize (Base 5.24). Dword 11 is the overwrite pattern.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct SanitizeCdw10 {
    /// SANACT: the action.
    #[bits(3)]
    pub sanact: SanitizeAction,
    /// AUSE: allow unrestricted sanitize exit.
    pub ause: bool,
    /// OWPASS: overwrite passes; 0 means 16.
    #[bits(4)]
    pub owpass: u8,
    /// OIPBP: invert the pattern between passes.
    pub oipbp: bool,
    /// NDAS: do not deallocate afterwards.
    pub ndas: bool,
    #[bits(22)]
    __: u32,
}

open_enum! {
    /// SANACT (Base 5.24).
    pub struct SanitizeAction(u8) {
        /// Exit failure mode.
        EXIT_FAILURE_MODE = 1,
        /// Block erase.
        BLOCK_ERASE = 2,
        /// Overwrite.
        OVERWRITE = 3,
        /// Crypto erase.
        CRYPTO_ERASE = 4,
    }
}

/// Dword 10 of Namespace Management (Base 5.23).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceManagementCdw10 {
    /// SEL: what to do.
    #[bits(4)]
    pub sel: NamespaceManagementSelect,
    #[bits(28)]
    __: u32,
}

open_enum! {
    /// SEL of Namespace Management (Base 5.23).
    pub struct NamespaceManagementSelect(u8) {
        /// Create.
        CREATE = 0,
        /// Delete.
        DELETE = 1,
    }
}

/// Dword 11 of Namespace Management (Base 5.23).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceManagementCdw11 {
    #[bits(24)]
    __: u32,
    /// CSI: the I/O command set of the namespace to create.
    #[bits(8)]
    pub csi: CommandSet,
}

/// Dword 10 of Namespace Attachment (Base 5.22). The data is a controller list.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct NamespaceAttachmentCdw10 {
    /// SEL: what to do.
    #[bits(4)]
    pub sel: NamespaceAttachmentSelect,
    #[bits(28)]
    __: u32,
}

open_enum! {
    /// SEL of Namespace Attachment (Base 5.22).
    pub struct NamespaceAttachmentSelect(u8) {
        /// Attach to the controllers.
        ATTACH = 0,
        /// Detach from the controllers.
        DETACH = 1,
    }
}

/// Dword 11 of Directive Receive (Base 5.9) and Directive Send (Base 5.10). Dword 10 is the number of dwords,
/// counting from zero.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DirectiveCdw11 {
    /// DOPER: directive operation.
    pub doper: u8,
    /// DTYPE: directive type.
    pub dtype: u8,
    /// DSPEC: directive specific.
    pub dspec: u16,
}
