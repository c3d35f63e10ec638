//! [`Vm`]: a guest in a test. Whatever it cannot do ends the test with all that is known about it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use qemu_configs::{Assets, Builder, Guest, Running};
use serde_json::Value;

/// How long anything may take that is no boot: a processor may be shared with much else.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The flags of every run of fio: past the page cache, every block checked.
const FIO: &str = "fio --name=verify --ioengine=io_uring --direct=1 --verify=crc32c --verify_fatal=1 \
                   --output-format=json";

/// A running guest. Its console and QEMU's errors are shown when the test fails.
pub struct Vm(Guest);

impl Vm {
    /// Boots.
    #[track_caller]
    pub fn start(builder: Builder) -> Self {
        Self::of(builder.start())
    }

    /// Boots another image than the usual one.
    #[track_caller]
    pub fn start_with(builder: Builder, assets: &Assets) -> Self {
        Self::of(builder.start_with(assets))
    }

    #[track_caller]
    fn of(started: anyhow::Result<Guest>) -> Self {
        match started {
            Ok(guest) => {
                println!("booted in {:?}", guest.boot_time());
                Self(guest)
            }
            Err(error) => panic!("the guest does not start: {error:?}"),
        }
    }

    /// Boots with one disk on the way to each socket.
    #[track_caller]
    pub fn with_disks<P: AsRef<Path>>(sockets: impl IntoIterator<Item = P>) -> Self {
        Self::start(sockets.into_iter().fold(Guest::builder(), |guest, path| guest.disk(path.as_ref())))
    }

    /// The guest itself.
    pub fn guest(&self) -> &Guest {
        &self.0
    }

    /// Runs a line of shell that must succeed, and returns what it prints.
    #[track_caller]
    pub fn ok(&self, command: &str) -> String {
        match self.0.ok_within(command, PATIENCE) {
            Ok(out) => out,
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a line of shell that must not succeed, and returns what it prints, errors included.
    #[track_caller]
    pub fn fails(&self, command: &str) -> String {
        match self.0.sh(command, PATIENCE) {
            Ok(output) => {
                assert!(output.code.is_some_and(|code| code != 0), "{command} should fail: {output:?}");
                output.out + &output.err
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Runs a line of shell whose output is JSON.
    #[track_caller]
    pub fn json(&self, command: &str) -> Value {
        let out = self.ok(command);
        match serde_json::from_str(&out) {
            Ok(value) => value,
            Err(error) => panic!("{command} prints no JSON ({error}):\n{out}"),
        }
    }

    /// Waits until a line of shell succeeds.
    #[track_caller]
    pub fn wait_for(&self, condition: &str) {
        // A loop that ends by itself: the guest is alive and can tell what it sees.
        let seconds = PATIENCE.as_secs() / 2;
        self.ok(&format!(
            "for i in $(seq {}); do {condition} && exit; sleep 0.2; done; ls /dev/nvme*; dmesg | tail -n 40; exit 1",
            seconds * 5
        ));
    }

    /// Waits until the block device `name` is there.
    #[track_caller]
    pub fn wait_disk(&self, name: &str) {
        self.wait_for(&format!("[ -b /dev/{name} ]"));
    }

    /// The device node of a namespace of the only controller, once it is there. Linux looks at namespaces side by side
    /// and numbers the nodes as it finds them: the names say nothing.
    #[track_caller]
    pub fn namespace(&self, nsid: u32) -> String {
        let find = format!("grep -lx {nsid} /sys/block/nvme[0-9]n*/nsid");
        self.wait_for(&format!("{find} > /dev/null 2>&1"));
        let node = self.ok(&format!("basename $(dirname $({find}))"));
        format!("/dev/{}", node.trim())
    }

    /// Waits until no NVMe disk is there.
    #[track_caller]
    pub fn wait_no_disk(&self) {
        self.wait_for("! ls /dev/nvme*n* /sys/class/nvme/* > /dev/null 2>&1");
    }

    /// Runs fio with verification and checks that it did something, without an error. Returns its report.
    #[track_caller]
    pub fn fio(&self, arguments: &str) -> Value {
        self.end_fio(self.begin_fio(arguments))
    }

    /// Starts fio with verification.
    #[track_caller]
    pub fn begin_fio(&self, arguments: &str) -> Running {
        match self.0.begin(&format!("{FIO} {arguments}"), PATIENCE) {
            Ok(running) => running,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for the end of [`Vm::begin_fio`], as [`Vm::fio`] does.
    #[track_caller]
    pub fn end_fio(&self, running: Running) -> Value {
        let output = match self.0.finish(running) {
            Ok(output) => output,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(output.code, Some(0), "fio fails: {output:#?}\n{}", self.ok("dmesg | tail -n 40"));
        // Notes precede the report.
        let report = output.out.find('{').map(|start| serde_json::from_str::<Value>(&output.out[start..]));
        let Some(Ok(report)) = report else { panic!("fio reports nothing: {output:#?}") };
        let jobs = report["jobs"].as_array().expect("jobs");
        assert!(!jobs.is_empty(), "{report:#}");
        for job in jobs {
            assert_eq!(job["error"], 0, "{job:#}");
            assert_ne!(job["read"]["total_ios"], 0, "nothing was verified: {job:#}");
        }
        report
    }

    /// Warnings and errors of the kernel that concern NVMe or a disk. Not those that a reset has when it was asked for:
    /// that it happens, and that I/O waits for its end.
    #[track_caller]
    pub fn complaints(&self) -> String {
        self.ok("dmesg --level=emerg,alert,crit,err,warn | grep -iE 'nvme|I/O error|DMAR' | \
                 grep -vE ': resetting controller$|: no usable path - requeuing I/O$|callbacks suppressed$' || true")
    }

    /// The kernel has nothing to say against the disks.
    #[track_caller]
    pub fn assert_no_complaints(&self) {
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "the guest's kernel complains:\n{complaints}");
    }

    /// Switches the guest off, as its user would: file systems and disks are told.
    #[track_caller]
    pub fn poweroff(self) {
        match self.0.poweroff() {
            Ok(status) => assert!(status.success(), "QEMU ended with {status}: {}", self.0.stderr()),
            Err(error) => panic!("{error}"),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}", self.0.report("the guest, as the test failed"));
        }
    }
}

/// How many mappings of the memory of a guest the process `pid` holds.
pub fn guest_mappings(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process is there");
    maps.lines().filter(|line| line.contains("memfd:memory-backend-memfd")).count()
}

/// The lines of a server's log that are no everyday matter.
pub fn warnings(log: &str) -> Vec<&str> {
    log.lines()
        .filter(|line| [" WARN ", " ERROR ", "panicked"].iter().any(|word| line.contains(word)))
        .collect()
}

/// The log of a server that had no trouble.
#[track_caller]
pub fn assert_no_warnings(log: &str) {
    let warnings = warnings(log);
    assert!(warnings.is_empty(), "the server complains:\n{}", warnings.join("\n"));
}
