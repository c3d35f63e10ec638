//! sedutil-cli, which sends its own methods to the TPer.

use quarry_tests::opal::Drive;
use quarry_tests::{Server, Vm};

use crate::{
    DISK, denied, denied_read, denied_write, field, fill, is_filled, line, read_command, write_command,
};

/// Where the locking range is, in MiB and in blocks.
const RANGE: u64 = 64;
const RANGE_MIB: u64 = 32;
const BLOCKS: u64 = 2048;
/// Outside.
const OUTSIDE: u64 = 200;

/// UIDs, in hexadecimal, of what sedutil has no commands for.
const ADMIN1: &str = "0000000900010001";
const USER1: &str = "0000000900030001";
const RANGE1: &str = "0000080200030001";
/// The ACEs that say who may lock and unlock range 1.
const SET_READ_LOCKED_1: &str = "000000080003e001";
const SET_WRITE_LOCKED_1: &str = "000000080003e801";

/// The Set method of an object of the locking SP; `values` are tokens. (`--enableuser`, which would be a case of it, never
/// accepts its arguments in sedutil 1.20.)
fn set_values(authority: &str, pin: &str, object: &str, values: &str) -> String {
    format!("--rawCmd 3 {authority} {pin} {object} 0000000600000017 f0f201f0{values}f1f3f1")
}

/// sedutil on the disk. It makes PINs of passwords by PBKDF2, some seconds for each in an emulated guest; or none.
struct Sed<'a> {
    vm: &'a Vm,
    flags: &'a str,
}

impl Sed<'_> {
    fn command(&self, arguments: &str) -> String {
        format!("sedutil-cli {} {arguments} /dev/nvme0 2>&1", self.flags)
    }

    #[track_caller]
    fn ok(&self, arguments: &str) -> String {
        self.vm.ok(&self.command(arguments))
    }

    /// Refused, by a method's status.
    #[track_caller]
    fn refused(&self, arguments: &str, status: &str) {
        let printed = self.vm.fails(&self.command(arguments));
        assert!(printed.contains(status), "{arguments}: not {status}:\n{printed}");
    }

    /// The flags of the locking feature: Locked, LockingEnabled, MBREnabled, MBRDone.
    #[track_caller]
    fn state(&self) -> String {
        let query = self.ok("--query");
        ["Locked", "LockingEnabled", "MBREnabled", "MBRDone"]
            .map(|name| field(&query, &format!("{name} = ")))
            .concat()
    }
}

fn start(server: &Server) -> Vm {
    let vm = Vm::with_disks([server.socket("vm.sock")]);
    vm.wait_disk("nvme0n1");
    vm
}

