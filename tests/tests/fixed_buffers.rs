//! Guest memory as registered buffers: the right data through maps and unmaps, and nothing stays pinned.

use std::sync::Arc;
use std::time::Instant;

use block::testing::cannot_run;
use nvme_driver::{Arena, Controller, Data, MapAccess, Prps, QueuePair, io};
use nvme_spec::Status;
use quarry_tests::data::{check_works, run};
use quarry_tests::{PATIENCE, Server, io_queues, pattern};

const IOVA: u64 = 0x60_0000_0000;
const LEN: usize = 4 << 20;
/// Bytes of a read or write.
const SIZE: usize = 16 << 10;
const BLOCKS: u64 = SIZE as u64 / 512;

fn server(size: &str) -> Server {
    let text = format!(
        r#"
        [reactors]
        fixed_buffers = "{size}"
        [devices.disk]
        type = "file"
        path = "disk.img"
        size = "64M"
        [controllers.vm]
        socket = "vm.sock"
        namespaces = [{{ device = "disk" }}]
        "#
    );
    Server::config(&text, &["vm.sock"])
}

/// KiB that the server has pinned.
fn pinned(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).expect("a line VmPin");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Waits: kernels may let go of pages a moment later.
#[track_caller]
fn assert_nothing_pinned_beyond(server: &Server, before: u64) {
    let start = Instant::now();
    while pinned(server) > before {
        assert!(start.elapsed() < PATIENCE, "{} KiB stay pinned", pinned(server) - before);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn prps(controller: &Controller, arena: &Arena, offset: usize) -> Prps {
    Prps::new(controller.arena(), arena.iova() + offset as u64, SIZE).unwrap()
}

/// Writes patterns from one half of `arena` and reads them to the other, often enough for both to be registered.
#[track_caller]
fn use_memory(controller: &Controller, queues: &mut QueuePair, arena: &Arc<Arena>, seed: u64) {
    let whole = arena.whole();
    let (half, count) = (LEN / 2, LEN / 2 / SIZE);
    for n in 0..count {
        whole.write(n * SIZE, &pattern(seed + n as u64, SIZE));
        let write = io::write(1, n as u64 * BLOCKS, BLOCKS as u32, prps(controller, arena, n * SIZE).data());
        assert_eq!(run(controller, queues, write), Status::SUCCESS);
    }
    for n in 0..count {
        let to = half + n * SIZE;
        let read = io::read(1, n as u64 * BLOCKS, BLOCKS as u32, prps(controller, arena, to).data());
        assert_eq!(run(controller, queues, read), Status::SUCCESS);
        assert!(whole.to_vec(to, SIZE) == pattern(seed + n as u64, SIZE), "read {n} of seed {seed}");
    }
}

#[test]
fn other_memory_at_the_same_address_each_time() {
    let server = server("64M");
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    let before = pinned(&server);
    let mut most = 0;
    for round in 0..10 {
        let arena = Arena::new(LEN, IOVA).unwrap();
        controller.map(&arena, MapAccess::FULL).unwrap();
        use_memory(&controller, &mut queues, &arena, round * 1000);
        most = most.max(pinned(&server) - before);
        // Reads are under way when the memory goes.
        let lists: Vec<_> = (0..32).map(|n| prps(&controller, &arena, n * SIZE)).collect();
        let sent: Vec<_> = lists
            .iter()
            .map(|prps| queues.submit(io::read(1, 0, BLOCKS as u32, prps.data())).unwrap())
            .collect();
        controller.unmap(&arena).unwrap();
        let whole = arena.whole();
        whole.write(0, &pattern(0xBAD, LEN));
        for cid in sent {
            queues.wait(cid, controller.timeout()).unwrap();
        }
        assert!(
            whole.to_vec(0, LEN) == pattern(0xBAD, LEN),
            "round {round}: memory changed after it was taken away"
        );
        let gone = run(&controller, &mut queues, io::read(1, 0, 8, Data::Prp(IOVA, 0)));
        assert_eq!(gone, Status::DATA_TRANSFER_ERROR);
        check_works(&controller, &mut queues, 4096, round);
    }
    eprintln!("{most} KiB were pinned at most");
    if most == 0 {
        cannot_run("fixed buffers of a server: the kernel or the limit of locked memory refuses them");
    }
    drop(queues);
    drop(controller);
    assert_nothing_pinned_beyond(&server, 0);
    let controller = server.controller();
    check_works(&controller, &mut io_queues(&controller), 0, 1);
    server.stop();
}

/// What is beyond the budget works as without one.
#[test]
fn the_budget_is_kept() {
    let server = server("2M");
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    let arena = Arena::new(LEN, IOVA).unwrap();
    controller.map(&arena, MapAccess::FULL).unwrap();
    for round in 0..3 {
        use_memory(&controller, &mut queues, &arena, round * 1000);
        assert!(pinned(&server) <= 2048, "{} KiB are pinned", pinned(&server));
    }
    server.stop();
}
