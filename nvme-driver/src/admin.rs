//! Admin commands: raw ones to get wrong, and conveniences on [`Controller`].

use nvme_spec::admin::SecurityCdw10;
use nvme_spec::queue::{
    AbortCdw10, CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11, DeleteQueueCdw10, QueuePriority,
};
use nvme_spec::{AdminOpcode, Command};

use crate::controller::Controller;
use crate::data::{Data, Prps};
use crate::error::Result;
use crate::memory::{DmaBuffer, PAGE};

/// Create I/O Completion Queue, with any parameters.
#[derive(Clone, Copy, Debug)]
pub struct CreateCq {
    /// Identifier.
    pub id: u16,
    /// Entries, counting from zero.
    pub entries_z: u16,
    /// PRP1.
    pub base: u64,
    /// Physically contiguous.
    pub contiguous: bool,
    /// Interrupt vector, if interrupts are enabled.
    pub vector: Option<u16>,
}

impl CreateCq {
    /// A contiguous queue without interrupts.
    pub fn new(id: u16, entries: u32, base: u64) -> Self {
        Self { id, entries_z: entries.wrapping_sub(1) as u16, base, contiguous: true, vector: None }
    }

    /// The command.
    pub fn command(self) -> Command {
        let cdw11 = CreateCqCdw11::new()
            .with_pc(self.contiguous)
            .with_ien(self.vector.is_some())
            .with_iv(self.vector.unwrap_or(0));
        let mut command = admin(AdminOpcode::CREATE_IO_COMPLETION_QUEUE, Data::Prp(self.base, 0));
        command.cdw10 =
            CreateQueueCdw10::new().with_qid(self.id).with_qsize_z(self.entries_z).into_bits().into();
        command.cdw11 = cdw11.into_bits().into();
        command
    }
}

/// Create I/O Submission Queue, with any parameters.
#[derive(Clone, Copy, Debug)]
pub struct CreateSq {
    /// Identifier.
    pub id: u16,
    /// Entries, counting from zero.
    pub entries_z: u16,
    /// PRP1.
    pub base: u64,
    /// Physically contiguous.
    pub contiguous: bool,
    /// Priority.
    pub priority: QueuePriority,
    /// Completion queue.
    pub cqid: u16,
}

impl CreateSq {
    /// A contiguous queue that completes on `cqid`.
    pub fn new(id: u16, entries: u32, base: u64, cqid: u16) -> Self {
        let entries_z = entries.wrapping_sub(1) as u16;
        Self { id, entries_z, base, contiguous: true, priority: QueuePriority::URGENT, cqid }
    }

    /// The command.
    pub fn command(self) -> Command {
        let cdw11 =
            CreateSqCdw11::new().with_pc(self.contiguous).with_qprio(self.priority).with_cqid(self.cqid);
        let mut command = admin(AdminOpcode::CREATE_IO_SUBMISSION_QUEUE, Data::Prp(self.base, 0));
        command.cdw10 =
            CreateQueueCdw10::new().with_qid(self.id).with_qsize_z(self.entries_z).into_bits().into();
        command.cdw11 = cdw11.into_bits().into();
        command
    }
}

/// An admin command with nothing but an opcode and a data pointer.
pub fn admin(opcode: AdminOpcode, data: Data) -> Command {
    let mut command = Command { opcode: opcode.0, ..Command::default() };
    data.apply(&mut command);
    command
}

/// Delete I/O Submission Queue.
pub fn delete_sq(id: u16) -> Command {
    let cdw10 = DeleteQueueCdw10::new().with_qid(id).into_bits().into();
    Command { cdw10, ..admin(AdminOpcode::DELETE_IO_SUBMISSION_QUEUE, Data::None) }
}

/// Delete I/O Completion Queue.
pub fn delete_cq(id: u16) -> Command {
    let cdw10 = DeleteQueueCdw10::new().with_qid(id).into_bits().into();
    Command { cdw10, ..admin(AdminOpcode::DELETE_IO_COMPLETION_QUEUE, Data::None) }
}

/// Abort of command `cid` of submission queue `sqid`.
pub fn abort(sqid: u16, cid: u16) -> Command {
    let cdw10 = AbortCdw10::new().with_sqid(sqid).with_cid(cid).into_bits().into();
    Command { cdw10, ..admin(AdminOpcode::ABORT, Data::None) }
}

/// Asynchronous Event Request.
pub fn async_event_request() -> Command {
    admin(AdminOpcode::ASYNC_EVENT_REQUEST, Data::None)
}

/// Identify: the CNS, the controller in dword 10's upper half, and the command set in dword 11's upper byte.
pub fn identify(cns: u8, nsid: u32, cntid: u16, csi: u8, data: Data) -> Command {
    Command {
        nsid: nsid.into(),
        cdw10: (u32::from(cns) | u32::from(cntid) << 16).into(),
        cdw11: (u32::from(csi) << 24).into(),
        ..admin(AdminOpcode::IDENTIFY, data)
    }
}

/// Get Log Page: `dwords` (1 or more) of page `lid` from byte `offset`.
pub fn get_log_page(lid: u8, nsid: u32, offset: u64, dwords: u32, data: Data) -> Command {
    let numd_z = dwords.wrapping_sub(1);
    Command {
        nsid: nsid.into(),
        cdw10: (u32::from(lid) | (numd_z & 0xFFFF) << 16).into(),
        cdw11: (numd_z >> 16).into(),
        cdw12: (offset as u32).into(),
        cdw13: ((offset >> 32) as u32).into(),
        ..admin(AdminOpcode::GET_LOG_PAGE, data)
    }
}

