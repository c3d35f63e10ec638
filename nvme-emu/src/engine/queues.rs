//! A worker's queues: how they come, go, and move to another worker of the controller.
//!
//! A completion queue moves together with its submission queues. The worker that has them fetches no more, waits until
//! their commands have ended, and hands their [state](SqState) to the other one. A message about a queue that the home
//! worker sent meanwhile is passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme_spec::command::Command;
use nvme_spec::registers::{DOORBELLS, doorbell_offset};
use nvme_spec::status::Status;

use super::Engine;
use crate::doorbells::DSTRD;
use crate::latch::Token;
use crate::queue::{CompletionQueue, CqState, Shadow, SqState, SubmissionQueue};
use crate::shared::Message;

/// A completion queue that leaves with its submission queues as soon as none of their commands is in flight.
pub(super) struct Departure {
    cqid: u16,
    to: usize,
    moved: Arc<AtomicBool>,
    done: Token,
}

/// Queues on their way to another worker.
pub(crate) struct Arrival {
    /// How often the sender had been stopped.
    stops: u64,
    cq: CqState,
    sqs: Vec<SqState>,
    /// Commands that wait for their limits.
    throttled: Vec<(u16, Command)>,
    /// Set when they have arrived.
    moved: Arc<AtomicBool>,
    _done: Token,
}

impl Engine {
    pub(crate) fn create_cq(&mut self, qid: u16, iova: u64, entries: u32, vector: Option<u16>) {
        let doorbell = self.shared.doorbells().doorbell(qid, true);
        let mut cq = CompletionQueue::new(qid, iova, entries, vector, doorbell);
        let _ = cq.map(self.memory.table());
        if let Some(shadow) = self.shadow_of(qid, true) {
            cq.set_shadow(shadow, self.memory.table());
        }
        self.add_cq(cq);
    }

    fn add_cq(&mut self, mut cq: CompletionQueue) {
        let qid = usize::from(cq.id);
        cq.set_held(!self.bus_master, self.memory.table());
        self.moved[qid] = None;
        self.cqs[qid] = Some(cq);
        self.open_namespaces();
    }

    pub(crate) fn create_sq(&mut self, qid: u16, iova: u64, entries: u32, cqid: u16) {
        if self.cqs[usize::from(cqid)].is_none() {
            return; // it went with a stop, which this message came after by way of another worker
        }
        let doorbell = self.shared.doorbells().doorbell(qid, false);
        let mut sq = SubmissionQueue::new(qid, iova, entries, cqid, doorbell);
        let _ = sq.map(self.memory.table());
        if let Some(shadow) = self.shadow_of(qid, false) {
            sq.set_shadow(shadow, self.memory.table());
        }
        sq.leaving = self.departures.iter().any(|departure| departure.cqid == cqid);
        self.add_sq(sq);
    }

    fn add_sq(&mut self, sq: SubmissionQueue) {
        // It becomes hot with its first command.
        self.cold.push(sq.id);
        let at = usize::from(sq.id);
        self.moved_sqs[at] = None;
        self.sqs[at] = Some(sq);
    }

    /// Fetches no more from a queue and cancels its commands; it goes when they have ended.
    pub(crate) fn delete_sq(&mut self, qid: u16, done: Token) {
        for slot in self.slots.indices() {
            if self.slots.is_busy(slot) && self.slots.get(slot).tag.sq == qid {
                self.slots.cancel(slot, Status::COMMAND_ABORTED_SQ_DELETION);
            }
        }
        if let Some(sq) = &mut self.sqs[usize::from(qid)] {
            sq.deleting = Some(done);
            self.deleting += 1;
        }
    }

    pub(crate) fn delete_cq(&mut self, qid: u16) {
        self.touched.retain(|other| *other != qid);
        self.departures.retain(|departure| departure.cqid != qid);
        if let Some(cq) = self.cqs[usize::from(qid)].take()
            && cq.asserts_intx
        {
            self.shared.assert_intx(false);
        }
    }

    pub(super) fn drain_deleted_queues(&mut self) {
        for sq in &mut self.sqs {
            if sq.as_ref().is_some_and(|sq| sq.deleting.is_some() && sq.in_flight == 0) {
                *sq = None;
                self.deleting -= 1;
            }
        }
        self.forget_absent_queues();
    }

    fn forget_absent_queues(&mut self) {
        let sqs = &self.sqs;
        self.hot.retain(|qid| sqs[usize::from(*qid)].is_some());
        self.cold.retain(|qid| sqs[usize::from(*qid)].is_some());
    }

    /// Removes all queues at once.
    pub(super) fn remove_queues(&mut self) {
        self.hot.clear();
        self.cold.clear();
        self.deleting = 0;
        self.stops += 1;
        self.moved.fill(None);
        self.moved_sqs.fill(None);
        self.departures.clear();
        self.shadow = None;
        self.sqs.fill_with(|| None);
        for qid in 0..self.cqs.len() as u16 {
            self.delete_cq(qid);
        }
    }

    /// Queues read their doorbells from shadow buffers from now on, until the controller stops.
    pub(crate) fn use_shadow_doorbells(&mut self, doorbells: u64, events: u64) {
        self.shadow = Some((doorbells, events));
        for qid in 0..self.sqs.len() as u16 {
            let (for_sq, for_cq) = (self.shadow_of(qid, false), self.shadow_of(qid, true));
            let table = self.memory.table();
            if let (Some(sq), Some(shadow)) = (&mut self.sqs[usize::from(qid)], for_sq) {
                sq.set_shadow(shadow, table);
            }
            if let (Some(cq), Some(shadow)) = (&mut self.cqs[usize::from(qid)], for_cq) {
                cq.set_shadow(shadow, table);
            }
        }
    }

