//! What the suite does not know about files: locks, sizes, sparseness, messages, files that change under us.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use block::testing::{Buffer, Rng, cannot_run, join_all, plain, poll_once, read, run, write};
use block::{Channel, Device, ErrorKind, Flags, Op, Reactor, Submission};
use block_file::{Direct, FileDevice, FileOptions, OpenError};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn dir() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("image");
    (dir, path)
}

fn open(options: &FileOptions) -> (Reactor, Box<dyn Channel>) {
    let device = FileDevice::open(options).unwrap();
    let reactor = Reactor::new(32).unwrap();
    let channel = device.channel(&reactor).unwrap();
    (reactor, channel) // the channel keeps the image open and locked
}

fn refused(options: &FileOptions) -> OpenError {
    FileDevice::open(options).err().expect("refused")
}

#[test]
fn a_missing_image_is_made_sparse_and_opened_again() {
    let (_dir, path) = dir();
    let options = FileOptions::new(&path);
    let error = refused(&options);
    assert!(
        matches!(error, OpenError::Missing { .. }) && error.to_string().contains("give a size"),
        "{error}"
    );
    assert!(matches!(refused(&options.clone().create(MIB).read_only(true)), OpenError::Missing { .. }));

    let options = options.create(1 << 40);
    {
        let (reactor, channel) = open(&options);
        reactor.block_on(write(&*channel, 512, 1 << 30, &[9; 512])).unwrap();
    }
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() * 512 < MIB);
    assert_eq!(meta.mode() & 0o777, 0o600);
    let (reactor, channel) = open(&options);
    assert_eq!(reactor.block_on(read(&*channel, 512, 1 << 30, 1)).unwrap(), [9; 512]);
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_a_remedy() {
    let (dir, path) = dir();
    std::fs::File::create(&path).unwrap().set_len(MIB + 512).unwrap();
    let options = FileOptions::new(&path);
    let error = refused(&options.clone().create(2 * MIB));
    assert!(matches!(error, OpenError::OtherSize { found, .. } if found == MIB + 512));
    assert!(error.to_string().contains("truncate -s 2097152"), "{error}");
    // What would cut data off is no remedy.
    let error = refused(&options.clone().create(MIB / 2)).to_string();
    assert!(error.contains("the size that it has, 1049088") && !error.contains("truncate"), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    let error = refused(&options.clone().block_size(4096));
    assert!(
        matches!(error, OpenError::OddSize { .. }) && error.to_string().contains("or blocks of 512"),
        "{error}"
    );
    assert!(FileDevice::open(&options).is_ok());
    assert!(matches!(refused(&options.clone().block_size(1024)), OpenError::BlockSize { .. }));
    std::fs::File::create(&path).unwrap();
    assert!(matches!(refused(&options), OpenError::OddSize { size: 0, .. }));
    // Nothing is left of a file that could not be made.
    let other = dir.path().join("other");
    for size in [0, 1000, 1 << 62, !511] {
        let error = refused(&FileOptions::new(&other).create(size));
        assert!(!other.exists(), "{error}");
        assert!(matches!(error, OpenError::OddSize { .. } | OpenError::Io { .. }), "{error}");
        assert!(error.to_string().contains("; "), "{error}");
    }
    assert!(matches!(refused(&FileOptions::new("/nonexistent/x").create(MIB)), OpenError::Io { .. }));
}

#[test]
fn one_writer_or_many_readers() {
    let (_dir, path) = dir();
    let options = FileOptions::new(&path).create(MIB);
    let readers = FileOptions::new(&path).read_only(true);
    let first = FileDevice::open(&options).unwrap();
    let error = refused(&options);
    assert!(
        matches!(error, OpenError::InUse { .. }) && error.to_string().contains("choose another path"),
        "{error}"
    );
    assert_eq!(block::Error::from(error).kind(), ErrorKind::AccessDenied);
    assert!(matches!(refused(&readers), OpenError::InUse { .. }));
    // Another process sees it too.
    let flock =
        std::process::Command::new("flock").args(["--nonblock", path.to_str().unwrap(), "true"]).status();
    assert!(!flock.expect("flock of util-linux").success());
    // A channel holds it when the device is gone.
    let reactor = Reactor::new(8).unwrap();
    let channel = first.channel(&reactor).unwrap();
    drop(first);
    assert!(matches!(refused(&options), OpenError::InUse { .. }));
    drop(channel);
    let (one, _two) = (FileDevice::open(&readers).unwrap(), FileDevice::open(&readers).unwrap());
    assert!(matches!(refused(&options), OpenError::InUse { .. }));
    let channel = one.channel(&reactor).unwrap();
    let error = reactor.block_on(write(&*channel, 512, 0, &[0; 512])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
}

#[test]
fn what_is_not_a_disk_is_refused() {
    let (dir, path) = dir();
    for (path, what) in
        [(dir.path().to_owned(), "a directory"), (PathBuf::from("/dev/null"), "a character device")]
    {
        let error = refused(&FileOptions::new(path)).to_string();
        assert!(error.contains(what) && error.contains("use a regular file"), "{error}");
    }
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(refused(&FileOptions::new(&path)).to_string().contains("a pipe"));
}

#[test]
fn tmpfs_has_no_direct_io() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let options = FileOptions::new(dir.path().join("image")).create(MIB);
    let error = refused(&options.clone().direct(Direct::Require));
    assert!(error.to_string().contains("direct=auto"), "{error}");
    assert!(!FileDevice::open(&options).unwrap().is_direct());
}

#[test]
fn discards_and_unmapped_zeroes_give_space_back() {
    let (_dir, path) = dir();
    let (reactor, channel) = open(&FileOptions::new(&path).create(16 * MIB));
    let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let data = Rng(1).bytes(MIB as usize);
    for io in
        [|| plain(Op::Discard, 0, 32768), || plain(Op::WriteZeroes, 0, 32768).with_flags(Flags::MAY_UNMAP)]
    {
        reactor.block_on(async {
            for n in 0..16 {
                write(&*channel, 512, n * 2048, &data).await.unwrap();
            }
            assert!(blocks() >= 16 * MIB);
            run(&*channel, io()).await.unwrap();
            run(&*channel, plain(Op::Flush, 0, 0)).await.unwrap();
        });
        assert!(blocks() < MIB, "{}", blocks());
    }
}

#[test]
fn a_file_made_shorter_gives_errors_and_no_hang() {
    for direct in [Direct::Auto, Direct::Off] {
        let (_dir, path) = dir();
        let (reactor, channel) = open(&FileOptions::new(&path).create(MIB).direct(direct));
        reactor.block_on(async {
            write(&*channel, 512, 0, &vec![1; MIB as usize]).await.unwrap();
            for len in [MIB / 2, MIB / 2 + 100] {
                std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
                assert_eq!(read(&*channel, 512, 0, 1024).await.unwrap(), vec![1; MIB as usize / 2]);
                for (lba, blocks) in [(1024, 1), (1000, 48), (1500, 8), (0, 2048)] {
                    let error = read(&*channel, 512, lba, blocks).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::UnrecoveredRead, "{error}");
                    assert!(error.to_string().contains("made shorter"), "{error}");
                    // The same through a bounce buffer.
                    let io = Buffer::at(4, blocks as usize * 512).io(Op::Read, lba, blocks);
                    assert_eq!(run(&*channel, io).await.unwrap_err().kind(), ErrorKind::UnrecoveredRead);
                }
            }
            write(&*channel, 512, 2047, &[2; 512]).await.unwrap();
            assert_eq!(read(&*channel, 512, 2047, 1).await.unwrap(), [2; 512]);
        });
    }
}

