//! The control socket of a running server: what it tells and changes, and who cannot hold it up.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use nvme_driver::Options;
use quarry_tests::control::Client;
use quarry_tests::data::check_works;
use quarry_tests::{PATIENCE, Server, io_queues};
use serde_json::{Value, json};

const CONFIG: &str = r#"
[reactors]
mode = "adaptive"
[control]
socket = "control.sock"
[devices.disk]
type = "memory"
size = "16M"
[devices.other]
type = "memory"
size = "16M"
[controllers.vm]
socket = "vm.sock"
namespaces = [{ device = "disk", limits = { iops = 100_000 } }]
[controllers.trapped]
socket = "trapped.sock"
doorbells = "trapped"
namespaces = [{ device = "other" }]
"#;

fn server() -> Server {
    Server::config(CONFIG, &["vm.sock", "trapped.sock", "control.sock"])
}

fn error(answer: &Value) -> (i64, &str) {
    (
        answer["error"]["code"].as_i64().expect("a code"),
        answer["error"]["message"].as_str().expect("a message"),
    )
}

#[test]
fn shows_clients_and_what_they_do() {
    let server = server();
    let mut client = Client::connect(&server);
    let status = client.get("status", json!({}));
    assert_eq!(status["pid"], server.pid());
    assert_eq!(
        (&status["reactors"][0]["name"], &status["reactors"][0]["mode"]),
        (&json!("reactor-0"), &json!("adaptive"))
    );
    let vm = |status: &Value| status["controllers"][1].clone();
    assert_eq!(vm(&status)["name"], "vm");
    assert_eq!(vm(&status)["socket"], server.socket("vm.sock").to_string_lossy().as_ref());
    assert_eq!((&vm(&status)["connected"], &vm(&status)["enabled"]), (&json!(false), &json!(false)));

    let controller = server.controller();
    let mut queues = io_queues(&controller);
    check_works(&controller, &mut queues, 8, 1);
    let vm_now = vm(&client.get("status", json!({})));
    assert_eq!((&vm_now["connected"], &vm_now["enabled"]), (&json!(true), &json!(true)));
    assert_eq!(vm_now["counters"]["writes"], 1);
    assert_eq!(vm_now["counters"]["bytes_read"], 4096);

    drop((queues, controller));
    let start = Instant::now();
    while vm(&client.get("status", json!({})))["connected"] != json!(false) {
        assert!(start.elapsed() < PATIENCE, "the client is gone");
    }
    server.stop();
}

#[test]
fn a_controller_with_trapped_doorbells_works() {
    let server = server();
    let controller = server.controller_with("trapped.sock", Options::default());
    let mut queues = io_queues(&controller);
    for seed in 0..20 {
        check_works(&controller, &mut queues, 8 * seed, seed);
    }
    drop((queues, controller));
    server.stop();
}

/// All modes, one after the other, while a client works.
#[test]
fn trapped_doorbells_work_in_every_mode() {
    let server = Server::config(
        "[reactors]\nmode = \"interrupt\"\n[control]\nsocket = \"control.sock\"\n\
         [devices.disk]\ntype = \"memory\"\nsize = \"16M\"\n\
         [controllers.vm]\nsocket = \"vm.sock\"\ndoorbells = \"trapped\"\nnamespaces = [{ device = \"disk\" }]\n",
        &["vm.sock", "control.sock"],
    );
    let mut client = Client::connect(&server);
    assert_eq!(client.get("status", json!({}))["reactors"][0]["mode"], "interrupt");
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    for (seed, mode) in ["interrupt", "poll", "interrupt", "adaptive"].iter().cycle().take(20).enumerate() {
        client.get("reactor.set_mode", json!({ "reactor": 0, "mode": mode }));
        check_works(&controller, &mut queues, 8 * seed as u64, seed as u64);
    }
    drop((queues, controller));
    server.stop();
}

#[test]
fn queues_move_while_they_work() {
    let server = Server::config(
        "[reactors]\ncount = 2\n[control]\nsocket = \"control.sock\"\n\
         [devices.disk]\ntype = \"memory\"\nsize = \"16M\"\n\
         [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{ device = \"disk\" }]\n",
        &["vm.sock", "control.sock"],
    );
    let mut client = Client::connect(&server);
    let to = |reactor: &str| json!({ "controller": "vm", "cqid": 1, "reactor": reactor });
    let early = client.ask("queue.move", to("reactor-0"));
    assert!(error(&early).1.contains("not enabled"), "{early}");
    let controller = server.controller();
    let mut queues = io_queues(&controller);
    for seed in 0..10 {
        let reactor = format!("reactor-{}", seed % 2);
        assert_eq!(client.get("queue.move", to(&reactor)), to(&reactor));
        let shown = client.get("status", json!({}))["controllers"][0]["queues"].clone();
        assert_eq!(shown, json!([{ "sqid": 1, "cqid": 1, "reactor": reactor }]));
        check_works(&controller, &mut queues, 8 * seed, seed);
    }
    let missing = client.ask("queue.move", json!({ "controller": "vm", "cqid": 2, "reactor": 0 }));
    assert!(error(&missing).1.contains("no such completion queue"), "{missing}");
    drop((queues, controller));
    server.stop();
}

