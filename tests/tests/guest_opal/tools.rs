//! What the guest has to work with, and what it says of a disk that does not encrypt.

use quarry_tests::guest::assert_no_warnings;
use quarry_tests::opal::plaintext_in;
use quarry_tests::{Server, Vm};

use crate::{DISK, fill, is_filled};

#[test]
fn a_plain_disk_is_no_self_encrypting_one() {
    let server = Server::disk("file:disk.img,size=64M");
    let vm = Vm::with_disks([server.socket("vm.sock")]);
    vm.wait_disk("nvme0n1");
    // The tools are there and know of Opal; so is the kernel's part.
    vm.ok("grep -q ' sed_ioctl$' /proc/kallsyms");
    let cryptsetup = vm.ok("cryptsetup --version");
    assert!(cryptsetup.contains("HW_OPAL"), "{cryptsetup}");
    assert!(vm.ok("nvme sed help 2>&1").contains("initialize"));
    assert!(vm.ok("sedutil-cli --validatePBKDF2 2>&1 || true").contains("passed"));

    let identify = vm.json("nvme id-ctrl /dev/nvme0 --output-format=json");
    assert_eq!(identify["oacs"].as_u64().unwrap() & 1, 0, "Security Send and Receive: {}", identify["oacs"]);
    let scan = vm.ok("sedutil-cli --scan");
    let found = scan.lines().find(|line| line.starts_with("/dev/nvme0")).expect("the disk is scanned");
    assert_eq!(found.split_whitespace().nth(1), Some("No"), "{scan}");
    let query = vm.fails("sedutil-cli --query /dev/nvme0 2>&1");
    assert!(query.contains("Invalid or unsupported disk"), "{query}");
    let discover = vm.fails(&format!("nvme sed discover {DISK} 2>&1"));
    assert!(discover.contains("IOC_OPAL_DISCOVERY failed"), "{discover}");
    vm.ok("printf passphrase > /tmp/passphrase");
    let format = vm.fails(&format!(
        "echo administrator | cryptsetup luksFormat --batch-mode --hw-opal-only --key-file /tmp/passphrase {DISK} 2>&1"
    ));
    assert!(format.contains("does not support OPAL"), "{format}");

    // What the other tests go by: the host sees what the guest writes.
    vm.ok("command -v blkdiscard && command -v dmsetup");
    let image = server.dir().join("disk.img");
    assert_eq!(plaintext_in(&image), None);
    fill(&vm, "AA", 7, 3);
    assert!(is_filled(&vm, "AA", 8, 2));
    assert!(!is_filled(&vm, "AB", 8, 2) && !is_filled(&vm, "AA", 9, 2));
    assert_eq!(plaintext_in(&image), Some(7 << 20));
    vm.poweroff();
    assert_no_warnings(&server.stop());
}
