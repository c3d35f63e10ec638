//! Access control: which access control elements (ACE) each method on each object has, whom they let in, and which columns
//! they are for (TCG Core 2.01, 5.3.2.9 and 5.3.4; Opal 2.01, tables of 4.2.1.5 and 4.3.1.6 to 4.3.1.8).

use serde::{Deserialize, Serialize};

use super::state::{ADMINS, Holder, Locking, RANGES, USERS};
use super::status::{Outcome, Status};
use super::uid::{self, method};

/// A part of a BooleanExpr, in postfix order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Term {
    /// This authority, by UID.
    Authority(u64),
    /// The last two, both.
    And,
    /// One of the last two.
    Or,
}

/// Longest expression: every administrator and user, and what connects them.
const MAX_TERMS: usize = 64;

/// Which SP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sp {
    /// The Admin SP.
    Admin,
    /// The Locking SP.
    Locking,
}

/// An access control element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ace {
    /// Whom it lets in.
    pub expression: Vec<Term>,
    /// For which columns: a bit for each.
    pub columns: u32,
}

const ALL: u32 = u32::MAX;

const fn columns(first: u32, last: u32) -> u32 {
    (1 << (last + 1)) - (1 << first)
}

const ACE_ANYBODY: u32 = 0x1;
const ACE_ADMIN: u32 = 0x2;
const ACE_ANYBODY_GET_COMMON_NAME: u32 = 0x3;
const ACE_ADMINS_SET_COMMON_NAME: u32 = 0x4;
const ACE_C_PIN_SID_GET: u32 = 0x8C02;
const ACE_C_PIN_SID_SET: u32 = 0x8C03;
const ACE_C_PIN_MSID_GET: u32 = 0x8C04;
const ACE_PSID_GET: u32 = 0x1_00E0;
const ACE_SP_PSID: u32 = 0x1_00E1;
const ACE_SET_ENABLED: u32 = 0x3_0001;
const ACE_SP_SID: u32 = 0x3_0002;
const ACE_TPER_INFO_SET: u32 = 0x3_0003;
const ACE_ACE_GET: u32 = 0x3_8000;
const ACE_ACE_SET: u32 = 0x3_8001;
const ACE_AUTHORITY_GET: u32 = 0x3_9000;
const ACE_AUTHORITY_SET_ENABLED: u32 = 0x3_9001;
const ACE_C_PIN_GET: u32 = 0x3_A000;
const ACE_C_PIN_ADMINS_SET: u32 = 0x3_A001;
const ACE_C_PIN_USER_SET: u32 = 0x3_A800;
const ACE_GEN_KEY: u32 = 0x3_B800;
const ACE_K_AES_MODE: u32 = 0x3_BFFF;
const ACE_RANGE_GET: u32 = 0x3_D000;
/// Set of a range's ReadLocked; the range's number is added.
pub const ACE_SET_READ_LOCKED: u32 = 0x3_E000;
/// Set of a range's WriteLocked; the range's number is added.
pub const ACE_SET_WRITE_LOCKED: u32 = 0x3_E800;
const ACE_GLOBAL_SET: u32 = 0x3_F000;
const ACE_RANGE_SET: u32 = 0x3_F001;
const ACE_MBR_ADMINS_SET: u32 = 0x3_F800;
const ACE_MBR_SET_DONE: u32 = 0x3_F801;
const ACE_DATA_STORE_GET: u32 = 0x3_FC00;
const ACE_DATA_STORE_SET: u32 = 0x3_FC01;
const ACE_USER_SET_COMMON_NAME: u32 = 0x4_4000;
const ACE_DATA_REMOVAL_SET: u32 = 0x5_0001;
/// In Single User Mode: what the owner of a range sets of it, what administrators do, and who erases it. (Their numbers
/// are this TPer's.)
const ACE_OWNER_SET: u32 = 0x6_0000;
const ACE_GEOMETRY_ADMINS_SET: u32 = 0x6_0800;
const ACE_ERASE: u32 = 0x6_1000;

/// `row` as the number of an element of the family that starts at `family`, if it is below `count`.
fn member(row: u32, family: u32, count: u8) -> Option<u8> {
    let number = u8::try_from(row.checked_sub(family)?).ok()?;
    (number < count).then_some(number)
}

