//! Methods asked of a server in this process, without its socket.

use super::*;
use crate::config::{Machine, load};
use crate::server::Server;

/// Two reactors; a subsystem that two controllers share, one of them with mapped doorbells on both reactors, the other
/// with trapped ones on the second.
const CONFIG: &str = r#"
[reactors]
count = 2
mode = ["adaptive", "poll"]
[devices.disk]
type = "null"
size = "1T"
[devices.own]
type = "null"
size = "1T"
[subsystems.disks]
namespaces = [{ device = "disk", nsid = 3, limits = { iops = 5 } }]
[controllers.mapped]
socket = "mapped.sock"
subsystem = "disks"
reactors = [0]
[controllers.trapped]
socket = "trapped.sock"
subsystem = "disks"
reactors = [1]
doorbells = "trapped"
[controllers.own]
socket = "own.sock"
namespaces = [{ device = "own" }]
reactors = [0]
limits = { bandwidth = "1M" }
"#;

/// Runs `test` with the server of [`CONFIG`].
fn with_server(test: impl AsyncFnOnce(&Control)) {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("quarry.toml");
    let machine = Machine { cpus: vec![0, 1] };
    let checked = load(&name.to_string_lossy(), CONFIG, &machine).unwrap_or_else(|report| panic!("{report}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::start(&checked.config).unwrap();
        test(&server.control().clone()).await;
        server.run(async {}).await.unwrap();
    });
}

async fn ask(control: &Control, method: &str, params: Value) -> Result<Value, String> {
    let line = json!({ "jsonrpc": "2.0", "id": "x", "method": method, "params": params }).to_string();
    let answer = control.answer(line.as_bytes()).await.expect("an answer");
    assert_eq!(answer.last(), Some(&b'\n'));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!("x")));
    match answer.get("error") {
        None => Ok(answer["result"].clone()),
        Some(error) => Err(error["message"].as_str().unwrap().to_owned()),
    }
}

#[test]
fn status_shows_what_is_there() {
    with_server(async |control| {
        let status = ask(control, "status", json!({})).await.unwrap();
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(status["pid"], std::process::id());
        assert_eq!(status["reactors"][0]["name"], "reactor-0");
        assert_eq!(status["reactors"][0]["mode"], "adaptive");
        assert_eq!(status["reactors"][1]["mode"], "poll");
        let names: Vec<&Value> =
            status["controllers"].as_array().unwrap().iter().map(|controller| &controller["name"]).collect();
        assert_eq!(names, ["mapped", "own", "trapped"]);
        let mapped = &status["controllers"][0];
        assert_eq!((&mapped["connected"], &mapped["enabled"]), (&json!(false), &json!(false)));
        assert_eq!((&mapped["doorbells"], &mapped["subsystem"]), (&json!("mapped"), &json!("disks")));
        assert_eq!(mapped["reactors"], json!(["reactor-0"]));
        assert!(mapped["socket"].as_str().unwrap().ends_with("/mapped.sock"));
        assert_eq!(mapped["queues"], json!([]));
        let namespace = &mapped["namespaces"][0];
        assert_eq!((&namespace["nsid"], &namespace["device"]), (&json!(3), &json!("disk")));
        assert_eq!(namespace["limits"]["iops"], 5);
        assert_eq!(mapped["counters"]["reads"], 0);
        assert_eq!(status["controllers"][1]["limits"]["bandwidth"], 1 << 20);
        assert_eq!(status["controllers"][2]["doorbells"], "trapped");
    });
}

#[test]
fn modes_change_unless_a_doorbell_would_go_unseen() {
    with_server(async |control| {
        let set = async |reactor: Value, mode: &str| {
            ask(control, "reactor.set_mode", json!({ "reactor": reactor, "mode": mode })).await
        };
        assert_eq!(
            set(json!("reactor-0"), "poll").await,
            Ok(json!({ "reactor": "reactor-0", "mode": "poll" }))
        );
        assert_eq!(control.reactors[0].mode(), Mode::Poll);
        let refused = set(json!(0), "interrupt").await.unwrap_err();
        assert!(refused.contains("`mapped` has mapped doorbells on reactor-0"), "{refused}");
        assert!(refused.contains("doorbells = \"trapped\""), "{refused}");
        assert_eq!(control.reactors[0].mode(), Mode::Poll);
        set(json!("1"), "interrupt").await.unwrap();
        assert_eq!(control.reactors[1].mode(), Mode::Interrupt);
        let unknown = set(json!(1), "intrrupt").await.unwrap_err();
        assert!(unknown.contains("did you mean `interrupt`?"), "{unknown}");
        let unknown = set(json!("reactor-7"), "poll").await.unwrap_err();
        assert!(unknown.contains("there is no reactor `reactor-7`"), "{unknown}");
    });
}