#[test]
fn sedutil_takes_a_drive_and_gives_it_back() {
    let drive = Drive::new();
    let server = drive.serve();
    let vm = start(&server);
    let sed = Sed { vm: &vm, flags: "" };

    let scan = vm.ok("sedutil-cli --scan");
    let found = scan.lines().find(|line| line.starts_with("/dev/nvme0")).expect("the disk is scanned");
    assert_eq!(found.split_whitespace().nth(1), Some("2"), "Opal 2: {scan}");
    let valid = sed.ok("--isValidSED");
    assert!(valid.contains("SED -2-"), "{valid}");

    let query = sed.ok("--query");
    let identify = vm.json("nvme id-ctrl /dev/nvme0 --output-format=json");
    let serial = identify["sn"].as_str().unwrap().trim();
    assert!(query.contains(serial), "the serial number {serial}, which passwords are salted with:\n{query}");
    for (name, value) in [
        (", SYNC = ", "Y"),
        ("Locked = ", "N"),
        ("LockingEnabled = ", "N"),
        ("LockingSupported = ", "Y"),
        ("MBRDone = ", "N"),
        ("MBREnabled = ", "N"),
        ("MediaEncrypt = ", "Y"),
        ("Logical Block size = ", "512"),
    ] {
        assert_eq!(field(&query, name), value, "{name} in:\n{query}");
    }
    let number =
        |name: &str| field(&query, name).parse::<u64>().unwrap_or_else(|_| panic!("{name} in:\n{query}"));
    assert!(number("Locking Admins = ") >= 4, "{query}");
    assert!(number("Locking Users = ") >= 9, "cryptsetup uses as many:\n{query}");
    assert!(number("MaxComPacketSize = ") >= 2048, "{query}");
    assert!(number("MaxIndTokenSize = ") >= 1992, "{query}");
    for name in ["Initial PIN = ", "Reverted PIN = "] {
        let indicator = field(&query, name).trim_start_matches("0x");
        assert_eq!(u8::from_str_radix(indicator, 16), Ok(0), "{name} is the MSID:\n{query}");
    }
    let msid = sed.ok("--printDefaultPassword");
    assert!(field(&msid, "MSID: ").len() >= 8, "{msid}");

    // Not yet anybody's: it encrypts all the same, and locks nothing.
    fill(&vm, "AA", OUTSIDE, 4);
    sed.ok("--initialSetup first");
    assert_eq!(sed.state(), "NYYY", "Locked, LockingEnabled, MBREnabled, MBRDone");
    assert!(is_filled(&vm, "AA", OUTSIDE, 4), "setup loses nothing");
    sed.refused("--initialSetup again", "NOT_AUTHORIZED");

    // Two PINs: the one of the drive's owner, and the one of the administrator of locking.
    sed.ok("--setSIDPassword first second");
    sed.refused("--setSIDPassword first third", "NOT_AUTHORIZED");
    let ranges = sed.ok("--listLockingRanges first");
    assert!(ranges.contains("LR0 Begin 0 for 0"), "the global range:\n{ranges}");
    sed.ok("--setAdmin1Pwd first third");
    sed.refused("--listLockingRanges first", "NOT_AUTHORIZED");
    sed.ok("--listLockingRanges third");

    sed.refused("--revertTPer third", "NOT_AUTHORIZED");
    assert!(is_filled(&vm, "AA", OUTSIDE, 4), "a refused revert erases nothing");
    sed.ok("--revertTPer second");
    assert_eq!(&sed.state()[..3], "NNN", "as manufactured");
    assert!(!is_filled(&vm, "AA", OUTSIDE, 4), "the key is gone, and the data with it");

    // All PINs lost. (Without hashing from here on.)
    let sed = Sed { vm: &vm, flags: "-n" };
    sed.ok("--initialSetup forgotten");
    fill(&vm, "BB", OUTSIDE, 4);
    sed.refused("--revertTPer guessed", "NOT_AUTHORIZED");
    let psid = drive.psid(&server);
    let erase = "--yesIreallywanttoERASEALLmydatausingthePSID";
    let wrong: String = psid.chars().rev().collect();
    assert_ne!(wrong, psid);
    sed.refused(&format!("{erase} {wrong}"), "NOT_AUTHORIZED");
    assert!(is_filled(&vm, "BB", OUTSIDE, 4));
    sed.ok(&format!("{erase} {psid}"));
    assert_eq!(&sed.state()[..3], "NNN", "as manufactured");
    assert!(!is_filled(&vm, "BB", OUTSIDE, 4));
    assert_eq!(sed.ok("--printDefaultPassword"), msid, "the label stays");
    sed.ok("--initialSetup anew");

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}