fn one_of(authorities: &[u64]) -> Vec<Term> {
    let mut terms: Vec<Term> = authorities.iter().copied().map(Term::Authority).collect();
    terms.extend(std::iter::repeat_n(Term::Or, authorities.len().saturating_sub(1)));
    terms
}

fn user(number: u8) -> u64 {
    uid::USERS | u64::from(number)
}

/// An element of the Admin SP.
fn admin_sp_ace(row: u32) -> Option<Ace> {
    let (who, columns): (&[u64], u32) = match row {
        ACE_ANYBODY => (&[uid::ANYBODY], ALL),
        ACE_ADMIN => (&[uid::ADMINS], ALL),
        ACE_SET_ENABLED => (&[uid::SID], columns(5, 5)),
        ACE_C_PIN_SID_GET => (&[uid::ADMINS, uid::SID], columns(0, 2) | columns(4, 7)),
        ACE_C_PIN_SID_SET => (&[uid::SID], columns(3, 3)),
        ACE_C_PIN_MSID_GET => (&[uid::ANYBODY], columns(0, 0) | columns(3, 3)),
        ACE_C_PIN_ADMINS_SET => (&[uid::ADMINS, uid::SID], columns(3, 3)),
        ACE_PSID_GET => (&[uid::ANYBODY], columns(0, 0) | columns(4, 7)),
        ACE_SP_PSID => (&[uid::PSID], ALL),
        ACE_SP_SID => (&[uid::SID], ALL),
        ACE_TPER_INFO_SET => (&[uid::SID], columns(8, 8)),
        ACE_DATA_REMOVAL_SET => (&[uid::ADMINS, uid::SID], columns(1, 1)),
        _ => return None,
    };
    Some(Ace { expression: one_of(who), columns })
}

/// An element of the Locking SP as it is after activation.
fn locking_ace(locking: &Locking, row: u32) -> Option<Ace> {
    let admins = [uid::ADMINS];
    let stores = locking.data_stores.len() as u32;
    let (who, columns): (&[u64], u32) = match row {
        ACE_ANYBODY => (&[uid::ANYBODY], ALL),
        ACE_ADMIN => (&admins, ALL),
        ACE_ANYBODY_GET_COMMON_NAME => (&[uid::ANYBODY], columns(0, 0) | columns(2, 2)),
        ACE_ADMINS_SET_COMMON_NAME => (&admins, columns(2, 2)),
        ACE_ACE_GET | ACE_AUTHORITY_GET => (&admins, ALL),
        ACE_ACE_SET => (&admins, columns(3, 3)),
        ACE_AUTHORITY_SET_ENABLED => (&admins, columns(5, 5)),
        ACE_C_PIN_GET => (&admins, columns(0, 2) | columns(4, 7)),
        ACE_C_PIN_ADMINS_SET => (&admins, columns(3, 3)),
        ACE_K_AES_MODE => (&[uid::ANYBODY], columns(0, 0) | columns(4, 4)),
        ACE_GLOBAL_SET => (&admins, columns(5, 9)),
        ACE_RANGE_SET => (&admins, columns(3, 9)),
        ACE_MBR_ADMINS_SET => (&admins, columns(1, 3)),
        ACE_MBR_SET_DONE => (&admins, columns(2, 3)),
        _ if (ACE_DATA_STORE_GET..ACE_DATA_STORE_GET + 2 * stores).contains(&row) => (&admins, ALL),
        _ => return numbered_ace(locking, row),
    };
    Some(Ace { expression: one_of(who), columns })
}

