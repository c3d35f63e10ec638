//! One turn of a worker: polls what was woken, fetches and starts new commands, posts completions, signals.

use nvme_spec::command::Fuse;

use super::Engine;
use super::clock::{OTHER, TRANSFER, TurnClock};
use super::start::{Launched, Launcher, launcher};
use crate::nvm;
use crate::queue::{InvalidDoorbell, Rest, SubmissionQueue, completion};
use crate::shared::{DoorbellError, Message};
use crate::worker::HOME;

/// Commands taken from one queue at once.
pub(super) const BATCH: u32 = 32;

/// Commands and bytes started in one turn. Small, so that a neighbour on the same reactor who wants little waits little
/// (512 KiB are some 20 us of copying), and large beside what a turn costs.
const COMMANDS: u32 = 64;
const BYTES: usize = 512 << 10;

/// A run of completions is written when its commands moved so much data, and when the batch ends: four entries share a
/// cache line, which the guest looks at meanwhile.
const RUN_BYTES: usize = 32 << 10;
/// Of fewer commands than that each completion is written at once: the guest goes on with it while the next is served.
const LONG_BATCH: u32 = 8;

/// Turns without a command after which a queue is looked at less often.
const QUIET: u32 = 1024;

/// Turns without work after which all quiet queues are looked at in each: there is nothing better to do. (Not at once: a
/// client with one command in flight makes some of them between its commands.)
const IDLE_TURNS: u32 = 16;

/// What a turn may still start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    pub(super) commands: u32,
    pub(super) bytes: usize,
    /// Commands that may go to the kernel or another library.
    pending: usize,
    /// Commands that it started or ended.
    pub(super) work: u32,
    /// Commands that it started.
    started: u32,
    /// Commands that were in flight before it.
    before: usize,
}

impl Share {
    fn new(before: usize) -> Self {
        Self { commands: COMMANDS, bytes: BYTES, pending: 1, work: 0, started: 0, before }
    }

    /// A command was started.
    pub(super) fn count(&mut self, commands: u32) {
        self.commands = self.commands.saturating_sub(commands);
        self.work += commands;
        self.started += commands;
    }

    pub(super) fn is_used_up(self) -> bool {
        self.commands == 0 || self.bytes == 0
    }

    /// Data that is moved now.
    #[inline(always)]
    pub(super) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// What the turn has done so far, in commands and pages.
    fn done(self) -> u32 {
        // The kernel moves the data of commands that it got, and `end` has taken what was left of the bytes.
        let bytes = if self.pending == 0 { 0 } else { BYTES - self.bytes };
        self.work + (bytes >> 12) as u32
    }

    pub(super) fn end(&mut self) {
        self.commands = 0;
        self.bytes = 0;
    }
}

impl Engine {
    /// Polls woken commands, then fetches and starts new ones. Returns whether there was anything.
    pub(crate) fn turn(&mut self, running: bool, bus_master: bool) -> bool {
        self.set_bus_master(bus_master);
        self.clock = TurnClock::default();
        self.share = Share::new(self.slots.in_flight());
        let mut busy = self.poll_woken() | self.start_throttled();
        // The kernel begins with none of a turn's commands before it has all, and a disk waits meanwhile: so it gets no more of
        // them than it has, or twice what it was just given: 1, 2, 4, ... of a batch.
        let pending = self.slots.in_flight().max(self.pending).clamp(1, COMMANDS as usize);
        self.share.pending = pending;
        if running && bus_master {
            busy |= self.fetch_hot();
            busy |= self.fetch_cold();
        }
        self.pending = if self.share.pending == 0 { 2 * pending } else { 1 };
        self.idle_turns = if busy { 0 } else { self.idle_turns.saturating_add(1) };
        self.drain();
        self.end_turn();
        busy
    }

    /// Commands that the last turn started.
    pub(crate) fn started(&self) -> u32 {
        self.share.started
    }

    /// Commands that were in flight before the last turn: also those that it completed.
    pub(crate) fn before(&self) -> usize {
        self.share.before
    }

    /// How much the last turn did, in commands and pages.
    pub(crate) fn work(&self) -> u32 {
        self.share.done()
    }

    /// Without bus mastering nothing is posted.
    fn set_bus_master(&mut self, on: bool) {
        if self.bus_master != on {
            self.bus_master = on;
            for cq in self.cqs.iter_mut().flatten() {
                cq.set_held(!on, self.memory.table());
            }
            self.touch_all();
        }
    }

