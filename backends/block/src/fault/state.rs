//! The rules of a fault layer, the I/Os that they hold back, and [`FaultHandle`], the hand on both.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::rule::{Action, Rule};
use crate::{ErrorKind, Io, Op};

/// Names a rule of one fault layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(u64);

/// Names an I/O that is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldId(u64);

/// An I/O that is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its name, for [`FaultHandle::release`]. They are given in the order of submission.
    pub id: HeldId,
    /// The rule that holds it.
    pub rule: RuleId,
    /// Its operation.
    pub op: Op,
    /// Its first block.
    pub lba: u64,
    /// Its number of blocks.
    pub blocks: u64,
}

/// How often a rule came into play.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// I/Os whose operation and range matched.
    pub matched: u64,
    /// I/Os that it acted on.
    pub applied: u64,
}

/// What becomes of an I/O.
pub(super) enum Verdict {
    Pass,
    Fail(ErrorKind),
    FailAfter(ErrorKind),
    Delay(Duration),
    /// Until the ticket says so; a gathering ends after the time given.
    Wait(Ticket, Option<Duration>),
}

#[derive(Default)]
pub(super) struct Shared {
    /// Some rule may still act: the one thing that is looked at when there is none.
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<Armed>,
    waiting: BTreeMap<HeldId, Waiting>,
    /// Mixed I/Os: the first of each runs, the others wait for it.
    queues: Vec<VecDeque<HeldId>>,
    last: u64,
}

struct Armed {
    id: RuleId,
    rule: Rule,
    counters: Counters,
    /// Those of a reorder rule that wait for others.
    gathered: Vec<HeldId>,
}

struct Waiting {
    held: Held,
    verdict: Option<Result<(), ErrorKind>>,
    waker: Option<Waker>,
}

impl Armed {
    fn exhausted(&self) -> bool {
        self.counters.applied >= self.rule.count
    }

    /// Counts `io` if it matches, and tells whether the rule acts on it.
    fn applies(&mut self, io: &Io) -> bool {
        if self.exhausted() || !self.rule.covers(io) {
            return false;
        }
        self.counters.matched += 1;
        let Some(nth) = (self.counters.matched - 1).checked_sub(self.rule.skip) else { return false };
        let acts = nth.is_multiple_of(self.rule.every) && self.rule.rng.unit() < self.rule.probability;
        self.counters.applied += u64::from(acts);
        acts
    }
}

/// Wakers to call once the lock is free.
type Wakers = Vec<Waker>;

impl State {
    fn release(&mut self, id: HeldId, verdict: Result<(), ErrorKind>, wakers: &mut Wakers) -> bool {
        match self.waiting.get_mut(&id) {
            Some(waiting) if waiting.verdict.is_none() => {
                waiting.verdict = Some(verdict);
                wakers.extend(waiting.waker.take());
                true
            }
            _ => false,
        }
    }

    /// Ends the gathering of `rule`: a random order, whose first may go.
    fn mix(&mut self, rule: RuleId, wakers: &mut Wakers) {
        let Some(armed) = self.rules.iter_mut().find(|armed| armed.id == rule) else { return };
        let mut gathered = std::mem::take(&mut armed.gathered);
        for n in (1..gathered.len()).rev() {
            gathered.swap(n, armed.rule.rng.below(n as u64 + 1) as usize);
        }
        if let Some(first) = gathered.first().copied() {
            self.queues.push(gathered.into());
            self.release(first, Ok(()), wakers);
        }
    }

    /// `id` is complete or gone.
    fn forget(&mut self, id: HeldId, wakers: &mut Wakers) {
        // Woken for nothing at worst; its drop may run anything, so not under the lock.
        wakers.extend(self.waiting.remove(&id).and_then(|waiting| waiting.waker));
        for armed in &mut self.rules {
            armed.gathered.retain(|other| *other != id);
        }
        if let Some(n) = self.queues.iter().position(|queue| queue.contains(&id)) {
            self.queues[n].retain(|other| *other != id);
            match self.queues[n].front().copied() {
                // A second time for the same first one does nothing.
                Some(next) => {
                    self.release(next, Ok(()), wakers);
                }
                None => {
                    self.queues.swap_remove(n);
                }
            }
        }
    }

