//! `quarry opal`: the self-encrypting disks of a running server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::control::connect;

pub(super) const EXAMPLES: &str = "\
A disk is named as its device is in the configuration:
  [devices.disk]
  type = \"opal\"
  on = \"raw\"
  key = \"file:/etc/quarry/opal.key\"

Examples:
  quarry opal status
  quarry opal status disk --json
  quarry opal psid disk    # for a guest that has lost every PIN

With the PSID all data on a disk can be destroyed, and none of it read:
  sedutil-cli --yesIreallywanttoERASEALLmydatausingthePSID PSID /dev/nvme0";

/// Arguments of `opal`.
#[derive(Args, Debug)]
pub struct Opal {
    /// The server's control socket [default: QUARRY_CONTROL, or /run/quarry/control.sock]
    #[arg(long, value_name = "PATH", global = true)]
    pub socket: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show who owns disks, what is locked, and who may unlock it
    Status {
        /// The disk's device; none: all disks
        #[arg(value_name = "DEVICE")]
        device: Option<String>,
        /// As the server answers it, for programs
        #[arg(long)]
        json: bool,
    },
    /// Print the PSID: the PIN on the label of a disk, which takes everything back
    Psid {
        /// The disk's device
        #[arg(value_name = "DEVICE")]
        device: String,
    },
}

impl Opal {
    /// Does it; what there is to print, or what went wrong.
    pub fn run(&self) -> Result<String, String> {
        let mut client = connect(self.socket.clone())?;
        match &self.command {
            Command::Status { device, json } => {
                let named = device.iter().map(|device| ("device".to_owned(), json!(device)));
                let status = client.call("opal.status", named.collect())?;
                Ok(if *json { format!("{status:#}\n") } else { show(&status) })
            }
            Command::Psid { device } => {
                let params = Map::from_iter([("device".to_owned(), json!(device))]);
                let answer = client.call("opal.psid", params)?;
                Ok(format!("{}\n", answer["psid"].as_str().unwrap_or_default()))
            }
        }
    }
}

fn show(status: &Value) -> String {
    let drives = status["drives"].as_array().map(Vec::as_slice).unwrap_or_default();
    if drives.is_empty() {
        return "no self-encrypting disks\n".to_owned();
    }
    drives.iter().map(show_drive).collect::<Vec<_>>().join("\n")
}

fn show_drive(drive: &Value) -> String {
    let is = |key: &str| drive[key] == true;
    let say = |value: bool, yes: &'static str, no: &'static str| if value { yes } else { no };
    let mut text = format!(
        "{}: {}, {}, {}\n",
        drive["device"].as_str().unwrap_or_default(),
        say(is("owned"), "owned", "not owned"),
        say(is("locking_enabled"), "locking enabled", "locking not enabled"),
        say(is("locked"), "locked", "nothing locked"),
    );
    if is("mbr_enabled") {
        let done = say(is("mbr_done"), "done: the disk itself is shown", "reads show the MBR table");
        text += &format!("  MBR shadow: enabled, {done}\n");
    }
    if is("sid_blocked") {
        text += "  SID blocked: nobody can take ownership before the next power cycle (Block SID)\n";
    }
    if drive["sessions"] != 0 {
        text += &format!("  sessions: {}\n", drive["sessions"]);
    }
    let numbers = |key: &str, name: &str| {
        let numbers = drive[key].as_array().map(Vec::as_slice).unwrap_or_default();
        numbers.iter().map(|number| format!("{name}{number}")).collect::<Vec<_>>()
    };
    let who = [numbers("admins", "Admin"), numbers("users", "User")].concat();
    if !who.is_empty() {
        text += &format!("  enabled: {}\n", who.join(", "));
    }
    for range in drive["ranges"].as_array().map(Vec::as_slice).unwrap_or_default() {
        text += &show_range(range);
    }
    text
}

fn show_range(range: &Value) -> String {
    let blocks = match range["range"].as_u64() {
        Some(0) => "global range".to_owned(),
        _ => format!("range {}: blocks {} to {}", range["range"], range["start"], last(range)),
    };
    let pair = |key: &str| (range[key][0] == true, range[key][1] == true);
    let words = |(read, write): (bool, bool)| match (read, write) {
        (true, true) => "reads and writes",
        (true, false) => "reads",
        (false, true) => "writes",
        (false, false) => "nothing",
    };
    let single = if range["single_user"] == true { ", single user" } else { "" };
    let (locked, enabled) = (words(pair("locked")), words(pair("lock_enabled")));
    format!("  {blocks}: {locked} locked; locking is enabled for {enabled}{single}\n")
}

fn last(range: &Value) -> u64 {
    let number = |key: &str| range[key].as_u64().unwrap_or(0);
    (number("start") + number("length")).saturating_sub(1)
}
