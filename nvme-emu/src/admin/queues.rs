//! Creation and deletion of I/O queues (Base 5.4 to 5.7): which queues there are, and on which worker.

use std::sync::Arc;

use nvme_spec::command::{Command, Completion};
use nvme_spec::queue::{CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11, DeleteQueueCdw10};
use nvme_spec::status::Status;
use vfio_user_server::{Access, DmaTable, Hint};

use super::{Answer, Ask, Change, To};
use crate::placement::{MoveError, QueuePlace};
use crate::shared::{Message, Shared};

/// The I/O queues of an enabled controller.
pub(crate) struct Queues {
    shared: Arc<Shared>,
    page: u64,
    /// By identifier; 0 is unused.
    sqs: Vec<Option<Sq>>,
    cqs: Vec<Option<Cq>>,
    /// What feature 07h granted: queues counted from one.
    granted: u16,
}

#[derive(Clone, Copy)]
struct Sq {
    cqid: u16,
    worker: usize,
    deleting: bool,
}

#[derive(Clone, Copy)]
struct Cq {
    worker: usize,
    /// Submission queues that complete here.
    users: u16,
    deleting: bool,
    moving: bool,
}

impl Queues {
    pub(super) fn new(shared: Arc<Shared>, page: u64) -> Self {
        let most = shared.config.io_queues;
        Self {
            page,
            sqs: vec![None; usize::from(most) + 1],
            cqs: vec![None; usize::from(most) + 1],
            granted: most,
            shared,
        }
    }

    /// Whether there is a queue with this identifier.
    pub(crate) fn exists(&self, qid: u16, is_cq: bool) -> bool {
        let qid = usize::from(qid);
        if is_cq {
            self.cqs.get(qid).is_some_and(Option::is_some)
        } else {
            self.sqs.get(qid).is_some_and(Option::is_some)
        }
    }

    /// Whether there is any I/O queue.
    pub(super) fn any(&self) -> bool {
        self.sqs.iter().any(Option::is_some) || self.cqs.iter().any(Option::is_some)
    }

    /// Queues granted, counted from one.
    pub(super) fn granted(&self) -> u16 {
        self.granted
    }

    /// Feature 07h: the host asks for this many queues of the kind it wants more of.
    pub(super) fn grant(&mut self, wanted: u32) {
        self.granted = wanted.clamp(1, u32::from(self.shared.config.io_queues)) as u16;
    }

    /// The worker of a submission queue.
    pub(super) fn worker_of(&self, sqid: u16) -> Option<usize> {
        self.sqs.get(usize::from(sqid)).copied().flatten().map(|sq| sq.worker)
    }

    pub(super) fn create_cq(&mut self, table: &DmaTable, command: &Command) -> Result<Answer, Status> {
        let queue = CreateQueueCdw10::from_bits(command.cdw10());
        let attributes = CreateCqCdw11::from_bits(command.cdw11());
        let qid = self.check_new(queue, attributes.pc(), command.prp1(), &self.cqs)?;
        // A host may set the sizes of entries when it has read which there are, and is enabled already (Base 3.1.3.5).
        if self.shared.registers().cc().iocqes() != 4 {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        if attributes.ien() && attributes.iv() >= self.shared.host.interrupts.msix_vectors() {
            return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr());
        }
        self.check_memory(table, command.prp1(), queue.qsize_z(), Completion::BYTES, Access::Write)?;
        let worker = self.emptiest_worker();
        self.cqs[usize::from(qid)] = Some(Cq { worker, users: 0, deleting: false, moving: false });
        let (iova, entries) = (command.prp1(), u32::from(queue.qsize_z()) + 1);
        let vector = attributes.ien().then_some(attributes.iv());
        Ok(ask(worker, Change::None, move |done| Message::CreateCq { qid, iova, entries, vector, done }))
    }

