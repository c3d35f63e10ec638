//! Data to write and to recognise.

use nvme_driver::io;
use nvme_driver::{Controller, Data, DmaBuffer, Prps, QueuePair};
use nvme_spec::{Command, Status};

/// `len` bytes that depend on `seed` and look random.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut data: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    data.truncate(len);
    data
}

/// Sends a command and returns its status.
#[track_caller]
pub fn run(controller: &Controller, queues: &mut QueuePair, command: Command) -> Status {
    queues.execute(command, controller.timeout()).expect("a completion").status().code()
}

/// A zeroed buffer of the first arena with PRPs to it.
#[track_caller]
pub fn buffer(controller: &Controller, len: usize) -> (DmaBuffer, Prps) {
    controller.admin_buffer(len).expect("memory")
}

/// Writes and reads back one pattern at `lba`: the queue and the disk behind it work.
#[track_caller]
pub fn check_works(controller: &Controller, queues: &mut QueuePair, lba: u64, seed: u64) {
    let (buffer, prps) = buffer(controller, 4096);
    let data = pattern(seed, 4096);
    buffer.write(0, &data);
    assert_eq!(run(controller, queues, io::write(1, lba, 8, prps.data())), Status::SUCCESS);
    buffer.fill(0);
    assert_eq!(run(controller, queues, io::read(1, lba, 8, prps.data())), Status::SUCCESS);
    assert!(buffer.to_vec(0, 4096) == data, "what was written at block {lba} is what is read there");
}

/// PRPs for one page.
pub fn one_page(buffer: &DmaBuffer) -> Data {
    Data::Prp(buffer.iova(), 0)
}
