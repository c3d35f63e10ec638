//! Life cycle of the SPs: factory state, Activate, Revert, RevertSP, and Single User Mode's Reactivate and Erase (Opal 2.01,
//! 5.1; Single User Mode 1.00, 3.3).

use super::access::{self, Sp};
use super::args::Args;
use super::authenticate::SID_TRY_LIMIT;
use super::credential::{Credential, LocalKeys};
use super::keyring;
use super::set::renew;
use super::state::{
    ADMINS, Account, Holder, Locking, MAX_DATA_STORES, MbrControl, RANGES, Range, Resets, SingleUser, State,
    StoredKey, USERS,
};
use super::status::{Outcome, Status};
use super::uid::{self, method};
use super::{Live, Tper};
use crate::crypto::seal;
use crate::layout::DATA_STORE_BYTES;

/// Parameters of Activate, Reactivate and RevertSP that are the feature sets' own.
const SINGLE_USER_RANGES: u64 = 0x06_0000;
const GEOMETRY_POLICY: u64 = 0x06_0001;
const DATA_STORE_SIZES: u64 = 0x06_0002;
const KEEP_GLOBAL_RANGE_KEY: u64 = 0x06_0000;
const ADMIN1_PIN: u64 = 0x06_0003;

fn account(enabled: bool, credential: Credential) -> Account {
    Account { enabled, common_name: Vec::new(), credential }
}

/// Printable characters without those that look like others.
fn label(len: usize) -> Outcome<Vec<u8>> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut bytes = vec![0; len];
    seal::random(&mut bytes).map_err(|_| Status::TperMalfunction)?;
    bytes.iter_mut().for_each(|byte| *byte = ALPHABET[usize::from(*byte % 32)]);
    Ok(bytes)
}

/// What the PSID is sealed for.
pub const PSID_CONTEXT: &[u8] = b"quarry opal psid";

/// A drive as it leaves the factory, with an MSID and a PSID of its own.
pub fn factory(keys: &LocalKeys) -> Outcome<Live> {
    let psid = label(32)?;
    let msid = label(32)?;
    let psid = seal::seal(&keys.open, PSID_CONTEXT, &psid).map_err(|_| Status::TperMalfunction)?;
    reset(keys, msid, psid)
}

/// Factory state with these labels. All keys are new.
fn reset(keys: &LocalKeys, msid: Vec<u8>, psid: Vec<u8>) -> Outcome<Live> {
    let state = State {
        msid,
        psid,
        psid_tries: 0,
        sid: account(true, Credential::with_msid(keys, SID_TRY_LIMIT)?),
        admin_sp_admin: account(false, Credential::empty(keys, 0)?),
        programmatic_reset: false,
        data_removal: 2,
        locking: inactive(keys)?,
    };
    let mut live = Live { state, keys: Default::default() };
    for range in 0..RANGES {
        renew(&mut live, range)?;
    }
    keyring::settle(&mut live.state, &mut live.keys, keys, &[])?;
    Ok(live)
}

/// A Locking SP that is Manufactured-Inactive: no keys yet.
fn inactive(keys: &LocalKeys) -> Outcome<Locking> {
    let range = Range {
        common_name: Vec::new(),
        start: 0,
        length: 0,
        read_lock_enabled: false,
        write_lock_enabled: false,
        read_locked: false,
        write_locked: false,
        lock_on_reset: Resets::default(),
        key: StoredKey::default(),
    };
    Ok(Locking {
        active: false,
        admins: Vec::new(),
        users: Vec::new(),
        ranges: vec![range; usize::from(RANGES)],
        mbr: MbrControl::default(),
        aces: Default::default(),
        single_user: None,
        data_stores: vec![DATA_STORE_BYTES],
        tables_key: keyring::seal_tables_key(keys, &keyring::new_key()?)?,
        tables_used: false,
        tables_stale: false,
    })
}

/// Takes the Locking SP back to Manufactured-Inactive. Every key is new but, if it is to be kept, the global range's.
fn deactivate(live: &mut Live, keys: &LocalKeys, keep_global: bool) -> Outcome<()> {
    let locking = &mut live.state.locking;
    let (used, global) = (locking.tables_used || locking.tables_stale, locking.ranges[0].key.clone());
    *locking = inactive(keys)?;
    locking.tables_stale = used;
    if keep_global {
        locking.ranges[0].key = global;
    }
    for range in u8::from(keep_global)..RANGES {
        renew(live, range)?;
    }
    Ok(())
}

/// The optional parameters of Activate and Reactivate.
#[derive(Default)]
struct Mode {
    ranges: Option<u32>,
    admins_set_geometry: bool,
    data_stores: Option<Vec<u64>>,
    admin_pin: Option<Vec<u8>>,
}

