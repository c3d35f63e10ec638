//! File systems in a guest: made, filled, trimmed, checked, and intact in the next guest after a server's restart.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};

const MIB: u64 = 1 << 20;

struct FileSystem {
    name: &'static str,
    nsid: u32,
    make: &'static str,
    check: &'static str,
}

const ALL: [FileSystem; 2] = [
    FileSystem {
        name: "ext4",
        nsid: 1,
        make: "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0",
        check: "fsck.ext4 -f -n",
    },
    FileSystem { name: "xfs", nsid: 2, make: "mkfs.xfs -q", check: "xfs_repair -n" },
];

/// One controller, two namespaces: 512-byte blocks below ext4, 4096-byte blocks below xfs.
fn server(dir: &Path) -> Server {
    let dir = dir.display();
    let config = format!(
        r#"
        [devices.ext4]
        type = "file"
        path = "{dir}/ext4.img"
        size = "256M"

        [devices.xfs]
        type = "file"
        path = "{dir}/xfs.img"
        size = "512M"
        block_size = 4096

        [controllers.vm]
        socket = "vm.sock"
        namespaces = [{{ device = "ext4" }}, {{ device = "xfs" }}]
        "#
    );
    Server::config(&config, &["vm.sock"])
}

/// What an image takes on the host's disk, in MiB: `du`.
fn used(dir: &Path, name: &str) -> u64 {
    fs::metadata(dir.join(format!("{name}.img"))).unwrap().blocks() * 512 / MIB
}

#[test]
fn file_systems_keep_their_data_and_give_space_back() {
    let files = tempfile::tempdir().unwrap();
    let first = server(files.path());
    let vm = Vm::with_disks([first.socket("vm.sock")]);
    vm.ok("modprobe xfs");
    let sums = ALL.map(|kind| fill_and_trim(&vm, &kind, files.path()));
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&first.stop());

    let second = server(files.path());
    let vm = Vm::with_disks([second.socket("vm.sock")]);
    vm.ok("modprobe xfs");
    for (kind, sum) in ALL.iter().zip(sums) {
        let FileSystem { name, nsid, check, .. } = kind;
        let disk = vm.namespace(*nsid);
        vm.ok(&format!("{check} {disk}"));
        vm.ok(&format!("mkdir -p /mnt/{name} && mount {disk} /mnt/{name}"));
        assert_eq!(vm.ok(&format!("sha256sum /mnt/{name}/kept")), sum, "after the restart");
        vm.ok(&format!("umount /mnt/{name}"));
    }
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&second.stop());
}

/// Returns the checksum of the file that stays.
fn fill_and_trim(vm: &Vm, kind: &FileSystem, dir: &Path) -> String {
    let FileSystem { name, nsid, make, check } = kind;
    let disk = vm.namespace(*nsid);
    vm.ok(&format!("{make} {disk}"));
    vm.ok(&format!("mkdir -p /mnt/{name} && mount {disk} /mnt/{name}"));
    let empty = used(dir, name);
    vm.ok(&format!(
        "cd /mnt/{name} && head -c 24M /dev/urandom > kept && head -c 64M /dev/urandom > gone && sync"
    ));
    let full = used(dir, name);
    assert!(full >= empty + 80, "{name}: 88 MiB were written, the image went from {empty} to {full} MiB");

    // What is deleted and trimmed is given back to the host.
    vm.ok(&format!("rm /mnt/{name}/gone && sync"));
    let trimmed = vm.ok(&format!("fstrim -v /mnt/{name}"));
    let left = used(dir, name);
    assert!(left + 60 <= full, "{name}: {trimmed}, but the image went from {full} to {left} MiB");
    assert!(left >= 24, "{name}: what was kept is still there, in {left} MiB");

    let sum = vm.ok(&format!("sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum /mnt/{name}/kept"));
    vm.ok(&format!("umount /mnt/{name}"));
    vm.ok(&format!("{check} {disk}"));
    sum
}
