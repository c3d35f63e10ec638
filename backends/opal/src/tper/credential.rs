//! [`Credential`]: a PIN, and what it opens.
//!
//! Nothing of the PIN is kept. It opens the secret half of a pair of keys, with whose public half media encryption keys are
//! given to an authority that is absent. A PIN that everybody knows (none, or the MSID) opens it by the server's key alone.

use serde::{Deserialize, Serialize};

use super::status::{Outcome, Status};
use crate::crypto::exchange::{self, PairSecret, Public};
use crate::crypto::kdf::{self, Cost};
use crate::crypto::seal;
use crate::secret::Secret;

/// The longest PIN in bytes. (Opal asks for 32; kernels and tools send what they like.)
pub const MAX_PIN: usize = 255;

/// Keys of this server for one drive: derived from the device key, the same for the life of the drive.
#[derive(Debug)]
pub struct LocalKeys {
    /// Seals what can be used without a PIN.
    pub open: Secret<32>,
    /// Without it no PIN can be tried.
    pub pepper: Secret<32>,
}

impl LocalKeys {
    /// The keys of the drive `uuid`.
    pub fn derive(device_key: &Secret<32>, uuid: &[u8; 16]) -> Self {
        Self {
            open: kdf::derive(device_key, uuid, b"quarry opal open"),
            pepper: kdf::derive(device_key, uuid, b"quarry opal pepper"),
        }
    }
}

/// What opens a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Lock {
    /// The empty PIN.
    Empty,
    /// The PIN of C_PIN_MSID.
    Msid,
    /// A PIN, stretched by Argon2id.
    Pin { salt: [u8; 16], cost: Cost },
}

/// A PIN with its columns of C_PIN.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credential {
    public: Public,
    sealed: Vec<u8>,
    lock: Lock,
    /// Wrong PINs before it is locked out; 0: any number.
    pub try_limit: u32,
    /// Wrong PINs since the last right one.
    pub tries: u32,
    /// Whether `tries` outlives a power cycle.
    pub persistence: bool,
}

/// What a sealed secret is for: nothing sealed for one purpose opens for another.
const CONTEXT: &[u8] = b"quarry opal credential";

impl Credential {
    /// A credential with a new pair and the empty PIN.
    pub fn empty(keys: &LocalKeys, try_limit: u32) -> Outcome<Self> {
        let (secret, public) = exchange::generate().map_err(|_| Status::TperMalfunction)?;
        let sealed =
            seal::seal(&keys.open, CONTEXT, secret.secret().bytes()).map_err(|_| Status::TperMalfunction)?;
        Ok(Self { public, sealed, lock: Lock::Empty, try_limit, tries: 0, persistence: false })
    }

    /// The same with the MSID as its PIN.
    pub fn with_msid(keys: &LocalKeys, try_limit: u32) -> Outcome<Self> {
        Ok(Self { lock: Lock::Msid, ..Self::empty(keys, try_limit)? })
    }

    /// The same PIN as an administrator of the Locking SP has it: tries are not limited.
    pub fn of_administrator(mut self) -> Self {
        (self.try_limit, self.tries) = (0, 0);
        self
    }

    /// Whether its PIN is the MSID.
    pub fn is_msid(&self) -> bool {
        self.lock == Lock::Msid
    }

    /// What seals to this authority.
    pub fn public(&self) -> &Public {
        &self.public
    }

    /// Whether it is locked out.
    pub fn is_locked_out(&self) -> bool {
        self.try_limit != 0 && self.tries >= self.try_limit
    }

    /// Opens it: `None` if the PIN is wrong. Takes as long as [`Cost`] says; tries are the caller's to count.
    pub fn open(&self, keys: &LocalKeys, msid: &[u8], pin: &[u8]) -> Outcome<Option<PairSecret>> {
        let known = |right: bool| right.then_some(&keys.open);
        let stretched;
        let key = match &self.lock {
            Lock::Empty => known(pin.is_empty()),
            Lock::Msid => known(seal::is_equal(pin, msid)),
            Lock::Pin { salt, cost } => {
                stretched =
                    kdf::stretch(pin, salt, &keys.pepper, *cost).map_err(|_| Status::TperMalfunction)?;
                Some(&stretched)
            }
        };
        let opened = key.and_then(|key| seal::open_secret::<32>(key, CONTEXT, &self.sealed).ok());
        Ok(opened.map(PairSecret::new))
    }

    /// Changes the PIN of a pair whose secret half is at hand.
    pub fn set_pin(
        &mut self,
        keys: &LocalKeys,
        msid: &[u8],
        secret: &PairSecret,
        pin: &[u8],
        cost: Cost,
    ) -> Outcome<()> {
        let malfunction = |_| Status::TperMalfunction;
        let sealed = |key: &Secret<32>| {
            seal::seal(key, CONTEXT, secret.secret().bytes()).map_err(|_| Status::TperMalfunction)
        };
        if pin.is_empty() {
            (self.lock, self.sealed) = (Lock::Empty, sealed(&keys.open)?);
        } else if seal::is_equal(pin, msid) {
            (self.lock, self.sealed) = (Lock::Msid, sealed(&keys.open)?);
        } else {
            let mut salt = [0; 16];
            seal::random(&mut salt).map_err(malfunction)?;
            let key = kdf::stretch(pin, &salt, &keys.pepper, cost).map_err(|_| Status::TperMalfunction)?;
            (self.lock, self.sealed) = (Lock::Pin { salt, cost }, sealed(&key)?);
        }
        self.tries = 0;
        Ok(())
    }

    /// Gives it a new pair, for who sets a PIN without knowing the old one: nothing that was sealed to the old one opens.
    /// Returns the secret half.
    pub fn replace_pair(&mut self) -> Outcome<PairSecret> {
        let (secret, public) = exchange::generate().map_err(|_| Status::TperMalfunction)?;
        self.public = public;
        Ok(secret)
    }
}
