//! A cluster as tests use it. Each test has one of its own.

use anyhow::{Result, ensure};
use block::testing::cannot_run;
use ceph_cluster::{Auth, Cluster, Store, available};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// False, and told, where Ceph is not installed.
fn ceph() -> bool {
    available().inspect_err(|missing| cannot_run(&format!("ceph: {missing}"))).is_ok()
}

fn processes(cluster: &Cluster) -> Vec<u32> {
    cluster.daemons().map(|daemon| daemon.pid().expect("runs")).collect()
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Writes through both pools, and reads it back.
fn put_and_get(cluster: &Cluster, object: &str) -> Result<()> {
    for pool in ["rbd", "ec"] {
        let text = format!("{object} in {pool}\n").repeat(1000);
        cluster.ok_with("rados", ["-p", pool, "put", object, "-"], &text)?;
        ensure!(
            cluster.ok("rados", ["-p", pool, "get", object, "-"])? == text,
            "{pool}/{object} is not what was written"
        );
    }
    Ok(())
}

fn comes_and_goes(store: Store) -> Result<()> {
    let cluster = Cluster::builder().store(store).start()?;
    put_and_get(&cluster, "object")?;
    cluster.ok("rbd", ["create", "rbd/image", "--size", "64M", "--data-pool", "ec"])?;
    let listed = cluster.ok("rbd", ["ls"])?;
    assert_eq!(listed.trim(), "image");
    cluster.wait_healthy()?;
    assert_eq!(cluster.ok("ceph", ["fsid"])?.trim(), cluster.fsid());
    let (pids, directory) = (processes(&cluster), cluster.directory().to_owned());
    assert_eq!(pids.len(), 4);
    cluster.stop()?;
    assert!(!pids.into_iter().any(is_there), "a process is left");
    assert!(!directory.exists(), "the directory is left");
    Ok(())
}

#[test]
fn a_cluster_on_disk_comes_and_goes() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    comes_and_goes(Store::Blue)
}

#[test]
fn a_cluster_in_memory_comes_and_goes() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    comes_and_goes(Store::Memory)
}

#[test]
fn dropping_it_is_enough() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    // One OSD, no keys, and a directory whose path is long and has blanks.
    let parent = tempfile::Builder::new().prefix("a cluster ").tempdir()?;
    let directory = parent.path().join("with a path that is too long for a socket ".repeat(4).trim());
    let cluster =
        Cluster::builder().store(Store::Memory).osds(1).auth(Auth::None).directory(&directory).start()?;
    cluster.wait_healthy()?;
    cluster.ok_with("rados", ["-p", "rbd", "put", "object", "-"], "text")?;
    let pools = cluster.ok("rados", ["lspools"])?;
    assert_eq!(pools.trim(), "rbd", "one OSD has no erasure coded pool");
    let pids = processes(&cluster);
    drop(cluster);
    assert!(!pids.into_iter().any(is_there), "a process is left");
    assert!(directory.join("ceph.conf").exists(), "a directory that was given stays");
    let again = Cluster::builder().directory(&directory).start().expect_err("there is one already");
    assert!(again.to_string().contains("not empty"), "{again}");
    Ok(())
}

#[test]
fn io_goes_on_without_an_osd() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let cluster = Cluster::builder().start()?;
    let killed = cluster.osd(1);
    let first = killed.pid();
    killed.kill()?;
    assert_eq!(killed.pid(), None);
    cluster.wait_down(1)?;
    assert_eq!(cluster.osds_up()?, [0, 2]);
    put_and_get(&cluster, "degraded")?;

    killed.start()?;
    killed.wait_up()?;
    cluster.wait_healthy()?;
    assert_ne!(killed.pid(), first);
    // It has what was written without it: the others alone could not give it from the erasure coded pool.
    cluster.osd(0).kill()?;
    cluster.wait_down(0)?;
    let text = cluster.ok("rados", ["-p", "ec", "get", "degraded", "-"])?;
    assert_eq!(text, "degraded in ec\n".repeat(1000));
    cluster.stop()
}

#[test]
fn an_osd_that_is_halted_is_left_out() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let cluster = Cluster::builder().store(Store::Memory).start()?;
    cluster.osd(2).pause()?;
    cluster.wait_down(2)?;
    put_and_get(&cluster, "object")?;
    cluster.osd(2).resume()?;
    cluster.wait_healthy()?;
    cluster.stop()
}

#[test]
fn an_osd_in_memory_begins_empty_and_catches_up() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let cluster = Cluster::builder().store(Store::Memory).start()?;
    put_and_get(&cluster, "object")?;
    cluster.osd(0).kill()?;
    cluster.wait_down(0)?;
    cluster.osd(0).start()?;
    cluster.osd(0).wait_up()?;
    cluster.wait_healthy()?;
    put_and_get(&cluster, "object")?;
    cluster.stop()
}

#[test]
fn a_monitor_that_is_halted_keeps_newcomers_out_until_it_goes_on() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let cluster = Cluster::builder().store(Store::Memory).start()?;
    cluster.monitor().pause()?;
    let mut late = cluster.command("rados").args(["-p", "rbd", "ls"]).stdout(Stdio::null()).spawn()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(late.try_wait()?, None, "nobody can have let it in");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.monitor().resume()?;
    assert!(late.wait()?.success());

    // Killed and started, it has its port and its state again.
    cluster.monitor().kill()?;
    cluster.monitor().start()?;
    cluster.monitor().wait_up()?;
    put_and_get(&cluster, "object")?;
    cluster.wait_healthy()?;
    cluster.stop()
}

#[test]
fn keys_decide_who_may_do_what() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let cluster = Cluster::builder().store(Store::Memory).start()?;
    let reader = cluster.add_user("reader", "allow r", "allow r pool=rbd")?;
    let stranger = cluster.directory().join("keyring.stranger");
    let other = cluster.add_user("other", "allow r", "allow rwx")?;
    std::fs::write(&stranger, std::fs::read_to_string(other)?.replace("client.other", "client.reader"))?;
    let attempt = |keyring: &Path, args: &[&str]| {
        let mut command = cluster.command("rados");
        command
            .args(["-n", "client.reader", "--keyring"])
            .arg(keyring)
            .args(["-p", "rbd"])
            .args(args)
            .output()
    };
    assert!(attempt(&reader, &["ls"])?.status.success());
    let denied = |output: std::process::Output| {
        !output.status.success()
            && String::from_utf8_lossy(&output.stderr).contains("Operation not permitted")
    };
    assert!(denied(attempt(&reader, &["create", "object"])?), "it may only read");
    let refused = attempt(&stranger, &["ls"])?;
    assert!(!refused.status.success(), "with somebody else's key");
    cluster.stop()
}

#[test]
fn options_take_the_place_of_defaults() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let cluster =
        Cluster::builder().store(Store::Memory).osds(2).option("osd heartbeat grace", "77").start()?;
    let answer =
        cluster.osd(0).ask(&serde_json::json!({ "prefix": "config get", "var": "osd_heartbeat_grace" }))?;
    assert_eq!(
        answer["osd_heartbeat_grace"].as_str().map(|text| text.starts_with("77")),
        Some(true),
        "{answer}"
    );
    cluster.stop()
}
