//! `quarry control` against a server in this process: what it prints, and how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use quarry::config::{Machine, load};
use quarry::server::Running;

fn control(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quarry"))
        .env_remove("RUST_LOG")
        .env("QUARRY_CONTROL", socket)
        .arg("control")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A server, in its directory.
fn server() -> (tempfile::TempDir, PathBuf, Running) {
    let directory = tempfile::tempdir().expect("a directory");
    let name = directory.path().join("quarry.toml");
    let config = "[control]\nsocket = \"control.sock\"\n\
         [devices.disk]\ntype = \"null\"\nsize = \"1T\"\n\
         [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{ device = \"disk\" }]\n";
    let checked = load(&name.to_string_lossy(), config, &Machine::this()).expect("good");
    let running = Running::start(checked.config).expect("starts");
    let socket = directory.path().join("control.sock");
    (directory, socket, running)
}

#[test]
fn control_shows_and_changes_a_running_server() {
    let (directory, socket, server) = server();
    let control = |arguments: &[&str]| control(&socket, arguments);
    let shown = |arguments: &[&str]| {
        let output = control(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let status = shown(&["status"]);
    let lines: Vec<Vec<&str>> = status.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..2], ["quarry", &format!("{},", env!("CARGO_PKG_VERSION"))]);
    assert_eq!(lines[2], ["REACTOR", "CPU", "MODE", "BUSY", "SLEEPS", "SLEPT"]);
    assert_eq!((lines[3][0], lines[3][2]), ("reactor-0", "adaptive"));
    assert_eq!(lines[5][..3], ["CONTROLLER", "SOCKET", "CLIENT"]);
    let path = directory.path().join("vm.sock");
    assert_eq!(lines[6][..4], ["vm", path.to_str().expect("UTF-8"), "none", "0"]);
    let json = shown(&["status", "--json"]);
    assert!(json.contains("\"uptime_s\"") && json.contains("\"name\": \"vm\""), "{json}");

    assert_eq!(shown(&["set-mode", "0", "poll"]), "");
    assert!(shown(&["status"]).contains("poll"));
    let limits = shown(&["limits", "vm/1", "iops=1000", "write-bandwidth=100M"]);
    assert!(limits.contains("\niops             1000 a second\n"), "{limits}");
    assert!(limits.contains("\nwrite_bandwidth  100M a second\n"), "{limits}");
    assert!(shown(&["limits", "vm/1", "iops=none"]).contains("\niops             none\n"));
    assert!(shown(&["limits", "vm"]).contains("\nwrite_bandwidth  none\n"), "not those of the namespace");

    for (arguments, complaint) in [
        (&["set-mode", "reactor-0", "interrupt"][..], "error: the controller `vm` has mapped doorbells"),
        (&["set-mode", "reactor-9", "poll"], "error: there is no reactor `reactor-9`"),
        (&["move-queue", "vm", "1", "0"], "error: "),
        (&["limits", "vn"], "did you mean `vm`?"),
        (&["limits", "vm", "iops=many"], "error: `iops` must be a whole number"),
        (&["limits", "vm", "iops=1", "iops=2"], "error: `iops` is given twice"),
        (&["--socket", "/nowhere/control.sock", "status"], "a table [control] in its configuration"),
        (&["status", "--socket", "/nowhere/control.sock"], "cannot connect to /nowhere/control.sock"),
    ] {
        let output = control(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stdout).is_empty(), "{arguments:?}");
        assert!(text(&output.stderr).contains(complaint), "{arguments:?}: {}", text(&output.stderr));
    }
    for arguments in
        [&["set-mode", "0", "lazy"][..], &["move-queue", "vm", "x", "0"], &["limits", "vm", "iops"], &[]]
    {
        assert_eq!(control(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert!(control(&["--socket", socket.to_str().expect("UTF-8"), "status"]).status.success());

    server.stop().expect("ends well");
    let gone = control(&["status"]);
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn control_has_help_that_can_be_pasted() {
    let help = text(&control(Path::new(""), &["--help"]).stdout);
    for line in
        ["quarry control limits vm iops=20000 bandwidth=200M", "QUARRY_CONTROL", "set-mode", "[control]"]
    {
        assert!(help.contains(line), "{line}\n{help}");
    }
    let help = text(&control(Path::new(""), &["limits", "--help"]).stdout);
    for line in ["burst_ms", "KEY=none removes one"] {
        assert!(help.contains(line), "{line}\n{help}");
    }
}
