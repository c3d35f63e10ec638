//! Block devices, where tests may make some: loop devices, which need root.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use block::testing::{Buffer, cannot_run, join_all, plain, poll_once, read, run, write};
use block::{Channel, Device, ErrorKind, Flags, Op, Reactor, Submission};
use block_file::{Direct, FileDevice, FileOptions, OpenError};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A loop device over a sparse file, on a file system of its own size if one is given.
struct Loop {
    device: PathBuf,
    mounted: bool,
    dir: TempDir,
}

fn done(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Loop {
    /// `size` bytes in blocks of `block` bytes, of which the file system below holds only `holds`.
    fn new(size: u64, block: u32, holds: Option<u64>) -> Option<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        if let Some(holds) = holds {
            let options = format!("size={holds}");
            if !done(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(dir.path())) {
                cannot_run("block devices: mounting a tmpfs needs root");
                return None;
            }
        }
        let mut new = Self { device: PathBuf::new(), mounted: holds.is_some(), dir };
        std::fs::File::create(new.file()).unwrap().set_len(size).unwrap();
        let mut setup = Command::new("losetup");
        setup.args(["--find", "--show", "--sector-size", &block.to_string()]).arg(new.file());
        let output = setup.output().ok().filter(|output| output.status.success());
        let Some(output) = output else {
            cannot_run("block devices: loop devices need root, losetup and a free /dev/loopN");
            return None;
        };
        new.device = String::from_utf8(output.stdout).unwrap().trim().into();
        Some(new)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.device != Path::new("") {
            done(Command::new("losetup").arg("--detach").arg(&self.device));
        }
        if self.mounted {
            done(Command::new("umount").arg("--lazy").arg(self.dir.path()));
        }
    }
}

fn channel_of(device: &FileDevice) -> (Reactor, Box<dyn Channel>) {
    let reactor = Reactor::new(32).unwrap();
    let channel = device.channel(&reactor).unwrap();
    (reactor, channel)
}

#[test]
fn nothing_is_durable_after_a_lost_write_until_it_is_opened_anew() {
    let flush = || plain(Op::Flush, 0, 0);
    let durable = || Buffer::new(4096).io(Op::Write, 0, 8).with_flags(Flags::FUA);
    // What tells of the loss first.
    for first_is_flush in [true, false] {
        let Some(disk) = Loop::new(16 * MIB, 512, Some(MIB)) else { return };
        let options = FileOptions::new(&disk.device).direct(Direct::Off);
        let device = FileDevice::open(&options).unwrap();
        let (reactor, channel) = channel_of(&device);
        reactor.block_on(async {
            write(&*channel, 512, 0, &[1; 4096]).await.unwrap();
            run(&*channel, durable()).await.unwrap();
            run(&*channel, flush()).await.unwrap();
            // Into the page cache; there is no room below for it.
            write(&*channel, 512, 0, &vec![2; 4 * MIB as usize]).await.unwrap();
            if first_is_flush {
                run(&*channel, flush()).await.unwrap_err();
            } else {
                let all = Buffer::new(4 * MIB as usize);
                let error = run(&*channel, all.io(Op::Write, 0, 8192).with_flags(Flags::FUA)).await;
                error.unwrap_err();
            }
            for _ in 0..2 {
                let zeroes = plain(Op::WriteZeroes, 0, 8).with_flags(Flags::FUA);
                for io in [flush(), durable(), zeroes] {
                    let what = (first_is_flush, io.op);
                    let error = run(&*channel, io).await.expect_err(&format!("{what:?}"));
                    assert_eq!(error.kind(), ErrorKind::WriteFault, "{error}");
                    assert!(error.to_string().contains("open the image anew"), "{error}");
                }
            }
            // Without a promise things go on.
            read(&*channel, 512, 0, 8).await.unwrap();
            write(&*channel, 512, 0, &[3; 4096]).await.unwrap();
        });
        // It is the image that has lost something: what flushes it at the end must hear of it.
        let (other_reactor, other) = channel_of(&device);
        assert_eq!(other_reactor.block_on(run(&*other, flush())).unwrap_err().kind(), ErrorKind::WriteFault);
        drop((device, channel, reactor, other, other_reactor));
        let (reactor, channel) = channel_of(&FileDevice::open(&options).unwrap());
        reactor.block_on(run(&*channel, durable())).unwrap();
    }
}

