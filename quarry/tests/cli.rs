//! The built program, from outside: arguments in; text, files, sockets and exit status out.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// More than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn quarry() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quarry"));
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    quarry().args(arguments).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A server that said it is ready.
struct Server {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    seen: String,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
        let log = BufReader::new(child.stderr.take().expect("piped"));
        let mut server = Self { child, log, seen: String::new() };
        server.wait_for("ready");
        server
    }

    /// Reads the log up to a line with `what`, which it returns.
    fn wait_for(&mut self, what: &str) -> String {
        loop {
            let mut line = String::new();
            let got = self.log.read_line(&mut line).expect("a log");
            assert!(got > 0, "the log ended without `{what}`:\n{}", self.seen);
            self.seen.push_str(&line);
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
    }

    /// Waits for the end; returns the status and the rest of the log.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.seen);
            std::thread::sleep(Duration::from_millis(10));
        };
        self.log.read_to_string(&mut self.seen).expect("a log");
        (status, std::mem::take(&mut self.seen))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration in a directory of its own.
fn configuration(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("quarry.toml");
    fs::write(&file, text).expect("written");
    (directory, file)
}

fn serve_disk(directory: &Path, disk: &str) -> Command {
    let mut command = quarry();
    command.current_dir(directory).args(["serve", "--socket", "vm.sock", "--disk", disk]);
    command
}

#[test]
fn help_shows_examples() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout);
    for line in [
        "quarry serve --socket /run/quarry/vm.sock --disk file:disk.img,size=10G",
        "quarry check /etc/quarry/quarry.toml",
        "\"driver\":\"vfio-user-pci\"",
        "--user-device socket=/run/quarry/vm.sock",
        "Exit status:",
    ] {
        assert!(help.contains(line), "{line}\n{help}");
    }
    let help = text(&run(&["serve", "--help"]).stdout);
    for line in ["quarry serve --fd 3 --disk null:1T", "direct=auto|on|off", "SIGTERM"] {
        assert!(help.contains(line), "{line}\n{help}");
    }
}

#[test]
fn tells_its_version() {
    let version = run(&["--version"]);
    assert_eq!(text(&version.stdout), format!("quarry {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completes_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]);
        assert!(script.status.success());
        assert!(text(&script.stdout).contains("block-size"), "{shell}");
    }
}

#[test]
fn wrong_command_lines_end_with_2() {
    for arguments in [
        &["serve"][..],
        &["serv"],
        &["serve", "x.toml", "--disk", "mem:1G"],
        &["serve", "--disk", "mem:1G", "--block-size", "1000", "--socket", "x"],
        &["serve", "--log-level", "a=b=c", "--disk", "mem:1G", "--socket", "x"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn check_names_every_mistake() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("quarry.toml");
    let arguments = ["check", file.to_str().expect("UTF-8")];

    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("No such file"), "{}", text(&output.stderr));

    fs::write(&file, "[devices.disk]\ntype = \"memory\"\nsise = \"1G\"\n[controllers.vm]\nsocket = 1\n")
        .expect("written");
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(3));
    let complaint = text(&output.stderr);
    for line in [
        "error: devices.disk.sise: unknown key `sise`",
        "quarry.toml:3:1",
        "did you mean `size`?",
        "the key `size` is missing",
        "error: controllers.vm.socket: expected a string",
        "4 errors",
    ] {
        assert!(complaint.contains(line), "{line}\n{complaint}");
    }

    fs::write(
        &file,
        "[devices.disk]\ntype = \"memory\"\nsize = \"1G\"\n[controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{ device = \"disk\" }]\n",
    )
    .expect("written");
    let output = run(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("good (1 controller, 1 device)"), "{}", text(&output.stdout));
    assert!(!directory.path().join("vm.sock").exists(), "check starts nothing");
}

/// What would fail when it is served is a mistake: files and directories that this user has no access to.
#[test]
fn check_looks_at_permissions() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(mode)).expect("set");
    };
    mode("", 0o755);
    fs::copy(env!("CARGO_BIN_EXE_quarry"), directory.path().join("quarry")).expect("copied");
    for name in ["hidden", "closed"] {
        fs::create_dir(directory.path().join(name)).expect("made");
    }
    for name in ["hidden/disk.img", "mine.img", "readable.img"] {
        fs::File::create(directory.path().join(name)).expect("made").set_len(1 << 20).expect("sized");
    }
    let config = r#"
        [devices]
        hidden = { type = "file", path = "hidden/disk.img" }
        mine = { type = "file", path = "mine.img" }
        readable = { type = "file", path = "readable.img" }
        fine = { type = "file", path = "./readable.img", read_only = true }
        new = { type = "file", path = "closed/new.img", size = "1M" }
        [controllers.vm]
        socket = "closed/vm.sock"
        namespaces = [{ device = "hidden" }, { device = "mine" }, { device = "new" }, { device = "readable" }]
    "#;
    fs::write(directory.path().join("quarry.toml"), config).expect("written");
    for (name, bits) in [("hidden", 0o000), ("closed", 0o555), ("mine.img", 0o000), ("readable.img", 0o444)] {
        mode(name, bits);
    }
    let mut check = Command::new(directory.path().join("quarry"));
    check.args(["check", "quarry.toml"]).current_dir(directory.path());
    if rustix::process::geteuid().is_root() {
        // Nobody, for whom permissions hold.
        check.uid(65534).gid(65534);
    }
    let output = check.output().expect("runs");
    mode("hidden", 0o755);
    assert_eq!(output.status.code(), Some(3));
    let complaint = text(&output.stderr);
    for line in [
        "error: devices.hidden.path",
        "hidden/disk.img cannot be looked at: permission denied",
        "error: devices.mine.path: this user cannot read and write",
        "error: devices.readable.path: this user cannot read and write",
        "give this user access to it, or write: read_only = true",
        "error: devices.new.path: this user cannot make anything in",
        "error: controllers.vm.socket: this user cannot make anything in",
    ] {
        assert!(complaint.contains(line), "{line}\n{complaint}");
    }
    assert!(!complaint.contains("does not exist"), "{complaint}");
}

