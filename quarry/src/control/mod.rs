//! The control socket: what runs can be looked at and changed while it runs.
//!
//! The server's side: [`Control`] is what can be asked, [`serve`] brings the questions: one JSON-RPC 2.0 request a line.
//! All of it runs on the control thread and reaches the data path by messages and counters only. The other side,
//! `quarry control`, is [`client`], and what it shows to people [`show`]. Leaves out whatever needs a restart: devices,
//! subsystems and controllers are those of the configuration.

pub mod client;
mod limits;
mod methods;
mod opal;
mod params;
pub mod rpc;
pub mod serve;
pub mod show;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use nvme_emu::Controller;

use crate::devices::Drives;
use crate::reactor::ReactorThread;

/// The reactors and controllers of a server.
pub struct Control {
    /// Those of the server, by number.
    pub reactors: Arc<Vec<ReactorThread>>,
    /// In the order of their names.
    pub controllers: Vec<Controlled>,
    /// Self-encrypting drives, by the names of their devices.
    pub drives: Drives,
    /// When the server was started.
    pub started: Instant,
}

/// A controller with what only the configuration knows of it.
pub struct Controlled {
    /// Its name.
    pub name: String,
    /// Where its client connects, for people.
    pub socket: String,
    /// The name of its subsystem if that has a table of its own.
    pub subsystem: Option<String>,
    /// The controller.
    pub function: Arc<Controller>,
    /// The number of the reactor of each of its workers.
    pub workers: Vec<usize>,
    /// The devices of the namespaces, by identifier.
    pub devices: BTreeMap<u32, String>,
}
