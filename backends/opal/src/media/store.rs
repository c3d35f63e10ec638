//! [`Store`]: the state of a drive, in two slots of the device below.
//!
//! A payload is written to the slot that does not hold the one in force, and flushed; from then on it is in force. So a power
//! failure leaves the old one or the new one. Where the old one must be gone (keys are erased), its slot is overwritten with
//! zeroes and flushed before the write ends; the new slot says so, and [`Store::load`] makes up for it after a power failure.
//! On media that do not write in place (flash, copy on write) the old bytes may remain all the same below the device.
//!
//! Formatting writes a marker to the first slot, flushes it, writes the second slot, flushes it, and zeroes the marker. So
//! what an interrupted first format leaves is told from what somebody else has written, and from a drive whose only
//! slot has rotted.
//!
//! The seal ties the payload to the device key, and does not notice that somebody has put back an older area as a whole.

mod slot;

use std::rc::Rc;

use block::{Abilities, Channel, Error, ErrorKind, Reactor};
use zeroize::Zeroizing;

use super::BlockIo;
use crate::crypto::{kdf, seal};
use crate::secret::Secret;

pub use slot::MAX_PAYLOAD;
use slot::{CONTEXT, HEADER, Header, MARKER, SLOT, Slot, VERSION};

/// What the state's key is derived for.
const PURPOSE: &[u8] = b"quarry opal state";

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// All zeroes, or a first format that did not end.
    #[error("the device is blank: no Opal drive has been made on it yet; format it as one")]
    Blank,
    /// Something else is there.
    #[error(
        "the first MiB of the device holds something that is no Opal drive; nothing is overwritten. Name the right device, or, \
         if what is on it is not needed, zero its first MiB (`head -c 1M /dev/zero`)"
    )]
    Foreign,
    /// The state is whole, and sealed with another key.
    #[error("the device key is not the one that this drive was made with: configure the right one")]
    WrongDeviceKey,
    /// It was ours, but neither slot is whole.
    #[error(
        "the drive's state is damaged in both of its slots: restore the first MiB of the device from a copy. Without it the \
         data cannot be decrypted"
    )]
    Damaged,
    /// Written by another version of this program.
    #[error("the drive's state has format {0}, this program knows {VERSION}: use the newer program")]
    Version(u32),
    /// The device failed.
    #[error("the drive's state cannot be read: {0}")]
    Io(#[from] Error),
}

/// Why a device was not formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// There is something on it.
    #[error(
        "the first MiB of the device is not blank: nothing is overwritten. If it is not needed, zero it first"
    )]
    NotBlank,
    /// The device failed, or the payload is too large. The device may be formatted, blank, or in between: then it counts as
    /// blank.
    #[error("the device cannot be formatted: {0}")]
    Io(#[from] Error),
}

/// A state from the device.
#[derive(Debug)]
pub struct Loaded {
    /// The disk's UUID.
    pub uuid: [u8; 16],
    /// What was last written.
    pub payload: Zeroizing<Vec<u8>>,
}

/// The state of a drive on the device below.
pub struct Store {
    io: BlockIo,
    /// Bytes of each slot from its start that may be other than zero.
    used: [usize; 2],
    state: Option<State>,
}

struct State {
    key: Secret<32>,
    uuid: [u8; 16],
    /// The slot in force.
    good: usize,
    /// The highest generation that may be on the device.
    generation: u64,
    /// Payloads that came into force since this store was made.
    in_force: u64,
    /// The slot that is not in force holds what was to be wiped.
    wipe_pending: bool,
}

/// Both slots as they are on the device.
struct Area {
    bytes: Vec<u8>,
    slots: [Slot; 2],
}

/// What an area is as a whole.
enum Found {
    /// The number of the newest whole slot.
    State(usize, Header),
    Blank,
    Torn,
    Foreign,
}

impl Area {
    fn slot(&self, number: usize) -> &[u8] {
        &self.bytes[number * SLOT..][..SLOT]
    }

    fn found(&self) -> Found {
        let whole = |number: usize| match self.slots[number] {
            Slot::Whole(header) => Some((number, header)),
            _ => None,
        };
        let newest = (0..2).filter_map(whole).max_by_key(|(_, header)| header.generation);
        if let Some((number, header)) = newest {
            return Found::State(number, header);
        }
        match self.slots {
            // The marker is durable before anything else is written.
            [Slot::Marker, _] | [Slot::Blank | Slot::PartOfMarker, Slot::Blank] => Found::Blank,
            [Slot::Torn, _] | [_, Slot::Torn] => Found::Torn,
            _ => Found::Foreign,
        }
    }
}