#[test]
fn sedutil_locks_a_range() {
    let drive = Drive::new();
    let server = drive.serve();
    let vm = start(&server);
    let sed = Sed { vm: &vm, flags: "-n" };
    sed.ok("--initialSetup secret");
    // Else the next machine saw another start of the disk.
    sed.ok("--setMBREnable off secret");

    let range = |list: &str| {
        let lines: Vec<&str> = list.lines().collect();
        let first = lines.iter().position(|line| line.contains("LR1 ")).expect("range 1 is listed");
        lines[first..first + 2].join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    fill(&vm, "AA", RANGE, 2);
    sed.refused("--setupLockingRange 1 8 65536 wrong", "NOT_AUTHORIZED");
    sed.ok(&format!("--setupLockingRange 1 {} {} secret", RANGE * BLOCKS, RANGE_MIB * BLOCKS));
    assert!(!is_filled(&vm, "AA", RANGE, 2), "a range that is made gets a key of its own");
    let set = format!("LR1 Begin {} for {}", RANGE * BLOCKS, RANGE_MIB * BLOCKS);
    let listed = range(&sed.ok("--listLockingRange 1 secret"));
    assert!(listed.contains(&set), "{listed}");
    assert!(listed.ends_with("RLKEna = N WLKEna = N RLocked = N WLocked = N"), "{listed}");
    // One range after another, not one over another.
    let overlap = format!("--setupLockingRange 2 {} {} secret", (RANGE + 1) * BLOCKS, BLOCKS);
    sed.refused(&overlap, "INVALID_PARAMETER");

    let end = RANGE + RANGE_MIB;
    fill(&vm, "AA", RANGE, 2);
    fill(&vm, "AB", end - 1, 1);
    fill(&vm, "CC", end, 2);
    sed.ok("--enableLockingRange 1 secret");
    assert!(is_filled(&vm, "AA", RANGE, 2), "a range that can be locked is not locked by that");

    sed.ok("--setLockingRange 1 RO secret");
    assert!(is_filled(&vm, "AA", RANGE, 2));
    denied_write(&vm, RANGE);
    denied_write(&vm, end - 1);
    fill(&vm, "CD", end, 1);
    sed.ok("--setLockingRange 1 LK secret");
    assert_eq!(sed.state().as_bytes()[0], b'Y', "Locked");
    let listed = range(&sed.ok("--listLockingRanges secret"));
    assert!(listed.ends_with("RLKEna = Y WLKEna = Y RLocked = Y WLocked = Y"), "{listed}");
    denied_read(&vm, RANGE, 1);
    denied_read(&vm, end - 1, 1);
    denied_write(&vm, RANGE);
    vm.fails(&format!("blkdiscard --offset {} --length 1048576 {DISK} 2>&1", RANGE << 20));
    vm.fails(&format!("blkdiscard --zeroout --offset {} --length 1048576 {DISK} 2>&1", RANGE << 20));
    // Half of it outside.
    let across = format!(
        "dd if={DISK} of=/dev/null bs=64k count=1 iflag=direct,skip_bytes skip={} 2>&1",
        (RANGE << 20) - (32 << 10)
    );
    denied(&vm, &across);
    // To the block.
    let block =
        |number: u64| format!("dd if={DISK} of=/dev/null bs=512 skip={number} count=1 iflag=direct 2>&1");
    for (outside, inside) in [(RANGE * BLOCKS - 1, RANGE * BLOCKS), (end * BLOCKS, end * BLOCKS - 1)] {
        vm.ok(&block(outside));
        denied(&vm, &block(inside));
    }
    assert!(is_filled(&vm, "CD", end, 1), "what is behind the range is as it was");
    fill(&vm, "CE", end, 1);
    assert!(is_filled(&vm, "CE", end, 1));
    sed.refused("--setLockingRange 1 RW guessed", "NOT_AUTHORIZED");
    denied_read(&vm, RANGE, 1);
    sed.ok("--setLockingRange 1 RW secret");
    vm.ok(&across);
    assert!(is_filled(&vm, "AA", RANGE, 2), "what was denied has changed nothing");
    assert!(is_filled(&vm, "AB", end - 1, 1));

    // Users of the locking SP. Whoever can start a session may see how many ranges there are.
    let session = |pin: &str| format!("--objDump 3 {USER1} {pin} 0000080100000001");
    sed.refused(&session("hers"), "NOT_AUTHORIZED");
    sed.ok(&set_values(ADMIN1, "secret", USER1, "f20501f3"));
    sed.ok("--setPassword secret User1 hers");
    sed.ok(&session("hers"));
    sed.refused(&session("his"), "NOT_AUTHORIZED");
    // One of them may lock and unlock the range, and nothing else, once the administrator has said so.
    let (lock, unlock) = ("f20701f3f20801f3", "f20700f3f20800f3");
    sed.refused(&set_values(USER1, "hers", RANGE1, lock), "NOT_AUTHORIZED");
    for ace in [SET_READ_LOCKED_1, SET_WRITE_LOCKED_1] {
        sed.ok(&set_values(ADMIN1, "secret", ace, &format!("f203f0f2a400000c05a8{USER1}f3f1f3")));
    }
    sed.ok(&set_values(USER1, "hers", RANGE1, lock));
    denied_read(&vm, RANGE, 1);
    denied_write(&vm, RANGE);
    sed.refused(&set_values(USER1, "hers", RANGE1, "f20300f3"), "NOT_AUTHORIZED");
    sed.refused(&set_values(USER1, "his", RANGE1, unlock), "NOT_AUTHORIZED");
    denied_read(&vm, RANGE, 1);
    sed.ok(&set_values(USER1, "hers", RANGE1, unlock));
    assert!(is_filled(&vm, "AA", RANGE, 2));
    // The administrator, who is in none of these ACEs now, has not locked himself out.
    sed.ok("--setLockingRange 1 LK secret");
    denied_read(&vm, RANGE, 1);
    sed.ok("--setLockingRange 1 RW secret");

    // Another key for the range, and for no other.
    sed.refused("--rekeyLockingRange 1 guessed", "NOT_AUTHORIZED");
    assert!(is_filled(&vm, "AA", RANGE, 2));
    sed.ok("--rekeyLockingRange 1 secret");
    assert!(!is_filled(&vm, "AA", RANGE, 2), "a new key reads the old data as noise");
    assert!(is_filled(&vm, "CC", end + 1, 1));
    fill(&vm, "AA", RANGE, 2);
    assert!(is_filled(&vm, "AA", RANGE, 2));

    // Power is cut while all is open: another machine finds it locked.
    assert_eq!(sed.state().as_bytes()[0], b'N', "nothing is locked");
    vm.poweroff();
    let vm = start(&server);
    let sed = Sed { vm: &vm, flags: "-n" };
    denied_read(&vm, RANGE, 1);
    denied_write(&vm, RANGE);
    assert!(is_filled(&vm, "CC", end + 1, 1), "the rest is not");
    sed.ok("--setLockingRange 1 RW secret");
    assert!(is_filled(&vm, "AA", RANGE, 2));

    // The key of the whole stays, those of the ranges do not; nor do the users.
    sed.refused("--revertNoErase wrong", "NOT_AUTHORIZED");
    sed.ok("--revertNoErase secret");
    assert_eq!(&sed.state()[..3], "NNN", "locking is as manufactured");
    assert!(is_filled(&vm, "CC", end + 1, 1), "kept");
    assert!(!is_filled(&vm, "AA", RANGE, 2));
    fill(&vm, "DD", RANGE, 2);
    // Locking is not anybody's any more, so its keys are nothing that giving the drive back concerns.
    sed.ok("--revertTPer secret");
    assert!(is_filled(&vm, "CC", end + 1, 1));
    assert!(is_filled(&vm, "DD", RANGE, 2));
    sed.ok("--initialSetup anew");

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}

#[test]
fn sedutil_shows_another_start_of_the_disk() {
    // Whole packets and a rest, of no whole number of blocks.
    const IMAGE: u64 = (256 << 10) + 123;
    /// Below the size of the table, 128 MiB, which is all shown.
    const SHADOWED: u64 = 100;
    let drive = Drive::new();
    let server = drive.serve();
    let vm = start(&server);
    let sed = Sed { vm: &vm, flags: "-n" };
    fill(&vm, "AA", 0, 2);
    fill(&vm, "BB", OUTSIDE, 2);
    fill(&vm, "EE", SHADOWED, 1);
    vm.ok(&format!("head -c {IMAGE} /dev/urandom > /tmp/pba"));
    let image = vm.ok("sha256sum < /tmp/pba");
    let shown =
        |vm: &Vm| vm.ok(&format!("{} 2> /dev/null | head -c {IMAGE} | sha256sum", read_command(0, 1)));

    sed.ok("--initialSetup secret");
    assert_eq!(&sed.state()[2..], "YY", "MBREnabled, MBRDone");
    sed.ok("--setMBREnable off secret");
    assert_eq!(&sed.state()[2..3], "N");
    sed.ok("--loadPBAimage secret /tmp/pba");
    assert!(is_filled(&vm, "AA", 0, 2), "it lies beside the data");
    sed.ok("--setMBREnable on secret");
    assert_eq!(&sed.state()[2..], "YY", "not shown at once");
    assert!(is_filled(&vm, "AA", 0, 2));

    sed.ok("--setMBRDone off secret");
    assert_eq!(shown(&vm), image);
    assert!(!is_filled(&vm, "EE", SHADOWED, 1), "data in the shadow");
    denied(&vm, &format!("yes {} | head -c 1M | {}", line("XX"), write_command(0)));
    sed.refused("--setMBRDone on guessed", "NOT_AUTHORIZED");
    assert_eq!(shown(&vm), image, "writes do not reach it");
    sed.ok("--setMBRDone on secret");
    assert!(is_filled(&vm, "AA", 0, 2), "the data is back, and as it was");
    assert!(is_filled(&vm, "EE", SHADOWED, 1));
    assert!(is_filled(&vm, "BB", OUTSIDE, 2));

    // The next machine starts with the image, also from another server.
    vm.poweroff();
    server.stop();
    let server = drive.serve();
    let vm = start(&server);
    let sed = Sed { vm: &vm, flags: "-n" };
    assert_eq!(shown(&vm), image);
    assert_eq!(&sed.state()[2..], "YN", "shown again after a power cycle");
    assert!(!is_filled(&vm, "AA", 0, 2));
    sed.ok("--setMBRDone on secret");
    assert!(is_filled(&vm, "AA", 0, 2));
    sed.ok("--setMBREnable off secret");
    assert!(is_filled(&vm, "BB", OUTSIDE, 2));

    vm.poweroff();
    server.stop();
    drive.assert_encrypted();
}
