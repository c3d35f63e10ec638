//! cryptsetup, by way of the kernel: LUKS2 with the drive's encryption, alone and below dm-crypt.

use qemu_configs::Guest;
use quarry_tests::opal::{Drive, PLAINTEXT};
use quarry_tests::{Server, Vm};

use crate::{DISK, denied_read, denied_write, field, is_filled, line};

/// Where the data of a volume starts, in MiB: behind LUKS2's header, which is in the global range.
const DATA: u64 = 16;

/// The size of a partition, in MiB. The first one starts at 1 MiB.
const PARTITION: u64 = 300;

/// Whether a guest that restarts finds its ranges locked. A machine that reboots keeps its disks' power.
const REBOOT_LOCKS: bool = false;

fn start(server: &Server) -> Vm {
    ready(Vm::start(Guest::builder().disk(server.socket("vm.sock")).reboots(true)))
}

fn ready(vm: Vm) -> Vm {
    vm.wait_disk("nvme0n1");
    // No line ends: the files are the keys, to the last byte.
    vm.ok("modprobe dm_crypt && mkdir -p /mnt/volume && printf passphrase > /tmp/key && printf wrong > /tmp/wrong");
    vm
}

/// `how` is the option that says who encrypts.
#[track_caller]
fn format(vm: &Vm, how: &str) {
    // The passphrase of the volume comes from the file, the drive's administrator's from standard input.
    vm.ok(&format!(
        "echo administrator | cryptsetup luksFormat --batch-mode --type luks2 {how} --key-file /tmp/key \
         --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {DISK} 2>&1"
    ));
}

#[track_caller]
fn open(vm: &Vm) {
    vm.ok(&format!("cryptsetup open --key-file /tmp/key {DISK} volume 2>&1"));
}

/// Makes a file system on an open volume, with a file of plaintext; returns the checksum. The volume is closed again.
#[track_caller]
fn make(vm: &Vm) -> String {
    vm.ok("mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/volume && mount /dev/mapper/volume /mnt/volume");
    vm.ok(&format!("yes {PLAINTEXT}FS | head -c 8M > /mnt/volume/file && sync -f /mnt/volume/file"));
    let sum = vm.ok("sha256sum /mnt/volume/file");
    vm.ok("umount /mnt/volume && cryptsetup close volume 2>&1");
    sum
}

/// Opens the volume, mounts it and reads the file.
#[track_caller]
fn mount(vm: &Vm) -> String {
    open(vm);
    vm.ok("mount /dev/mapper/volume /mnt/volume");
    vm.ok("sha256sum /mnt/volume/file")
}

#[track_caller]
fn close(vm: &Vm) {
    vm.ok("umount /mnt/volume && cryptsetup close volume 2>&1");
}

/// What the drive tells of itself.
#[track_caller]
fn state(vm: &Vm, name: &str) -> String {
    field(&vm.ok(&format!("nvme sed discover {DISK}")), name).to_owned()
}

#[track_caller]
fn is_enabled(vm: &Vm) -> bool {
    // "Locking Feature Enabled : yes"
    match state(vm, "Locking Feature Enabled").as_str() {
        "yes" => true,
        "no" => false,
        other => panic!("enabled: {other:?}"),
    }
}

#[track_caller]
fn assert_locked(vm: &Vm) {
    denied_read(vm, DATA, 1);
    denied_read(vm, DATA + 500, 1);
    denied_write(vm, DATA + 500);
    // The header is outside.
    vm.ok(&format!("cryptsetup isLuks --type luks2 {DISK}"));
}

