//! Submission queue entries (Base 3.3.3.1) and completion queue entries (Base 3.3.3.2).

use bitfield_struct::bitfield;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::opcode::{AdminOpcode, NvmOpcode};
use crate::sgl::SglDescriptor;
use crate::status::Status;

/// A submission queue entry, 64 bytes: the common command format (Base 3.3.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Command {
    /// CDW0 bits 7:0: an [`AdminOpcode`] or an [`NvmOpcode`], by the queue.
    pub opcode: u8,
    /// CDW0 bits 15:8.
    pub flags: CommandFlags,
    /// CDW0 bits 31:16, CID: unique among the commands in flight on one submission queue.
    pub cid: U16,
    /// NSID: 0 when unused, FFFFFFFFh for all namespaces.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// MPTR, dwords 5:4: the address of metadata, or with [`Psdt::SGL_METADATA_SGL`] of one SGL descriptor.
    pub mptr: U64,
    /// DPTR, dwords 9:6.
    pub dptr: DataPointer,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}
assert_size!(Command => 64);

impl Command {
    /// The size of an entry in bytes.
    pub const BYTES: usize = size_of::<Self>();

    /// The opcode, read as an admin command's.
    #[inline]
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode(self.opcode)
    }

    /// The opcode, read as an NVM command's.
    #[inline]
    pub const fn nvm_opcode(&self) -> NvmOpcode {
        NvmOpcode(self.opcode)
    }

    /// FUSE: whether the command is part of a fused operation.
    #[inline]
    pub const fn fuse(&self) -> Fuse {
        self.flags.fuse()
    }

    /// PSDT: whether the command names its data by PRPs or by SGLs.
    #[inline]
    pub const fn psdt(&self) -> Psdt {
        self.flags.psdt()
    }

    /// The command identifier.
    #[inline]
    pub const fn cid(&self) -> u16 {
        self.cid.get()
    }

    /// The namespace identifier.
    #[inline]
    pub const fn nsid(&self) -> u32 {
        self.nsid.get()
    }

    /// Command dword 2.
    #[inline]
    pub const fn cdw2(&self) -> u32 {
        self.cdw2.get()
    }

    /// Command dword 3.
    #[inline]
    pub const fn cdw3(&self) -> u32 {
        self.cdw3.get()
    }

    /// The metadata pointer.
    #[inline]
    pub const fn mptr(&self) -> u64 {
        self.mptr.get()
    }

    /// The first PRP entry of the data pointer.
    #[inline]
    pub const fn prp1(&self) -> u64 {
        self.dptr.prp1.get()
    }

    /// The second PRP entry of the data pointer.
    #[inline]
    pub const fn prp2(&self) -> u64 {
        self.dptr.prp2.get()
    }

    /// The data pointer, read as an SGL descriptor.
    pub fn sgl1(&self) -> SglDescriptor {
        self.dptr.sgl()
    }

    /// Command dword 10.
    #[inline]
    pub const fn cdw10(&self) -> u32 {
        self.cdw10.get()
    }

    /// Command dword 11.
    #[inline]
    pub const fn cdw11(&self) -> u32 {
        self.cdw11.get()
    }

    /// Command dword 12.
    #[inline]
    pub const fn cdw12(&self) -> u32 {
        self.cdw12.get()
    }

    /// Command dword 13.
    #[inline]
    pub const fn cdw13(&self) -> u32 {
        self.cdw13.get()
    }

    /// Command dword 14.
    #[inline]
    pub const fn cdw14(&self) -> u32 {
        self.cdw14.get()
    }

    /// Command dword 15.
    #[inline]
    pub const fn cdw15(&self) -> u32 {
        self.cdw15.get()
    }
}

/// CDW0 bits 15:8 (Base 3.3.3.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandFlags {
    /// FUSE.
    #[bits(2)]
    pub fuse: Fuse,
    /// Bits 13:10, reserved.
    #[bits(4)]
    pub reserved: u8,
    /// PSDT.
    #[bits(2)]
    pub psdt: Psdt,
}

open_enum! {
    /// FUSE: fused operation (Base 3.3.3.1).
    pub struct Fuse(u8) {
        /// A command of its own.
        NORMAL = 0,
        /// The first command of a fused operation.
        FIRST = 1,
        /// The second command of a fused operation.
        SECOND = 2,
    }
}

open_enum! {
    /// PSDT: PRP or SGL for data transfer (Base 3.3.3.1).
    pub struct Psdt(u8) {
        /// PRPs for data; MPTR is the address of a contiguous buffer.
        PRP = 0,
        /// SGLs for data; MPTR is the address of a contiguous buffer.
        SGL_METADATA_BUFFER = 1,
        /// SGLs for data; MPTR is the address of one SGL descriptor.
        SGL_METADATA_SGL = 2,
    }
}

/// DPTR, 16 bytes: two PRP entries, or the first SGL descriptor (Base 3.3.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DataPointer {
    /// PRP1: the first page of data, with an offset.
    pub prp1: U64,
    /// PRP2: the second page of data, or a list of pages, or nothing.
    pub prp2: U64,
}
assert_size!(DataPointer => 16);

impl DataPointer {
    /// Made of two PRP entries.
    pub const fn from_prps(prp1: u64, prp2: u64) -> Self {
        Self { prp1: U64::new(prp1), prp2: U64::new(prp2) }
    }

    /// Made of one SGL descriptor.
    pub fn from_sgl(descriptor: SglDescriptor) -> Self {
        zerocopy::transmute!(descriptor)
    }

    /// Read as one SGL descriptor.
    pub fn sgl(&self) -> SglDescriptor {
        zerocopy::transmute!(*self)
    }
}

/// A completion queue entry, 16 bytes (Base 3.3.3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Completion {
    /// Dword 0: the command's own result.
    pub dw0: U32,
    /// Dword 1: the command's own result, second half.
    pub dw1: U32,
    /// SQHD: the submission queue's head when this entry was made.
    pub sqhd: U16,
    /// SQID: the submission queue of the command.
    pub sqid: U16,
    /// CID: the command's identifier.
    pub cid: U16,
    /// Status and phase. Write these last: the phase makes the entry valid.
    pub status: CompletionStatus,
}
assert_size!(Completion => 16);

impl Completion {
    /// The size of an entry in bytes.
    pub const BYTES: usize = size_of::<Self>();

    /// The status without the phase.
    #[inline]
    pub const fn status(&self) -> Status {
        self.status.status()
    }

    /// The phase tag.
    #[inline]
    pub const fn phase(&self) -> bool {
        self.status.phase()
    }
}

/// The upper half of a completion's dword 3: phase and status (Base 3.3.3.2, 3.3.3.2.1).
#[bitfield(u16, repr = U16, from = U16::new, into = U16::get)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CompletionStatus {
    /// P, phase tag: flips each time the queue wraps.
    pub phase: bool,
    /// The status field.
    #[bits(15)]
    pub status: Status,
}