    fn poll_woken(&mut self) -> bool {
        if self.woken.is_empty() && !self.slots.any_woken() {
            return false;
        }
        let mut woken = std::mem::take(&mut self.woken);
        self.slots.take_woken(&mut woken);
        let busy = !woken.is_empty();
        // What the turn has no time for is first in the next.
        let mut done = 0;
        while let Some(slot) = woken.get(done).copied() {
            let tag = self.slots.get(slot).tag;
            let steps = if tag.read | tag.written != 0 { TRANSFER } else { OTHER };
            self.share.work += 1;
            self.poll_slot(slot);
            done += 1;
            if self.clock.is_over(steps) {
                break;
            }
        }
        woken.drain(..done);
        self.woken = woken;
        busy
    }

    /// Goes round the busy queues, from where the last turn ended. A queue that has been quiet for long leaves them.
    fn fetch_hot(&mut self) -> bool {
        let mut busy = false;
        let mut left = self.hot.len();
        while left > 0 && !self.share.is_used_up() {
            left -= 1;
            if self.hot_at >= self.hot.len() {
                self.hot_at = 0;
            }
            let qid = self.hot[self.hot_at];
            let found = if self.is_quiet(qid) {
                if let Some(sq) = &self.sqs[usize::from(qid)] {
                    sq.prefetch_next();
                }
                false
            } else {
                self.fetch(qid)
            };
            busy |= found;
            let Some(sq) = &mut self.sqs[usize::from(qid)] else { continue };
            sq.quiet = if found || sq.in_flight > 0 { 0 } else { sq.quiet.saturating_add(1) };
            // With nobody else there is nothing to gain.
            if sq.quiet >= QUIET && self.hot.len() + self.cold.len() > 1 {
                self.hot.remove(self.hot_at);
                self.cold.push(qid);
            } else {
                self.hot_at += 1;
            }
        }
        busy
    }

    /// Looks at some of the quiet queues: more of them the more was done since, all if nothing was.
    fn fetch_cold(&mut self) -> bool {
        let mut busy = false;
        let mut left = match self.share.done() {
            0 if self.hot.is_empty() => self.cold.len(),
            _ if self.idle_turns >= IDLE_TURNS => self.cold.len(),
            work => (2 + work as usize / 8).min(self.cold.len()),
        };
        while left > 0 {
            left -= 1;
            if self.cold_at >= self.cold.len() {
                self.cold_at = 0;
            }
            let qid = self.cold[self.cold_at];
            // When the others have used up the turn it gets its share of the next ones.
            let found = !self.is_quiet(qid)
                && if self.share.is_used_up() { self.has_commands(qid) } else { self.fetch(qid) };
            if found {
                busy = true;
                self.cold.swap_remove(self.cold_at);
                self.hot.push(qid);
                if let Some(sq) = &mut self.sqs[usize::from(qid)] {
                    sq.quiet = 0;
                }
            } else {
                self.cold_at += 1;
            }
        }
        busy
    }

    /// Whether a queue waits to be served.
    fn has_commands(&mut self, qid: u16) -> bool {
        let sq = self.sqs[usize::from(qid)].as_mut();
        sq.is_some_and(|sq| sq.is_served() && sq.poll_tail().is_ok_and(|waiting| waiting > 0))
    }

    #[inline(always)]
    fn is_quiet(&self, qid: u16) -> bool {
        self.sqs[usize::from(qid)].as_ref().is_none_or(SubmissionQueue::is_quiet)
    }