#[test]
fn serves_until_a_signal_and_leaves_nothing_behind() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::start(&mut serve_disk(directory.path(), "file:disk.img,size=64M"));
        let socket = directory.path().join("vm.sock");
        assert!(socket.exists());
        assert_eq!(fs::metadata(directory.path().join("disk.img")).expect("made").len(), 64 << 20);
        assert!(server.seen.contains("1=disk (64M, 512 B blocks)"), "{}", server.seen);
        server.signal(signal);
        let (status, log) = server.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("ended, everything flushed"), "{log}");
        assert!(!socket.exists());
    }
}

/// A terminal that closes hangs up more than once, by its shell and by the kernel; under nohup that is nobody's concern.
#[test]
fn hanging_up_is_no_hurry_and_may_be_ignored() {
    let (_directory, file) = configuration(
        r#"
            [devices]
            disk = { type = "memory", size = "1M" }
            slow = { type = "fault", on = "disk", rules = [{ action = "delay", milliseconds = 300, operations = ["flush"] }] }
            [controllers.vm]
            socket = "vm.sock"
            namespaces = [{ device = "slow" }]
        "#,
    );
    let mut server = Server::start(quarry().arg("serve").arg(&file));
    server.signal(Signal::HUP);
    server.wait_for("stopping");
    server.signal(Signal::HUP);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");

    let mut ignoring = quarry();
    ignoring.arg("serve").arg(&file);
    // SAFETY: the closure calls signal(2) only, which is async-signal-safe.
    unsafe {
        ignoring.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut server = Server::start(&mut ignoring);
    server.signal(Signal::HUP);
    server.signal(Signal::TERM);
    let told = server.wait_for("stopping");
    assert!(told.contains("SIGTERM"), "{told}");
    assert_eq!(server.end().0.code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_directory, file) = configuration(
        r#"
            [devices.disk]
            type = "memory"
            size = "1M"
            [devices.stuck]
            type = "fault"
            on = "disk"
            rules = [{ action = "hold", operations = ["flush"] }]
            [controllers.vm]
            socket = "vm.sock"
            namespaces = [{ device = "stuck" }]
        "#,
    );
    let mut server = Server::start(quarry().arg("serve").arg(&file));
    server.signal(Signal::TERM);
    server.wait_for("stopping");
    server.signal(Signal::TERM);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(143), "{log}");
    assert!(log.contains("may be lost"), "{log}");
}

#[test]
fn a_disk_that_hangs_does_not_keep_others_from_being_flushed() {
    let (_directory, file) = configuration(
        r#"
            [devices]
            disk = { type = "memory", size = "1M" }
            a-stuck = { type = "fault", on = "disk", rules = [{ action = "hold", operations = ["flush"] }] }
            b-good = { type = "memory", size = "1M" }
            [controllers.vm]
            socket = "vm.sock"
            namespaces = [{ device = "a-stuck" }, { device = "b-good" }]
        "#,
    );
    let mut server = Server::start(quarry().arg("serve").arg(&file).args(["--log-level", "debug"]));
    server.signal(Signal::TERM);
    server.wait_for("flushed device=\"b-good\"");
    assert!(!server.seen.contains("not flushed"), "{}", server.seen);
    server.signal(Signal::TERM);
    assert_eq!(server.end().0.code(), Some(143));
}

