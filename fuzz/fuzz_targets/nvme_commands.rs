//! Commands with their PRP lists and SGLs, on the admin queue and on I/O queues, from guest memory that the
//! input writes at will.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quarry_fuzz::{Input, MEMORY, Rig};

const ADMIN_SQ: u64 = 0;
/// Submission queues of queue pairs 1 and 2, 64 entries each; their completion queues are one page further.
const IO_SQ: [u64; 2] = [0x2000, 0x4000];

struct Queues {
    tails: [u32; 3],
    phase_heads: u32,
}

impl Queues {
    /// Puts 64 bytes into a queue and rings.
    fn submit(&mut self, rig: &mut Rig, queue: usize, entry: &[u8; 64]) {
        let (base, entries) = if queue == 0 { (ADMIN_SQ, 32) } else { (IO_SQ[queue - 1], 64) };
        rig.write(base + u64::from(self.tails[queue]) * 64, entry);
        self.tails[queue] = (self.tails[queue] + 1) % entries;
        rig.register(0x1000 + queue as u64 * 128, u64::from(self.tails[queue]), 4);
        rig.turns(1);
        // Frees what was posted, so that nothing stops for want of room.
        self.phase_heads = self.phase_heads.wrapping_add(1);
        let head = self.phase_heads % entries;
        rig.register(0x1040 + queue as u64 * 128, u64::from(head), 4);
    }
}

fn create(opcode: u8, qid: u8, base: u64, cdw11: u32) -> [u8; 64] {
    let mut entry = [0; 64];
    entry[0] = opcode;
    entry[24..32].copy_from_slice(&base.to_le_bytes());
    entry[40] = qid;
    entry[42] = 63;
    entry[44..48].copy_from_slice(&cdw11.to_le_bytes());
    entry
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut rig = Rig::new(input.byte() & 1 != 0);
    rig.enable();
    let mut queues = Queues { tails: [0; 3], phase_heads: 0 };
    for qid in 1..=2u8 {
        let base = IO_SQ[usize::from(qid) - 1];
        queues.submit(&mut rig, 0, &create(0x05, qid, base + 0x1000, 3));
        queues.submit(&mut rig, 0, &create(0x01, qid, base, u32::from(qid) << 16 | 1));
    }
    rig.turns(4);
    let mut steps = 0;
    while !input.is_empty() && steps < 200 {
        steps += 1;
        match input.byte() {
            // A command as it is, or one whose opcode, namespace and addresses are likely to be good.
            op @ 0..=159 => {
                let queue = usize::from(op % 3);
                let mut entry: [u8; 64] = input.bytes();
                if op & 64 != 0 {
                    entry[0] &= 0x0F;
                    // PSDT; and FUSE in some, most likely on a pair that is one.
                    entry[1] &= 0x40;
                    if queue != 0 && op & 32 != 0 {
                        entry[1] |= if entry[0] == 0x05 { 1 } else { 2 };
                    }
                    entry[4] %= 3;
                    entry[5..8].fill(0);
                    for field in [24, 32] {
                        let address = u64::from_le_bytes(entry[field..field + 8].try_into().unwrap());
                        entry[field..field + 8].copy_from_slice(&(address % (MEMORY * 5) & !3).to_le_bytes());
                    }
                    entry[50..52].fill(0);
                }
                queues.submit(&mut rig, queue, &entry);
            }
            160..=215 => {
                let at = u64::from(input.half()) * 8;
                rig.write(at, &input.bytes::<32>());
            }
            216..=235 => {
                let (at, value) = (input.half(), input.half());
                rig.register(0x1000 + u64::from(at % 0x480), u64::from(value), 4);
            }
            236..=245 => {
                let _ = rig.host.dma.unmap(MEMORY * 2, MEMORY / 2);
                rig.turns(1);
            }
            _ => rig.turns(3),
        }
    }
    rig.turns(4);
    rig.must_recover();
});
