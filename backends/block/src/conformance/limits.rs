//! Geometry, and requests that no device may accept or stumble over.

use super::{Fixture, Suite};
use crate::testing::{Buffer, plain, read, run, write};
use crate::{Abilities, ErrorKind, Io, Op};

/// Sizes and granularities make sense, and do not depend on who asks.
pub fn geometry(suite: &Suite) {
    let fixture = suite.open();
    let info = &fixture.info;
    assert!(info.block_size.is_power_of_two() && (512..=65536).contains(&info.block_size), "{info:?}");
    assert!(info.blocks >= 64, "the suite needs 64 blocks: {info:?}");
    assert!(info.preferred_granularity.is_power_of_two(), "{info:?}");
    assert!(info.atomic_write_blocks >= 1 && info.discard_granularity >= 1, "{info:?}");
    assert!(info.size() / u64::from(info.block_size) == info.blocks, "the size fits 64 bits: {info:?}");
    let compares = info.abilities.contains(Abilities::COMPARE_AND_WRITE);
    assert_eq!(info.compare_and_write_blocks > 0, compares, "{info:?}");
    if info.abilities.contains(Abilities::DISCARD_ZEROES) {
        assert!(info.abilities.contains(Abilities::DISCARD), "{info:?}");
    }
    assert_eq!(*info, fixture.device.info());
    let _second = fixture.device.channel(&fixture.reactor).expect("a second channel on one reactor");
}

fn kind(fixture: &Fixture, io: Io) -> Option<ErrorKind> {
    fixture.reactor.block_on(run(&*fixture.channel, io)).err().map(|error| error.kind())
}

/// Everything a guest can get wrong is answered with the right kind of error; nothing is a right request too.
pub fn bad_requests(suite: &Suite) {
    let fixture = suite.open();
    let (blocks, size) = (fixture.info.blocks, fixture.info.block_size as usize);
    let one = Buffer::new(size);
    let none = Buffer::new(0);
    let mut ops = vec![Op::Read];
    if fixture.has(Abilities::WRITE) {
        ops.push(Op::Write);
        ops.extend(fixture.has(Abilities::WRITE_ZEROES).then_some(Op::WriteZeroes));
        ops.extend(fixture.has(Abilities::DISCARD).then_some(Op::Discard));
    }
    for op in ops {
        // Nothing, anywhere inside.
        assert_eq!(kind(&fixture, plain(op, 0, 0)), None, "{op:?}");
        assert_eq!(kind(&fixture, plain(op, blocks, 0)), None, "{op:?}");
        assert_eq!(kind(&fixture, none.io(op, 1, 0)), None, "{op:?}");
        // Beyond the end.
        for (lba, count) in [
            (blocks, 1),
            (blocks - 1, 2),
            (blocks + 1, 0),
            (u64::MAX, 0),
            (u64::MAX, 1),
            (0, u64::MAX),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
            (u64::MAX / 512, 1),
            (1 << 55, 1),
        ] {
            assert_eq!(
                kind(&fixture, one.io(op, lba, count)),
                Some(ErrorKind::OutOfRange),
                "{op:?} {lba}+{count}"
            );
        }
    }
    // Segments that do not make up the range.
    let data = if fixture.has(Abilities::WRITE) { &[Op::Read, Op::Write][..] } else { &[Op::Read] };
    for op in data.iter().copied() {
        for io in [
            plain(op, 0, 1),
            one.io(op, 0, 0),
            one.io(op, 0, 2),
            Buffer::new(size - 4).io(op, 0, 1),
            Buffer::new(size + 4).io_cut(op, 0, 1, &[size]),
        ] {
            assert_eq!(kind(&fixture, io), Some(ErrorKind::InvalidInput), "{op:?}");
        }
    }
    // And it still works.
    if suite.contents && fixture.has(Abilities::WRITE) {
        fixture.reactor.block_on(async {
            let bytes = vec![0x42; size];
            write(&*fixture.channel, size as u32, blocks - 1, &bytes).await.expect("write");
            assert_eq!(read(&*fixture.channel, size as u32, blocks - 1, 1).await.expect("read"), bytes);
        });
    }
}

/// A device without an ability says so.
pub fn read_only(suite: &Suite) {
    let fixture = suite.open();
    let one = Buffer::new(fixture.bytes(1));
    if !fixture.has(Abilities::WRITE) {
        for op in [Op::Write, Op::WriteZeroes, Op::Discard, Op::CompareAndWrite] {
            assert_eq!(kind(&fixture, one.io(op, 0, 1)), Some(ErrorKind::ReadOnly), "{op:?}");
        }
        return;
    }
    if !fixture.has(Abilities::DISCARD) {
        assert_eq!(kind(&fixture, plain(Op::Discard, 0, 1)), Some(ErrorKind::Unsupported));
    }
    if !fixture.has(Abilities::WRITE_ZEROES) {
        assert_eq!(kind(&fixture, plain(Op::WriteZeroes, 0, 1)), Some(ErrorKind::Unsupported));
    }
    if !fixture.has(Abilities::COMPARE_AND_WRITE) {
        let two = Buffer::new(fixture.bytes(2));
        assert_eq!(kind(&fixture, two.io(Op::CompareAndWrite, 0, 1)), Some(ErrorKind::Unsupported));
    }
}
