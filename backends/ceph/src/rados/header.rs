//! [`Header`]: the object that says what a volume is.
//!
//! The object `quarry_volume.NAME` has the header as its contents, and as attributes `generation`, a number that each change
//! makes larger, and `owner`, the address of the client that has the volume open for writing: it stays there when that
//! client dies. The data are in objects `quarry_data.ID.NUMBER`, made when they are first written to, with
//! [`Header::object_size`] bytes each.
//!
//! ```text
//!  0  8 bytes  QUARRYV1
//!  8  u32      bytes of the header
//! 12  u32      bytes in an object: a power of two
//! 16  16 bytes the volume's identity
//! 32  u64      bytes of the volume; none if it is being removed
//! 40  u64      bytes up to which there may be objects: more while the volume is cut off, or when that was interrupted
//! 48  u32      bytes of the name that follows
//! 52           the name of the pool of the data; if empty, it is the header's own
//! ```
//! Little-endian.

use std::ops::RangeInclusive;

use crate::cluster::Pool;
use crate::ffi::Errno;

const MAGIC: &[u8; 8] = b"QUARRYV1";
const FIXED: usize = 52;
/// Longest header.
const MOST: usize = 4096;
/// Bytes that an object can have.
pub(super) const OBJECT_SIZES: RangeInclusive<u32> = 64 << 10..=32 << 20;
/// Largest volume: RBD's images end there as well, and every number stays far from its end.
pub(super) const LARGEST: u64 = 1 << 60;

pub(super) const GENERATION: &str = "generation";
pub(super) const OWNER: &str = "owner";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: [u8; 16],
    pub(super) size: u64,
    /// Not less than the size.
    pub(super) reach: u64,
    pub(super) object_size: u32,
    pub(super) data_pool: String,
    pub(super) generation: u64,
    /// Empty if nobody has it.
    pub(super) owner: String,
}

/// Why there is no header.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The cluster says so.
    Errno(Errno),
    /// What is there is none.
    Malformed(&'static str),
}

/// The name of the header's object.
pub(super) fn object(volume: &str) -> String {
    format!("quarry_volume.{volume}")
}

/// Removes the object if it has no header: a lock has made it where a volume was just removed.
pub(super) fn sweep(pool: &Pool, volume: &str) -> Result<(), Errno> {
    pool.operate(&object(volume), |op| {
        op.assert_exists();
        op.compare_attribute(GENERATION, ""); // as one that is missing compares
        op.remove();
    })
}

