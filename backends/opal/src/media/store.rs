//! [`Store`]: the state in two slots, of which the newest whole one counts. A new state goes into the other slot, and is
//! durable before anything is done to the old one.
//!
//! A slot: 4096 bytes of header, then the payload, sealed by AES-256-GCM with the header as context. The header is not secret:
//! magic, format, UUID of the drive, generation, length, SHA-256 of all that and of the sealed payload. So a slot that was torn
//! by a power failure is told from one that belongs to another device key.

use aws_lc_rs::digest::{Context, SHA256};
use block::Error;
use zeroize::Zeroizing;

use super::Disk;
use crate::crypto::{kdf, seal};
use crate::layout::SLOT_BYTES;
use crate::secret::Secret;

const MAGIC: &[u8; 16] = b"Quarry Opal disk";
const VERSION: u32 = 1;
/// Bytes that a header takes: a multiple of every block size up to it.
const HEADER: usize = 4096;
/// Bytes of it that say something, before the digest.
const FIELDS: usize = 52;
const DIGEST: usize = 32;

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing was ever written here.
    #[error("the device is blank")]
    Blank,
    /// Something else is there.
    #[error(
        "the device below holds other data, which would be destroyed: the first MiB of a new Opal disk is blank"
    )]
    Foreign,
    /// The state is sealed with another key.
    #[error("the device key is not the one that this disk was made with: name that one in `key`")]
    WrongDeviceKey,
    /// A slot is whole, but says what makes no sense.
    #[error("the state of the disk is damaged: restore the first MiB of the device below from a backup")]
    Damaged,
    /// Written by a later release.
    #[error(
        "the state of the disk has format {0}, which is later than this release's {VERSION}: use a later release"
    )]
    Version(u32),
    /// The device does not answer.
    #[error("{0}")]
    Io(#[from] Error),
}

/// The slots.
pub struct Store {
    disk: Disk,
    key: Option<Secret<32>>,
    uuid: [u8; 16],
    generation: u64,
    /// The slot whose state is in force.
    current: usize,
    /// The other slot may hold what has to be destroyed.
    dirty: bool,
}

/// A slot that is whole.
struct Slot {
    version: u32,
    uuid: [u8; 16],
    generation: u64,
    header: Vec<u8>,
    sealed: Vec<u8>,
}

