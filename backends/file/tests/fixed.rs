//! I/O through registered buffers moves the right bytes, whatever its size, place and alignment.

use std::future::Future;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Waker};

use block::reactor::FIXED_PIECE;
use block::testing::{Rng, cannot_run, run};
use block::{AlignedBuf, Channel, Device, Flags, Io, Op, Reactor, Segment};
use block_file::{Direct, FileDevice, FileOptions};

const DISK: usize = 4 << 20;
const MEMORY: usize = 3 * FIXED_PIECE;
/// The build directory: a disk's file system.
const ON_DISK: &str = env!("CARGO_TARGET_TMPDIR");

struct Memory(Rc<AlignedBuf>);

impl Memory {
    /// For an `Io` whose guard keeps the memory, or for a look at it while there is none.
    fn segment(&self, at: usize, len: usize) -> Segment {
        assert!(at + len <= MEMORY);
        let ptr = NonNull::new(self.0.as_ptr().wrapping_add(at)).unwrap();
        // SAFETY: inside of the buffer, to whose bytes nobody has references.
        unsafe { Segment::new(ptr, len) }
    }

    fn io(&self, op: Op, block: usize, blocks: usize, segments: Vec<Segment>) -> Io {
        Io::new(op, block as u64, blocks as u64, segments, Some(self.0.clone()), 0)
    }
}

/// Random reads and writes beside a copy of the disk's contents.
fn random(direct: Direct, block: usize, seed: u64) {
    let dir = tempfile::tempdir_in(ON_DISK).unwrap();
    let options = FileOptions::new(dir.path().join("image")).create(DISK as u64).direct(direct);
    let device = FileDevice::open(&options.block_size(block as u32)).unwrap();
    let reactor = Reactor::with_fixed_buffers(16, 2).unwrap();
    let memory = Memory(Rc::new(AlignedBuf::new(MEMORY, 4096).unwrap()));
    let start = NonNull::new(memory.0.as_ptr()).unwrap();
    // SAFETY: the hold keeps the buffer.
    let mut region = Some(unsafe { reactor.add_memory(start, MEMORY, memory.0.clone()) });
    let channel: Box<dyn Channel> = device.channel(&reactor).unwrap();
    let mut rng = Rng(seed);
    let mut disk = vec![0; DISK];
    let mut most = 0;
    for round in 0..1500 {
        if round == 1200 {
            region = None;
        }
        let longest = if rng.below(8) == 0 { 512 } else { 16 };
        let blocks = 1 + rng.below(longest) as usize;
        let at = rng.below((DISK / block - blocks + 1) as u64) as usize;
        let len = blocks * block;
        // Mostly aligned; else as a guest may have it.
        let unit = [block, block, block, 4][rng.below(4) as usize];
        let place = rng.below(((MEMORY - len) / unit) as u64) as usize * unit;
        let segments = |cut: usize| match cut {
            0 => vec![memory.segment(place, len)],
            cut => vec![memory.segment(place, cut), memory.segment(place + cut, len - cut)],
        };
        let cut = if rng.below(6) == 0 { rng.below(blocks as u64) as usize * block } else { 0 };
        let range = at * block..at * block + len;
        if rng.below(2) == 0 {
            let bytes = rng.bytes(len);
            memory.segment(place, len).write(0, &bytes);
            let mut io = memory.io(Op::Write, at, blocks, segments(cut));
            if rng.below(10) == 0 {
                io.flags |= Flags::FUA;
            }
            reactor.block_on(run(&*channel, io)).unwrap();
            disk[range].copy_from_slice(&bytes);
        } else {
            memory.segment(place, len).write(0, &rng.bytes(len));
            reactor.block_on(run(&*channel, memory.io(Op::Read, at, blocks, segments(cut)))).unwrap();
            let mut bytes = vec![0; len];
            memory.segment(place, len).read(0, &mut bytes);
            assert!(bytes == disk[range], "seed {seed}, round {round}: {len} bytes to {place}");
        }
        most = most.max(reactor.fixed_pieces());
        assert!(region.is_some() || reactor.fixed_pieces() == 0);
    }
    if device.is_direct() && most == 0 {
        cannot_run("fixed buffers: the kernel or the limit of locked memory refuses them");
    }
    assert!(most <= 2, "{most} pieces");
    assert!(device.is_direct() || most == 0, "nothing is pinned for the page cache");
}

#[test]
fn direct_512() {
    random(Direct::Auto, 512, 1);
}

#[test]
fn direct_4096() {
    random(Direct::Auto, 4096, 2);
}

#[test]
fn buffered() {
    random(Direct::Off, 512, 3);
}

/// An I/O whose region goes while it is queued is done all the same.
#[test]
fn a_region_that_goes_does_not_fail_its_io() {
    let dir = tempfile::tempdir_in(ON_DISK).unwrap();
    let options = FileOptions::new(dir.path().join("image")).create(DISK as u64);
    let device = FileDevice::open(&options).unwrap();
    let reactor = Reactor::with_fixed_buffers(16, 2).unwrap();
    let memory = Memory(Rc::new(AlignedBuf::new(MEMORY, 4096).unwrap()));
    let start = NonNull::new(memory.0.as_ptr()).unwrap();
    let channel = device.channel(&reactor).unwrap();
    for round in 0..3u8 {
        // SAFETY: the hold keeps the buffer.
        let region = unsafe { reactor.add_memory(start, MEMORY, memory.0.clone()) };
        memory.segment(0, 4096).write(0, &[round + 1; 4096]);
        reactor.block_on(async {
            for _ in 0..64 {
                let io = memory.io(Op::Write, 8, 8, vec![memory.segment(0, 4096)]);
                run(&*channel, io).await.unwrap();
            }
        });
        memory.segment(0, 4096).write(0, &[0; 4096]);
        let io = memory.io(Op::Read, 8, 8, vec![memory.segment(0, 4096)]);
        let mut read = Box::pin(channel.submit(io).wait());
        // Into the queue, not into the kernel.
        let mut cx = Context::from_waker(Waker::noop());
        assert!(read.as_mut().poll(&mut cx).is_pending());
        drop(region);
        reactor.block_on(read).result.unwrap();
        let mut bytes = [0; 4096];
        memory.segment(0, 4096).read(0, &mut bytes);
        assert!(bytes == [round + 1; 4096]);
    }
}