#[test]
fn misaligned_buffers_by_the_hundred_wait_their_turn() {
    let (_dir, path) = dir();
    let (reactor, channel) = open(&FileOptions::new(&path).create(64 * MIB));
    let works = (0..300u64).map(|n| {
        let channel = &*channel;
        async move {
            let bytes = Rng(n).bytes(65536 + 512);
            let buffer = Buffer::at(4, bytes.len());
            buffer.set(0, &bytes);
            run(channel, buffer.io_cut(Op::Write, n * 200, 129, &[12, 4, 30000])).await.unwrap();
            let back = Buffer::at(8, bytes.len());
            run(channel, back.io_cut(Op::Read, n * 200, 129, &[4, 4, 511 * 4])).await.unwrap();
            assert!(back.to_vec() == bytes);
        }
    });
    assert_eq!(reactor.block_on(join_all(works)).len(), 300);
    assert_eq!(reactor.in_flight(), 0);
}

#[test]
fn long_and_finely_cut_ios_are_whole() {
    for direct in [Direct::Auto, Direct::Off] {
        let (_dir, path) = dir();
        let (reactor, channel) = open(&FileOptions::new(&path).create(16 * MIB).direct(direct));
        let bytes = Rng(7).bytes(4 * MIB as usize);
        for piece in [512, 4096, 4] {
            // More pieces than one operation takes.
            let cuts = vec![piece; if piece == 4 { 20_000 } else { 8 * MIB as usize / 4096 / 2 }];
            let buffer = Buffer::with(&bytes);
            reactor.block_on(async {
                run(&*channel, buffer.io_cut(Op::Write, 1, 8192, &cuts)).await.unwrap();
                assert!(read(&*channel, 512, 1, 8192).await.unwrap() == bytes);
                let back = Buffer::new(bytes.len());
                run(&*channel, back.io_cut(Op::Read, 1, 8192, &cuts)).await.unwrap();
                assert!(back.to_vec() == bytes);
            });
        }
    }
}

