//! What tables hold: the rows of each, and the values in the columns of a row (TCG Core 2.01, 5.3.2, 5.4.2, 5.7.2; Opal
//! 2.01, 4.2 and 4.3). Columns that nobody can read (keys, PINs) do not exist here, but for the MSID.

use super::access::{self, Sp, Term};
use super::state::{ADMINS, Account, Holder, RANGES, Resets, State, USERS};
use super::token::Writer;
use super::uid::{self, method};
use crate::layout::{DATA_STORE_BYTES, Layout, MBR_BYTES};

/// What the drive says of its blocks.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Bytes in a block.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u64,
}

impl Geometry {
    /// Of a drive with this layout.
    pub fn of(layout: &Layout) -> Self {
        Self { block_size: layout.block_size, blocks: layout.blocks }
    }

    /// Ranges start and end at multiples of so many blocks: 4 KiB.
    pub fn alignment(&self) -> u64 {
        u64::from((4096 / self.block_size).max(1))
    }
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An integer or boolean.
    Uint(u64),
    /// Bytes, or a name.
    Bytes(Vec<u8>),
    /// The UID of an object.
    Uid(u64),
    /// Resets.
    Resets(Resets),
    /// A BooleanExpr.
    Expression(Vec<Term>),
    /// A list of names.
    Names(&'static [&'static str]),
}

impl Value {
    fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Bytes(text.as_ref().to_vec())
    }

    fn bool(value: bool) -> Self {
        Self::Uint(u64::from(value))
    }

    /// Writes it as a value of a Get.
    pub fn write(&self, writer: &mut Writer) {
        match self {
            Self::Uint(value) => writer.uint(*value),
            Self::Bytes(bytes) => writer.bytes(bytes),
            Self::Uid(uid) => writer.uid(*uid),
            Self::Resets(resets) => writer.list(|list| {
                if resets.power_cycle {
                    list.uint(0);
                }
                if resets.programmatic {
                    list.uint(3);
                }
            }),
            Self::Expression(terms) => writer.list(|list| {
                for term in terms {
                    list.named(|name| {
                        match term {
                            Term::Authority(authority) => {
                                name.bytes(&(uid::AUTHORITY_REF as u32).to_be_bytes()).uid(*authority)
                            }
                            Term::And | Term::Or => name
                                .bytes(&(uid::BOOLEAN_ACE as u32).to_be_bytes())
                                .uint(u64::from(*term == Term::Or)),
                        };
                    });
                }
            }),
            Self::Names(names) => writer.list(|list| {
                for name in *names {
                    list.bytes(name.as_bytes());
                }
            }),
        };
    }
}

/// A column and its value.
pub type Column = (u8, Value);

/// The tables of an SP: number (the upper half of the UID), name, whether it is a byte table.
fn tables(state: &State, sp: Sp) -> Vec<(u64, String, bool)> {
    let own: &[(u64, &str, bool)] = match sp {
        Sp::Admin => &[
            (uid::TPER_INFO, "TPerInfo", false),
            (uid::TEMPLATE, "Template", false),
            (uid::SP, "SP", false),
            (uid::DATA_REMOVAL, "DataRemovalMechanism", false),
        ],
        Sp::Locking => &[
            (uid::SECRET_PROTECT, "SecretProtect", false),
            (uid::LOCKING_INFO, "LockingInfo", false),
            (uid::LOCKING, "Locking", false),
            (uid::MBR_CONTROL, "MBRControl", false),
            (uid::MBR, "MBR", true),
            (uid::K_AES_256, "K_AES_256", false),
        ],
    };
    let common = [
        (uid::TABLE, "Table", false),
        (uid::SP_INFO, "SPInfo", false),
        (uid::SP_TEMPLATES, "SPTemplates", false),
        (uid::METHOD_ID, "MethodID", false),
        (uid::ACCESS_CONTROL, "AccessControl", false),
        (uid::ACE, "ACE", false),
        (uid::AUTHORITY, "Authority", false),
        (uid::C_PIN, "C_PIN", false),
    ];
    let fixed = common.iter().chain(own).map(|(table, name, bytes)| (*table, (*name).to_owned(), *bytes));
    let stores = if sp == Sp::Locking { state.locking.data_stores.len() as u64 } else { 0 };
    let stores = (0..stores).map(|number| {
        let name = if number == 0 { "DataStore".to_owned() } else { format!("DataStore{}", number + 1) };
        (uid::DATA_STORE + (number << 32), name, true)
    });
    fixed.chain(stores).collect()
}

const ADMIN_SP_METHODS: &[(u64, &str)] = &[
    (method::NEXT, "Next"),
    (method::GET_ACL, "GetACL"),
    (method::GET, "Get"),
    (method::SET, "Set"),
    (method::AUTHENTICATE, "Authenticate"),
    (method::REVERT, "Revert"),
    (method::ACTIVATE, "Activate"),
    (method::RANDOM, "Random"),
];

