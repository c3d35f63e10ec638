//! The area `idle`: what 64 enabled controllers without I/O cost, and the first command after a pause.

use super::Setting;
use super::client::read;
use super::report::{Idle, Report};
use crate::server::Server;
use anyhow::Result;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

const CONTROLLERS: usize = 64;

/// The kinds: how doorbells reach the reactor, and its mode.
const KINDS: [(&str, &str, &str); 2] = [
    ("mapped doorbells, adaptive", "adaptive", ""),
    ("trapped doorbells, interrupt", "interrupt", "doorbells = \"trapped\""),
];

pub fn run(setting: &Setting, report: &mut Report) -> Result<()> {
    println!("\n{CONTROLLERS} enabled controllers without I/O; the first command after a pause");
    for (name, mode, doorbells) in KINDS {
        let server = serve(setting, mode, doorbells)?;
        let mut command = Command::new(&setting.client);
        command.args(["idle", "--server-pid", &server.pid().to_string()]);
        command.args(["--seconds", if setting.pace.runs > 3 { "5" } else { "2" }]);
        if setting.pace.runs <= 3 {
            command.args(["--pauses", "1,100"]);
        }
        for number in 0..CONTROLLERS {
            command.arg("--socket").arg(server.socket().with_file_name(format!("c{number}")));
        }
        if !setting.machine.is_shared() {
            command.args(["--cpu", &setting.machine.client_cpu.to_string()]);
        }
        let mut idle: Idle = read(&mut command)?;
        server.stop()?;
        name.clone_into(&mut idle.name);
        println!("{idle}");
        report.idle.push(idle);
    }
    Ok(())
}

fn serve(setting: &Setting, mode: &str, doorbells: &str) -> Result<Server> {
    let short = tempfile::Builder::new().prefix("s-").tempdir_in(&setting.directory)?;
    let mut text = format!(
        "# Written by `cargo xtask bench`.\n[reactors]\ncpus = [{}]\nmode = \"{mode}\"\n",
        setting.machine.server_cpu
    );
    for number in 0..CONTROLLERS {
        let socket = short.path().join(format!("c{number}")).display().to_string();
        let _ = write!(
            text,
            "[devices.d{number}]\ntype = \"null\"\nsize = \"1G\"\n[controllers.c{number}]\nsocket = {socket:?}\n\
             {doorbells}\nnamespaces = [{{ device = \"d{number}\" }}]\n"
        );
    }
    let path = setting.directory.join(format!("idle-{mode}.toml"));
    fs::write(&path, text)?;
    let mut command = Command::new(&setting.quarry);
    command.arg("serve").arg(&path);
    let last = short.path().join(format!("c{}", CONTROLLERS - 1));
    Server::start(command, last, setting.directory.join(format!("idle-{mode}.log")), short)
}
