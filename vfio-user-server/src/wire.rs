//! The messages of vfio-user as they are on the wire: host byte order over a Unix stream socket
//! (QEMU docs/interop/vfio-user.rst; structures of linux/vfio.h where the protocol takes them over).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What every message begins with ("Header").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a request; its reply repeats it.
    pub id: u16,
    /// See [`command`].
    pub command: u16,
    /// Bytes of the message, this header included.
    pub size: u32,
    /// See [`flags`].
    pub flags: u32,
    /// An errno, in a reply with [`flags::ERROR`].
    pub error: u32,
}

/// Bytes of a [`Header`].
pub const HEADER: usize = size_of::<Header>();

/// Header flags.
pub mod flags {
    /// Mask of the message type.
    pub const TYPE: u32 = 0xf;
    /// A request.
    pub const COMMAND: u32 = 0;
    /// A reply.
    pub const REPLY: u32 = 1;
    /// The sender does not want a reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The reply is an error, and a header only.
    pub const ERROR: u32 = 1 << 5;
}

/// Commands ("Commands").
#[expect(missing_docs, reason = "the protocol's own names")]
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const DEVICE_RESET: u16 = 13;
    pub const REGION_WRITE_MULTI: u16 = 15;
    pub const DEVICE_FEATURE: u16 = 16;
    pub const MIG_DATA_READ: u16 = 17;
    pub const MIG_DATA_WRITE: u16 = 18;
}

/// VERSION, before the capabilities (JSON and NUL).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// Must be equal on both sides.
    pub major: u16,
    /// The lower one counts.
    pub minor: u16,
}

/// DMA_MAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// See [`dma_map`].
    pub flags: u32,
    /// Where the region starts in the descriptor.
    pub offset: u64,
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Flags of [`DmaMap`].
pub mod dma_map {
    /// The device may read.
    pub const READ: u32 = 1 << 0;
    /// The device may write.
    pub const WRITE: u32 = 1 << 1;
    /// The descriptor may be mapped. (Clients before this flag set neither.)
    pub const MMAP: u32 = 1 << 2;
    /// The descriptor may be read and written as a file.
    pub const FILE_IO: u32 = 1 << 3;
}

/// DMA_UNMAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// See [`dma_unmap`].
    pub flags: u32,
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Flags of [`DmaUnmap`].
pub mod dma_unmap {
    /// Everything; address and size are zero.
    pub const ALL: u32 = 1 << 1;
}

/// DEVICE_GET_INFO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of this structure.
    pub argsz: u32,
    /// Bit 0: can be reset; bit 1: a PCI device.
    pub flags: u32,
    /// Number of regions.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
}

/// DEVICE_GET_REGION_INFO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes the other side can take; in a reply, bytes the whole answer needs.
    pub argsz: u32,
    /// See [`region`].
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where in the answer the capabilities start; 0 for none.
    pub cap_offset: u32,
    /// Bytes of the region.
    pub size: u64,
    /// Where the region starts in the descriptor.
    pub offset: u64,
}

/// Flags and indexes of regions (VFIO_REGION_INFO_FLAG_*, VFIO_PCI_*_REGION_INDEX).
pub mod region {
    /// May be read.
    pub const READ: u32 = 1 << 0;
    /// May be written.
    pub const WRITE: u32 = 1 << 1;
    /// May be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// Has capabilities.
    pub const CAPS: u32 = 1 << 3;
    /// The configuration space.
    pub const CONFIG: u32 = 7;
    /// Six BARs, ROM, configuration space, VGA.
    pub const COUNT: u32 = 9;
}

/// The sparse-mmap capability of a region, with one area.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SparseMmap {
    /// 1: sparse mmap.
    pub id: u16,
    /// 1.
    pub version: u16,
    /// Offset of the next capability; 0 for none.
    pub next: u32,
    /// Number of areas that follow.
    pub areas: u32,
    /// Zero.
    pub reserved: u32,
    /// Where the area starts in the region.
    pub offset: u64,
    /// Bytes of the area.
    pub size: u64,
}

/// DEVICE_GET_REGION_IO_FDS, without the sub-regions.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionIoFds {
    /// Bytes the other side can take; in a reply, bytes the whole answer needs.
    pub argsz: u32,
    /// Zero.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Number of sub-regions that follow.
    pub count: u32,
}

/// DEVICE_GET_IRQ_INFO.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes of this structure.
    pub argsz: u32,
    /// See [`irq_info`].
    pub flags: u32,
    /// Which index.
    pub index: u32,
    /// Number of vectors.
    pub count: u32,
}

/// Flags of [`IrqInfo`].
pub mod irq_info {
    /// Takes eventfds.
    pub const EVENTFD: u32 = 1 << 0;
    /// Can be masked.
    pub const MASKABLE: u32 = 1 << 1;
    /// Masks itself when it fires.
    pub const AUTOMASKED: u32 = 1 << 2;
}

/// DEVICE_SET_IRQS, before its data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIrqs {
    /// Bytes of this structure and its data (QEMU: of this structure).
    pub argsz: u32,
    /// See [`set_irqs`].
    pub flags: u32,
    /// Which index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

/// Flags of [`SetIrqs`]: one of DATA_*, one of ACTION_*.
#[expect(missing_docs, reason = "the names of linux/vfio.h")]
pub mod set_irqs {
    pub const DATA_NONE: u32 = 1 << 0;
    pub const DATA_BOOL: u32 = 1 << 1;
    pub const DATA_EVENTFD: u32 = 1 << 2;
    pub const ACTION_MASK: u32 = 1 << 3;
    pub const ACTION_UNMASK: u32 = 1 << 4;
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// REGION_READ and REGION_WRITE, before the data.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// One write of REGION_WRITE_MULTI. A `u64` with their number comes first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MultiWrite {
    /// Where in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes, up to 8.
    pub count: u32,
    /// The bytes.
    pub data: [u8; 8],
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32);
    assert!(size_of::<DmaUnmap>() == 24);
    assert!(size_of::<DeviceInfo>() == 16);
    assert!(size_of::<RegionInfo>() == 32);
    assert!(size_of::<SparseMmap>() == 32);
    assert!(size_of::<RegionIoFds>() == 16);
    assert!(size_of::<IrqInfo>() == 16);
    assert!(size_of::<SetIrqs>() == 20);
    assert!(size_of::<RegionAccess>() == 16);
    assert!(size_of::<MultiWrite>() == 24);
};
