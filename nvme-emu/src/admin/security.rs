//! Security Send and Security Receive (Base 5.25, 5.26): what a command says and where its data is. Its way to the
//! subsystem's security and back is the home worker's.

use block::security::{SecurityCommand, SecurityTransfer};
use nvme_spec::NSID_BROADCAST;
use nvme_spec::admin::SecurityCdw10;
use nvme_spec::command::Command;
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaTable, Hint};

use super::{Admin, Answer};
use crate::subsystem::inactive_namespace;
use crate::transfer;

/// TL or AL in bytes. It may be zero: there is no data then.
fn length(command: &Command) -> usize {
    command.cdw11() as usize
}

impl Admin {
    /// Takes a command, for a subsystem with a security.
    pub(super) fn security(&self, command: &Command) -> Result<Answer, Status> {
        // What the namespace means is the protocol's to say (Base 5, figure "Opcodes for Admin Commands"). There is
        // one that the TPer stands for, and hosts name it, or none, or all.
        let nsid = command.nsid();
        if nsid != 0 && nsid != NSID_BROADCAST && self.shared.subsystem.namespace(nsid).is_none() {
            return Err(inactive_namespace(nsid));
        }
        if length(command) > self.shared.config.max_transfer as usize {
            return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
        }
        Ok(Answer::Security)
    }

    /// The command for the security, with its data in private memory. A Receive's memory is only looked at: what there
    /// is to receive must not be lost for a bad pointer.
    pub(crate) fn security_command(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
    ) -> Result<SecurityCommand, Status> {
        let cdw10 = SecurityCdw10::from_bits(command.cdw10());
        let transfer = if command.admin_opcode() == AdminOpcode::SECURITY_SEND {
            self.resolve_security(table, hint, command, Access::Read)?;
            let mut data = vec![0; length(command)];
            transfer::read_from_host(&self.segments, &mut data);
            SecurityTransfer::Send(data)
        } else {
            self.resolve_security(table, hint, command, Access::Write)?;
            SecurityTransfer::Receive(command.cdw11())
        };
        Ok(SecurityCommand { protocol: cdw10.secp(), specific: cdw10.spsp(), transfer })
    }

    /// Ends a command that the security has carried out: what was received goes to the host, to where it is by now.
    pub(crate) fn security_data(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
        data: &[u8],
    ) -> Result<(), Status> {
        if command.admin_opcode() == AdminOpcode::SECURITY_RECEIVE {
            self.resolve_security(table, hint, command, Access::Write)?;
            let data = &data[..data.len().min(length(command))];
            transfer::write_to_host(&self.segments, data);
            // Hosts ask for more than there is, and look at all of it.
            transfer::zero_in_host(&self.segments, data.len());
        }
        Ok(())
    }

    /// Resolves the command's data, of which there may be none.
    fn resolve_security(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
        access: Access,
    ) -> Result<(), Status> {
        self.segments.clear();
        match length(command) {
            0 => Ok(()),
            len => self.resolve(table, hint, command, len, access),
        }
    }
}
