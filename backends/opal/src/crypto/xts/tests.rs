use aes::Aes256;
use aes::cipher::KeyInit;
use block::testing::Rng;
use proptest::prelude::*;
use xts_mode::Xts128;

use super::*;

fn key(bytes: &[u8]) -> XtsKey {
    XtsKey::new(Secret::copy(bytes.try_into().unwrap())).unwrap()
}

/// Encrypts or decrypts in place.
fn run(key: &XtsKey, encrypts: bool, first: u64, data: &mut [u8], unit: usize) {
    let cipher = XtsCipher::new(key).unwrap();
    let (at, units) = (data.as_mut_ptr(), data.len() / unit);
    // SAFETY: all of `data`, in place.
    unsafe {
        if encrypts {
            cipher.encrypt(first, at, at, unit, units).unwrap();
        } else {
            cipher.decrypt(first, at, at, unit, units).unwrap();
        }
    }
}

/// The same by the `aes` and `xts-mode` crates.
fn oracle(key: &XtsKey, first: u64, data: &mut [u8], unit: usize) {
    let half = |range: std::ops::Range<usize>| Aes256::new_from_slice(&key.bytes()[range]).unwrap();
    let xts = Xts128::new(half(0..32), half(32..64));
    xts.encrypt_area(data, unit, u128::from(first), |number| number.to_le_bytes().into());
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// IEEE 1619-2018, Annex B, vector 10 (XTS-AES-256): data unit FFh of 512 bytes, 00h to FFh twice.
#[test]
fn ieee_1619_vector_10() {
    let key = key(&hex("2718281828459045235360287471352662497757247093699959574966967627
                        3141592653589793238462643383279502884197169399375105820974944592"));
    let mut data: Vec<u8> = (0..512).map(|n| n as u8).collect();
    run(&key, true, 0xff, &mut data, 512);
    assert_eq!(data[..32], hex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"));
    assert_eq!(data[498..], hex("6ffda9fcea70b9c6e693e148c151"), "{:02x?}", &data[498..]);
    run(&key, false, 0xff, &mut data, 512);
    assert!(data.iter().enumerate().all(|(n, byte)| *byte == n as u8));
}

#[test]
fn equal_halves_are_refused() {
    assert!(XtsKey::new(Secret::copy(&[7; 64])).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn as_other_implementations(
        seed: u64, first: u64, unit in prop::sample::select(vec![512usize, 1024, 4096, 65536]), units in 1usize..9,
    ) {
        let mut rng = Rng(seed);
        let key = key(&rng.bytes(64));
        let first = first >> (seed % 64);
        let first = first.min(u64::MAX - 16);
        let plain = rng.bytes(unit * units);
        let (mut own, mut other) = (plain.clone(), plain.clone());
        run(&key, true, first, &mut own, unit);
        oracle(&key, first, &mut other, unit);
        prop_assert!(own == other);
        // Unit by unit it is the same.
        let mut single = plain.clone();
        for (n, data) in single.chunks_mut(unit).enumerate() {
            run(&key, true, first + n as u64, data, unit);
        }
        prop_assert!(own == single);
        run(&key, false, first, &mut own, unit);
        prop_assert!(own == plain);
    }
}
