//! [`Server`]: devices, subsystems, controllers and reactors of a configuration, running.
//!
//! Control work (sockets, signals) runs where [`Server::run`] is awaited; the data path runs on the
//! [reactors](crate::reactor) and is not touched from there but by messages.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::Device;
use nvme_emu::{Controller, NamespaceConfig, Subsystem};

use crate::ceph::preemption::Courtesy;
use crate::config::Config;
use crate::config::diagnostic::Spot;
use crate::config::model::{ControllerConfig, Doorbells, Socket, SubsystemConfig, SubsystemRef, Threads};
use crate::control::{self, Control, Controlled};
use crate::devices::{self, Devices};
use crate::endpoint::Endpoint;
use crate::reactor::ReactorThread;
use crate::size::Size;
use crate::{affinity, flush, identity};

/// How long clients and their I/O have to come to an end when the server stops.
pub const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// Why a server could not start: which key of the configuration, and what happened.
#[derive(Debug)]
pub struct StartError {
    key: String,
    message: String,
    help: Option<String>,
}

impl StartError {
    /// Something at `spot` failed because of `cause`.
    pub fn new(spot: &Spot, cause: impl fmt::Display) -> Self {
        Self { key: spot.key.clone(), message: cause.to_string(), help: None }
    }

    /// With what to do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}

impl std::error::Error for StartError {}

/// A server whose sockets are listening.
pub struct Server {
    endpoints: Vec<Endpoint>,
    reactors: Arc<Vec<ReactorThread>>,
    devices: Devices,
    patience: flush::Patience,
    control: Arc<Control>,
    control_socket: Option<control::serve::Endpoint>,
    /// For devices on clusters.
    courtesy: Option<Courtesy>,
}

/// A subsystem and the names of its namespaces, for the log.
struct Built {
    subsystem: Arc<Subsystem>,
    devices: BTreeMap<u32, String>,
    shown: String,
}

impl Server {
    /// Opens the devices of a checked configuration, starts its reactors and listens on its sockets. Must be
    /// called in a tokio runtime, the one that then [runs](Server::run) the server.
    ///
    /// When this returns, clients can connect; they are answered once the server runs.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        // Inherited descriptors first, before their numbers could mean anything else.
        let mut inherited = BTreeMap::new();
        for (name, controller) in &config.controllers {
            if let Socket::Fd(fd) = &controller.socket {
                inherited.insert(name.clone(), crate::endpoint::claim(fd)?);
            }
        }
        let mut sockets: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for (name, controller) in &config.controllers {
            sockets.insert(name, crate::endpoint::socket_name(&controller.socket, inherited.get(name))?);
        }
        let socket_of = |name: &str| sockets.get(name).map_or(&[][..], Vec::as_slice);
        let (devices, drives) = devices::open(config)?;
        let reactors = Arc::new(start_reactors(config)?);

        let mut shared: BTreeMap<&str, Built> = BTreeMap::new();
        for (name, subsystem) in &config.subsystems {
            let sockets = identity::sockets_of(name, config, socket_of);
            shared.insert(name, build_subsystem(name, subsystem, &sockets, config, &devices)?);
        }
        let mut endpoints = Vec::new();
        let mut controlled = Vec::new();
        for (index, (name, controller)) in config.controllers.iter().enumerate() {
            let own;
            let built = match &controller.subsystem {
                SubsystemRef::Shared(reference) => shared
                    .get(reference.value.as_str())
                    .ok_or_else(|| StartError::new(&reference.spot, "there is no such subsystem"))?,
                SubsystemRef::Own(subsystem) => {
                    own = build_subsystem(name, subsystem, &[socket_of(name)], config, &devices)?;
                    &own
                }
            };
            let chosen = controller.spread(index, reactors.len());
            let function = build_controller(controller, &built.subsystem, &chosen, &reactors)?;
            let endpoint = Endpoint::listen(name, controller, function, inherited.remove(name))?;
            tracing::info!(
                controller = name,
                socket = %endpoint.address(),
                namespaces = built.shown,
                "listening"
            );
            controlled.push(Controlled {
                name: name.clone(),
                socket: endpoint.address().to_string(),
                subsystem: match &controller.subsystem {
                    SubsystemRef::Shared(reference) => Some(reference.value.clone()),
                    SubsystemRef::Own(_) => None,
                },
                function: endpoint.function().clone(),
                workers: chosen,
                devices: built.devices.clone(),
            });
            endpoints.push(endpoint);
        }
        let control_socket = config.control.as_ref().map(control::serve::Endpoint::listen).transpose()?;
        let control = Arc::new(Control {
            reactors: reactors.clone(),
            controllers: controlled,
            drives,
            started: Instant::now(),
        });
        let patience = crate::ceph::patience(config);
        let courtesy = if patience.devices.is_empty() { None } else { Courtesy::start() };
        Ok(Self { endpoints, reactors, devices, patience, control, control_socket, courtesy })
    }