/// Get Features: `select` is 0 for the current value, 1 the default, 2 the saved one, 3 the capabilities.
pub fn get_features(fid: u8, select: u8, nsid: u32, cdw11: u32, data: Data) -> Command {
    Command {
        nsid: nsid.into(),
        cdw10: (u32::from(fid) | u32::from(select & 7) << 8).into(),
        cdw11: cdw11.into(),
        ..admin(AdminOpcode::GET_FEATURES, data)
    }
}

/// Set Features.
pub fn set_features(fid: u8, save: bool, nsid: u32, cdw11: u32, data: Data) -> Command {
    Command {
        nsid: nsid.into(),
        cdw10: (u32::from(fid) | u32::from(save) << 31).into(),
        cdw11: cdw11.into(),
        ..admin(AdminOpcode::SET_FEATURES, data)
    }
}

/// Security Send of `len` bytes to security protocol `secp`, specific `spsp` (of TCG's the ComID).
pub fn security_send(secp: u8, spsp: u16, len: u32, data: Data) -> Command {
    security(AdminOpcode::SECURITY_SEND, secp, spsp, len, data)
}

/// Security Receive of at most `len` bytes from security protocol `secp`, specific `spsp` (of TCG's the ComID).
pub fn security_receive(secp: u8, spsp: u16, len: u32, data: Data) -> Command {
    security(AdminOpcode::SECURITY_RECEIVE, secp, spsp, len, data)
}

fn security(opcode: AdminOpcode, secp: u8, spsp: u16, len: u32, data: Data) -> Command {
    let cdw10 = SecurityCdw10::new().with_secp(secp).with_spsp(spsp).into_bits().into();
    Command { cdw10, cdw11: len.into(), ..admin(opcode, data) }
}

impl Controller {
    /// A cleared buffer of the first arena with PRPs to it.
    pub fn admin_buffer(&self, len: usize) -> Result<(DmaBuffer, Prps)> {
        let buffer = self.arena().alloc_zeroed(len)?;
        let prps = Prps::new(self.arena(), buffer.iova(), len)?;
        Ok((buffer, prps))
    }

    /// Identify: 4096 bytes.
    pub fn identify(&self, cns: u8, nsid: u32) -> Result<Vec<u8>> {
        self.identify_with(cns, nsid, 0, 0)
    }

    /// Identify with a controller identifier and a command set.
    pub fn identify_with(&self, cns: u8, nsid: u32, cntid: u16, csi: u8) -> Result<Vec<u8>> {
        let (buffer, prps) = self.admin_buffer(PAGE)?;
        self.admin_ok(identify(cns, nsid, cntid, csi, prps.data()))?;
        Ok(buffer.to_vec(0, PAGE))
    }

    /// The active namespaces.
    pub fn active_namespaces(&self) -> Result<Vec<u32>> {
        let list = self.identify(2, 0)?;
        Ok(list.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).take_while(|&id| id != 0).collect())
    }

    /// Get Log Page: `len` bytes (a multiple of 4) from byte `offset`.
    pub fn log_page(&self, lid: u8, nsid: u32, offset: u64, len: usize) -> Result<Vec<u8>> {
        let (buffer, prps) = self.admin_buffer(len)?;
        self.admin_ok(get_log_page(lid, nsid, offset, (len / 4) as u32, prps.data()))?;
        Ok(buffer.to_vec(0, len))
    }

    /// Get Features, the current value.
    pub fn feature(&self, fid: u8) -> Result<u32> {
        Ok(self.admin_ok(get_features(fid, 0, 0, 0, Data::None))?.dw0.get())
    }

    /// Set Features of one dword. Returns dword 0 of the completion.
    pub fn set_feature(&self, fid: u8, cdw11: u32) -> Result<u32> {
        Ok(self.admin_ok(set_features(fid, false, 0, cdw11, Data::None))?.dw0.get())
    }

    /// Asks for I/O queues (feature 07h). Returns how many submission and completion queues are granted.
    pub fn request_queues(&self, pairs: u16) -> Result<(u32, u32)> {
        let z = u32::from(pairs - 1);
        let granted = self.set_feature(7, z << 16 | z)?;
        Ok(((granted & 0xFFFF) + 1, (granted >> 16) + 1))
    }

    /// Deletes an I/O submission queue.
    pub fn delete_sq(&self, id: u16) -> Result<()> {
        self.admin_ok(delete_sq(id)).map(drop)
    }

    /// Deletes an I/O completion queue.
    pub fn delete_cq(&self, id: u16) -> Result<()> {
        self.admin_ok(delete_cq(id)).map(drop)
    }

    /// Aborts a command. Returns whether the controller says that it did.
    pub fn abort(&self, sqid: u16, cid: u16) -> Result<bool> {
        Ok(self.admin_ok(abort(sqid, cid))?.dw0.get() & 1 == 0)
    }

    /// Security Send of `data`.
    pub fn security_send(&self, secp: u8, spsp: u16, data: &[u8]) -> Result<()> {
        let (buffer, prps) = self.admin_buffer(data.len())?;
        buffer.write(0, data);
        self.admin_ok(security_send(secp, spsp, data.len() as u32, prps.data())).map(drop)
    }

    /// Security Receive: `len` bytes, zeroes behind what there was.
    pub fn security_receive(&self, secp: u8, spsp: u16, len: usize) -> Result<Vec<u8>> {
        let (buffer, prps) = self.admin_buffer(len)?;
        self.admin_ok(security_receive(secp, spsp, len as u32, prps.data()))?;
        Ok(buffer.to_vec(0, len))
    }

    /// Leaves an Asynchronous Event Request with the controller. Returns its identifier.
    pub fn request_event(&self) -> Result<u16> {
        self.with_admin(|queue| queue.submit(async_event_request()))
    }
}
