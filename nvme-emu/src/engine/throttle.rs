//! Commands that wait for their limits: in order for each namespace and direction, so that writes that wait do not keep
//! reads from their turn. They hold nothing but their slot; their data pointers are resolved when they start.

use std::collections::VecDeque;

use nvme_spec::command::Command;
use nvme_spec::nvm::IoCdw12;
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::status::Status;

use super::Engine;
use crate::slots::Tag;

/// What waits on one worker.
#[derive(Default)]
pub(super) struct Throttle {
    /// Whether any limit concerns this worker: nothing else is looked at while there is none.
    limited: bool,
    lanes: Vec<Lane>,
    /// The lane that is first in the next turn.
    first: usize,
    /// When to look again, in nanoseconds of the monotonic clock.
    next: u64,
}

/// Commands of one namespace and direction.
struct Lane {
    nsid: u32,
    write: bool,
    /// Slots, and which of their commands it is.
    waiting: VecDeque<(u32, u32)>,
}

/// Nanoseconds of the monotonic clock, which all threads share.
pub(super) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Whether a command counts as a write, or nothing if it is not limited. Write Zeroes and Deallocate move no data: they
/// count as commands.
fn direction(command: &Command) -> Option<bool> {
    match command.nvm_opcode() {
        NvmOpcode::READ | NvmOpcode::COMPARE => Some(false),
        NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES | NvmOpcode::DATASET_MANAGEMENT => Some(true),
        _ => None,
    }
}

impl Throttle {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    #[inline]
    pub(super) fn is_limited(&self) -> bool {
        self.limited
    }
}

impl Engine {
    /// Limits of this controller or of a namespace changed: who waits may have to wait for another time.
    pub(crate) fn limits_changed(&mut self) {
        self.throttle.limited = self.shared.limiter.is_limited()
            || self.namespaces.iter().flatten().any(|namespace| namespace.limiter.is_limited());
        self.throttle.next = 0;
        self.sqs.iter_mut().flatten().for_each(|sq| sq.next_pair = 0);
    }

    /// Whether the command has to wait for its limits; it does in a slot then, in flight. If not, it is charged.
    pub(super) fn must_wait(&mut self, sqid: u16, command: &Command) -> bool {
        let (nsid, Some(write)) = (command.nsid(), direction(command)) else { return false };
        if self.namespace(nsid).is_none() {
            return false; // it is refused
        }
        let lane = self.throttle.lanes.iter_mut().find(|lane| lane.nsid == nsid && lane.write == write);
        let is_behind = lane.is_some();
        let at = now();
        let earliest = if is_behind { u64::MAX } else { self.earliest(nsid, write, at) };
        if earliest <= at {
            self.charge(command, write, at);
            return false;
        }
        let tag = Tag { sq: sqid, cid: command.cid(), nsid, ..Tag::default() };
        let Some(waiting) = self.slots.throttle(tag, *command) else { return false };
        self.wait_in_lane(nsid, write, waiting);
        self.throttle.next = if self.throttle.lanes.len() == 1 && !is_behind {
            earliest
        } else {
            self.throttle.next.min(earliest)
        };
        true
    }

    /// Entries of all lanes, cancelled ones included.
    pub(crate) fn places_in_lanes(&self) -> usize {
        self.throttle.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }

    fn wait_in_lane(&mut self, nsid: u32, write: bool, waiting: (u32, u32)) {
        match self.throttle.lanes.iter_mut().find(|lane| lane.nsid == nsid && lane.write == write) {
            Some(lane) => {
                // Before it grows it forgets those that were cancelled: no more of them than of the others.
                if lane.waiting.len() == lane.waiting.capacity() {
                    lane.waiting
                        .retain(|(slot, generation)| self.slots.throttled(*slot, *generation).is_some());
                }
                lane.waiting.push_back(waiting);
            }
            None => self.throttle.lanes.push(Lane { nsid, write, waiting: VecDeque::from([waiting]) }),
        }
    }

    /// How many commands of a completion queue's submission queues wait for their limits.
    pub(super) fn throttled_of(&mut self, cqid: u16) -> u32 {
        let Self { throttle, slots, sqs, .. } = self;
        let mut count = 0;
        for (slot, generation) in throttle.lanes.iter().flat_map(|lane| &lane.waiting) {
            if slots.throttled(*slot, *generation).is_some() {
                let sq = &sqs[usize::from(slots.get(*slot).tag.sq)];
                count += u32::from(sq.as_ref().is_some_and(|sq| sq.cq == cqid));
            }
        }
        count
    }

