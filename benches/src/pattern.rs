//! [`Pattern`]: which blocks the next command reads or writes.

use nvme_spec::NvmOpcode;

/// In which order blocks are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Anywhere, uniformly, aligned to the command's size.
    Random,
    /// One after the other, from the start again at the end.
    Sequential,
}

/// A stream of commands: opcode and first block.
#[derive(Clone, Debug)]
pub struct Pattern {
    order: Order,
    /// Of 100 commands so many are writes.
    writes: u32,
    /// Blocks of a command.
    blocks: u64,
    /// Places for a command.
    places: u64,
    next: u64,
    state: u64,
}

impl Pattern {
    /// Commands of `blocks` blocks over the first `span` blocks of a namespace; `writes` of 100 are writes.
    pub fn new(order: Order, writes: u32, blocks: u64, span: u64, seed: u64) -> Self {
        let places = (span / blocks.max(1)).max(1);
        Self { order, writes: writes.min(100), blocks, places, next: 0, state: seed | 1 }
    }

    /// The next command: its opcode and its first block.
    #[inline(always)]
    pub fn draw(&mut self) -> (u8, u64) {
        let random = self.random();
        let place = match self.order {
            // The upper half of the product: even for every number of places.
            Order::Random => ((u128::from(random) * u128::from(self.places)) >> 64) as u64,
            Order::Sequential => {
                let place = self.next;
                self.next = if place + 1 == self.places { 0 } else { place + 1 };
                place
            }
        };
        // The lower bits, which hardly had a part in the place.
        let is_write = ((random & 0xFFFF_FFFF) * 100) >> 32 < u64::from(self.writes);
        let opcode = if is_write { NvmOpcode::WRITE.0 } else { NvmOpcode::READ.0 };
        (opcode, place * self.blocks)
    }

    /// xorshift64*: three shifts and a product, and good enough to miss every cache.
    #[inline(always)]
    fn random(&mut self) -> u64 {
        let mut x = self.state;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state = x;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_inside_and_mixes_as_asked() {
        let mut pattern = Pattern::new(Order::Random, 30, 8, 1001, 7);
        let (mut writes, mut seen) = (0, [false; 125]);
        for _ in 0..100_000 {
            let (opcode, lba) = pattern.draw();
            writes += u32::from(opcode == NvmOpcode::WRITE.0);
            assert!(lba % 8 == 0 && lba + 8 <= 1001);
            seen[lba as usize / 8] = true;
        }
        assert!((29_000..31_000).contains(&writes), "{writes} writes");
        assert!(seen.iter().all(|place| *place));
    }

    #[test]
    fn sequential_wraps() {
        let mut pattern = Pattern::new(Order::Sequential, 0, 8, 24, 7);
        let lbas: Vec<u64> = (0..5).map(|_| pattern.draw().1).collect();
        assert_eq!(lbas, [0, 8, 16, 0, 8]);
    }
}
