//! Security commands between the admin queue and the subsystem's security, which answers on any thread, perhaps much
//! later, and perhaps never.

use std::sync::{Arc, Weak};

use block::security::{SecurityError, SecurityReply};
use nvme_spec::command::Command;
use nvme_spec::status::Status;
use vfio_user_server::Hint;

use super::{LIMIT, Up};
use crate::engine::Engine;
use crate::security::Outcome;
use crate::shared::{Message, Shared};
use crate::status::from_security;
use crate::worker::HOME;

/// How many commands of a controller are with the security, each with up to a whole transfer of data. Further ones wait
/// in the order they came in, as commands alone, each with a place in the completion queue that it will take; all other
/// admin commands pass them. Hosts send one at a time: a TPer carries them out in turn anyway.
const SLOTS: usize = 8;

/// The commands that the security has. They outlive resets of the controller: a host that resets it again and again
/// has no more of them than one that waits.
#[derive(Default)]
pub(super) struct Slots {
    slots: [Slot; SLOTS],
    /// How many were answered.
    answers: usize,
}

#[derive(Default)]
enum Slot {
    #[default]
    Free,
    Sent(Command),
    /// The controller was reset: nobody waits for the answer.
    Forgotten,
    Answered(Command, Outcome),
}

impl Slots {
    /// The controller goes down.
    pub(super) fn forget(&mut self) {
        self.answers = 0;
        for slot in &mut self.slots {
            *slot = match slot {
                Slot::Sent(_) | Slot::Forgotten => Slot::Forgotten,
                Slot::Free | Slot::Answered(..) => Slot::Free,
            };
        }
    }

    /// The answer to the command in slot `at` has come.
    pub(super) fn answered(&mut self, at: usize, outcome: Outcome) {
        let slot = &mut self.slots[at];
        *slot = match std::mem::take(slot) {
            Slot::Sent(command) => {
                self.answers += 1;
                Slot::Answered(command, outcome)
            }
            _ => Slot::Free,
        };
    }

    /// Completes what was answered and starts what waits, while there are slots. Returns whether there was anything
    /// to do.
    pub(super) fn turn(&mut self, engine: &Engine, up: &mut Up) -> bool {
        if self.answers == 0 && up.unsent.is_empty() {
            return false;
        }
        if engine.memory.is_stale() {
            return true; // next turn, with the table of now
        }
        let mut busy = false;
        for slot in &mut self.slots {
            if matches!(slot, Slot::Answered(..))
                && let Slot::Answered(command, outcome) = std::mem::take(slot)
            {
                self.answers -= 1;
                up.end_security(engine, &command, outcome);
                busy = true;
            }
        }
        while let Some(at) = self.slots.iter().position(|slot| matches!(slot, Slot::Free))
            && let Some(command) = up.unsent.pop_front()
        {
            match up.start_security(engine, &command, at) {
                Ok(()) => self.slots[at] = Slot::Sent(command),
                Err(status) => up.answer(engine, command.cid(), status, 0),
            }
            busy = true;
        }
        busy
    }
}

impl Up {
    fn start_security(&mut self, engine: &Engine, command: &Command, slot: usize) -> Result<(), Status> {
        let request = self.admin.security_command(engine.memory.table(), &mut Hint::default(), command)?;
        let reply = || -> SecurityReply {
            let reply = Reply { home: Arc::downgrade(&engine.shared), slot, outcome: None };
            Box::new(|outcome| reply.end(outcome))
        };
        engine.shared.subsystem.gate.submit(engine.shared.cntlid, request, reply)
    }

    fn end_security(&mut self, engine: &Engine, command: &Command, outcome: Outcome) {
        let ended = outcome.map_err(from_security).and_then(|data| {
            self.admin.security_data(engine.memory.table(), &mut Hint::default(), command, &data)
        });
        self.answer(engine, command.cid(), ended.err().unwrap_or(Status::SUCCESS), 0);
    }
}

/// The way of an answer to the home worker, which wakes it. One that is dropped without an answer brings an error: a
/// command never hangs.
struct Reply {
    home: Weak<Shared>,
    slot: usize,
    outcome: Option<Outcome>,
}

impl Reply {
    fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        let outcome = self.outcome.take().unwrap_or_else(|| {
            if let Some(suppressed) = LIMIT.check() {
                tracing::error!(suppressed, controller = home.cntlid, "a security command was not answered");
            }
            Err(SecurityError::Internal)
        });
        home.send(HOME, Message::Secured { slot: self.slot, outcome });
    }
}
