//! Sessions: how they begin, and the session manager's own methods (TCG Core 2.01, 3.3.7 and 5.2.3).

use std::time::{Duration, Instant};

use super::Tper;
use super::access::{self, Sp};
use super::args::{Args, Call};
use super::authenticate::Present;
use super::properties::Properties;
use super::state::Holder;
use super::status::{Outcome, Status};
use super::token::Writer;
use super::uid::{self, method};
use crate::crypto::exchange::PairSecret;

/// How long a session may be idle if its host asks for nothing else: a host that was killed leaves its session behind,
/// which keeps others out.
pub const DEFAULT_TIMEOUT_MS: u64 = 60_000;
/// The shortest and the longest time a host can ask for.
pub const TIMEOUTS_MS: std::ops::RangeInclusive<u64> = 1_000..=600_000;
/// Sessions at the same time.
pub const MAX_SESSIONS: usize = 8;
/// Authorities in one session.
pub const MAX_AUTHENTICATIONS: usize = 8;
/// The lowest session number of the TPer; Linux takes lower ones for an error.
pub const FIRST_TSN: u32 = 0x1000;

/// A session.
pub struct Session {
    /// TPer session number.
    pub tsn: u32,
    /// Host session number.
    pub hsn: u32,
    /// The SP.
    pub sp: Sp,
    /// Read-write rather than read-only.
    pub write: bool,
    /// Who has authenticated.
    pub holders: Vec<Holder>,
    /// What opens the keys sealed to them.
    pub secrets: Vec<(Holder, PairSecret)>,
    /// When it was last used.
    pub used: Instant,
    /// How long it may be idle.
    pub timeout: Duration,
}

impl Session {
    /// Whether it has been idle for too long.
    pub fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) >= self.timeout
    }

    /// Adds somebody who has authenticated.
    pub fn admit(&mut self, present: Present) -> Outcome<()> {
        if self.holders.contains(&present.holder) {
            return Ok(());
        }
        if self.holders.len() >= MAX_AUTHENTICATIONS {
            return Err(Status::NoSessionsAvailable);
        }
        self.holders.push(present.holder);
        self.secrets.extend(present.secret.map(|secret| (present.holder, secret)));
        Ok(())
    }
}

/// What StartSession asks for.
struct Start<'a> {
    hsn: u32,
    sp: u64,
    write: bool,
    challenge: Option<&'a [u8]>,
    authority: Option<u64>,
    timeout: Option<u64>,
}

impl<'a> Start<'a> {
    fn read(mut args: Args<'a>) -> Outcome<Self> {
        let hsn = u32::try_from(args.uint()?).map_err(|_| Status::InvalidParameter)?;
        let mut start = Self {
            hsn,
            sp: args.uid()?,
            write: args.bool()?,
            challenge: None,
            authority: None,
            timeout: None,
        };
        while let Some(mut named) = args.named()? {
            let name = match named.has_bytes() {
                true if named.bytes()? == b"SessionTimeout" => 5,
                true => return Err(Status::InvalidParameter),
                false => named.uint()?,
            };
            match name {
                0 if start.challenge.is_none() => start.challenge = Some(named.bytes()?),
                3 if start.authority.is_none() => start.authority = Some(named.uid()?),
                5 if start.timeout.is_none() => start.timeout = Some(named.uint()?),
                // Transaction timeout and initial credit: nothing that this TPer would act on.
                6 | 7 => {
                    named.uint()?;
                }
                // Certificates and exchange of keys are not offered.
                _ => return Err(Status::InvalidParameter),
            }
            named.end()?;
        }
        args.end()?;
        Ok(start)
    }
}

/// The host session number of a StartSession that is wrong elsewhere, so that the refusal finds its host.
fn hsn_of(mut args: Args<'_>) -> u64 {
    args.uint().unwrap_or(0)
}