fn digest(fields: &[u8], sealed: &[u8]) -> [u8; DIGEST] {
    let mut context = Context::new(&SHA256);
    context.update(fields);
    context.update(sealed);
    let mut bytes = [0; DIGEST];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

fn header(uuid: &[u8; 16], generation: u64, len: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(FIELDS);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(uuid);
    header.extend(generation.to_le_bytes());
    header.extend((len as u64).to_le_bytes());
    header
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// What a slot holds, if it is whole.
fn parse(bytes: &[u8]) -> Option<Slot> {
    let fields = bytes.get(..FIELDS)?;
    if fields[..16] != MAGIC[..] {
        return None;
    }
    let len = usize::try_from(le64(&fields[44..52])).ok()?;
    let sealed = bytes.get(HEADER..)?.get(..len)?;
    if digest(fields, sealed) != bytes[FIELDS..FIELDS + DIGEST] {
        return None;
    }
    Some(Slot {
        version: le64(&fields[16..20]) as u32,
        uuid: fields[20..36].try_into().ok()?,
        generation: le64(&fields[36..44]),
        header: fields.to_vec(),
        sealed: sealed.to_vec(),
    })
}

impl Store {
    /// The slots on a disk, of which nothing is known yet.
    pub fn new(disk: Disk) -> Self {
        Self { disk, key: None, uuid: [0; 16], generation: 0, current: 0, dirty: false }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The drive's UUID.
    pub fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }

    /// The state that is in force.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&mut self, device_key: &Secret<32>) -> Result<Zeroizing<Vec<u8>>, LoadError> {
        let mut area = vec![0; 2 * SLOT_BYTES as usize];
        self.disk.read(0, &mut area)?;
        let halves = area.split_at(SLOT_BYTES as usize);
        let slots = [parse(halves.0), parse(halves.1)];
        let newest = match &slots {
            [None, None] => return Err(Self::without_slot(&area)),
            [Some(_), None] => 0,
            [None, Some(_)] => 1,
            [Some(first), Some(second)] => usize::from(second.generation > first.generation),
        };
        // What is left of a slot that is not in force goes with the next change that destroys something.
        let other = if newest == 0 { halves.1 } else { halves.0 };
        self.dirty = other.iter().any(|byte| *byte != 0);
        let [first, second] = slots;
        let slot = if newest == 0 { first } else { second }.ok_or(LoadError::Damaged)?;
        if slot.version != VERSION {
            return Err(LoadError::Version(slot.version));
        }
        let key = kdf::derive(device_key, &slot.uuid, b"quarry opal state");
        let payload = seal::open(&key, &slot.header, &slot.sealed).map_err(|_| LoadError::WrongDeviceKey)?;
        (self.uuid, self.generation, self.current) = (slot.uuid, slot.generation, newest);
        self.key = Some(key);
        Ok(payload)
    }

    /// What there is where no slot is whole. A disk whose making was interrupted holds a torn first slot and nothing else: the
    /// start of it may be missing, but what is there is ours.
    fn without_slot(area: &[u8]) -> LoadError {
        let (first, second) = area.split_at(SLOT_BYTES as usize);
        if area.iter().all(|byte| *byte == 0) {
            return LoadError::Blank;
        }
        let is_ours = first.starts_with(MAGIC);
        match is_ours && second.iter().all(|byte| *byte == 0) && le64(&first[36..44]) == 1 {
            true => LoadError::Blank,
            false if is_ours || second.starts_with(MAGIC) => LoadError::Damaged,
            false => LoadError::Foreign,
        }
    }

    /// Makes a new disk of a [blank](LoadError::Blank) one; its first state is the next that is written.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn format(&mut self, device_key: &Secret<32>, uuid: [u8; 16]) -> Result<(), Error> {
        // The header comes first by itself: whatever is torn later is known for ours.
        let blocks = SLOT_BYTES / u64::from(self.disk.block_size);
        let mut block = header(&uuid, 1, 0);
        block.resize(HEADER, 0);
        self.disk.write(0, &block)?;
        self.disk.flush()?;
        self.disk.zero(blocks, blocks)?;
        self.key = Some(kdf::derive(device_key, &uuid, b"quarry opal state"));
        (self.uuid, self.generation, self.current, self.dirty) = (uuid, 0, 1, false);
        Ok(())
    }

    fn slot_at(&self, slot: usize) -> u64 {
        slot as u64 * SLOT_BYTES / u64::from(self.disk.block_size)
    }

    /// Makes `payload` the state, durably. `destroys`: nothing is left of the one before when this returns.
    ///
    /// # Errors
    /// The device does not answer. The old state is in force, or the new one if only the destruction of the old one failed;
    /// that is done again by the next write.
    pub fn write(&mut self, payload: &[u8], destroys: bool) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(block::ErrorKind::Internal)?;
        let (target, generation) = (1 - self.current, self.generation + 1);
        let sealed_len = payload.len() + 28;
        let fields = header(&self.uuid, generation, sealed_len);
        let sealed = seal::seal(key, &fields, payload)
            .map_err(|error| Error::new(block::ErrorKind::Internal, error))?;
        let whole = (HEADER + sealed.len()).next_multiple_of(HEADER);
        if sealed.len() != sealed_len || whole as u64 > SLOT_BYTES {
            return Err(Error::new(block::ErrorKind::NoSpace, "the state does not fit into its slot"));
        }
        let mut slot = fields.clone();
        slot.extend(digest(&fields, &sealed));
        slot.resize(HEADER, 0);
        slot.extend(sealed);
        slot.resize(whole, 0);
        self.disk.write(self.slot_at(target), &slot)?;
        self.disk.flush()?;
        (self.current, self.generation, self.dirty) = (target, generation, self.dirty || destroys);
        if destroys {
            let old = 1 - self.current;
            self.disk.zero(self.slot_at(old), SLOT_BYTES / u64::from(self.disk.block_size))?;
            self.disk.flush()?;
        }
        self.dirty = false;
        Ok(())
    }
}
