//! [`Gate`]: the one way to a subsystem's security, for commands and for what happens to its controllers.
//!
//! Commands come from the home workers, resets and clients that leave from the control threads. The gate's lock gives
//! them one order: an event follows the commands that its controller has sent, and no more of that controller's pass
//! until it is enabled anew. So nothing of the time before a reset, or of a client that is gone, comes after it was
//! told: a password still under way cannot open the disk for the next one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use block::Security;
use block::security::{SecurityCommand, SecurityError, SecurityEvent, SecurityReply};
use nvme_spec::status::Status;

use crate::shared::Shared;

/// How a command ended.
pub(crate) type Outcome = Result<Vec<u8>, SecurityError>;

/// See above. Locked after the subsystem's namespaces and before a controller's registers; the security, which is
/// called under the lock, calls nothing of the subsystem back.
#[derive(Default)]
pub(crate) struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    security: Option<Arc<dyn Security>>,
    /// Controllers that have a client.
    clients: BTreeSet<u16>,
    /// Controllers whose commands pass: they are enabled, and no reset of theirs was told since.
    enabled: BTreeSet<u16>,
}

impl Gate {
    /// Whether there is a security.
    pub(crate) fn is_secure(&self) -> bool {
        self.state().security.is_some()
    }

    /// A device with a security was added.
    pub(crate) fn open(&self, security: Arc<dyn Security>) {
        self.state().security = Some(security);
    }

    /// It was removed: its last client is this subsystem.
    pub(crate) fn close(&self) {
        if let Some(security) = self.state().security.take() {
            security.event(SecurityEvent::Detached);
        }
    }

    /// A controller's client has come.
    pub(crate) fn attach(&self, cntlid: u16) {
        self.state().clients.insert(cntlid);
    }

    /// A controller's client is gone. To the clients of other controllers this is a link that went down: a reset of
    /// that controller (Base 3.7.2).
    pub(crate) fn detach(&self, cntlid: u16) {
        let mut state = self.state();
        state.clients.remove(&cntlid);
        let was_enabled = state.enabled.remove(&cntlid);
        if state.clients.is_empty() {
            state.tell(SecurityEvent::Detached);
        } else if was_enabled {
            state.tell(SecurityEvent::ControllerReset);
        }
    }

    /// A controller is no more. Its client, if it was not detached, has gone with it.
    pub(crate) fn forget(&self, cntlid: u16) {
        let has_client = self.state().clients.contains(&cntlid);
        if has_client {
            self.detach(cntlid);
        }
    }

    /// A controller is enabled; its registers had counted this many resets. With one more it is about to go down again.
    pub(crate) fn enable(&self, shared: &Shared, resets: u64) {
        let mut state = self.state();
        if shared.registers().resets() == resets {
            state.enabled.insert(shared.cntlid);
        }
    }

    /// A controller's registers were reset.
    pub(crate) fn controller_reset(&self, cntlid: u16) {
        let mut state = self.state();
        if state.enabled.remove(&cntlid) {
            state.tell(SecurityEvent::ControllerReset);
        }
    }

    /// All controllers reset at once, by `reset`: one event. Under the lock, for a client that is quick might have
    /// enabled its controller again before it is told.
    pub(crate) fn subsystem_reset(&self, reset: impl FnOnce()) {
        let mut state = self.state();
        reset();
        if !std::mem::take(&mut state.enabled).is_empty() {
            state.tell(SecurityEvent::ControllerReset);
        }
    }

    /// The VMM has reset a controller, enabled or not.
    pub(crate) fn function_reset(&self, cntlid: u16) {
        let mut state = self.state();
        state.enabled.remove(&cntlid);
        state.tell(SecurityEvent::FunctionReset);
    }

    /// Starts a controller's command. `reply` is made if it can be.
    pub(crate) fn submit(
        &self,
        cntlid: u16,
        command: SecurityCommand,
        reply: impl FnOnce() -> SecurityReply,
    ) -> Result<(), Status> {
        let state = self.state();
        // The namespace went while the command waited.
        let security = state.security.as_ref().ok_or(Status::INVALID_COMMAND_OPCODE.with_dnr())?;
        if !state.enabled.contains(&cntlid) {
            return Err(Status::COMMAND_ABORT_REQUESTED); // the controller is about to go down
        }
        security.submit(command, reply());
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn tell(&self, event: SecurityEvent) {
        if let Some(security) = &self.security {
            security.event(event);
        }
    }
}
