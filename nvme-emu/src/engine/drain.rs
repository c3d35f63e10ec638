//! What waits for commands to end: memory that was retired, queues that are deleted, a stop. And the end of
//! commands that were cancelled or lost.

use std::time::{Duration, Instant};

use nvme_spec::status::Status;
use vfio_user_server::RegionMask;

use super::Engine;
use crate::latch::Token;

/// How long a stop waits for cancelled commands, that a device or the kernel still holds, before it says so. It goes on
/// waiting: what they do to guest memory and to the medium must not happen after the guest was told that they ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// Regions that left the DMA table while commands may hold them.
pub(super) struct Retirement {
    regions: RegionMask,
    /// Commands that were resolved in this generation or later do not hold them.
    generation: u64,
    deadline: Instant,
    cancelled: bool,
    _done: Token,
}

pub(super) struct Stopping {
    deadline: Instant,
    cancelled: bool,
    told: bool,
    _done: Token,
}

impl Engine {
    /// Regions left the table, and the worker has the new one: `done` is dropped when no command holds what
    /// is gone. Commands that do at `deadline` are cancelled.
    pub(crate) fn retire(&mut self, deadline: Instant, done: Token) {
        let generation = self.memory.table().generation();
        self.retirements.push(Retirement {
            regions: self.gone,
            generation,
            deadline,
            cancelled: false,
            _done: done,
        });
    }

    /// Removes all queues. Commands in flight get until `deadline` to end, then they are cancelled.
    pub(crate) fn stop(&mut self, deadline: Instant, done: Token) {
        self.remove_queues();
        self.cancel_throttled();
        self.stopping = Some(Stopping { deadline, cancelled: false, told: false, _done: done });
    }

    /// What waits for commands to end: cancellation, retired memory, deleted queues, a stop.
    pub(super) fn drain(&mut self) {
        self.end_lost();
        if self.slots.is_draining() {
            let mut ended = Vec::new();
            self.slots.take_drained(&mut ended);
            for (slot, status) in ended {
                self.complete(slot, status);
            }
        }
        if !self.retirements.is_empty() {
            self.drain_retirements();
        }
        if self.deleting > 0 {
            self.flush_touched();
            self.drain_deleted_queues();
        }
        if !self.departures.is_empty() {
            self.depart();
        }
        if let Some(stopping) = &mut self.stopping {
            let now = Instant::now();
            if self.slots.in_flight() == 0 {
                self.stopping = None;
            } else if !stopping.cancelled && now >= stopping.deadline {
                stopping.cancelled = true;
                for slot in self.slots.indices() {
                    self.slots.cancel(slot, Status::COMMAND_ABORT_REQUESTED);
                }
            } else if !stopping.told && now >= stopping.deadline + PATIENCE {
                stopping.told = true;
                tracing::error!(
                    controller = self.shared.cntlid,
                    commands = self.slots.in_flight(),
                    "a device does not give commands back; the controller's reset waits for them. Look after the \
                     storage behind the disk"
                );
            }
        }
    }

    fn drain_retirements(&mut self) {
        let now = Instant::now();
        let Self { retirements, slots, .. } = self;
        retirements.retain_mut(|retirement| {
            let mut held = false;
            let cancel = !retirement.cancelled && now >= retirement.deadline;
            for slot in slots.indices() {
                let tag = slots.get(slot).tag;
                let holds = tag.generation < retirement.generation && tag.regions & retirement.regions != 0;
                if slots.is_busy(slot) && holds {
                    held = true;
                    if cancel {
                        slots.cancel(slot, Status::DATA_TRANSFER_ERROR);
                    }
                }
            }
            // One more turn after the cancellation; what the kernel holds even then is cut off by the server.
            let over = retirement.cancelled;
            retirement.cancelled |= cancel;
            held && !over
        });
        if self.retirements.is_empty() {
            self.gone = 0;
        }
    }

    /// Ends commands whose `Io` a device lost: a defect of the device, which the guest must not wait for.
    fn end_lost(&mut self) {
        for tag in block::io::take_lost(self.slots.owner()) {
            if let Some(slot) = self.slots.by_tag(tag) {
                tracing::error!(slot, "a device dropped an I/O without completing it");
                self.slots.cancel(slot, Status::INTERNAL_ERROR);
            }
        }
    }
}
