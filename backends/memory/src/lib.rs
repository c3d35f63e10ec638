//! Block devices in memory: [`MemoryDevice`], which keeps what is written for as long as the process lives, and
//! [`NullDevice`], which keeps nothing.
//!
//! What they leave out: persistence (see the `file` and `pmem` backends) and NUMA placement.

mod map;
mod memory;
mod null;

pub use memory::{HugePages, MemoryDevice};
pub use null::NullDevice;

use block::{Error, ErrorKind};

/// Checks a block size, and that a size in bytes is a whole number of blocks, at least one. Returns their number.
fn blocks(size: u64, block_size: u32) -> Result<u64, Error> {
    let invalid = |text: String| Err(Error::new(ErrorKind::InvalidInput, text));
    if !(512..=65536).contains(&block_size) || !block_size.is_power_of_two() {
        return invalid(format!("block size {block_size}: use a power of two from 512 to 65536"));
    }
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        return invalid(format!(
            "size {size}: use a multiple of the block size {block_size}, at least one block"
        ));
    }
    if i64::try_from(size).is_err() {
        return invalid(format!("size {size}: use less than 8 EiB"));
    }
    Ok(size / u64::from(block_size))
}