impl Tper {
    /// A call to the session manager: the stream of its answer. What is none gets no answer.
    pub(super) fn manage(&mut self, call: &Call<'_>, now: Instant) -> Option<Vec<u8>> {
        let mut writer = Writer::default();
        if call.invoking != uid::SESSION_MANAGER {
            return None;
        }
        match call.method {
            method::PROPERTIES => {
                let (host, status) = match Properties::read(call.args) {
                    Ok(given) => {
                        self.com.properties = given.over(&self.com.properties);
                        (given.is_given().then_some(&self.com.properties), 0)
                    }
                    Err(status) => (None, status as u8),
                };
                writer.call(uid::SESSION_MANAGER, method::PROPERTIES);
                writer.list(|list| {
                    if status == 0 {
                        Properties::write_own(list);
                        if let Some(host) = host {
                            list.named(|name| host.write(name.uint(0)));
                        }
                    }
                });
                writer.status(status);
            }
            method::START_SESSION => {
                let hsn = hsn_of(call.args);
                let started = Start::read(call.args).and_then(|start| self.start_session(&start, now));
                let (tsn, status) = match started {
                    Ok(tsn) => (tsn, 0),
                    Err(status) => (0, status as u8),
                };
                writer.call(uid::SESSION_MANAGER, method::SYNC_SESSION);
                writer.list(|list| {
                    list.uint(hsn).uint(u64::from(tsn));
                });
                writer.status(status);
            }
            _ => return None,
        }
        Some(writer.into_bytes())
    }

    fn start_session(&mut self, start: &Start<'_>, now: Instant) -> Outcome<u32> {
        let sp = match start.sp {
            uid::ADMIN_SP => Sp::Admin,
            uid::LOCKING_SP if self.live.state.locking.active => Sp::Locking,
            _ => return Err(Status::InvalidParameter),
        };
        // One that writes is alone in its SP (Core 3.3.7.1.1).
        if self.sessions.iter().any(|session| session.sp == sp && (session.write || start.write)) {
            return Err(Status::SpBusy);
        }
        if self.sessions.len() >= MAX_SESSIONS {
            return Err(Status::NoSessionsAvailable);
        }
        let timeout = match start.timeout {
            None => DEFAULT_TIMEOUT_MS,
            // 0: as long as there is.
            Some(0) => *TIMEOUTS_MS.end(),
            Some(asked) if TIMEOUTS_MS.contains(&asked) => asked,
            Some(_) => return Err(Status::InvalidParameter),
        };
        let mut session = Session {
            tsn: 0,
            hsn: start.hsn,
            sp,
            write: start.write,
            holders: Vec::new(),
            secrets: Vec::new(),
            used: now,
            timeout: Duration::from_millis(timeout),
        };
        match start.authority {
            None | Some(uid::ANYBODY) => {}
            Some(authority) => {
                if access::holder(authority).is_none_or(|holder| access::sp_of(holder) != sp) {
                    return Err(Status::NotAuthorized);
                }
                let present = self.authenticate(authority, start.challenge.unwrap_or_default())?;
                session.admit(present.ok_or(Status::NotAuthorized)?)?;
            }
        }
        session.tsn = self.next_tsn();
        let tsn = session.tsn;
        // The time that a PIN takes is not the host's.
        session.used = now.max(Instant::now());
        self.sessions.push(session);
        Ok(tsn)
    }

    fn next_tsn(&mut self) -> u32 {
        loop {
            let tsn = self.last_tsn.map_or(FIRST_TSN, |last| last.checked_add(1).unwrap_or(FIRST_TSN));
            self.last_tsn = Some(tsn);
            if self.sessions.iter().all(|session| session.tsn != tsn) {
                return tsn;
            }
        }
    }

    /// Ends sessions, with their transactions.
    pub(super) fn end_sessions(&mut self, ends: impl Fn(&Session) -> bool) {
        if let Some(transaction) = &self.transaction {
            let tsn = transaction.tsn;
            let is_over = self.sessions.iter().find(|session| session.tsn == tsn).is_none_or(&ends);
            if is_over {
                self.transaction = None;
            }
        }
        self.sessions.retain(|session| !ends(session));
    }
}

/// CloseSession of the TPer: it has aborted a session.
pub fn close_session(hsn: u32, tsn: u32) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.call(uid::SESSION_MANAGER, method::CLOSE_SESSION);
    writer.list(|list| {
        list.uint(u64::from(hsn)).uint(u64::from(tsn));
    });
    writer.status(0);
    writer.into_bytes()
}
