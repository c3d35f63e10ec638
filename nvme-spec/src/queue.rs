//! Dwords of the commands that create and delete I/O queues and of Abort.

use bitfield_struct::bitfield;

/// Dword 10 of Create I/O Completion Queue (Base 5.4) and Create I/O Submission Queue (Base 5.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateQueueCdw10 {
    /// QID: the queue's identifier.
    pub qid: u16,
    /// QSIZE: the queue's size in entries, counting from zero.
    pub qsize_z: u16,
}

/// Dword 11 of Create I/O Completion Queue (Base 5.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateCqCdw11 {
    /// PC: physically contiguous.
    pub pc: bool,
    /// IEN: interrupts are enabled.
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// IV: interrupt vector.
    pub iv: u16,
}

/// Dword 11 of Create I/O Submission Queue (Base 5.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateSqCdw11 {
    /// PC: physically contiguous.
    pub pc: bool,
    /// QPRIO: the queue's priority, used with weighted round robin only.
    #[bits(2)]
    pub qprio: QueuePriority,
    #[bits(13)]
    __: u16,
    /// CQID: the completion queue.
    pub cqid: u16,
}

/// Dword 12 of Create I/O Submission Queue (Base 5.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CreateSqCdw12 {
    /// NVMSETID: the NVM set, or 0.
    pub nvmsetid: u16,
    #[bits(16)]
    __: u16,
}

open_enum! {
    /// QPRIO (Base 5.5).
    pub struct QueuePriority(u8) {
        /// Urgent.
        URGENT = 0,
        /// High.
        HIGH = 1,
        /// Medium.
        MEDIUM = 2,
        /// Low.
        LOW = 3,
    }
}

/// Dword 10 of Delete I/O Completion Queue (Base 5.6) and Delete I/O Submission Queue (Base 5.7).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct DeleteQueueCdw10 {
    /// QID: the queue's identifier.
    pub qid: u16,
    #[bits(16)]
    __: u16,
}

/// Dword 10 of Abort (Base 5.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AbortCdw10 {
    /// SQID: the submission queue of the command to abort.
    pub sqid: u16,
    /// CID: the identifier of the command to abort.
    pub cid: u16,
}

/// Completion dword 0 of Abort (Base 5.1.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct AbortDw0 {
    /// The command was not aborted.
    pub not_aborted: bool,
    #[bits(31)]
    __: u32,
}
