//! Set (TCG Core 2.01, 5.3.3.7): of columns, of a PIN, of bytes. All of a call's values are set, or none.

use super::access::{self, Sp, Term};
use super::args::Args;
use super::credential::MAX_PIN;
use super::keyring::Keyring;
use super::objects::{self, Geometry};
use super::state::{Holder, Resets, State};
use super::status::{Outcome, Status};
use super::uid::{self, method};
use super::{Live, Tper};

/// The longest name that an owner can give.
const MAX_COMMON_NAME: usize = 32;

/// What a Set names: `Where` for byte tables, and `Values`.
fn parameters(mut args: Args<'_>) -> Outcome<(Option<u64>, Option<Args<'_>>)> {
    let (mut place, mut values) = (None, None);
    while let Some(mut named) = args.named()? {
        match named.uint()? {
            0 if place.is_none() && values.is_none() => {
                place = Some(named.uint()?);
                named.end()?;
            }
            1 if values.is_none() => values = Some(named),
            _ => return Err(Status::InvalidParameter),
        }
    }
    args.end()?;
    Ok((place, values))
}

/// Columns and their values, of which nothing is read yet. None may come twice.
fn columns(values: Args<'_>) -> Outcome<Vec<(u8, Args<'_>)>> {
    let mut outer = values;
    let mut list = outer.list()?;
    outer.end()?;
    let mut columns: Vec<(u8, Args<'_>)> = Vec::new();
    while let Some(mut named) = list.named()? {
        let column = u8::try_from(named.uint()?).ok().filter(|column| *column < 32);
        let column = column.ok_or(Status::InvalidParameter)?;
        if columns.iter().any(|(earlier, _)| *earlier == column) {
            return Err(Status::InvalidParameter);
        }
        columns.push((column, named));
    }
    list.end()?;
    Ok(columns)
}

fn flag(mut value: Args<'_>) -> Outcome<bool> {
    let flag = value.bool()?;
    value.end()?;
    Ok(flag)
}

fn uint(mut value: Args<'_>) -> Outcome<u64> {
    let number = value.uint()?;
    value.end()?;
    Ok(number)
}

fn bytes<'a>(value: &Args<'a>, most: usize) -> Outcome<&'a [u8]> {
    let mut value = *value;
    let bytes = value.bytes()?;
    value.end()?;
    if bytes.len() > most { Err(Status::InvalidParameter) } else { Ok(bytes) }
}

fn common_name(value: &Args<'_>) -> Outcome<Vec<u8>> {
    Ok(bytes(value, MAX_COMMON_NAME)?.to_vec())
}

/// A LockOnReset or DoneOnReset: {0} or {0, 3} (Opal 2.01, 4.3.5.2.2 and 4.3.5.3.1); or empty, by which tools turn it off.
fn resets(mut value: Args<'_>) -> Outcome<Resets> {
    let mut list = value.list()?;
    value.end()?;
    let mut resets = Resets { power_cycle: false, programmatic: false };
    while !list.is_empty() {
        match list.uint()? {
            0 => resets.power_cycle = true,
            3 => resets.programmatic = true,
            _ => return Err(Status::InvalidParameter),
        }
    }
    Ok(resets)
}

/// A BooleanExpr: pairs of a half UID, which says what follows, and an authority or an operator.
fn expression(mut value: Args<'_>) -> Outcome<Vec<Term>> {
    let mut list = value.list()?;
    value.end()?;
    let mut terms = Vec::new();
    while let Some(mut named) = list.named()? {
        let term = match named.half_uid()? {
            uid::AUTHORITY_REF => Term::Authority(named.uid()?),
            uid::BOOLEAN_ACE => match named.uint()? {
                0 => Term::And,
                1 => Term::Or,
                _ => return Err(Status::InvalidParameter),
            },
            _ => return Err(Status::InvalidParameter),
        };
        named.end()?;
        terms.push(term);
    }
    list.end()?;
    access::check(&terms)?;
    Ok(terms)
}

impl Tper {
    /// Set.
    pub(super) fn set(&mut self, session: usize, object: u64, args: Args<'_>) -> Outcome<()> {
        let (place, values) = parameters(args)?;
        let allowed = self.allowed(session, object, method::SET)?;
        self.writable(session)?;
        let sp = self.sessions[session].sp;
        if let Some(size) = objects::byte_table(&self.view(session).state, sp, object) {
            let Some(values) = values else { return Ok(()) };
            let (first, data) = (place.unwrap_or(0), bytes(&values, usize::MAX)?);
            if first.checked_add(data.len() as u64).is_none_or(|end| end > size) {
                return Err(Status::InvalidParameter);
            }
            return self.write_table(session, object, first, data);
        }
        if place.is_some() {
            return Err(Status::InvalidParameter);
        }
        let columns = values.map_or_else(|| Ok(Vec::new()), columns)?;
        if columns.iter().any(|(column, _)| allowed >> *column & 1 == 0) {
            return Err(Status::NotAuthorized);
        }
        if uid::table_of(object) == uid::C_PIN {
            let holder = access::pin_holder(object).ok_or(Status::NotAuthorized)?;
            return columns
                .iter()
                .try_for_each(|(_, value)| self.set_pin(session, holder, bytes(value, MAX_PIN)?));
        }
        let geometry = self.geometry;
        self.change(session, false, |live, _| set_columns(&mut live.state, geometry, sp, object, &columns))
    }

