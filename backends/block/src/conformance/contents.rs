//! What was written is read back, whatever the range and however the buffers are cut.

use super::{Fixture, Suite};
use crate::io::take_lost;
use crate::testing::{Buffer, Rng, plain, read, run, write};
use crate::{Abilities, Flags, Op};

/// A copy of what the device should hold. Blocks that nobody has written, or that were discarded, are unknown.
struct Model {
    bytes: Vec<u8>,
    known: Vec<bool>,
    block: usize,
}

impl Model {
    fn new(fixture: &Fixture) -> Self {
        let bytes = vec![0; fixture.bytes(fixture.info.blocks)];
        Self { bytes, known: vec![false; fixture.info.blocks as usize], block: fixture.bytes(1) }
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) {
        let start = lba as usize * self.block;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.known[lba as usize..][..bytes.len() / self.block].fill(true);
    }

    fn forget(&mut self, lba: u64, blocks: u64) {
        self.known[lba as usize..][..blocks as usize].fill(false);
    }

    fn check(&self, lba: u64, bytes: &[u8]) {
        for (n, block) in bytes.chunks(self.block).enumerate() {
            let lba = lba as usize + n;
            let expected = &self.bytes[lba * self.block..][..self.block];
            assert!(!self.known[lba] || block == expected, "block {lba} holds something else");
        }
    }
}

/// Cuts of a buffer of `len` bytes at multiples of 4, the smallest alignment NVMe has.
fn cuts(rng: &mut Rng, len: usize) -> Vec<usize> {
    let most = match rng.below(4) {
        0 => return Vec::new(),
        1 => 64, // hundreds of small pieces
        2 => 2048,
        _ => len as u64,
    };
    let (mut cuts, mut left) = (Vec::new(), len);
    while left > 4 && cuts.len() < 3000 {
        let cut = (rng.below(most / 4) as usize + 1) * 4;
        if cut >= left {
            break;
        }
        cuts.push(cut);
        left -= cut;
    }
    cuts
}

/// Random reads, writes, zeroes, discards and flushes against a model.
pub fn random_operations(suite: &Suite) {
    let fixture = suite.open();
    let mut model = Model::new(&fixture);
    let mut rng = Rng(1);
    let channel = &*fixture.channel;
    fixture.reactor.block_on(async {
        for round in 0..600u64 {
            let longest = if round % 50 == 0 { 2048 } else { 40 };
            let blocks = 1 + rng.below(longest.min(fixture.info.blocks));
            let lba = match rng.below(8) {
                0 => 0,
                1 => fixture.info.blocks - blocks,
                _ => rng.below(fixture.info.blocks - blocks + 1),
            };
            let len = fixture.bytes(blocks);
            let offset = [0, 4, 512, 1020][rng.below(4) as usize];
            let fua = if rng.below(4) == 0 { Flags::FUA } else { Flags::empty() };
            match rng.below(10) {
                0..4 if fixture.has(Abilities::WRITE) => {
                    let bytes = rng.bytes(len);
                    let buffer = Buffer::at(offset, len);
                    buffer.set(0, &bytes);
                    let io = buffer.io_cut(Op::Write, lba, blocks, &cuts(&mut rng, len)).with_flags(fua);
                    run(channel, io).await.expect("write");
                    assert_eq!(buffer.to_vec(), bytes, "a write changed its buffer");
                    model.write(lba, &bytes);
                }
                4 if fixture.has(Abilities::WRITE_ZEROES) => {
                    let unmap = if rng.below(2) == 0 { Flags::MAY_UNMAP } else { Flags::empty() };
                    let io = plain(Op::WriteZeroes, lba, blocks).with_flags(fua | unmap);
                    run(channel, io).await.expect("write zeroes");
                    model.write(lba, &vec![0; len]);
                }
                5 if fixture.has(Abilities::DISCARD) => {
                    run(channel, plain(Op::Discard, lba, blocks)).await.expect("discard");
                    if fixture.has(Abilities::DISCARD_ZEROES) {
                        model.write(lba, &vec![0; len]);
                    } else {
                        model.forget(lba, blocks);
                    }
                }
                6 => run(channel, plain(Op::Flush, 0, 0)).await.expect("flush"),
                _ => {
                    let buffer = Buffer::at(offset, len);
                    let io = buffer.io_cut(Op::Read, lba, blocks, &cuts(&mut rng, len));
                    run(channel, io).await.expect("read");
                    if suite.contents {
                        model.check(lba, &buffer.to_vec());
                    }
                }
            }
        }
        if suite.contents {
            let step = 64;
            for lba in (0..fixture.info.blocks).step_by(step as usize) {
                let blocks = step.min(fixture.info.blocks - lba);
                model.check(lba, &read(channel, fixture.info.block_size, lba, blocks).await.expect("read"));
            }
        }
    });
    assert!(take_lost(0).is_empty(), "an Io was dropped");
}

