//! A read or write of an aligned buffer allocates nothing once its channel is warm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;

use block::testing::Buffer;
use block::{Device, Io, Op, Reactor};
use block_file::{Direct, FileDevice, FileOptions};

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

#[test]
fn no_allocation_per_io() {
    for (direct, fixed_pieces) in [(Direct::Auto, 0), (Direct::Auto, 1), (Direct::Off, 0)] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = FileOptions::new(dir.path().join("image")).create(1 << 20).direct(direct);
        let device = FileDevice::open(&options).unwrap();
        let reactor = Reactor::with_fixed_buffers(8, fixed_pieces).unwrap();
        let channel = device.channel(&reactor).unwrap();
        let buffer = Buffer::new(8192);
        let whole = NonNull::new(buffer.io(Op::Read, 0, 16).segments()[0].as_ptr()).unwrap();
        // SAFETY: the hold keeps the buffer.
        let _region = unsafe { reactor.add_memory(whole, 8192, buffer.clone()) };
        let ios = || -> Vec<Io> {
            let ops = [Op::Write, Op::Read].into_iter().cycle();
            let cuts: [&[usize]; 2] = [&[], &[512, 1024, 4096]];
            ops.zip(0..200u64).map(|(op, n)| buffer.io_cut(op, n, 16, cuts[n as usize / 2 % 2])).collect()
        };
        let run = async |ios: Vec<Io>| {
            for io in ios {
                channel.submit(io).wait().await.result.unwrap();
            }
        };
        reactor.block_on(async {
            run(ios()).await;
            let ios = ios();
            let before = ALLOCATIONS.get();
            run(ios).await;
            assert_eq!(ALLOCATIONS.get() - before, 0, "{direct:?}, {fixed_pieces} registered pieces");
        });
    }
}