    /// Takes those commands out, in order, each with its submission queue.
    pub(super) fn take_throttled_of(&mut self, cqid: u16) -> Vec<(u16, Command)> {
        let Self { throttle, slots, sqs, .. } = self;
        let mut taken = Vec::new();
        for lane in &mut throttle.lanes {
            lane.waiting.retain(|(slot, generation)| {
                let Some(command) = slots.throttled(*slot, *generation) else { return false };
                let sqid = slots.get(*slot).tag.sq;
                if sqs[usize::from(sqid)].as_ref().is_none_or(|sq| sq.cq != cqid) {
                    return true;
                }
                slots.unthrottle(*slot);
                taken.push((sqid, command));
                false
            });
        }
        throttle.lanes.retain(|lane| !lane.waiting.is_empty());
        taken
    }

    /// Commands that waited on another worker wait here.
    pub(super) fn throttle_again(&mut self, commands: Vec<(u16, Command)>) {
        for (sqid, command) in commands {
            let (nsid, write) = (command.nsid(), direction(&command).unwrap_or(false));
            if let Some(sq) = &mut self.sqs[usize::from(sqid)] {
                sq.in_flight += 1;
                if let Some(cq) = &mut self.cqs[usize::from(sq.cq)] {
                    cq.reserve();
                }
            }
            let tag = Tag { sq: sqid, cid: command.cid(), nsid, ..Tag::default() };
            match if self.slots.has_room() { self.slots.throttle(tag, command) } else { None } {
                Some(waiting) => self.wait_in_lane(nsid, write, waiting),
                None => self.complete_reserved(sqid, command.cid(), Status::INTERNAL_ERROR),
            }
        }
        self.throttle.next = 0;
    }

    /// When a command of the kind may start.
    pub(super) fn earliest(&self, nsid: u32, write: bool, at: u64) -> u64 {
        let own = &self.shared.limiter;
        let own = if own.is_limited() { own.earliest(write, at) } else { 0 };
        match self.namespace(nsid) {
            Some(namespace) if namespace.limiter.is_limited() => {
                own.max(namespace.limiter.earliest(write, at))
            }
            _ => own,
        }
    }

    pub(super) fn charge(&self, command: &Command, write: bool, at: u64) {
        let Some(namespace) = self.namespace(command.nsid()) else { return };
        let bytes = match command.nvm_opcode() {
            NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE => {
                let blocks = IoCdw12::from_bits(command.cdw12()).blocks();
                // More than a command can move is refused, and costs no more than that.
                let most = u64::from(self.shared.config.max_transfer);
                (u64::from(blocks) * u64::from(namespace.info.block_size)).min(most)
            }
            _ => 0,
        };
        for limiter in [&self.shared.limiter, &namespace.limiter] {
            if limiter.is_limited() {
                limiter.charge(write, bytes, at);
            }
        }
    }

    /// Starts what has waited long enough. Returns whether there was anything.
    pub(super) fn start_throttled(&mut self) -> bool {
        if self.throttle.is_empty() {
            return false;
        }
        let at = now();
        if at < self.throttle.next {
            return false;
        }
        let mut started = false;
        let mut next = u64::MAX;
        let mut lanes = std::mem::take(&mut self.throttle.lanes);
        // Another lane is first in each turn: where several share a limit none takes it all.
        self.throttle.first = (self.throttle.first + 1) % lanes.len();
        let (before, after) = lanes.split_at_mut(self.throttle.first);
        for lane in after.iter_mut().chain(before) {
            while let Some(&(slot, generation)) = lane.waiting.front() {
                let Some(command) = self.slots.throttled(slot, generation) else {
                    lane.waiting.pop_front(); // it was cancelled
                    continue;
                };
                let earliest = self.earliest(lane.nsid, lane.write, at);
                if earliest > at || self.share.is_used_up() {
                    next = next.min(earliest);
                    break;
                }
                lane.waiting.pop_front();
                self.charge(&command, lane.write, at);
                let sqid = self.slots.unthrottle(slot);
                self.start_waiting(sqid, &command);
                self.share.count(1);
                started = true;
            }
        }
        lanes.retain(|lane| !lane.waiting.is_empty());
        self.throttle.lanes = lanes;
        self.throttle.next = next;
        started
    }

    /// The controller stops: what has not begun does not begin.
    pub(super) fn cancel_throttled(&mut self) {
        for lane in std::mem::take(&mut self.throttle.lanes) {
            for (slot, generation) in lane.waiting {
                if self.slots.throttled(slot, generation).is_some() {
                    self.slots.cancel(slot, Status::COMMAND_ABORT_REQUESTED);
                }
            }
        }
    }
}
