//! How fast the layer is: its data path against `openssl speed`, and against the same devices without it.
//!
//! `cargo run --release -p block-opal --example speed`: prints a small report. One core, one I/O at a time, data in cache.

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::io::Guard;
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

/// How long one burst takes, and how many there are: what is compared takes turns, and of each the best burst counts, so that
/// other programs on the machine disturb little.
const BURST: Duration = Duration::from_millis(1);
const BURSTS: usize = 150;
/// Blocks that I/Os go to, in turn: data stays in the second-level cache.
const BLOCKS: u64 = 32;
/// Blocks of a long I/O.
const LONG: u64 = 16;

fn main() {
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("vaes")) {
        println!(
            "this CPU has no AVX-512 with VAES: aws-lc's XTS is the code that OpenSSL has, too (AES-NI)"
        );
    }
    for size in [4096, 512] {
        report(size);
    }
}

fn report(size: u32) {
    let openssl = (0..3).filter_map(|_| openssl(size)).reduce(f64::max);
    println!("blocks of {size} bytes");
    match openssl {
        Some(speed) => println!("  openssl speed {speed:.2} GB/s, {:.1} ns", f64::from(size) / speed),
        None => println!("  openssl speed does not run here"),
    }
    println!(
        "  {:6} {:5} {:6} {:>6} | {:>7} {:>7} {:>7} {:>7} | {:>6} {:>8} {:>11} {:>12}",
        "device",
        "op",
        "sparse",
        "blocks",
        "layer",
        "bare",
        "cipher",
        "besides",
        "GB/s",
        "/openssl",
        "cipher/o.",
        "allocations"
    );
    for name in ["null", "memory"] {
        let device: Arc<dyn Device> = if name == "null" {
            Arc::new(NullDevice::with_block_size(1 << 30, size).expect("a device"))
        } else {
            Arc::new(MemoryDevice::with_block_size(256 << 20, size).expect("a device"))
        };
        for (sparse, op, blocks) in [
            (true, Op::Write, 1),
            (true, Op::Read, 1),
            (false, Op::Write, 1),
            (false, Op::Read, 1),
            (true, Op::Write, LONG),
            (true, Op::Read, LONG),
        ] {
            let mut layer = Path::new(&device, size, op, blocks, Some(sparse));
            let mut bare = Path::new(&device, size, op, blocks, None);
            let mut cipher = cipher(size, op == Op::Write, blocks);
            let allocations = layer.allocations();
            let [layer, bare, cipher] =
                best([&mut |n| layer.one(n), &mut |n| bare.one(n), &mut |n| cipher(n)]);
            let bytes = f64::from(size) * blocks as f64;
            let ratio = |ns: f64| openssl.map_or("-".into(), |speed| format!("{:.2}", bytes / ns / speed));
            println!(
                "  {name:6} {:5} {sparse:6} {blocks:6} | {layer:7.1} {bare:7.1} {cipher:7.1} {:7.1} | {:6.2} {:>8} {:>11} {allocations:12}",
                format!("{op:?}"),
                layer - bare - cipher,
                bytes / layer,
                ratio(layer),
                ratio(cipher),
            );
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

/// Nanoseconds of one call of each, in its best burst.
fn best<const N: usize>(mut calls: [&mut dyn FnMut(u64); N]) -> [f64; N] {
    let mut best = [f64::MAX; N];
    for _ in 0..BURSTS {
        for (call, best) in calls.iter_mut().zip(&mut best) {
            let (start, mut n) = (Instant::now(), 0);
            while start.elapsed() < BURST {
                (0..64).for_each(|k| call(n + k));
                n += 64;
            }
            *best = best.min(start.elapsed().as_nanos() as f64 / n as f64);
        }
    }
    best
}

/// The cipher alone: a write from one buffer to another, a read in place.
fn cipher(size: u32, encrypts: bool, blocks: u64) -> impl FnMut(u64) {
    let cipher = XtsCipher::new(&key()).expect("a cipher");
    let (len, blocks) = (size as usize, blocks as usize);
    let memory = AlignedBuf::new(len * BLOCKS as usize, 4096).expect("memory");
    let out = AlignedBuf::new(len * blocks, 4096).expect("memory");
    move |n| {
        let at = memory.as_ptr().wrapping_add((n * blocks as u64 % BLOCKS) as usize * len);
        // SAFETY: inside of the buffers, of which no reference exists.
        unsafe {
            if encrypts {
                cipher.encrypt(n, at, out.as_ptr(), len, blocks).expect("encrypted");
            } else {
                cipher.decrypt(n, at, at, len, blocks).expect("decrypted");
            }
        }
    }
}

fn key() -> XtsKey {
    XtsKey::new(Secret::new(|bytes| (0..64).for_each(|n| bytes[n] = n as u8))).expect("a key")
}

/// I/Os of one kind on one channel.
struct Path {
    channel: Box<dyn Channel>,
    _reactor: Reactor,
    op: Op,
    blocks: u64,
    size: usize,
    memory: Rc<AlignedBuf>,
    storage: Vec<Segment>,
}

impl Path {
    /// On `device`, or with the layer over it.
    fn new(device: &Arc<dyn Device>, size: u32, op: Op, blocks: u64, sparse: Option<bool>) -> Self {
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
        let size = size as usize;
        let memory = Rc::new(AlignedBuf::new(size * BLOCKS as usize, 4096).expect("memory"));
        for at in (0..size * BLOCKS as usize).step_by(8) {
            // SAFETY: inside of the buffer, of which no reference exists. (Not zeroes, which a sparse drive does not decrypt.)
            unsafe { memory.as_ptr().add(at).cast::<u64>().write(at as u64 + 1) };
        }
        let mut path =
            Self { channel, _reactor: reactor, op: Op::Write, blocks, size, memory, storage: Vec::new() };
        (0..BLOCKS / blocks).for_each(|n| path.one(n));
        path.op = op;
        path
    }

    /// Allocations of one I/O.
    fn allocations(&mut self) -> f64 {
        const IOS: u64 = 1000;
        self.one(0);
        let before = ALLOCATIONS.get();
        (0..IOS).for_each(|n| self.one(n));
        (ALLOCATIONS.get() - before) as f64 / IOS as f64
    }

    fn one(&mut self, n: u64) {
        let lba = n * self.blocks % BLOCKS;
        let at = self.memory.as_ptr().wrapping_add(lba as usize * self.size);
        let len = self.size * self.blocks as usize;
        let mut segments = std::mem::take(&mut self.storage);
        // SAFETY: inside of the buffer, of which no reference exists; the guard keeps it (or this path, for channels that do not
        // keep segments).
        segments.push(unsafe { Segment::new(NonNull::new(at).expect("not null"), len) });
        let guard = self.channel.keeps_segments().then(|| self.memory.clone() as Guard);
        match self.channel.submit(Io::new(self.op, lba, self.blocks, segments, guard, 0)) {
            Submission::Done(completed) => {
                let (result, storage) = completed.into_parts();
                result.expect("an I/O");
                self.storage = storage;
            }
            Submission::Pending(_) => panic!("a device in memory completes on the spot"),
        }
    }
}
