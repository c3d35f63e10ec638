//! Takes the uncompressed kernel out of Debian's compressed one: QEMU starts it by its PVH entry, without the
//! decompressor, which is slow where the CPU is emulated.

use super::host::Prefix;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

/// Reads a bzImage with a zstd payload and writes the ELF file.
pub fn extract(host: &Prefix, compressed: &Path, to: &Path) -> Result<()> {
    let image = fs::read(compressed)?;
    let payload = payload(&image).context("this is no Linux kernel")?;
    ensure!(payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "the kernel is not compressed with zstd");
    let packed = to.with_extension("zst");
    fs::write(&packed, payload)?;
    let mut zstd: Command = host.command("zstd");
    let status = zstd
        .arg("-dc")
        .stdin(File::open(&packed)?)
        .stdout(File::create(to)?)
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "zstd could not unpack the kernel: {status}");
    fs::remove_file(&packed)?;
    Ok(())
}

/// The payload that the boot header names (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length),
/// without the unpacked size that follows it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup = match image.get(0x1f1)? {
        0 => 4,
        n => usize::from(*n),
    };
    let start = (setup + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?.checked_sub(4)?)
}
