//! What holds when the configuration says nothing.

/// Bytes in a block.
pub const BLOCK_SIZE: u32 = 512;
/// Model number of a subsystem.
pub const MODEL: &str = "Quarry NVMe Disk";
/// I/O queue pairs of a controller.
pub const IO_QUEUES: u16 = 128;
/// The same where the guest puts its doorbells into a buffer of its own: a page holds no more.
pub const IO_QUEUES_WITH_SHADOW: u16 = 31;
/// Entries of a controller's longest queue.
pub const QUEUE_ENTRIES: u32 = 1024;
/// Bytes of a controller's largest transfer.
pub const MAX_TRANSFER: u32 = 1 << 20;
