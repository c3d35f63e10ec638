//! Whole sessions without a guest: bring-up, identity, data of every size and shape, many queues, several controllers.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nvme_driver::{
    Controller, Data, MapAccess, Namespace, Options, PAGE, Prps, QueuePair, Sgl, io, namespace::geometry,
};
use nvme_spec::Status;
use nvme_spec::registers::{ACQ, AQA, ASQ, CAP, CC, CSTS, VS, Vs};
use nvme_spec::sgl::SglDescriptor;
use quarry_tests::data::{buffer, check_works, run};
use quarry_tests::{PATIENCE, Server, io_queues, pattern};

const MIB: usize = 1 << 20;

/// Writes and reads back with every size, both ways of PRPs and SGLs.
fn sizes(controller: &Controller, queues: &mut QueuePair) {
    let (_, block) = geometry(controller, 1).unwrap();
    let (memory, _) = buffer(controller, MIB + PAGE);
    let mut seed = 1;
    for len in [512, 1024, 4096, 4608, 8192, 12288, 65536, 131_072, 262_144 + 512, MIB] {
        if len % block != 0 {
            continue;
        }
        // Offsets are dword aligned; every page boundary and both kinds of PRP2 are met.
        for offset in [0, 4, 512, 2048, 4092] {
            let iova = memory.iova() + offset as u64;
            let prps = Prps::new(controller.arena(), iova, len).unwrap();
            let block_sgl = Sgl::block(iova, len);
            let pieces = split(iova, len, 4096 + 128);
            let chained = Sgl::chain(controller.arena(), &pieces, 7).unwrap();
            let single = Sgl::chain(controller.arena(), &pieces, 400).unwrap();
            for data in [prps.data(), block_sgl, chained.data(), single.data()] {
                seed += 1;
                let expected = pattern(seed, len);
                memory.write(offset, &expected);
                let blocks = (len / block) as u32;
                assert_eq!(
                    run(controller, queues, io::write(1, 8, blocks, data)),
                    Status::SUCCESS,
                    "{len}+{offset}"
                );
                memory.fill(0xEE);
                assert_eq!(
                    run(controller, queues, io::read(1, 8, blocks, data)),
                    Status::SUCCESS,
                    "{len}+{offset}"
                );
                assert!(memory.to_vec(offset, len) == expected, "{len} bytes at offset {offset} by {data:?}");
                let after = memory.to_vec(offset + len, memory.len() - offset - len);
                assert!(after.iter().all(|&byte| byte == 0xEE), "nothing is written behind the buffer");
                let before = memory.to_vec(0, offset);
                assert!(before.iter().all(|&byte| byte == 0xEE), "nothing is written before the buffer");
            }
        }
    }
}

fn split(iova: u64, len: usize, piece: usize) -> Vec<SglDescriptor> {
    (0..len)
        .step_by(piece)
        .map(|at| SglDescriptor::data_block(iova + at as u64, piece.min(len - at) as u32))
        .collect()
}

