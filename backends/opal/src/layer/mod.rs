//! The encrypting layer: from an `Io` on the drive to one on the device below, whose blocks hold ciphertext.
//!
//! - Block `n` of the drive is block [`Layout::data_start`]` + n` below, and data unit `n` of AES-256-XTS with the key of its
//!   range. Geometry stays: one `Io` makes one `Io` below, whatever ranges it spans.
//! - Locks ([`RangeMap`]): an `Io` that touches one locked block gets [`ErrorKind::AccessDenied`](block::ErrorKind) as a
//!   whole. They hold from the moment [`Shared::publish`] returns for every `Io` that is submitted later.
//! - Reads are decrypted where the device below has put them, in the guest's memory: so that shows ciphertext for a moment,
//!   and keeps it if the read fails or is cancelled. A guest that writes there meanwhile may get what it wrote decrypted with
//!   the key of a range that is open to it: that tells it nothing about the key (AES withstands chosen ciphertexts) or about
//!   other ranges.
//! - Writes are encrypted from the guest's memory, each byte of which is read once, into a buffer of the channel's
//!   pool ([`POOL_BYTES`]), from which they are written.
//! - `sparse`: blocks that are all zeroes below read as zeroes, so discards and zeroes are passed down, and whoever sees the
//!   device below sees which blocks hold nothing. That some data's ciphertext is all zeroes has probability 2^-4096 per block
//!   of 512 bytes, and is not looked for. Without it, discards are not offered, and zeroes are encrypted like other data.
//!
//! ## MBR shadow
//!
//! While [`RangeMap::shadow`] is there (MBRControl: Enable and not Done; Core 2.01, 5.7.2.5; Opal 2.02, 4.3.5.4), reads that
//! lie in the MBR table show it, whatever the locks of these blocks are. Reads beyond it are treated as always, by the locks of
//! their range, and a read that lies in both is refused. So is every write, wherever.
//!
//! ## How keys go
//!
//! Key schedules belong to one channel each (aws-lc's contexts are not for several threads), in what it makes of a map
//! (its epoch). A channel
//! takes the newest map when it gets its next `Io`; for those that get none, `publish` leaves a note in the inbox of their
//! reactor, which makes them do so at its next turn, and wakes it for that. I/Os under way hold the epoch that they began with
//! until they end. [`Shared::is_settled`] tells when all channels have let go of what was published before.

mod channel;
mod codec;
mod epoch;
pub mod map;
mod pool;
mod read;
mod shared;
mod slots;
mod write;
mod zeroes;

use std::rc::Rc;
use std::sync::Arc;

use block::{Abilities, Channel, Error, Info, Reactor};

use crate::Layout;

pub use pool::POOL_BYTES;
pub use shared::Shared;

use channel::OpalChannel;

/// What the drive is like, over a device that is like `inner`.
pub fn outer_info(inner: &Info, layout: &Layout, sparse: bool) -> Info {
    let mut info = Info::new(inner.block_size, layout.blocks);
    info.atomic_write_blocks = inner.atomic_write_blocks;
    // Only where both sides agree about where the units start.
    let granularity = |unit: u32| if layout.data_start().is_multiple_of(u64::from(unit)) { unit } else { 1 };
    info.preferred_granularity = granularity(inner.preferred_granularity);
    info.discard_granularity = granularity(inner.discard_granularity);
    info.abilities = inner.abilities & (Abilities::WRITE | Abilities::VOLATILE_CACHE);
    if info.abilities.contains(Abilities::WRITE) {
        info.abilities |= Abilities::WRITE_ZEROES;
        info.abilities |= inner.abilities
            & if sparse {
                Abilities::DISCARD | Abilities::DISCARD_ZEROES
            } else {
                Abilities::COMPARE_AND_WRITE
            };
    }
    if info.abilities.contains(Abilities::COMPARE_AND_WRITE) {
        info.compare_and_write_blocks = inner.compare_and_write_blocks;
    }
    info
}

/// A channel of the drive, over a channel of the device below.
///
/// # Errors
/// [`block::ErrorKind::Internal`]: there is no memory for key schedules.
pub fn open_channel(
    inner: Box<dyn Channel>,
    shared: &Arc<Shared>,
    reactor: &Reactor,
) -> Result<Box<dyn Channel>, Error> {
    open_channel_with(inner, shared, reactor, POOL_BYTES)
}

/// The same, with a pool of `pool_bytes` instead of [`POOL_BYTES`].
///
/// # Errors
/// As [`open_channel`].
pub fn open_channel_with(
    inner: Box<dyn Channel>,
    shared: &Arc<Shared>,
    reactor: &Reactor,
    pool_bytes: usize,
) -> Result<Box<dyn Channel>, Error> {
    Ok(Box::new(OpalChannel::open(Rc::from(inner), shared, reactor, pool_bytes)?))
}
