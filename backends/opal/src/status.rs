//! [`OpalStatus`]: what an operator may see of a drive. No PIN, no key.

use serde::Serialize;

use crate::tper::Tper;

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpalStatus {
    /// Somebody owns it: the SID has a PIN of its own.
    pub owned: bool,
    /// The Locking SP is active: ranges can be locked.
    pub locking_enabled: bool,
    /// Some blocks are locked.
    pub locked: bool,
    /// MBRControl: Enable.
    pub mbr_enabled: bool,
    /// MBRControl: Done.
    pub mbr_done: bool,
    /// Block SID is in force.
    pub sid_blocked: bool,
    /// Open sessions.
    pub sessions: usize,
    /// Enabled administrators of the Locking SP.
    pub admins: Vec<u8>,
    /// Enabled users.
    pub users: Vec<u8>,
    /// The global range, and those that are set up.
    pub ranges: Vec<RangeStatus>,
}

/// A range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeStatus {
    /// Its number; 0 is the global range.
    pub range: u8,
    /// First block.
    pub start: u64,
    /// Number of blocks; 0 of the global range.
    pub length: u64,
    /// ReadLockEnabled and WriteLockEnabled.
    pub lock_enabled: (bool, bool),
    /// Whether reads, and writes, are refused.
    pub locked: (bool, bool),
    /// In Single User Mode.
    pub single_user: bool,
}

impl OpalStatus {
    /// Of a TPer.
    pub fn of(tper: &Tper) -> Self {
        let (state, locking) = (tper.state(), &tper.state().locking);
        let enabled = |accounts: &[crate::tper::state::Account]| {
            (1..).zip(accounts).filter(|(_, account)| account.enabled).map(|(number, _)| number).collect()
        };
        let ranges = (0..).zip(&locking.ranges).filter(|(number, row)| *number == 0 || row.length > 0);
        let ranges: Vec<_> = ranges
            .map(|(range, row)| RangeStatus {
                range,
                start: row.start,
                length: row.length,
                lock_enabled: (row.read_lock_enabled, row.write_lock_enabled),
                locked: row.locks(),
                single_user: locking.is_single_user(range),
            })
            .collect();
        Self {
            owned: !state.sid.credential.is_msid(),
            locking_enabled: locking.active,
            locked: locking.active && ranges.iter().any(|range| range.locked != (false, false)),
            mbr_enabled: locking.mbr.enable,
            mbr_done: locking.mbr.done,
            sid_blocked: tper.is_sid_blocked(),
            sessions: tper.sessions(),
            admins: enabled(&locking.admins),
            users: enabled(&locking.users),
            ranges,
        }
    }
}