fn whole_session(server: &Server, controller: &Controller) {
    assert_eq!(controller.version().unwrap(), Vs::V2_0);
    assert_eq!(controller.cap().dstrd(), 4, "one cache line per doorbell");
    assert!(controller.cap().mqes_z() >= 1023 && controller.cap().css_nvm());
    assert!(controller.doorbells().are_mapped(), "doorbells can be mapped");
    assert_eq!(controller.active_namespaces().unwrap(), [1]);
    let mut queues = io_queues(controller);
    sizes(controller, &mut queues);
    assert_eq!(run(controller, &mut queues, io::flush(1)), Status::SUCCESS);
    assert_eq!(run(controller, &mut queues, io::write_zeroes(1, 8, 16)), Status::SUCCESS);
    let mut disk = Namespace::open(controller, 1, queues).unwrap();
    let mut data = vec![1; 16 * disk.block_size()];
    disk.read(8, &mut data).unwrap();
    assert!(data.iter().all(|&byte| byte == 0), "zeroes were written");
    let written = pattern(7, 3 * MIB);
    disk.write(0, &written).unwrap();
    assert!(disk.compare(0, &written).unwrap());
    assert!(!disk.compare(1, &written).unwrap(), "a block further");
    let block = &written[..disk.block_size()];
    let refused = disk.compare_and_write(0, block, block).unwrap_err();
    assert_eq!(refused.status(), Some(Status::INVALID_FIELD_IN_COMMAND), "memory has no such operation");
    disk.deallocate(&[(0, 8), (100, 0), (200, 1)]).unwrap();
    let mut data = vec![0; 3 * MIB];
    disk.read(0, &mut data).unwrap();
    let block = disk.block_size();
    assert!(
        data[8 * block..200 * block] == pattern(7, 3 * MIB)[8 * block..200 * block],
        "only the ranges went"
    );
    controller.delete_queue_pair(disk.into_queues()).unwrap();
    assert!(server.resources().guest_mappings > 0);
}

#[test]
fn memory_disk_512() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    whole_session(&server, &controller);
    controller.close().unwrap();
    server.stop();
}

#[test]
fn memory_disk_4096() {
    let server = Server::disk_with("mem:64M", &["--block-size", "4096"]);
    let controller = server.controller();
    whole_session(&server, &controller);
    controller.close().unwrap();
    server.stop();
}

#[test]
fn file_disk() {
    let server = Server::disk("file:disk.img,size=64M");
    let controller = server.controller();
    whole_session(&server, &controller);
    let mut disk = Namespace::open(&controller, 1, controller.create_queue_pair(1, 16).unwrap()).unwrap();
    disk.write(4096, &pattern(99, MIB)).unwrap();
    disk.flush().unwrap();
    let image = std::fs::read(server.dir().join("disk.img")).unwrap();
    assert_eq!(image.len(), 64 * MIB);
    assert!(image[4096 * 512..4096 * 512 + MIB] == pattern(99, MIB), "the image is raw");
    controller.close().unwrap();
    server.stop();
}

#[test]
fn through_the_vfio_user_crate() {
    let server = Server::disk("mem:64M");
    let options = Options { register_halves: true, ..Options::default() };
    let controller = Controller::connect(&server.socket("vm.sock"), options).unwrap();
    whole_session(&server, &controller);
    controller.close().unwrap();
    server.stop();
}