    /// What can be looked at and changed while it runs. To be let go of before the server ends: it holds the reactors.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// How many controllers there are.
    pub fn controllers(&self) -> usize {
        self.endpoints.len()
    }

    /// Serves until `shutdown` resolves; then lets go of clients, flushes every device and removes the sockets.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { endpoints, reactors, devices, patience, control, control_socket, courtesy } = self;
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        for endpoint in endpoints {
            tasks.spawn(endpoint.serve(stopping.clone()));
        }
        let controlling =
            control_socket.map(|socket| tokio::spawn(socket.serve(control.clone(), stopping.clone())));
        drop((control, stopping));

        let mut failed = 0;
        let mut ended = |result: Result<Result<(), StartError>, tokio::task::JoinError>| match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                failed += 1;
                tracing::error!(%error, "a controller stopped");
            }
            Err(error) => {
                failed += 1;
                tracing::error!(%error, "a controller's task panicked");
            }
        };
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                result = tasks.join_next() => match result {
                    Some(result) => ended(result),
                    None => {
                        tracing::error!("no controller is left");
                        break;
                    }
                },
            }
        }

        let _ = stop.send(true);
        if let Some(controlling) = controlling
            && let Err(error) = controlling.await
        {
            tracing::error!(%error, "the control socket's task panicked");
        }
        let drained = async {
            while let Some(result) = tasks.join_next().await {
                ended(result);
            }
        };
        // The deadline is the endpoints' own; this one is for those that miss it.
        if tokio::time::timeout(DETACH_DEADLINE * 2, drained).await.is_err() {
            failed += 1;
            tracing::error!("a client's I/O did not come to an end; flushing without it");
        }
        tasks.abort_all();
        // On a thread of their own: joining reactors and flushing may block.
        let unflushed = tokio::task::spawn_blocking(move || {
            // All before one is waited for: each may wait for a while for what nobody answers.
            reactors.iter().for_each(ReactorThread::stop);
            drop((reactors, courtesy));
            flush::and_close(devices, &patience)
        })
        .await?;
        anyhow::ensure!(unflushed.is_empty(), "not flushed: {}", unflushed.join("; "));
        anyhow::ensure!(failed == 0, "{failed} controllers failed, see the log");
        Ok(())
    }
}

/// A server with control thread and runtime of its own, for programs that have other things to do. Dropping it
/// stops it.
pub struct Running {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    /// Starts a server of a checked configuration; its sockets are listening when this returns.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                match Server::start(&config) {
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        Ok(())
                    }
                    Ok(server) => {
                        let _ = ready.send(Ok(()));
                        // Stopped by a message, or by the sender's end.
                        server.run(async { drop(stopped.await) }).await
                    }
                }
            })
        })?;
        let running = Self { stop: Some(stop), thread: Some(thread) };
        match started.recv() {
            Ok(Ok(())) => Ok(running),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => running.stop().and_then(|()| anyhow::bail!("the control thread ended at once")),
        }
    }

    /// Stops the server and waits until it has flushed everything.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().unwrap_or_else(|_| anyhow::bail!("the control thread panicked"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error:#}");
        }
    }
}

fn start_reactors(config: &Config) -> Result<Vec<ReactorThread>, StartError> {
    let allowed = affinity::allowed_cpus();
    let cpus = match &config.reactors.threads {
        Threads::Default => affinity::placement(1, &allowed),
        Threads::Count(count) => affinity::placement(count.value, &allowed),
        Threads::Cpus(cpus) => cpus.iter().map(|cpu| Some(cpu.value)).collect(),
    };
    let mut reactors = Vec::new();
    for (number, cpu) in cpus.into_iter().enumerate() {
        let (mode, fixed_pieces) = (config.reactors.mode(number), config.reactors.fixed_pieces);
        let started = ReactorThread::start(number, cpu, mode, fixed_pieces).map_err(|error| {
            StartError::new(&Spot::named("reactors"), explain_reactor(number, cpu, &error))
        })?;
        tracing::debug!(reactor = number, cpu = cpu.map(tracing::field::display), "started");
        reactors.push(started);
    }
    Ok(reactors)
}

