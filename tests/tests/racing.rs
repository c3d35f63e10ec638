//! A guest whose other processor rewrites everything while the server looks at it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nvme_driver::{Controller, DmaBuffer, Options, PAGE, Prps, Sgl, io};
use nvme_spec::registers::CC;
use nvme_spec::sgl::SglDescriptor;
use quarry_tests::data::{buffer, check_works};
use quarry_tests::{Server, io_queues};

/// How long the attack lasts at least, and how often the neighbour does its work meanwhile.
const RUN: Duration = Duration::from_secs(3);
const ROUNDS: u64 = 20;

const CONFIG: &str = r#"
    [devices.one]
    type = "memory"
    size = "64M"
    [devices.two]
    type = "memory"
    size = "64M"
    [controllers.bad]
    socket = "bad.sock"
    namespaces = [{ device = "one" }]
    [controllers.good]
    socket = "good.sock"
    namespaces = [{ device = "two" }]
"#;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Rewrites `words` until told to stop.
fn scribble(words: &[AtomicU64], base: u64, seed: u64, stop: &AtomicBool) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            let value = match random.below(6) {
                0 => random.next(),
                1 => base + (random.next() & 0x3F_FFFF),
                2 => base + (random.next() & 0x3F_F000),
                3 => !0 - (random.next() & 0xFFFF),
                4 => random.next() & 0xFF,
                _ => 0x4000_0001_0001,
            };
            words[random.below(words.len())].store(value, Ordering::Relaxed);
        }
        // A little room for the server on two processors.
        std::thread::yield_now();
    }
}

/// Runs `attack` on one controller while another one of the same process does its work.
fn race(attack: impl Fn(&Controller, &AtomicBool) + Sync) {
    let server = Server::config(CONFIG, &["bad.sock", "good.sock"]);
    let stop = AtomicBool::new(false);
    let good = server.controller_with("good.sock", Options::default());
    let mut good_queues = io_queues(&good);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let bad = server.controller_with("bad.sock", Options::default());
            attack(&bad, &stop);
            drop(bad);
        });
        let start = Instant::now();
        let mut seed = 0;
        // As long as it takes, on a machine that does much else too.
        while (start.elapsed() < RUN || seed < ROUNDS) && !attacker.is_finished() {
            seed += 1;
            check_works(&good, &mut good_queues, seed % 1000 * 8, seed);
        }
        stop.store(true, Ordering::Relaxed);
        attacker.join().unwrap();
    });
    let bad = server.controller_with("bad.sock", Options::default());
    check_works(&bad, &mut io_queues(&bad), 0, 1);
    server.stop();
}

/// Rings `tail` after `tail` whatever happens to the commands, and takes every completion.
fn keep_ringing(bad: &Controller, queues: &mut nvme_driver::QueuePair, stop: &AtomicBool) {
    let entries = queues.sq.entries();
    let mut tail = queues.sq.tail();
    while !stop.load(Ordering::Relaxed) {
        tail = (tail + 1) % entries;
        queues.sq.doorbell().ring(tail).unwrap();
        while queues.cq.poll().is_some() {}
        queues.cq.ring().unwrap();
        std::hint::spin_loop();
        if bad.status().is_ok_and(|csts| csts.cfs()) {
            break;
        }
    }
}

#[test]
fn commands_are_rewritten() {
    race(|bad, stop| {
        let mut queues = io_queues(bad);
        let whole = bad.arena().whole();
        let at = (queues.sq.memory().iova() - whole.iova()) as usize;
        let slots = whole.u64s(at, queues.sq.memory().len() / 8);
        std::thread::scope(|scope| {
            scope.spawn(move || scribble(slots, bad.arena().iova(), 11, stop));
            keep_ringing(bad, &mut queues, stop);
            // The other thread ends with the whole test.
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        });
    });
}

#[test]
fn prp_lists_and_sgls_are_rewritten() {
    race(|bad, stop| {
        let mut queues = io_queues(bad);
        let (memory, _) = buffer(bad, 1 << 20);
        let prps = Prps::new(bad.arena(), memory.iova(), 1 << 20).unwrap();
        let pieces: Vec<_> =
            (0..256).map(|index| SglDescriptor::data_block(memory.iova() + index * 4096, 4096)).collect();
        let sgl = Sgl::chain(bad.arena(), &pieces, 64).unwrap();
        std::thread::scope(|scope| {
            let lists: Vec<&DmaBuffer> = prps.lists().iter().chain(sgl.segments()).collect();
            for (index, list) in lists.into_iter().enumerate().take(2) {
                let words = list.u64s(0, list.len() / 8);
                scope
                    .spawn(move || scribble(words, bad.arena().iova() + (32 << 20), 17 + index as u64, stop));
            }
            while !stop.load(Ordering::Relaxed) {
                for data in [prps.data(), sgl.data()] {
                    for command in [io::read(1, 0, 2048, data), io::write(1, 0, 2048, data)] {
                        let sent = queues.submit(command).unwrap();
                        queues.wait(sent, bad.timeout()).expect("a status, whatever it is");
                    }
                }
            }
        });
    });
}

#[test]
fn doorbells_are_rewritten() {
    race(|bad, stop| {
        bad.request_queues(4).unwrap();
        let pairs: Vec<_> = (1..=4).map(|id| bad.create_queue_pair(id, 16).unwrap()).collect();
        let mut random = Random(99);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                let doorbell = bad.doorbells().of(1 + random.below(6) as u16, random.below(2) == 1);
                let value = if random.below(4) == 0 { random.next() as u32 } else { random.below(16) as u32 };
                doorbell.ring(value).unwrap();
            }
            if random.below(64) == 0 {
                // A reset in between, and everything from the start.
                bad.enable().unwrap();
                bad.request_queues(4).unwrap();
                for pair in &pairs {
                    let cq = nvme_driver::admin::CreateCq::new(pair.id(), 16, pair.cq.memory().iova());
                    let sq =
                        nvme_driver::admin::CreateSq::new(pair.id(), 16, pair.sq.memory().iova(), pair.id());
                    // Doorbells of before may have made the controller fatal already.
                    let _ = bad.admin(cq.command());
                    let _ = bad.admin(sq.command());
                }
            }
            std::thread::yield_now();
        }
    });
}

#[test]
fn registers_and_queues_come_and_go() {
    race(|bad, stop| {
        let mut random = Random(7);
        while !stop.load(Ordering::Relaxed) {
            bad.enable().unwrap();
            bad.request_queues(4).unwrap();
            let (_memory, prps) = buffer(bad, 16 * PAGE);
            for id in 1..=4 {
                let mut pair = bad.create_queue_pair(id, 32).unwrap();
                for _ in 0..31 {
                    pair.push(&io::read(1, 0, 128, prps.data())).unwrap();
                }
                pair.ring().unwrap();
                if random.below(2) == 0 {
                    bad.delete_queue_pair(pair).unwrap();
                }
            }
            bad.link().write32(CC, if random.below(2) == 0 { 0 } else { 0x0046_4001 }).unwrap();
        }
    });
}
