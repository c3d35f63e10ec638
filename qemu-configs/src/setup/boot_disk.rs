//! A disk image that boots on its own, for guests that start from the NVMe disk: a GPT with GRUB's core for SeaBIOS, a FAT
//! partition with systemd-boot for OVMF (and the kernel for both), and the root image.

use super::host::Prefix;
use super::{BOOT_DISK_ROOT, CMDLINE, run};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
/// The partitions' starts and sizes, in MiB: GRUB, EFI system partition; the root follows.
const GRUB: (u64, u64) = (1, 1);
const ESP: (u64, u64) = (2, 96);
const ROOT_START: u64 = 98;

pub fn recipe() -> String {
    include_str!("boot_disk.rs").to_owned() + CMDLINE
}

/// `guest` is the directory with kernel, initramfs and root image.
pub fn build(host: &Prefix, guest: &Path, to: &Path) -> Result<()> {
    let mut root = File::open(guest.join("root.erofs"))?;
    let root_mib = root.metadata()?.len().div_ceil(MIB);
    let mut disk = File::create_new(to.join("disk.raw"))?;
    disk.set_len((ROOT_START + root_mib + 1) * MIB)?;
    partition(host, &to.join("disk.raw"), root_mib)?;

    let cmdline = format!("{CMDLINE} groot=/dev/nvme0n1p{BOOT_DISK_ROOT}:erofs");
    let esp = to.join("esp");
    system_partition(host, guest, to, &esp, &cmdline)?;
    copy_into(&mut disk, &mut File::open(&esp)?, ESP.0 * MIB)?;
    copy_into(&mut disk, &mut root, ROOT_START * MIB)?;
    grub(host, to, &disk, &cmdline)?;
    for scratch in ["esp", "text", "core"] {
        fs::remove_file(to.join(scratch))?;
    }
    Ok(())
}

fn partition(host: &Prefix, disk: &Path, root_mib: u64) -> Result<()> {
    let table = format!(
        "label: gpt\n\
         start={}MiB, size={}MiB, type=21686148-6449-6E6F-744E-656564454649\n\
         start={}MiB, size={}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
         start={ROOT_START}MiB, size={root_mib}MiB, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n",
        GRUB.0, GRUB.1, ESP.0, ESP.1
    );
    let mut sfdisk = host.command("sfdisk").arg("--quiet").arg(disk).stdin(Stdio::piped()).spawn()?;
    sfdisk.stdin.take().context("a pipe was asked for")?.write_all(table.as_bytes())?;
    let status = sfdisk.wait()?;
    ensure!(status.success(), "sfdisk: {status}");
    Ok(())
}

/// A FAT file system with the kernel and, for OVMF, systemd-boot.
fn system_partition(host: &Prefix, guest: &Path, scratch: &Path, esp: &Path, cmdline: &str) -> Result<()> {
    File::create(esp)?.set_len(ESP.1 * MIB)?;
    run(host.command("mkfs.fat").args(["-F32", "-n", "ESP"]).arg(esp))?;
    let mtools = |name| {
        let mut command = host.command(name);
        command.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(esp);
        command
    };
    run(mtools("mmd").args(["::EFI", "::EFI/BOOT", "::loader", "::loader/entries"]))?;
    let text = scratch.join("text");
    let entry = format!("title Linux\nlinux /vmlinuz\ninitrd /initrd\noptions {cmdline}\n");
    let loader = host.file("usr/lib/systemd/boot/efi/systemd-bootx64.efi");
    for (content, file, name) in [
        (None, loader.as_path(), "EFI/BOOT/BOOTX64.EFI"),
        (None, &guest.join("vmlinuz"), "vmlinuz"),
        (None, &guest.join("initramfs"), "initrd"),
        (Some("timeout 0\ndefault linux\nconsole-mode keep\n"), &text, "loader/loader.conf"),
        (Some(entry.as_str()), &text, "loader/entries/linux.conf"),
    ] {
        if let Some(content) = content {
            fs::write(file, content)?;
        }
        run(mtools("mcopy").arg(file).arg(format!("::{name}")))?;
    }
    Ok(())
}

/// GRUB for the BIOS, as `grub-install` would place it: boot.img in the first sector, the core in a partition of its own,
/// each told where the next piece lies.
fn grub(host: &Prefix, scratch: &Path, disk: &File, cmdline: &str) -> Result<()> {
    let modules = host.file("usr/lib/grub/i386-pc");
    let config = scratch.join("text");
    fs::write(
        &config,
        format!(
            "serial --unit=0\nterminal_output serial\nset root=(hd0,gpt2)\n\
             linux /vmlinuz {cmdline}\ninitrd /initrd\nboot\n"
        ),
    )?;
    let core = scratch.join("core");
    run(host
        .command("grub-mkimage")
        .args(["-O", "i386-pc", "-p", "(hd0,gpt2)/grub", "-d"])
        .arg(&modules)
        .arg("-c")
        .arg(&config)
        .arg("-o")
        .arg(&core)
        .args(["biosdisk", "part_gpt", "fat", "linux", "serial", "terminal", "normal", "minicmd"]))?;
    let mut boot = fs::read(modules.join("boot.img"))?;
    let mut core = fs::read(&core)?;
    ensure!(core.len() as u64 <= GRUB.1 * MIB, "GRUB's core does not fit its partition");
    let first = GRUB.0 * MIB / SECTOR;
    // Offsets from GRUB's include/grub/i386/pc/boot.h: the core's first sector, the jump that a hard disk skips; and, at
    // the end of the core's own first sector, the block list of its rest.
    boot.truncate(440);
    boot.get_mut(0x5c..0x64).context("boot.img is too short")?.copy_from_slice(&first.to_le_bytes());
    boot.get_mut(0x66..0x68).context("boot.img is too short")?.copy_from_slice(&[0x90, 0x90]);
    core.get_mut(0x1f4..0x1fc)
        .context("GRUB's core is too short")?
        .copy_from_slice(&(first + 1).to_le_bytes());
    disk.write_all_at(&boot, 0)?;
    disk.write_all_at(&core, first * SECTOR)?;
    Ok(())
}

/// Copies a file to an offset of the disk; blocks of zeros stay holes.
fn copy_into(disk: &mut File, from: &mut File, offset: u64) -> Result<()> {
    let mut piece = vec![0; MIB as usize];
    let mut at = offset;
    loop {
        let n = from.read(&mut piece)?;
        if n == 0 {
            return Ok(());
        }
        if piece[..n].iter().any(|&byte| byte != 0) {
            disk.seek(SeekFrom::Start(at))?;
            disk.write_all(&piece[..n])?;
        }
        at += n as u64;
    }
}
