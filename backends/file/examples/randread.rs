//! 4 KiB random reads of a file at queue depth 32: IOPS and CPU time of this thread per I/O. (All 32 are polled at
//! each wake-up, which is part of it.) `cargo run --release -p block-file --example randread -- PATH SECONDS`, PATH is made with 256 MiB.

use std::time::{Duration, Instant};

use block::testing::{Buffer, Rng, join_all, write};
use block::{Device, Op, Reactor};
use block_file::{Direct, FileDevice, FileOptions};

const SIZE: u64 = 256 << 20;

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("a path");
    let seconds = args.next().map_or(3, |text| text.parse().expect("seconds"));
    for direct in [Direct::Auto, Direct::Off] {
        let options = FileOptions::new(&path).create(SIZE).block_size(4096).direct(direct);
        let device = FileDevice::open(&options).expect("the image");
        let reactor = Reactor::new(64).expect("a reactor");
        let channel = device.channel(&reactor).expect("a channel");
        reactor.block_on(async {
            let piece = vec![1; 1 << 20];
            for n in 0..SIZE >> 20 {
                write(&*channel, 4096, n * 256, &piece).await.expect("write");
            }
        });
        let cpu = || {
            let usage = std::fs::read_to_string("/proc/self/schedstat").expect("schedstat");
            Duration::from_nanos(usage.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
        };
        let (begin, cpu_begin) = (Instant::now(), cpu());
        let works = (0..32).map(|seed| {
            let channel = &*channel;
            async move {
                let mut rng = Rng(seed);
                let buffer = Buffer::new(4096);
                let mut count = 0u64;
                while begin.elapsed() < Duration::from_secs(seconds) {
                    let io = buffer.io(Op::Read, rng.below(SIZE / 4096), 1);
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
            if device.is_direct() { "O_DIRECT" } else { "buffered" },
            count as f64 / begin.elapsed().as_secs_f64()
        );
    }
}
