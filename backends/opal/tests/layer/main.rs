//! The encrypting layer: as a device like any other, and as what it is.

mod behaviour;
mod drive;
mod flight;
mod model;

use std::sync::Arc;
use std::time::Duration;

use block::conformance::Suite;
use block::conformance_tests;
use block::fault::{Action, FaultDevice, Ops, Rule};
use block::testing::CasDevice;
use block_file::{FileDevice, FileOptions};
use block_memory::{MemoryDevice, NullDevice};

use block_opal::RangeMap;
use block_opal::crypto::xts::XtsKey;
use drive::Drive;

/// What the drive takes for itself.
const OWN: u64 = 144 << 20;
const SIZE: u64 = OWN + (8 << 20);

fn memory(block_size: u32) -> Arc<MemoryDevice> {
    Arc::new(MemoryDevice::with_block_size(SIZE, block_size).unwrap())
}

conformance_tests!(sparse_512, Suite::new(|| Drive::open(memory(512), true)));
conformance_tests!(sparse_4096, Suite::new(|| Drive::open(memory(4096), true)));
conformance_tests!(full_512, Suite::new(|| Drive::open(memory(512), false)));
conformance_tests!(full_4096, Suite::new(|| Drive::open(memory(4096), false)));
conformance_tests!(full_65536, Suite::new(|| Drive::open(memory(65536), false)), random_operations write_zeroes);
conformance_tests!(null, Suite::new(|| {
    Drive::open(Arc::new(NullDevice::new(1 << 30).unwrap()), true)
}).without_contents(),
    geometry bad_requests read_only flush_and_fua discard write_zeroes several_threads shared_blocks dropped_futures
    nothing_leaks);

// Everything pending, in any order, with a pool in which little has room.
conformance_tests!(delayed, Suite::new(|| {
    let inner = FaultDevice::new(memory(512));
    inner.handle().add(Rule::new(Action::Delay(Duration::from_micros(20))).probability(0.3, 7));
    let longest = Duration::from_millis(1);
    inner.handle().add(Rule::new(Action::Reorder { window: 4, longest }).on(Ops::READ | Ops::WRITE));
    Drive { pool_bytes: 32 << 10, ..Drive::open(Arc::new(inner), true) }
}), geometry random_operations write_zeroes several_threads shared_blocks dropped_futures guards_are_held);

// It compares and writes in one step; 8 blocks at once. Its memory is real, so it stays small.
conformance_tests!(compares, Suite::new(|| {
    Drive::open(Arc::new(CasDevice::new(512, (OWN + (1 << 20)) / 512)), false)
}), geometry bad_requests compare_and_write shared_blocks);

/// A file, and the directory that goes with it.
fn file(sparse: bool) -> Drive {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = FileOptions::new(dir.path().join("image")).create(SIZE);
    let device = FileDevice::open(&options).unwrap();
    drop(dir); // the device has it open
    Drive::open(Arc::new(device), sparse)
}

conformance_tests!(file_sparse, Suite::new(|| file(true)));
conformance_tests!(file_full, Suite::new(|| file(false)));

/// Everything open, with one key.
fn all(key: Arc<XtsKey>) -> RangeMap {
    RangeMap { extents: vec![drive::open(u64::MAX, key)], shadow: None }
}