    pub(super) fn create_sq(&mut self, table: &DmaTable, command: &Command) -> Result<Answer, Status> {
        let queue = CreateQueueCdw10::from_bits(command.cdw10());
        let attributes = CreateSqCdw11::from_bits(command.cdw11());
        let cqid = attributes.cqid();
        // The completion queue is judged first, as the specification lists it (Base 5.5.1).
        if cqid == 0 || cqid > self.granted {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        let Some(cq) = self.cqs[usize::from(cqid)].filter(|cq| !cq.deleting) else {
            return Err(Status::COMPLETION_QUEUE_INVALID.with_dnr());
        };
        let qid = self.check_new(queue, attributes.pc(), command.prp1(), &self.sqs)?;
        if self.shared.registers().cc().iosqes() != 6 {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        self.check_memory(table, command.prp1(), queue.qsize_z(), Command::BYTES, Access::Read)?;
        // With its completion queue, so that completions stay on one worker.
        let worker = cq.worker;
        self.sqs[usize::from(qid)] = Some(Sq { cqid, worker, deleting: false });
        self.cqs[usize::from(cqid)] = Some(Cq { users: cq.users + 1, ..cq });
        self.publish();
        let (iova, entries) = (command.prp1(), u32::from(queue.qsize_z()) + 1);
        Ok(ask(worker, Change::None, move |done| Message::CreateSq { qid, iova, entries, cqid, done }))
    }

    fn check_new<T: Copy>(
        &self,
        queue: CreateQueueCdw10,
        contiguous: bool,
        prp1: u64,
        existing: &[Option<T>],
    ) -> Result<u16, Status> {
        let qid = queue.qid();
        if qid == 0 || qid > self.granted || existing[usize::from(qid)].is_some() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr());
        }
        if queue.qsize_z() == 0 || u32::from(queue.qsize_z()) >= self.shared.config.queue_entries {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr());
        }
        // CAP.CQR: queues are physically contiguous.
        if !contiguous {
            return Err(Status::INVALID_FIELD_IN_COMMAND.with_dnr());
        }
        if prp1 & (self.page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID.with_dnr());
        }
        Ok(qid)
    }

    /// A queue must lie in memory that is there when it is made. (If it goes later, the queue rests.)
    fn check_memory(
        &self,
        table: &DmaTable,
        iova: u64,
        size_z: u16,
        entry_bytes: usize,
        access: Access,
    ) -> Result<(), Status> {
        let len = (usize::from(size_z) + 1) * entry_bytes;
        let resolved = table.resolve(iova, len, access, &mut Hint::default(), |_, _| {});
        resolved.map(drop).map_err(|fault| self.shared.status_of(fault.into()))
    }

    pub(super) fn delete_sq(&mut self, command: &Command) -> Result<Answer, Status> {
        let qid = DeleteQueueCdw10::from_bits(command.cdw10()).qid();
        match self.sqs.get_mut(usize::from(qid)) {
            Some(Some(sq)) if !sq.deleting => {
                sq.deleting = true;
                let worker = sq.worker;
                Ok(ask(worker, Change::SqDeleted(qid), move |done| Message::DeleteSq { qid, done }))
            }
            _ => Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr()),
        }
    }

    pub(super) fn delete_cq(&mut self, command: &Command) -> Result<Answer, Status> {
        let qid = DeleteQueueCdw10::from_bits(command.cdw10()).qid();
        match self.cqs.get_mut(usize::from(qid)) {
            Some(Some(cq)) if !cq.deleting => {
                if cq.users > 0 {
                    return Err(Status::INVALID_QUEUE_DELETION.with_dnr());
                }
                cq.deleting = true;
                let worker = cq.worker;
                Ok(ask(worker, Change::CqDeleted(qid), move |done| Message::DeleteCq { qid, done }))
            }
            _ => Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr()),
        }
    }

    /// A worker has done what it was asked for.
    pub(crate) fn finished(&mut self, change: Change) {
        match change {
            Change::None => {}
            Change::SqDeleted(qid) => {
                if let Some(sq) = self.sqs[usize::from(qid)].take()
                    && let Some(cq) = &mut self.cqs[usize::from(sq.cqid)]
                {
                    cq.users -= 1;
                }
            }
            Change::CqDeleted(qid) => self.cqs[usize::from(qid)] = None,
        }
        self.publish();
    }

    /// A completion queue is to move with its submission queues. Returns the worker that has them.
    pub(crate) fn begin_move(&mut self, cqid: u16, to: usize) -> Result<usize, MoveError> {
        if to >= self.shared.ports.len() {
            return Err(MoveError::NoSuchWorker);
        }
        match self.cqs.get_mut(usize::from(cqid)) {
            Some(Some(cq)) if cq.deleting || cq.moving => Err(MoveError::Busy),
            Some(Some(cq)) => {
                cq.moving = true;
                Ok(cq.worker)
            }
            _ => Err(MoveError::NoSuchQueue),
        }
    }

    /// The move is over; `to`: they are there.
    pub(crate) fn end_move(&mut self, cqid: u16, to: Option<usize>) {
        if let Some(cq) = &mut self.cqs[usize::from(cqid)] {
            cq.moving = false;
            if let Some(to) = to {
                cq.worker = to;
                self.sqs.iter_mut().flatten().filter(|sq| sq.cqid == cqid).for_each(|sq| sq.worker = to);
            }
        }
        self.publish();
    }

    /// Shows the control side what there is.
    fn publish(&self) {
        let queues = (0u16..).zip(&self.sqs).filter_map(|(sqid, sq)| sq.map(|sq| (sqid, sq)));
        let places = queues.map(|(sqid, sq)| QueuePlace { sqid, cqid: sq.cqid, worker: sq.worker });
        let places = places.collect();
        *self.shared.places() = places;
    }

    fn emptiest_worker(&self) -> usize {
        let queues_on = |worker| self.cqs.iter().flatten().filter(|cq| cq.worker == worker).count();
        (0..self.shared.ports.len()).min_by_key(|worker| queues_on(*worker)).unwrap_or(0)
    }
}

fn ask(worker: usize, change: Change, message: impl Fn(crate::latch::Token) -> Message + 'static) -> Answer {
    Answer::Ask(Ask { to: To::One(worker), message: Box::new(message), change, found: None })
}
