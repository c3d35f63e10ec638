//! [`XtsKey`]: the key of a range.

use crate::secret::Secret;

/// An AES-256-XTS key: two different keys of 256 bits (IEEE 1619-2018; FIPS 140-3 IG C.I asks that they differ).
#[derive(Debug)]
pub struct XtsKey(Secret<64>);

impl XtsKey {
    /// The key of these bytes, unless its halves are equal.
    pub fn new(bytes: Secret<64>) -> Option<Self> {
        let (data, tweak) = bytes.bytes().split_at(32);
        (data != tweak).then_some(Self(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 64] {
        self.0.bytes()
    }
}
