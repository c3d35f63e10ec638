//! [`State`]: what the TPer keeps over power cycles: plain data, versioned, in which every secret is sealed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::access::Term;
use super::credential::Credential;

/// Administrators of the Locking SP.
pub const ADMINS: u8 = 4;
/// Users of the Locking SP.
pub const USERS: u8 = 16;
/// Locking ranges, the global one included.
pub const RANGES: u8 = 17;
/// DataStore tables there can be (Additional DataStore Tables 1.00, 4.1.1).
pub const MAX_DATA_STORES: u16 = 17;

/// Who has a PIN of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Holder {
    /// The owner.
    Sid,
    /// Who has the label in hand.
    Psid,
    /// The administrator of the Admin SP.
    AdminSpAdmin,
    /// An administrator of the Locking SP, from 1 on.
    Admin(u8),
    /// A user, from 1 on.
    User(u8),
}

/// All that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The PIN that everybody can read: 32 printable characters.
    pub msid: Vec<u8>,
    /// The PIN on the label, sealed for this server.
    pub psid: Vec<u8>,
    /// Wrong PSIDs since the last right one.
    pub psid_tries: u32,
    /// The owner.
    pub sid: Account,
    /// The administrator of the Admin SP.
    pub admin_sp_admin: Account,
    /// TPerInfo: ProgrammaticResetEnable.
    pub programmatic_reset: bool,
    /// DataRemovalMechanism: ActiveDataRemovalMechanism.
    pub data_removal: u8,
    /// The Locking SP.
    pub locking: Locking,
}

/// An authority that has a PIN.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// Whether it can authenticate.
    pub enabled: bool,
    /// A name that its owner chose.
    pub common_name: Vec<u8>,
    /// Its PIN.
    pub credential: Credential,
}

/// The Locking SP.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Locking {
    /// Life cycle: Manufactured rather than Manufactured-Inactive.
    pub active: bool,
    /// Admin1 to Admin4; nobody before the SP is activated.
    pub admins: Vec<Account>,
    /// User1 to User16; nobody before the SP is activated.
    pub users: Vec<Account>,
    /// The global range and those that can be set up.
    pub ranges: Vec<Range>,
    /// MBRControl.
    pub mbr: MbrControl,
    /// Expressions of access control elements that were changed, by their row.
    pub aces: BTreeMap<u32, Vec<Term>>,
    /// Single User Mode.
    pub single_user: Option<SingleUser>,
    /// Bytes of each DataStore table.
    pub data_stores: Vec<u64>,
    /// The key of the byte tables, sealed for this server: they can be read without any PIN.
    pub tables_key: Vec<u8>,
    /// Something may have been written to the byte tables.
    pub tables_used: bool,
    /// The byte tables have a new key, and what is on the medium is of the old one: it has to be wiped first.
    pub tables_stale: bool,
}

/// A locking range.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Range {
    /// A name that its owner chose.
    pub common_name: Vec<u8>,
    /// First block. 0 of the global range.
    pub start: u64,
    /// Number of blocks. 0 of the global range, and of one that is not set up.
    pub length: u64,
    /// ReadLockEnabled.
    pub read_lock_enabled: bool,
    /// WriteLockEnabled.
    pub write_lock_enabled: bool,
    /// ReadLocked.
    pub read_locked: bool,
    /// WriteLocked.
    pub write_locked: bool,
    /// LockOnReset.
    pub lock_on_reset: Resets,
    /// Its media encryption key.
    pub key: StoredKey,
}

impl Range {
    /// Whether reads, and writes, are refused.
    pub fn locks(&self) -> (bool, bool) {
        (self.read_lock_enabled && self.read_locked, self.write_lock_enabled && self.write_locked)
    }