    fn unresolved(&self) -> Vec<HeldId> {
        let waiting = self.waiting.iter().filter(|(_, waiting)| waiting.verdict.is_none());
        waiting.map(|(id, _)| *id).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then, with the lock free, calls the wakers that this yields.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Wakers) -> T) -> T {
        let mut wakers = Wakers::new();
        let mut state = self.lock();
        let result = change(&mut state, &mut wakers);
        self.active.store(state.rules.iter().any(|armed| !armed.exhausted()), Ordering::Release);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(super) fn judge(self: &Arc<Self>, io: &Io) -> Verdict {
        self.change(|state, wakers| {
            let Some(armed) = state.rules.iter_mut().find_map(|armed| armed.applies(io).then_some(armed))
            else {
                return Verdict::Pass;
            };
            let longest = match armed.rule.action {
                Action::Fail(kind) => return Verdict::Fail(kind),
                Action::FailAfter(kind) => return Verdict::FailAfter(kind),
                Action::Delay(duration) => return Verdict::Delay(duration),
                Action::Hold => None,
                Action::Reorder { longest, .. } => Some(longest),
            };
            state.last += 1;
            let (id, rule) = (HeldId(state.last), armed.id);
            let held = Held { id, rule, op: io.op, lba: io.lba, blocks: io.blocks };
            state.waiting.insert(id, Waiting { held, verdict: None, waker: None });
            if let Action::Reorder { window, .. } = armed.rule.action {
                armed.gathered.push(id);
                if armed.gathered.len() >= window {
                    state.mix(rule, wakers);
                }
            }
            Verdict::Wait(Ticket { shared: self.clone(), id, rule }, longest)
        })
    }
}

/// The right of one I/O to wait; given back when dropped.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    id: HeldId,
    rule: RuleId,
}

impl Ticket {
    /// Ready when it is released: to go on, or to fail.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Result<(), ErrorKind>> {
        let mut state = self.shared.lock();
        let Some(waiting) = state.waiting.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        if let Some(verdict) = waiting.verdict {
            return Poll::Ready(verdict);
        }
        let former = waiting.waker.replace(cx.waker().clone());
        drop(state);
        drop(former); // may run anything, so not under the lock
        Poll::Pending
    }

    /// It does not wait for others any longer.
    pub(super) fn gathered_long_enough(&self) {
        self.shared.change(|state, wakers| {
            let gathers = |armed: &Armed| armed.id == self.rule && armed.gathered.contains(&self.id);
            if state.rules.iter().any(gathers) {
                state.mix(self.rule, wakers);
            }
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.change(|state, wakers| state.forget(self.id, wakers));
    }
}

/// Switches the faults of one [`FaultDevice`](super::FaultDevice), from any thread.
#[derive(Clone)]
pub struct FaultHandle(Arc<Shared>);

impl FaultHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Adds a rule, behind those that are there.
    pub fn add(&self, rule: Rule) -> RuleId {
        self.0.change(|state, _| {
            state.last += 1;
            let id = RuleId(state.last);
            state.rules.push(Armed { id, rule, counters: Counters::default(), gathered: Vec::new() });
            id
        })
    }

    /// Takes a rule away and releases what it holds. Its counters, if it was there.
    pub fn remove(&self, id: RuleId) -> Option<Counters> {
        self.0.change(|state, wakers| {
            let n = state.rules.iter().position(|armed| armed.id == id)?;
            state.mix(id, wakers);
            let counters = state.rules.remove(n).counters;
            for held in state.unresolved() {
                if state.waiting.get(&held).is_some_and(|waiting| waiting.held.rule == id) {
                    state.release(held, Ok(()), wakers);
                }
            }
            Some(counters)
        })
    }

    /// Takes all rules away and releases everything that is held.
    pub fn clear(&self) {
        self.0.change(|state, wakers| {
            state.rules.clear();
            for held in state.unresolved() {
                state.release(held, Ok(()), wakers);
            }
        });
    }

    /// How often a rule came into play.
    pub fn counters(&self, id: RuleId) -> Option<Counters> {
        self.0.lock().rules.iter().find(|armed| armed.id == id).map(|armed| armed.counters)
    }

    /// What is held back now, in order of submission (of a reorder rule: those that wait for others or their turn).
    pub fn held(&self) -> Vec<Held> {
        let state = self.0.lock();
        let waiting = state.waiting.values().filter(|waiting| waiting.verdict.is_none());
        waiting.map(|waiting| waiting.held.clone()).collect()
    }

    /// Lets one go on. False if it is not held (any more).
    pub fn release(&self, id: HeldId) -> bool {
        self.0.change(|state, wakers| state.release(id, Ok(()), wakers))
    }

    /// Lets one fail. False if it is not held (any more).
    pub fn fail(&self, id: HeldId, kind: ErrorKind) -> bool {
        self.0.change(|state, wakers| state.release(id, Err(kind), wakers))
    }

    /// Lets all go on that are held now; how many. The rules stay.
    pub fn release_all(&self) -> usize {
        self.0.change(|state, wakers| {
            let held = state.unresolved();
            held.into_iter().filter(|id| state.release(*id, Ok(()), wakers)).count()
        })
    }
}
