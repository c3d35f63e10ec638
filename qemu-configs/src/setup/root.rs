//! Makes a guest: its kernel, its root image with the tools that tests call, its initramfs.
//!
//! Debian's packages are unpacked, not installed: no maintainer script runs, so the few files that scripts would make are
//! written here. What goes in and what is left out is said by an [`Image`].

use super::apt::{Apt, RELEASE};
use super::cache::remove;
use super::cpio::Archive;
use super::host::Prefix;
use super::image::Image;
use super::{kernel, run};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Left out of every image: a third of its size.
const DROP: &[&str] = &[
    "boot",
    "usr/games",
    "usr/include",
    "usr/lib/initramfs-tools",
    "usr/lib/systemd/system",
    "usr/lib/x86_64-linux-gnu/dri",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/icons",
    "usr/share/info",
    "usr/share/initramfs-tools",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
    "usr/share/zoneinfo",
    "var/cache",
];

/// Hardware that these guests never have.
const DROP_MODULES: &[&str] = &[
    "sound",
    "drivers/bluetooth",
    "drivers/gpu",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/infiniband/hw",
    "drivers/input",
    "drivers/isdn",
    "drivers/media",
    "drivers/mtd",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/staging",
    "drivers/usb",
    "drivers/video",
];

const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"),
    ("etc/group", "root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost guest\n::1 localhost\n"),
    ("etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:5f1d7c2a-4b39-4c8e-9d06-8a2f3be01c77\n"),
    ("etc/nvme/hostid", "5f1d7c2a-4b39-4c8e-9d06-8a2f3be01c77\n"),
];

pub fn recipe(image: &Image) -> String {
    [include_str!("root.rs"), include_str!("cpio.rs"), include_str!("kernel.rs"), &format!("{image:?}")]
        .concat()
}

pub fn build(image: &Image, apt: &Apt, host: &Prefix, agent: &Path, to: &Path) -> Result<()> {
    let tree = to.join("tree");
    apt.unpack(RELEASE, image.packages, &tree)?;
    let version = kernel_version(&tree)?;
    let compressed = to.join("vmlinuz");
    fs::rename(tree.join(format!("boot/vmlinuz-{version}")), &compressed)?;
    kernel::extract(host, &compressed, &to.join("vmlinux"))?;
    complete(image, &tree)?;
    modules(image, host, &tree, &version)?;
    if image.python {
        compile_python(&tree)?;
    }
    initramfs(image, host, &tree, &version, agent, &to.join("initramfs"))?;
    run(host
        .command("mkfs.erofs")
        .args(["--quiet", "-zlz4", "-T0", "--all-root", "-U", "clear"])
        .arg(to.join("root.erofs"))
        .arg(&tree))?;
    remove(&tree)
}

/// The one kernel in the tree.
fn kernel_version(tree: &Path) -> Result<String> {
    let directory = tree.join("usr/lib/modules");
    match fs::read_dir(&directory)?.collect::<std::io::Result<Vec<_>>>()?.as_slice() {
        [one] => Ok(one.file_name().display().to_string()),
        others => bail!("{} kernels in {}", others.len(), directory.display()),
    }
}

/// Drops what is not needed and adds what no package brings.
fn complete(image: &Image, tree: &Path) -> Result<()> {
    let python: &[&str] = if image.python { &[] } else { &["usr/lib/python3", "usr/lib/python3.13"] };
    for path in DROP.iter().chain(python).chain(image.drop) {
        remove(&tree.join(path))?;
    }
    for directory in ["boot", "dev", "etc/nvme", "mnt", "proc", "ro", "root", "run", "sys", "tmp", "var/tmp"]
    {
        fs::create_dir_all(tree.join(directory))?;
    }
    for (path, text) in FILES {
        fs::write(tree.join(path), text)?;
    }
    for (link, target) in [("etc/mtab", "/proc/mounts"), ("usr/bin/awk", "gawk"), ("usr/bin/sh", "dash")] {
        let link = tree.join(link);
        let _ = fs::remove_file(&link);
        symlink(target, link)?;
    }
    Ok(())
}

