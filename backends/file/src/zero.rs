//! Discard and write zeroes: by fallocate, in pieces, and by writing where there is nothing better.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use block::{Abilities, Completed, Error, Flags, Io, Op};
use io_uring::{opcode, types};

use crate::channel::Shared;
use crate::image::ZEROES;
use crate::transfer::whole;

/// Bytes that are given back or zeroed by one call: a file system may hold the file locked meanwhile.
const STEP: u64 = 1 << 30;
/// `BLOCK_URING_CMD_DISCARD` of linux/blkdev.h (Linux 6.12).
const BLOCK_URING_CMD_DISCARD: u32 = 0x12 << 8;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Gives the range back. Where nobody can take it, it keeps its data, unless the device promised zeroes.
pub(crate) async fn discard(shared: Rc<Shared>, io: Io) -> Completed {
    let result = each_step(&io, &shared, async |offset, len| {
        let image = &shared.resources.image;
        if fallocate(&shared, &io, &image.no_punch, PUNCH, offset, len).await? {
            return Ok(());
        }
        if image.info.abilities.contains(Abilities::DISCARD_ZEROES) {
            return zeroes(&shared, &io, false, offset, len).await;
        }
        if image.is_device {
            let command = opcode::UringCmd16::new(types::Fd(image.fd()), BLOCK_URING_CMD_DISCARD);
            let mut rest = [0; 16];
            rest[..8].copy_from_slice(&len.to_ne_bytes());
            // A hint: a refusal leaves the data, which is allowed.
            let _ = shared.plain(&io, command.addr(Some(offset)).cmd(rest).build()).await;
        }
        Ok(())
    })
    .await;
    io.complete(result)
}

/// Makes the range read as zeroes.
pub(crate) async fn write_zeroes(shared: Rc<Shared>, io: Io) -> Completed {
    let may_unmap = io.flags.contains(Flags::MAY_UNMAP);
    let mut result =
        each_step(&io, &shared, async |offset, len| zeroes(&shared, &io, may_unmap, offset, len).await).await;
    if result.is_ok() && io.flags.contains(Flags::FUA) {
        result = shared.sync().await;
    }
    io.complete(result)
}

/// Calls `step` with the byte offset and length of each piece of the range.
async fn each_step(
    io: &Io,
    shared: &Shared,
    step: impl AsyncFn(u64, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let block_size = u64::from(shared.resources.image.info.block_size);
    let (mut offset, end) = (io.lba * block_size, (io.lba + io.blocks) * block_size);
    while offset < end {
        let len = STEP.min(end - offset);
        step(offset, len).await?;
        offset += len;
    }
    Ok(())
}

async fn zeroes(shared: &Shared, io: &Io, may_unmap: bool, offset: u64, len: u64) -> Result<(), Error> {
    let image = &shared.resources.image;
    let (punch, zero) = ((&image.no_punch, PUNCH), (&image.no_zero_range, ZERO));
    // The other one as well: a hole reads as zeroes too, and neither costs the space that writing would.
    for (lacking, mode) in if may_unmap { [punch, zero] } else { [zero, punch] } {
        if fallocate(shared, io, lacking, mode, offset, len).await? {
            return Ok(());
        }
    }
    let (ptr, mut done) = (image.zeroes()?.as_ptr(), 0);
    while done < len {
        let piece = (len - done).min(ZEROES as u64) as usize;
        // SAFETY: the zeroes live as long as the image, which `whole` keeps; a write changes nothing there.
        unsafe { whole(shared, Op::Write, 0, ptr, piece, offset + done, io.guard().cloned()).await? };
        done += piece as u64;
    }
    Ok(())
}

/// False if this file system or device does not have that mode, which is remembered, or not for this range.
async fn fallocate(
    shared: &Shared,
    io: &Io,
    lacking: &AtomicBool,
    mode: i32,
    offset: u64,
    len: u64,
) -> Result<bool, Error> {
    if lacking.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let image = &shared.resources.image;
    let entry = opcode::Fallocate::new(types::Fd(image.fd()), len).offset(offset).mode(mode).build();
    match shared.plain(io, entry).await {
        Ok(()) => Ok(true),
        // A range of half a block of the device, say: another one may do.
        Err(libc::EINVAL) => Ok(false),
        Err(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => {
            lacking.store(true, Ordering::Relaxed);
            Ok(false)
        }
        Err(errno) => Err(image.error(io.op, errno)),
    }
}