#[test]
fn a_flush_that_fails_is_told() {
    let (directory, file) = configuration(
        r#"
            [devices.disk]
            type = "memory"
            size = "1M"
            [devices.broken]
            type = "fault"
            on = "disk"
            rules = [{ action = "fail", error = "write_fault", operations = ["flush"] }]
            [controllers.vm]
            socket = "vm.sock"
            namespaces = [{ device = "broken" }]
        "#,
    );
    let server = Server::start(quarry().arg("serve").arg(&file));
    server.signal(Signal::TERM);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("not flushed: broken: WriteFault"), "{log}");
    assert!(!directory.path().join("vm.sock").exists());
}

/// Connects `times` times, each until the server has seen it.
fn connect(socket: &Path, times: usize) {
    for _ in 0..times {
        let mut client = std::os::unix::net::UnixStream::connect(socket).expect("somebody listens");
        client.set_read_timeout(Some(PATIENCE)).expect("set");
        client.shutdown(std::net::Shutdown::Write).expect("shut down");
        let end = client.read(&mut [0; 64]).expect("the server sees it");
        assert_eq!(end, 0, "nothing was asked");
    }
}

#[test]
fn a_log_that_nobody_reads_any_more_does_not_end_it() {
    for format in ["text", "json"] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = serve_disk(directory.path(), "mem:1M");
        let mut server = Server::start(command.args(["--log-format", format]));
        let (reader, _) = std::io::pipe().expect("a pipe");
        // The server's only reader goes.
        let nobody = std::process::ChildStderr::from(std::os::fd::OwnedFd::from(reader));
        server.log = BufReader::new(nobody);
        connect(&directory.path().join("vm.sock"), 20);
        server.signal(Signal::TERM);
        let (status, _) = server.end();
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

#[test]
fn a_log_that_is_read_slowly_holds_up_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("quarry.toml");
    // A warning for each device that nobody uses: more than pipe and queue hold.
    let mut config: String =
        (0..6000).map(|n| format!("[devices.spare{n}]\ntype = \"null\"\nsize = \"1M\"\n")).collect();
    config.push_str(
        "[devices.disk]\ntype = \"null\"\nsize = \"1M\"\n\
         [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{ device = \"disk\" }]\n",
    );
    fs::write(&file, config).expect("written");
    let mut child = quarry().arg("serve").arg(&file).stderr(Stdio::piped()).spawn().expect("starts");
    let log = BufReader::new(child.stderr.take().expect("piped"));
    let mut server = Server { child, log, seen: String::new() };
    let (socket, deadline) = (directory.path().join("vm.sock"), Instant::now() + PATIENCE);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "it waits for its log's reader");
        std::thread::sleep(Duration::from_millis(10));
    }
    connect(&socket, 1);
    server.wait_for("dropped: the log was not read in time");
    server.signal(Signal::TERM);
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn an_image_has_one_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Server::start(&mut serve_disk(directory.path(), "file:disk.img,size=1M"));
    let mut second = serve_disk(directory.path(), "file:disk.img");
    let second = second.args(["--socket-mode", "0600"]).output().expect("runs");
    assert_eq!(second.status.code(), Some(1));
    let complaint = text(&second.stderr);
    assert!(complaint.contains("in use by another disk or server"), "{complaint}");
    assert!(complaint.contains("--disk file:disk.img"), "names the option: {complaint}");

    let socket_taken = serve_disk(directory.path(), "mem:1M").output().expect("runs");
    assert_eq!(socket_taken.status.code(), Some(1));
    assert!(
        text(&socket_taken.stderr).contains("another server listens there"),
        "{}",
        text(&socket_taken.stderr)
    );
    assert!(directory.path().join("vm.sock").exists(), "the first server's socket stays");
    drop(first);

    // Killed: socket file and image are left, and neither is in the way.
    let again = Server::start(&mut serve_disk(directory.path(), "file:disk.img"));
    again.signal(Signal::TERM);
    assert_eq!(again.end().0.code(), Some(0));
}

