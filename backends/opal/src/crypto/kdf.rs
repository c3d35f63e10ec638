//! From PINs and keys to keys: Argon2id (RFC 9106) and HKDF-SHA256 (RFC 5869).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::crypto::seal::CryptoError;
use crate::secret::Secret;

/// What it costs to try a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes: how many threads somebody else could use.
    pub lanes: u32,
}

impl Cost {
    /// The least that this server uses.
    pub const LEAST: Self = Self { memory_kib: 8 << 10, passes: 1, lanes: 1 };
    /// The most: a state that was made elsewhere must not take all memory here.
    pub const MOST: Self = Self { memory_kib: 1 << 20, passes: 16, lanes: 16 };

    /// Whether it is within [`Self::LEAST`] and [`Self::MOST`].
    pub fn is_allowed(&self) -> bool {
        (Self::LEAST.memory_kib..=Self::MOST.memory_kib).contains(&self.memory_kib)
            && (Self::LEAST.passes..=Self::MOST.passes).contains(&self.passes)
            && (Self::LEAST.lanes..=Self::MOST.lanes).contains(&self.lanes)
    }
}

/// The second of the two recommended choices (RFC 9106, 4).
impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

/// Stretches a PIN. `pepper` is the secret value of Argon2. Waits until fewer than [`AT_ONCE`] others do the same.
pub fn stretch(
    pin: &[u8],
    salt: &[u8; 16],
    pepper: &Secret<32>,
    cost: Cost,
) -> Result<Secret<32>, CryptoError> {
    if !cost.is_allowed() {
        return Err(CryptoError);
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| CryptoError)?;
    let blocks = params.block_count();
    let argon2 = Argon2::new_with_secret(pepper.bytes(), Algorithm::Argon2id, Version::V0x13, params)
        .map_err(|_| CryptoError)?;
    let _turn = GATE.enter();
    let mut memory = Vec::new();
    memory.try_reserve_exact(blocks).map_err(|_| CryptoError)?;
    memory.resize(blocks, Block::default());
    let mut result = Ok(());
    let key = Secret::new(|key| result = argon2.hash_password_into_with_memory(pin, salt, key, &mut memory));
    memory.iter_mut().for_each(Zeroize::zeroize);
    result.map(|()| key).map_err(|_| CryptoError)
}

/// PINs that are stretched at the same time in this process. A guest that guesses without end takes one of them for a while;
/// so many times [`Cost`]'s memory is in use at most.
pub const AT_ONCE: usize = 2;

static GATE: Gate =
    Gate { state: Mutex::new(Turns { next: 0, served: 0, inside: 0 }), changed: Condvar::new() };

/// Lets so many in, in the order they came.
struct Gate {
    state: Mutex<Turns>,
    changed: Condvar,
}

struct Turns {
    next: u64,
    served: u64,
    inside: usize,
}

struct Turn<'a>(&'a Gate);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Turns> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Turn<'_> {
        let mut turns = self.lock();
        let own = turns.next;
        turns.next += 1;
        while turns.served != own || turns.inside == AT_ONCE {
            turns = self.changed.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        turns.served += 1;
        turns.inside += 1;
        drop(turns);
        self.changed.notify_all(); // the next one may have room too
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.changed.notify_all();
    }
}

struct Len;

impl KeyType for Len {
    fn len(&self) -> usize {
        32
    }
}

/// Derives the key for the purpose `info` from `key`.
pub fn derive(key: &Secret<32>, salt: &[u8], info: &[u8]) -> Secret<32> {
    extract(key.bytes(), salt, info)
}

/// The same from material of any length.
pub fn extract(material: &[u8], salt: &[u8], info: &[u8]) -> Secret<32> {
    let info = [info];
    Secret::new(|bytes| {
        let filled =
            Salt::new(HKDF_SHA256, salt).extract(material).expand(&info, Len).and_then(|okm| okm.fill(bytes));
        // Only lengths can be wrong, and they are not.
        assert!(filled.is_ok(), "HKDF of 32 bytes");
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn hkdf_of_the_rfc() {
        // RFC 5869, A.1: the first 32 bytes of the output do not depend on its length.
        let key = extract(&[0x0B; 22], &hex("000102030405060708090a0b0c"), &hex("f0f1f2f3f4f5f6f7f8f9"));
        let expected = hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
        assert_eq!(key.bytes().as_slice(), expected);
    }

    #[test]
    fn argon2_of_the_rfc() {
        // RFC 9106, 5.3, without its associated data, as `argon2` of the Argon2 authors' own program has no such parameter
        // either: what is checked here is that secret, salt and cost all count.
        let cost = Cost::LEAST;
        let (pepper, other) = (Secret::copy(&[3; 32]), Secret::copy(&[4; 32]));
        let key = |pin: &[u8], salt: u8, pepper: &Secret<32>, cost| {
            *stretch(pin, &[salt; 16], pepper, cost).unwrap().bytes()
        };
        let first = key(b"pin", 1, &pepper, cost);
        assert_eq!(first, key(b"pin", 1, &pepper, cost));
        assert_ne!(first, key(b"pin\0", 1, &pepper, cost));
        assert_ne!(first, key(b"pin", 2, &pepper, cost));
        assert_ne!(first, key(b"pin", 1, &other, cost));
        assert_ne!(first, key(b"pin", 1, &pepper, Cost { passes: 2, ..cost }));
        assert_ne!(key(b"", 1, &pepper, cost), key(&[0; 255], 1, &pepper, cost));
        assert!(stretch(b"pin", &[0; 16], &pepper, Cost { memory_kib: u32::MAX, ..cost }).is_err());
    }

    #[test]
    fn only_so_many_at_once_and_in_order() {
        let gate =
            Gate { state: Mutex::new(Turns { next: 0, served: 0, inside: 0 }), changed: Condvar::new() };
        let order = Mutex::new(Vec::new());
        let held: Vec<_> = (0..AT_ONCE).map(|_| gate.enter()).collect();
        std::thread::scope(|scope| {
            for number in 0..4_u64 {
                let (gate, order) = (&gate, &order);
                scope.spawn(move || {
                    let _turn = gate.enter();
                    order.lock().unwrap().push(number);
                });
                // It stands in the queue before the next one comes.
                while gate.lock().next != AT_ONCE as u64 + number + 1 {
                    std::thread::yield_now();
                }
            }
            assert!(order.lock().unwrap().is_empty());
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap().len(), 4);
        assert_eq!(gate.lock().inside, 0);
    }
}
