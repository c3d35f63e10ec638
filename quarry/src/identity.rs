//! Who disks say they are. What the operator does not set is derived from what he did set, so that a guest finds
//! the same identities after every restart, and two disks never share one.
//!
//! - A subsystem's NQN comes from its name and the sockets of its controllers; its serial number from the NQN. A socket
//!   that is inherited has the name that it is bound to, as if it had been made here.
//! - A file's namespace UUID comes from the file's absolute path alone: the data is the disk, wherever it is
//!   plugged in.
//! - What a device itself says its data is known by, as images on Ceph do, is all that their UUID comes from.
//! - Memory and null have no contents to recognise: their UUID comes from the NQN and the device's name.
//! - A layer passes on the identity of what it stands on.

use std::os::unix::ffi::OsStrExt;

use uuid::Uuid;

use crate::config::Config;
use crate::config::defaults;
use crate::config::model::{ControllerConfig, DeviceKind, SubsystemConfig, SubsystemRef};

/// The name space of every UUID that is derived here (RFC 9562, version 5). Never changes.
const QUARRY: Uuid = Uuid::from_u128(0x6c1e_39a8_55b2_4d0f_9d57_d2f1_7b8e_40c3);

fn derive(parts: &[&[u8]]) -> Uuid {
    let mut text = Vec::new();
    for part in parts {
        // Lengths keep ("ab", "c") apart from ("a", "bc").
        text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        text.extend_from_slice(part);
    }
    Uuid::new_v5(&QUARRY, &text)
}

/// The identity of a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// NVMe Qualified Name.
    pub nqn: String,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
}

/// The identity of the subsystem `name`, whose controllers have these sockets, by name.
pub fn subsystem(name: &str, subsystem: &SubsystemConfig, sockets: &[&[u8]]) -> Identity {
    let parts: Vec<&[u8]> =
        [b"subsystem", name.as_bytes()].into_iter().chain(sockets.iter().copied()).collect();
    let nqn = match &subsystem.nqn {
        Some(nqn) => nqn.value.clone(),
        None => format!("nqn.2014-08.org.nvmexpress:uuid:{}", derive(&parts)),
    };
    let serial = match &subsystem.serial {
        Some(serial) => serial.value.clone(),
        None => {
            let hash = derive(&[b"serial", nqn.as_bytes()]).as_u128();
            format!("QRY{:016X}", (hash >> 64) as u64)
        }
    };
    let model =
        subsystem.model.as_ref().map_or_else(|| defaults::MODEL.to_owned(), |model| model.value.clone());
    Identity { nqn, serial, model }
}

/// The names of the sockets of the controllers that share the subsystem `name`, in the order of the controllers' names.
/// `socket_of` tells a controller's.
pub fn sockets_of<'s>(name: &str, config: &Config, socket_of: impl Fn(&str) -> &'s [u8]) -> Vec<&'s [u8]> {
    let shares = |controller: &ControllerConfig| matches!(&controller.subsystem, SubsystemRef::Shared(shared) if shared.value == name);
    let controllers = config.controllers.iter().filter(|(_, controller)| shares(controller));
    controllers.map(|(name, _)| socket_of(name)).collect()
}

/// The UUID of a namespace over a device that tells what its data is known by ([`block::Device::identity`]).
pub fn data(identity: &str) -> Uuid {
    derive(&[b"identity", identity.as_bytes()])
}

/// The UUID of a namespace over `device`, which does not tell what its data is known by, in the subsystem `nqn`.
pub fn namespace(nqn: &str, device: &str, config: &Config) -> Uuid {
    let mut name = device;
    // Ends: a checked graph has no circles.
    while let Some(found) = config.devices.get(name) {
        if let DeviceKind::File(file) = &found.kind {
            return derive(&[b"file", file.path.value.as_os_str().as_bytes()]);
        }
        match found.kind.inner().first() {
            Some(inner) => name = &inner.value,
            None => break,
        }
    }
    derive(&[b"volatile", nqn.as_bytes(), device.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, load};

    const TEXT: &str = r#"
        [devices.a]
        type = "file"
        path = "/dev/null.img"
        size = "1M"
        [devices.b]
        type = "fault"
        on = "a"
        [devices.m]
        type = "memory"
        size = "1M"
        [controllers.vm]
        socket = "/tmp/quarry-identity.sock"
        namespaces = [{ device = "b" }, { device = "m" }]
    "#;

    #[test]
    fn identities_never_change() {
        // The guest's fstab depends on these: a change here breaks everyone.
        let config = load("/quarry.toml", TEXT, &Machine { cpus: vec![0] }).expect("good").config;
        let SubsystemRef::Own(own) = &config.controllers["vm"].subsystem else { panic!() };
        let identity = subsystem("vm", own, &[b"/tmp/quarry-identity.sock"]);
        assert_eq!(identity.nqn, "nqn.2014-08.org.nvmexpress:uuid:1face634-e378-5a85-9090-206f43b51144");
        assert_eq!(identity.serial, "QRY3476B2CE33B3533A");
        assert_eq!(identity.model, "Quarry NVMe Disk");
        assert_eq!(
            namespace(&identity.nqn, "b", &config).to_string(),
            "7d7c4e67-60b1-52b9-8eb6-b58eaecaaf54"
        );
        assert_eq!(namespace(&identity.nqn, "b", &config), namespace("another", "a", &config));
        assert_eq!(
            namespace(&identity.nqn, "m", &config).to_string(),
            "70026875-5d5b-50f7-8fda-ec1c1c5a03db"
        );
        assert_ne!(namespace(&identity.nqn, "m", &config), namespace("another", "m", &config));
    }

    #[test]
    fn identities_of_data_never_change() {
        assert_eq!(data("rbd/CLUSTER/IMAGE").to_string(), "f58791b4-c92c-575d-aa02-85f335e8faaf");
        assert_ne!(data("rbd/a"), data("rbd/b"));
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(derive(&[b"ab", b"c"]), derive(&[b"a", b"bc"]));
    }
}
