//! A neighbour on the same reactor that wants everything: how much of it gets in front of one who wants little.

use nvme_driver::{Data, Options, PAGE, Prps, io};
use quarry_tests::Server;

/// Two controllers on one reactor, which show the same disk: what is read from it tells who was served first.
const CONFIG: &str = r#"
    [reactors]
    count = 1
    [devices.disk]
    type = "memory"
    size = "64M"
    [subsystems.both]
    namespaces = [{ device = "disk" }]
    [controllers.flood]
    socket = "flood.sock"
    subsystem = "both"
    [controllers.quiet]
    socket = "quiet.sock"
    subsystem = "both"
"#;

/// Queues of the neighbour, commands of 128 KiB in each, and how often the other one wants 4 KiB beside them.
const QUEUES: u16 = 8;
const DEPTH: u16 = 63;
const ROUNDS: usize = 200;
const LARGE: usize = 128 << 10;

/// When who looks at completions depends on the machine. In which order they came to be does not: the quiet one writes, and
/// each of the neighbour's reads returns what was there before it or after it.
#[test]
fn a_flooding_neighbour_gets_no_more_than_its_turns() {
    let server = Server::config(CONFIG, &["flood.sock", "quiet.sock"]);
    let open = |socket| server.controller_with(socket, Options::default());
    let (flooding, quiet) = (open("flood.sock"), open("quiet.sock"));
    flooding.request_queues(QUEUES).unwrap();
    let mut pairs: Vec<_> = (1..=QUEUES).map(|id| flooding.create_queue_pair(id, 64).unwrap()).collect();
    // Each has a first page of its own; they share the others.
    let commands = usize::from(QUEUES * DEPTH);
    let firsts = flooding.arena().alloc(commands * PAGE).unwrap();
    let rest = flooding.arena().alloc(LARGE).unwrap();
    let prps = Prps::new(flooding.arena(), rest.iova(), LARGE).unwrap();
    let Data::Prp(_, list) = prps.data() else { panic!("a list") };
    quiet.request_queues(1).unwrap();
    let mut queue = quiet.create_queue_pair(1, 16).unwrap();
    let own = quiet.arena().alloc(PAGE).unwrap();
    let own_prps = Prps::new(quiet.arena(), own.iova(), PAGE).unwrap();
    let mut in_front = Vec::new();
    for round in 1..=ROUNDS as u64 {
        for (at, pair) in pairs.iter_mut().enumerate() {
            for depth in 0..usize::from(DEPTH) {
                let first = firsts.iova() + ((at * usize::from(DEPTH) + depth) * PAGE) as u64;
                pair.push(&io::read(1, 0, (LARGE / 512) as u32, Data::Prp(first, list))).unwrap();
            }
        }
        own.write(0, &round.to_le_bytes());
        queue.push(&io::write(1, 0, (PAGE / 512) as u32, own_prps.data())).unwrap();
        // All at once, so that what the neighbour gets before is what it was given first, not what it had time for.
        pairs.iter().for_each(|pair| pair.ring().unwrap());
        queue.ring().unwrap();
        let mut left = commands + 1;
        while left > 0 {
            for pair in pairs.iter_mut().chain([&mut queue]) {
                left -= pair.poll(64, |completion| assert!(completion.status().is_success())).unwrap();
            }
        }
        let values = (0..commands).map(|at| firsts.to_vec(at * PAGE, 8));
        let before = values.filter(|value| *value == (round - 1).to_le_bytes()).count();
        in_front.push(before);
    }
    in_front.sort_unstable();
    let (middle, most) = (in_front[ROUNDS / 2], in_front[ROUNDS - 1]);
    println!(
        "of {commands} commands of the neighbour's, {middle} came before the other's one; {most} at most"
    );
    // Four of 128 KiB are a turn's, and the other's command may come at the beginning of one.
    assert!(middle <= 24, "{middle} of the neighbour's commands before one of the other's");
    drop((pairs, queue));
    server.stop();
}