impl Mode {
    fn read(mut args: Args<'_>) -> Outcome<Self> {
        let mut mode = Self::default();
        while let Some(mut named) = args.named()? {
            match named.uint()? {
                SINGLE_USER_RANGES if mode.ranges.is_none() => {
                    mode.ranges = Some(Self::read_ranges(&mut named)?)
                }
                GEOMETRY_POLICY => mode.admins_set_geometry = named.bool()?,
                DATA_STORE_SIZES if mode.data_stores.is_none() => {
                    mode.data_stores = Some(Self::read_sizes(&mut named)?);
                }
                ADMIN1_PIN => {
                    let pin = named.bytes()?;
                    if pin.len() > super::credential::MAX_PIN {
                        return Err(Status::InvalidParameter);
                    }
                    mode.admin_pin = Some(pin.to_vec());
                }
                _ => return Err(Status::InvalidParameter),
            }
            named.end()?;
        }
        args.end()?;
        Ok(mode)
    }

    /// Rows of Locking, or the table for all of them.
    fn read_ranges(named: &mut Args<'_>) -> Outcome<u32> {
        if !named.has_list() {
            return match named.uid()? {
                uid::LOCKING => Ok((1 << RANGES) - 1),
                row => Ok(1 << access::range(row).ok_or(Status::InvalidParameter)?),
            };
        }
        let (mut list, mut ranges) = (named.list()?, 0);
        while !list.is_empty() {
            let row = list.uid()?;
            ranges |= match row {
                uid::LOCKING => (1 << RANGES) - 1,
                _ => 1 << access::range(row).ok_or(Status::InvalidParameter)?,
            };
        }
        Ok(ranges)
    }

    fn read_sizes(named: &mut Args<'_>) -> Outcome<Vec<u64>> {
        let (mut list, mut sizes) = (named.list()?, Vec::new());
        while !list.is_empty() {
            sizes.push(list.uint()?);
            if sizes.len() > usize::from(MAX_DATA_STORES) {
                return Err(Status::InsufficientSpace);
            }
        }
        let sum = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size));
        if sum.is_none_or(|sum| sum > DATA_STORE_BYTES) {
            return Err(Status::InsufficientSpace);
        }
        // A table without a byte has no rows to name.
        if sizes.is_empty() || sizes.contains(&0) { Err(Status::InvalidParameter) } else { Ok(sizes) }
    }
}

/// Makes the Locking SP Manufactured: its accounts, and what the mode asks for. Keys stay.
fn activate(live: &mut Live, keys: &LocalKeys, mode: &Mode, admin1: Credential) -> Outcome<()> {
    let locking = &mut live.state.locking;
    let others = (1..ADMINS).map(|_| Ok(account(false, Credential::empty(keys, 0)?)));
    let admins: Outcome<Vec<_>> =
        std::iter::once(Ok(account(true, admin1.of_administrator()))).chain(others).collect();
    locking.admins = admins?;
    locking.single_user = mode
        .ranges
        .filter(|ranges| *ranges != 0)
        .map(|ranges| SingleUser { ranges, admins_set_geometry: mode.admins_set_geometry });
    let users: Outcome<Vec<_>> = (1..=USERS)
        .map(|number| Ok(account(locking.owned_by(number).is_some(), Credential::empty(keys, 0)?)))
        .collect();
    locking.users = users?;
    if let Some(sizes) = &mode.data_stores {
        locking.data_stores.clone_from(sizes);
    }
    // A range that its only user owns is set up by that user.
    locking.active = true;
    Ok(())
}

impl Tper {
    /// Activate of the Locking SP.
    pub(super) fn activate(&mut self, session: usize, object: u64, args: Args<'_>) -> Outcome<()> {
        let mode = Mode::read(args)?;
        self.allowed(session, object, method::ACTIVATE)?;
        self.writable(session)?;
        if self.view(session).state.locking.active {
            return Ok(()); // of no effect (Opal 2.01, 5.1.1)
        }
        self.change(session, false, |live, keys| {
            let admin1 = live.state.sid.credential.clone();
            activate(live, keys, &mode, admin1)
        })
    }