#[test]
fn a_range_that_cannot_be_given_back_does_not_spoil_the_others() {
    // Half a block of the device.
    let Some(disk) = Loop::new(4 * MIB, 4096, None) else { return };
    let (reactor, channel) =
        channel_of(&FileDevice::open(&FileOptions::new(&disk.device).direct(Direct::Off)).unwrap());
    let unmap = |lba, blocks| plain(Op::WriteZeroes, lba, blocks).with_flags(Flags::MAY_UNMAP);
    reactor.block_on(async {
        write(&*channel, 512, 0, &vec![1; 4 * MIB as usize]).await.unwrap();
        run(&*channel, plain(Op::Flush, 0, 0)).await.unwrap();
        for io in [plain(Op::Discard, 1, 2), plain(Op::WriteZeroes, 3, 1), unmap(4, 2)] {
            run(&*channel, io).await.unwrap();
        }
        let blocks = || std::fs::metadata(disk.file()).unwrap().blocks() * 512;
        assert!(blocks() >= 4 * MIB);
        run(&*channel, unmap(8, 8184)).await.unwrap();
        assert!(blocks() < MIB, "{}", blocks());
        assert_eq!(read(&*channel, 512, 0, 16).await.unwrap()[..512], [1; 512]);
        assert_eq!(read(&*channel, 512, 3, 3).await.unwrap(), [0; 3 * 512]);
        assert_eq!(read(&*channel, 512, 6, 2).await.unwrap(), [1; 2 * 512]);
    });
}

#[test]
fn a_device_that_the_system_has_names_its_remedy() {
    let Some(disk) = Loop::new(MIB, 512, None) else { return };
    let options = FileOptions::new(&disk.device);
    // As a mount has it.
    let mut exclusive = std::fs::OpenOptions::new();
    let mounted = exclusive.read(true).custom_flags(libc::O_EXCL).open(&disk.device).unwrap();
    let error = FileDevice::open(&options).err().expect("refused");
    assert!(matches!(error, OpenError::Busy { .. }), "{error}");
    assert!(error.to_string().contains("`findmnt` tell; unmount it"), "{error}");
    assert_eq!(block::Error::from(error).kind(), ErrorKind::AccessDenied);
    drop(mounted);
    FileDevice::open(&options).unwrap();
}

/// An image whose page cache holds data that cannot be written back.
fn about_to_lose(disk: &Loop) -> FileDevice {
    let device = FileDevice::open(&FileOptions::new(&disk.device).direct(Direct::Off)).unwrap();
    let (reactor, channel) = channel_of(&device);
    reactor.block_on(write(&*channel, 512, 0, &vec![2; 4 * MIB as usize])).unwrap();
    device
}

/// The kernel tells of the loss once. Who asked may be gone by then: its guest has reset the controller, say.
#[test]
fn a_loss_that_a_cancelled_flush_was_told_of_is_not_forgotten() {
    // Cancelled before the kernel has it, while the kernel is at it, and (most likely) when that has ended unseen.
    for pause in [None, Some(0), Some(100)] {
        let Some(disk) = Loop::new(16 * MIB, 512, Some(MIB)) else { return };
        let device = about_to_lose(&disk);
        let (reactor, channel) = channel_of(&device);
        let Submission::Pending(flush) = channel.submit(plain(Op::Flush, 0, 0)) else {
            panic!("on the spot")
        };
        let mut flush = Box::pin(flush);
        assert!(reactor.block_on(poll_once(&mut flush)).is_none());
        if let Some(pause) = pause {
            reactor.turn();
            std::thread::sleep(std::time::Duration::from_millis(pause));
        }
        drop(flush);
        let again = reactor.block_on(run(&*channel, plain(Op::Flush, 0, 0)));
        assert_eq!(again.unwrap_err().kind(), ErrorKind::WriteFault, "{pause:?}");
    }
}

/// Flushes at the same time, on one channel and on another, which is another reactor's: they may share a sync.
#[test]
fn a_loss_is_told_to_everybody_who_asks() {
    let Some(disk) = Loop::new(16 * MIB, 512, Some(MIB)) else { return };
    let device = about_to_lose(&disk);
    let (reactor, channel) = channel_of(&device);
    let (other_reactor, other) = channel_of(&device);
    let flush = || plain(Op::Flush, 0, 0);
    // One that is under way, and is not looked at before all the others have ended.
    let Submission::Pending(early) = channel.submit(flush()) else { panic!("on the spot") };
    let mut early = Box::pin(early);
    assert!(reactor.block_on(poll_once(&mut early)).is_none());
    while reactor.turn() == 0 {}
    let results = other_reactor.block_on(join_all((0..3).map(|_| run(&*other, flush()))));
    let more = reactor.block_on(join_all((0..3).map(|_| run(&*channel, flush()))));
    assert!(results.iter().chain(&more).all(Result::is_err), "{results:?} {more:?}");
    assert!(reactor.block_on(early).result.is_err());
}

/// Somebody else syncs the file, and is told of the loss; a channel that is opened afterwards hears of it all the same.
#[test]
fn a_loss_from_before_a_channel_was_opened_is_told() {
    let Some(disk) = Loop::new(16 * MIB, 512, Some(MIB)) else { return };
    let device = about_to_lose(&disk);
    let outsider = std::fs::File::open(&disk.device).unwrap();
    outsider.sync_data().unwrap_err();
    let (reactor, channel) = channel_of(&device);
    let flushed = reactor.block_on(run(&*channel, plain(Op::Flush, 0, 0)));
    assert_eq!(flushed.unwrap_err().kind(), ErrorKind::WriteFault);
}