const LOCKING_METHODS: &[(u64, &str)] = &[
    (method::NEXT, "Next"),
    (method::GET_ACL, "GetACL"),
    (method::GEN_KEY, "GenKey"),
    (method::REVERT_SP, "RevertSP"),
    (method::GET, "Get"),
    (method::SET, "Set"),
    (method::AUTHENTICATE, "Authenticate"),
    (method::RANDOM, "Random"),
    (method::REACTIVATE, "Reactivate"),
    (method::ERASE, "Erase"),
];

fn methods(sp: Sp) -> &'static [(u64, &'static str)] {
    match sp {
        Sp::Admin => ADMIN_SP_METHODS,
        Sp::Locking => LOCKING_METHODS,
    }
}

/// Authorities that have a PIN.
fn holders(sp: Sp) -> Vec<Holder> {
    match sp {
        Sp::Admin => vec![Holder::Sid, Holder::AdminSpAdmin, Holder::Psid],
        Sp::Locking => (1..=ADMINS).map(Holder::Admin).chain((1..=USERS).map(Holder::User)).collect(),
    }
}

/// The rows of a table, in ascending order, by UID; `None` if the SP has no such table, or only its own (a byte table).
pub fn rows(state: &State, sp: Sp, table: u64) -> Option<Vec<u64>> {
    let mut rows = match (sp, table) {
        (_, uid::TABLE) => {
            tables(state, sp).into_iter().map(|(table, ..)| uid::TABLE | table >> 32).collect()
        }
        (_, uid::SP_INFO) => vec![uid::SP_INFO | 1],
        (Sp::Admin, uid::SP_TEMPLATES) => vec![table | 1, table | 2],
        (Sp::Locking, uid::SP_TEMPLATES) => vec![table | 1, table | 2],
        (_, uid::METHOD_ID) => methods(sp).iter().map(|(method, _)| *method).collect(),
        (_, uid::ACE) => {
            access::aces(&state.locking, sp).into_iter().map(|row| uid::ACE | u64::from(row)).collect()
        }
        (Sp::Admin, uid::AUTHORITY) => {
            vec![uid::ANYBODY, uid::ADMINS, uid::MAKERS, uid::SID, uid::ADMIN_SP_ADMIN, uid::PSID]
        }
        (Sp::Locking, uid::AUTHORITY) => {
            let mut rows = vec![uid::ANYBODY, uid::ADMINS, uid::USERS];
            rows.extend(holders(sp).into_iter().map(access::authority));
            rows
        }
        (_, uid::C_PIN) => {
            let mut rows: Vec<u64> = holders(sp).into_iter().map(access::pin_of).collect();
            if sp == Sp::Admin {
                rows.push(uid::C_PIN_MSID);
            }
            rows
        }
        (Sp::Admin, uid::TPER_INFO) => vec![uid::TPER_INFO_ROW],
        (Sp::Admin, uid::TEMPLATE) => vec![table | 1, table | 2, table | 6],
        (Sp::Admin, uid::SP) => vec![uid::ADMIN_SP, uid::LOCKING_SP],
        (Sp::Admin, uid::DATA_REMOVAL) => vec![table | 1],
        (Sp::Locking, uid::SECRET_PROTECT) => vec![table | 0x1D],
        (Sp::Locking, uid::LOCKING_INFO | uid::MBR_CONTROL) => vec![table | 1],
        (Sp::Locking, uid::LOCKING) => (0..RANGES).map(range_uid).collect(),
        (Sp::Locking, uid::K_AES_256) => (0..RANGES).map(key_uid).collect(),
        _ => return None,
    };
    rows.sort_unstable();
    Some(rows)
}

fn range_uid(range: u8) -> u64 {
    if range == 0 { uid::GLOBAL_RANGE } else { uid::RANGE | u64::from(range) }
}

fn key_uid(range: u8) -> u64 {
    if range == 0 { uid::GLOBAL_KEY } else { uid::KEY | u64::from(range) }
}

/// The size of a byte table in bytes.
pub fn byte_table(state: &State, sp: Sp, table: u64) -> Option<u64> {
    match (sp, table) {
        (Sp::Locking, uid::MBR) => Some(MBR_BYTES),
        (Sp::Locking, _) => {
            access::data_store(&state.locking, table).and_then(|n| state.locking.data_stores.get(n)).copied()
        }
        (Sp::Admin, _) => None,
    }
}

