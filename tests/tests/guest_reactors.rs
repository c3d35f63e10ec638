//! A guest with four queues on two reactors, between which they move while fio verifies what it wrote.

use qemu_configs::Guest;
use quarry_tests::control::Client;
use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};
use serde_json::{Value, json};

const CONFIG: &str = r#"
[reactors]
count = 2
[control]
socket = "control.sock"
[devices.disk]
type = "memory"
size = "128M"
[controllers.vm]
socket = "vm.sock"
namespaces = [{ device = "disk" }]
"#;

/// The reactor of each completion queue.
fn places(control: &mut Client) -> Vec<(u64, String)> {
    let status = control.get("status", json!({}));
    let queues = status["controllers"][0]["queues"].as_array().expect("queues").clone();
    let place = |queue: &Value| Some((queue["cqid"].as_u64()?, queue["reactor"].as_str()?.to_owned()));
    queues.iter().map(|queue| place(queue).expect("a queue and its reactor")).collect()
}

#[test]
fn fio_verifies_while_queues_move_between_two_reactors() {
    let server = Server::config(CONFIG, &["vm.sock", "control.sock"]);
    let vm = Vm::start(Guest::builder().vcpus(4).disk(server.socket("vm.sock")));
    vm.wait_for("[ -b /dev/nvme0n1 ]");
    let mut control = Client::connect(&server);
    let before = places(&mut control);
    assert_eq!(before.len(), 4, "a queue for each CPU: {before:?}");
    for reactor in ["reactor-0", "reactor-1"] {
        assert_eq!(before.iter().filter(|place| place.1 == reactor).count(), 2, "{before:?}");
    }
    let fio = vm.begin_fio(
        "--filename=/dev/nvme0n1 --rw=randwrite --bssplit=512/20:4k/40:20k/20:256k/20 --iodepth=16 --size=24M \
         --numjobs=4 --offset_increment=32M --cpus_allowed=0-3 --cpus_allowed_policy=split",
    );
    // As long as fio is at work, and some rounds in any case: each queue to and fro, and the modes in between.
    std::thread::scope(|scope| {
        let fio = scope.spawn(|| vm.end_fio(fio));
        let mut moves = 0;
        while moves < 16 || !fio.is_finished() {
            for (cqid, reactor) in places(&mut control) {
                let other = if reactor == "reactor-0" { "reactor-1" } else { "reactor-0" };
                control.get("queue.move", json!({ "controller": "vm", "cqid": cqid, "reactor": other }));
                moves += 1;
            }
            // Each reactor in its turn, to one mode and back.
            let mode = if moves / 8 % 2 == 0 { "poll" } else { "adaptive" };
            control.get("reactor.set_mode", json!({ "reactor": moves / 4 % 2, "mode": mode }));
        }
        println!("{moves} moves");
    });
    for reactor in 0..2 {
        control.get("reactor.set_mode", json!({ "reactor": reactor, "mode": "adaptive" }));
    }
    vm.fio("--filename=/dev/nvme0n1 --rw=randrw --bs=4k --iodepth=8 --size=4M --numjobs=4 --offset_increment=32M");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&server.stop());
}
