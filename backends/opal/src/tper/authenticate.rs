//! Authentication: PINs are tried, wrong ones counted before they are answered (TCG Core 2.01, 5.3.4.1.2 and 5.3.4.1.14).

use super::access;
use super::state::Holder;
use super::status::{Outcome, Status};
use super::{Live, Tper};
use crate::crypto::exchange::PairSecret;
use crate::crypto::seal;

/// Wrong PINs before the SID is locked out until the next power cycle.
pub const SID_TRY_LIMIT: u32 = 5;
/// Wrong PSIDs before it is locked out until the next power cycle. Nobody guesses 160 bits; it spares the log.
pub const PSID_TRY_LIMIT: u32 = 5;

/// Somebody who has authenticated.
pub struct Present {
    /// Who.
    pub holder: Holder,
    /// What opens the keys that are sealed to it. The PSID has none.
    pub secret: Option<PairSecret>,
}

impl Tper {
    /// Tries a PIN. `Ok(None)`: it is wrong, or the authority does not exist, is disabled or blocked.
    pub(super) fn authenticate(&mut self, authority: u64, pin: &[u8]) -> Outcome<Option<Present>> {
        let Some(holder) = access::holder(authority) else { return Ok(None) };
        if holder == Holder::Psid {
            return self.authenticate_psid(pin);
        }
        if holder == Holder::Sid && self.sid_blocked.is_some() {
            return Ok(None);
        }
        let Some(account) = self.live.state.account(holder).filter(|account| account.enabled) else {
            return Ok(None);
        };
        if account.credential.is_locked_out() {
            return Err(Status::AuthorityLockedOut);
        }
        let secret = account.credential.open(&self.local, &self.live.state.msid, pin)?;
        let (limit, tries) = (account.credential.try_limit, account.credential.tries);
        let is_right = secret.is_some();
        let counted = if is_right { 0 } else { tries.saturating_add(1) };
        if limit != 0 && counted != tries {
            // Durable before the answer: else a server that is killed after each guess would never count.
            self.count(&|live| {
                if let Some(account) = live.state.account_mut(holder) {
                    account.credential.tries = counted;
                }
            })?;
        }
        Ok(secret.map(|secret| Present { holder, secret: Some(secret) }))
    }

    fn authenticate_psid(&mut self, pin: &[u8]) -> Outcome<Option<Present>> {
        let tries = self.live.state.psid_tries;
        if tries >= PSID_TRY_LIMIT {
            return Err(Status::AuthorityLockedOut);
        }
        let is_right = seal::is_equal(pin, self.psid()?.as_bytes());
        let counted = if is_right { 0 } else { tries + 1 };
        if counted != tries {
            self.count(&|live| live.state.psid_tries = counted)?;
        }
        Ok(is_right.then_some(Present { holder: Holder::Psid, secret: None }))
    }

    /// Counts in what is durable, and in what a transaction works on: to take that back takes back no try.
    fn count(&mut self, change: &dyn Fn(&mut Live)) -> Outcome<()> {
        let mut live = self.live.clone();
        change(&mut live);
        self.commit(live, false)?;
        if let Some(transaction) = &mut self.transaction {
            change(&mut transaction.live);
        }
        Ok(())
    }
}