#[test]
fn a_reactor_that_goes_away_lets_the_image_go() {
    let (_dir, path) = dir();
    let options = FileOptions::new(&path).create(16 * MIB);
    let buffers: Vec<_> = (0..32).map(|_| Buffer::new(65536)).collect();
    {
        let (reactor, channel) = open(&options);
        reactor.block_on(async {
            for (n, buffer) in buffers.iter().enumerate() {
                let submission = channel.submit(buffer.io(Op::Write, n as u64 * 128, 128));
                let mut waiting = Box::pin(submission.wait());
                assert!(block::testing::poll_once(&mut waiting).await.is_none());
            }
        });
        assert!(reactor.in_flight() > 0);
    }
    assert!(!buffers.iter().any(Buffer::is_shared), "the kernel is done with every buffer");
    FileDevice::open(&options).expect("unlocked");
}

/// A file system of 1 MiB for as long as it is used.
struct SmallTmpfs(TempDir);

impl SmallTmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success()).then(|| Self(dir))
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_file_system_is_no_space_until_there_is_some() {
    let Some(small) = SmallTmpfs::mount() else {
        cannot_run("a full file system: mounting a tmpfs needs root");
        return;
    };
    let (reactor, channel) = open(&FileOptions::new(small.0.path().join("image")).create(8 * MIB));
    let data = vec![1; 256 << 10];
    reactor.block_on(async {
        let mut failed = None;
        for n in 0..16 {
            if let Err(error) = write(&*channel, 512, n * 512, &data).await {
                failed.get_or_insert((n, error));
            }
        }
        let (n, error) = failed.expect("1 MiB does not hold 4");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(error.to_string().contains("image"), "{error}");
        assert!(read(&*channel, 512, 0, 512).await.unwrap() == data);
        // That was no loss of anything acknowledged: what is there can be made durable.
        let durable = Buffer::with(&data).io(Op::Write, n * 512, 512).with_flags(Flags::FUA);
        assert_eq!(run(&*channel, durable).await.unwrap_err().kind(), ErrorKind::NoSpace);
        run(&*channel, plain(Op::Flush, 0, 0)).await.unwrap();
        // tmpfs has no ZERO_RANGE: zeroes are holes, which need no space.
        run(&*channel, plain(Op::WriteZeroes, 0, 16384)).await.unwrap();
        write(&*channel, 512, n * 512, &data).await.unwrap();
        assert!(read(&*channel, 512, 0, 512).await.unwrap() == vec![0; data.len()]);
    });
    drop((channel, reactor));
}

