//! `quarry control`: what a running server does, and changing it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::control::client::Client;
use crate::control::show;

/// Where the control socket is if nothing is said.
const DEFAULT_SOCKET: &str = "/run/quarry/control.sock";

pub(super) const EXAMPLES: &str = "\
The server listens there if its configuration says so:
  [control]
  socket = \"/run/quarry/control.sock\"

Examples:
  quarry control status
  quarry control status --json | jq '.controllers[].counters'
  quarry control set-mode reactor-0 poll
  quarry control move-queue vm 3 reactor-1
  quarry control limits vm iops=20000 bandwidth=200M
  quarry control limits vm/1 bandwidth=none    # of the namespace 1
  quarry control --socket /tmp/q.sock limits vm

What is changed here lasts until the server ends.";

const LIMITS: &str = "\
Limits:
  iops, read_iops, write_iops                 commands a second
  bandwidth, read_bandwidth, write_bandwidth  bytes a second, such as 100M
  burst_ms    how many milliseconds of its rates a disk that was quiet may use
              at once (100 if nothing is said)
  Those that are not named stay as they are; KEY=none removes one.

Examples:
  quarry control limits vm
  quarry control limits vm iops=20000 bandwidth=200M
  quarry control limits vm/1 write_iops=500 bandwidth=none";

/// Arguments of `control`.
#[derive(Args, Debug)]
pub struct Control {
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
    /// Show reactors, controllers, their queues and counters
    Status {
        /// As the server answers it, for programs
        #[arg(long)]
        json: bool,
    },
    /// Change how a reactor waits for work
    SetMode {
        /// Its name or number
        #[arg(value_name = "REACTOR")]
        reactor: String,
        /// poll: spin always; adaptive: spin while there is work; interrupt: sleep until woken
        #[arg(value_name = "MODE", value_parser = ["poll", "adaptive", "interrupt"])]
        mode: String,
    },
    /// Have another reactor poll a queue
    MoveQueue {
        /// The controller's name
        #[arg(value_name = "CONTROLLER")]
        controller: String,
        /// The completion queue; submission queues that answer to it go along
        #[arg(value_name = "CQID")]
        cqid: u16,
        /// The name or number of one of the controller's reactors
        #[arg(value_name = "REACTOR")]
        reactor: String,
    },
    /// Show or change the limits of a controller or of a namespace
    #[command(after_help = LIMITS)]
    Limits {
        /// The controller; with /NSID, that namespace of it, for all controllers that show it
        #[arg(value_name = "CONTROLLER[/NSID]")]
        target: String,
        /// Limits to change, see below; none: only show them
        #[arg(value_name = "KEY=VALUE", value_parser = key_and_value)]
        changes: Vec<(String, Value)>,
    },
}

fn key_and_value(text: &str) -> Result<(String, Value), String> {
    let Some((key, value)) = text.split_once('=') else {
        return Err("write KEY=VALUE, for example iops=20000".to_owned());
    };
    let value = match value {
        "none" => Value::Null,
        value => value.parse::<u64>().map_or_else(|_| json!(value), |number| json!(number)),
    };
    Ok((key.replace('-', "_"), value))
}

/// A controller, and a namespace of it.
fn limited(target: &str) -> Map<String, Value> {
    let namespace =
        target.rsplit_once('/').and_then(|(controller, nsid)| Some((controller, nsid.parse::<u32>().ok()?)));
    let (controller, nsid) = namespace.map_or((target, None), |(name, nsid)| (name, Some(nsid)));
    let mut params = Map::new();
    params.insert("controller".to_owned(), json!(controller));
    if let Some(nsid) = nsid {
        params.insert("nsid".to_owned(), json!(nsid));
    }
    params
}

/// A client of the socket that was named, in the environment if not by an option.
pub(super) fn connect(socket: Option<PathBuf>) -> Result<Client, String> {
    let from_environment = || std::env::var_os("QUARRY_CONTROL").filter(|path| !path.is_empty());
    let socket = socket.or_else(|| from_environment().map(PathBuf::from));
    Client::connect(&socket.unwrap_or_else(|| DEFAULT_SOCKET.into()))
}

impl Control {
    /// Does it; what there is to print, or what went wrong.
    pub fn run(&self) -> Result<String, String> {
        let mut client = connect(self.socket.clone())?;
        let mut call = |method: &str, params| client.call(method, params);
        match &self.command {
            Command::Status { json } => {
                let status = call("status", Map::new())?;
                Ok(if *json { format!("{status:#}\n") } else { show::status(&status) })
            }
            Command::SetMode { reactor, mode } => {
                let params = [("reactor", json!(reactor)), ("mode", json!(mode))];
                call("reactor.set_mode", named(params)).map(|_| String::new())
            }
            Command::MoveQueue { controller, cqid, reactor } => {
                let params =
                    [("controller", json!(controller)), ("cqid", json!(cqid)), ("reactor", json!(reactor))];
                call("queue.move", named(params)).map(|_| String::new())
            }
            Command::Limits { target, changes } => {
                let mut params = limited(target);
                let method = if changes.is_empty() { "limits.get" } else { "limits.set" };
                for (key, value) in changes {
                    if params.insert(key.clone(), value.clone()).is_some() {
                        return Err(format!("`{key}` is given twice; keep one of them"));
                    }
                }
                call(method, params).map(|limits| show::limits(&limits))
            }
        }
    }
}

fn named<const N: usize>(params: [(&str, Value); N]) -> Map<String, Value> {
    params.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The lines of the help texts.
#[cfg(test)]
pub(super) fn texts() -> impl Iterator<Item = &'static str> {
    EXAMPLES.lines().chain(LIMITS.lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_values() {
        assert_eq!(Value::Object(limited("vm")), json!({ "controller": "vm" }));
        assert_eq!(Value::Object(limited("vm/7")), json!({ "controller": "vm", "nsid": 7 }));
        assert_eq!(Value::Object(limited("a/b")), json!({ "controller": "a/b" }));
        assert_eq!(key_and_value("read-iops=5"), Ok(("read_iops".to_owned(), json!(5))));
        assert_eq!(key_and_value("bandwidth=1G"), Ok(("bandwidth".to_owned(), json!("1G"))));
        assert_eq!(key_and_value("iops=none"), Ok(("iops".to_owned(), Value::Null)));
        assert!(key_and_value("iops").is_err());
    }
}