/// Flush and FUA are accepted, and what was written before is there.
pub fn flush_and_fua(suite: &Suite) {
    let fixture = suite.open();
    let channel = &*fixture.channel;
    let block_size = fixture.info.block_size;
    fixture.reactor.block_on(async {
        run(channel, plain(Op::Flush, 0, 0)).await.expect("flush of nothing");
        if !fixture.has(Abilities::WRITE) {
            return;
        }
        let bytes = Rng(2).bytes(fixture.bytes(3));
        let io = Buffer::with(&bytes).io_cut(Op::Write, 5, 3, &[4, 508]).with_flags(Flags::FUA);
        run(channel, io).await.expect("FUA");
        run(channel, plain(Op::Flush, 0, 0)).await.expect("flush");
        if suite.contents {
            assert_eq!(read(channel, block_size, 5, 3).await.expect("read"), bytes);
        }
    });
}

/// The ranges that [`discard`] and [`write_zeroes`] use: odd ones, long ones, everything.
fn ranges(blocks: u64) -> [(u64, u64); 7] {
    [(0, 1), (7, 1), (3, 11), (8, 8), (blocks - 1, 1), (1, blocks - 2), (0, blocks)]
}

async fn fill(fixture: &Fixture) -> Vec<u8> {
    let bytes = Rng(3).bytes(fixture.bytes(fixture.info.blocks));
    for (n, chunk) in bytes.chunks(fixture.bytes(64)).enumerate() {
        write(&*fixture.channel, fixture.info.block_size, n as u64 * 64, chunk).await.expect("write");
    }
    bytes
}

async fn contents(fixture: &Fixture) -> Vec<u8> {
    let mut bytes = Vec::new();
    for lba in (0..fixture.info.blocks).step_by(64) {
        let blocks = 64.min(fixture.info.blocks - lba);
        let piece = read(&*fixture.channel, fixture.info.block_size, lba, blocks).await.expect("read");
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Blocks around a discarded range keep their contents; the range reads as the device says.
pub fn discard(suite: &Suite) {
    let fixture = suite.open();
    if !fixture.has(Abilities::WRITE | Abilities::DISCARD) {
        return;
    }
    fixture.reactor.block_on(async {
        for (lba, blocks) in ranges(fixture.info.blocks) {
            let mut expected = if suite.contents { fill(&fixture).await } else { Vec::new() };
            run(&*fixture.channel, plain(Op::Discard, lba, blocks)).await.expect("discard");
            if !suite.contents {
                continue;
            }
            let mut found = contents(&fixture).await;
            let range = fixture.bytes(lba)..fixture.bytes(lba + blocks);
            expected[range.clone()].fill(0);
            if !fixture.has(Abilities::DISCARD_ZEROES) {
                found[range].fill(0);
            }
            assert!(found == expected, "after a discard of {lba}+{blocks}");
        }
    });
}

/// The range reads as zeroes, blocks around it keep their contents.
pub fn write_zeroes(suite: &Suite) {
    let fixture = suite.open();
    if !fixture.has(Abilities::WRITE | Abilities::WRITE_ZEROES) {
        return;
    }
    fixture.reactor.block_on(async {
        for flags in [Flags::empty(), Flags::MAY_UNMAP, Flags::FUA] {
            for (lba, blocks) in ranges(fixture.info.blocks) {
                let mut expected = if suite.contents { fill(&fixture).await } else { Vec::new() };
                let io = plain(Op::WriteZeroes, lba, blocks).with_flags(flags);
                run(&*fixture.channel, io).await.expect("write zeroes");
                if suite.contents {
                    expected[fixture.bytes(lba)..fixture.bytes(lba + blocks)].fill(0);
                    assert!(
                        contents(&fixture).await == expected,
                        "after zeroes at {lba}+{blocks}, {flags:?}"
                    );
                }
            }
        }
    });
}
