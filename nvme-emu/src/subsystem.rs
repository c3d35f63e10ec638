//! [`Subsystem`]: identity and namespaces, shared by its controllers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use block::{Abilities, Device, Info, Listener};
use nvme_spec::status::Status;

use crate::limits::{Limiter, Limits};
use crate::security::Gate;
use crate::shared::{Message, Shared};

/// The largest namespace identifier: NN of Identify Controller, and MNAN.
pub(crate) const MAX_NAMESPACES: u32 = 1024;

/// The status of a command that names a namespace that is not there (Base 3.2.1.4): an identifier that could
/// be one is inactive, any other is invalid.
pub(crate) fn inactive_namespace(nsid: u32) -> Status {
    if (1..=MAX_NAMESPACES).contains(&nsid) {
        Status::INVALID_FIELD_IN_COMMAND.with_dnr()
    } else {
        Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()
    }
}

/// Who the subsystem says it is.
#[derive(Clone, Debug)]
pub struct SubsystemConfig {
    /// NVMe Qualified Name, at most 223 bytes.
    pub nqn: String,
    /// Serial number: 1 to 20 printable ASCII characters.
    pub serial: String,
    /// Model number: 1 to 40 printable ASCII characters.
    pub model: String,
}

/// A namespace to be added.
pub struct NamespaceConfig {
    /// The namespace identifier, or the lowest free one.
    pub nsid: Option<u32>,
    /// Where its blocks are.
    pub device: Arc<dyn Device>,
    /// Its UUID, and its NGUID. Must stay the same for the life of the data.
    pub uuid: [u8; 16],
    /// Refuse writes.
    pub read_only: bool,
    /// For the sum over all controllers.
    pub limits: Limits,
}

/// Why a subsystem or namespace cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SubsystemError(pub String);

/// An NVM subsystem.
pub struct Subsystem {
    pub(crate) config: SubsystemConfig,
    /// The way to the security of its namespace, if that has one.
    pub(crate) gate: Gate,
    state: Mutex<State>,
    /// For the devices, which must not keep it.
    me: Weak<Self>,
}

#[derive(Default)]
struct State {
    namespaces: BTreeMap<u32, Arc<Namespace>>,
    controllers: Vec<Weak<Shared>>,
    next_controller: u16,
}

/// A namespace, attached to every controller of its subsystem.
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) uuid: [u8; 16],
    pub(crate) read_only: bool,
    pub(crate) limiter: Arc<Limiter>,
    /// What the controllers were told of the device.
    told: Mutex<Info>,
}

impl Namespace {
    pub(crate) fn new(nsid: u32, config: NamespaceConfig) -> Self {
        let NamespaceConfig { nsid: _, device, uuid, read_only, limits } = config;
        let told = Mutex::new(device.info());
        Self { nsid, device, uuid, read_only, limiter: Arc::new(Limiter::new(limits)), told }
    }

    /// Whether writes are refused.
    pub(crate) fn is_read_only(&self, info: &Info) -> bool {
        self.read_only || !info.abilities.contains(Abilities::WRITE)
    }

    /// Whether the device has changed since the last call.
    fn take_change(&self) -> bool {
        let mut told = self.told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Under the lock: of two callers the one who saw the older state must not be the last.
        let before = std::mem::replace(&mut *told, self.device.info());
        before != *told
    }
}

impl Subsystem {
    /// An empty subsystem.
    pub fn new(config: SubsystemConfig) -> Result<Arc<Self>, SubsystemError> {
        let text = |what: &str, value: &str, most: usize| {
            let printable = value.bytes().all(|byte| (0x20..0x7F).contains(&byte));
            if value.is_empty() || value.len() > most || !printable {
                return Err(SubsystemError(format!(
                    "{what} {value:?} must be 1 to {most} printable ASCII characters"
                )));
            }
            Ok(())
        };
        text("NQN", &config.nqn, 223)?;
        text("serial number", &config.serial, 20)?;
        text("model number", &config.model, 40)?;
        Ok(Arc::new_cyclic(|me| Self {
            config,
            gate: Gate::default(),
            state: Mutex::default(),
            me: me.clone(),
        }))
    }

    /// Its NVMe Qualified Name.
    pub fn nqn(&self) -> &str {
        &self.config.nqn
    }

