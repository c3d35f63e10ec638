//! What the guests are made of: one description for each image.

/// An image, in words of its parts.
#[derive(Debug)]
pub struct Image {
    /// Its name in the cache.
    pub name: &'static str,
    /// Debian's packages, which come with all that they depend on.
    pub packages: &'static [&'static str],
    /// It has Python.
    pub python: bool,
    /// Files and directories that it leaves out, besides what all leave out.
    pub drop: &'static [&'static str],
    /// The same of its kernel's modules.
    pub drop_modules: &'static [&'static str],
    /// Loaded by the agent before it mounts the root.
    pub early_modules: &'static [&'static str],
}

/// The guest of most tests: small, and with everything for disks.
pub const DISKS: Image = Image {
    name: "root",
    packages: &[
        // NVMe and most of what a disk test needs is built into the cloud kernel.
        "linux-image-cloud-amd64",
        "bash",
        "bsdextrautils",
        "coreutils",
        "cryptsetup-bin", // with OPAL, by way of the kernel's ioctls
        "dash",
        "diffutils",
        "e2fsprogs",
        "findutils",
        "fio",
        "gawk",
        "grep",
        "iproute2",
        "kmod",
        "mount",
        "nvme-cli",
        "pciutils",
        "procps",
        "sed",
        "sedutil", // TCG Opal, past the kernel
        "udev",
        "util-linux",
        "xfsprogs",
    ],
    python: false,
    drop: &[],
    drop_modules: &[],
    early_modules: &["virtio_pci", "virtio_console", "virtio_blk", "nvme", "erofs", "overlay"],
};

/// A guest with RDMA (rdma_rxe, which the cloud kernel lacks) and Ceph, servers and clients.
pub const RDMA: Image = Image {
    name: "rdma",
    packages: &[
        "linux-image-amd64",
        "bash",
        "ceph-common", // written in Python, the `ceph` program
        "ceph-mon",
        "ceph-osd",
        "coreutils",
        "dash",
        "diffutils",
        "findutils",
        "fio",
        "gawk",
        "grep",
        "ibverbs-providers",
        "ibverbs-utils",
        "iproute2",
        "iputils-ping",
        "kmod",
        "librados2",
        "librbd1",
        "mount",
        "procps",
        "rdma-core",
        "rdmacm-utils",
        "sed",
        "util-linux",
    ],
    python: true,
    drop: &[
        // Of Ceph, what is for repairs, other daemons and other clients.
        "usr/bin/ceph-bluestore-tool",
        "usr/bin/ceph-kvstore-tool",
        "usr/bin/ceph-monstore-tool",
        "usr/bin/ceph-objectstore-tool",
        "usr/bin/ceph-osdomap-tool",
        "usr/bin/ceph-syn",
        "usr/bin/cephfs-data-scan",
        "usr/bin/cephfs-journal-tool",
        "usr/bin/cephfs-table-tool",
        "usr/bin/radosgw-admin",
    ],
    drop_modules: &["arch/x86/kvm", "drivers/firmware", "drivers/md", "drivers/net/can", "drivers/power"],
    early_modules: &[
        "virtio_pci",
        "virtio_console",
        "virtio_blk",
        "crc32c_generic",
        "configfs",
        "erofs",
        "overlay",
    ],
};
