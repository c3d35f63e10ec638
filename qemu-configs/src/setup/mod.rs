//! Makes everything that the test guest needs, once, in a cache.

mod agent;
mod apt;
mod boot_disk;
mod cache;
mod cpio;
mod host;
mod image;
mod kernel;
mod root;

use anyhow::{Result, bail};
use cache::Cache;
use image::Image;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernel command line of every guest; what differs (the root, extras of a test) is appended. A panic resets the
/// machine, which ends a QEMU that was started with `-no-reboot`; an NMI from the host makes a guest that hangs say where.
pub(crate) const CMDLINE: &str = "console=ttyS0 panic=-1 mitigations=off quiet tsc=reliable no_timer_check \
    random.trust_cpu=on audit=0 selinux=0 apparmor=0 nokaslr unknown_nmi_panic=1";

/// The partition of the bootable disk that holds the root image.
pub(crate) const BOOT_DISK_ROOT: u32 = 3;

/// The files that setup made.
#[derive(Clone, Debug)]
pub struct Assets {
    /// A QEMU with `vfio-user-pci` (a script around the real program; it execs, so its process id is QEMU's).
    pub qemu: PathBuf,
    /// Makes file systems (erofs), for files that a guest is to have.
    pub mkfs_erofs: PathBuf,
    /// OVMF's code, read-only.
    pub ovmf_code: PathBuf,
    /// OVMF's variables: each guest takes a copy.
    pub ovmf_vars: PathBuf,
    /// The guest's kernel, uncompressed (PVH): twice as fast to boot as the compressed one when QEMU emulates the CPU.
    pub kernel: PathBuf,
    /// The guest's initramfs: the agent and the modules that mount the root.
    pub initramfs: PathBuf,
    /// The guest's root image (erofs), shared read-only by all guests.
    pub root: PathBuf,
    /// A raw disk image that boots under SeaBIOS and OVMF and mounts its root from an NVMe disk. Copy it before use.
    pub boot_disk: PathBuf,
    /// A font for pictures (DejaVu Sans).
    pub font: PathBuf,
    /// Where all of that lies.
    pub cache: PathBuf,
}

/// Everything that is cached, with the directories that the present sources name for it.
struct Plan {
    host: PathBuf,
    agent: PathBuf,
    root: PathBuf,
    boot: PathBuf,
    rdma: PathBuf,
}

impl Plan {
    fn new(cache: &Cache) -> Result<Self> {
        let host = cache.place("host", &host::recipe());
        let agent = cache.place("agent", &agent::recipe()?);
        let image =
            |image: &Image| cache.place(image.name, &(root::recipe(image) + &name(&agent) + &name(&host)));
        let (root, rdma) = (image(&image::DISKS), image(&image::RDMA));
        let boot = cache.place("boot", &(boot_disk::recipe() + &name(&root)));
        Ok(Self { host, agent, root, boot, rdma })
    }

    /// The assets of a guest whose kernel and root are in `root`.
    fn assets(&self, cache: &Cache, root: &Path) -> Assets {
        let host = host::Prefix::at(&self.host);
        Assets {
            qemu: host.program("qemu-system-x86_64"),
            mkfs_erofs: host.program("mkfs.erofs"),
            ovmf_code: host.file("usr/share/OVMF/OVMF_CODE_4M.fd"),
            ovmf_vars: host.file("usr/share/OVMF/OVMF_VARS_4M.fd"),
            kernel: root.join("vmlinux"),
            initramfs: root.join("initramfs"),
            root: root.join("root.erofs"),
            boot_disk: self.boot.join("disk.raw"),
            font: host.file("usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"),
            cache: cache.root().to_owned(),
        }
    }
}

/// A directory's name carries its recipe's hash: what is built from it takes the name into its own recipe.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

impl Assets {
    /// What an earlier setup made. Touches no network and builds nothing.
    pub fn locate() -> Result<Self> {
        let cache = Cache::open()?;
        let plan = Plan::new(&cache)?;
        present(&[&plan.host, &plan.root, &plan.boot], "cargo xtask setup")?;
        Ok(plan.assets(&cache, &plan.root))
    }

    /// The same for the guest with RDMA and Ceph, which [`Assets::setup_rdma`] makes.
    pub fn locate_rdma() -> Result<Self> {
        let cache = Cache::open()?;
        let plan = Plan::new(&cache)?;
        present(&[&plan.host, &plan.rdma], "cargo xtask setup")?;
        Ok(plan.assets(&cache, &plan.rdma))
    }

    /// Makes what is missing (about a minute, 200 MB of packages) and says on standard error what it does. Two setups at
    /// once wait for each other; one that was interrupted is repaired by the next.
    pub fn setup() -> Result<Self> {
        setup(|work, plan| {
            let host = host::Prefix::at(&plan.host);
            work.image("guest kernel and root image", &image::DISKS, &plan.root, plan)?;
            work.cache.make("bootable disk", &plan.boot, |to| boot_disk::build(&host, &plan.root, to))?;
            Ok(plan.assets(work.cache, &plan.root))
        })
    }

    /// The same for a guest with RDMA and Ceph: about a minute, 250 MB of packages.
    pub fn setup_rdma() -> Result<Self> {
        setup(|work, plan| {
            work.image("guest with RDMA and Ceph", &image::RDMA, &plan.rdma, plan)?;
            Ok(plan.assets(work.cache, &plan.rdma))
        })
    }
}

/// Says how to make what is not there.
fn present(directories: &[&Path], remedy: &str) -> Result<()> {
    for directory in directories {
        if !directory.is_dir() {
            bail!("{} is not there, or is out of date: run `{remedy}`", directory.display());
        }
    }
    Ok(())
}

/// What a setup works with.
struct Work<'a> {
    cache: &'a Cache,
    apt: apt::Apt,
}

impl Work<'_> {
    fn image(&self, what: &str, image: &Image, place: &Path, plan: &Plan) -> Result<()> {
        let host = host::Prefix::at(&plan.host);
        let agent = plan.agent.join(agent::PROGRAM);
        self.cache.make(what, place, |to| root::build(image, &self.apt, &host, &agent, to))
    }
}

/// Makes what every guest needs, then does the rest, alone with the cache.
fn setup(rest: impl FnOnce(&Work<'_>, &Plan) -> Result<Assets>) -> Result<Assets> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the test guest needs an x86-64 host");
    }
    let cache = Cache::open()?;
    let _lock = cache.lock()?;
    let plan = Plan::new(&cache)?;
    let work = Work { cache: &cache, apt: apt::Apt::new(&cache) };
    cache.make("QEMU, firmware and tools", &plan.host, |to| host::build(&work.apt, to))?;
    cache.make("guest agent", &plan.agent, |to| agent::build(&cache, to))?;
    let assets = rest(&work, &plan)?;
    work.apt.forget()?;
    cache.link("qemu-system-x86_64", &assets.qemu)?;
    Ok(assets)
}

/// The workspace's root: that of the running program where cargo started it, else that of its sources. (A build directory
/// that two clones share gives both of them the programs of one.)
pub fn workspace() -> PathBuf {
    let running = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let is_root = |path: &&Path| path.join("qemu-configs/guest-agent/Cargo.toml").exists();
    let root = running.iter().chain([&built]).find_map(|path| path.ancestors().find(is_root));
    root.unwrap_or(&built).to_owned()
}

/// Runs a command to its end; what it printed is told only when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|e| anyhow::anyhow!("start {program}: {e}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