    /// The same after a power cycle, whatever happens before it.
    pub fn locks_after_power_cycle(&self) -> (bool, bool) {
        let locks = |enabled: bool, locked: bool| enabled && (locked || self.lock_on_reset.power_cycle);
        (locks(self.read_lock_enabled, self.read_locked), locks(self.write_lock_enabled, self.write_locked))
    }
}

/// Copies of a media encryption key. Without any the data is gone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StoredKey {
    /// For this server, without any PIN: only while the range can be used without one.
    pub open: Option<Vec<u8>>,
    /// For authorities.
    pub slots: BTreeMap<Holder, Vec<u8>>,
}

/// Which resets a LockOnReset or DoneOnReset column names (Core 5.7.2.2.12): Opal has power cycles, and those with
/// programmatic resets (Opal 2.01, 4.3.5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resets {
    /// 0.
    pub power_cycle: bool,
    /// 3.
    pub programmatic: bool,
}

impl Default for Resets {
    fn default() -> Self {
        Self { power_cycle: true, programmatic: false }
    }
}

/// MBRControl.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct MbrControl {
    /// Enable.
    pub enable: bool,
    /// Done.
    pub done: bool,
    /// DoneOnReset.
    pub done_on_reset: Resets,
}

/// Single User Mode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SingleUser {
    /// The ranges that belong to one user each: a bit for each.
    pub ranges: u32,
    /// RangeStartRangeLengthPolicy: 1, administrators set start and length; 0, the users.
    pub admins_set_geometry: bool,
}

impl Locking {
    /// Whether a range is in Single User Mode: user `range + 1` owns it.
    pub fn is_single_user(&self, range: u8) -> bool {
        self.single_user.as_ref().is_some_and(|mode| mode.ranges >> range & 1 == 1)
    }

    /// The range that a user owns in Single User Mode.
    pub fn owned_by(&self, user: u8) -> Option<u8> {
        user.checked_sub(1).filter(|range| self.is_single_user(*range))
    }
}

impl State {
    /// An authority's account, if there is one (the PSID has none).
    pub fn account(&self, holder: Holder) -> Option<&Account> {
        let at = |number: u8| usize::from(number).checked_sub(1);
        match holder {
            Holder::Sid => Some(&self.sid),
            Holder::AdminSpAdmin => Some(&self.admin_sp_admin),
            Holder::Psid => None,
            Holder::Admin(number) => self.locking.admins.get(at(number)?),
            Holder::User(number) => self.locking.users.get(at(number)?),
        }
    }

    /// The same to be changed.
    pub fn account_mut(&mut self, holder: Holder) -> Option<&mut Account> {
        let at = |number: u8| usize::from(number).checked_sub(1);
        match holder {
            Holder::Sid => Some(&mut self.sid),
            Holder::AdminSpAdmin => Some(&mut self.admin_sp_admin),
            Holder::Psid => None,
            Holder::Admin(number) => self.locking.admins.get_mut(at(number)?),
            Holder::User(number) => self.locking.users.get_mut(at(number)?),
        }
    }

    /// Every account there is.
    pub fn accounts_mut(&mut self) -> impl Iterator<Item = &mut Account> {
        let locking = &mut self.locking;
        [&mut self.sid, &mut self.admin_sp_admin]
            .into_iter()
            .chain(&mut locking.admins)
            .chain(&mut locking.users)
    }
}

impl State {
    /// Whether it has the rows that it has to have: what comes from a medium may be anything.
    pub fn is_sound(&self) -> bool {
        let locking = &self.locking;
        let (admins, users) = match locking.active {
            true => (usize::from(ADMINS), usize::from(USERS)),
            false => (0, 0),
        };
        let ranges = &locking.ranges;
        ranges.len() == usize::from(RANGES)
            && locking.admins.len() == admins
            && locking.users.len() == users
            && ranges.iter().all(|range| range.start.checked_add(range.length).is_some())
            && (1..=usize::from(MAX_DATA_STORES)).contains(&locking.data_stores.len())
            && locking.data_stores.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size)).is_some()
    }
}
