//! Reads and writes of the encrypting layer allocate nothing once its channel is warm, over devices that complete on the spot
//! and over others.

#[path = "layer/drive.rs"]
mod drive;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use block::testing::Buffer;
use block::{Device, Io, Op, Reactor};
use block_file::{Direct, FileDevice, FileOptions};
use block_memory::MemoryDevice;

use drive::Drive;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SIZE: u64 = (144 + 8) << 20;

fn allocates_nothing(inner: Arc<dyn Device>, sparse: bool) {
    let drive = Drive::open(inner, sparse);
    let reactor = Reactor::new(8).unwrap();
    let channel = drive.channel(&reactor).unwrap();
    let buffer = Buffer::new(8192);
    let ios = || -> Vec<Io> {
        let ops = [Op::Write, Op::Read].into_iter().cycle();
        // Whole, and with blocks that lie in several segments.
        let cuts: [&[usize]; 3] = [&[], &[512, 1024, 4096], &[100, 1000]];
        ops.zip(0..300u64).map(|(op, n)| buffer.io_cut(op, n % 40, 16, cuts[n as usize / 2 % 3])).collect()
    };
    // Several at once, too.
    let run = async |ios: Vec<Io>, others: Vec<Io>| {
        for (io, other) in ios.into_iter().zip(others) {
            let (first, second) = (channel.submit(io), channel.submit(other));
            first.wait().await.result.unwrap();
            second.wait().await.result.unwrap();
        }
    };
    reactor.block_on(async {
        run(ios(), ios()).await;
        let (ios, others) = (ios(), ios());
        let before = ALLOCATIONS.get();
        run(ios, others).await;
        assert_eq!(ALLOCATIONS.get() - before, 0);
    });
}

#[test]
fn on_the_spot() {
    for sparse in [true, false] {
        allocates_nothing(Arc::new(MemoryDevice::new(SIZE).unwrap()), sparse);
    }
}

#[test]
fn pending() {
    for sparse in [true, false] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = FileOptions::new(dir.path().join("image")).create(SIZE).direct(Direct::Off);
        allocates_nothing(Arc::new(FileDevice::open(&options).unwrap()), sparse);
    }
}
