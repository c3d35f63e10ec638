//! Programs for the host from Debian's packages in a directory of their own: QEMU, its firmware, and the tools that make
//! images. They run with the C library that came with them, so the host's release does not matter.

use super::apt::{Apt, BACKPORTS};
use super::run;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "ovmf",
    "seabios",
    // Images.
    "erofs-utils",
    "dosfstools",
    "fdisk",
    "grub-common",
    "grub-pc-bin",
    "kmod",
    "mtools",
    "systemd-boot-efi",
    "xz-utils",
    "zstd",
    // Pictures.
    "fonts-dejavu-core",
];

/// What is reached by name in `bin`.
const PROGRAMS: &[&str] = &[
    "qemu-system-x86_64",
    "grub-mkimage",
    "mcopy",
    "mkfs.erofs",
    "mkfs.fat",
    "mmd",
    "modprobe",
    "depmod",
    "sfdisk",
    "xz",
    "zstd",
];

/// Works from wherever the directory lies. Debian splits QEMU's firmware over two directories.
const LAUNCHER: &str = r#"#!/bin/sh
# Runs the program that the link to this script is named after, with this directory's own libraries.
root=$(dirname "$(readlink -f "$0")")/../root
name=${0##*/}
for program in "$root/usr/bin/$name" "$root/usr/sbin/$name"; do [ -e "$program" ] && break; done
case $name in qemu-system-*) set -- -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@" ;; esac
libraries=$root/usr/lib/x86_64-linux-gnu
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/systemd" --argv0 "$name" "$program" "$@"
"#;

pub fn recipe() -> String {
    include_str!("host.rs").to_owned()
}

pub fn build(apt: &Apt, to: &Path) -> Result<()> {
    apt.unpack(BACKPORTS, PACKAGES, &to.join("root"))?;
    fs::create_dir(to.join("bin"))?;
    let launcher = to.join("bin/.launcher");
    fs::write(&launcher, LAUNCHER)?;
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755))?;
    for program in PROGRAMS {
        symlink(".launcher", to.join("bin").join(program))?;
    }
    for directory in ["doc", "man", "locale", "info"] {
        super::cache::remove(&to.join("root/usr/share").join(directory))?;
    }
    run(Prefix::at(to).command("qemu-system-x86_64").args(["-device", "vfio-user-pci,help"]))
        .context("this QEMU has no vfio-user-pci")
}

/// The directory that [`build`] made.
pub struct Prefix {
    path: PathBuf,
}

impl Prefix {
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.path.join("bin").join(name)
    }

    pub fn command(&self, name: &str) -> Command {
        Command::new(self.program(name))
    }

    pub fn file(&self, path: &str) -> PathBuf {
        self.path.join("root").join(path)
    }
}
