//! Ceph as an operator meets it: `quarry check` tells every mistake on the cluster with its key and its remedy, in time; a server
//! serves an image, and ends when it is asked to, whatever has become of its cluster.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use block::testing::cannot_run;
use ceph_cluster::{Auth, Cluster, Store};
use nvme_driver::Namespace;
use quarry_tests::binary::quarry;
use quarry_tests::{Server, io_queues, pattern};
use tempfile::TempDir;

/// What may come on top of a timeout, on a machine that has much else to do.
const SLACK: Duration = Duration::from_secs(25);

/// A cluster with the image `rbd/vm-1` and its snapshot `daily`, unless Ceph is not installed.
fn cluster() -> Option<Cluster> {
    if let Some(missing) = Cluster::program_is_missing() {
        cannot_run(&format!("ceph: {missing}"));
        return None;
    }
    let cluster =
        Cluster::builder().store(Store::Memory).auth(Auth::Cephx).osds(1).start().expect("a cluster starts");
    for arguments in [&["create", "rbd/vm-1", "--size", "64M"][..], &["snap", "create", "rbd/vm-1@daily"]] {
        cluster.ok("rbd", arguments.iter().copied()).expect("an image");
    }
    Some(cluster)
}

/// What `quarry check` says of a cluster and a device.
struct Check {
    dir: TempDir,
    conf: String,
}

impl Check {
    fn new(cluster: &Cluster) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        Self { dir, conf: cluster.conf().display().to_string() }
    }

    /// Checks an image with these further lines in the cluster's table and in its own.
    fn run(&self, of_cluster: &str, of_device: &str, arguments: &[&str]) -> (Output, String, Duration) {
        let conf =
            if of_cluster.contains("conf =") { String::new() } else { format!("conf = \"{}\"\n", self.conf) };
        let text = format!(
            "[clusters.main]\n{conf}{of_cluster}\n[devices.disk]\ntype = \"rbd\"\n{of_device}\n\
             [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{{ device = \"disk\" }}]\n"
        );
        let file = self.dir.path().join("quarry.toml");
        fs::write(&file, text).expect("the configuration is written");
        let begin = Instant::now();
        let output = Command::new(quarry())
            .arg("check")
            .args(arguments)
            .arg(&file)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("quarry runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output, said, begin.elapsed())
    }

    /// Expects one mistake, with these words in it, within the time.
    #[track_caller]
    fn mistake(&self, of_cluster: &str, of_device: &str, timeout: u64, words: &[&str]) {
        let (output, said, took) = self.run(&format!("timeout = {timeout}\n{of_cluster}"), of_device, &[]);
        println!("{took:?}\n{said}");
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(said.contains(" --> "), "a place in the file: {said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in\n{said}");
        }
        assert!(took < Duration::from_secs(timeout) + SLACK, "{took:?} for a timeout of {timeout} s\n{said}");
        // Whoever checks offline does not learn of it.
        let (output, said, _) = self.run(of_cluster, of_device, &["--offline"]);
        assert_eq!(output.status.code(), Some(0), "{said}");
    }
}

const DISK: &str = "pool = \"rbd\"\nimage = \"vm-1\"";