    fn set_pin(&mut self, session: usize, holder: Holder, pin: &[u8]) -> Outcome<()> {
        let own = self.sessions[session].secrets.iter().position(|(present, _)| *present == holder);
        let cost = self.cost;
        let state = &self.view(session).state;
        let mut account = state.account(holder).ok_or(Status::NotAuthorized)?.clone();
        let msid = state.msid.clone();
        // The owner of the PIN keeps the pair, and with it what was sealed to it. Anybody else cannot open it.
        let fresh = match own {
            Some(_) => None,
            None => Some(account.credential.replace_pair()?),
        };
        {
            let secret = match (&fresh, own) {
                (Some(fresh), _) => fresh,
                (None, Some(own)) => &self.sessions[session].secrets[own].1,
                (None, None) => return Err(Status::TperMalfunction),
            };
            account.credential.set_pin(&self.local, &msid, secret, pin, cost)?;
        }
        let is_fresh = fresh.is_some();
        self.change(session, true, |live, _| {
            if is_fresh {
                for range in &mut live.state.locking.ranges {
                    range.key.slots.remove(&holder);
                }
            }
            *live.state.account_mut(holder).ok_or(Status::TperMalfunction)? = account;
            Ok(())
        })
    }

    /// GenKey: a new key for a range.
    pub(super) fn gen_key(&mut self, session: usize, object: u64, mut args: Args<'_>) -> Outcome<()> {
        // Public exponent and length of a PIN are for other kinds of keys.
        while let Some(mut named) = args.named()? {
            named.uint()?;
            named.uint()?;
            named.end()?;
        }
        args.end()?;
        self.allowed(session, object, method::GEN_KEY)?;
        self.writable(session)?;
        let range = access::key_range(object).ok_or(Status::NotAuthorized)?;
        self.change(session, true, |live, _| renew(live, range))
    }
}

/// Gives a range a new key in tables and memory.
pub fn renew(live: &mut Live, range: u8) -> Outcome<()> {
    Keyring::renew(&mut live.keys, &mut live.state.locking, range)
}

fn set_columns(
    state: &mut State,
    geometry: Geometry,
    sp: Sp,
    object: u64,
    columns: &[(u8, Args<'_>)],
) -> Outcome<()> {
    match (sp, uid::table_of(object)) {
        (_, uid::AUTHORITY) => {
            let holder = access::holder(object).ok_or(Status::NotAuthorized)?;
            let account = state.account_mut(holder).ok_or(Status::NotAuthorized)?;
            for (column, value) in columns {
                match column {
                    2 => account.common_name = common_name(value)?,
                    5 => account.enabled = flag(*value)?,
                    _ => return Err(Status::NotAuthorized),
                }
            }
        }
        (Sp::Admin, uid::TPER_INFO) => {
            for (_, value) in columns {
                state.programmatic_reset = flag(*value)?;
            }
        }
        (Sp::Admin, uid::DATA_REMOVAL) => {
            for (_, value) in columns {
                // Cryptographic erase (Opal 2.01, 4.2.8.1).
                state.data_removal =
                    u8::try_from(uint(*value)?).ok().filter(|it| *it == 2).ok_or(Status::InvalidParameter)?;
            }
        }
        (Sp::Locking, uid::ACE) => {
            for (_, value) in columns {
                state.locking.aces.insert(uid::row_of(object), expression(*value)?);
            }
        }
        (Sp::Locking, uid::LOCKING) => {
            let range = access::range(object).ok_or(Status::NotAuthorized)?;
            set_range(state, geometry, range, columns)?;
        }
        (Sp::Locking, uid::MBR_CONTROL) => {
            for (column, value) in columns {
                let mbr = &mut state.locking.mbr;
                match column {
                    1 => mbr.enable = flag(*value)?,
                    2 => mbr.done = flag(*value)?,
                    3 => mbr.done_on_reset = resets(*value)?,
                    _ => return Err(Status::NotAuthorized),
                }
            }
        }
        _ => return Err(Status::NotAuthorized),
    }
    Ok(())
}

fn set_range(state: &mut State, geometry: Geometry, number: u8, columns: &[(u8, Args<'_>)]) -> Outcome<()> {
    let ranges = &mut state.locking.ranges;
    let mut row = ranges.get(usize::from(number)).ok_or(Status::NotAuthorized)?.clone();
    let mut moved = false;
    for (column, value) in columns {
        match column {
            2 => row.common_name = common_name(value)?,
            // The global range is what the others leave.
            3 | 4 if number == 0 => return Err(Status::InvalidParameter),
            3 => (row.start, moved) = (uint(*value)?, true),
            4 => (row.length, moved) = (uint(*value)?, true),
            5 => row.read_lock_enabled = flag(*value)?,
            6 => row.write_lock_enabled = flag(*value)?,
            7 => row.read_locked = flag(*value)?,
            8 => row.write_locked = flag(*value)?,
            9 => row.lock_on_reset = resets(*value)?,
            _ => return Err(Status::NotAuthorized),
        }
    }
    if moved {
        let (start, length) = (row.start, row.length);
        let end = start.checked_add(length).filter(|end| *end <= geometry.blocks);
        let end = end.ok_or(Status::InvalidParameter)?;
        let aligned = |block: u64| block.is_multiple_of(geometry.alignment());
        // A range that ends with the drive need not end at a multiple.
        if !aligned(start) || !(aligned(length) || end == geometry.blocks) {
            return Err(Status::InvalidParameter);
        }
        let others = ranges.iter().enumerate().skip(1).filter(|(at, _)| *at != usize::from(number));
        let overlaps = |other: &super::state::Range| {
            length > 0 && other.length > 0 && start < other.start + other.length && other.start < end
        };
        if others.into_iter().any(|(_, other)| overlaps(other)) {
            return Err(Status::InvalidParameter);
        }
    }
    ranges[usize::from(number)] = row;
    Ok(())
}
