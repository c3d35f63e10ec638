//! Files pass the suite: with O_DIRECT and without, on a disk's file system and on tmpfs, and as a loop device.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use block::conformance::Suite;
use block::testing::cannot_run;
use block::{Channel, Device, Error, Info, Reactor, conformance_tests};
use block_file::{Direct, FileDevice, FileOptions};

const SIZE: u64 = 8 << 20;
/// The build directory: a disk's file system.
const ON_DISK: &str = env!("CARGO_TARGET_TMPDIR");
const TMPFS: &str = "/dev/shm";

/// A new image, whose name is gone as soon as it is open.
fn file(dir: &str, options: impl Fn(FileOptions) -> FileOptions) -> FileDevice {
    let dir = tempfile::tempdir_in(dir).unwrap();
    FileDevice::open(&options(FileOptions::new(dir.path().join("image")).create(SIZE))).unwrap()
}

conformance_tests!(
    direct_512,
    Suite::new(|| {
        let device = file(ON_DISK, |options| options);
        assert!(
            device.is_direct(),
            "the build directory's file system has no O_DIRECT: put it on another one"
        );
        device
    })
);
conformance_tests!(
    direct_4096,
    Suite::new(|| file(ON_DISK, |options| options.block_size(4096).direct(Direct::Require)))
);
conformance_tests!(buffered_512, Suite::new(|| file(ON_DISK, |options| options.direct(Direct::Off))));
conformance_tests!(
    buffered_4096,
    Suite::new(|| file(ON_DISK, |options| options.direct(Direct::Off).block_size(4096)))
);
conformance_tests!(tmpfs, Suite::new(|| file(TMPFS, |options| options)));
conformance_tests!(
    read_only,
    Suite::new(|| {
        let dir = tempfile::tempdir_in(ON_DISK).unwrap();
        let options = FileOptions::new(dir.path().join("image"));
        drop(FileDevice::open(&options.clone().create(SIZE)).unwrap());
        FileDevice::open(&options.read_only(true)).unwrap()
    })
);
conformance_tests!(loop_device, Suite::shared(loop_device));

/// A loop device for as long as it is used.
struct Loop {
    device: Option<FileDevice>,
    node: String,
    _dir: tempfile::TempDir,
}

/// A file behind a loop device; a file alone where this process may not make one.
fn loop_device() -> Arc<dyn Device> {
    let dir = tempfile::tempdir_in(ON_DISK).unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let Some(node) = attach(&image) else {
        cannot_run("conformance of block devices: root, losetup and a free /dev/loopN are needed");
        return Arc::new(FileDevice::open(&FileOptions::new(image)).unwrap());
    };
    let device = FileDevice::open(&FileOptions::new(&node)).unwrap();
    assert_eq!(device.info().size(), SIZE);
    Arc::new(Loop { device: Some(device), node, _dir: dir })
}

fn attach(image: &Path) -> Option<String> {
    let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

impl Device for Loop {
    fn info(&self) -> Info {
        self.device.as_ref().unwrap().info()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        self.device.as_ref().unwrap().channel(reactor)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.device = None;
        Command::new("losetup").args(["--detach", &self.node]).status().unwrap();
    }
}
