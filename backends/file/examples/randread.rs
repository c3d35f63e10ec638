//! Random reads of a file at queue depth 32: IOPS and CPU time of this thread per I/O, with O_DIRECT, with O_DIRECT and
//! registered buffers, and through the page cache. (All 32 are polled at each wake-up, which is part of it.)
//! `cargo run --release -p block-file --example randread -- PATH SECONDS BYTES`, PATH is made with 256 MiB; 4096 bytes
//! at once if nothing is said, up to 65536.

use std::ptr::NonNull;
use std::rc::Rc;
use std::time::{Duration, Instant};

use block::testing::{Rng, join_all, write};
use block::{AlignedBuf, Device, Io, Op, Reactor, Segment};
use block_file::{Direct, FileDevice, FileOptions};

const SIZE: u64 = 256 << 20;

/// Memory that plays the guest: a place for each of those under way.
const PLACE: usize = 64 << 10;

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a path");
    let seconds = args.next().map_or(3, |text| text.parse().expect("seconds"));
    let bytes: usize = args.next().map_or(4096, |text| text.parse().expect("bytes"));
    assert!(bytes.is_multiple_of(4096) && (4096..=PLACE).contains(&bytes), "multiples of 4096 up to {PLACE}");
    for (direct, pieces) in [(Direct::Auto, 0), (Direct::Auto, 8), (Direct::Off, 0)] {
        let options = FileOptions::new(&path).create(SIZE).block_size(4096).direct(direct);
        let device = FileDevice::open(&options).expect("the image");
        let reactor = Reactor::with_fixed_buffers(64, pieces).expect("a reactor");
        let channel = device.channel(&reactor).expect("a channel");
        reactor.block_on(async {
            let piece = vec![1; 1 << 20];
            for n in 0..SIZE >> 20 {
                write(&*channel, 4096, n * 256, &piece).await.expect("write");
            }
        });
        let memory = Rc::new(AlignedBuf::new(32 * PLACE, 4096).expect("memory"));
        let start = NonNull::new(memory.as_ptr()).expect("memory");
        // SAFETY: the hold keeps the memory.
        let _region = unsafe { reactor.add_memory(start, memory.len(), memory.clone()) };
        let cpu = || {
            let usage = std::fs::read_to_string("/proc/self/schedstat").expect("schedstat");
            Duration::from_nanos(usage.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
        };
        let (begin, cpu_begin) = (Instant::now(), cpu());
        let works = (0..32).map(|seed| {
            let (channel, memory) = (&*channel, &memory);
            async move {
                let mut rng = Rng(seed);
                let blocks = bytes as u64 / 4096;
                let at = NonNull::new(memory.as_ptr().wrapping_add(seed as usize * PLACE)).expect("memory");
                let mut count = 0u64;
                while begin.elapsed() < Duration::from_secs(seconds) {
                    let lba = rng.below(SIZE / 4096 / blocks) * blocks;
                    // SAFETY: a place of its own in the memory, which the guard keeps.
                    let segments = vec![unsafe { Segment::new(at, bytes) }];
                    let io = Io::new(Op::Read, lba, blocks, segments, Some(memory.clone()), 0);
                    channel.submit(io).wait().await.result.expect("read");
                    count += 1;
                }
                count
            }
        });
        let count: u64 = reactor.block_on(join_all(works)).iter().sum();
        let us = (cpu() - cpu_begin).as_secs_f64() * 1e6 / count as f64;
        println!(
            "{}: {:.0} IOPS, {us:.2} us CPU per I/O",
            match (device.is_direct(), reactor.fixed_pieces()) {
                (true, 0) => "O_DIRECT".to_owned(),
                (true, pieces) => format!("O_DIRECT, {pieces} registered pieces"),
                _ => "buffered".to_owned(),
            },
            count as f64 / begin.elapsed().as_secs_f64()
        );
    }
}
