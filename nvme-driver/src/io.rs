//! Commands of the NVM command set, ready to push.

use nvme_spec::command::Fuse;
use nvme_spec::nvm::{DsmCdw10, DsmCdw11, IoCdw12};
use nvme_spec::{Command, NvmOpcode};

use crate::data::Data;

fn command(opcode: NvmOpcode, nsid: u32, data: Data) -> Command {
    let mut command = Command { opcode: opcode.0, nsid: nsid.into(), ..Command::default() };
    data.apply(&mut command);
    command
}

fn ranged(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u32, data: Data) -> Command {
    let cdw12 = IoCdw12::new().with_nlb_z((blocks.wrapping_sub(1)) as u16);
    Command {
        cdw10: (slba as u32).into(),
        cdw11: ((slba >> 32) as u32).into(),
        cdw12: cdw12.into_bits().into(),
        ..command(opcode, nsid, data)
    }
}

/// Read of `blocks` (1 to 65536) logical blocks.
pub fn read(nsid: u32, slba: u64, blocks: u32, data: Data) -> Command {
    ranged(NvmOpcode::READ, nsid, slba, blocks, data)
}

/// Write of `blocks` (1 to 65536) logical blocks.
pub fn write(nsid: u32, slba: u64, blocks: u32, data: Data) -> Command {
    ranged(NvmOpcode::WRITE, nsid, slba, blocks, data)
}

/// Compare of `blocks` (1 to 65536) logical blocks.
pub fn compare(nsid: u32, slba: u64, blocks: u32, data: Data) -> Command {
    ranged(NvmOpcode::COMPARE, nsid, slba, blocks, data)
}

/// Compare with `old` and Write of `new`, fused: to be pushed one after the other and rung for once.
pub fn compare_and_write(nsid: u32, slba: u64, blocks: u32, old: Data, new: Data) -> [Command; 2] {
    [
        fused(compare(nsid, slba, blocks, old), Fuse::FIRST),
        fused(write(nsid, slba, blocks, new), Fuse::SECOND),
    ]
}

/// Makes a command a part of a fused operation.
pub fn fused(mut command: Command, fuse: Fuse) -> Command {
    command.flags.set_fuse(fuse);
    command
}

/// Write Zeroes to `blocks` (1 to 65536) logical blocks.
pub fn write_zeroes(nsid: u32, slba: u64, blocks: u32) -> Command {
    ranged(NvmOpcode::WRITE_ZEROES, nsid, slba, blocks, Data::None)
}

/// Sets Force Unit Access.
pub fn fua(mut command: Command) -> Command {
    command.cdw12.set(IoCdw12::from_bits(command.cdw12()).with_fua(true).into_bits());
    command
}

/// Flush.
pub fn flush(nsid: u32) -> Command {
    command(NvmOpcode::FLUSH, nsid, Data::None)
}

/// Dataset Management of `ranges` (1 to 256) ranges that stand at `data`, deallocating them.
pub fn deallocate(nsid: u32, ranges: u32, data: Data) -> Command {
    Command {
        cdw10: DsmCdw10::new().with_nr_z((ranges.wrapping_sub(1)) as u8).into_bits().into(),
        cdw11: DsmCdw11::new().with_ad(true).into_bits().into(),
        ..command(NvmOpcode::DATASET_MANAGEMENT, nsid, data)
    }
}