    /// Starts commands of one queue. Returns whether there was anything.
    #[inline(never)]
    fn fetch(&mut self, qid: u16) -> bool {
        let Some(sq) = &mut self.sqs[usize::from(qid)] else { return false };
        if !sq.is_served() {
            return false;
        }
        let waiting = match sq.poll_tail() {
            Ok(0) => return false,
            Ok(waiting) => waiting.min(BATCH).min(self.share.commands),
            Err(InvalidDoorbell) => return self.invalid_doorbell(qid),
        };
        if self.memory.is_stale() {
            return true; // next turn, with the table of now
        }
        let cqid = sq.cq;
        let Some(cq) = &mut self.cqs[usize::from(cqid)] else { return false };
        if !cq.can_post() {
            return false;
        }
        let room = match cq.room(waiting) {
            Ok(room) => waiting.min(room),
            Err(InvalidDoorbell) => return self.invalid_doorbell(cqid),
        };
        sq.rest = if room == 0 { Rest::NoRoom } else { Rest::No };
        if room == 0 {
            return false;
        }
        let batch = &mut self.batch[..room as usize];
        if sq.copy(self.memory.table(), batch).is_err() {
            sq.ring.unmap();
            return false;
        }
        if self.throttle.is_limited() {
            return self.start_limited(qid, cqid, room as usize);
        }
        let run_bytes = if room < LONG_BATCH { 0 } else { RUN_BYTES };
        let mut run_from = self.share.bytes;
        let mut started = 0;
        let (Some(sq), Some(cq)) = (&mut self.sqs[usize::from(qid)], &mut self.cqs[usize::from(cqid)]) else {
            return false;
        };
        Self::touch(&mut self.touched, cq);
        let mut launcher = launcher!(self);
        let batch = &self.batch[..room as usize];
        let prefetches = self.prefetches;
        for (at, command) in batch.iter().enumerate() {
            if prefetches && let Some(next) = batch.get(at + 1) {
                launcher.prefetch(next);
            }
            if launcher.share.bytes == 0 || !launcher.slots.has_room() {
                break;
            }
            sq.take();
            match launcher.launch(qid, command) {
                Launched::Done(status) => cq.post(completion(qid, sq.head(), command.cid(), status, 0)),
                Launched::Pending => {
                    sq.in_flight += 1;
                    cq.reserve();
                    launcher.share.pending -= 1;
                    if launcher.share.pending == 0 {
                        launcher.share.end();
                    }
                }
                Launched::Fused => {
                    sq.put_back();
                    launcher.share.count(started);
                    cq.flush(self.memory.table());
                    return self.start_fused(qid, cqid, started as usize, room as usize) || started > 0;
                }
            }
            started += 1;
            if run_from - launcher.share.bytes >= run_bytes {
                cq.flush(self.memory.table());
                run_from = launcher.share.bytes;
            }
        }
        launcher.share.count(started);
        if launcher.clock.is_over(started * TRANSFER) {
            launcher.share.end();
        }
        // The last ones of the batch do not wait for other queues.
        cq.flush(self.memory.table());
        started > 0
    }

    /// The same for a batch whose commands may have to wait for their limits.
    #[inline(never)]
    fn start_limited(&mut self, qid: u16, cqid: u16, count: usize) -> bool {
        let mut started = false;
        for at in 0..count {
            if self.share.is_used_up() || !self.slots.has_room() {
                break;
            }
            let command = self.batch[at];
            let namespace =
                (command.fuse() != Fuse::NORMAL).then(|| self.namespace(command.nsid())).flatten();
            if namespace.is_some_and(|namespace| nvm::begins_pair(&command, namespace)) {
                return self.start_fused(qid, cqid, at, count) || started;
            }
            let (Some(sq), Some(cq)) = (&mut self.sqs[usize::from(qid)], &mut self.cqs[usize::from(cqid)])
            else {
                break;
            };
            sq.take();
            sq.in_flight += 1;
            cq.reserve();
            if !self.must_wait(qid, &command) {
                self.start_waiting(qid, &command);
            }
            started = true;
            self.share.count(1);
            if self.clock.is_over(TRANSFER) {
                self.share.end();
            }
        }
        started
    }

    fn invalid_doorbell(&self, qid: u16) -> bool {
        self.shared.send(HOME, Message::InvalidDoorbell(DoorbellError::Value { qid }));
        true
    }

    /// Nobody will look at the doorbells for a while: asks the guest to ring, where it has to be asked. Whether there is
    /// something to do first.
    pub(crate) fn arm(&mut self) -> bool {
        let mut news = false;
        if !self.bus_master {
            return false;
        }
        for sq in self.sqs.iter().flatten() {
            let cq = self.cqs[usize::from(sq.cq)].as_ref();
            // What cannot be fetched now is no news: something else has to happen first, which wakes the reactor.
            let Some(cq) = cq.filter(|cq| cq.can_post() && sq.is_served()) else { continue };
            news |= sq.arm() || sq.has_waiting() && sq.rest == Rest::No;
            if sq.rest == Rest::NoRoom {
                news |= cq.arm();
            }
        }
        // The pin goes down when the guest has taken the entries.
        for cq in self.cqs.iter().flatten().filter(|cq| cq.asserts_intx) {
            news |= cq.arm();
        }
        news
    }
}
