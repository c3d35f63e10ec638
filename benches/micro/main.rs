//! Microbenchmarks of the parts of the data path: what one command costs in each of them, in caches that are warm.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use block::Reactor;
use block_memory::NullDevice;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nvme_driver::{Arena, DmaBuffer, PAGE, Prps, Sgl, io};
use nvme_emu::internals::{Completions, Decoder, Resolver};
use nvme_spec::Command;
use vfio_user_server::dma::{DmaSpace, MapFlags};
use vfio_user_server::{Access, Hint};

/// Where guest memory begins.
const IOVA: u64 = 0x1_0000_0000;
/// Bytes of guest memory.
const MEMORY: usize = 16 << 20;

/// Guest memory in a table of `regions` regions of equal size.
fn guest(regions: usize) -> (Arc<Arena>, DmaSpace) {
    let arena = Arena::new(MEMORY, IOVA).expect("memory");
    let space = DmaSpace::new();
    let size = MEMORY / regions;
    for region in 0..regions {
        let fd: OwnedFd = arena.fd().try_clone_to_owned().expect("a descriptor");
        let (iova, offset) = (IOVA + (region * size) as u64, (region * size) as u64);
        space
            .map(iova, size as u64, Some(fd), offset, MapFlags::READ | MapFlags::WRITE)
            .expect("it can be mapped");
    }
    (arena, space)
}

/// A read of `bytes` to a buffer, by PRPs or by one SGL descriptor.
fn read(buffer: &DmaBuffer, bytes: usize, sgl: bool) -> (Command, Option<Prps>) {
    let blocks = (bytes / 512) as u32;
    if sgl {
        return (io::read(1, 8, blocks, Sgl::block(buffer.iova(), bytes)), None);
    }
    let prps = Prps::new(buffer.arena(), buffer.iova(), bytes).expect("memory for lists");
    (io::read(1, 8, blocks, prps.data()), Some(prps))
}

fn decode(c: &mut Criterion) {
    let reactor = Reactor::new(8).expect("a reactor");
    let device = NullDevice::new(1 << 30).expect("a device");
    let decoder = Decoder::new(Arc::new(device), &reactor).expect("a channel");
    let (arena, _) = guest(1);
    let buffer = arena.alloc(PAGE).expect("memory");
    let (command, _prps) = read(&buffer, PAGE, false);
    c.bench_function("SQE decode", |b| b.iter(|| decoder.decode(black_box(&command)).expect("a read")));
}

fn resolve(c: &mut Criterion) {
    let (arena, space) = guest(1);
    let table = space.table();
    let mut group = c.benchmark_group("data pointer");
    for (bytes, name) in [(PAGE, "4 KiB"), (128 << 10, "128 KiB"), (1 << 20, "1 MiB")] {
        let buffer = arena.alloc(bytes).expect("memory");
        for sgl in [false, true] {
            let (command, _prps) = read(&buffer, bytes, sgl);
            let mut resolver = Resolver::default();
            group.bench_function(BenchmarkId::new(if sgl { "SGL" } else { "PRP" }, name), |b| {
                b.iter(|| resolver.resolve(&table, black_box(&command), bytes).expect("mapped memory"));
            });
        }
    }
}

fn complete(c: &mut Criterion) {
    let (arena, space) = guest(1);
    let table = space.table();
    let memory = arena.alloc(256 * 16).expect("memory");
    let mut group = c.benchmark_group("completion run");
    for count in [1, 32] {
        let mut completions = Completions::new(&table, memory.iova(), 256).expect("a queue");
        group.bench_function(count.to_string(), |b| b.iter(|| completions.run(&table, black_box(count))));
    }
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("DMA lookup");
    for regions in [1, 16, 1024] {
        let (_arena, space) = guest(regions);
        let table = space.table();
        let mut hint = Hint::default();
        group.bench_function(format!("hit, {regions} regions"), |b| {
            b.iter(|| {
                table.resolve(black_box(IOVA + 64), 512, Access::Write, &mut hint, |ptr, len| {
                    black_box((ptr, len));
                })
            });
        });
        if regions == 1 {
            continue;
        }
        let (mut hint, mut at) = (Hint::default(), 0);
        let size = (MEMORY / regions) as u64;
        group.bench_function(format!("another each time, {regions} regions"), |b| {
            b.iter(|| {
                // 7 is prime to the numbers of regions: none is hit twice in turn.
                at = (at + 7) % regions as u64;
                table.resolve(black_box(IOVA + at * size), 512, Access::Write, &mut hint, |ptr, len| {
                    black_box((ptr, len));
                })
            });
        });
    }
}

criterion_group!(parts, decode, resolve, complete, lookup);
criterion_main!(parts);
