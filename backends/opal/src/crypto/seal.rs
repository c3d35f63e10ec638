//! Authenticated encryption: AES-256-GCM with a random nonce of 96 bits in front (NIST SP 800-38D, 8.2.2).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The library failed: it has no random bytes, or no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library failed")]
pub struct CryptoError;

/// What was to be opened was sealed with another key, for another purpose, or was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key does not open it")]
pub struct WrongKey;

/// Fills `bytes` from the system's random source.
pub fn random(bytes: &mut [u8]) -> Result<(), CryptoError> {
    SystemRandom::new().fill(bytes).map_err(|_| CryptoError)
}

/// Whether two byte strings are equal, in a time that tells only their lengths.
pub fn is_equal(one: &[u8], other: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one, other).is_ok()
}

fn cipher(key: &Secret<32>) -> Result<LessSafeKey, CryptoError> {
    UnboundKey::new(&AES_256_GCM, key.bytes()).map(LessSafeKey::new).map_err(|_| CryptoError)
}

/// Seals `plaintext` for the purpose `context`: nonce, ciphertext, tag.
pub fn seal(key: &Secret<32>, context: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce)?;
    let mut sealed = Vec::with_capacity(NONCE_LEN + plaintext.len() + AES_256_GCM.tag_len());
    sealed.extend(nonce);
    sealed.extend_from_slice(plaintext);
    let tag = cipher(key)?
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut sealed[NONCE_LEN..],
        )
        .map_err(|_| CryptoError)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Opens what [`seal`] sealed.
pub fn open(key: &Secret<32>, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrongKey> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(WrongKey)?;
    let mut bytes = Zeroizing::new(sealed.to_vec());
    let len = cipher(key)
        .map_err(|_| WrongKey)?
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut bytes)
        .map_err(|_| WrongKey)?
        .len();
    bytes.truncate(len);
    Ok(bytes)
}

/// Opens a secret of `N` bytes; one of another length is a wrong key too.
pub fn open_secret<const N: usize>(
    key: &Secret<32>,
    context: &[u8],
    sealed: &[u8],
) -> Result<Secret<N>, WrongKey> {
    let opened = open(key, context, sealed)?;
    let bytes: &[u8; N] = opened.as_slice().try_into().map_err(|_| WrongKey)?;
    Ok(Secret::copy(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_key_and_purpose_alone() {
        let (key, other) = (Secret::copy(&[1; 32]), Secret::copy(&[2; 32]));
        let sealed = seal(&key, b"one", &[7; 64]).unwrap();
        assert_eq!(open(&key, b"one", &sealed).unwrap().as_slice(), [7; 64]);
        assert_eq!(open_secret::<64>(&key, b"one", &sealed).unwrap().bytes(), &[7; 64]);
        assert_eq!(open_secret::<32>(&key, b"one", &sealed).unwrap_err(), WrongKey);
        assert_eq!(open(&other, b"one", &sealed).unwrap_err(), WrongKey);
        assert_eq!(open(&key, b"two", &sealed).unwrap_err(), WrongKey);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&key, b"one", &changed).unwrap_err(), WrongKey);
            assert_eq!(open(&key, b"one", &sealed[..at]).unwrap_err(), WrongKey);
        }
        assert_ne!(seal(&key, b"one", &[7; 64]).unwrap(), sealed, "the same nonce");
    }
}
