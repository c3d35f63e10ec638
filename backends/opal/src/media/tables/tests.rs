use std::rc::Rc;

use block::testing::{PowerDevice, Rng};
use block::{Device, Reactor};

use super::*;
use crate::secret::Secret;

const TABLE: ByteTable = ByteTable { first_block: 3, bytes: 1 << 20 };

fn key(byte: u8) -> XtsKey {
    XtsKey::new(Secret::new(|bytes| bytes.iter_mut().enumerate().for_each(|(n, b)| *b = byte + n as u8)))
        .unwrap()
}

fn io(device: &PowerDevice, abilities: Abilities) -> BlockIo {
    let reactor = Reactor::new(8).unwrap();
    let channel = Rc::from(device.channel(&reactor).unwrap());
    BlockIo::new(reactor, channel, device.info().block_size, abilities)
}

fn all(table: &ByteTable, io: &BlockIo, key: &XtsKey) -> Vec<u8> {
    let mut bytes = vec![7; table.bytes as usize];
    table.read(io, key, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn any_range_is_written_and_read() {
    for block_size in [512, 4096, 65536] {
        let device = PowerDevice::new(block_size, 64 + (2 << 20) / u64::from(block_size), 1);
        let io = io(&device, Abilities::WRITE);
        let mut model = vec![0; TABLE.bytes as usize];
        assert_eq!(all(&TABLE, &io, &key(1)), model, "never written");
        let mut rng = Rng(u64::from(block_size));
        for _ in 0..60 {
            let longest = [3, 600, 5000, 300_000][rng.below(4) as usize];
            let offset = rng.below(TABLE.bytes);
            let len = rng.below(longest.min(TABLE.bytes - offset) + 1) as usize;
            let bytes = rng.bytes(len);
            TABLE.write(&io, &key(1), offset, &bytes).unwrap();
            assert!(device.is_flushed());
            model[offset as usize..][..len].copy_from_slice(&bytes);
            let from = rng.below(TABLE.bytes) as usize;
            let mut out = vec![0; rng.below(100_000).min(TABLE.bytes - from as u64) as usize];
            TABLE.read(&io, &key(1), from as u64, &mut out).unwrap();
            assert_eq!(out, model[from..][..out.len()]);
        }
        assert_eq!(all(&TABLE, &io, &key(1)), model);
        assert_ne!(all(&TABLE, &io, &key(2)), model);
        // Nothing beside it was touched.
        let blocks = TABLE.bytes / u64::from(block_size);
        assert!(device.durable(0, 3).iter().all(|byte| *byte == 0));
        assert!(device.durable(3 + blocks, 8).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn at_rest_it_is_xts_by_the_block_in_the_table() {
    let device = PowerDevice::new(512, 4096, 1);
    let io = io(&device, Abilities::WRITE);
    TABLE.write(&io, &key(1), 5 * 512 + 1, &[0xAB; 3]).unwrap();
    let mut block = vec![0; 512];
    block[1..4].fill(0xAB);
    cipher::encrypt(&XtsCipher::new(&key(1)).unwrap(), 5, 512, &mut block).unwrap();
    assert_eq!(device.durable(3 + 5, 1), block);
}

#[test]
fn ranges_beyond_it_are_refused() {
    let device = PowerDevice::new(512, 4096, 1);
    let io = io(&device, Abilities::WRITE);
    for (offset, len) in [(TABLE.bytes, 1), (TABLE.bytes - 1, 2), (u64::MAX, 1), (u64::MAX, 0)] {
        let kind = |result: Result<(), Error>| result.unwrap_err().kind();
        assert_eq!(kind(TABLE.read(&io, &key(1), offset, &mut vec![0; len])), ErrorKind::OutOfRange);
        assert_eq!(kind(TABLE.write(&io, &key(1), offset, &vec![0; len])), ErrorKind::OutOfRange);
    }
    TABLE.write(&io, &key(1), TABLE.bytes, &[]).unwrap();
    TABLE.read(&io, &key(1), TABLE.bytes, &mut []).unwrap();
    assert_eq!(device.steps(), 0);
}

#[test]
fn wiped_it_reads_as_zeroes() {
    let ways = [
        Abilities::WRITE,
        Abilities::WRITE | Abilities::DISCARD,
        Abilities::WRITE | Abilities::DISCARD | Abilities::DISCARD_ZEROES,
        Abilities::WRITE | Abilities::WRITE_ZEROES,
    ];
    for abilities in ways {
        let device = PowerDevice::new(512, 8192, 1);
        let io = io(&device, abilities);
        let table = ByteTable { bytes: (2 << 20) + 512, ..TABLE };
        let beside = [9; 512];
        device.overwrite(2, &beside);
        device.overwrite(3 + table.bytes / 512, &beside);
        table.write(&io, &key(1), 0, &Rng(1).bytes(table.bytes as usize)).unwrap();
        table.wipe(&io).unwrap();
        assert!(device.is_flushed());
        assert!(all(&table, &io, &key(1)).iter().all(|byte| *byte == 0), "{abilities:?}");
        assert_eq!(device.durable(2, 1), beside);
        assert_eq!(device.durable(3 + table.bytes / 512, 1), beside);
    }
}