/// The crate's client by itself, message by message, as cloud-hypervisor drives it.
#[test]
fn vfio_user_client_by_hand() {
    let server = Server::disk("mem:64M");
    let mut client = vfio_user::Client::new(&server.socket("vm.sock")).unwrap();
    assert!(!client.resettable(), "the flag is there; this client shows it inverted");
    let mut cap = [0; 8];
    client.region_read(0, CAP, &mut cap).unwrap();
    assert_ne!(u64::from_le_bytes(cap), 0);
    let bar0 = client.region(0).unwrap();
    assert!(bar0.size.is_power_of_two() && bar0.file_offset.is_some());
    let sparse = bar0.sparse_areas.first().expect("a sparse area");
    assert_eq!(sparse.offset, 0x1000);
    assert!(sparse.size >= 129 * 2 * 64);

    let mut id = [0; 8];
    client.region_read(7, 0, &mut id).unwrap();
    assert_eq!(client.region(7).unwrap().size % 256, 0);
    let mut class = [0; 4];
    client.region_read(7, 8, &mut class).unwrap();
    assert_eq!(class[1..], [2, 8, 1], "an NVMe controller");
    // BAR sizing: ones are written, the size's complement comes back.
    client.region_write(7, 0x10, &[0xFF; 4]).unwrap();
    let mut mask = [0; 4];
    client.region_read(7, 0x10, &mut mask).unwrap();
    let size = u64::from(!(u32::from_le_bytes(mask) & !0xF)) + 1;
    assert_eq!(size, client.region(0).unwrap().size);

    let msix = client.get_irq_info(2).unwrap();
    assert!(msix.count >= 2, "{msix:?}");
    let event = nvme_driver::EventFd::new().unwrap();
    client.set_irqs(2, 0x24, 0, 1, &[std::os::fd::AsFd::as_fd(&event).as_raw_fd()]).unwrap();

    let arena = nvme_driver::Arena::new(16 * PAGE, 0).unwrap();
    client.dma_map(0, 0, arena.len() as u64, arena.fd().as_raw_fd()).unwrap();
    client.region_write(7, 4, &[6, 4]).unwrap();
    client.region_write(0, AQA, &0x001f_001f_u32.to_le_bytes()).unwrap();
    client.region_write(0, ASQ, &0x1000_u64.to_le_bytes()).unwrap();
    client.region_write(0, ACQ, &0x2000_u64.to_le_bytes()).unwrap();
    client.region_write(0, CC, &0x0046_0001_u32.to_le_bytes()).unwrap();
    let mut csts = [0; 4];
    let start = Instant::now();
    while csts[0] & 1 == 0 && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
        client.region_read(0, CSTS, &mut csts).unwrap();
    }
    assert_eq!(csts[0] & 3, 1, "ready and not fatal");
    let mut version = [0; 4];
    client.region_read(0, VS, &mut version).unwrap();
    assert_eq!(version, [0, 0, 2, 0]);

    // Identify Controller, told by a message to the doorbell, answered with an interrupt.
    let whole = arena.whole();
    whole.put(0x1000, &nvme_driver::admin::identify(1, 0, 0, 0, Data::Prp(0x4000, 0)));
    client.region_write(0, 0x1000, &1_u32.to_le_bytes()).unwrap();
    assert_eq!(event.wait(PATIENCE).unwrap(), 1);
    let completion: nvme_spec::Completion = whole.get(0x2000);
    assert!(completion.phase() && completion.status().is_success(), "{completion:?}");
    assert_eq!(whole.to_vec(0x4000 + 512, 2), [0x66, 0x44], "SQES and CQES");
    client.reset().unwrap();
    client.region_read(0, CSTS, &mut csts).unwrap();
    assert_eq!(csts[0] & 1, 0, "a reset device is not ready");
    client.dma_unmap(0, arena.len() as u64).unwrap();
    client.shutdown().unwrap();
    drop(client);
    server.stop();
}

#[test]
fn interrupts_come_once_per_run_and_only_when_asked() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    let vectors = controller.connect_vectors(0, 3).unwrap();
    controller.request_queues(2).unwrap();
    let cq = controller.create_cq(1, 64, Some(2)).unwrap();
    let sq = controller.create_sq(1, 64, 1).unwrap();
    let mut queues = QueuePair::new(sq, cq);
    // One who waits for the interrupt before he looks: who polls may get none.
    let interrupted = |queues: &mut QueuePair, event: &nvme_driver::EventFd| {
        let cid = queues.submit(io::flush(1)).unwrap();
        assert!(event.wait(PATIENCE).unwrap() >= 1);
        assert!(queues.wait(cid, PATIENCE).unwrap().status().is_success());
    };
    interrupted(&mut queues, &vectors[2]);
    assert_eq!(vectors[1].take().unwrap(), 0, "nobody uses vector 1");
    // The eventfd is replaced while the queue lives.
    let replaced = controller.connect_vectors(2, 1).unwrap();
    vectors[2].take().unwrap();
    interrupted(&mut queues, &replaced[0]);
    assert_eq!(vectors[2].take().unwrap(), 0, "the old eventfd is not signalled any more");
    // Without interrupts there are none.
    let mut quiet = controller.create_queue_pair(2, 16).unwrap();
    replaced[0].take().unwrap();
    check_works(&controller, &mut quiet, 0, 7);
    assert_eq!(replaced[0].take().unwrap(), 0);
    server.stop();
}

