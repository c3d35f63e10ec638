//! Identify (Base 5.17, NVM 4.1.5): its dwords, what can be asked for, and by module the structures it returns.

use bitfield_struct::bitfield;

mod controller;
mod controller_bits;
mod lists;
mod namespace;
mod nvm;

pub use controller::*;
pub use controller_bits::*;
pub use lists::*;
pub use namespace::*;
pub use nvm::*;

/// The size of every structure Identify returns, in bytes (Base 5.17.1).
pub const IDENTIFY_BYTES: usize = 4096;

/// Dword 10 of Identify (Base 5.17.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyCdw10 {
    /// CNS: what to return.
    #[bits(8)]
    pub cns: Cns,
    #[bits(8)]
    __: u8,
    /// CNTID: controller identifier, for those CNS values that take one.
    pub cntid: u16,
}

/// Dword 11 of Identify (Base 5.17.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyCdw11 {
    /// CNS specific identifier, for those CNS values that take one.
    pub cnssid: u16,
    #[bits(8)]
    __: u8,
    /// CSI: the I/O command set.
    #[bits(8)]
    pub csi: CommandSet,
}

/// Dword 14 of Identify (Base 5.17.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct IdentifyCdw14 {
    /// UUID index.
    #[bits(7)]
    pub uuid_index: u8,
    #[bits(25)]
    __: u32,
}

open_enum! {
    /// CNS: controller or namespace structure (Base 5.17.1).
    pub struct Cns(u8) {
        /// Identify Namespace of an active namespace: [`IdentifyNamespace`].
        NAMESPACE = 0x00,
        /// Identify Controller: [`IdentifyController`].
        CONTROLLER = 0x01,
        /// Active namespace identifiers: [`NamespaceList`].
        ACTIVE_NAMESPACE_LIST = 0x02,
        /// Namespace identification descriptors: [`NamespaceIdDescriptorHeader`].
        NAMESPACE_ID_DESCRIPTOR_LIST = 0x03,
        /// NVM sets (Base 5.17.2.4).
        NVM_SET_LIST = 0x04,
        /// Identify Namespace of an I/O command set: [`IdentifyNvmNamespace`].
        IO_COMMAND_SET_NAMESPACE = 0x05,
        /// Identify Controller of an I/O command set: [`IdentifyNvmController`].
        IO_COMMAND_SET_CONTROLLER = 0x06,
        /// Active namespace identifiers of an I/O command set: [`NamespaceList`] (Base 5.17.2.7).
        IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST = 0x07,
        /// Identify Namespace, independent of the I/O command set: [`IdentifyNamespaceIndependent`].
        NAMESPACE_INDEPENDENT = 0x08,
        /// Identify Namespace for a user data format. Reserved in revision 2.0; defined by later ones.
        USER_DATA_FORMAT_NAMESPACE = 0x09,
        /// Identify Namespace of an I/O command set for a user data format. Reserved in revision 2.0; defined by
        /// later ones.
        IO_COMMAND_SET_USER_DATA_FORMAT_NAMESPACE = 0x0A,
        /// Allocated namespace identifiers: [`NamespaceList`].
        ALLOCATED_NAMESPACE_LIST = 0x10,
        /// Identify Namespace of an allocated namespace.
        ALLOCATED_NAMESPACE = 0x11,
        /// Controllers attached to a namespace: [`ControllerList`].
        ATTACHED_CONTROLLER_LIST = 0x12,
        /// Controllers of the subsystem: [`ControllerList`].
        CONTROLLER_LIST = 0x13,
        /// Primary controller capabilities (Base 5.17.2.13).
        PRIMARY_CONTROLLER_CAPABILITIES = 0x14,
        /// Secondary controllers (Base 5.17.2.14).
        SECONDARY_CONTROLLER_LIST = 0x15,
        /// Namespace granularity.
        NAMESPACE_GRANULARITY_LIST = 0x16,
        /// UUIDs (Base 5.17.2.16).
        UUID_LIST = 0x17,
        /// Domains (Base 5.17.2.17).
        DOMAIN_LIST = 0x18,
        /// Endurance groups (Base 5.17.2.18).
        ENDURANCE_GROUP_LIST = 0x19,
        /// Allocated namespace identifiers of an I/O command set.
        IO_COMMAND_SET_ALLOCATED_NAMESPACE_LIST = 0x1A,
        /// Identify Namespace of an I/O command set for an allocated namespace.
        IO_COMMAND_SET_ALLOCATED_NAMESPACE = 0x1B,
        /// Combinations of I/O command sets: [`IoCommandSetCombinations`].
        IO_COMMAND_SET_COMBINATIONS = 0x1C,
    }
}

open_enum! {
    /// CSI: command set identifiers (Base 5.17.1, figure "Command Set Identifiers").
    pub struct CommandSet(u8) {
        /// NVM.
        NVM = 0,
        /// Key value.
        KEY_VALUE = 1,
        /// Zoned namespace.
        ZONED_NAMESPACE = 2,
    }
}
