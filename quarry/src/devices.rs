//! Opens the devices of a configuration, those below before those above.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::Device;
use block_memory::{MemoryDevice, NullDevice};

use crate::config::Config;
use crate::config::diagnostic::Spot;
use crate::config::model::{DeviceKind, FaultDevice, FileDevice};
use crate::server::StartError;

/// Open devices by name.
pub type Devices = BTreeMap<String, Arc<dyn Device>>;

/// Opens every device of a checked configuration.
pub fn open(config: &Config) -> Result<Devices, StartError> {
    let mut open = Devices::new();
    for name in config.devices.keys() {
        ensure(name, config, &mut open)?;
    }
    Ok(open)
}

fn ensure(name: &str, config: &Config, open: &mut Devices) -> Result<Arc<dyn Device>, StartError> {
    if let Some(device) = open.get(name) {
        return Ok(device.clone());
    }
    let missing = || StartError::new(&Spot::named(format!("devices.{name}")), "there is no such device");
    let device = config.devices.get(name).ok_or_else(missing)?;
    // Ends: a checked graph has no circles.
    let failed = |error: block::Error| StartError::new(&device.spot, error);
    let opened: Arc<dyn Device> = match &device.kind {
        DeviceKind::Memory(plain) => {
            Arc::new(MemoryDevice::with_block_size(plain.size.value, plain.block_size.value).map_err(failed)?)
        }
        DeviceKind::Null(plain) => {
            Arc::new(NullDevice::with_block_size(plain.size.value, plain.block_size.value).map_err(failed)?)
        }
        DeviceKind::File(file) => open_file(file)?,
        DeviceKind::Fault(fault) => {
            let inner = ensure(&fault.on.value, config, open)?;
            over_faults(fault, inner)
        }
    };
    open.insert(name.to_owned(), opened.clone());
    Ok(opened)
}

fn open_file(file: &FileDevice) -> Result<Arc<dyn Device>, StartError> {
    Err(StartError::new(&file.path.spot, "file devices are not built yet"))
}

fn over_faults(fault: &FaultDevice, inner: Arc<dyn Device>) -> Arc<dyn Device> {
    let _ = fault;
    inner
}
