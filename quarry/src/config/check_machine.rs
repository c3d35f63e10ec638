//! Mistakes that only show on the machine: files and directories that are missing or are something else. Looks,
//! opens nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::check::{OWN_PATH, check_size};
use super::check_ceph::data_of;
use super::diagnostic::{At, Sink, Spot};
use super::model::{Config, Control, DeviceKind, FileDevice, Socket, SubsystemConfig, SubsystemRef};
use crate::size::Size;

/// Looks at every path of `config`.
pub(super) fn check(config: &Config, sink: &Sink) {
    let mut files: HashMap<PathBuf, (&FileDevice, &Spot)> = HashMap::new();
    let mut in_order: Vec<_> = config.devices.values().collect();
    in_order.sort_by_key(|device| device.spot.span.as_ref().map(|span| span.start));
    for device in in_order {
        let DeviceKind::File(file) = &device.kind else { continue };
        match files.entry(place(&file.path.value)) {
            Entry::Vacant(vacant) => {
                vacant.insert((file, &file.path.spot));
            }
            // Readers share an image.
            Entry::Occupied(first) if file.read_only && first.get().0.read_only => {}
            Entry::Occupied(first) => sink.error(
                &file.path.spot,
                format!("{} is also {}", file.path.value.display(), first.get().1.key),
                "give each device a file of its own, use one device in one subsystem that controllers share, \
                 or make both `read_only`",
            ),
        }
        image(file, sink);
    }
    let own = config.controllers.values().filter_map(|controller| match &controller.subsystem {
        SubsystemRef::Own(subsystem) => Some(&**subsystem),
        SubsystemRef::Shared(_) => None,
    });
    for subsystem in config.subsystems.values().chain(own) {
        uuids(subsystem, config, sink);
    }
    let mut sockets: HashMap<PathBuf, (&Path, &Spot)> = HashMap::new();
    for controller in config.controllers.values() {
        let Socket::Path(At { value: path, spot }) = &controller.socket else { continue };
        // That the very same path is there twice is told by `check`.
        if let Some((other, first)) = sockets.insert(place(path), (path, spot))
            && other != path
        {
            sink.error(
                spot,
                format!("{} is the same socket as {}", path.display(), first.key),
                "give each controller a socket of its own: a socket serves one client at a time",
            );
        }
        socket(path, spot, sink);
    }
    if let Some(Control { socket: At { value: path, spot }, socket_mode: _ }) = &config.control {
        if let Some((other, first)) = sockets.get(&place(path))
            && other != path
        {
            let message = format!("{} is the same socket as {}", path.display(), first.key);
            sink.error(spot, message, OWN_PATH);
        }
        socket(path, spot, sink);
    }
}

/// Namespaces over one image have one UUID, unless they are given others; in one subsystem a guest takes only the first.
fn uuids(subsystem: &SubsystemConfig, config: &Config, sink: &Sink) {
    let mut images: HashMap<String, &Spot> = HashMap::new();
    for namespace in subsystem.namespaces.iter().filter(|namespace| namespace.uuid.is_none()) {
        let mut name = Some(&namespace.device.value);
        // Ends after as many steps as there are devices: circles are told by `check`.
        for _ in 0..config.devices.len() {
            let Some(device) = name.and_then(|name| config.devices.get(name)) else { break };
            let (data, shown) = match &device.kind {
                DeviceKind::File(file) => {
                    (Some(format!("{:?}", place(&file.path.value))), file.path.value.display().to_string())
                }
                kind => {
                    let shown = kind.on_cluster().map(|(what, _)| what).unwrap_or_default();
                    (data_of(device, config), shown)
                }
            };
            if let Some(data) = data
                && let Some(first) = images.insert(data, &namespace.device.spot)
            {
                sink.error(
                    &namespace.device.spot,
                    format!("this disk has the UUID of {}: both are {shown}", first.key),
                    "give one of them another: uuid = \"...\", as `uuidgen` prints it",
                );
            }
            name = device.kind.inner().first().map(|inner| &inner.value);
        }
    }
}

/// One path for each file, whatever the ways to it: what is there, or where it will be made.
pub(super) fn place(path: &Path) -> PathBuf {
    let made_here = || {
        let parent = fs::canonicalize(path.parent()?).ok()?;
        Some(parent.join(path.file_name()?))
    };
    fs::canonicalize(path).ok().or_else(made_here).unwrap_or_else(|| path.to_owned())
}

