//! Random I/Os on random ranges, against a model.

use std::sync::Arc;

use block::testing::{Buffer, plain, run};
use block::{Channel, Device, ErrorKind, Op, Reactor};
use block_memory::MemoryDevice;
use block_opal::crypto::xts::XtsKey;
use block_opal::{Extent, RangeMap};
use proptest::prelude::*;

use super::OWN;
use super::drive::{Drive, key};

const BLOCKS: u64 = 48;

/// A range that begins where the last one ends.
#[derive(Clone, Debug)]
struct Range {
    blocks: u64,
    read_locked: bool,
    write_locked: bool,
    key: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Range>),
    Read { lba: u64, blocks: u64, cuts: Vec<usize> },
    Write { lba: u64, blocks: u64, cuts: Vec<usize>, fill: u8 },
    Zero { op: Op, lba: u64, blocks: u64 },
}

fn span() -> impl Strategy<Value = (u64, u64)> {
    (0..BLOCKS).prop_flat_map(|lba| (Just(lba), 1..=BLOCKS - lba))
}

/// Lengths of segments in units of four bytes.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(1usize..40, 0..60),
        prop::collection::vec(prop::sample::select(vec![128usize, 256, 1024, 64]), 0..20),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let range = (1u64..20, any::<[bool; 4]>(), 0usize..3).prop_map(|(blocks, coins, key)| Range {
        blocks,
        read_locked: coins[0] && coins[1],
        write_locked: coins[2] && coins[3],
        key,
    });
    prop_oneof![
        1 => prop::collection::vec(range, 1..6).prop_map(Step::Publish),
        4 => (span(), cuts()).prop_map(|((lba, blocks), cuts)| Step::Read { lba, blocks, cuts }),
        4 => (span(), cuts(), any::<u8>())
            .prop_map(|((lba, blocks), cuts, fill)| Step::Write { lba, blocks, cuts, fill }),
        1 => (span(), prop::sample::select(vec![Op::Discard, Op::WriteZeroes]))
            .prop_map(|((lba, blocks), op)| Step::Zero { op, lba, blocks }),
    ]
}

/// What a block holds.
#[derive(Clone, PartialEq)]
enum Content {
    /// Nothing: zeroes below.
    Hole,
    /// This, by this key.
    Data(Vec<u8>, usize),
}

/// Cuts in bytes that a buffer of `len` bytes has room for.
fn fitting(cuts: &[usize], len: usize) -> Vec<usize> {
    let mut left = len;
    let bytes = cuts.iter().map(|cut| cut * 4);
    bytes.take_while(|cut| left.checked_sub(*cut).map(|rest| left = rest).is_some()).collect()
}

fn play(sparse: bool, unit: u32, steps: Vec<Step>) {
    let keys: Vec<Arc<XtsKey>> = (0..3).map(|n| key(n + 10)).collect();
    let inner = MemoryDevice::with_block_size(OWN + BLOCKS * u64::from(unit), unit).unwrap();
    let drive = Drive::locked(Arc::new(inner), sparse);
    let reactor = Reactor::new(8).unwrap();
    let channel: Box<dyn Channel> = drive.channel(&reactor).unwrap();
    let len = unit as usize;
    let mut model = vec![Content::Hole; BLOCKS as usize];
    // Of each block: read-locked, write-locked, key.
    let mut rights = vec![(true, true, 0); BLOCKS as usize];
    let finish = |io| reactor.block_on(run(&*channel, io)).map_err(|error| error.kind());
    for step in steps {
        match step {
            Step::Publish(mut ranges) => {
                if let Some(last) = ranges.last_mut() {
                    last.blocks = u64::MAX;
                }
                let mut end = 0u64;
                let extents = ranges.into_iter().map(|range| {
                    let start = end;
                    end = end.saturating_add(range.blocks);
                    let Range { read_locked, write_locked, key, .. } = range;
                    for lba in start..end.min(BLOCKS) {
                        rights[lba as usize] = (read_locked, write_locked, key);
                    }
                    let key = (!read_locked || !write_locked).then(|| keys[key].clone());
                    Extent { end, read_locked, write_locked, key }
                });
                let extents = extents.collect();
                drive.shared.publish(RangeMap { extents, shadow: None });
            }
            Step::Read { lba, blocks, cuts } => {
                let range = lba as usize..(lba + blocks) as usize;
                let before = vec![0x5a; blocks as usize * len];
                let buffer = Buffer::at(4 * (lba as usize % 9), before.len());
                buffer.set(0, &before);
                let result = finish(buffer.io_cut(Op::Read, lba, blocks, &fitting(&cuts, before.len())));
                let found = buffer.to_vec();
                if rights[range.clone()].iter().any(|rights| rights.0) {
                    assert_eq!(result, Err(ErrorKind::AccessDenied));
                    assert!(found == before);
                    continue;
                }
                assert_eq!(result, Ok(()));
                for (lba, found) in range.zip(found.chunks(len)) {
                    match &model[lba] {
                        Content::Hole => {
                            assert_eq!(found.iter().all(|byte| *byte == 0), sparse, "block {lba}")
                        }
                        Content::Data(data, key) => {
                            assert_eq!(found == data, *key == rights[lba].2, "block {lba}");
                        }
                    }
                }
            }
            Step::Write { lba, blocks, cuts, fill } => {
                let range = lba as usize..(lba + blocks) as usize;
                let data: Vec<u8> =
                    (0..blocks as usize * len).map(|n| (n / 16) as u8 ^ fill.wrapping_mul(n as u8)).collect();
                let buffer = Buffer::at(4 * (lba as usize % 7), data.len());
                buffer.set(0, &data);
                let result = finish(buffer.io_cut(Op::Write, lba, blocks, &fitting(&cuts, data.len())));
                assert!(buffer.to_vec() == data);
                if rights[range.clone()].iter().any(|rights| rights.1) {
                    assert_eq!(result, Err(ErrorKind::AccessDenied));
                    continue;
                }
                assert_eq!(result, Ok(()));
                for (lba, data) in range.zip(data.chunks(len)) {
                    model[lba] = Content::Data(data.to_vec(), rights[lba].2);
                }
            }
            Step::Zero { op, lba, blocks } => {
                let range = lba as usize..(lba + blocks) as usize;
                let result = finish(plain(op, lba, blocks));
                if op == Op::Discard && !sparse {
                    assert_eq!(result, Err(ErrorKind::Unsupported));
                } else if rights[range.clone()].iter().any(|rights| rights.1) {
                    assert_eq!(result, Err(ErrorKind::AccessDenied));
                } else {
                    assert_eq!(result, Ok(()));
                    for lba in range {
                        let zeroes = Content::Data(vec![0; len], rights[lba].2);
                        model[lba] = if sparse { Content::Hole } else { zeroes };
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn as_the_model(
        sparse: bool, unit in prop::sample::select(vec![512u32, 4096]), first in prop::collection::vec(
            (1u64..20, 0usize..3), 1..5), steps in prop::collection::vec(step(), 1..30),
    ) {
        let range = |(blocks, key)| Range { blocks, read_locked: false, write_locked: false, key };
        let open = Step::Publish(first.into_iter().map(range).collect());
        play(sparse, unit, std::iter::once(open).chain(steps).collect());
    }
}
