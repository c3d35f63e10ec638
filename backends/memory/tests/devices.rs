//! What the suite does not know about memory and null.

use block::testing::{Buffer, plain, read, run, write};
use block::{Device, ErrorKind, Op, Reactor};
use block_memory::{MemoryDevice, NullDevice};

/// Bytes of this process in RAM.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn absurd_sizes_are_refused_with_a_remedy() {
    for (size, block_size) in
        [(0, 512), (1000, 512), (512, 4096), (1 << 20, 513), (1 << 20, 256), (1 << 20, 1 << 17)]
    {
        for error in [
            MemoryDevice::with_block_size(size, block_size).err().unwrap(),
            NullDevice::with_block_size(size, block_size).err().unwrap(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("use a "), "{error}");
        }
    }
    let error = MemoryDevice::new(1 << 60).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("use a smaller size"), "{error}");
    assert_eq!(NullDevice::new(1 << 63).err().unwrap().kind(), ErrorKind::InvalidInput);
    assert_eq!(NullDevice::new(1 << 62).unwrap().info().size(), 1 << 62);
}

#[test]
fn memory_is_sparse_and_a_discard_gives_it_back() {
    let device = MemoryDevice::new(1 << 40).unwrap();
    let reactor = Reactor::new(8).unwrap();
    let channel = device.channel(&reactor).unwrap();
    let before = resident();
    let piece = vec![1; 1 << 20];
    reactor.block_on(async {
        for n in 0..256 {
            write(&*channel, 512, (1 << 30) + n * 2048, &piece).await.unwrap();
        }
        assert!(resident() >= before + (200 << 20));
        run(&*channel, plain(Op::Discard, 1 << 30, 256 * 2048)).await.unwrap();
        assert!(resident() < before + (100 << 20));
        assert!(read(&*channel, 512, 1 << 30, 2048).await.unwrap().iter().all(|byte| *byte == 0));
    });
}

#[test]
fn two_channels_see_one_disk() {
    let device = MemoryDevice::new(1 << 20).unwrap();
    let reactor = Reactor::new(8).unwrap();
    let (one, other) = (device.channel(&reactor).unwrap(), device.channel(&reactor).unwrap());
    drop(device); // the channels hold what they need
    reactor.block_on(async {
        write(&*one, 512, 3, &[7; 512]).await.unwrap();
        drop(one);
        assert_eq!(read(&*other, 512, 3, 1).await.unwrap(), [7; 512]);
    });
}

#[test]
fn null_touches_no_buffer() {
    let device = NullDevice::new(1 << 40).unwrap();
    let reactor = Reactor::new(8).unwrap();
    let channel = device.channel(&reactor).unwrap();
    let buffer = Buffer::with(&[0xee; 512]);
    reactor.block_on(run(&*channel, buffer.io(Op::Read, 0, 1))).unwrap();
    assert_eq!(buffer.to_vec(), [0xee; 512]);
}