impl Header {
    /// As the object has it, without its attributes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.data_pool.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&((FIXED + self.data_pool.len()) as u32).to_le_bytes());
        bytes.extend_from_slice(&self.object_size.to_le_bytes());
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.reach.to_le_bytes());
        bytes.extend_from_slice(&(self.data_pool.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.data_pool.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let u32_at =
            |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let u64_at =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        match bytes.get(..8) {
            Some(magic) if magic == MAGIC => {}
            Some(magic) if magic.starts_with(b"QUARRYV") => return Err("it is of a newer version of Quarry"),
            _ => return Err("it is no header of a volume"),
        }
        let malformed = "it is damaged";
        if u32_at(8).ok_or(malformed)? as usize != bytes.len() {
            return Err(malformed);
        }
        let id = bytes.get(16..32).and_then(|id| id.try_into().ok()).ok_or(malformed)?;
        let (size, reach) = (u64_at(32).ok_or(malformed)?, u64_at(40).ok_or(malformed)?);
        let object_size = u32_at(12).ok_or(malformed)?;
        if !object_size.is_power_of_two() || !OBJECT_SIZES.contains(&object_size) {
            return Err(malformed);
        }
        if size > reach || reach > LARGEST {
            return Err(malformed);
        }
        let name = bytes.get(FIXED..).ok_or(malformed)?;
        if u32_at(48).ok_or(malformed)? as usize != name.len() {
            return Err(malformed);
        }
        let data_pool = String::from_utf8(name.to_vec()).map_err(|_| malformed)?;
        Ok(Self { id, size, reach, object_size, data_pool, generation: 0, owner: String::new() })
    }

    /// Reads a volume's header.
    pub(super) fn read(pool: &Pool, volume: &str) -> Result<Self, ReadError> {
        let object = object(volume);
        // Attributes first: a change that comes between makes its own comparison fail.
        let generation = pool.attribute(&object, GENERATION);
        let bytes = pool.read(&object, MOST).map_err(ReadError::Errno)?;
        if bytes.is_empty() && generation == Err(Errno(libc::ENODATA)) {
            return Err(ReadError::Errno(Errno(libc::ENOENT))); // see `sweep`
        }
        let mut header = Self::decode(&bytes).map_err(ReadError::Malformed)?;
        let generation = generation.map_err(ReadError::Errno)?;
        header.generation = generation.parse().map_err(|_| ReadError::Malformed("it is damaged"))?;
        header.owner = pool.attribute(&object, OWNER).map_err(ReadError::Errno)?;
        Ok(header)
    }

    /// Makes the header of a new volume. EEXIST if there is one.
    pub(super) fn create(&self, pool: &Pool, volume: &str) -> Result<(), Errno> {
        let _ = sweep(pool, volume);
        pool.operate(&object(volume), |op| {
            op.create();
            op.write_full(&self.encode());
            op.set_attribute(GENERATION, &self.generation.to_string());
            op.set_attribute(OWNER, &self.owner);
        })
    }

    /// Makes it what `change` makes of it, unless somebody else has changed it since it was read: ECANCELED then.
    pub(super) fn update(
        &mut self,
        pool: &Pool,
        volume: &str,
        change: impl FnOnce(&mut Self),
    ) -> Result<(), Errno> {
        let mut changed = self.clone();
        change(&mut changed);
        changed.generation = self.generation.wrapping_add(1);
        pool.operate(&object(volume), |op| {
            op.assert_exists();
            op.compare_attribute(GENERATION, &self.generation.to_string());
            op.write_full(&changed.encode());
            op.set_attribute(GENERATION, &changed.generation.to_string());
            op.set_attribute(OWNER, &changed.owner);
        })?;
        *self = changed;
        Ok(())
    }

    /// The identity as text.
    pub(super) fn id_text(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The pool of the data.
    pub(super) fn data_pool_name<'h>(&'h self, header_pool: &'h str) -> &'h str {
        if self.data_pool.is_empty() { header_pool } else { &self.data_pool }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            id: *b"0123456789abcdef",
            size: 10 << 30,
            reach: 11 << 30,
            object_size: 4 << 20,
            data_pool: "ec".to_owned(),
            generation: 0,
            owner: String::new(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = header().encode();
        assert_eq!((bytes.len(), &bytes[..8], &bytes[52..]), (54, &MAGIC[..], &b"ec"[..]));
        assert_eq!(Header::decode(&bytes), Ok(header()));
        let own = Header { data_pool: String::new(), ..header() };
        assert_eq!(Header::decode(&own.encode()).as_ref(), Ok(&own));
        assert_eq!((own.data_pool_name("rbd"), header().data_pool_name("rbd")), ("rbd", "ec"));
        assert_eq!(header().id_text(), "30313233343536373839616263646566");
    }

    #[test]
    fn anything_else_is_refused() {
        let good = header().encode();
        for len in 0..good.len() {
            assert!(Header::decode(&good[..len]).is_err(), "{len} bytes");
        }
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            Header::decode(&bad)
        };
        assert_eq!(with(7, b"2"), Err("it is of a newer version of Quarry"));
        assert_eq!(with(0, b"R"), Err("it is no header of a volume"));
        for (at, bytes) in [
            (8, &[0xff; 4][..]),
            (12, &[0; 4]),
            (12, &3u32.to_le_bytes()),
            (12, &(64u32 << 20).to_le_bytes()),
            (32, &[0xff; 8]),
            (40, &[0; 8]),
            (40, &[0xff; 8]),
            (48, &[0xff; 4]),
            (52, &[0xff, 0xfe]),
        ] {
            assert_eq!(with(at, bytes), Err("it is damaged"), "{at}");
        }
        assert!(Header::decode(&[&good[..], b"x"].concat()).is_err());
    }
}
