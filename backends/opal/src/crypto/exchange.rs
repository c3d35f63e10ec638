//! Sealing to a public key: a key can be given to somebody who is absent. X25519 (RFC 7748) with a pair that is used once,
//! HKDF over what both sides agree on and both public keys, AES-256-GCM.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use serde::{Deserialize, Serialize};

use super::kdf;
use super::seal::{self, CryptoError, WrongKey};
use crate::secret::Secret;

/// The public half of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Public([u8; 32]);

/// The secret half of a pair.
#[derive(Debug)]
pub struct PairSecret(Secret<32>);

impl PairSecret {
    /// The half of these bytes.
    pub fn new(secret: Secret<32>) -> Self {
        Self(secret)
    }

    /// Its bytes.
    pub fn secret(&self) -> &Secret<32> {
        &self.0
    }

    fn key(&self) -> Result<PrivateKey, CryptoError> {
        PrivateKey::from_private_key(&X25519, self.0.bytes()).map_err(|_| CryptoError)
    }

    fn public(&self) -> Result<Public, CryptoError> {
        let public = self.key()?.compute_public_key().map_err(|_| CryptoError)?;
        public.as_ref().try_into().map(Public).map_err(|_| CryptoError)
    }
}

/// A new pair.
pub fn generate() -> Result<(PairSecret, Public), CryptoError> {
    let mut good = true;
    let secret = PairSecret(Secret::new(|bytes| good = seal::random(bytes).is_ok()));
    if !good {
        return Err(CryptoError);
    }
    let public = secret.public()?;
    Ok((secret, public))
}

/// The key that one side's secret and the other's public half agree on.
fn agree(own: &PairSecret, peer: &Public, once: &Public, to: &Public) -> Result<Secret<32>, CryptoError> {
    let info = [b"quarry opal exchange".as_slice(), &once.0, &to.0].concat();
    let peer = UnparsedPublicKey::new(&X25519, &peer.0);
    // The library refuses public keys that agree on nothing (all zeroes: RFC 7748, 6.1).
    agreement::agree(&own.key()?, peer, CryptoError, |shared| Ok(kdf::extract(shared, &[], &info)))
}

/// Seals `plaintext` to who has the secret half of `to`.
pub fn seal_to(to: &Public, context: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let (secret, once) = generate()?;
    let key = agree(&secret, to, &once, to)?;
    let mut sealed = once.0.to_vec();
    sealed.extend(seal::seal(&key, context, plaintext)?);
    Ok(sealed)
}

/// Opens what [`seal_to`] sealed.
pub fn open_with<const N: usize>(
    secret: &PairSecret,
    context: &[u8],
    sealed: &[u8],
) -> Result<Secret<N>, WrongKey> {
    let (once, sealed) = sealed.split_first_chunk::<32>().ok_or(WrongKey)?;
    let (once, own) = (Public(*once), secret.public().map_err(|_| WrongKey)?);
    let key = agree(secret, &once, &once, &own).map_err(|_| WrongKey)?;
    seal::open_secret(&key, context, sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_the_other_half_alone() {
        let ((secret, public), (stranger, _)) = (generate().unwrap(), generate().unwrap());
        let sealed = seal_to(&public, b"one", &[5; 64]).unwrap();
        assert_eq!(open_with::<64>(&secret, b"one", &sealed).unwrap().bytes(), &[5; 64]);
        assert_eq!(open_with::<64>(&stranger, b"one", &sealed).unwrap_err(), WrongKey);
        assert_eq!(open_with::<64>(&secret, b"two", &sealed).unwrap_err(), WrongKey);
        let mut changed = sealed.clone();
        changed[..32].fill(0);
        assert_eq!(open_with::<64>(&secret, b"one", &changed).unwrap_err(), WrongKey);
        assert_eq!(open_with::<64>(&secret, b"one", &sealed[..31]).unwrap_err(), WrongKey);
        assert_eq!(seal_to(&Public([0; 32]), b"one", &[5; 64]).unwrap_err(), CryptoError);
        assert_ne!(seal_to(&public, b"one", &[5; 64]).unwrap(), sealed);
    }
}