#[test]
fn limits_of_controllers_and_namespaces() {
    with_server(async |control| {
        let set = async |params: Value| ask(control, "limits.set", params).await;
        let get = async |params: Value| ask(control, "limits.get", params).await;
        let own = set(json!({ "controller": "own", "iops": 7 })).await.unwrap();
        assert_eq!(
            (&own["iops"], &own["bandwidth"], &own["read_iops"]),
            (&json!(7), &json!(1 << 20), &Value::Null)
        );
        assert_eq!(get(json!({ "controller": "own" })).await.unwrap(), own);
        // The namespace of a shared subsystem has one limit, however it is named.
        set(json!({ "subsystem": "disks", "nsid": 3, "iops": null, "write_bandwidth": "2K" })).await.unwrap();
        for controller in ["mapped", "trapped"] {
            let limits = get(json!({ "controller": controller, "nsid": 3 })).await.unwrap();
            assert_eq!((&limits["iops"], &limits["write_bandwidth"]), (&Value::Null, &json!(2048)));
        }
        for (params, part) in [
            (json!({}), "the parameter `controller` is missing"),
            (json!({ "controller": "owm" }), "did you mean `own`?"),
            (json!({ "controller": "own", "subsystem": "disks" }), "keep one of them"),
            (json!({ "subsystem": "disks" }), "the parameter `nsid` is missing"),
            (json!({ "subsystem": "diks", "nsid": 3 }), "did you mean `disks`?"),
            (json!({ "subsystem": "disks", "nsid": 4 }), "there are: 3"),
            (json!({ "controller": "own", "nsid": "1" }), "`nsid` must be a whole number"),
            (json!({ "controller": ["own"] }), "`controller` must be a string"),
            (json!({ "controller": "own", "iosp": 1 }), "there is no parameter `iosp`"),
            (json!({ "controller": "own", "iops": 0 }), "from 1 to"),
            (json!({ "controller": "own" }), "name a limit"),
        ] {
            let failure = set(params.clone()).await.unwrap_err();
            assert!(failure.contains(part), "{params}: {failure}");
        }
        // Nothing of a request that fails is done.
        set(json!({ "controller": "own", "iops": 9, "write_iops": 0 })).await.unwrap_err();
        assert_eq!(get(json!({ "controller": "own" })).await.unwrap(), own);
    });
}

#[test]
fn queues_move_between_the_reactors_of_their_controller() {
    with_server(async |control| {
        let params = |controller: &str, cqid: u32, reactor: &str| json!({ "controller": controller, "cqid": cqid, "reactor": reactor });
        for (params, part) in [
            (params("own", 1, "reactor-1"), "is not on reactor-1; move to one of its own (reactor-0)"),
            (params("own", 70_000, "reactor-0"), "`cqid` must be a whole number"),
            (params("own", 1, "reactor-0"), "is not enabled"),
            (params("", 1, "reactor-0"), "there is no controller ``"),
        ] {
            let failure = ask(control, "queue.move", params.clone()).await.unwrap_err();
            assert!(failure.contains(part), "{params}: {failure}");
        }
    });
}

#[test]
fn notifications_get_no_answer_and_unknown_methods_a_hint() {
    with_server(async |control| {
        assert_eq!(control.answer(br#"{"jsonrpc":"2.0","method":"status"}"#).await, None);
        let unknown = ask(control, "statsu", json!({})).await.unwrap_err();
        assert!(unknown.contains("did you mean `status`?"), "{unknown}");
        let unknown = ask(control, "status", json!({ "x": 1 })).await.unwrap_err();
        assert!(unknown.contains("there is no parameter `x`: remove it"), "{unknown}");
    });
}