#[test]
fn mistakes_on_a_cluster_are_told() {
    let Some(cluster) = cluster() else { return };
    let check = Check::new(&cluster);
    let write = |name: &str, text: &str| fs::write(check.dir.path().join(name), text).expect("written");

    for good in
        [DISK, "pool = \"rbd\"\nimage = \"vm-1\"\nsnapshot = \"daily\"", &format!("{DISK}\nlock = \"keep\"")]
    {
        let (output, said, _) = check.run("", good, &[]);
        assert_eq!(output.status.code(), Some(0), "{good}: {said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("good (1 controller, 1 device)"));
    }
    // It has looked, and kept its hands off.
    let locks = cluster.ok("rbd", ["lock", "ls", "rbd/vm-1"]).expect("locks are listed");
    assert_eq!(locks.trim(), "");

    let one =
        |of_cluster: &str, of_device: &str, words: &[&str]| check.mistake(of_cluster, of_device, 10, words);
    // The key of another cluster, say.
    write("wrong.keyring", "[client.admin]\nkey = AQDyE0RnAAAAABAAW1Zzm8Y1Z3VtYk9uZXMxMTExMQ==\n");
    one(
        "keyring = \"wrong.keyring\"",
        DISK,
        &["error: clusters.main: the cluster refuses client.admin", "ceph auth get client.admin"],
    );
    one(
        "user = \"nobody\"",
        DISK,
        &["error: clusters.main: there is no key of client.nobody in ", "name the user whose key it has"],
    );
    write("nobody.keyring", "[client.nobody]\nkey = AQDyE0RnAAAAABAAW1Zzm8Y1Z3VtYk9uZXMxMTExMQ==\n");
    one(
        "user = \"nobody\"\nkeyring = \"nobody.keyring\"",
        DISK,
        &[
            "error: clusters.main: the cluster refuses client.nobody: it does not know the user",
            "ceph auth get client.nobody",
        ],
    );
    one(
        "keyring = \"missing.keyring\"",
        DISK,
        &[
            "error: clusters.main.keyring: the keyring ",
            "missing.keyring cannot be read",
            "ceph auth get client.admin -o ",
        ],
    );
    write("nomon.conf", "[global]\nkeyring = nobody.keyring\n");
    one("conf = \"nomon.conf\"", DISK, &["error: clusters.main.conf: ", "names no monitor", "add `mon_host"]);
    one(
        "conf = \"missing.conf\"",
        DISK,
        &[
            "error: clusters.main.conf: ",
            "missing.conf cannot be read",
            "name the cluster's configuration file",
        ],
    );
    one(
        "options = { ms_typ = \"async+posix\" }",
        DISK,
        &["error: clusters.main.options.ms_typ: this Ceph has no option `ms_typ`", "`ceph config ls`"],
    );
    one(
        "options = { ms_async_op_threads = \"many\" }",
        DISK,
        &["error: clusters.main.options.ms_async_op_threads: ", "cannot be \"many\"", "`ceph config help"],
    );

    one(
        "",
        "pool = \"rdb\"\nimage = \"vm-1\"",
        &["error: devices.disk.pool: ", "no pool `rdb`", "did you mean `rbd`?", "ceph osd pool create rdb"],
    );
    one(
        "",
        &format!("{DISK}\nnamespace = \"tenant\""),
        &["error: devices.disk.namespace: ", "no namespace `tenant`", "rbd namespace create rbd/tenant"],
    );
    one(
        "",
        "pool = \"rbd\"\nimage = \"vm1\"",
        &["error: devices.disk.image: there is no image rbd/vm1", "did you mean `vm-1`?", "rbd create"],
    );
    one(
        "",
        &format!("{DISK}\nsnapshot = \"dialy\""),
        &[
            "error: devices.disk.snapshot: ",
            "no snapshot `dialy`",
            "did you mean `daily`?",
            "rbd snap create rbd/vm-1@dialy",
        ],
    );
    cluster
        .ok("rbd", ["create", "rbd/plain", "--size", "1M", "--image-feature", "layering"])
        .expect("an image");
    one(
        "",
        "pool = \"rbd\"\nimage = \"plain\"\nlock = \"keep\"",
        &["error: devices.disk.image: ", "no exclusive lock to keep", "rbd feature enable rbd/plain"],
    );
    let keyring = cluster.add_user("elsewhere", "allow r", "allow rwx pool=other").expect("a user");
    one(
        &format!("user = \"elsewhere\"\nkeyring = \"{}\"", keyring.display()),
        DISK,
        &[
            "error: devices.disk.pool: client.elsewhere may not use the image `vm-1`",
            "add mon 'profile rbd'",
            "ceph auth get client.elsewhere",
        ],
    );
    // OSDs of Ceph 16 refuse this one, too; those of 18 do not let it connect, and the library goes on trying.
    let keyring = cluster.add_user("monitor-only", "allow r", "").expect("a user");
    let user = format!("user = \"monitor-only\"\nkeyring = \"{}\"", keyring.display());
    check.mistake(&user, DISK, 3, &["error: devices.disk.", "ceph auth get client.monitor-only"]);
    cluster.stop().expect("the cluster ends");
}

#[test]
fn clusters_that_do_not_answer_are_told_in_time() {
    let Some(cluster) = cluster() else { return };
    let check = Check::new(&cluster);
    // Nobody listens on that port: it is the discard protocol's, and reserved for it.
    let dead = format!("[global]\nmon_host = v2:127.0.0.1:9\nkeyring = {}\n", cluster.keyring().display());
    fs::write(check.dir.path().join("dead.conf"), dead).expect("written");
    let no_monitor =
        ["error: clusters.main: no monitor has answered for 2 s", "look whether the monitors run"];
    let refused = [&no_monitor[..], &["127.0.0.1:9: Connection refused"]].concat();
    check.mistake("conf = \"dead.conf\"", DISK, 2, &refused);

    cluster.osd(0).pause().expect("paused");
    check.mistake(
        "",
        DISK,
        3,
        &[
            "error: devices.disk.image: the cluster answers, but has not opened rbd/vm-1 for 3 s",
            "OSDs of the pool `rbd`",
        ],
    );
    cluster.monitor().pause().expect("paused");
    let accepts = [&no_monitor[..], &["accepts connections, but no quorum"]].concat();
    check.mistake("", DISK, 2, &accepts);
    // The server says the same.
    let begin = Instant::now();
    let (dir, conf) = (TempDir::new().expect("a directory"), cluster.conf().display());
    let output = Command::new(quarry())
        .args(["serve", "--socket", "vm.sock", "--disk", &format!("rbd:rbd/vm-1,conf={conf},timeout=2")])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("quarry runs");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(
        no_monitor.iter().all(|word| log.contains(word.trim_start_matches("error: clusters.main: "))),
        "{log}"
    );
    assert!(begin.elapsed() < Duration::from_secs(2) + SLACK, "{:?}", begin.elapsed());
}

#[test]
fn an_image_is_served() {
    let Some(cluster) = cluster() else { return };
    let conf = cluster.conf().display();
    let config = |timeout: u64| {
        format!(
            "[clusters.main]\nconf = \"{conf}\"\ntimeout = {timeout}\n\
             [devices.disk]\ntype = \"rbd\"\npool = \"rbd\"\nimage = \"vm-1\"\n\
             [devices.before]\ntype = \"rbd\"\npool = \"rbd\"\nimage = \"vm-1\"\nsnapshot = \"daily\"\n\
             [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{{ device = \"disk\" }}, {{ device = \"before\" }}]\n"
        )
    };
    let data = pattern(1, 1 << 20);
    let uuid = |controller: &nvme_driver::Controller, nsid| {
        // Namespace Identification Descriptors: the UUID is one of them.
        controller.identify(3, nsid).expect("descriptors")
    };
    let server = Server::config(&config(30), &["vm.sock"]);
    let controller = server.controller();
    let first = uuid(&controller, 1);
    assert_ne!(first, uuid(&controller, 2), "a snapshot is other data than its image");
    let mut disk = Namespace::open(&controller, 1, io_queues(&controller)).expect("a namespace");
    disk.write(8, &data).expect("written");
    disk.flush().expect("flushed");
    drop((disk, controller));
    let log = server.stop();
    assert!(log.contains("ended, everything flushed"), "{log}");

    // Another server, in another place: the same disk with the same data.
    let server = Server::config(&config(6), &["vm.sock"]);
    let controller = server.controller();
    assert_eq!(first, uuid(&controller, 1));
    let mut disk = Namespace::open(&controller, 1, io_queues(&controller)).expect("a namespace");
    let mut found = vec![0; data.len()];
    disk.read(8, &mut found).expect("read");
    assert!(found == data);
    drop(disk);
    let mut before = Namespace::open(&controller, 2, controller.create_queue_pair(2, 64).expect("queues"))
        .expect("a namespace");
    before.read(8, &mut found).expect("read");
    assert!(found.iter().all(|byte| *byte == 0), "the snapshot is older");
    before.write(8, &data).expect_err("a snapshot is read-only");
    drop(before);

    // A write is on its way when the cluster goes away for good.
    cluster.osd(0).pause().expect("paused");
    cluster.monitor().pause().expect("paused");
    let mut queues = controller.create_queue_pair(3, 64).expect("queues");
    let (_memory, prps) = quarry_tests::data::buffer(&controller, 4096);
    queues.submit(nvme_driver::io::write(1, 0, 8, prps.data())).expect("submitted");
    // Its reactor looks at all queues in turn: the write has been taken by the time that this is answered.
    controller.identify(1, 0).expect("admin commands need no cluster");
    controller.identify(1, 0).expect("admin commands need no cluster");
    let begin = Instant::now();
    let (status, log) = server.terminate();
    let took = begin.elapsed();
    println!("{took:?}: {status}\n{log}");
    assert!(
        status.code().is_some_and(|code| code != 0),
        "it must end by itself, and not well: {status}\n{log}"
    );
    assert!(
        log.contains("not flushed") || log.contains("left behind") || log.contains("has not answered"),
        "{log}"
    );
    // 5 s for clients, 5 for their I/O, 6 for the disks.
    assert!(took < Duration::from_secs(16) + SLACK, "{took:?}\n{log}");
}
