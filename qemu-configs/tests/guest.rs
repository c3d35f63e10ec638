//! The harness itself, on QEMU's own NVMe disk. What Quarry's disks do in guests is tested in `tests/`.
//!
//! The guests' names begin with `guest`: nextest runs few of those at once.

use anyhow::Result;
use qemu_configs::{Assets, Boot, Firmware, Guest};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// An NVMe disk that QEMU emulates.
fn nvme(drive: &str) -> [String; 4] {
    ["-drive", drive, "-device", "nvme,serial=s0,drive=n0,bootindex=1"].map(str::to_owned)
}

fn empty() -> [String; 4] {
    nvme("driver=null-co,if=none,id=n0,size=1G,read-zeroes=on")
}

#[test]
fn guest_runs_commands_and_fio() -> Result<()> {
    let guest = Guest::builder().args(empty()).start()?;
    println!("booted in {:?}", guest.boot_time());

    let output = guest.sh("echo out; echo err >&2; exit 3", MINUTE)?;
    assert_eq!((output.code, output.out.as_str(), output.err.as_str()), (Some(3), "out\n", "err\n"));
    assert!(guest.ok("false").is_err_and(|e| e.to_string().contains("exit status 1")));
    assert!(guest.sh("sleep 1000", Duration::from_secs(1))?.timed_out);
    assert_eq!(guest.sh("kill -9 $$", MINUTE)?.signal, Some(9));

    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    guest.put("/tmp/file", &bytes)?;
    assert_eq!(guest.get("/tmp/file")?, bytes);
    assert!(guest.get("/no/such/file").is_err());

    guest.ok("mkfifo /tmp/pipe")?;
    let waiting = guest.begin("read line < /tmp/pipe; echo got $line", MINUTE)?;
    guest.ok("echo it > /tmp/pipe")?;
    assert_eq!(guest.finish(waiting)?.out, "got it\n");
    let cat = guest.begin_with("cat", Some("hello"), MINUTE)?;
    assert_eq!(guest.finish(cat)?.out, "hello");

    let fio = "fio --name=t --filename=/dev/nvme0n1 --rw=randread --bs=4k --iodepth=8 --ioengine=io_uring --direct=1 \
               --size=4M --output-format=json";
    let report: serde_json::Value = serde_json::from_str(&guest.ok(fio)?)?;
    assert_eq!(report["jobs"][0]["read"]["total_ios"], 1024);
    assert!(guest.ok("nvme list")?.contains("/dev/nvme0n1"));
    for tool in
        ["mkfs.ext4", "mkfs.xfs", "fsck.ext4", "lspci", "blkdiscard", "lsblk", "hexdump", "ip", "modprobe"]
    {
        guest.ok(&format!("command -v {tool}"))?;
    }
    assert!(guest.poweroff()?.success());
    Ok(())
}

#[test]
fn guest_has_files_of_the_host_again_after_a_restart() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("program");
    fs::write(&program, "#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let guest = Guest::builder().files([&program]).reboots(true).start()?;
    assert_eq!(guest.ok("/host/program")?, "it runs\n");
    assert!(guest.ok("echo > /host/program").is_err(), "it cannot be written");
    guest.reboot()?;
    assert_eq!(guest.ok("/host/program")?, "it runs\n");
    assert!(guest.poweroff()?.success());

    let twice = Guest::builder().files([&program, &program]).start();
    assert!(twice.is_err_and(|e| e.to_string().contains("two files")));
    let missing = Guest::builder().files(["/no/such/file"]).start();
    assert!(missing.is_err_and(|e| e.to_string().contains("/no/such/file")));
    Ok(())
}

#[test]
fn guest_restarts_and_devices_come_and_go() -> Result<()> {
    let guest = Guest::builder()
        .args(["-blockdev", "driver=null-co,node-name=n0,size=1073741824,read-zeroes=on"])
        .spare_ports(1)
        .reboots(true)
        .start()?;
    let wait_for = |count: u32| {
        guest.ok(&format!("until [ $(ls /sys/class/nvme | wc -l) = {count} ]; do sleep 0.1; done"))
    };
    for _ in 0..2 {
        let id = guest.device_add(json!({"driver": "nvme", "serial": "s1", "drive": "n0"}))?;
        wait_for(1)?;
        assert!(
            guest.device_add(json!({"driver": "nvme", "serial": "s2", "drive": "n0"})).is_err(),
            "no free port"
        );
        guest.device_del(&id)?;
        wait_for(0)?;
    }
    guest.ok("touch /tmp/before")?;
    guest.reboot()?;
    assert_eq!(guest.sh("test -e /tmp/before", MINUTE)?.code, Some(1), "a fresh start");
    Ok(())
}

#[test]
fn guest_that_panics_tells_why() -> Result<()> {
    let guest = Guest::builder().start()?;
    let error =
        guest.ok("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger").expect_err("a panic");
    assert!(error.to_string().contains("sysrq triggered crash"), "{error}");
    assert!(guest.wait_exit(MINUTE).is_ok());
    Ok(())
}

#[test]
fn disk_without_a_server_fails_at_once() {
    let error = Guest::builder().disk("/no/such/socket").start().map(drop).expect_err("nobody listens");
    assert!(error.to_string().contains("/no/such/socket"), "{error}");
}

fn boots_from_its_disk(firmware: Firmware) -> Result<()> {
    let disk = Assets::locate()?.boot_disk;
    let drive = format!("file={},if=none,id=n0,format=raw,snapshot=on", disk.display());
    let guest = Guest::builder().boot(Boot::Firmware(firmware)).args(nvme(&drive)).start()?;
    println!("booted in {:?}", guest.boot_time());
    let mounts = guest.ok("cat /proc/mounts /proc/cmdline; ls /sys/firmware")?;
    assert_eq!(mounts.contains("efi"), firmware == Firmware::Ovmf, "{mounts}");
    assert!(mounts.contains("groot=/dev/nvme0n1p3:erofs"), "{mounts}");
    Ok(())
}

#[test]
fn guest_boots_from_its_disk_with_seabios() -> Result<()> {
    boots_from_its_disk(Firmware::SeaBios)
}

#[test]
fn guest_boots_from_its_disk_with_ovmf() -> Result<()> {
    boots_from_its_disk(Firmware::Ovmf)
}
