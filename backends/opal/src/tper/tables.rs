//! Byte tables: the MBR and DataStore tables, whose bytes lie on the medium (TCG Core 2.01, 5.3.2.2; Opal 2.01, 4.3.5.4 and
//! 4.3.8.1). What a transaction writes is kept in memory until it is committed.

use std::sync::Arc;

use super::status::{Outcome, Status};
use super::{Area, Tper, access, keyring, objects, uid};

/// Bytes that one transaction can write.
const MAX_STAGED: usize = 1 << 20;

/// Writes of a transaction, in order.
#[derive(Default)]
pub struct Staged {
    writes: Vec<(Area, u64, Vec<u8>)>,
    bytes: usize,
}

impl Staged {
    fn add(&mut self, area: Area, offset: u64, data: &[u8]) -> Outcome<()> {
        self.bytes += data.len() + 64;
        if self.bytes > MAX_STAGED {
            return Err(Status::InsufficientSpace);
        }
        self.writes.push((area, offset, data.to_vec()));
        Ok(())
    }

    /// Lays the writes over bytes that were read.
    fn over(&self, area: Area, offset: u64, bytes: &mut [u8]) {
        for (_, start, data) in self.writes.iter().filter(|(of, ..)| *of == area) {
            for (at, byte) in data.iter().enumerate() {
                let place = (start + at as u64).checked_sub(offset);
                if let Some(slot) = place.and_then(|place| bytes.get_mut(place as usize)) {
                    *slot = *byte;
                }
            }
        }
    }
}

impl Tper {
    /// Where a table's byte `offset` lies.
    fn place(&self, session: usize, table: u64, offset: u64) -> Outcome<(Area, u64)> {
        if table == uid::MBR {
            return Ok((Area::Mbr, offset));
        }
        let state = &self.view(session).state;
        let number = access::data_store(&state.locking, table).ok_or(Status::NotAuthorized)?;
        Ok((Area::DataStore, objects::data_store_offset(state, number) + offset))
    }

    pub(super) fn is_in_transaction(&self, session: usize) -> bool {
        let tsn = self.sessions[session].tsn;
        self.transaction.as_ref().is_some_and(|transaction| transaction.tsn == tsn)
    }

    /// Reads bytes of a table, within its size.
    pub(super) fn read_table(
        &mut self,
        session: usize,
        table: u64,
        offset: u64,
        bytes: &mut [u8],
    ) -> Outcome<()> {
        let (area, offset) = self.place(session, table, offset)?;
        self.medium.read(area, &self.tables_key, offset, bytes)?;
        if self.is_in_transaction(session)
            && let Some(transaction) = &self.transaction
        {
            transaction.staged.over(area, offset, bytes);
        }
        Ok(())
    }

    /// Writes bytes of a table, within its size.
    pub(super) fn write_table(
        &mut self,
        session: usize,
        table: u64,
        offset: u64,
        data: &[u8],
    ) -> Outcome<()> {
        let (area, offset) = self.place(session, table, offset)?;
        if !self.view(session).state.locking.tables_used {
            // Said before the first byte is there, so that a revert knows of it.
            self.change(session, false, |live, _| {
                live.state.locking.tables_used = true;
                Ok(())
            })?;
        }
        if self.is_in_transaction(session)
            && let Some(transaction) = &mut self.transaction
        {
            return transaction.staged.add(area, offset, data);
        }
        Ok(self.medium.write(area, &self.tables_key, offset, data)?)
    }

    /// Writes what a transaction has committed.
    pub(super) fn write_staged(&mut self, staged: Staged) -> Outcome<()> {
        for (area, offset, data) in staged.writes {
            self.medium.write(area, &self.tables_key, offset, &data)?;
        }
        Ok(())
    }

    /// The tables may have a new key.
    pub(super) fn refresh_tables_key(&mut self) -> Outcome<()> {
        let key = keyring::open_tables_key(&self.local, &self.live.state.locking.tables_key)?;
        if key.bytes() != self.tables_key.bytes() {
            self.tables_key = Arc::new(key);
        }
        Ok(())
    }

    /// After the tables were given a new key: wipes what is of the old one. Done again at the next start if it does not come
    /// to its end. In a transaction it waits for that.
    pub(super) fn finish_tables(&mut self) -> Outcome<()> {
        self.refresh_tables_key()?;
        if self.live.state.locking.tables_stale {
            self.medium.wipe()?;
            let mut live = self.live.clone();
            live.state.locking.tables_stale = false;
            self.commit(live, false)?;
        }
        Ok(())
    }
}
