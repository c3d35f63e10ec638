//! DEVICE_SET_IRQS, all forms: data NONE, BOOL or EVENTFD; action MASK, UNMASK or TRIGGER.

use std::os::fd::OwnedFd;

use super::{Errno, Handled, Session};
use crate::IrqError;
use crate::frame::Message;
use crate::irq::{index, is_eventfd};
use crate::wire::{SetIrqs, set_irqs as wire};

const DATA: u32 = wire::DATA_NONE | wire::DATA_BOOL | wire::DATA_EVENTFD;
const ACTION: u32 = wire::ACTION_MASK | wire::ACTION_UNMASK | wire::ACTION_TRIGGER;

impl Session {
    pub(super) fn set_irqs(&mut self, message: &Message, fds: &mut Vec<OwnedFd>) -> Result<Handled, Errno> {
        let set: SetIrqs = message.fixed().ok_or(libc::EINVAL)?;
        let (data, action) = (set.flags & DATA, set.flags & ACTION);
        let known = set.flags & !(DATA | ACTION) == 0 && data.is_power_of_two() && action.is_power_of_two();
        if (set.argsz as usize) < size_of::<SetIrqs>() || !known || set.index >= index::COUNT {
            return Err(libc::EINVAL);
        }
        let SetIrqs { index, start, count, .. } = set;
        if data != wire::DATA_EVENTFD && !fds.is_empty() {
            return Err(libc::EINVAL);
        }
        if count == 0 {
            if set.flags != wire::DATA_NONE | wire::ACTION_TRIGGER || start != 0 {
                return Err(libc::EINVAL);
            }
            self.interrupts().disable(index).map_err(errno)?;
            return Ok(Handled::EMPTY);
        }
        if u64::from(start) + u64::from(count) > self.irq_count(index).into() {
            return Err(libc::EINVAL);
        }
        match data {
            wire::DATA_EVENTFD => self.set_eventfds(fds, set)?,
            wire::DATA_BOOL => {
                let chosen = &message.payload[size_of::<SetIrqs>()..];
                if chosen.len() != count as usize {
                    return Err(libc::EINVAL);
                }
                for (vector, _) in (start..start + count).zip(chosen).filter(|(_, chosen)| **chosen != 0) {
                    self.act(action, index, vector, 1)?;
                }
            }
            _ => self.act(action, index, start, count)?,
        }
        Ok(Handled::EMPTY)
    }

    fn act(&self, action: u32, index: u32, start: u32, count: u32) -> Result<(), Errno> {
        match action {
            wire::ACTION_TRIGGER => self.interrupts().fire(index, start, count),
            _ => self.interrupts().set_masked(index, start, count, action == wire::ACTION_MASK),
        }
        .map_err(errno)
    }

    /// One eventfd for each vector, or none to disconnect them.
    fn set_eventfds(&self, fds: &mut Vec<OwnedFd>, set: SetIrqs) -> Result<(), Errno> {
        if set.flags & ACTION != wire::ACTION_TRIGGER {
            // An eventfd by which KVM would unmask: QEMU does it itself then.
            return Err(libc::ENOTSUP);
        }
        let count = set.count as usize;
        let fds: Vec<_> = match fds.len() {
            0 => (0..count).map(|_| None).collect(),
            // Others stay where they are, for closing them may take time.
            n if n == count && fds.iter().all(is_eventfd) => fds.drain(..).map(Some).collect(),
            _ => return Err(libc::EINVAL),
        };
        self.interrupts().set_eventfds(set.index, set.start, fds).map_err(errno)?;
        self.function.host_changed();
        Ok(())
    }
}

fn errno(error: IrqError) -> Errno {
    match error {
        IrqError::Unavailable => libc::ENOMEM,
        IrqError::NoSuchVector | IrqError::NotMaskable | IrqError::NotEventfd => libc::EINVAL,
    }
}
