//! Mistakes that only show on the machine: files and directories that are missing or are something else. Looks,
//! opens nothing.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::check::check_size;
use super::diagnostic::{At, Sink, Spot};
use super::model::{Config, DeviceKind, FileDevice, Socket};
use crate::size::Size;

/// Looks at every path of `config`.
pub(super) fn check(config: &Config, sink: &Sink) {
    let mut files: HashMap<&Path, &Spot> = HashMap::new();
    let mut in_order: Vec<_> = config.devices.values().collect();
    in_order.sort_by_key(|device| device.spot.span.as_ref().map(|span| span.start));
    for device in in_order {
        let DeviceKind::File(file) = &device.kind else { continue };
        if let Some(first) = files.insert(&file.path.value, &file.path.spot) {
            sink.error(
                &file.path.spot,
                format!("{} is also {}", file.path.value.display(), first.key),
                "give each device a file of its own, or use one device in one subsystem that controllers share",
            );
        }
        image(file, sink);
    }
    for controller in config.controllers.values() {
        if let Socket::Path(path) = &controller.socket {
            socket(&path.value, &path.spot, sink);
        }
    }
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
        std::io::ErrorKind::NotFound => "it does not exist",
        std::io::ErrorKind::PermissionDenied => "permission denied",
        std::io::ErrorKind::NotADirectory => "a part of its path is no directory",
        _ => "it cannot be looked at",
    }
}

fn image(file: &FileDevice, sink: &Sink) {
    let FileDevice { path, size, block_size, direct: _, read_only } = file;
    let At { value: path, spot } = path;
    let Ok(found) = fs::metadata(path) else {
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
        }
        return;
    };
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
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => sink.error(
            spot,
            format!("{} exists and is not a socket", path.display()),
            "choose another path, or move that file away",
        ),
        Err(_) => {
            parent(path, spot, sink);
        }
    }
}
