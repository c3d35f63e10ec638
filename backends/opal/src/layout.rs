//! [`Layout`]: where what belongs to the drive itself lies on the device below.
//!
//! | from | size | |
//! |---|---|---|
//! | 0 | 1 MiB | two slots of the state, 512 KiB each |
//! | 1 MiB | 128 MiB | the MBR table |
//! | 129 MiB | 15 MiB | the DataStore table |
//! | 144 MiB | the rest | the blocks of the drive |

/// Bytes of one slot of the state.
pub const SLOT_BYTES: u64 = 512 << 10;
/// Where the MBR table starts, in bytes.
pub const MBR_START: u64 = 1 << 20;
/// Bytes of the MBR table: the least that Opal asks for (Opal 2.02, 4.3.5.4).
pub const MBR_BYTES: u64 = 128 << 20;
/// Where the DataStore table starts, in bytes.
pub const DATA_STORE_START: u64 = MBR_START + MBR_BYTES;
/// Bytes of the DataStore table: at least 10 MiB (Opal 2.02, 4.3.8).
pub const DATA_STORE_BYTES: u64 = 15 << 20;
/// Where block 0 of the drive lies, in bytes.
pub const DATA_START: u64 = DATA_STORE_START + DATA_STORE_BYTES;

/// The same in blocks of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks of the drive.
    pub blocks: u64,
}

impl Layout {
    /// The layout on a device of `blocks` blocks, if it is large enough.
    pub fn on(block_size: u32, blocks: u64) -> Option<Self> {
        let own = DATA_START / u64::from(block_size);
        blocks.checked_sub(own).filter(|left| *left > 0).map(|blocks| Self { block_size, blocks })
    }

    /// The block below of the drive's block 0.
    pub fn data_start(&self) -> u64 {
        DATA_START / u64::from(self.block_size)
    }

    /// The block below of the MBR table's first one.
    pub fn mbr_start(&self) -> u64 {
        MBR_START / u64::from(self.block_size)
    }

    /// Blocks of the MBR table.
    pub fn mbr_blocks(&self) -> u64 {
        MBR_BYTES / u64::from(self.block_size)
    }
}