#[test]
fn deep_queues_keep_data_apart() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    controller.request_queues(4).unwrap();
    let mut pairs: Vec<_> = (1..=4).map(|id| controller.create_queue_pair(id, 64).unwrap()).collect();
    let (memory, _) = buffer(&controller, 4 * 63 * PAGE);
    for round in 0..20u64 {
        memory.write(0, &pattern(round, memory.len()));
        for write in [true, false] {
            for (index, pair) in pairs.iter_mut().enumerate() {
                for slot in 0..63 {
                    let number = (index * 63 + slot) as u64;
                    let data = Data::Prp(memory.iova() + number * PAGE as u64, 0);
                    let lba = (number * 5 % 252) * 8;
                    let command = if write { io::write(1, lba, 8, data) } else { io::read(1, lba, 8, data) };
                    pair.push(&nvme_spec::Command { cid: (slot as u16).into(), ..command }).unwrap();
                }
                pair.ring().unwrap();
            }
            for pair in &mut pairs {
                let mut seen = [false; 63];
                for _ in 0..63 {
                    let completion = pair.wait_any(controller.timeout()).unwrap();
                    assert!(completion.status().is_success(), "{completion:?}");
                    assert!(!std::mem::replace(&mut seen[usize::from(completion.cid.get())], true), "twice");
                }
            }
            if write {
                memory.fill(0);
            }
        }
        assert!(memory.to_vec(0, memory.len()) == pattern(round, memory.len()), "round {round}");
    }
    server.stop();
}

#[test]
fn shared_completion_queue() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    controller.request_queues(4).unwrap();
    let mut cq = controller.create_cq(2, 16, None).unwrap();
    let mut sqs: Vec<_> = (1..=4).map(|id| controller.create_sq(id, 32, 2).unwrap()).collect();
    let (memory, _) = buffer(&controller, PAGE);
    for sq in &mut sqs {
        for cid in 0..31u16 {
            let command = io::read(1, 0, 1, Data::Prp(memory.iova(), 0));
            sq.push(&nvme_spec::Command { cid: cid.into(), ..command }).unwrap();
        }
        sq.ring().unwrap();
    }
    // 124 commands through 15 slots.
    let mut seen = [[false; 31]; 4];
    let start = Instant::now();
    let mut count = 0;
    while count < 124 {
        if let Some(completion) = cq.poll() {
            let sq = usize::from(completion.sqid.get()) - 1;
            assert!(completion.status().is_success(), "{completion:?}");
            assert!(!std::mem::replace(&mut seen[sq][usize::from(completion.cid.get())], true), "twice");
            cq.ring().unwrap();
            count += 1;
        }
        assert!(start.elapsed() < PATIENCE, "{count} of 124 completions");
    }
    for id in 1..=4 {
        controller.delete_sq(id).unwrap();
    }
    controller.delete_cq(2).unwrap();
    server.stop();
}

#[test]
fn all_128_queue_pairs() {
    let server = Server::disk("mem:64M");
    let controller = server.controller();
    assert_eq!(controller.request_queues(128).unwrap(), (128, 128));
    let mut pairs: Vec<_> = (1..=128).map(|id| controller.create_queue_pair(id, 16).unwrap()).collect();
    for (index, pair) in pairs.iter_mut().enumerate() {
        check_works(&controller, pair, index as u64 * 8, index as u64);
    }
    for pair in pairs.into_iter().rev() {
        controller.delete_queue_pair(pair).unwrap();
    }
    controller.close().unwrap();
    server.stop();
}