    fn shadow_of(&self, qid: u16, is_cq: bool) -> Option<Shadow> {
        let (doorbells, events) = self.shadow?;
        let offset = doorbell_offset(qid, is_cq, DSTRD) - DOORBELLS;
        Some(Shadow::new(doorbells.wrapping_add(offset), events.wrapping_add(offset)))
    }

    /// Cancels a command; sets `found` if it is in flight. `done` is dropped when it has ended.
    pub(crate) fn abort(&mut self, sqid: u16, cid: u16, found: &AtomicBool, done: Token) {
        for slot in self.slots.indices() {
            let tag = self.slots.get(slot).tag;
            if self.slots.is_waiting(slot) && tag.sq == sqid && (tag.cid == cid || tag.second == Some(cid)) {
                self.slots.cancel(slot, Status::COMMAND_ABORT_REQUESTED);
                self.slots.get(slot).awaited = Some(done);
                found.store(true, Ordering::Release);
                return;
            }
        }
    }

    // ---- Moves ----

    /// Hands a completion queue and its submission queues to worker `to` when their commands have ended. `moved` is set
    /// when they are there; `done` is dropped then, or when they are gone.
    pub(crate) fn detach(&mut self, cqid: u16, to: usize, moved: Arc<AtomicBool>, done: Token) {
        if self.cqs[usize::from(cqid)].is_none() || to == self.index {
            moved.store(to == self.index, Ordering::Release);
            return;
        }
        for sq in self.sqs.iter_mut().flatten().filter(|sq| sq.cq == cqid) {
            sq.leaving = true;
        }
        self.departures.push(Departure { cqid, to, moved, done });
    }

    pub(super) fn depart(&mut self) {
        let mut at = 0;
        while let Some(departure) = self.departures.get(at) {
            let cqid = departure.cqid;
            let own = |sq: &&SubmissionQueue| sq.cq == cqid;
            let in_flight: u32 = self.sqs.iter().flatten().filter(own).map(|sq| sq.in_flight).sum();
            let is_deleting = self.sqs.iter().flatten().filter(own).any(|sq| sq.deleting.is_some());
            // Those that wait for their limits go along.
            if is_deleting || in_flight > self.throttled_of(cqid) {
                at += 1;
                continue;
            }
            let throttled = self.take_throttled_of(cqid);
            let Departure { to, moved, done, .. } = self.departures.swap_remove(at);
            let Some(mut cq) = self.cqs[usize::from(cqid)].take() else { continue };
            cq.flush(self.memory.table());
            self.touched.retain(|other| *other != cqid);
            let mut sqs = Vec::new();
            for place in &mut self.sqs {
                if place.as_ref().is_some_and(|sq| sq.cq == cqid)
                    && let Some(sq) = place.take()
                {
                    sqs.push(sq.state());
                    self.moved_sqs[usize::from(sq.id)] = Some(to);
                }
            }
            self.moved[usize::from(cqid)] = Some(to);
            self.forget_absent_queues();
            let arrival = Arrival { stops: self.stops, cq: cq.state(), sqs, throttled, moved, _done: done };
            self.shared.send(to, Message::Attach(Box::new(arrival)));
        }
    }

    /// Queues came from another worker.
    pub(crate) fn attach(&mut self, arrival: Arrival) {
        let Arrival { stops, cq: cq_state, sqs, throttled, moved, _done } = arrival;
        if stops != self.stops {
            return; // the controller was stopped meanwhile, and they with it
        }
        let doorbells = self.shared.doorbells();
        let cqid = cq_state.id;
        let shadowed = cq_state.is_shadowed();
        let mut cq = CompletionQueue::restore(cq_state, doorbells.doorbell(cqid, true));
        let _ = cq.map(self.memory.table());
        if let Some(shadow) = self.shadow_of(cqid, true) {
            cq.adopt_shadow(shadow, shadowed, self.memory.table());
        }
        self.add_cq(cq);
        for state in sqs {
            let mut sq = SubmissionQueue::restore(state, doorbells.doorbell(state.id, false));
            let _ = sq.map(self.memory.table());
            if let Some(shadow) = self.shadow_of(state.id, false) {
                sq.adopt_shadow(shadow, state, self.memory.table());
            }
            self.add_sq(sq);
        }
        self.throttle_again(throttled);
        if let Some(cq) = &mut self.cqs[usize::from(cqid)] {
            Self::touch(&mut self.touched, cq);
        }
        moved.store(true, Ordering::Release);
    }

    /// The worker that a message about queues is for, if they left for one.
    pub(crate) fn forward_to(&self, message: &Message) -> Option<usize> {
        let cq = |qid: u16| self.moved.get(usize::from(qid)).copied().flatten();
        let sq = |qid: u16| self.moved_sqs.get(usize::from(qid)).copied().flatten();
        match message {
            Message::CreateSq { cqid, .. } | Message::Detach { cqid, .. } => cq(*cqid),
            Message::DeleteCq { qid, .. } => cq(*qid),
            Message::DeleteSq { qid, .. } => sq(*qid),
            Message::Abort { sqid, .. } => sq(*sqid),
            _ => None,
        }
    }
}
