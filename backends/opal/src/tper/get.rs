//! Get, Next and GetACL (TCG Core 2.01, 5.3.3.6, 5.3.3.7 and 5.3.3.13).

use super::access;
use super::args::Args;
use super::objects;
use super::packet;
use super::status::{Outcome, Status};
use super::token::Writer;
use super::uid::method;
use super::{Tper, uid};

/// A Cellblock.
#[derive(Clone, Copy, Debug, Default)]
struct Cells {
    rows: (Option<u64>, Option<u64>),
    columns: (Option<u64>, Option<u64>),
}

impl Cells {
    fn read(args: &mut Args<'_>) -> Outcome<Self> {
        let mut cells = Self::default();
        let mut list = args.list()?;
        while let Some(mut named) = list.named()? {
            let name = named.uint()?;
            // The table (0) is named by invoking.
            let slot = match name {
                1 => &mut cells.rows.0,
                2 => &mut cells.rows.1,
                3 => &mut cells.columns.0,
                4 => &mut cells.columns.1,
                _ => return Err(Status::InvalidParameter),
            };
            if slot.replace(named.uint()?).is_some() {
                return Err(Status::InvalidParameter);
            }
            named.end()?;
        }
        list.end()?;
        Ok(cells)
    }
}

impl Tper {
    /// Get of a row, or of bytes.
    pub(super) fn get(&mut self, session: usize, object: u64, mut args: Args<'_>) -> Outcome<Writer> {
        let cells = Cells::read(&mut args)?;
        args.end()?;
        let sp = self.sessions[session].sp;
        let allowed = self.allowed(session, object, method::GET)?;
        if let Some(size) = objects::byte_table(&self.view(session).state, sp, object) {
            // Bytes have no columns of which some could be left out.
            if allowed == 0 {
                return Err(Status::NotAuthorized);
            }
            return self.get_bytes(session, object, size, cells);
        }
        if cells.rows != (None, None) {
            return Err(Status::InvalidParameter);
        }
        let (first, last) = (cells.columns.0.unwrap_or(0), cells.columns.1.unwrap_or(u64::MAX));
        if first > last {
            return Err(Status::InvalidParameter);
        }
        let columns = objects::columns(&self.view(session).state, self.geometry, sp, object)
            .ok_or(Status::NotAuthorized)?;
        let mut writer = Writer::default();
        writer.list(|results| {
            results.list(|list| {
                // What this session may not see is left out.
                let seen = columns.iter().filter(|(column, _)| {
                    (first..=last).contains(&u64::from(*column)) && allowed >> *column & 1 == 1
                });
                for (column, value) in seen {
                    list.named(|name| value.write(name.uint(u64::from(*column))));
                }
            });
        });
        Ok(writer)
    }

    fn get_bytes(&mut self, session: usize, table: u64, size: u64, cells: Cells) -> Outcome<Writer> {
        if cells.columns != (None, None) {
            return Err(Status::InvalidParameter);
        }
        let (first, last) = (cells.rows.0.unwrap_or(0), cells.rows.1.unwrap_or(size - 1));
        if first > last || last >= size {
            return Err(Status::InvalidParameter);
        }
        let len = last - first + 1;
        // Before so much is read; whether the whole answer fits is seen when it is there.
        if len > self.com.properties.response_limit().saturating_sub(packet::HEADERS) as u64 {
            return Err(Status::ResponseOverflow);
        }
        let mut bytes = vec![0; len as usize];
        self.read_table(session, table, first, &mut bytes)?;
        let mut writer = Writer::default();
        writer.list(|results| {
            results.bytes(&bytes);
        });
        Ok(writer)
    }

    /// Next: UIDs of a table's rows.
    pub(super) fn next(&mut self, session: usize, table: u64, mut args: Args<'_>) -> Outcome<Writer> {
        let (mut start, mut most) = (None, u64::MAX);
        while let Some(mut named) = args.named()? {
            match named.uint()? {
                0 => start = Some(named.uid()?),
                1 => most = named.uint()?,
                _ => return Err(Status::InvalidParameter),
            }
            named.end()?;
        }
        args.end()?;
        self.allowed(session, table, method::NEXT)?;
        let sp = self.sessions[session].sp;
        let rows = objects::rows(&self.view(session).state, sp, table).ok_or(Status::InvalidParameter)?;
        let from = match start {
            None => 0,
            Some(row) => rows.iter().position(|uid| *uid == row).ok_or(Status::InvalidParameter)? + 1,
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut writer = Writer::default();
        writer.list(|results| {
            results.list(|list| {
                for row in rows.iter().skip(from).take(most) {
                    list.uid(*row);
                }
            });
        });
        Ok(writer)
    }

    /// GetACL: the access control elements of a method on an object.
    pub(super) fn get_acl(&mut self, session: usize, mut args: Args<'_>) -> Outcome<Writer> {
        let (object, wanted) = (args.uid()?, args.uid()?);
        args.end()?;
        self.allowed(session, uid::ACCESS_CONTROL, method::GET_ACL)?;
        let (sp, locking) = (self.sessions[session].sp, &self.view(session).state.locking);
        let rows = access::acl(locking, sp, object, wanted).ok_or(Status::InvalidParameter)?;
        let mut writer = Writer::default();
        writer.list(|results| {
            results.list(|list| {
                for row in rows.iter().filter(|row| access::ace(locking, sp, **row).is_some()) {
                    list.uid(uid::ACE | u64::from(*row));
                }
            });
        });
        Ok(writer)
    }
}
