//! Interrupts of a worker's completion queues: each vector at most once in a turn.

use std::time::{Duration, Instant};

use nvme_spec::features::InterruptCoalescing;

use super::Engine;
use crate::queue::{Coalescing, Verdict};
use crate::shared::{DoorbellError, Message, Shared};
use crate::worker::HOME;

/// Interrupt vectors to signal at the end of a turn: each at most once.
#[derive(Default)]
pub(crate) struct Vectors(Vec<u16>);

impl Vectors {
    pub(crate) fn add(&mut self, vector: u16) {
        if !self.0.contains(&vector) {
            self.0.push(vector);
        }
    }

    pub(crate) fn signal(&mut self, shared: &Shared) {
        for vector in self.0.drain(..) {
            shared.host.interrupts.trigger(vector);
        }
    }
}

/// Features 08h and 09h as the host set them (Base 5.27.1.6 and 5.27.1.7).
#[derive(Clone, Debug, Default)]
pub(crate) struct CoalescingTable {
    all: Coalescing,
    /// Vectors that are left out.
    uncoalesced: Vec<bool>,
}

impl CoalescingTable {
    pub(crate) fn new(value: u32, uncoalesced: &[bool]) -> Self {
        let value = InterruptCoalescing::from_bits(value);
        let all = Coalescing {
            entries: u32::from(value.thr_z()) + 1,
            time: Duration::from_micros(100 * u64::from(value.time())),
        };
        Self { all, uncoalesced: uncoalesced.to_vec() }
    }

    fn of(&self, vector: u16) -> Coalescing {
        match self.uncoalesced.get(usize::from(vector)) {
            Some(true) => Coalescing::default(),
            _ => self.all,
        }
    }
}

impl Engine {
    /// Puts a queue on the list of those that are looked at when the turn ends.
    pub(super) fn touch(touched: &mut Vec<u16>, cq: &mut crate::queue::CompletionQueue) {
        if !cq.listed {
            cq.listed = true;
            touched.push(cq.id);
        }
    }

    pub(super) fn touch_all(&mut self) {
        for cq in self.cqs.iter_mut().flatten() {
            Self::touch(&mut self.touched, cq);
        }
    }

    /// Posts what is left of the turn's completions.
    pub(super) fn flush_touched(&mut self) {
        for qid in &self.touched {
            if let Some(cq) = &mut self.cqs[usize::from(*qid)] {
                cq.flush(self.memory.table());
            }
        }
    }

    /// Posts what is left of the turn's completions, and signals the vectors that are due.
    pub(super) fn end_turn(&mut self) {
        let interrupts = &self.shared.host.interrupts;
        let messages = interrupts.msix_enabled();
        // What was posted while there were none is told now.
        if messages != std::mem::replace(&mut self.messages, messages) && messages {
            self.touch_all();
        }
        if !self.touched.is_empty() {
            let mut time = None;
            let mut now = || *time.get_or_insert_with(Instant::now);
            let Self { touched, cqs, memory, vectors, coalescing, shared, .. } = self;
            touched.retain(|qid| {
                let Some(cq) = &mut cqs[usize::from(*qid)] else { return false };
                cq.flush(memory.table());
                cq.listed = false;
                let Some(vector) = cq.vector else {
                    let _ = cq.take_posted();
                    return false;
                };
                if !messages {
                    return false;
                }
                let (verdict, head) = cq.judge(coalescing.of(vector), &mut now);
                if head.is_err() {
                    shared.send(HOME, Message::InvalidDoorbell(DoorbellError::Value { qid: *qid }));
                }
                if verdict == Verdict::Signal {
                    vectors.add(vector);
                }
                cq.listed = verdict == Verdict::Hold;
                cq.listed
            });
        }
        // Whoever waits for the end of commands is answered after their completions.
        self.released.clear();
        if !messages && self.shared.config.intx {
            self.report_intx();
        }
        self.vectors.signal(&self.shared);
        if self.share.work > 0 {
            self.counts.publish(&self.shared.ports[self.index].counters);
        }
    }

    /// The INTx level of each queue.
    fn report_intx(&mut self) {
        for cq in self.cqs.iter_mut().flatten().filter(|cq| cq.vector.is_some()) {
            if cq.asserts_intx && cq.poll_head().is_err() {
                let error = DoorbellError::Value { qid: cq.id };
                self.shared.send(HOME, Message::InvalidDoorbell(error));
            }
            let asserts = !cq.is_empty();
            if asserts != cq.asserts_intx {
                cq.asserts_intx = asserts;
                self.shared.assert_intx(asserts);
            }
        }
    }
}
