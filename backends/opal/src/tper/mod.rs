//! The TPer: a TCG Opal 2 security subsystem (TCG Core 2.01; Opal SSC 2.01, with the feature sets Additional DataStore Tables,
//! Single User Mode, PSID, Block SID). Pure: it does no I/O and knows no time but what it is told; what it keeps goes to its
//! [`Medium`], and commands come by [`Tper::send`] and [`Tper::receive`].
//!
//! What it leaves out: issuance of SPs, certificates and signing authorities, clocks, logs, re-encryption; none is in Opal.

mod access;
mod args;
mod authenticate;
mod comid;
pub mod credential;
mod discovery;
mod get;
mod keyring;
mod lifecycle;
mod objects;
mod packet;
mod properties;
mod session;
mod set;
pub mod state;
mod status;
mod tables;
mod token;
mod uid;

use std::sync::Arc;
use std::time::Instant;

use block::security::SecurityError;
use zeroize::Zeroizing;

use crate::crypto::kdf::Cost;
use crate::crypto::seal;
use crate::crypto::xts::XtsKey;
use crate::layout::Layout;
use crate::{Extent, RangeMap};

use access::Sp;
use args::Call;
use comid::Com;
use credential::LocalKeys;
use keyring::Keyring;
use objects::Geometry;
use session::Session;
use state::{RANGES, State};
use status::{Outcome, Status};
use tables::Staged;
use token::{Reader, Token, Writer};
use uid::method;

/// Where the TPer keeps what outlives a power cycle.
pub trait Medium {
    /// Makes `state` durable in place of the one before. `destroys`: nothing of the one before may be left.
    fn commit(&mut self, state: &State, destroys: bool) -> Result<(), MediumError>;

    /// Reads bytes of the byte tables' area, from its `offset` on.
    fn read(&mut self, table: Area, key: &XtsKey, offset: u64, bytes: &mut [u8]) -> Result<(), MediumError>;

    /// Writes bytes of the byte tables' area; they are durable then.
    fn write(&mut self, table: Area, key: &XtsKey, offset: u64, bytes: &[u8]) -> Result<(), MediumError>;

    /// Makes both areas read as zeroes.
    fn wipe(&mut self) -> Result<(), MediumError>;
}

/// An area for byte tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The MBR table.
    Mbr,
    /// The DataStore tables, one after the other.
    DataStore,
}

/// The medium does not do what was asked; the cause is in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediumError;

impl From<MediumError> for Status {
    fn from(_: MediumError) -> Self {
        Self::TperMalfunction
    }
}

/// Tables, and the keys that belong to them.
#[derive(Clone, Debug)]
pub struct Live {
    /// What is kept.
    pub state: State,
    /// What is in memory only.
    pub keys: Keyring,
}

/// Changes that are not committed yet.
struct Transaction {
    tsn: u32,
    live: Live,
    destroys: bool,
    staged: Staged,
}

/// What resets locks and sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The drive lost its power.
    PowerCycle,
    /// The controller or its function was reset: sessions end. `hardware`: what "hardware reset" means to Block SID.
    Controller {
        /// The function was reset.
        hardware: bool,
    },
}

/// The TPer.
pub struct Tper {
    live: Live,
    tables_key: Arc<XtsKey>,
    local: LocalKeys,
    medium: Box<dyn Medium>,
    geometry: Geometry,
    cost: Cost,
    sessions: Vec<Session>,
    last_tsn: Option<u32>,
    transaction: Option<Transaction>,
    com: Com,
    /// Block SID: whether a hardware reset ends it.
    sid_blocked: Option<bool>,
    revision: u64,
}

