//! From the kernel's hand-over to a usable root file system.

use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount, mount_move};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

/// Writes one line to the kernel's log, and so to the console that the host keeps.
pub fn say(line: &str) {
    match OpenOptions::new().write(true).open("/dev/kmsg") {
        // Priority 3 passes the "quiet" of the command line.
        Ok(mut log) => drop(log.write_all(format!("<3>agent: {line}\n").as_bytes())),
        Err(_) => eprintln!("agent: {line}"),
    }
}

/// Everything up to the point where commands can run. Failures are told on the console and do not stop the boot: the
/// host learns more from a guest that is half there.
pub fn boot() {
    attach("proc", "/proc", "proc", "");
    attach("sys", "/sys", "sysfs", "");
    attach("dev", "/dev", "devtmpfs", "");
    for module in fs::read_to_string("/modules.list").unwrap_or_default().lines() {
        load(module);
    }
    match root() {
        Some((device, kind)) => enter(&device, &kind),
        None => say("the command line names no groot=DEVICE:TYPE"),
    }
    for (kind, path) in [
        ("tmpfs", "/tmp"),
        ("tmpfs", "/dev/shm"),
        ("devpts", "/dev/pts"),
        ("configfs", "/sys/kernel/config"),
        ("debugfs", "/sys/kernel/debug"),
    ] {
        attach(kind, path, kind, "");
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    let _ = rustix::system::sethostname(b"guest");
}

/// `groot=/dev/vda:erofs` on the kernel's command line.
fn root() -> Option<(String, String)> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    let (device, kind) =
        line.split_whitespace().find_map(|word| word.strip_prefix("groot="))?.rsplit_once(':')?;
    Some((device.to_owned(), kind.to_owned()))
}

/// Mounts the root image read-only below a writable overlay and makes that the root.
fn enter(device: &str, kind: &str) {
    let start = Instant::now();
    while !fs::exists(device).unwrap_or(false) {
        if start.elapsed() > Duration::from_secs(30) {
            return say(&format!("{device} did not appear"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let read_only = mount(device, make("/ro"), kind, MountFlags::RDONLY, None);
    if let Err(e) = read_only {
        return say(&format!("mount {device} as {kind}: {e}"));
    }
    attach("tmpfs", "/rw", "tmpfs", "size=75%");
    make("/rw/upper");
    make("/rw/work");
    attach("overlay", "/new", "overlay", "lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work");
    for path in ["/proc", "/sys", "/dev"] {
        if let Err(e) = mount_move(path, make(&format!("/new{path}"))) {
            say(&format!("move {path}: {e}"));
        }
    }
    make("/new/run");
    if let Err(e) = fs::copy("/init", format!("/new{}", super::SELF)) {
        say(&format!("copy the agent: {e}"));
    }
    let moved = rustix::process::chdir("/new")
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    if let Err(e) = moved {
        say(&format!("enter the root: {e}"));
    }
}

fn make(path: &str) -> &str {
    let _ = fs::create_dir_all(path);
    path
}

fn attach(source: &str, path: &str, kind: &str, data: &str) {
    let data = std::ffi::CString::new(data).unwrap_or_default();
    if let Err(e) = mount(source, make(path), kind, MountFlags::empty(), data.as_c_str()) {
        say(&format!("mount {kind} at {path}: {e}"));
    }
}

fn load(module: &str) {
    let loaded = rustix::fs::openat(CWD, module, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
        .map(File::from)
        .and_then(|file| rustix::system::finit_module(file, c"", 0));
    match loaded {
        Ok(()) | Err(rustix::io::Errno::EXIST) => (),
        Err(e) => say(&format!("load {module}: {e}")),
    }
}
