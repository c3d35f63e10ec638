//! Admin commands (Base 5): what each asks for, carried out on the home worker.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use block::Segment;
use nvme_spec::command::{Command, Fuse};
use nvme_spec::opcode::AdminOpcode;
use nvme_spec::queue::AbortCdw10;
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaTable, Hint};

use crate::latch::Token;
use crate::shared::{Message, Shared};
use crate::transfer::{self, Transfer};

pub(crate) mod events;
mod features;
mod identify;
mod log_page;
pub(crate) mod queues;
mod security;

use events::Events;
use features::Features;
use queues::Queues;

/// ACL + 1: aborts that may be outstanding.
const ABORT_LIMIT: u8 = 4;

/// What the admin queue of an enabled controller works with.
pub(crate) struct Admin {
    shared: Arc<Shared>,
    page: u64,
    features: Features,
    pub(crate) events: Events,
    pub(crate) queues: Queues,
    /// Aborts that wait for a worker.
    aborts: u8,
    segments: Vec<Segment>,
}

/// How an admin command goes on.
pub(crate) enum Answer {
    /// Complete, with dword 0.
    Done(u32),
    /// Complete, with an error.
    Failed(Status),
    /// An asynchronous event request: completes with an event.
    Held,
    /// Complete when workers have done something.
    Ask(Ask),
    /// Complete when all namespaces are durable.
    Flush,
    /// A security command: complete when the subsystem's security has answered it.
    Security,
}

/// What workers are asked to do.
pub(crate) struct Ask {
    pub(crate) to: To,
    pub(crate) message: Box<dyn Fn(Token) -> Message>,
    /// What to change when it is done.
    pub(crate) change: Change,
    /// Abort: set if the command was found.
    pub(crate) found: Option<Arc<AtomicBool>>,
}

/// Which workers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    One(usize),
    All,
}

/// A change of the queues that takes effect when workers are done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    None,
    SqDeleted(u16),
    CqDeleted(u16),
}

impl Admin {
    pub(crate) fn new(shared: Arc<Shared>, page: u64) -> Self {
        Self {
            features: Features::new(&shared),
            events: Events::default(),
            queues: Queues::new(shared.clone(), page),
            aborts: 0,
            segments: Vec::new(),
            page,
            shared,
        }
    }

    /// Carries out a command.
    pub(crate) fn execute(&mut self, table: &DmaTable, hint: &mut Hint, command: &Command) -> Answer {
        let result = if command.fuse() == Fuse::NORMAL {
            self.dispatch(table, hint, command)
        } else {
            Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr())
        };
        result.unwrap_or_else(|status| {
            tracing::debug!(
                controller = self.shared.cntlid,
                opcode = ?command.admin_opcode(),
                %status,
                "admin command refused"
            );
            Answer::Failed(status)
        })
    }

    fn dispatch(&mut self, table: &DmaTable, hint: &mut Hint, command: &Command) -> Result<Answer, Status> {
        match command.admin_opcode() {
            AdminOpcode::IDENTIFY => {
                let data = identify::identify(&self.shared, command)?;
                self.reply_with(table, hint, command, &data)
            }
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(table, hint, command),
            AdminOpcode::SET_FEATURES => self.set_features(table, hint, command),
            AdminOpcode::GET_FEATURES => self.get_features(table, hint, command),
            AdminOpcode::CREATE_IO_COMPLETION_QUEUE => self.queues.create_cq(table, command),
            AdminOpcode::CREATE_IO_SUBMISSION_QUEUE => self.queues.create_sq(table, command),
            AdminOpcode::DELETE_IO_COMPLETION_QUEUE => self.queues.delete_cq(command),
            AdminOpcode::DELETE_IO_SUBMISSION_QUEUE => self.queues.delete_sq(command),
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                self.events.request(command.cid())?;
                Ok(Answer::Held)
            }
            AdminOpcode::ABORT => self.abort(command),
            AdminOpcode::SECURITY_SEND | AdminOpcode::SECURITY_RECEIVE
                if self.shared.subsystem.gate.is_secure() =>
            {
                self.security(command)
            }
            AdminOpcode::DOORBELL_BUFFER_CONFIG if self.shared.config.shadow_doorbells => {
                self.doorbell_buffer_config(table, command)
            }
            _ => Err(Status::INVALID_COMMAND_OPCODE.with_dnr()),
        }
    }

    /// Abort (Base 5.1): dword 0 bit 0 is set when the command was not found.
    fn abort(&mut self, command: &Command) -> Result<Answer, Status> {
        let which = AbortCdw10::from_bits(command.cdw10());
        if which.sqid() == 0 {
            // Other admin commands end at once, or wait for workers, which is soon, or for the security, which
            // takes none back.
            return Ok(Answer::Done(u32::from(!self.events.abort(which.cid()))));
        }
        let Some(worker) = self.queues.worker_of(which.sqid()) else { return Ok(Answer::Done(1)) };
        if self.aborts == ABORT_LIMIT {
            return Err(Status::ABORT_COMMAND_LIMIT_EXCEEDED);
        }
        self.aborts += 1;
        let found = Arc::new(AtomicBool::new(false));
        let flag = found.clone();
        let message =
            move |done| Message::Abort { sqid: which.sqid(), cid: which.cid(), found: flag.clone(), done };
        Ok(Answer::Ask(Ask {
            to: To::One(worker),
            message: Box::new(message),
            change: Change::None,
            found: Some(found),
        }))
    }

    /// A worker has done with an abort.
    pub(crate) fn aborted(&mut self) {
        self.aborts -= 1;
    }

    /// Doorbell Buffer Config (Base 5.11): one memory page each for the doorbells and for EventIdx.
    fn doorbell_buffer_config(&self, table: &DmaTable, command: &Command) -> Result<Answer, Status> {
        let (doorbells, events) = (command.prp1(), command.prp2());
        if (doorbells | events) & (self.page - 1) != 0 || doorbells == events {
            return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
        }
        let reach =
            |iova, access| table.resolve(iova, self.page as usize, access, &mut Hint::default(), |_, _| {});
        reach(doorbells, Access::Read)
            .and_then(|_| reach(events, Access::Write))
            .map_err(|_| Status::INVALID_FIELD_IN_COMMAND.with_dnr())?;
        Ok(Answer::Ask(Ask {
            to: To::All,
            message: Box::new(move |done| Message::ShadowDoorbells { doorbells, events, done }),
            change: Change::None,
            found: None,
        }))
    }

    /// Copies a data structure to the host, whole.
    fn reply_with(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
        data: &[u8],
    ) -> Result<Answer, Status> {
        self.resolve(table, hint, command, data.len(), Access::Write)?;
        transfer::write_to_host(&self.segments, data);
        Ok(Answer::Done(0))
    }

    /// Resolves a command's data into `self.segments`. Used up before the DMA table can change.
    fn resolve(
        &mut self,
        table: &DmaTable,
        hint: &mut Hint,
        command: &Command,
        len: usize,
        access: Access,
    ) -> Result<(), Status> {
        let transfer = Transfer { command, len, access, page: self.page, sgl_allowed: false };
        let resolved = transfer::resolve(table, hint, transfer, &mut self.segments);
        resolved.map(drop).map_err(|error| self.shared.status_of(error))
    }
}