#[test]
fn two_controllers_in_one_process() {
    let server = Server::config(
        r#"
        [devices.one]
        type = "memory"
        size = "16M"
        [devices.two]
        type = "memory"
        size = "32M"
        block_size = 4096
        [devices.common]
        type = "memory"
        size = "8M"
        [subsystems.both]
        namespaces = [{ device = "common" }]
        [controllers.a]
        socket = "a.sock"
        namespaces = [{ device = "one" }]
        [controllers.b]
        socket = "b.sock"
        namespaces = [{ device = "two", nsid = 5 }]
        [controllers.c]
        socket = "c.sock"
        subsystem = "both"
        [controllers.d]
        socket = "d.sock"
        subsystem = "both"
        "#,
        &["a.sock", "b.sock", "c.sock", "d.sock"],
    );
    let open = |socket: &str| server.controller_with(socket, Options::default());
    let (a, b, c, d) = (open("a.sock"), open("b.sock"), open("c.sock"), open("d.sock"));
    assert_eq!(geometry(&a, 1).unwrap(), (32768, 512));
    assert_eq!(b.active_namespaces().unwrap(), [5]);
    assert_eq!(geometry(&b, 5).unwrap(), (8192, 4096));
    let mut on_a = Namespace::open(&a, 1, io_queues(&a)).unwrap();
    let mut on_b = Namespace::open(&b, 5, io_queues(&b)).unwrap();
    on_a.write(0, &pattern(1, MIB)).unwrap();
    on_b.write(0, &pattern(2, MIB)).unwrap();
    let mut data = vec![0; MIB];
    on_a.read(0, &mut data).unwrap();
    assert!(data == pattern(1, MIB));
    on_b.read(0, &mut data).unwrap();
    assert!(data == pattern(2, MIB));
    // Two controllers of one subsystem see one namespace.
    let mut on_c = Namespace::open(&c, 1, io_queues(&c)).unwrap();
    let mut on_d = Namespace::open(&d, 1, io_queues(&d)).unwrap();
    on_c.write(64, &pattern(3, MIB)).unwrap();
    on_d.read(64, &mut data).unwrap();
    assert!(data == pattern(3, MIB));
    let cntlid = |controller: &Controller| controller.identify(1, 0).unwrap()[78..80].to_vec();
    assert_ne!(cntlid(&c), cntlid(&d), "controllers of one subsystem have identifiers of their own");
    assert_eq!(c.identify(1, 0).unwrap()[768..1024], d.identify(1, 0).unwrap()[768..1024], "one NQN");
    drop((a, c));
    on_b.read(0, &mut data).unwrap();
    on_d.read(64, &mut data).unwrap();
    server.stop();
}

#[test]
fn memory_at_zero_and_in_pieces() {
    let server = Server::disk("mem:64M");
    let controller = server.controller_with("vm.sock", Options { iova: 0, ..Options::default() });
    let mut queues = io_queues(&controller);
    check_works(&controller, &mut queues, 0, 1);
    // A buffer that goes on in the next region, which is another memfd.
    let end = controller.arena().len() as u64;
    let next = nvme_driver::Arena::new(MIB, end).unwrap();
    controller.map(&next, MapAccess::FULL).unwrap();
    let data = pattern(3, 8 * PAGE);
    controller.arena().whole().write(controller.arena().len() - 4 * PAGE, &data[..4 * PAGE]);
    next.whole().write(0, &data[4 * PAGE..]);
    let across = end - 4 * PAGE as u64;
    let prps = Prps::new(controller.arena(), across, 8 * PAGE).unwrap();
    assert_eq!(run(&controller, &mut queues, io::write(1, 0, 64, prps.data())), Status::SUCCESS);
    next.whole().fill(0);
    let sgl = Sgl::block(across, 8 * PAGE);
    assert_eq!(run(&controller, &mut queues, io::read(1, 0, 64, sgl)), Status::SUCCESS);
    assert!(next.whole().to_vec(0, 4 * PAGE) == data[4 * PAGE..]);
    controller.unmap(&next).unwrap();
    assert!(!run(&controller, &mut queues, io::read(1, 0, 64, sgl)).is_success(), "half of it is gone");
    check_works(&controller, &mut queues, 0, 2);
    server.stop();
}