/// The whole life of a volume.
#[test]
fn volume_that_only_the_drive_encrypts() {
    let drive = Drive::new();
    let server = drive.serve();
    let vm = start(&server);
    assert!(!is_enabled(&vm));
    format(&vm, "--hw-opal-only");
    assert!(is_enabled(&vm));
    let dump = vm.ok(&format!("cryptsetup luksDump {DISK}"));
    assert!(dump.contains("hw-opal") && !dump.contains("hw-opal-crypt"), "{dump}");
    assert_locked(&vm);
    open(&vm);
    let sum = make(&vm);
    assert_locked(&vm);
    let wrong = vm.fails(&format!("cryptsetup open --key-file /tmp/wrong {DISK} volume 2>&1"));
    assert!(wrong.contains("No key available"), "{wrong}");
    assert_locked(&vm);
    assert_eq!(mount(&vm), sum);

    // The guest restarts, with the volume open.
    vm.ok("sync");
    vm.guest().reboot().unwrap();
    let vm = ready(vm);
    if REBOOT_LOCKS {
        assert_locked(&vm);
    } else {
        vm.ok(&format!("dd if={DISK} of=/dev/null bs=1M skip={DATA} count=1 iflag=direct 2>&1"));
    }
    assert_eq!(mount(&vm), sum);

    // The machine ends, with the volume open; the server goes on.
    vm.ok("sync");
    vm.poweroff();
    let vm = start(&server);
    assert_locked(&vm);
    assert_eq!(mount(&vm), sum);
    // It is killed, and so is the server.
    vm.ok("sync");
    vm.guest().kill().unwrap();
    drop(vm);
    server.kill();
    drive.assert_encrypted();
    let server = drive.serve();
    let vm = start(&server);
    assert_locked(&vm);
    assert_eq!(mount(&vm), sum);
    close(&vm);
    assert_locked(&vm);

    // Made anew, by the administrator that there is: the range gets another key.
    let forged = vm.fails(&format!(
        "echo impostor | cryptsetup luksFormat --batch-mode --type luks2 --hw-opal-only --key-file /tmp/key \
         --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {DISK} 2>&1"
    ));
    assert!(!forged.contains("does not support"), "{forged}");
    format(&vm, "--hw-opal-only");
    assert_locked(&vm);
    open(&vm);
    vm.fails("mount -t ext4 -o ro /dev/mapper/volume /mnt/volume 2>&1");
    let sum = make(&vm);
    assert_eq!(mount(&vm), sum);
    close(&vm);

    // All passphrases lost.
    let psid = drive.psid(&server);
    vm.guest().put("/tmp/psid", psid.as_bytes()).unwrap();
    let reset = "cryptsetup luksErase --batch-mode --hw-opal-factory-reset --key-file";
    vm.fails(&format!("{reset} /tmp/wrong {DISK} 2>&1"));
    assert_locked(&vm);
    vm.ok(&format!("{reset} /tmp/psid {DISK} 2>&1"));
    assert!(!is_enabled(&vm));
    assert!(!is_filled(&vm, "FS", DATA, 1), "nothing is locked, and nothing is there");
    vm.fails(&format!("cryptsetup isLuks {DISK}"));
    format(&vm, "--hw-opal-only");
    assert_locked(&vm);

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}

/// Encrypted twice.
#[test]
fn volume_that_the_drive_encrypts_too() {
    let drive = Drive::new();
    let server = drive.serve();
    let vm = start(&server);
    format(&vm, "--hw-opal");
    let dump = vm.ok(&format!("cryptsetup luksDump {DISK}"));
    assert!(dump.contains("hw-opal-crypt"), "{dump}");
    assert_locked(&vm);
    open(&vm);
    let table = vm.ok("dmsetup table volume");
    assert!(table.contains(" crypt aes-xts-plain64 "), "{table}");
    let sum = make(&vm);
    assert_locked(&vm);
    assert_eq!(mount(&vm), sum);
    vm.ok("sync");
    vm.poweroff();

    let vm = start(&server);
    assert_locked(&vm);
    assert_eq!(mount(&vm), sum);
    close(&vm);
    // The administrator gives the range up: the data is gone, the drive stays his.
    vm.ok("printf administrator > /tmp/administrator");
    vm.ok(&format!("cryptsetup luksErase --batch-mode --key-file /tmp/administrator {DISK} 2>&1"));
    assert!(is_enabled(&vm));
    vm.ok(&format!("dd if={DISK} of=/dev/null bs=1M skip={DATA} count=1 iflag=direct 2>&1"));
    vm.fails(&format!("cryptsetup open --key-file /tmp/key {DISK} volume 2>&1"));

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}