/// All readable columns of a row, in ascending order.
pub fn columns(state: &State, geometry: Geometry, sp: Sp, row: u64) -> Option<Vec<Column>> {
    let table = uid::table_of(row);
    if !rows(state, sp, table)?.contains(&row) {
        return None;
    }
    let number = uid::row_of(row);
    let mut columns = match table {
        uid::TABLE => table_row(state, sp, u64::from(number) << 32)?,
        uid::SP_INFO => sp_info(sp),
        uid::SP_TEMPLATES => {
            let (template, name) = match (number, sp) {
                (1, _) => (uid::TEMPLATE | 1, "Base"),
                (_, Sp::Admin) => (uid::TEMPLATE | 2, "Admin"),
                (_, Sp::Locking) => (uid::TEMPLATE | 6, "Locking"),
            };
            vec![(1, Value::Uid(template)), (2, Value::text(name)), (3, Value::Bytes(vec![0, 0, 0, 2]))]
        }
        uid::METHOD_ID => {
            let (_, name) = methods(sp).iter().find(|(method, _)| *method == row)?;
            vec![(1, Value::text(name)), (2, Value::text("")), (3, Value::Uid(uid::TEMPLATE | 1))]
        }
        uid::ACE => {
            let ace = access::ace(&state.locking, sp, number)?;
            vec![
                (1, Value::text("")),
                (2, Value::text("")),
                (3, Value::Expression(ace.expression)),
                (4, ace_columns(ace.columns)),
            ]
        }
        uid::AUTHORITY => authority(state, row),
        uid::C_PIN => pin(state, row)?,
        uid::TPER_INFO => vec![
            (3, Value::Uint(1)),
            (4, Value::Uint(1)),
            (5, Value::Uint(1)),
            (6, Value::Uint(0)),
            (7, Value::Names(&["Opal"])),
            (8, Value::bool(state.programmatic_reset)),
        ],
        uid::TEMPLATE => {
            let (name, instances) = match number {
                1 => ("Base", 2),
                2 => ("Admin", 1),
                _ => ("Locking", 1),
            };
            vec![
                (1, Value::text(name)),
                (2, Value::Uint(1)),
                (3, Value::Uint(instances)),
                (4, Value::Uint(instances)),
            ]
        }
        uid::SP => {
            let (name, life_cycle) = match row {
                uid::ADMIN_SP => ("Admin", 9),
                _ => ("Locking", if state.locking.active { 9 } else { 8 }),
            };
            vec![(1, Value::text(name)), (6, Value::Uint(life_cycle)), (7, Value::Uint(0))]
        }
        uid::DATA_REMOVAL => vec![(1, Value::Uint(u64::from(state.data_removal)))],
        uid::SECRET_PROTECT => {
            vec![(1, Value::Uid(uid::K_AES_256)), (2, Value::Uint(3)), (3, Value::Uint(1))]
        }
        uid::LOCKING_INFO => vec![
            (1, Value::text("")),
            (2, Value::Uint(1)),
            (3, Value::Uint(1)),
            (4, Value::Uint(u64::from(RANGES) - 1)),
            (7, Value::Uint(1)),
            (8, Value::Uint(u64::from(geometry.block_size))),
            (9, Value::Uint(geometry.alignment())),
            (10, Value::Uint(0)),
        ],
        uid::LOCKING => range(state, access::range(row)?)?,
        uid::MBR_CONTROL => {
            let mbr = &state.locking.mbr;
            vec![
                (1, Value::bool(mbr.enable)),
                (2, Value::bool(mbr.done)),
                (3, Value::Resets(mbr.done_on_reset)),
            ]
        }
        // 7: XTS (Core 5.1.3.70, symmetric_mode_media).
        uid::K_AES_256 => vec![(1, Value::text("")), (2, Value::text("")), (4, Value::Uint(7))],
        _ => return None,
    };
    columns.insert(0, (0, Value::Uid(row)));
    Some(columns)
}

/// Columns of an ACE as a list of numbers; all of them are the empty list (Core 5.3.2.9.5).
fn ace_columns(columns: u32) -> Value {
    if columns == u32::MAX {
        return Value::Bytes(Vec::new());
    }
    Value::Bytes((0..32_u8).filter(|column| columns >> column & 1 == 1).collect())
}

fn table_row(state: &State, sp: Sp, table: u64) -> Option<Vec<Column>> {
    let (_, name, is_bytes) = tables(state, sp).into_iter().find(|(number, ..)| *number == table)?;
    let count = match is_bytes {
        true => byte_table(state, sp, table)?,
        false => rows(state, sp, table).map_or(0, |rows| rows.len() as u64),
    };
    let mut columns = vec![
        (1, Value::text(name)),
        (2, Value::text("")),
        (4, Value::Uint(if is_bytes { 2 } else { 1 })),
        (7, Value::Uint(count)),
        (8, Value::Uint(0)),
        (11, Value::Uint(count)),
        (12, Value::Uint(count)),
    ];
    // Bytes that a write covers at least, and does best in multiples of (Opal 2.01, 5.3); 0 for object tables.
    let granularity = |best| if is_bytes { best } else { 0 };
    columns.push((13, Value::Uint(granularity(1))));
    columns.push((14, Value::Uint(granularity(4096))));
    Some(columns)
}

