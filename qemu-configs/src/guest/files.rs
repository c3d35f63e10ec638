//! Files of the host for a guest, as a small read-only file system: no copy in the guest's memory, nothing to send.

use crate::Assets;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes `image` of `files`, which lie side by side in it, by their names.
pub fn pack(assets: &Assets, files: &[PathBuf], image: &Path) -> Result<()> {
    let beside = image.parent().context("the image lies in a directory")?;
    let tree = tempfile::tempdir_in(beside)?;
    for file in files {
        let to =
            tree.path().join(file.file_name().with_context(|| format!("{} is no file", file.display()))?);
        if to.exists() {
            bail!("two files for the guest have the name of {}", file.display());
        }
        fs::copy(file, to).with_context(|| format!("{} for the guest", file.display()))?;
    }
    let mut mkfs = Command::new(&assets.mkfs_erofs);
    crate::setup::run(mkfs.args(["--quiet", "-T0", "--all-root"]).arg(image).arg(tree.path()))
}