fn explain_reactor(number: usize, cpu: Option<usize>, error: &std::io::Error) -> String {
    let place = cpu.map_or(String::new(), |cpu| format!(" on CPU {cpu}"));
    format!("reactor {number} cannot start{place}: {error}")
}

fn build_subsystem(
    name: &str,
    config: &SubsystemConfig,
    sockets: &[&[u8]],
    whole: &Config,
    devices: &Devices,
) -> Result<Built, StartError> {
    let identity = identity::subsystem(name, config, sockets);
    let nqn = identity.nqn.clone();
    tracing::debug!(subsystem = name, nqn, serial = identity.serial, "identity");
    let subsystem = Subsystem::new(nvme_emu::SubsystemConfig {
        nqn: identity.nqn,
        serial: identity.serial,
        model: identity.model,
    })
    .map_err(|error| StartError::new(&config.spot, error))?;
    let (mut shown, mut named) = (Vec::new(), BTreeMap::new());
    let mut uuids: BTreeMap<uuid::Uuid, &Spot> = BTreeMap::new();
    // Chosen identifiers first, so that none is given away as the lowest free one.
    let mut in_order: Vec<_> = config.namespaces.iter().collect();
    in_order.sort_by_key(|namespace| namespace.nsid.is_none());
    for namespace in in_order {
        let device_name = &namespace.device.value;
        let device = devices
            .get(device_name)
            .ok_or_else(|| StartError::new(&namespace.device.spot, "there is no such device"))?;
        let uuid = match (&namespace.uuid, device.identity()) {
            (Some(uuid), _) => uuid.value,
            (None, Some(data)) => identity::data(&data),
            (None, None) => identity::namespace(&nqn, device_name, whole),
        };
        // What is one on a cluster may have two names.
        if let Some(first) = uuids.insert(uuid, &namespace.device.spot) {
            let cause = format!("this disk has the UUID of {}: both are the same data", first.key);
            return Err(StartError::new(&namespace.device.spot, cause)
                .help("give one of them another: uuid = \"...\", as `uuidgen` prints it"));
        }
        let info = device.info();
        let nsid = subsystem
            .add_namespace(NamespaceConfig {
                nsid: namespace.nsid.as_ref().map(|nsid| nsid.value),
                device: Arc::<dyn Device>::clone(device),
                uuid: uuid.into_bytes(),
                read_only: namespace.read_only,
                limits: namespace.limits.clone(),
            })
            .map_err(|error| StartError::new(&namespace.spot, error))?;
        let access = if namespace.read_only { ", read-only" } else { "" };
        named.insert(nsid, device_name.clone());
        shown.push((
            nsid,
            format!("{nsid}={device_name} ({}, {} B blocks{access})", Size(info.size()), info.block_size),
        ));
    }
    shown.sort();
    let shown: Vec<String> = shown.into_iter().map(|(_, text)| text).collect();
    Ok(Built { subsystem, devices: named, shown: shown.join(" ") })
}

/// A controller, its workers on the chosen reactors.
fn build_controller(
    config: &ControllerConfig,
    subsystem: &Arc<Subsystem>,
    chosen: &[usize],
    reactors: &[ReactorThread],
) -> Result<Arc<Controller>, StartError> {
    let (controller, seeds) = Controller::new(
        subsystem.clone(),
        nvme_emu::ControllerConfig {
            io_queues: config.io_queues,
            queue_entries: config.queue_entries,
            max_transfer: config.max_transfer,
            intx: config.intx,
            shadow_doorbells: config.shadow_doorbells,
            trapped_doorbells: config.doorbells.value == Doorbells::Trapped,
            limits: config.limits.clone(),
            msi: config.msi,
            workers: chosen.len(),
        },
    )
    .map_err(|error| StartError::new(&config.spot, error))?;
    for (reactor, seed) in chosen.iter().zip(seeds) {
        let reactor = reactors
            .get(*reactor)
            .ok_or_else(|| StartError::new(&config.spot, format!("there is no reactor {reactor}")))?;
        reactor.add_worker(seed);
    }
    Ok(controller)
}