impl Tper {
    /// A drive as it leaves the factory. Nothing is on the medium yet: [`Tper::start`] brings it there.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn factory(local: &LocalKeys) -> Result<State, MediumError> {
        lifecycle::factory(local).map(|live| live.state).map_err(|_| MediumError)
    }

    /// A drive with this state, after a power cycle.
    ///
    /// # Errors
    /// Keys do not open, or the medium does not take the state.
    pub fn start(
        state: State,
        local: LocalKeys,
        medium: Box<dyn Medium>,
        layout: &Layout,
        cost: Cost,
    ) -> Result<Self, MediumError> {
        let tables_key = keyring::open_tables_key(&local, &state.locking.tables_key);
        let mut tper = Self {
            live: Live { state, keys: Keyring::default() },
            tables_key: Arc::new(tables_key.map_err(|_| MediumError)?),
            local,
            medium,
            geometry: Geometry::of(layout),
            cost,
            sessions: Vec::new(),
            last_tsn: None,
            transaction: None,
            com: Com::default(),
            sid_blocked: None,
            revision: 0,
        };
        tper.power_cycle()?;
        tper.finish_tables().map_err(|_| MediumError)?;
        Ok(tper)
    }

    /// The drive has another size.
    pub fn resize(&mut self, layout: &Layout) {
        self.geometry = Geometry::of(layout);
    }

    /// The PIN on the label.
    ///
    /// # Errors
    /// INTERNAL: the state does not belong to this device key.
    pub fn psid(&self) -> Outcome<Zeroizing<String>> {
        let bytes = seal::open(&self.local.open, lifecycle::PSID_CONTEXT, &self.live.state.psid);
        let text = String::from_utf8(bytes.map_err(|_| Status::TperMalfunction)?.to_vec());
        text.map(Zeroizing::new).map_err(|_| Status::TperMalfunction)
    }

    /// What is kept, for who wants to look at it.
    pub fn state(&self) -> &State {
        &self.live.state
    }

    /// Whether Block SID is in force.
    pub fn is_sid_blocked(&self) -> bool {
        self.sid_blocked.is_some()
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Which blocks are locked, and which key each has.
    pub fn map(&self) -> RangeMap {
        let locking = &self.live.state.locking;
        let extent = |range: u8, end: u64| {
            let row = &locking.ranges[usize::from(range)];
            let (read_locked, write_locked) = row.locks();
            let key = self.live.keys.get(range).cloned();
            // Without a key there is nothing to read or write.
            let missing = key.is_none();
            Extent { end, read_locked: read_locked || missing, write_locked: write_locked || missing, key }
        };
        let mut set_up: Vec<u8> =
            (1..RANGES).filter(|range| locking.ranges[usize::from(*range)].length > 0).collect();
        set_up.sort_by_key(|range| locking.ranges[usize::from(*range)].start);
        let (mut extents, mut at) = (Vec::new(), 0);
        for range in set_up {
            let row = &locking.ranges[usize::from(range)];
            if row.start > at {
                extents.push(extent(0, row.start));
            }
            at = row.start + row.length;
            extents.push(extent(range, at));
        }
        extents.push(extent(0, u64::MAX));
        let is_shadowed = locking.active && locking.mbr.enable && !locking.mbr.done;
        RangeMap { extents, shadow: is_shadowed.then(|| self.tables_key.clone()) }
    }

    /// Security Send.
    ///
    /// # Errors
    /// As NVMe has them; nothing has changed then.
    pub fn send(
        &mut self,
        protocol: u8,
        specific: u16,
        data: &[u8],
        now: Instant,
    ) -> Result<(), SecurityError> {
        comid::check_length(data.len())?;
        match (protocol, specific) {
            (1, comid::COM_ID) => {
                self.com.begin(now)?;
                self.end_sessions(|session| session.is_expired(now));
                let answer = self.com_packet(data, now);
                self.com.answer(&answer, now);
                Ok(())
            }
            (2, comid::COM_ID) => {
                if self.com.manage(data)? {
                    self.end_sessions(|_| true);
                }
                Ok(())
            }
            (2, comid::TPER_RESET) if self.live.state.programmatic_reset && !data.is_empty() => {
                self.programmatic_reset().map_err(|_| SecurityError::Internal)
            }
            (2, comid::BLOCK_SID) => match data.first() {
                // With a PIN of its own the SID needs no such protection (Block SID 1.00, 4.3.1).
                Some(clear) if self.live.state.sid.credential.is_msid() && self.sid_blocked.is_none() => {
                    self.sid_blocked = Some(clear & 1 == 1);
                    Ok(())
                }
                _ => Err(SecurityError::InvalidField),
            },
            _ => Err(SecurityError::InvalidField),
        }
    }

    /// Security Receive of at most `len` bytes.
    ///
    /// # Errors
    /// As NVMe has them.
    pub fn receive(&mut self, protocol: u8, specific: u16, len: u32) -> Result<Vec<u8>, SecurityError> {
        let mut data = match (protocol, specific) {
            // Supported protocols (SPC-5, 7.7.1.3).
            (0, 0) => vec![0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 2],
            // No certificate (SPC-5, 7.7.1.4).
            (0, 1) => vec![0; 4],
            (1, comid::DISCOVERY) => {
                let condition = discovery::Condition { com_id: comid::COM_ID, sid_blocked: self.sid_blocked };
                discovery::discovery(&self.live.state, self.geometry, &condition)
            }
            (1, comid::COM_ID) => self.com.fetch(len),
            (2, comid::COM_ID | 0) => self.com.fetch_managed(),
            _ => return Err(SecurityError::InvalidField),
        };
        data.truncate(len as usize);
        Ok(data)
    }

    /// Something was reset.
    ///
    /// # Errors
    /// The medium did not take what changed. Locks are in force all the same.
    pub fn reset(&mut self, reset: Reset) -> Result<(), MediumError> {
        self.end_sessions(|_| true);
        self.com.reset();
        match reset {
            Reset::PowerCycle => self.power_cycle(),
            Reset::Controller { hardware } => {
                if hardware && self.sid_blocked == Some(true) {
                    self.sid_blocked = None;
                }
                Ok(())
            }
        }
    }

    fn power_cycle(&mut self) -> Result<(), MediumError> {
        self.sid_blocked = None;
        self.lock(
            |resets| resets.power_cycle,
            |state| {
                state.psid_tries = 0;
                for account in state.accounts_mut() {
                    if !account.credential.persistence {
                        account.credential.tries = 0;
                    }
                }
            },
        )
    }

    fn programmatic_reset(&mut self) -> Result<(), MediumError> {
        self.end_sessions(|_| true);
        self.com.reset();
        self.lock(|resets| resets.programmatic, |_| {})
    }

    /// Locks what a reset locks.
    fn lock(
        &mut self,
        applies: impl Fn(&state::Resets) -> bool,
        besides: impl FnOnce(&mut State),
    ) -> Result<(), MediumError> {
        let mut live = self.live.clone();
        for range in &mut live.state.locking.ranges {
            if applies(&range.lock_on_reset) {
                range.read_locked |= range.read_lock_enabled;
                range.write_locked |= range.write_lock_enabled;
            }
        }
        let mbr = &mut live.state.locking.mbr;
        if applies(&mbr.done_on_reset) {
            mbr.done = false;
        }
        besides(&mut live.state);
        let settled = keyring::settle(&mut live.state, &mut live.keys, &self.local, &[]);
        if settled.is_err() {
            live.keys.clear(); // whatever has no key is locked
        }
        // In force before it is durable: to lock takes nothing away that could be missed.
        self.live = live.clone();
        self.revision += 1;
        self.commit(live, settled.map_err(|_| MediumError)?)
    }

    /// Makes `live` durable and the one in force.
    fn commit(&mut self, live: Live, destroys: bool) -> Result<(), MediumError> {
        self.medium.commit(&live.state, destroys)?;
        self.live = live;
        self.revision += 1;
        Ok(())
    }

    /// Counts changes of what [`Tper::map`] may depend on.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What a session sees: what its transaction has made of it.
    fn view(&self, session: usize) -> &Live {
        let tsn = self.sessions[session].tsn;
        match &self.transaction {
            Some(transaction) if transaction.tsn == tsn => &transaction.live,
            _ => &self.live,
        }
    }

    /// Changes tables and keys: durable when this returns, or part of the session's transaction. `destroys`: secrets go.
    fn change(
        &mut self,
        session: usize,
        destroys: bool,
        change: impl FnOnce(&mut Live, &LocalKeys) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut live = self.view(session).clone();
        change(&mut live, &self.local)?;
        let secrets = &self.sessions[session].secrets;
        let destroys = keyring::settle(&mut live.state, &mut live.keys, &self.local, secrets)? || destroys;
        let tsn = self.sessions[session].tsn;
        match &mut self.transaction {
            Some(transaction) if transaction.tsn == tsn => {
                transaction.live = live;
                transaction.destroys |= destroys;
                Ok(())
            }
            // What it works on would be lost, or undo this.
            Some(_) => Err(Status::SpBusy),
            None => Ok(self.commit(live, destroys)?),
        }
    }

    /// The columns that a session may reach by a method on an object.
    fn allowed(&self, session: usize, object: u64, wanted: u64) -> Outcome<u32> {
        let (locking, who) = (&self.view(session).state.locking, &self.sessions[session]);
        let rows = access::acl(locking, who.sp, object, wanted).ok_or(Status::NotAuthorized)?;
        let (mut columns, mut is_let_in) = (0, false);
        for ace in rows.into_iter().filter_map(|row| access::ace(locking, who.sp, row)) {
            if access::lets_in(&ace.expression, &who.holders) {
                is_let_in = true;
                columns |= ace.columns;
            }
        }
        // A Get of which nothing may be seen is empty; anything else needs somebody's leave.
        if is_let_in || wanted == method::GET { Ok(columns) } else { Err(Status::NotAuthorized) }
    }

    /// Only read-write sessions change anything.
    fn writable(&self, session: usize) -> Outcome<()> {
        if self.sessions[session].write { Ok(()) } else { Err(Status::NotAuthorized) }
    }

    /// A ComPacket of the host: the streams of the answer, each with its session.
    fn com_packet(&mut self, data: &[u8], now: Instant) -> Vec<(u32, u32, Vec<u8>)> {
        if packet::com_id(data) != Some((comid::COM_ID, 0)) {
            return Vec::new();
        }
        let Ok(packets) = packet::packets(data) else { return Vec::new() };
        // MaxPackets is 1.
        let Some(packet) = packets.first() else { return Vec::new() };
        let stream = packet.payload.stream();
        let answer = match (packet.tsn, packet.hsn) {
            (0, 0) => {
                let mut reader = Reader::new(&stream);
                match reader.next() {
                    Ok(Some(Token::Call)) => {
                        Call::read(&mut reader).ok().and_then(|call| self.manage(&call, now))
                    }
                    _ => None,
                }
                .map(|stream| (0, 0, stream))
            }
            (tsn, hsn) => self
                .sessions
                .iter()
                .position(|session| (session.tsn, session.hsn) == (tsn, hsn))
                .map(|session| self.in_session(session, &stream, now)),
        };
        answer.into_iter().filter(|(.., stream)| !stream.is_empty()).collect()
    }

    /// The stream of a session: the answer, in the session or of the session manager.
    fn in_session(&mut self, session: usize, stream: &[u8], now: Instant) -> (u32, u32, Vec<u8>) {
        let (tsn, hsn) = (self.sessions[session].tsn, self.sessions[session].hsn);
        self.sessions[session].used = now;
        let (mut reader, mut writer) = (Reader::new(stream), Writer::default());
        let mut is_over = false;
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(Token::Call)) => match Call::read(&mut reader) {
                    Ok(call) => is_over = self.call(session, call, &mut writer),
                    // Where the call ends nobody knows: what follows is not looked at.
                    Err(status) => {
                        refuse(&mut writer, status);
                        break;
                    }
                },
                Ok(Some(Token::StartTransaction)) => {
                    let status = transaction_status(&mut reader)
                        .and_then(|_| self.start_transaction(session))
                        .map_or_else(|status| status as u64, |()| 0);
                    writer.control(0xFB).uint(status);
                }
                Ok(Some(Token::EndTransaction)) => {
                    let ended = transaction_status(&mut reader)
                        .and_then(|status| self.end_transaction(session, status == 0));
                    writer.control(0xFC).uint(ended.map_or_else(|status| status as u64, |()| 0));
                }
                // Whatever follows is ignored.
                Ok(Some(Token::EndOfSession)) => {
                    writer.control(0xFA);
                    is_over = true;
                }
                // No call, and nothing that a stream has between calls: the session is aborted (Core 3.2.2.4).
                Ok(Some(_)) | Err(_) => {
                    self.end_sessions(|session| session.tsn == tsn);
                    return (0, 0, session::close_session(hsn, tsn));
                }
            }
            if is_over {
                break;
            }
        }
        if is_over {
            self.end_sessions(|session| session.tsn == tsn);
        } else if let Some(session) = self.sessions.iter_mut().find(|session| session.tsn == tsn) {
            session.used = now.max(Instant::now());
        }
        (tsn, hsn, writer.into_bytes())
    }

    /// A method call. Returns whether the session is over.
    fn call(&mut self, session: usize, call: Call<'_>, writer: &mut Writer) -> bool {
        let result = self.invoke(session, call);
        let own = self.sessions[session].tsn;
        match result {
            Ok(results) => {
                let stream = writer.len() + results.len() + STATUS;
                let len = stream.next_multiple_of(4) + packet::HEADERS;
                if len > self.com.properties.response_limit() {
                    refuse(writer, Status::ResponseOverflow);
                    return false;
                }
                writer.append(&results).status(0);
                match Self::ended_by(call.method, call.invoking) {
                    Some(sp) => self.end_sessions(|other| other.sp == sp && other.tsn != own),
                    None if call.method == method::REVERT => self.end_sessions(|other| other.tsn != own),
                    None => return false,
                }
                call.method != method::REVERT || call.invoking == uid::ADMIN_SP
            }
            Err(status) => {
                refuse(writer, status);
                false
            }
        }
    }

    fn invoke(&mut self, session: usize, call: Call<'_>) -> Outcome<Writer> {
        let Call { invoking, method: wanted, args } = call;
        let own = match self.sessions[session].sp {
            Sp::Admin => uid::ADMIN_SP,
            Sp::Locking => uid::LOCKING_SP,
        };
        // An SP goes by its own name, too, where methods are the SP's.
        let object = match wanted {
            method::AUTHENTICATE | method::RANDOM | method::REVERT_SP | method::REACTIVATE
                if invoking == own =>
            {
                uid::THIS_SP
            }
            _ => invoking,
        };
        let done = |outcome: Outcome<()>| {
            outcome.map(|()| {
                let mut writer = Writer::default();
                writer.list(|_| {});
                writer
            })
        };
        let ends_session = matches!(wanted, method::REVERT | method::REVERT_SP | method::REACTIVATE);
        if ends_session && self.is_in_transaction(session) {
            return Err(Status::Fail); // the end of the session would take it back
        }
        match wanted {
            method::GET => self.get(session, object, args),
            method::NEXT => self.next(session, object, args),
            method::GET_ACL if object == uid::ACCESS_CONTROL => self.get_acl(session, args),
            method::RANDOM => self.random(session, object, args),
            method::AUTHENTICATE => self.authenticate_more(session, object, args),
            method::SET => done(self.set(session, object, args)),
            method::GEN_KEY => done(self.gen_key(session, object, args)),
            method::ACTIVATE => done(self.activate(session, object, args)),
            method::REVERT => done(self.revert(session, object, args)),
            method::REVERT_SP => done(self.revert_sp(session, object, args)),
            method::REACTIVATE => done(self.reactivate(session, object, args)),
            method::ERASE => done(self.erase(session, object, args)),
            _ => Err(Status::NotAuthorized),
        }
    }

    /// Random: at most 32 bytes (Opal 2.01, 4.2.9.1).
    fn random(&mut self, session: usize, object: u64, mut args: args::Args<'_>) -> Outcome<Writer> {
        let count = args.uint()?;
        args.end()?;
        self.allowed(session, object, method::RANDOM)?;
        let count = usize::try_from(count).ok().filter(|count| *count <= 32);
        let mut bytes = vec![0; count.ok_or(Status::InvalidParameter)?];
        seal::random(&mut bytes).map_err(|_| Status::TperMalfunction)?;
        let mut writer = Writer::default();
        writer.list(|results| {
            results.bytes(&bytes);
        });
        Ok(writer)
    }

    /// Authenticate: one more authority in the session. A wrong PIN is a success that says false.
    fn authenticate_more(
        &mut self,
        session: usize,
        object: u64,
        mut args: args::Args<'_>,
    ) -> Outcome<Writer> {
        let authority = args.uid()?;
        let mut pin = None;
        while let Some(mut named) = args.named()? {
            if named.uint()? != 0 || pin.is_some() {
                return Err(Status::InvalidParameter);
            }
            pin = Some(named.bytes()?);
            named.end()?;
        }
        args.end()?;
        self.allowed(session, object, method::AUTHENTICATE)?;
        let is_right = match authority {
            uid::ANYBODY => true,
            _ => {
                let holder = access::holder(authority).ok_or(Status::InvalidParameter)?;
                if access::sp_of(holder) != self.sessions[session].sp {
                    return Err(Status::InvalidParameter);
                }
                match self.authenticate(authority, pin.unwrap_or_default())? {
                    Some(present) => self.sessions[session].admit(present).map(|()| true)?,
                    None => false,
                }
            }
        };
        let mut writer = Writer::default();
        writer.list(|results| {
            results.bool(is_right);
        });
        Ok(writer)
    }

    fn start_transaction(&mut self, session: usize) -> Outcome<()> {
        self.writable(session).map_err(|_| Status::TransactionFailure)?;
        if self.transaction.is_some() {
            return Err(Status::TransactionFailure); // MaxTransactionLimit is 1
        }
        let (tsn, live) = (self.sessions[session].tsn, self.live.clone());
        self.transaction = Some(Transaction { tsn, live, destroys: false, staged: Staged::default() });
        Ok(())
    }

    fn end_transaction(&mut self, session: usize, commit: bool) -> Outcome<()> {
        let tsn = self.sessions[session].tsn;
        let transaction = self.transaction.take_if(|transaction| transaction.tsn == tsn);
        let Some(Transaction { live, destroys, staged, .. }) = transaction else {
            return Err(Status::TransactionFailure);
        };
        if !commit {
            return Ok(());
        }
        self.commit(live, destroys)?;
        self.refresh_tables_key()?;
        self.write_staged(staged)
    }
}

fn transaction_status(reader: &mut Reader<'_>) -> Outcome<u64> {
    match reader.next() {
        Ok(Some(Token::Uint(status))) => Ok(status),
        _ => Err(Status::InvalidParameter),
    }
}

/// Bytes of a status list, with what comes before it.
const STATUS: usize = 6;

fn refuse(writer: &mut Writer, status: Status) {
    writer.list(|_| {}).status(status as u8);
}