impl Store {
    /// The state on the device of `channel`, which was opened for `reactor` and has blocks of `block_size` bytes. Blocks the
    /// calling thread, so that the reactor must be its own and no one of the data path.
    pub fn new(reactor: Reactor, channel: Rc<dyn Channel>, block_size: u32) -> Self {
        let io = BlockIo::new(reactor, channel, block_size, Abilities::WRITE);
        Self { io, used: [SLOT; 2], state: None }
    }

    fn read(&mut self) -> Result<Area, Error> {
        let mut bytes = vec![0; 2 * SLOT];
        self.io.read(0, &mut bytes)?;
        let mut slots = [Slot::Unknown; 2];
        for (number, slot) in slots.iter_mut().enumerate() {
            if let Some(bytes) = bytes[number * SLOT..].first_chunk() {
                *slot = slot::look(bytes);
            }
        }
        let area = Area { bytes, slots };
        self.used = [0, 1].map(|number| slot::used(area.slot(number)));
        Ok(area)
    }

    fn newest(&mut self) -> Result<(Area, usize, Header), LoadError> {
        let area = self.read()?;
        let (number, header) = match area.found() {
            Found::State(number, header) => (number, header),
            Found::Blank => return Err(LoadError::Blank),
            Found::Torn => return Err(LoadError::Damaged),
            Found::Foreign => return Err(LoadError::Foreign),
        };
        if header.version != VERSION {
            return Err(LoadError::Version(header.version));
        }
        Ok((area, number, header))
    }

    /// The UUID of the disk, without its key (so unproven: whoever writes to the device can change it). Writes nothing.
    ///
    /// # Errors
    /// As [`Self::load`], but for a wrong key.
    pub fn uuid(&mut self) -> Result<[u8; 16], LoadError> {
        self.newest().map(|(_, _, header)| header.uuid)
    }

    /// Whether the device is blank (or was only half formatted), so that [`Self::format`] takes it. Writes nothing.
    ///
    /// # Errors
    /// Those of the device.
    pub fn is_blank(&mut self) -> Result<bool, Error> {
        Ok(matches!(self.read()?.found(), Found::Blank))
    }

    /// The state in force. Writes only if it was left to be done by a format or a wipe that was interrupted.
    ///
    /// # Errors
    /// See [`LoadError`]. After an error nothing can be written.
    pub fn load(&mut self, device_key: &Secret<32>) -> Result<Loaded, LoadError> {
        self.state = None;
        let (area, good, header) = self.newest()?;
        let key = kdf::derive(device_key, &header.uuid, PURPOSE);
        let sealed = area.slot(good)[HEADER..].get(..header.sealed).unwrap_or_default();
        let context = area.slot(good).get(..CONTEXT).unwrap_or_default();
        let payload = seal::open(&key, context, sealed).map_err(|_| LoadError::WrongDeviceKey)?;
        let other = area.slots[1 - good];
        let is_left =
            header.wipes_other && other != Slot::Blank || matches!(other, Slot::Marker | Slot::PartOfMarker);
        if is_left {
            self.wipe(1 - good)?;
        }
        // An older state's generation is lower; one that was only begun is not whole.
        let (uuid, generation) = (header.uuid, header.generation);
        self.state = Some(State { key, uuid, good, generation, in_force: 1, wipe_pending: false });
        Ok(Loaded { uuid, payload })
    }

    /// Makes a drive of a blank device, with a UUID that no other has (see [`seal::random`]) and a first payload of at most
    /// [`MAX_PAYLOAD`] bytes. Durable when it returns.
    ///
    /// # Errors
    /// See [`FormatError`]. After an error nothing can be written; [`Self::load`] tells what there is.
    pub fn format(
        &mut self,
        device_key: &Secret<32>,
        uuid: [u8; 16],
        payload: &[u8],
    ) -> Result<(), FormatError> {
        self.state = None;
        if !self.is_blank()? {
            return Err(FormatError::NotBlank);
        }
        let key = kdf::derive(device_key, &uuid, PURPOSE);
        let bytes = self.sealed_slot(&key, uuid, 1, payload, false, 1)?;
        let mut marker = MARKER.to_vec();
        marker.resize(self.whole_blocks(MARKER.len()), 0);
        self.used[0] = self.used[0].max(MARKER.len());
        self.io.write(self.first_block(0), &marker)?;
        self.io.flush()?;
        self.write_slot(1, &bytes)?;
        self.wipe(0)?;
        self.state = Some(State { key, uuid, good: 1, generation: 1, in_force: 1, wipe_pending: false });
        Ok(())
    }

