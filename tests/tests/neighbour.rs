//! A neighbour on the same reactor that wants everything: how much of it gets in front of one who wants little.

use nvme_driver::{Controller, Options, Prps, QueuePair, io};
use quarry_tests::Server;

/// Both controllers on one reactor.
const CONFIG: &str = r#"
    [reactors]
    count = 1
    [devices.one]
    type = "memory"
    size = "64M"
    [devices.two]
    type = "memory"
    size = "64M"
    [controllers.flood]
    socket = "flood.sock"
    namespaces = [{ device = "one" }]
    [controllers.quiet]
    socket = "quiet.sock"
    namespaces = [{ device = "two" }]
"#;

/// Queues of the neighbour, commands of 128 KiB in each, and how often the other one wants 4 KiB meanwhile.
const QUEUES: u16 = 8;
const DEPTH: u16 = 63;
const ROUNDS: usize = 200;

/// Sends commands until each queue is full; returns how many had completed.
fn flood(pairs: &mut [QueuePair], prps: &Prps) -> usize {
    let mut completed = 0;
    for pair in pairs {
        completed += pair.poll(usize::MAX, |completion| assert!(completion.status().is_success())).unwrap();
        let mut pushed = false;
        while pair.sq.free() > 64 - u32::from(DEPTH) {
            pair.push(&io::read(1, 0, 256, prps.data())).unwrap();
            pushed = true;
        }
        if pushed {
            pair.ring().unwrap();
        }
    }
    completed
}

#[test]
fn a_flooding_neighbour_gets_no_more_than_its_turns() {
    let server = Server::config(CONFIG, &["flood.sock", "quiet.sock"]);
    let open = |socket| server.controller_with(socket, Options::default());
    let (flooding, quiet): (Controller, Controller) = (open("flood.sock"), open("quiet.sock"));
    flooding.request_queues(QUEUES).unwrap();
    let mut pairs: Vec<_> = (1..=QUEUES).map(|id| flooding.create_queue_pair(id, 64).unwrap()).collect();
    let buffer = flooding.arena().alloc(128 << 10).unwrap();
    let prps = Prps::new(flooding.arena(), buffer.iova(), 128 << 10).unwrap();
    quiet.request_queues(1).unwrap();
    let mut queue = quiet.create_queue_pair(1, 16).unwrap();
    let own = quiet.arena().alloc(4096).unwrap();
    let own_prps = Prps::new(quiet.arena(), own.iova(), 4096).unwrap();
    // All in one thread, so that what is counted does not depend on who has a CPU when.
    let mut in_front = Vec::new();
    for _ in 0..ROUNDS {
        flood(&mut pairs, &prps);
        queue.push(&io::read(1, 0, 8, own_prps.data())).unwrap();
        queue.ring().unwrap();
        let mut count = 0;
        while queue.poll(1, |completion| assert!(completion.status().is_success())).unwrap() == 0 {
            count += flood(&mut pairs, &prps);
        }
        in_front.push(count);
    }
    in_front.sort_unstable();
    let (middle, most) = (in_front[ROUNDS / 2], in_front[ROUNDS - 1]);
    println!(
        "of {} commands of the neighbour's, {middle} came before the other's one; {most} at most",
        QUEUES * DEPTH
    );
    // Four of 128 KiB are a turn's; the other's command may come at the beginning of one, and what was complete before it
    // was sent counts, too.
    assert!(middle <= 24, "{middle} of the neighbour's commands before one of the other's");
    drop((pairs, queue));
    server.stop();
}
