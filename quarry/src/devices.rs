//! Opens the devices of a configuration, those below before those above.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use block::Device;
use block::fault::{FaultDevice, Rule};
use block_file::{FileDevice, FileOptions};
use block_memory::{MemoryDevice, NullDevice};
use block_opal::OpalDevice;
use block_opal::device_key::KeyProvider;

use crate::ceph;
use crate::config::Config;
use crate::config::diagnostic::Spot;
use crate::config::model::{
    self as config, DeviceKind, FaultDevice as FaultConfig, FileDevice as FileConfig,
    OpalDevice as OpalConfig,
};
use crate::server::StartError;

/// Open devices by name.
pub type Devices = BTreeMap<String, Arc<dyn Device>>;

/// Self-encrypting drives among them, for who looks at them; the device belongs to [`Devices`].
pub type Drives = BTreeMap<String, Weak<OpalDevice>>;

/// Opens every device of a checked configuration.
pub fn open(config: &Config) -> Result<(Devices, Drives), StartError> {
    let (mut open, mut drives) = (ceph::open(config)?, Drives::new());
    for name in config.devices.keys() {
        ensure(name, config, &mut open, &mut drives)?;
    }
    Ok((open, drives))
}

fn ensure(
    name: &str,
    config: &Config,
    open: &mut Devices,
    drives: &mut Drives,
) -> Result<Arc<dyn Device>, StartError> {
    if let Some(device) = open.get(name) {
        return Ok(device.clone());
    }
    let missing = || StartError::new(&Spot::named(format!("devices.{name}")), "there is no such device");
    let device = config.devices.get(name).ok_or_else(missing)?;
    // Ends: a checked graph has no circles.
    let failed = |error: block::Error| StartError::new(&device.spot, error);
    let opened: Arc<dyn Device> = match &device.kind {
        DeviceKind::Memory(plain, pages) => Arc::new(
            MemoryDevice::with_pages(plain.size.value, plain.block_size.value, *pages).map_err(failed)?,
        ),
        DeviceKind::Null(plain) => {
            Arc::new(NullDevice::with_block_size(plain.size.value, plain.block_size.value).map_err(failed)?)
        }
        DeviceKind::File(file) => open_file(file)?,
        // Open already, unless their cluster is missing.
        DeviceKind::Rbd(_) | DeviceKind::Rados(_) => {
            return Err(StartError::new(&device.spot, "there is no cluster for it"));
        }
        DeviceKind::Opal(opal) => {
            let inner = ensure(&opal.on.value, config, open, drives)?;
            let drive = open_drive(opal, &device.spot, inner)?;
            drives.insert(name.to_owned(), Arc::downgrade(&drive));
            drive
        }
        DeviceKind::Fault(fault) => {
            let inner = ensure(&fault.on.value, config, open, drives)?;
            over_faults(fault, inner)
        }
    };
    open.insert(name.to_owned(), opened.clone());
    Ok(opened)
}

fn open_file(file: &FileConfig) -> Result<Arc<dyn Device>, StartError> {
    let mut options = FileOptions::new(&file.path.value)
        .read_only(file.read_only)
        .block_size(file.block_size.value)
        .direct(match file.direct {
            config::Direct::Auto => block_file::Direct::Auto,
            config::Direct::On => block_file::Direct::Require,
            config::Direct::Off => block_file::Direct::Off,
        });
    if let Some(size) = &file.size {
        options = options.create(size.value);
    }
    let device = FileDevice::open(&options).map_err(|error| StartError::new(&file.path.spot, error))?;
    Ok(Arc::new(device))
}

fn open_drive(opal: &OpalConfig, spot: &Spot, inner: Arc<dyn Device>) -> Result<Arc<OpalDevice>, StartError> {
    let key = opal.key.value.fetch().map_err(|error| StartError::new(&opal.key.spot, error))?;
    let drive = OpalDevice::open(inner, key, opal.options.clone());
    drive.map(Arc::new).map_err(|error| StartError::new(spot, error))
}

fn over_faults(config: &FaultConfig, inner: Arc<dyn Device>) -> Arc<dyn Device> {
    let device = FaultDevice::new(inner);
    for written in &config.rules {
        let mut rule =
            Rule::new(written.action.clone()).on(written.operations).skip(written.after).every(written.every);
        if let Some((first, end)) = written.blocks {
            rule = rule.blocks(first..end);
        }
        if let Some(count) = written.count {
            rule = rule.count(count);
        }
        device.handle().add(rule);
    }
    Arc::new(device)
}
