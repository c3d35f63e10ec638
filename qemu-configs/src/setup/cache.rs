//! A cache of directories. Each is named after what it holds and a hash of how that is made, is built beside its place
//! and renamed into it when whole, and takes the place of its own older versions.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The directory `target/guest` of this workspace.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    pub fn open() -> Result<Self> {
        let workspace =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this crate lies in a workspace")?;
        let root = workspace.join("target/guest");
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Held during a setup. The kernel lets go of it when the process ends, however it ends.
    pub fn lock(&self) -> Result<File> {
        let file = File::create(self.root.join("lock"))?;
        if file.try_lock().is_err() {
            eprintln!("setup: another setup is at work: waiting for it");
            file.lock()?;
        }
        Ok(file)
    }

    /// Where the result of `recipe` belongs.
    pub fn place(&self, name: &str, recipe: &str) -> PathBuf {
        self.root.join(format!("{name}-{:016x}", hash(recipe.as_bytes())))
    }

    /// Builds `place` unless it is there.
    pub fn make(&self, what: &str, place: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if place.is_dir() {
            eprintln!("setup: {what}: already there");
            return Ok(());
        }
        let start = Instant::now();
        eprintln!("setup: {what}: making it …");
        let temporary = place.with_extension("tmp");
        remove(&temporary)?;
        fs::create_dir(&temporary)?;
        build(&temporary).with_context(|| format!("setup of {what}"))?;
        fs::rename(&temporary, place)?;
        self.remove_older(place)?;
        eprintln!("setup: {what}: done in {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    /// A stable name for a file in the cache, for people.
    pub fn link(&self, name: &str, target: &Path) -> Result<()> {
        let link = self.root.join(name);
        if fs::read_link(&link).ok().as_deref() != Some(target) {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(target, &link)?;
        }
        Ok(())
    }

    fn remove_older(&self, place: &Path) -> Result<()> {
        let Some((kind, _)) = place.file_name().and_then(|n| n.to_str()).and_then(|n| n.rsplit_once('-'))
        else {
            return Ok(());
        };
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let other = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.rsplit_once('-'));
            if path != place && other.is_some_and(|(name, _)| name == kind) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes a file, or a directory with all that is in it, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(path.display().to_string()),
        _ => Ok(()),
    }
}

/// FNV-1a: the same on every build of this program, which the standard library's hasher does not promise.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_build_is_repaired_and_a_new_recipe_replaces_the_old() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let cache = Cache { root: directory.path().to_owned() };
        let old = cache.place("thing", "one");
        assert!(cache.make("thing", &old, |_| anyhow::bail!("interrupted")).is_err());
        assert!(!old.exists());
        cache.make("thing", &old, |to| Ok(fs::write(to.join("file"), "1")?))?;
        assert!(old.join("file").exists());
        cache.make("thing", &old, |_| unreachable!("it is there"))?;
        let new = cache.place("thing", "two");
        cache.make("thing", &new, |_| Ok(()))?;
        assert!(new.is_dir() && !old.exists());
        Ok(())
    }
}
