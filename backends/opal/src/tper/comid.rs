//! The ComID: the synchronous protocol, and what is managed by it (TCG Core 2.01, 3.3.4 and 3.3.10; SIIS 1.10 for the
//! protocols).

use std::time::Instant;

use block::security::SecurityError;

use super::packet;
use super::properties::{MAX_COM_PACKET, Properties};
use super::session::DEFAULT_TIMEOUT_MS;

/// The one static ComID.
pub const COM_ID: u16 = 0x1000;
/// Level 0 Discovery.
pub const DISCOVERY: u16 = 0x0001;
/// TPer reset, by protocol 02h.
pub const TPER_RESET: u16 = 0x0004;
/// Block SID Authentication, by protocol 02h (Block SID 1.00, 4.3).
pub const BLOCK_SID: u16 = 0x0005;

/// The state of the ComID.
#[derive(Default)]
pub struct Com {
    /// What the host can take.
    pub properties: Properties,
    /// The answer that the host has to fetch before it may send again.
    pending: Option<(Vec<u8>, Instant)>,
    /// The answer of the ComID's management (protocol 02h).
    managed: Vec<u8>,
}

impl Com {
    /// Whether a host may send. An answer that nobody has fetched for as long as a session may be idle is dropped.
    pub fn begin(&mut self, now: Instant) -> Result<(), SecurityError> {
        let fetched_late = |since: &Instant| {
            now.saturating_duration_since(*since).as_millis() >= u128::from(DEFAULT_TIMEOUT_MS)
        };
        match &self.pending {
            Some((_, since)) if !fetched_late(since) => Err(SecurityError::Sequence),
            _ => {
                self.pending = None;
                Ok(())
            }
        }
    }

    /// What the host has to fetch. Nothing, if there is no answer.
    pub fn answer(&mut self, streams: &[(u32, u32, Vec<u8>)], now: Instant) {
        self.pending = (!streams.is_empty()).then(|| (packet::build(COM_ID, streams), now));
    }

    /// A fetch of at most `len` bytes (3.3.10.2.1).
    pub fn fetch(&mut self, len: u32) -> Vec<u8> {
        match self.pending.take() {
            None => packet::empty(COM_ID, 0, 0),
            Some((answer, _)) if answer.len() as u64 <= u64::from(len) => answer,
            Some((answer, since)) => {
                let needed = answer.len() as u32;
                self.pending = Some((answer, since));
                packet::empty(COM_ID, needed, needed)
            }
        }
    }

    /// Forgets what a host has said, and what it has not fetched.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// A request to the ComID's management: STACK_RESET (3.3.4.7.4). Whether it asks for one.
    pub fn manage(&mut self, request: &[u8]) -> Result<bool, SecurityError> {
        let code = request.get(4..8).ok_or(SecurityError::InvalidField)?;
        let com_id = request.get(..4).ok_or(SecurityError::InvalidField)?;
        if com_id[..2] != COM_ID.to_be_bytes() {
            return Err(SecurityError::InvalidField);
        }
        let mut answer = [com_id, code].concat();
        let is_reset = code == [0, 0, 0, 2];
        match code {
            // Done, at once: two reserved bytes, four that are available, and success.
            [0, 0, 0, 2] => answer.extend([0, 0, 0, 4, 0, 0, 0, 0]),
            // VERIFY_COMID_VALID: associated (2 is idle, 3 is in use: it is static and always in use).
            [0, 0, 0, 1] => {
                answer.extend([0, 0, 0, 34, 0, 0, 0, 3]);
                answer.extend([0; 30]);
            }
            _ => answer = [com_id, &[0; 8]].concat(), // no such request
        }
        if is_reset {
            self.reset();
        }
        self.managed = answer;
        Ok(is_reset)
    }

    /// The management's answer.
    pub fn fetch_managed(&mut self) -> Vec<u8> {
        let answer = std::mem::take(&mut self.managed);
        // No response available (3.3.4.7.1).
        if answer.is_empty() { [&COM_ID.to_be_bytes()[..], &[0; 10]].concat() } else { answer }
    }
}

/// Whether a ComPacket may be so long.
pub fn check_length(len: usize) -> Result<(), SecurityError> {
    if len > MAX_COM_PACKET as usize { Err(SecurityError::InvalidField) } else { Ok(()) }
}