    /// Reactivate (Single User Mode 1.00, 3.3.2): as new but for the keys of ranges, with another mode. Admin1 keeps its PIN
    /// or gets one; ranges keep start and length.
    pub(super) fn reactivate(&mut self, session: usize, object: u64, args: Args<'_>) -> Outcome<()> {
        let mode = Mode::read(args)?;
        self.allowed(session, object, method::REACTIVATE)?;
        self.writable(session)?;
        let locked = |range: &Range| range.locks() != (false, false);
        let state = &self.view(session).state;
        // What is locked would come out unlocked.
        if state.locking.ranges.iter().any(locked) {
            return Err(Status::Fail);
        }
        let mut admin1 = state.locking.admins.first().ok_or(Status::TperMalfunction)?.credential.clone();
        if let Some(pin) = &mode.admin_pin {
            let (msid, fresh) = (state.msid.clone(), admin1.replace_pair()?);
            admin1.set_pin(&self.local, &msid, &fresh, pin, self.cost)?;
        }
        self.change(session, true, |live, keys| {
            let locking = &mut live.state.locking;
            for range in &mut locking.ranges {
                (range.read_lock_enabled, range.write_lock_enabled) = (false, false);
                (range.read_locked, range.write_locked) = (false, false);
                range.lock_on_reset = Resets::default();
                range.common_name.clear();
                range.key.slots.clear();
            }
            locking.mbr = MbrControl::default();
            locking.aces.clear();
            let used = locking.tables_used || locking.tables_stale;
            locking.tables_key = keyring::seal_tables_key(keys, &keyring::new_key()?)?;
            (locking.tables_used, locking.tables_stale) = (false, used);
            locking.data_stores = vec![DATA_STORE_BYTES];
            activate(live, keys, &mode, admin1)
        })?;
        self.finish_tables()
    }

    /// Revert of an SP, from the Admin SP.
    pub(super) fn revert(&mut self, session: usize, object: u64, args: Args<'_>) -> Outcome<()> {
        args.end()?;
        self.allowed(session, object, method::REVERT)?;
        self.writable(session)?;
        let whole = object == uid::ADMIN_SP;
        self.change(session, true, |live, keys| {
            if !whole {
                // Of no effect where there is nothing to take back (Opal 2.01, 5.1.2).
                return if live.state.locking.active { deactivate(live, keys, false) } else { Ok(()) };
            }
            let stale = live.state.locking.tables_used || live.state.locking.tables_stale;
            // Data is lost only where the Locking SP was active (Opal 2.01, 5.1.2.2).
            let kept = (!live.state.locking.active).then(|| {
                let stored = live.state.locking.ranges.iter().map(|range| range.key.clone());
                (stored.collect::<Vec<_>>(), live.keys.clone())
            });
            *live = reset(keys, live.state.msid.clone(), live.state.psid.clone())?;
            live.state.locking.tables_stale = stale;
            if let Some((stored, ring)) = kept {
                for (range, key) in live.state.locking.ranges.iter_mut().zip(stored) {
                    range.key = key;
                }
                live.keys = ring;
            }
            Ok(())
        })?;
        self.finish_tables()
    }

    /// RevertSP of the Locking SP, from itself.
    pub(super) fn revert_sp(&mut self, session: usize, object: u64, mut args: Args<'_>) -> Outcome<()> {
        let mut keep = false;
        while let Some(mut named) = args.named()? {
            match named.uint()? {
                KEEP_GLOBAL_RANGE_KEY => keep = named.bool()?,
                _ => return Err(Status::InvalidParameter),
            }
            named.end()?;
        }
        args.end()?;
        self.allowed(session, object, method::REVERT_SP)?;
        self.writable(session)?;
        if keep && self.view(session).state.locking.ranges[0].locks() == (true, true) {
            return Err(Status::Fail);
        }
        self.change(session, true, |live, keys| deactivate(live, keys, keep))?;
        self.finish_tables()
    }

    /// Erase of a range in Single User Mode: a new key, no locks, and its user has no PIN.
    pub(super) fn erase(&mut self, session: usize, object: u64, args: Args<'_>) -> Outcome<()> {
        args.end()?;
        self.allowed(session, object, method::ERASE)?;
        self.writable(session)?;
        let range = access::range(object).ok_or(Status::NotAuthorized)?;
        self.change(session, true, |live, keys| {
            let row = live.state.locking.ranges.get_mut(usize::from(range)).ok_or(Status::TperMalfunction)?;
            (row.read_lock_enabled, row.write_lock_enabled) = (false, false);
            (row.read_locked, row.write_locked) = (false, false);
            let user = live.state.account_mut(Holder::User(range + 1)).ok_or(Status::TperMalfunction)?;
            let limit = user.credential.try_limit;
            user.credential = Credential::empty(keys, limit)?;
            renew(live, range)
        })
    }

    /// Which sessions a successful method ends: those of SPs that it took back.
    pub(super) fn ended_by(wanted: u64, object: u64) -> Option<Sp> {
        match wanted {
            method::REVERT if object == uid::LOCKING_SP => Some(Sp::Locking),
            method::REVERT_SP | method::REACTIVATE => Some(Sp::Locking),
            _ => None,
        }
    }
}
