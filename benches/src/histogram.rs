//! [`Histogram`]: how many values were about how large, log-linear: 128 steps for each power of two, so that a value
//! is known to 0.8 %.
//!
//! A flat array, because recording is on the client's hot path: a shift, an add, no branch on ranges.

const STEP_BITS: u32 = 7;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS;

/// Counts of values.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    max: u64,
    sum: u128,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, max: 0, sum: 0 }
    }
}

impl Histogram {
    /// Adds a value.
    #[inline(always)]
    pub fn record(&mut self, value: u64) {
        let power = (value | STEPS as u64).ilog2() - STEP_BITS;
        // The shifted value has its highest bit at STEP_BITS, but for the smallest, which are their own buckets.
        let bucket = (power as usize) * STEPS + (value >> power) as usize;
        self.counts[bucket] += 1;
        self.total += 1;
        self.sum += u128::from(value);
        self.max = self.max.max(value);
    }

    /// Adds all values of another histogram.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(other.counts.iter()) {
            *to += from;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// How many values there are.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The largest value, exactly.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, exactly. 0 if there are no values.
    pub fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum as f64 / self.total as f64 }
    }

    /// The least value that `part` (0 to 1) of all values do not exceed, to 0.8 %. 0 if there are no values.
    pub fn percentile(&self, part: f64) -> u64 {
        let rank = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::middle(bucket).min(self.max);
            }
        }
        self.max
    }

    /// The middle of a bucket.
    fn middle(bucket: usize) -> u64 {
        // The inverse of `record`: buckets 0 to 255 hold one value each.
        let power = (bucket / STEPS).saturating_sub(1);
        let low = ((bucket - power * STEPS) as u64) << power;
        low + ((1u64 << power) >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_known_to_a_hundredth() {
        for value in (0..300).chain((0..64).map(|bit| 1u64 << bit)).chain([12_345, 999_999, u64::MAX]) {
            let mut histogram = Histogram::default();
            histogram.record(value);
            histogram.record(u64::MAX);
            let found = histogram.percentile(0.5);
            assert!(found.abs_diff(value) <= value / 128, "{value} was found as {found}");
        }
    }

    #[test]
    fn percentiles_are_ranks() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|value| histogram.record(value));
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|part| histogram.percentile(part)), [1, 50, 99, 100]);
        assert_eq!((histogram.len(), histogram.max()), (100, 100));
        assert!((histogram.mean() - 50.5).abs() < 1e-9);
        let mut both = Histogram::default();
        both.add(&histogram);
        both.record(7);
        assert_eq!(both.len(), 101);
    }
}
