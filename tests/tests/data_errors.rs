//! Data pointers and ranges that are wrong: always a status, never a hang or a crash, and never harm to others.

use std::time::{Duration, Instant};

use nvme_driver::admin::CreateCq;
use nvme_driver::{Arena, Controller, Data, MapAccess, PAGE, Prps, QueuePair, Sgl, io};
use nvme_spec::nvm::DsmRange;
use nvme_spec::sgl::{SglDescriptor, SglIdentifier, SglSubtype, SglType};
use nvme_spec::{Command, Status};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use quarry_tests::data::{buffer, check_works, run};
use quarry_tests::{PATIENCE, Server, io_queues, status};

/// A disk of 64 MiB in blocks of 512 bytes.
const BLOCKS: u64 = 131_072;

fn setup() -> (Server, Controller, QueuePair) {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    let queues = io_queues(&controller);
    (server, controller, queues)
}

fn finish(server: Server, controller: &Controller, queues: &mut QueuePair) {
    check_works(controller, queues, 0, 42);
    server.stop();
}

#[test]
fn prps() {
    let (server, controller, mut queues) = setup();
    let (memory, _) = buffer(&controller, 16 * PAGE);
    let base = memory.iova();
    let (list, _) = buffer(&controller, 2 * PAGE);
    let mut read = |blocks, data| run(&controller, &mut queues, io::read(1, 0, blocks, data));
    // Alignment: PRP1 to a dword, PRP2 as data to a page, as a list to a quadword, entries of lists to a page.
    for offset in [1, 2, 3, 4095] {
        assert_eq!(read(1, Data::Prp(base + offset, 0)), Status::PRP_OFFSET_INVALID, "PRP1 + {offset}");
    }
    for offset in [4, 512, 4095] {
        assert_eq!(read(16, Data::Prp(base, base + PAGE as u64 + offset)), Status::PRP_OFFSET_INVALID);
    }
    for offset in [1, 4, 7] {
        assert_eq!(read(32, Data::Prp(base, list.iova() + offset)), Status::PRP_OFFSET_INVALID);
    }
    list.u64s(0, 3)[0].store(base, std::sync::atomic::Ordering::Relaxed);
    list.u64s(0, 3)[1].store(base + 8, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read(24, Data::Prp(base, list.iova())), Status::PRP_OFFSET_INVALID, "an entry with an offset");
    // Memory that is not there, at the end of everything too.
    for missing in [0, 0xDEAD_0000_0000, !0 << 12, !3, !0 << 20, 1 << 63] {
        assert_eq!(read(1, Data::Prp(missing, 0)), Status::DATA_TRANSFER_ERROR, "PRP1 {missing:#x}");
        let page = missing & !0xFFF;
        assert_eq!(read(16, Data::Prp(base, page)), Status::DATA_TRANSFER_ERROR, "PRP2 {page:#x}");
        assert_eq!(read(32, Data::Prp(base, page)), Status::DATA_TRANSFER_ERROR, "list {page:#x}");
    }
    let end = controller.arena().iova() + controller.arena().len() as u64;
    assert_eq!(read(2, Data::Prp(end - 512, end)), Status::DATA_TRANSFER_ERROR, "one block beyond the end");
    assert_eq!(read(1, Data::Prp(end - 512, 0)), Status::SUCCESS, "up to the end");
    // A list that points to itself is walked as far as the transfer goes, and no further.
    let slots = list.u64s(0, 512);
    slots.iter().for_each(|slot| slot.store(list.iova(), std::sync::atomic::Ordering::Relaxed));
    let looped = read(2048, Data::Prp(base, list.iova() + 4088));
    assert!(looped.is_success() || looped.is(Status::DATA_TRANSFER_ERROR), "{looped:?}");
    // More than MDTS.
    let big = controller.arena().alloc(2 << 20).unwrap();
    let prps = Prps::new(controller.arena(), big.iova(), 2 << 20).unwrap();
    assert_eq!(read(2048, prps.data()), Status::SUCCESS, "exactly MDTS");
    assert_eq!(read(2049, prps.data()), Status::INVALID_FIELD_IN_COMMAND, "one block beyond MDTS");
    assert_eq!(read(65536, prps.data()), Status::INVALID_FIELD_IN_COMMAND);
    finish(server, &controller, &mut queues);
}

