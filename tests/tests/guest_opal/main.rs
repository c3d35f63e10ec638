//! A self-encrypting disk in the hands of those who know how to use one: sedutil, which speaks to the drive past the
//! kernel; cryptsetup, which asks the kernel to; and `nvme sed`, which does so for the disk as a whole.

mod cryptsetup;
mod nvme_sed;
mod sedutil;
mod tools;

use quarry_tests::Vm;
use quarry_tests::opal::PLAINTEXT;

/// The disk, as a block device.
const DISK: &str = "/dev/nvme0n1";

/// The line with which `fill` fills: 16 bytes.
fn line(tag: &str) -> String {
    assert_eq!(tag.len(), 2);
    format!("{PLAINTEXT}{tag}")
}

/// Fills `mib` MiB from the MiB `at` on with lines that say `tag`.
#[track_caller]
fn fill(vm: &Vm, tag: &str, at: u64, mib: u64) {
    vm.ok(&format!("yes {} | head -c {mib}M | {}", line(tag), write_command(at)));
}

/// Writes standard input from the MiB `at` on, past the page cache.
fn write_command(at: u64) -> String {
    format!("dd of={DISK} bs=1M seek={at} oflag=direct iflag=fullblock 2>&1")
}

/// Reads `mib` MiB from the MiB `at` on, past the page cache, to standard output.
fn read_command(at: u64, mib: u64) -> String {
    format!("dd if={DISK} bs=1M skip={at} count={mib} iflag=direct")
}

/// Whether there is what [`fill`] wrote. That it can be read is taken for granted.
#[track_caller]
fn is_filled(vm: &Vm, tag: &str, at: u64, mib: u64) -> bool {
    vm.ok(&format!("{} of=/tmp/read 2>&1", read_command(at, mib)));
    let compare = format!("yes {} | head -c {mib}M | cmp -s - /tmp/read", line(tag));
    vm.ok(&format!("if {compare}; then echo same; else echo other; fi")).trim() == "same"
}

/// The drive denies access: not just any failure.
#[track_caller]
fn denied(vm: &Vm, command: &str) {
    let printed = vm.fails(command);
    // Access Denied is an error of the medium for Linux, and ENODATA for programs.
    assert!(printed.contains("No data available"), "{command} fails for another reason:\n{printed}");
}

#[track_caller]
fn denied_read(vm: &Vm, at: u64, mib: u64) {
    denied(vm, &format!("{} of=/dev/null 2>&1", read_command(at, mib)));
}

#[track_caller]
fn denied_write(vm: &Vm, at: u64) {
    denied(vm, &format!("head -c 1M /dev/zero | {}", write_command(at)));
}

/// The answer to a question: the word after `name` in what a tool prints.
#[track_caller]
fn field<'a>(printed: &'a str, name: &str) -> &'a str {
    let Some((_, rest)) = printed.split_once(name) else { panic!("no {name:?} in:\n{printed}") };
    let rest = rest.trim_start_matches([' ', '=', ':']);
    rest.split([',', ' ', '\n']).next().unwrap_or_default()
}
