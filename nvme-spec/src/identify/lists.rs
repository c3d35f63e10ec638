//! Lists that Identify returns: namespaces, identifiers of a namespace, controllers, command sets (Base 5.17.2).

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Namespace list, 4096 bytes, ascending, unused entries 0 (Base 5.17.2.2, 5.17.2.7, 5.17.2.9,
/// 5.17.2.19; CNS 02h, 07h, 10h, 1Ah).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceList {
    /// Namespace identifiers greater than the one asked with.
    pub nsids: [U32; 1024],
}
assert_size!(NamespaceList => 4096);

/// Controller list, 4096 bytes, ascending (Base 5.17.2.11, 5.17.2.12; CNS 12h, 13h; also the data of Namespace
/// Attachment).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControllerList {
    /// Bytes 1:0: the number of identifiers.
    pub count: U16,
    /// Bytes 4095:2: controller identifiers, unused entries 0.
    pub cntlids: [U16; 2047],
}
assert_size!(ControllerList => 4096);

/// The head of a namespace identification descriptor, 4 bytes; `nidl` bytes follow (Base 5.17.2.3; CNS 03h). A
/// descriptor with `nidl` 0 ends the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NamespaceIdDescriptorHeader {
    /// Byte 0, NIDT: the type.
    pub nidt: NamespaceIdType,
    /// Byte 1, NIDL: the length of the identifier in bytes.
    pub nidl: u8,
    /// Bytes 3:2.
    pub reserved: [u8; 2],
}
assert_size!(NamespaceIdDescriptorHeader => 4);

impl NamespaceIdDescriptorHeader {
    /// The head for an identifier of a type known here.
    pub const fn new(nidt: NamespaceIdType) -> Self {
        Self { nidt, nidl: nidt.len(), reserved: [0; 2] }
    }
}

open_enum! {
    /// NIDT: namespace identifier types (Base 5.17.2.3).
    pub struct NamespaceIdType(u8) {
        /// IEEE extended unique identifier, 8 bytes, big endian.
        EUI64 = 1,
        /// Namespace globally unique identifier, 16 bytes, big endian.
        NGUID = 2,
        /// Namespace UUID, 16 bytes, in the order of RFC 4122.
        UUID = 3,
        /// Command set identifier, 1 byte.
        CSI = 4,
    }
}

impl NamespaceIdType {
    /// The length of an identifier of this type in bytes; 0 if the type is not known here.
    #[expect(clippy::len_without_is_empty, reason = "the length of what the type names, not of a container")]
    pub const fn len(self) -> u8 {
        match self {
            Self::EUI64 => 8,
            Self::NGUID | Self::UUID => 16,
            Self::CSI => 1,
            _ => 0,
        }
    }
}

/// Combinations of I/O command sets that can be enabled at once, 4096 bytes (Base 5.17.2.21; CNS 1Ch). An empty
/// vector ends the list.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoCommandSetCombinations {
    /// By combination index.
    pub vectors: [IoCommandSetVector; 512],
}
assert_size!(IoCommandSetCombinations => 4096);

/// I/O command set vector, 8 bytes (Base 5.17.2.21).
#[bitfield(u64, repr = U64, from = U64::new, into = U64::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IoCommandSetVector {
    /// The NVM command set.
    pub nvm: bool,
    /// The key value command set.
    pub key_value: bool,
    /// The zoned namespace command set.
    pub zoned: bool,
    #[bits(61)]
    __: u64,
}