#[test]
fn sgls() {
    let (server, controller, mut queues) = setup();
    let (memory, _) = buffer(&controller, 16 * PAGE);
    let base = memory.iova();
    let (list, _) = buffer(&controller, PAGE);
    let at = list.iova();
    let mut read = |blocks, first| run(&controller, &mut queues, io::read(1, 0, blocks, Data::Sgl(first)));
    let block = SglDescriptor::data_block;
    // Sums that are not the transfer's length. Base 4.1.2: a longer SGL is an error only if SGLS says so.
    assert_eq!(read(2, block(base, 512)), Status::DATA_SGL_LENGTH_INVALID, "too short");
    let longer = read(1, block(base, 1024));
    assert!(longer.is(Status::DATA_SGL_LENGTH_INVALID) || longer.is_success(), "{longer:?}");
    assert_eq!(read(1, block(base, 0)), Status::DATA_SGL_LENGTH_INVALID);
    // Granularity: dwords, as SGLS says.
    for (address, len) in [(base + 1, 512), (base + 2, 512)] {
        let got = read(1, block(address, len));
        assert!(
            got.is(Status::SGL_DATA_BLOCK_GRANULARITY_INVALID) || got.is(Status::INVALID_FIELD_IN_COMMAND),
            "{got:?}"
        );
    }
    // Types and subtypes that do not exist here.
    for kind in [SglType::KEYED_DATA_BLOCK, SglType::TRANSPORT_DATA_BLOCK, SglType(9), SglType::VENDOR] {
        assert_eq!(
            read(1, SglDescriptor::new(kind, base, 512)),
            Status::SGL_DESCRIPTOR_TYPE_INVALID,
            "{kind:?}"
        );
    }
    let offset = SglDescriptor {
        identifier: SglIdentifier::new().with_kind(SglType::DATA_BLOCK).with_subtype(SglSubtype::OFFSET),
        ..block(base, 512)
    };
    assert_eq!(read(1, offset), Status::SGL_DESCRIPTOR_TYPE_INVALID, "an offset, which is for fabrics");
    // Segments of bad length, empty, misplaced, in no memory, and in circles.
    for len in [0, 8, 17, 0xFFFF_FFFF] {
        let got = read(1, SglDescriptor::last_segment(at, len));
        assert!(
            got.is(Status::INVALID_SGL_SEGMENT_DESCRIPTOR)
                || got.is(Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS),
            "{len}: {got:?}"
        );
    }
    assert_eq!(read(1, SglDescriptor::last_segment(0xDEAD_0000_0000, 16)), Status::DATA_TRANSFER_ERROR);
    assert_eq!(read(1, SglDescriptor::last_segment(!0xF, 16)), Status::DATA_TRANSFER_ERROR);
    list.put(0, &SglDescriptor::segment(at, 16));
    assert!(!read(1, SglDescriptor::segment(at, 16)).is_success(), "a circle of segments");
    list.put(0, &SglDescriptor::last_segment(at, 16));
    assert_eq!(read(1, SglDescriptor::last_segment(at, 16)), Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    list.put(0, &block(base, 512));
    assert_eq!(
        read(1, SglDescriptor::segment(at, 16)),
        Status::INVALID_SGL_SEGMENT_DESCRIPTOR,
        "no pointer at its end"
    );
    assert_eq!(read(1, SglDescriptor::last_segment(at, 16)), Status::SUCCESS);
    list.put(0, &SglDescriptor::last_segment(at + 64, 16));
    list.put(16, &block(base, 512));
    let got = read(1, SglDescriptor::last_segment(at, 32));
    assert_eq!(got, Status::INVALID_SGL_SEGMENT_DESCRIPTOR, "a pointer in the middle");
    // Thousands of empty blocks, then of single dwords.
    let (many, _) = buffer(&controller, 65536 * 16);
    for index in 0..65536 {
        many.put(index * 16, &block(base, 0));
    }
    assert!(
        !read(1, SglDescriptor::last_segment(many.iova(), 65536 * 16)).is_success(),
        "empty blocks without end"
    );
    // Memory that is not there, and lengths that wrap around.
    for (address, len) in [(0xDEAD_0000_0000, 512), (!0x1FF, 512), (!0x1FF, 1024), (!3, 1024)] {
        let got = read(len / 512, block(address, len));
        assert_eq!(got, Status::DATA_TRANSFER_ERROR, "{address:#x}");
    }
    assert!(!read(1, block(base, 0xFFFF_FFFC)).is_success());
    finish(server, &controller, &mut queues);
}

#[test]
fn bit_buckets() {
    let (server, controller, mut queues) = setup();
    let (memory, prps) = buffer(&controller, 4 * PAGE);
    memory.write(0, &quarry_tests::pattern(3, 4 * PAGE));
    assert_eq!(run(&controller, &mut queues, io::write(1, 0, 32, prps.data())), Status::SUCCESS);
    let identify = controller.identify(1, 0).unwrap();
    let sgls = u32::from_le_bytes(*identify[536..].first_chunk().unwrap());
    let descriptors = [
        SglDescriptor::data_block(memory.iova(), 1024),
        SglDescriptor::bit_bucket(1024),
        SglDescriptor::data_block(memory.iova() + 2048, 2048),
    ];
    let sgl = Sgl::chain(controller.arena(), &descriptors, 8).unwrap();
    memory.fill(0xEE);
    let got = run(&controller, &mut queues, io::read(1, 0, 8, sgl.data()));
    if sgls & 1 << 16 == 0 {
        assert_eq!(got, Status::SGL_DESCRIPTOR_TYPE_INVALID, "not supported, says SGLS");
    } else {
        assert_eq!(got, Status::SUCCESS);
        let mut expected = quarry_tests::pattern(3, 4 * PAGE);
        expected[1024..2048].fill(0xEE);
        expected[4096..].fill(0xEE);
        assert!(memory.to_vec(0, 4 * PAGE) == expected, "only the bucket's bytes are left out");
    }
    finish(server, &controller, &mut queues);
}

#[test]
fn ranges_beyond_the_end() {
    let (server, controller, mut queues) = setup();
    let (memory, prps) = buffer(&controller, 64 * PAGE);
    memory.fill(0x77);
    for (slba, blocks) in [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (BLOCKS + 1, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 7, 8),
        (1 << 55, 1),
        ((1 << 55) + 1, 8),
        (1 << 63, 512),
    ] {
        for command in [
            io::read(1, slba, blocks, prps.data()),
            io::write(1, slba, blocks, prps.data()),
            io::write_zeroes(1, slba, blocks),
        ] {
            let got = run(&controller, &mut queues, command);
            assert_eq!(got, Status::LBA_OUT_OF_RANGE, "{:?} of {blocks} at {slba:#x}", command.nvm_opcode());
        }
    }
    assert_eq!(run(&controller, &mut queues, io::read(1, BLOCKS - 1, 1, prps.data())), Status::SUCCESS);
    assert_eq!(run(&controller, &mut queues, io::write_zeroes(1, BLOCKS - 65536, 65536)), Status::SUCCESS);
    // Dataset Management: ranges out of bounds, empty, overlapping.
    let ranges = |list: &[(u64, u32)]| {
        for (index, (slba, nlb)) in list.iter().enumerate() {
            memory.put(
                index * 16,
                &DsmRange { slba: (*slba).into(), nlb: (*nlb).into(), ..DsmRange::default() },
            );
        }
        io::deallocate(1, list.len() as u32, prps.data())
    };
    for bad in [(BLOCKS, 1), (u64::MAX, 1), (0, u32::MAX), (u64::MAX - 1, 4)] {
        let got = run(&controller, &mut queues, ranges(&[(0, 8), bad]));
        assert_eq!(got, Status::LBA_OUT_OF_RANGE, "{bad:?}");
    }
    assert_eq!(
        run(&controller, &mut queues, ranges(&[(0, 0), (8, 100), (50, 100), (8, 100)])),
        Status::SUCCESS
    );
    let all: Vec<_> = (0..256).map(|index| (index * 16, 8)).collect();
    assert_eq!(run(&controller, &mut queues, ranges(&all)), Status::SUCCESS);
    finish(server, &controller, &mut queues);
}

#[test]
fn memory_with_limits() {
    let (server, controller, mut queues) = setup();
    let map = |iova, access| {
        let arena = Arena::new(4 * PAGE, iova).unwrap();
        controller.map(&arena, access).unwrap();
        arena
    };
    let read_only = map(0x50_0000_0000, MapAccess::READ_ONLY);
    let write_only = map(0x51_0000_0000, MapAccess::WRITE_ONLY);
    let nowhere = map(0x52_0000_0000, MapAccess::NO_DESCRIPTOR);
    let mut go = |command| run(&controller, &mut queues, command);
    let page = |arena: &Arena| Data::Prp(arena.iova(), 0);
    read_only.whole().write(0, &quarry_tests::pattern(5, PAGE));
    assert_eq!(go(io::write(1, 0, 8, page(&read_only))), Status::SUCCESS, "the device reads it");
    let before = read_only.whole().to_vec(0, 4 * PAGE);
    assert_eq!(go(io::read(1, 0, 8, page(&read_only))), Status::DATA_TRANSFER_ERROR);
    assert!(before == read_only.whole().to_vec(0, 4 * PAGE), "read-only memory is not written");
    assert_eq!(go(io::read(1, 0, 8, page(&write_only))), Status::SUCCESS, "the device writes it");
    assert!(write_only.whole().to_vec(0, PAGE) == quarry_tests::pattern(5, PAGE));
    assert_eq!(go(io::write(1, 0, 8, page(&write_only))), Status::DATA_TRANSFER_ERROR);
    for command in [io::read(1, 0, 8, page(&nowhere)), io::write(1, 0, 8, page(&nowhere))] {
        assert_eq!(go(command), Status::DATA_TRANSFER_ERROR, "memory without a descriptor");
    }
    // Lists and queues in such memory.
    assert_eq!(
        go(io::read(1, 0, 32, Data::Prp(controller.arena().iova(), write_only.iova()))),
        Status::DATA_TRANSFER_ERROR
    );
    assert_eq!(
        go(io::read(1, 0, 32, Data::Prp(controller.arena().iova(), nowhere.iova()))),
        Status::DATA_TRANSFER_ERROR
    );
    for arena in [&read_only, &nowhere] {
        // Refused, or a queue that rests for want of memory to write to.
        let before = arena.whole().to_vec(0, PAGE);
        if status(controller.admin(CreateCq::new(2, 16, arena.iova()).command())).is_success() {
            let mut sq = controller.create_sq(2, 16, 2).unwrap();
            sq.push(&io::flush(1)).unwrap();
            sq.ring().unwrap();
            std::thread::sleep(Duration::from_millis(20));
            controller.delete_sq(2).unwrap();
            controller.delete_cq(2).unwrap();
        }
        assert!(arena.whole().to_vec(0, PAGE) == before, "nothing is written where nothing may be");
    }
    // Memory without a descriptor is explained in the log.
    server.wait_for_log("share=on");
    // A descriptor that is gone from under the map.
    let shrunk = map(0x53_0000_0000, MapAccess::FULL);
    rustix::fs::ftruncate(shrunk.fd(), 0).unwrap();
    let mut other = server_neighbour(&controller);
    let pair = &mut other;
    let sent = pair.submit(io::read(1, 0, 8, page(&shrunk))).unwrap();
    // What was written is lost and the client with it, but not the process. An answer may come before the end.
    let _ = pair.wait(sent, Duration::from_secs(1));
    let start = Instant::now();
    while controller.status().is_ok() {
        assert!(start.elapsed() < PATIENCE, "a client that takes its memory away stays connected");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop((queues, other, controller));
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    finish(server, &controller, &mut queues);
}

fn server_neighbour(controller: &Controller) -> QueuePair {
    controller.create_queue_pair(5, 16).unwrap()
}

/// Bytes that look a little like commands: garbage that gets further than the first check.
fn garbage() -> impl Strategy<Value = [u8; 64]> {
    let pointer = prop_oneof![
        Just(0u64),
        any::<u64>(),
        (0u64..64 << 20).prop_map(|at| IOVA + at),
        (0u64..64 << 8).prop_map(|at| IOVA + at * 4096),
        (0u64..4096).prop_map(|at| u64::MAX - at),
    ];
    let dword = || prop_oneof![Just(0u32), Just(1), Just(u32::MAX), any::<u32>(), 0u32..256];
    let opcode = prop_oneof![any::<u8>(), 0u8..16];
    (opcode, any::<u8>(), dword(), pointer.clone(), pointer, proptest::collection::vec(dword(), 8)).prop_map(
        |(opcode, flags, nsid, prp1, prp2, dwords)| {
            let mut bytes = [0; 64];
            bytes[0] = opcode;
            bytes[1] = flags;
            bytes[4..8].copy_from_slice(&nsid.to_le_bytes());
            bytes[24..32].copy_from_slice(&prp1.to_le_bytes());
            bytes[32..40].copy_from_slice(&prp2.to_le_bytes());
            for (index, dword) in dwords.iter().enumerate() {
                bytes[32 + index * 4..36 + index * 4].copy_from_slice(&dword.to_le_bytes());
            }
            bytes[32..40].copy_from_slice(&prp2.to_le_bytes());
            bytes
        },
    )
}

/// Where the garbage aims: the first arena of the driver's defaults.
const IOVA: u64 = 0x1_0000_0000;

/// Garbage on all queues of one controller; a well-behaved client of another controller of the same process is not
/// harmed, and afterwards the first controller works again.
#[test]
fn garbage_harms_nobody_else() {
    let server = Server::config(
        r#"
        [devices.one]
        type = "memory"
        size = "64M"
        [devices.two]
        type = "memory"
        size = "64M"
        [controllers.bad]
        socket = "bad.sock"
        namespaces = [{ device = "one" }]
        [controllers.good]
        socket = "good.sock"
        namespaces = [{ device = "two" }]
        "#,
        &["bad.sock", "good.sock"],
    );
    let good = server.controller_with("good.sock", nvme_driver::Options::default());
    let good_queues = std::cell::RefCell::new(io_queues(&good));
    let seed = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let strategy = proptest::collection::vec((0usize..3, garbage()), 1..40);
    runner
        .run(&strategy, |commands| {
            let bad = server.controller_with("bad.sock", nvme_driver::Options::default());
            bad.request_queues(2).unwrap();
            let mut pairs = [bad.create_queue_pair(1, 32).unwrap(), bad.create_queue_pair(2, 32).unwrap()];
            for (queue, bytes) in commands {
                let command: Command = zerocopy::transmute!(bytes);
                // A queue that garbage has deleted, or filled with event requests, takes no more.
                let pushed = match queue {
                    0 => bad.with_admin(|admin| admin.submit(command)),
                    _ => pairs[queue - 1].submit(command),
                };
                drop(pushed);
                for pair in &mut pairs {
                    pair.poll(usize::MAX, |_| {}).unwrap();
                }
                bad.with_admin(|admin| admin.poll(usize::MAX, |_| {})).unwrap();
            }
            seed.set(seed.get() + 1);
            check_works(&good, &mut good_queues.borrow_mut(), 8 * seed.get(), seed.get());
            // The controller still obeys its registers.
            bad.enable().unwrap();
            let mut queues = io_queues(&bad);
            let (_memory, prps) = buffer(&bad, PAGE);
            let read = run(&bad, &mut queues, io::read(1, 0, 8, prps.data()));
            prop_assert!(read.is_success(), "{read:?}");
            Ok(())
        })
        .unwrap();
    server.stop();
}
