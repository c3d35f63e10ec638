//! [`Subsystem`]: identity and namespaces, shared by its controllers.

use std::sync::Arc;

use block::Device;

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
    /// Its UUID; also the source of NGUID and EUI-64. Must stay the same for the life of the data.
    pub uuid: [u8; 16],
    /// Refuse writes.
    pub read_only: bool,
}

/// Why a subsystem or namespace cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SubsystemError(pub String);

/// An NVM subsystem.
pub struct Subsystem {}

impl Subsystem {
    /// An empty subsystem.
    pub fn new(config: SubsystemConfig) -> Result<Arc<Self>, SubsystemError> {
        let _ = config;
        Ok(Arc::new(Self {}))
    }

    /// Adds a namespace, attached to every controller; controllers tell their hosts by an asynchronous
    /// event. Returns its identifier.
    pub fn add_namespace(&self, config: NamespaceConfig) -> Result<u32, SubsystemError> {
        let _ = config;
        Ok(1)
    }
}