    /// Adds a namespace, attached to every controller; controllers tell their hosts by an asynchronous
    /// event, and so they do when its device changes. Returns its identifier.
    ///
    /// A device with a security is the only namespace of its subsystem: security commands are for a whole subsystem
    /// and would not say which disk they mean.
    pub fn add_namespace(&self, config: NamespaceConfig) -> Result<u32, SubsystemError> {
        let info = config.device.info();
        if !info.block_size.is_power_of_two() || !(512..=65536).contains(&info.block_size) || info.blocks == 0
        {
            return Err(SubsystemError(format!(
                "a device of {} blocks of {} bytes cannot be a namespace: it needs 512 to 65536 bytes per block, \
                 a power of two, and at least one block",
                info.blocks, info.block_size
            )));
        }
        let security = config.device.security();
        let mut state = self.state();
        if !state.namespaces.is_empty() && (security.is_some() || self.gate.is_secure()) {
            return Err(SubsystemError(
                "a self-encrypting disk is a whole NVM subsystem: give it a controller of its own".into(),
            ));
        }
        let nsid =
            match config.nsid {
                Some(nsid) if !(1..=MAX_NAMESPACES).contains(&nsid) => {
                    return Err(SubsystemError(format!(
                        "namespace identifier {nsid} is not in 1..={MAX_NAMESPACES}"
                    )));
                }
                Some(nsid) if state.namespaces.contains_key(&nsid) => {
                    return Err(SubsystemError(format!("namespace identifier {nsid} is taken")));
                }
                Some(nsid) => nsid,
                None => (1..=MAX_NAMESPACES).find(|nsid| !state.namespaces.contains_key(nsid)).ok_or_else(
                    || SubsystemError(format!("all {MAX_NAMESPACES} namespace identifiers are taken")),
                )?,
            };
        let namespace = Arc::new(Namespace::new(nsid, config));
        state.namespaces.insert(nsid, namespace.clone());
        if let Some(security) = security {
            self.gate.open(security);
        }
        announce(&state, nsid);
        drop(state);
        self.follow(&namespace);
        Ok(nsid)
    }

    /// Has the controllers told of changes of a namespace's device.
    fn follow(&self, namespace: &Arc<Namespace>) {
        let (subsystem, changed) = (self.me.clone(), Arc::downgrade(namespace));
        let listener: Listener = Arc::new(move || {
            if let (Some(subsystem), Some(namespace)) = (subsystem.upgrade(), changed.upgrade()) {
                subsystem.device_changed(&namespace);
            }
        });
        namespace.device.on_change(listener.clone());
        listener(); // it may have changed before it knew whom to tell
    }

    fn device_changed(&self, namespace: &Arc<Namespace>) {
        if !namespace.take_change() {
            return;
        }
        let state = self.state();
        // Another one may have its identifier by now.
        let present = state.namespaces.get(&namespace.nsid);
        if present.is_some_and(|present| Arc::ptr_eq(present, namespace)) {
            announce(&state, namespace.nsid);
        }
    }

    /// Removes a namespace. Commands that name it from now on get Invalid Namespace; those in flight end.
    pub fn remove_namespace(&self, nsid: u32) -> Result<(), SubsystemError> {
        let mut state = self.state();
        if state.namespaces.remove(&nsid).is_none() {
            return Err(SubsystemError(format!("there is no namespace {nsid}")));
        }
        // If there was a security, it was of this one.
        self.gate.close();
        announce(&state, nsid);
        Ok(())
    }

    /// Changes the limits of a namespace, at once and for all controllers.
    pub fn set_limits(&self, nsid: u32, limits: Limits) -> Result<(), SubsystemError> {
        let state = self.state();
        let namespace = state.namespace(nsid)?;
        namespace.limiter.set(limits);
        for controller in state.controllers.iter().filter_map(Weak::upgrade) {
            controller.send_all(|| Message::LimitsChanged);
        }
        Ok(())
    }

    /// The limits of a namespace.
    pub fn limits(&self, nsid: u32) -> Result<Limits, SubsystemError> {
        Ok(self.state().namespace(nsid)?.limiter.limits())
    }

    /// The identifiers of its namespaces, in order.
    pub fn nsids(&self) -> Vec<u32> {
        self.state().namespaces.keys().copied().collect()
    }

    pub(crate) fn namespace(&self, nsid: u32) -> Option<Arc<Namespace>> {
        self.state().namespaces.get(&nsid).cloned()
    }

    pub(crate) fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.state().namespaces.values().cloned().collect()
    }

    /// A controller joins; returns its identifier.
    pub(crate) fn reserve_controller(&self) -> u16 {
        let mut state = self.state();
        state.next_controller += 1;
        state.next_controller
    }

    pub(crate) fn attach_controller(&self, shared: &Arc<Shared>) {
        let mut state = self.state();
        state.controllers.retain(|controller| controller.strong_count() > 0);
        state.controllers.push(Arc::downgrade(shared));
    }

    pub(crate) fn controllers(&self) -> Vec<Arc<Shared>> {
        self.state().controllers.iter().filter_map(Weak::upgrade).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn namespace(&self, nsid: u32) -> Result<&Arc<Namespace>, SubsystemError> {
        let missing = || SubsystemError(format!("there is no namespace {nsid}"));
        self.namespaces.get(&nsid).ok_or_else(missing)
    }
}

fn announce(state: &State, nsid: u32) {
    for controller in state.controllers.iter().filter_map(Weak::upgrade) {
        controller.send_all(|| Message::NamespaceChanged(nsid));
    }
}
