//! [`Keyring`]: media encryption keys in memory, and who may have sealed copies of them.
//!
//! After each change [`settle`] makes copies and memory agree with the tables: a key is in memory while its range is not
//! wholly locked; for the server itself while the range will not be wholly locked after the next power cycle; for every
//! authority that may unlock it, or may give itself the right to.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::access::{self, Term};
use super::credential::LocalKeys;
use super::state::{Holder, Locking, RANGES, State, StoredKey};
use super::status::{Outcome, Status};
use super::uid;
use crate::crypto::exchange::{self, PairSecret};
use crate::crypto::seal;
use crate::crypto::xts::XtsKey;
use crate::secret::Secret;

/// Keys in memory, by range.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    ranges: Vec<Option<Arc<XtsKey>>>,
}

/// What was sealed to an authority opens for it alone, and for one range.
fn context(range: u8, holder: Option<Holder>) -> Vec<u8> {
    let who = match holder {
        None => [0, 0],
        Some(Holder::Sid) => [1, 0],
        Some(Holder::Psid) => [2, 0],
        Some(Holder::AdminSpAdmin) => [3, 0],
        Some(Holder::Admin(number)) => [4, number],
        Some(Holder::User(number)) => [5, number],
    };
    [b"quarry opal range", &[range][..], &who].concat()
}

/// A new key.
pub fn new_key() -> Outcome<XtsKey> {
    // Halves that are equal come once in 2^256 times; a source that gives them twice is broken.
    for _ in 0..2 {
        let mut good = true;
        let bytes = Secret::new(|bytes: &mut [u8; 64]| good = seal::random(bytes).is_ok());
        if let (true, Some(key)) = (good, XtsKey::new(bytes)) {
            return Ok(key);
        }
    }
    Err(Status::TperMalfunction)
}

/// Seals the byte tables' key for this server.
pub fn seal_tables_key(keys: &LocalKeys, key: &XtsKey) -> Outcome<Vec<u8>> {
    seal::seal(&keys.open, b"quarry opal tables", key.bytes()).map_err(|_| Status::TperMalfunction)
}

/// Opens the byte tables' key.
pub fn open_tables_key(keys: &LocalKeys, sealed: &[u8]) -> Outcome<XtsKey> {
    let bytes = seal::open_secret(&keys.open, b"quarry opal tables", sealed).ok();
    bytes.and_then(XtsKey::new).ok_or(Status::TperMalfunction)
}

impl Keyring {
    /// The key of a range, if it is in memory.
    pub fn get(&self, range: u8) -> Option<&Arc<XtsKey>> {
        self.ranges.get(usize::from(range))?.as_ref()
    }

    fn set(&mut self, range: u8, key: Option<Arc<XtsKey>>) {
        self.ranges.resize(usize::from(RANGES), None);
        if let Some(slot) = self.ranges.get_mut(usize::from(range)) {
            *slot = key;
        }
    }

    /// Forgets all keys.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Gives a range a new key: what was written before is noise from now on.
    pub fn renew(&mut self, locking: &mut Locking, range: u8) -> Outcome<()> {
        let row = locking.ranges.get_mut(usize::from(range)).ok_or(Status::TperMalfunction)?;
        row.key = StoredKey::default();
        self.set(range, Some(Arc::new(new_key()?)));
        Ok(())
    }
}

/// The authorities that get a copy of a range's key.
fn entitled(state: &State, range: u8) -> BTreeSet<Holder> {
    let locking = &state.locking;
    let enabled = |holder: &Holder| state.account(*holder).is_some_and(|account| account.enabled);
    let mut holders = BTreeSet::new();
    if !locking.active {
        return holders;
    }
    if locking.is_single_user(range) {
        holders.insert(Holder::User(range + 1));
    } else {
        // They may write themselves into the access control element.
        holders.extend((1..=super::state::ADMINS).map(Holder::Admin));
        for row in [access::ACE_SET_READ_LOCKED, access::ACE_SET_WRITE_LOCKED] {
            for term in access::expression(locking, row + u32::from(range)) {
                match term {
                    Term::Authority(uid::USERS) => {
                        holders.extend((1..=super::state::USERS).map(Holder::User))
                    }
                    Term::Authority(authority) => holders.extend(access::holder(authority)),
                    Term::And | Term::Or => {}
                }
            }
        }
    }
    holders.retain(enabled);
    holders
}

/// Makes the copies of all keys, and those in memory, what the tables ask for. Keys that are missing come out of the
/// copies that `secrets`, those of the session, can open. Returns whether copies were destroyed.
pub fn settle(
    state: &mut State,
    ring: &mut Keyring,
    keys: &LocalKeys,
    secrets: &[(Holder, PairSecret)],
) -> Outcome<bool> {
    let mut destroyed = false;
    for range in 0..RANGES {
        let holders = entitled(state, range);
        let Some(row) = state.locking.ranges.get(usize::from(range)) else { continue };
        let open_wanted = row.locks_after_power_cycle() != (true, true);
        let memory_wanted = row.locks() != (true, true);
        let mut stored = row.key.clone();
        let incomplete = holders.iter().any(|holder| !stored.slots.contains_key(holder))
            || open_wanted && stored.open.is_none()
            || memory_wanted && ring.get(range).is_none();
        if incomplete {
            let key = match ring.get(range) {
                Some(key) => key.clone(),
                None => Arc::new(unseal(&stored, range, keys, secrets)?),
            };
            for holder in &holders {
                if !stored.slots.contains_key(holder) {
                    let account = state.account(*holder).ok_or(Status::TperMalfunction)?;
                    let (public, context) = (account.credential.public(), context(range, Some(*holder)));
                    let sealed = exchange::seal_to(public, &context, key.bytes())
                        .map_err(|_| Status::TperMalfunction)?;
                    stored.slots.insert(*holder, sealed);
                }
            }
            if open_wanted && stored.open.is_none() {
                let sealed = seal::seal(&keys.open, &context(range, None), key.bytes())
                    .map_err(|_| Status::TperMalfunction)?;
                stored.open = Some(sealed);
            }
            ring.set(range, Some(key));
        }
        let before = stored.slots.len() + usize::from(stored.open.is_some());
        stored.slots.retain(|holder, _| holders.contains(holder));
        stored.open = stored.open.filter(|_| open_wanted);
        destroyed |= stored.slots.len() + usize::from(stored.open.is_some()) != before;
        if !memory_wanted {
            ring.set(range, None);
        }
        if let Some(row) = state.locking.ranges.get_mut(usize::from(range)) {
            row.key = stored;
        }
    }
    Ok(destroyed)
}

/// The key out of one of its copies.
fn unseal(
    stored: &StoredKey,
    range: u8,
    keys: &LocalKeys,
    secrets: &[(Holder, PairSecret)],
) -> Outcome<XtsKey> {
    let open = stored
        .open
        .as_ref()
        .and_then(|sealed| seal::open_secret::<64>(&keys.open, &context(range, None), sealed).ok());
    let of_session = || {
        secrets.iter().find_map(|(holder, secret)| {
            let sealed = stored.slots.get(holder)?;
            exchange::open_with::<64>(secret, &context(range, Some(*holder)), sealed).ok()
        })
    };
    // Nobody in the session may have it, whatever the access control elements say.
    open.or_else(of_session).and_then(XtsKey::new).ok_or(Status::NotAuthorized)
}