#[test]
fn changes_modes_and_limits() {
    let server = server();
    let mut client = Client::connect(&server);
    let set = json!({ "reactor": "reactor-0", "mode": "poll" });
    assert_eq!(client.get("reactor.set_mode", set.clone()), set);
    assert_eq!(client.get("status", json!({}))["reactors"][0]["mode"], "poll");
    let refused = client.ask("reactor.set_mode", json!({ "reactor": 0, "mode": "interrupt" }));
    let (code, message) = error(&refused);
    assert!(code == -32000 && message.contains("`vm` has mapped doorbells"), "{message}");

    let limits = client.get("limits.get", json!({ "controller": "vm", "nsid": 1 }));
    assert_eq!((&limits["iops"], &limits["burst_ms"]), (&json!(100_000), &json!(100)));
    let limits = client.get("limits.set", json!({ "controller": "vm", "bandwidth": "100M", "burst_ms": 20 }));
    assert_eq!((&limits["bandwidth"], &limits["burst_ms"]), (&json!(100 << 20), &json!(20)));
    // For all who ask.
    assert_eq!(Client::connect(&server).get("limits.get", json!({ "controller": "vm" })), limits);
    let log = server.stop();
    assert!(log.contains("mode changed by the control socket"), "{log}");
}

#[test]
fn belongs_to_its_owner_and_goes_with_the_server() {
    let server = server();
    let path = server.socket("control.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = Client::connect(&server);
    client.get("status", json!({}));
    let dir = server.dir().to_owned();
    // A client that stays is no reason to stay.
    let pid = rustix::process::Pid::from_raw(server.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(client.is_closed());
    server.wait_for_log("everything flushed");
    assert!(!dir.join("control.sock").exists());
}

#[test]
fn mistakes_are_answered() {
    let server = server();
    let mut client = Client::connect(&server);
    for (line, code, part) in [
        (&b"garbage\n"[..], -32700, "not JSON"),
        (b"\xff\xfe\x00{}\n", -32700, "not JSON"),
        (b"{}\n", -32600, "add \"jsonrpc\""),
        (b"[]\n", -32600, "one request a line"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"stats\"}\n", -32601, "did you mean `status`?"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"params\":{\"a\":1}}\r\n", -32602, "`a`"),
    ] {
        client.send(line);
        let answer = client.answer();
        let (found, message) = error(&answer);
        assert!(found == code && message.contains(part), "{answer}");
    }
    // Empty lines and notifications have no answer, and the end of what a client sends ends a line.
    client.send(b"\n \r\n{\"jsonrpc\":\"2.0\",\"method\":\"status\"}\n{\"jsonrpc\":\"2.0\",\"id\":\"last\",\"method\":\"status\"}");
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.answer()["id"], "last");
    assert!(client.is_closed());
    server.stop();
}

#[test]
fn a_line_has_an_end() {
    let server = server();
    let mut client = Client::connect(&server);
    // The longest that there can be, with its end.
    let mut longest =
        format!("{:65535}", "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}").into_bytes();
    longest.push(b'\n');
    client.send(&longest);
    assert_eq!(client.answer()["result"]["pid"], server.pid());
    longest.insert(0, b' ');
    client.send(&longest);
    let answer = client.answer();
    assert!(error(&answer).1.contains("65536 bytes at most"), "{answer}");
    assert!(client.is_closed());
    server.stop();
}

#[test]
fn clients_do_not_hold_each_other_up() {
    let server = server();
    // One that never ends its line, and one that reads nothing of what it asks for.
    let mut silent = Client::connect(&server);
    silent.send(b"{\"jsonrpc\":");
    let mut deaf = Client::connect(&server);
    deaf.stream().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n".repeat(100);
    while deaf.stream().write(&request).is_ok() {}
    let mut client = Client::connect(&server);
    for _ in 0..100 {
        assert_eq!(client.get("status", json!({}))["pid"], server.pid());
    }
    let controller = server.controller();
    check_works(&controller, &mut io_queues(&controller), 0, 1);
    drop(controller);
    server.stop();
}

#[test]
fn too_many_clients_are_turned_away() {
    let server = server();
    let mut clients: Vec<Client> = (0..32).map(|_| Client::connect(&server)).collect();
    for client in &mut clients {
        client.get("status", json!({}));
    }
    let mut another = Client::connect(&server);
    let answer = another.answer();
    assert!(error(&answer).1.contains("32 clients are connected"), "{answer}");
    assert!(another.is_closed());
    // Those that are there do not notice; and with one less there is room.
    clients.pop();
    for client in &mut clients {
        client.get("status", json!({}));
    }
    let start = Instant::now();
    loop {
        let mut another = Client::connect(&server);
        // Turned away once more while the server has not yet seen the end of the other one.
        if another.stream().write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n").is_ok()
            && another.answer().get("result").is_some()
        {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "no room");
    }
    server.stop();
}