/// An element of a family: one for each range or user.
fn numbered_ace(locking: &Locking, row: u32) -> Option<Ace> {
    // Of a range: administrators', or its owner's.
    let ranges = |family| member(row, family, RANGES);
    let of_range = |range: u8, columns| {
        let owner = locking.is_single_user(range).then(|| user(range + 1));
        Ace { expression: one_of(&[owner.unwrap_or(uid::ADMINS)]), columns }
    };
    let users = |family| member(row, family, USERS + 1).filter(|number| *number > 0);
    let of_user = |number: u8, columns| match locking.owned_by(number) {
        Some(_) => Ace { expression: one_of(&[user(number)]), columns },
        None => Ace { expression: one_of(&[uid::ADMINS, user(number)]), columns },
    };
    let single = |family| ranges(family).filter(|range| locking.is_single_user(*range));
    if let Some(range) = ranges(ACE_RANGE_GET) {
        let mut ace = of_range(range, columns(3, 10));
        if locking.is_single_user(range) {
            ace.expression = one_of(&[uid::ADMINS, user(range + 1)]);
        }
        Some(ace)
    } else if let Some(range) = ranges(ACE_SET_READ_LOCKED) {
        Some(of_range(range, columns(7, 7)))
    } else if let Some(range) = ranges(ACE_SET_WRITE_LOCKED) {
        Some(of_range(range, columns(8, 8)))
    } else if let Some(range) = ranges(ACE_GEN_KEY) {
        Some(of_range(range, ALL))
    } else if let Some(range) = single(ACE_OWNER_SET) {
        let by_owner = locking.single_user.as_ref().is_some_and(|mode| !mode.admins_set_geometry);
        Some(of_range(range, columns(2, 2) | columns(if by_owner && range > 0 { 3 } else { 5 }, 9)))
    } else if let Some(range) = single(ACE_GEOMETRY_ADMINS_SET) {
        let by_admins = locking.single_user.as_ref().is_some_and(|mode| mode.admins_set_geometry);
        let ace = Ace { expression: one_of(&[uid::ADMINS]), columns: columns(3, 4) };
        (by_admins && range > 0).then_some(ace)
    } else if let Some(range) = single(ACE_ERASE) {
        Some(Ace { expression: one_of(&[uid::ADMINS, user(range + 1)]), columns: ALL })
    } else if let Some(number) = users(ACE_C_PIN_USER_SET) {
        Some(of_user(number, columns(3, 3)))
    } else {
        users(ACE_USER_SET_COMMON_NAME).map(|number| of_user(number, columns(2, 2)))
    }
}

/// Whether administrators may change an element's BooleanExpr (Opal 2.01, 4.3.1.7). What belongs to a single user stays.
pub fn is_changeable(locking: &Locking, row: u32) -> bool {
    let range = [ACE_RANGE_GET, ACE_SET_READ_LOCKED, ACE_SET_WRITE_LOCKED, ACE_GEN_KEY]
        .into_iter()
        .find_map(|family| member(row, family, RANGES));
    let user = [ACE_C_PIN_USER_SET, ACE_USER_SET_COMMON_NAME]
        .into_iter()
        .find_map(|family| member(row, family, USERS + 1));
    match (range, user) {
        (Some(range), _) => !locking.is_single_user(range),
        (_, Some(user)) => user > 0 && locking.owned_by(user).is_none(),
        _ => {
            let stores = 2 * locking.data_stores.len() as u32;
            row == ACE_MBR_SET_DONE || row.checked_sub(ACE_DATA_STORE_GET).is_some_and(|n| n < stores)
        }
    }
}

/// An element as it is.
pub fn ace(locking: &Locking, sp: Sp, row: u32) -> Option<Ace> {
    match sp {
        Sp::Admin => admin_sp_ace(row),
        Sp::Locking => {
            let mut ace = locking_ace(locking, row)?;
            if let Some(changed) = locking.aces.get(&row) {
                ace.expression.clone_from(changed);
            }
            Some(ace)
        }
    }
}

/// The expression of an element of the Locking SP; nobody if there is none.
pub fn expression(locking: &Locking, row: u32) -> Vec<Term> {
    ace(locking, Sp::Locking, row).map(|ace| ace.expression).unwrap_or_default()
}

