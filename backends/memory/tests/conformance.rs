//! The devices in memory pass the suite.

use block::conformance::Suite;
use block::conformance_tests;
use block_memory::{MemoryDevice, NullDevice};

const SIZE: u64 = 8 << 20;

conformance_tests!(memory_512, Suite::new(|| MemoryDevice::new(SIZE).unwrap()));
conformance_tests!(memory_4096, Suite::new(|| MemoryDevice::with_block_size(SIZE, 4096).unwrap()));
// Long enough for zeroes that are made in several steps.
conformance_tests!(memory_odd, Suite::new(|| MemoryDevice::new((40 << 20) + 512).unwrap()), geometry write_zeroes);
conformance_tests!(null, Suite::new(|| NullDevice::new(1 << 40).unwrap()).without_contents(),
    geometry bad_requests read_only flush_and_fua discard write_zeroes several_threads shared_blocks dropped_futures
    nothing_leaks);