    /// Puts a payload of at most [`MAX_PAYLOAD`] bytes into force; durable when it returns. With `wipe_old` nothing of the
    /// one before is left on the device by then.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidInput`]: too large, or there is no state: nothing was written.
    /// - Those of the device. If [`Self::in_force`] has not changed, the old payload is in force here, and the device may
    ///   hold the new one all the same. If it has, then the new one is in force, and the old one could not be wiped: that is
    ///   done by the next write, before it returns, or by the next [`Self::load`].
    pub fn write(&mut self, payload: &[u8], wipe_old: bool) -> Result<(), Error> {
        let Some(state) = &mut self.state else {
            return Err(Error::new(ErrorKind::InvalidInput, "no state has been loaded"));
        };
        let (target, old) = (1 - state.good, state.good);
        // Never one that is on the device already, so that the newest is never in question.
        let generation = state.generation.saturating_add(1);
        let (key, uuid) = (Secret::copy(state.key.bytes()), state.uuid);
        let bytes = self.sealed_slot(&key, uuid, generation, payload, wipe_old, target)?;
        self.state_mut(|state| state.generation = generation);
        self.write_slot(target, &bytes)?;
        self.state_mut(|state| {
            state.good = target;
            state.in_force += 1;
            // If the target was to be wiped, then it has been: every byte of it was overwritten.
            state.wipe_pending = wipe_old;
        });
        if wipe_old {
            self.wipe(old)?;
            self.state_mut(|state| state.wipe_pending = false);
        }
        Ok(())
    }

    /// How many payloads have come into force since this store was made, the loaded or formatted one included: a
    /// [`Self::write`] that fails has changed it or not.
    pub fn in_force(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.in_force)
    }

    /// Whether an older payload that was to be wiped may still be on the device.
    pub fn is_wipe_pending(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.wipe_pending)
    }

    fn state_mut(&mut self, change: impl FnOnce(&mut State)) {
        if let Some(state) = &mut self.state {
            change(state);
        }
    }

    /// The bytes for `slot`: whole blocks, which cover all that it may hold.
    fn sealed_slot(
        &self,
        key: &Secret<32>,
        uuid: [u8; 16],
        generation: u64,
        payload: &[u8],
        wipes_other: bool,
        slot: usize,
    ) -> Result<Vec<u8>, Error> {
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::new(ErrorKind::InvalidInput, "the drive's state does not fit its slot"));
        }
        let sealed = payload.len() + (SLOT - HEADER - MAX_PAYLOAD);
        let header = Header { version: VERSION, sealed, uuid, generation, wipes_other };
        let internal = |error| Error::new(ErrorKind::Internal, error);
        let sealed = seal::seal(key, &header.context(), payload).map_err(internal)?;
        if sealed.len() != header.sealed {
            return Err(Error::new(ErrorKind::Internal, "a seal of another length"));
        }
        let mut bytes = vec![0; self.whole_blocks(self.used[slot].max(HEADER + sealed.len()))];
        header.write(&sealed, &mut bytes);
        Ok(bytes)
    }

    fn write_slot(&mut self, slot: usize, bytes: &[u8]) -> Result<(), Error> {
        self.used[slot] = self.used[slot].max(bytes.len());
        self.io.write(self.first_block(slot), bytes)?;
        self.io.flush()?;
        self.used[slot] = slot::used(bytes);
        Ok(())
    }

    /// Overwrites with zeroes all that the slot may hold, and flushes.
    fn wipe(&mut self, slot: usize) -> Result<(), Error> {
        self.write_slot(slot, &vec![0; self.whole_blocks(self.used[slot])])
    }

    fn whole_blocks(&self, bytes: usize) -> usize {
        bytes.next_multiple_of(self.io.block_size().max(1)).min(SLOT)
    }

    fn first_block(&self, slot: usize) -> u64 {
        (slot * SLOT / self.io.block_size().max(1)) as u64
    }
}

#[cfg(test)]
mod tests;