#[test]
fn qemu_and_we_see_each_other() {
    let (_dir, path) = dir();
    let (options, readers) = (FileOptions::new(&path).create(MIB), FileOptions::new(&path).read_only(true));
    drop(FileDevice::open(&options).unwrap());
    let hold = |offset| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut lock = libc::flock { l_type: 0, l_whence: 0, l_start: offset, l_len: 1, l_pid: 0 };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: the descriptor is open and the pointer good for the call.
        let locked = unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw mut lock) };
        assert_eq!(locked, 0);
        file
    };
    // As a QEMU that writes, and one that lets nobody write.
    for byte in [101, 201] {
        let held = hold(byte);
        assert!(matches!(refused(&options), OpenError::InUse { .. }), "{byte}");
        assert_eq!(FileDevice::open(&readers).is_ok(), byte == 201);
        drop(held);
        drop(FileDevice::open(&options).unwrap());
    }
    for options in [&options, &readers] {
        let _device = FileDevice::open(options).unwrap();
        let mut resize = std::process::Command::new("qemu-img");
        let Ok(output) = resize.args(["resize", "-f", "raw"]).arg(&path).arg("2M").output() else {
            cannot_run("locks that QEMU sees: qemu-img is needed");
            return;
        };
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), MIB);
    }
}

/// However many ask: one sync is under way, and the next one is for all who came meanwhile.
#[test]
fn flushes_share_a_sync() {
    let (_dir, path) = dir();
    let (reactor, channel) = open(&FileOptions::new(&path).create(MIB).direct(Direct::Off));
    let submit = |io| match channel.submit(io) {
        Submission::Pending(future) => Box::pin(future),
        Submission::Done(_) => panic!("on the spot"),
    };
    let mut flushes: Vec<_> = (0..50).map(|_| submit(plain(Op::Flush, 0, 0))).collect();
    reactor.block_on(async {
        for flush in &mut flushes {
            assert!(poll_once(flush).await.is_none());
        }
    });
    assert_eq!(reactor.in_flight(), 1);
    // The first goes, and one that waits: the sync goes on, and the others have what they wait for.
    drop((flushes.remove(0), flushes.remove(20)));
    assert_eq!(reactor.in_flight(), 1);
    for completed in reactor.block_on(join_all(flushes)) {
        completed.result.unwrap();
    }
    assert_eq!(reactor.in_flight(), 0);
    // Nobody waits for whoever began a sync to be looked at again.
    let mut first = submit(plain(Op::Flush, 0, 0));
    assert!(reactor.block_on(poll_once(&mut first)).is_none());
    reactor.block_on(run(&*channel, plain(Op::Flush, 0, 0))).unwrap();
    reactor.block_on(first).result.unwrap();
}

/// Servers that start at the same moment: one makes the image and has it, and nobody sees it half made.
#[test]
fn an_image_is_made_once() {
    for _ in 0..100 {
        let (_dir, path) = dir();
        let options = FileOptions::new(&path).create(MIB);
        let barrier = std::sync::Barrier::new(4);
        let opened = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| {
                scope.spawn(|| {
                    barrier.wait();
                    let opened = FileDevice::open(&options);
                    barrier.wait(); // nobody gives it back before all have tried
                    opened.map(drop)
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let refusals: Vec<_> = opened.into_iter().filter_map(Result::err).collect();
        assert_eq!(refusals.len(), 3);
        assert!(refusals.iter().all(|error| matches!(error, OpenError::InUse { .. })), "{refusals:?}");
        drop(FileDevice::open(&options).unwrap());
    }
}