/// Whether this user has this access to what is there. What cannot be found out is for the server to find out.
fn may(path: &Path, access: Access) -> bool {
    rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS) != Err(rustix::io::Errno::ACCESS)
}

/// The directory of something that is to be made.
fn writable_parent(path: &Path, spot: &Spot, sink: &Sink) -> bool {
    if !parent(path, spot, sink) {
        return false;
    }
    let Some(parent) = path.parent() else { return true };
    let may = may(parent, Access::WRITE_OK | Access::EXEC_OK);
    if !may {
        sink.error(
            spot,
            format!("this user cannot make anything in {}", parent.display()),
            "give this user write access to it, or choose another place",
        );
    }
    may
}

fn parent(path: &Path, spot: &Spot, sink: &Sink) -> bool {
    let Some(parent) = path.parent() else { return true };
    match fs::metadata(parent) {
        Ok(found) if found.is_dir() => true,
        Ok(_) => {
            sink.error(spot, format!("{} is not a directory", parent.display()), "correct the path");
            false
        }
        Err(error) => {
            sink.error(
                spot,
                format!("the directory {} cannot be used: {}", parent.display(), reason(&error)),
                format!("create it (mkdir -p {}), or correct the path", parent.display()),
            );
            false
        }
    }
}

fn reason(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "it does not exist",
        ErrorKind::PermissionDenied => "permission denied",
        ErrorKind::NotADirectory => "a part of its path is no directory",
        _ => "it cannot be looked at",
    }
}

fn image(file: &FileDevice, sink: &Sink) {
    let FileDevice { path, size, block_size, direct: _, read_only } = file;
    let At { value: path, spot } = path;
    let found = match fs::metadata(path) {
        Ok(found) => Some(found),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => {
            return sink.error(
                spot,
                format!("{} cannot be looked at: {}", path.display(), reason(&error)),
                "give this user access to it and to every directory on the way",
            );
        }
    };
    let Some(found) = found else {
        if !parent(path, spot, sink) {
            return;
        }
        if *read_only {
            sink.error(
                spot,
                format!("{} does not exist, and a read-only disk is not created", path.display()),
                "correct the path, or remove `read_only`",
            );
        } else if size.is_none() {
            sink.error(
                spot,
                format!("{} does not exist", path.display()),
                "correct the path, or add a size to create it: size = \"10G\"",
            );
        } else {
            writable_parent(path, spot, sink);
        }
        return;
    };
    let (access, verb) = if *read_only {
        (Access::READ_OK, "read")
    } else {
        (Access::READ_OK | Access::WRITE_OK, "read and write")
    };
    if (found.is_file() || found.file_type().is_block_device()) && !may(path, access) {
        sink.error(
            spot,
            format!("this user cannot {verb} {}", path.display()),
            if *read_only || !may(path, Access::READ_OK) {
                "give this user access to it"
            } else {
                "give this user access to it, or write: read_only = true"
            },
        );
    }
    if found.is_dir() {
        sink.error(spot, format!("{} is a directory", path.display()), "name a file in it");
    } else if found.is_file() {
        let length = found.len();
        match size {
            Some(size) if length != size.value => sink.error(
                &size.spot,
                format!("{} already exists with {}", path.display(), Size(length)),
                if size.value > length {
                    format!(
                        "remove `size` to use it as it is, make it longer (truncate -s {} {}), or choose another path",
                        Size(size.value),
                        path.display()
                    )
                } else {
                    // No remedy that would cut data off.
                    format!("write the size that it has ({length}), remove `size`, or choose another path")
                },
            ),
            Some(_) => {}
            None => check_size(&At::new(length, spot.clone()), block_size.value, sink),
        }
    } else if !found.file_type().is_block_device() {
        sink.error(
            spot,
            format!("{} is neither a file nor a block device", path.display()),
            "name a regular file or a block device such as /dev/vg0/disk",
        );
    } else if let Some(size) = size {
        sink.warning(
            &size.spot,
            format!("{} is a block device: its size is what it is", path.display()),
            "remove `size`",
        );
    }
}

fn socket(path: &Path, spot: &Spot, sink: &Sink) {
    match fs::symlink_metadata(path) {
        // Left by a server that was killed, say: replaced.
        Ok(found) if found.file_type().is_socket() => {
            writable_parent(path, spot, sink);
        }
        Ok(_) => sink.error(
            spot,
            format!("{} exists and is not a socket", path.display()),
            "choose another path, or move that file away",
        ),
        Err(_) => {
            writable_parent(path, spot, sink);
        }
    }
}
