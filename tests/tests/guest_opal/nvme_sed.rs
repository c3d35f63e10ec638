//! `nvme sed`: the whole disk, locked and unlocked by its administrator through the kernel.

use quarry_tests::Vm;
use quarry_tests::opal::Drive;

use crate::{DISK, denied_read, denied_write, field, fill, is_filled};

const AT: u64 = 100;

/// Passwords have 8 characters at least.
const OLD: &str = "old password";
const NEW: &str = "new password";

/// It asks for passwords. Without a terminal it reads them from standard input, line by line.
fn command(what: &str, answers: &[&str]) -> String {
    format!("printf '{}' | nvme sed {what} {DISK} 2>&1", answers.join("\\n") + "\\n")
}

/// Locking enabled, locked, whole drive.
#[track_caller]
fn state(vm: &Vm) -> [bool; 2] {
    let discover = vm.ok(&format!("nvme sed discover {DISK}"));
    ["Locking Feature Enabled", "\tLocked"].map(|name| match field(&discover, name) {
        "yes" => true,
        "no" => false,
        other => panic!("{name} is {other:?} in:\n{discover}"),
    })
}

#[test]
fn nvme_sed_locks_the_whole_disk() {
    let drive = Drive::new();
    let server = drive.serve();
    let vm = Vm::with_disks([server.socket("vm.sock")]);
    vm.wait_disk("nvme0n1");
    assert_eq!(state(&vm), [false, false]);
    let verbose = vm.ok(&format!("nvme sed discover --verbose {DISK}"));
    assert!(verbose.contains("SED OPAL V2.0"), "{verbose}");
    assert_eq!(field(&verbose, "Sync Supported"), "yes");
    assert_eq!(field(&verbose, "Media Encryption"), "yes");
    assert_eq!(field(&verbose, "Logical Block Size"), "512");
    vm.fails(&command("lock --ask-key", &[OLD]));

    fill(&vm, "AA", AT, 4);
    vm.ok(&command("initialize", &[OLD, OLD]));
    assert_eq!(state(&vm), [true, false]);
    assert!(is_filled(&vm, "AA", AT, 4), "setup loses nothing");
    vm.fails(&command("initialize", &[OLD, OLD]));

    vm.fails(&command("lock --ask-key", &[NEW]));
    assert_eq!(state(&vm), [true, false]);
    vm.ok(&command("lock --ask-key", &[OLD]));
    assert_eq!(state(&vm), [true, true]);
    for at in [0, AT, 800] {
        denied_read(&vm, at, 1);
        denied_write(&vm, at);
    }
    vm.fails(&command("unlock --ask-key", &[NEW]));
    denied_read(&vm, AT, 1);
    vm.ok(&command("unlock --ask-key", &[OLD]));
    assert_eq!(state(&vm), [true, false]);
    assert!(is_filled(&vm, "AA", AT, 4));
    vm.ok(&command("lock --read-only --ask-key", &[OLD]));
    assert!(is_filled(&vm, "AA", AT, 4));
    denied_write(&vm, AT);
    vm.ok(&command("unlock --ask-key", &[OLD]));
    fill(&vm, "BB", AT, 4);

    // The next machine finds it locked.
    vm.poweroff();
    let vm = Vm::with_disks([server.socket("vm.sock")]);
    vm.wait_disk("nvme0n1");
    assert_eq!(state(&vm), [true, true]);
    denied_read(&vm, AT, 1);
    vm.fails(&command("revert", &[OLD]));
    vm.ok(&command("unlock --ask-key", &[OLD]));
    assert!(is_filled(&vm, "BB", AT, 4));

    vm.fails(&command("password", &[NEW, NEW, NEW]));
    vm.ok(&command("password", &[OLD, NEW, NEW]));
    vm.fails(&command("lock --ask-key", &[OLD]));
    vm.ok(&command("lock --ask-key", &[NEW]));
    denied_read(&vm, AT, 1);
    vm.ok(&command("unlock --ask-key", &[NEW]));
    // There is a second PIN, the owner's, which nvme-cli changes too or not, as it was built. Reverts need both.
    vm.ok(&command("password", &[NEW, OLD, OLD]));

    // Given back with the data: first locking, which keeps the key of the whole, and then the drive.
    vm.fails(&command("revert", &[NEW]));
    assert_eq!(state(&vm), [true, false]);
    assert!(is_filled(&vm, "BB", AT, 4));
    vm.ok(&command("revert", &[OLD]));
    assert_eq!(state(&vm), [false, false]);
    assert!(is_filled(&vm, "BB", AT, 4));
    fill(&vm, "CC", AT, 4);

    // With all that is on it. Two times yes, and the password without a line between them.
    vm.ok(&command("initialize", &[OLD, OLD]));
    assert!(is_filled(&vm, "CC", AT, 4));
    let sure = |password: &str| format!("yy{password}");
    vm.fails(&command("revert --destructive", &[&sure(NEW)]));
    assert!(is_filled(&vm, "CC", AT, 4));
    vm.fails(&command("revert --destructive", &["n"]));
    vm.ok(&command("revert --destructive", &[&sure(OLD)]));
    assert_eq!(state(&vm), [false, false]);
    assert!(!is_filled(&vm, "CC", AT, 4));

    // The password is lost while the disk is locked.
    vm.ok(&command("initialize", &[OLD, OLD]));
    fill(&vm, "DD", AT, 4);
    vm.ok(&command("lock --ask-key", &[OLD]));
    let psid = drive.psid(&server);
    vm.fails(&command("revert --psid", &[&sure(NEW)]));
    denied_read(&vm, AT, 1);
    vm.ok(&command("revert --psid", &[&sure(&psid)]));
    assert_eq!(state(&vm), [false, false]);
    assert!(!is_filled(&vm, "DD", AT, 4));

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}
