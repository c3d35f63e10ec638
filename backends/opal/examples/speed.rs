//! How fast the layer is: its data path against `openssl speed`, and against the same devices without it.
//!
//! `cargo run --release -p block-opal --example speed`: prints a small report. One core, one I/O at a time, data in cache.

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{AlignedBuf, Channel, Device, Io, Op, Reactor, Segment, Submission};
use block_memory::{MemoryDevice, NullDevice};
use block_opal::crypto::xts::{XtsCipher, XtsKey};
use block_opal::layer::{self, Shared};
use block_opal::secret::Secret;
use block_opal::{Extent, Layout, RangeMap};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, memory: Memory) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, memory) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How long one figure is measured, how many times; the best counts.
const ROUND: Duration = Duration::from_millis(100);
const ROUNDS: usize = 7;
/// Blocks that I/Os go to, in turn: data stays in the second-level cache.
const BLOCKS: u64 = 32;

fn main() {
    for size in [4096, 512] {
        report(size);
    }
}

fn report(size: u32) {
    let openssl = openssl(size);
    println!("{size} bytes");
    match openssl {
        Some(speed) => println!("  openssl speed            {speed:6.2} GB/s"),
        None => println!("  openssl speed            does not run here"),
    }
    let cipher = [true, false].map(|encrypts| cipher(size, encrypts));
    let bytes = f64::from(size);
    let ratio = |nanoseconds: f64| match openssl {
        Some(speed) => format!("{:5.2} times openssl", bytes / nanoseconds / speed),
        None => String::new(),
    };
    for (what, ns) in [("encrypts", cipher[0]), ("decrypts", cipher[1])] {
        println!("  cipher alone {what}    {:6.2} GB/s {ns:7.1} ns          {}", bytes / ns, ratio(ns));
    }
    for name in ["null", "memory"] {
        let device: Arc<dyn Device> = if name == "null" {
            Arc::new(NullDevice::with_block_size(1 << 30, size).expect("a device"))
        } else {
            Arc::new(MemoryDevice::with_block_size(256 << 20, size).expect("a device"))
        };
        for sparse in [true, false] {
            for (op, cipher) in [(Op::Write, cipher[0]), (Op::Read, cipher[1])] {
                let (bare, _) = path(&device, size, op, None);
                let (ns, allocations) = path(&device, size, op, Some(sparse));
                println!(
                    "  {name:6} {op:5?} sparse {sparse:5} {:6.2} GB/s {ns:7.1} ns, bare {bare:6.1} ns, besides both {:6.1} ns, \
                     {allocations} allocations per I/O {}",
                    bytes / ns,
                    ns - cipher - bare,
                    ratio(ns),
                );
            }
        }
    }
}

/// GB/s of OpenSSL's own benchmark.
fn openssl(size: u32) -> Option<f64> {
    let size = size.to_string();
    let args = ["speed", "-mr", "-evp", "aes-256-xts", "-bytes", &size, "-seconds", "1"];
    let output = std::process::Command::new("openssl").args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // +F:number:name:bytes per second
    let line = text.lines().find(|line| line.starts_with("+F:"))?;
    Some(line.rsplit(':').next()?.trim().parse::<f64>().ok()? / 1e9)
}

/// The best of several rounds: nanoseconds of one call.
fn best(mut call: impl FnMut(u64)) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (start, mut n) = (Instant::now(), 0);
        while start.elapsed() < ROUND {
            (0..64).for_each(|k| call(n + k));
            n += 64;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / n as f64);
    }
    best
}

fn cipher(size: u32, encrypts: bool) -> f64 {
    let cipher = XtsCipher::new(&key()).expect("a cipher");
    let len = size as usize;
    let memory = AlignedBuf::new(len * BLOCKS as usize, 4096).expect("memory");
    let out = AlignedBuf::new(len, 4096).expect("memory");
    best(|n| {
        let at = memory.as_ptr().wrapping_add((n % BLOCKS) as usize * len);
        // SAFETY: inside of the buffers, of which no reference exists.
        unsafe {
            if encrypts {
                cipher.encrypt(n, at, out.as_ptr(), len, 1).expect("encrypted");
            } else {
                cipher.decrypt(n, at, at, len, 1).expect("decrypted");
            }
        }
    })
}

fn key() -> XtsKey {
    XtsKey::new(Secret::new(|bytes| (0..64).for_each(|n| bytes[n] = n as u8))).expect("a key")
}

/// Nanoseconds and allocations of one I/O; `sparse`: of the layer, if there is one.
fn path(device: &Arc<dyn Device>, size: u32, op: Op, sparse: Option<bool>) -> (f64, f64) {
    let reactor = Reactor::new(8).expect("a reactor");
    let mut channel = device.channel(&reactor).expect("a channel");
    if let Some(sparse) = sparse {
        let info = device.info();
        let layout = Layout::on(info.block_size, info.blocks).expect("room");
        let shared = Shared::new(&info, layout, sparse);
        let key = Some(Arc::new(key()));
        let open = Extent { end: u64::MAX, read_locked: false, write_locked: false, key };
        shared.publish(RangeMap { extents: vec![open], shadow: None });
        channel = layer::open_channel(channel, &shared, &reactor).expect("the layer");
    }
    let memory = Rc::new(AlignedBuf::new(size as usize * BLOCKS as usize, 4096).expect("memory"));
    for at in (0..size as usize * BLOCKS as usize).step_by(8) {
        // SAFETY: inside of the buffer, of which no reference exists. (Not zeroes, which a sparse drive does not decrypt.)
        unsafe { memory.as_ptr().add(at).cast::<u64>().write(at as u64 + 1) };
    }
    let mut storage = Vec::new();
    let mut one = |op: Op, n: u64| {
        storage = run(&*channel, op, n % BLOCKS, size, &memory, std::mem::take(&mut storage))
    };
    (0..BLOCKS).for_each(|n| one(Op::Write, n));
    one(op, 0);
    let before = ALLOCATIONS.get();
    (0..BLOCKS).for_each(|n| one(op, n));
    let allocations = (ALLOCATIONS.get() - before) as f64 / BLOCKS as f64;
    (best(|n| one(op, n)), allocations)
}

/// One I/O of one block.
#[inline]
fn run(
    channel: &dyn Channel,
    op: Op,
    n: u64,
    size: u32,
    memory: &Rc<AlignedBuf>,
    mut storage: Vec<Segment>,
) -> Vec<Segment> {
    let at = memory.as_ptr().wrapping_add(n as usize * size as usize);
    // SAFETY: inside of the buffer, of which no reference exists; the guard keeps it (or this borrow, for channels that do not
    // keep segments).
    segments(&mut storage, unsafe { Segment::new(NonNull::new(at).expect("not null"), size as usize) });
    let guard = channel.keeps_segments().then(|| memory.clone() as block::io::Guard);
    match channel.submit(Io::new(op, n, 1, storage, guard, 0)) {
        Submission::Done(completed) => {
            let (result, storage) = completed.into_parts();
            result.expect("an I/O");
            storage
        }
        Submission::Pending(_) => panic!("a device in memory completes on the spot"),
    }
}

#[inline]
fn segments(storage: &mut Vec<Segment>, one: Segment) {
    storage.push(one);
}