#[test]
fn serves_a_configuration_with_shared_and_several_disks() {
    let (directory, file) = configuration(
        r#"
            [devices.shared]
            type = "memory"
            size = "16M"
            block_size = 4096
            [devices.null]
            type = "null"
            size = "1T"
            [subsystems.both]
            namespaces = [{ device = "shared", nsid = 7, read_only = true }]
            [controllers.a]
            socket = "a.sock"
            socket_mode = "0660"
            subsystem = "both"
            [controllers.b]
            socket = "b.sock"
            subsystem = "both"
            [controllers.c]
            socket = "c.sock"
            namespaces = [{ device = "null" }]
            io_queues = 2
        "#,
    );
    let mut command = quarry();
    command.arg("serve").arg(&file).args(["--log-format", "json", "--log-level", "debug"]);
    let server = Server::start(&mut command);
    for socket in ["a.sock", "b.sock", "c.sock"] {
        assert!(directory.path().join(socket).exists());
        assert!(server.seen.contains(socket), "{}", server.seen);
    }
    assert!(server.seen.contains("7=shared (16M, 4096 B blocks, read-only)"), "{}", server.seen);
    assert!(server.seen.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{}", server.seen);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(directory.path().join("a.sock")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    server.signal(Signal::TERM);
    assert_eq!(server.end().0.code(), Some(0));
}

/// A server that inherits a listening socket as descriptor 3.
fn pass(listener: UnixListener) -> Command {
    let mut command = quarry();
    command.args(["serve", "--fd", "3", "--disk", "null:1T"]);
    // SAFETY: the closure calls dup2 only, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            use std::os::fd::{AsRawFd as _, FromRawFd as _};
            if listener.as_raw_fd() == 3 {
                rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
                return Ok(());
            }
            let mut third = std::mem::ManuallyDrop::new(std::os::fd::OwnedFd::from_raw_fd(3));
            rustix::io::dup2(&listener, &mut third)?;
            Ok(())
        });
    }
    command
}

#[test]
fn takes_a_socket_from_its_caller() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("inherited.sock");
    let mut command = pass(UnixListener::bind(&path).expect("bound"));
    // It is the socket, not the number of its descriptor, that tells the disk from others.
    let server = Server::start(command.args(["--log-level", "debug"]));
    let nqn = |server: &Server| {
        let identity = server.seen.lines().find(|line| line.contains("identity")).expect("told");
        identity.split_once("nqn=").expect("an NQN").1.to_owned()
    };
    std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
    let first = nqn(&server);
    server.signal(Signal::TERM);
    assert_eq!(server.end().0.code(), Some(0));
    assert!(path.exists(), "not ours to remove");
    // Another socket as the same number is another disk.
    let elsewhere = directory.path().join("elsewhere.sock");
    let listener = UnixListener::bind(&elsewhere).expect("bound");
    let server = Server::start(pass(listener).args(["--log-level", "debug"]));
    assert_ne!(nqn(&server), first);
    drop(server);

    let output = run(&["serve", "--fd", "99", "--disk", "null:1T"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--fd 99: descriptor 99"), "{}", text(&output.stderr));
}

#[test]
fn tells_the_service_manager() {
    let directory = tempfile::tempdir().expect("a directory");
    let manager = directory.path().join("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&manager).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let server = Server::start(serve_disk(directory.path(), "null:1T").env("NOTIFY_SOCKET", &manager));
    let receive = || {
        let mut message = [0; 512];
        let length = socket.recv(&mut message).expect("a message");
        text(&message[..length])
    };
    let ready = receive();
    assert!(ready.contains("READY=1") && ready.contains("STATUS=serving 1 controller"), "{ready}");
    server.signal(Signal::TERM);
    assert!(receive().contains("STOPPING=1"));
    assert_eq!(server.end().0.code(), Some(0));
}

#[test]
fn two_servers_in_one_process() {
    // The library does what the program does, for tests that start servers in process.
    let directory = tempfile::tempdir().expect("a directory");
    let config = |name: &str| {
        let text = format!(
            "[devices.disk]\ntype = \"memory\"\nsize = \"1M\"\n[controllers.vm]\nsocket = \"{name}.sock\"\nnamespaces = [{{ device = \"disk\" }}]\n"
        );
        let file = directory.path().join("quarry.toml");
        quarry::config::load(&file.to_string_lossy(), &text, &quarry::config::Machine::this())
            .unwrap_or_else(|report| panic!("{report}"))
            .config
    };
    let first = quarry::server::Running::start(config("first")).expect("starts");
    let second = quarry::server::Running::start(config("second")).expect("starts");
    assert!(directory.path().join("first.sock").exists() && directory.path().join("second.sock").exists());
    let refused = quarry::server::Running::start(config("first")).err().expect("its socket is taken");
    assert!(refused.to_string().contains("controllers.vm.socket"), "{refused}");
    first.stop().expect("ends");
    assert!(!directory.path().join("first.sock").exists() && directory.path().join("second.sock").exists());
    drop(second);
    assert!(!directory.path().join("second.sock").exists());
}
