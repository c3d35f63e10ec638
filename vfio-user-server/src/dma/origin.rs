//! Where the pages of a client's file come from, found out without asking the file's file system: that may be
//! a process of the client's (FUSE), which need not answer fstat(2), fstatfs(2), or a page fault.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, StatxFlags};

/// File systems of this machine's kernel. A page fault in them waits for a disk at most.
const LOCAL: [&str; 9] = ["tmpfs", "hugetlbfs", "devtmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs"];

/// Whether a file is memory, or on a file system of this machine. Otherwise the name of what it is on.
pub(super) fn check(fd: BorrowedFd<'_>) -> Result<(), String> {
    // Answered by the kernel for files of tmpfs (so memfds) and hugetlbfs, and by nobody for all others.
    // Names tell less: a mount of the client's own can have a file "/memfd:".
    if rustix::fs::fcntl_get_seals(fd).is_ok() {
        return Ok(());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("mountinfo: {e}"))?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.map_err(|e| format!("fdinfo: {e}"))?;
    // The file keeps its mount, so the number is nobody else's. In another mount namespace (libvirt's QEMU)
    // the mount is not listed here; the same file system's device may be.
    let found = by_mount(&mounts, &info).or_else(|| by_device(&mounts, &device(fd)?));
    match found {
        Some(kind) if LOCAL.contains(&kind) => Ok(()),
        Some(kind) => Err(kind.to_owned()),
        None => Err("unknown".to_owned()),
    }
}

/// "major:minor" of a file's file system. DONT_SYNC: FUSE answers from what it knows.
fn device(fd: BorrowedFd<'_>) -> Option<String> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(fd, c"", how, StatxFlags::empty()).ok()?;
    Some(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

fn by_mount<'a>(mounts: &'a str, fdinfo: &str) -> Option<&'a str> {
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    mounts.lines().find(|mount| mount.split(' ').next() == Some(id)).and_then(kind)
}

fn by_device<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    mounts.lines().find(|mount| mount.split(' ').nth(2) == Some(device)).and_then(kind)
}

/// The file system type in a line of mountinfo (proc_pid_mountinfo(5)): behind the separator.
fn kind(mount: &str) -> Option<&str> {
    mount.split_once(" - ")?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const MOUNTS: &str = "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        30 21 0:25 / /mnt/a\\040-\\040b rw shared:3 - fuse.sshfs - rw\n\
        31 21 0:26 / /mnt/nfs rw - nfs4 host:/ rw\n";

    #[test]
    fn mounts_and_devices_tell_the_file_system() {
        assert_eq!(by_mount(MOUNTS, "pos:\t0\nflags:\t02\nmnt_id:\t21\nino:\t5\n"), Some("ext4"));
        assert_eq!(by_mount(MOUNTS, "mnt_id:\t30\n"), Some("fuse.sshfs"));
        assert_eq!(by_mount(MOUNTS, "mnt_id:\t2\n"), None);
        assert_eq!(by_mount(MOUNTS, ""), None);
        assert_eq!(by_device(MOUNTS, "0:26"), Some("nfs4"));
        assert_eq!(by_device(MOUNTS, "0:2"), None);
    }

    #[test]
    fn memory_is_accepted_and_what_has_a_kernel_file_system_without_memory_is_not() {
        let memfd = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(check(memfd.as_fd()), Ok(()));
        let proc = std::fs::File::open("/proc/self/maps").unwrap();
        assert_eq!(check(proc.as_fd()), Err("proc".to_owned()));
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(check(pipe.as_fd()).is_err());
        assert!(device(proc.as_fd()).is_some());
    }
}