/// Unpacks the modules (an emulated CPU is slow at xz) and writes their index.
fn modules(image: &Image, host: &Prefix, tree: &Path, version: &str) -> Result<()> {
    let directory = tree.join("usr/lib/modules").join(version);
    for path in DROP_MODULES.iter().chain(image.drop_modules) {
        remove(&directory.join("kernel").join(path))?;
    }
    for link in ["build", "source"] {
        let _ = fs::remove_file(directory.join(link));
    }
    let mut packed = Vec::new();
    find(&directory, "xz", &mut packed)?;
    for some in packed.chunks(500) {
        run(host.command("xz").args(["-d", "-T0"]).args(some))?;
    }
    run(host.command("depmod").arg("-b").arg(tree).arg(version))
}

/// Compiles Python's modules, as maintainer scripts would: in a guest that takes seconds each time a program starts. The
/// image's own Python does it; its results hold whatever times the files have.
fn compile_python(tree: &Path) -> Result<()> {
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let mut python = Command::new(tree.join("usr/lib64/ld-linux-x86-64.so.2"));
    python.arg("--library-path").arg(libraries).arg(tree.join("usr/bin/python3.13"));
    python.env("PYTHONHOME", tree.join("usr")).args(["-S", "-m", "compileall", "-q"]);
    python.args(["--invalidation-mode", "unchecked-hash", "-s"]).arg(tree);
    run(python.args(["usr/lib/python3", "usr/lib/python3.13"].map(|path| tree.join(path))))
}

fn find(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        if entry?.is_dir() {
            find(&path, extension, found)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// The path in front of a module's options, which this machine's kernel command line may have. It may have spaces itself.
fn module_path(text: &str) -> Option<&str> {
    let ends = text.match_indices(".ko").filter_map(|(at, _)| {
        let end = text[at..].find(' ').map_or(text.len(), |space| at + space);
        matches!(&text[at..end], ".ko" | ".ko.xz" | ".ko.zst" | ".ko.gz").then_some(end)
    });
    ends.map(|end| &text[..end]).next()
}

/// The agent as /init, and the early modules in the order in which they load.
fn initramfs(
    image: &Image,
    host: &Prefix,
    tree: &Path,
    version: &str,
    agent: &Path,
    to: &Path,
) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    for name in ["dev", "proc", "sys", "ro", "rw", "new", "run", "modules"] {
        archive.directory(name)?;
    }
    archive.file("init", &fs::read(agent)?)?;
    let mut order: Vec<String> = Vec::new();
    // This machine's modprobe.d is not the guest's.
    let no_configuration = tempfile::tempdir()?;
    for module in image.early_modules {
        let output = host
            .command("modprobe")
            .arg("--config")
            .arg(no_configuration.path())
            .arg("--dirname")
            .arg(tree)
            .args(["--set-version", version, "--show-depends", module])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        if !output.status.success() {
            bail!("modprobe {module}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for line in text.lines().filter(|line| !line.starts_with("builtin ")) {
            let path = line.strip_prefix("insmod ").and_then(module_path);
            let path = path.with_context(|| format!("modprobe {module}: {line}"))?;
            let name =
                format!("modules/{}", Path::new(path).file_name().context("a module's name")?.display());
            if !order.contains(&name) {
                archive.file(&name, &fs::read(path)?)?;
                order.push(name);
            }
        }
    }
    archive
        .file("modules.list", order.iter().map(|name| format!("/{name}\n")).collect::<String>().as_bytes())?;
    Ok(archive.finish()?)
}

#[cfg(test)]
mod tests {
    use super::module_path;

    #[test]
    fn paths_of_modules_end_where_their_options_begin() {
        assert_eq!(module_path("/my projects/nvme-core.ko io_timeout=9 "), Some("/my projects/nvme-core.ko"));
        assert_eq!(module_path("/a.kolibri/x.ko.xz "), Some("/a.kolibri/x.ko.xz"));
        assert_eq!(module_path("/bin/false"), None);
    }
}