fn sp_info(sp: Sp) -> Vec<Column> {
    let (own, name) = match sp {
        Sp::Admin => (uid::ADMIN_SP, "Admin"),
        Sp::Locking => (uid::LOCKING_SP, "Locking"),
    };
    vec![
        (1, Value::Uid(own)),
        (2, Value::text(name)),
        (5, Value::Uint(super::session::DEFAULT_TIMEOUT_MS)),
        (6, Value::Uint(1)),
    ]
}

fn authority(state: &State, row: u64) -> Vec<Column> {
    let holder = access::holder(row);
    let account = holder.and_then(|holder| state.account(holder));
    let (class, name) = match row {
        uid::ANYBODY => (0, "Anybody".to_owned()),
        uid::ADMINS => (0, "Admins".to_owned()),
        uid::MAKERS => (0, "Makers".to_owned()),
        uid::USERS => (0, "Users".to_owned()),
        _ => match holder {
            Some(Holder::Sid) => (0, "SID".to_owned()),
            Some(Holder::Psid) => (0, "PSID".to_owned()),
            Some(Holder::AdminSpAdmin) => (uid::ADMINS, "Admin1".to_owned()),
            Some(Holder::Admin(number)) => (uid::ADMINS, format!("Admin{number}")),
            Some(Holder::User(number)) => (uid::USERS, format!("User{number}")),
            None => (0, String::new()),
        },
    };
    let is_class = matches!(row, uid::ADMINS | uid::MAKERS | uid::USERS);
    let common_name = account.map(|account| account.common_name.clone()).unwrap_or_default();
    let enabled = account.map_or(row != uid::MAKERS, |account| account.enabled);
    vec![
        (1, Value::text(name)),
        (2, Value::Bytes(common_name)),
        (3, Value::bool(is_class)),
        (4, Value::Uid(class)),
        (5, Value::bool(enabled)),
        (6, Value::Uint(0)),
        (7, Value::Uint(0)),
        (8, Value::bool(false)),
        // 1: Password; 0: None (Core 5.1.3.12, auth_method).
        (9, Value::bool(holder.is_some())),
        (10, Value::Uid(holder.map_or(0, access::pin_of))),
        (11, Value::Uid(0)),
        (12, Value::Uid(0)),
    ]
}

fn pin(state: &State, row: u64) -> Option<Vec<Column>> {
    if row == uid::C_PIN_MSID {
        return Some(vec![
            (1, Value::text("C_PIN_MSID")),
            (3, Value::Bytes(state.msid.clone())),
            (4, Value::Uid(0)),
            (5, Value::Uint(0)),
            (6, Value::Uint(0)),
            (7, Value::bool(false)),
        ]);
    }
    let holder = access::pin_holder(row)?;
    let (name, limit, tries, persistence) = match state.account(holder) {
        Some(Account { credential, .. }) => {
            let name = match holder {
                Holder::Sid => "C_PIN_SID".to_owned(),
                Holder::Admin(number) => format!("C_PIN_Admin{number}"),
                Holder::User(number) => format!("C_PIN_User{number}"),
                _ => "C_PIN_Admin1".to_owned(),
            };
            (name, credential.try_limit, credential.tries, credential.persistence)
        }
        None => ("C_PIN_PSID".to_owned(), super::authenticate::PSID_TRY_LIMIT, state.psid_tries, false),
    };
    Some(vec![
        (1, Value::text(name)),
        (2, Value::text("")),
        (4, Value::Uid(0)),
        (5, Value::Uint(u64::from(limit))),
        (6, Value::Uint(u64::from(tries))),
        (7, Value::bool(persistence)),
    ])
}

fn range(state: &State, range: u8) -> Option<Vec<Column>> {
    let row = state.locking.ranges.get(usize::from(range))?;
    let name = if range == 0 { "Locking_GlobalRange".to_owned() } else { format!("Locking_Range{range}") };
    Some(vec![
        (1, Value::text(name)),
        (2, Value::Bytes(row.common_name.clone())),
        (3, Value::Uint(row.start)),
        (4, Value::Uint(row.length)),
        (5, Value::bool(row.read_lock_enabled)),
        (6, Value::bool(row.write_lock_enabled)),
        (7, Value::bool(row.read_locked)),
        (8, Value::bool(row.write_locked)),
        (9, Value::Resets(row.lock_on_reset)),
        (10, Value::Uid(key_uid(range))),
    ])
}

/// Where a byte table lies in the area of its kind: bytes from its start on.
pub fn data_store_offset(state: &State, number: usize) -> u64 {
    state.locking.data_stores.iter().take(number).sum::<u64>().min(DATA_STORE_BYTES)
}