/// One drive, two volumes: a range for each, with a user of its own.
#[test]
fn two_volumes_on_partitions() {
    let drive = Drive::new();
    let server = drive.serve();
    let vm = start(&server);
    partition(&vm);
    for (number, tag) in [(1, "AA"), (2, "BB")] {
        let (node, key) = (format!("{DISK}p{number}"), format!("/tmp/key{number}"));
        vm.ok(&format!("printf 'passphrase {number}' > {key}"));
        // The second one finds a drive with an administrator.
        vm.ok(&format!(
            "echo administrator | cryptsetup luksFormat --batch-mode --type luks2 --hw-opal-only --key-file {key} \
             --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {node} 2>&1"
        ));
        vm.ok(&format!("cryptsetup open --key-file {key} {node} volume{number} 2>&1"));
        vm.ok(&format!(
            "yes {} | head -c 4M | dd of=/dev/mapper/volume{number} bs=1M oflag=direct iflag=fullblock",
            line(tag)
        ));
    }
    let data = |number: u64| 1 + (number - 1) * PARTITION + DATA;
    assert!(is_filled(&vm, "AA", data(1), 4) && is_filled(&vm, "BB", data(2), 4));

    vm.ok("cryptsetup close volume1 2>&1");
    denied_read(&vm, data(1), 1);
    denied_write(&vm, data(1));
    assert!(is_filled(&vm, "BB", data(2), 4), "the other one stays open");
    let other = vm.fails(&format!("cryptsetup open --key-file /tmp/key2 {DISK}p1 volume1 2>&1"));
    assert!(other.contains("No key available"), "{other}");

    vm.poweroff();
    let vm = start(&server);
    wait_partitions(&vm);
    for number in [1, 2] {
        denied_read(&vm, data(number), 1);
        vm.ok(&format!("printf 'passphrase {number}' > /tmp/key{number}"));
    }
    vm.ok(&format!("cryptsetup open --key-file /tmp/key2 {DISK}p2 volume2 2>&1"));
    assert!(is_filled(&vm, "BB", data(2), 4));
    denied_read(&vm, data(1), 1);
    // One is given up, while it is locked; the other does not notice.
    vm.ok("printf administrator > /tmp/administrator");
    vm.ok(&format!("cryptsetup luksErase --batch-mode --key-file /tmp/administrator {DISK}p1 2>&1"));
    assert!(!is_filled(&vm, "AA", data(1), 4), "nothing is locked, and nothing is there");
    assert!(is_filled(&vm, "BB", data(2), 4));
    vm.ok("cryptsetup close volume2 2>&1");
    denied_read(&vm, data(2), 1);
    vm.ok(&format!("cryptsetup open --key-file /tmp/key2 {DISK}p2 volume2 2>&1"));
    assert!(is_filled(&vm, "BB", data(2), 4));

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}

/// Makes two partitions. The table of them is in the first block, which no range locks.
#[track_caller]
fn partition(vm: &Vm) {
    let mut table = vec![0; 512];
    for number in 0..2 {
        let entry = &mut table[446 + number * 16..][..16];
        let start = u32::try_from((1 + number as u64 * PARTITION) * 2048).expect("a block's number");
        let len = u32::try_from(PARTITION * 2048).expect("a number of blocks");
        entry[4] = 0x83; // Linux
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&len.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    vm.guest().put("/tmp/table", &table).unwrap();
    vm.ok(&format!("dd if=/tmp/table of={DISK} oflag=direct 2>&1 && blockdev --rereadpt {DISK}"));
    wait_partitions(vm);
}

#[track_caller]
fn wait_partitions(vm: &Vm) {
    vm.wait_disk("nvme0n1p1");
    vm.wait_disk("nvme0n1p2");
}