/// The rows of all elements of an SP.
pub fn aces(locking: &Locking, sp: Sp) -> Vec<u32> {
    let single = [
        ACE_ANYBODY,
        ACE_ADMIN,
        ACE_ANYBODY_GET_COMMON_NAME,
        ACE_ADMINS_SET_COMMON_NAME,
        ACE_C_PIN_SID_GET,
        ACE_C_PIN_SID_SET,
        ACE_C_PIN_MSID_GET,
        ACE_PSID_GET,
        ACE_SP_PSID,
        ACE_SET_ENABLED,
        ACE_SP_SID,
        ACE_TPER_INFO_SET,
        ACE_ACE_GET,
        ACE_ACE_SET,
        ACE_AUTHORITY_GET,
        ACE_AUTHORITY_SET_ENABLED,
        ACE_C_PIN_GET,
        ACE_C_PIN_ADMINS_SET,
        ACE_K_AES_MODE,
        ACE_GLOBAL_SET,
        ACE_RANGE_SET,
        ACE_MBR_ADMINS_SET,
        ACE_MBR_SET_DONE,
        ACE_DATA_REMOVAL_SET,
    ];
    let families = [
        ACE_C_PIN_USER_SET,
        ACE_GEN_KEY,
        ACE_RANGE_GET,
        ACE_SET_READ_LOCKED,
        ACE_SET_WRITE_LOCKED,
        ACE_DATA_STORE_GET,
        ACE_USER_SET_COMMON_NAME,
        ACE_OWNER_SET,
        ACE_GEOMETRY_ADMINS_SET,
        ACE_ERASE,
    ];
    let numbered = families.into_iter().flat_map(|family| (0..64).map(move |number| family + number));
    let mut rows: Vec<u32> =
        single.into_iter().chain(numbered).filter(|row| ace(locking, sp, *row).is_some()).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// The elements of `method` on an object: `None` where there is no such object or method.
pub fn acl(locking: &Locking, sp: Sp, object: u64, wanted: u64) -> Option<Vec<u32>> {
    let row = uid::row_of(object);
    let table = uid::table_of(object);
    let is_table = row == 0;
    let rows = match (sp, table, wanted) {
        _ if object == uid::THIS_SP => return sp_acl(sp, wanted),
        (_, uid::ACCESS_CONTROL, method::GET_ACL) if is_table => vec![ACE_ANYBODY],
        // Rows are found by who may see the table.
        (_, _, method::NEXT) if is_table => vec![ACE_ANYBODY],
        (_, uid::MBR | uid::DATA_STORE.., _) if sp == Sp::Locking && table != uid::DATA_REMOVAL => {
            return byte_table_acl(locking, object, wanted);
        }
        _ if is_table => return None,
        (
            _,
            uid::TABLE
            | uid::SP_INFO
            | uid::SP_TEMPLATES
            | uid::METHOD_ID
            | uid::TEMPLATE
            | uid::SP
            | uid::TPER_INFO
            | uid::SECRET_PROTECT
            | uid::LOCKING_INFO
            | uid::MBR_CONTROL
            | uid::DATA_REMOVAL,
            method::GET,
        )
        | (Sp::Admin, uid::ACE | uid::AUTHORITY, method::GET) => vec![ACE_ANYBODY],
        (Sp::Admin, uid::C_PIN, _) => return admin_sp_pin_acl(object, wanted),
        (Sp::Admin, uid::AUTHORITY, method::SET) if object == uid::ADMIN_SP_ADMIN => vec![ACE_SET_ENABLED],
        (Sp::Admin, uid::TPER_INFO, method::SET) => vec![ACE_TPER_INFO_SET],
        (Sp::Admin, uid::DATA_REMOVAL, method::SET) => vec![ACE_DATA_REMOVAL_SET],
        (Sp::Admin, uid::SP, method::REVERT) => match object {
            uid::ADMIN_SP => vec![ACE_SP_SID, ACE_ADMIN, ACE_SP_PSID],
            _ => vec![ACE_SP_SID, ACE_ADMIN],
        },
        (Sp::Admin, uid::SP, method::ACTIVATE) if object == uid::LOCKING_SP => vec![ACE_SP_SID],
        (Sp::Locking, ..) => return locking_acl(locking, object, wanted),
        _ => return None,
    };
    Some(rows)
}

/// Of the SP itself.
fn sp_acl(sp: Sp, wanted: u64) -> Option<Vec<u32>> {
    match (sp, wanted) {
        (_, method::AUTHENTICATE | method::RANDOM) => Some(vec![ACE_ANYBODY]),
        (Sp::Locking, method::REVERT_SP | method::REACTIVATE) => Some(vec![ACE_ADMIN]),
        _ => None,
    }
}

fn byte_table_acl(locking: &Locking, object: u64, wanted: u64) -> Option<Vec<u32>> {
    let store = data_store(locking, object).map(|number| 2 * number as u32);
    match (store, wanted) {
        (None, method::GET) if object == uid::MBR => Some(vec![ACE_ANYBODY]),
        (None, method::SET) if object == uid::MBR => Some(vec![ACE_ADMIN]),
        (Some(store), method::GET) => Some(vec![ACE_DATA_STORE_GET + store]),
        (Some(store), method::SET) => Some(vec![ACE_DATA_STORE_SET + store]),
        _ => None,
    }
}

/// The number of a DataStore table, from 0 on.
pub fn data_store(locking: &Locking, object: u64) -> Option<usize> {
    let number = (object >> 32).checked_sub(uid::DATA_STORE >> 32)? as usize;
    (uid::row_of(object) == 0 && number < locking.data_stores.len()).then_some(number)
}

fn admin_sp_pin_acl(object: u64, wanted: u64) -> Option<Vec<u32>> {
    let row = match (object, wanted) {
        (uid::C_PIN_SID | uid::C_PIN_ADMIN_SP_ADMIN, method::GET) => ACE_C_PIN_SID_GET,
        (uid::C_PIN_SID, method::SET) => ACE_C_PIN_SID_SET,
        (uid::C_PIN_ADMIN_SP_ADMIN, method::SET) => ACE_C_PIN_ADMINS_SET,
        (uid::C_PIN_MSID, method::GET) => ACE_C_PIN_MSID_GET,
        (uid::C_PIN_PSID, method::GET) => ACE_PSID_GET,
        _ => return None,
    };
    Some(vec![row])
}

/// Of the Locking SP's own objects.
fn locking_acl(locking: &Locking, object: u64, wanted: u64) -> Option<Vec<u32>> {
    let row = uid::row_of(object);
    let rows = match (uid::table_of(object), wanted) {
        (uid::ACE, method::GET) => vec![ACE_ACE_GET],
        (uid::ACE, method::SET) if is_changeable(locking, row) => vec![ACE_ACE_SET],
        (uid::AUTHORITY, method::GET) => vec![ACE_AUTHORITY_GET, ACE_ANYBODY_GET_COMMON_NAME],
        (uid::AUTHORITY, method::SET) => match holder(object)? {
            Holder::Admin(1) => vec![ACE_ADMINS_SET_COMMON_NAME],
            Holder::Admin(_) => vec![ACE_ADMINS_SET_COMMON_NAME, ACE_AUTHORITY_SET_ENABLED],
            // The owner of a range is never shut out.
            Holder::User(number) if locking.owned_by(number).is_some() => {
                vec![ACE_USER_SET_COMMON_NAME + u32::from(number)]
            }
            Holder::User(number) => {
                vec![ACE_USER_SET_COMMON_NAME + u32::from(number), ACE_AUTHORITY_SET_ENABLED]
            }
            _ => return None,
        },
        (uid::C_PIN, method::GET) => vec![ACE_C_PIN_GET],
        (uid::C_PIN, method::SET) => match pin_holder(object)? {
            Holder::Admin(_) => vec![ACE_C_PIN_ADMINS_SET],
            Holder::User(number) => vec![ACE_C_PIN_USER_SET + u32::from(number)],
            _ => return None,
        },
        (uid::LOCKING, _) => {
            let range = range(object)?;
            let number = u32::from(range);
            match wanted {
                method::GET => vec![ACE_RANGE_GET + number, ACE_ANYBODY_GET_COMMON_NAME],
                method::SET => {
                    let mut rows = vec![ACE_SET_READ_LOCKED + number, ACE_SET_WRITE_LOCKED + number];
                    if locking.is_single_user(range) {
                        rows.extend([ACE_OWNER_SET + number, ACE_GEOMETRY_ADMINS_SET + number]);
                    } else {
                        rows.push(if range == 0 { ACE_GLOBAL_SET } else { ACE_RANGE_SET });
                        rows.push(ACE_ADMINS_SET_COMMON_NAME);
                    }
                    rows
                }
                method::ERASE if locking.is_single_user(range) => vec![ACE_ERASE + number],
                _ => return None,
            }
        }
        (uid::MBR_CONTROL, method::SET) => vec![ACE_MBR_ADMINS_SET, ACE_MBR_SET_DONE],
        (uid::K_AES_256, method::GET) => vec![ACE_K_AES_MODE],
        (uid::K_AES_256, method::GEN_KEY) => vec![ACE_GEN_KEY + u32::from(key_range(object)?)],
        _ => return None,
    };
    Some(rows)
}

fn numbered(object: u64, family: u64, count: u8) -> Option<u8> {
    let number = u8::try_from(object.checked_sub(family)?).ok()?;
    (1..=count).contains(&number).then_some(number)
}

/// The range that a row of Locking stands for.
pub fn range(object: u64) -> Option<u8> {
    if object == uid::GLOBAL_RANGE { Some(0) } else { numbered(object, uid::RANGE, RANGES - 1) }
}

/// The range whose key a row of K_AES_256 is.
pub fn key_range(object: u64) -> Option<u8> {
    if object == uid::GLOBAL_KEY { Some(0) } else { numbered(object, uid::KEY, RANGES - 1) }
}

/// Who an authority is, unless it is a class or everybody.
pub fn holder(authority: u64) -> Option<Holder> {
    match authority {
        uid::SID => Some(Holder::Sid),
        uid::PSID => Some(Holder::Psid),
        uid::ADMIN_SP_ADMIN => Some(Holder::AdminSpAdmin),
        _ => numbered(authority, uid::ADMIN, ADMINS)
            .map(Holder::Admin)
            .or_else(|| numbered(authority, uid::USERS, USERS).map(Holder::User)),
    }
}

/// Whose PIN a row of C_PIN is.
pub fn pin_holder(object: u64) -> Option<Holder> {
    // Rows of C_PIN have the numbers of their authorities, but for the SID's.
    match object {
        uid::C_PIN_SID => Some(Holder::Sid),
        _ if uid::table_of(object) != uid::C_PIN => None,
        _ => holder(object - uid::C_PIN + uid::AUTHORITY).filter(|holder| *holder != Holder::Sid),
    }
}

/// The UID of an authority.
pub fn authority(holder: Holder) -> u64 {
    match holder {
        Holder::Sid => uid::SID,
        Holder::Psid => uid::PSID,
        Holder::AdminSpAdmin => uid::ADMIN_SP_ADMIN,
        Holder::Admin(number) => uid::ADMIN | u64::from(number),
        Holder::User(number) => user(number),
    }
}

/// The UID of its row of C_PIN.
pub fn pin_of(holder: Holder) -> u64 {
    match holder {
        Holder::Sid => uid::C_PIN_SID,
        _ => authority(holder) - uid::AUTHORITY + uid::C_PIN,
    }
}

/// The SP that an authority belongs to.
pub fn sp_of(holder: Holder) -> Sp {
    match holder {
        Holder::Sid | Holder::Psid | Holder::AdminSpAdmin => Sp::Admin,
        Holder::Admin(_) | Holder::User(_) => Sp::Locking,
    }
}

/// Whether those who have authenticated are let in.
pub fn lets_in(expression: &[Term], present: &[Holder]) -> bool {
    let is_present = |authority: u64| match authority {
        uid::ANYBODY => true,
        uid::ADMINS => present.iter().any(|who| matches!(who, Holder::Admin(_) | Holder::AdminSpAdmin)),
        uid::USERS => present.iter().any(|who| matches!(who, Holder::User(_))),
        _ => holder(authority).is_some_and(|wanted| present.contains(&wanted)),
    };
    let mut stack = Vec::new();
    for term in expression {
        let value = match term {
            Term::Authority(authority) => is_present(*authority),
            Term::And | Term::Or => {
                let (Some(right), Some(left)) = (stack.pop(), stack.pop()) else { return false };
                if *term == Term::And { left && right } else { left || right }
            }
        };
        stack.push(value);
    }
    stack == [true]
}

/// Checks a BooleanExpr that is to be set: it comes out to one value, of authorities of the Locking SP. Everybody is none
/// of them: a key that everybody may use is one that is not locked.
pub fn check(expression: &[Term]) -> Outcome<()> {
    let mut depth = 0_usize;
    for term in expression {
        match term {
            Term::Authority(uid::ADMINS | uid::USERS) => depth += 1,
            Term::Authority(authority) => match holder(*authority) {
                Some(Holder::Admin(_) | Holder::User(_)) => depth += 1,
                _ => return Err(Status::InvalidParameter),
            },
            Term::And | Term::Or if depth >= 2 => depth -= 1,
            Term::And | Term::Or => return Err(Status::InvalidParameter),
        }
    }
    if depth == 1 && expression.len() <= MAX_TERMS { Ok(()) } else { Err(Status::InvalidParameter) }
}
