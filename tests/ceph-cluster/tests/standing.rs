//! Clusters that outlive the program that started them, and `ceph-cluster run`.

use anyhow::Result;
use block::testing::cannot_run;
use ceph_cluster::{Cluster, Standing, Store, available};
use std::path::Path;
use std::process::Command;

fn ceph() -> bool {
    available().inspect_err(|missing| cannot_run(&format!("ceph: {missing}"))).is_ok()
}

/// Takes a cluster down whatever becomes of the test.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let _ = Cluster::down(self.0);
    }
}

#[test]
fn up_attach_down() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("target/my cluster");
    assert!(!Cluster::down(&directory)?, "there is none");
    assert!(matches!(Cluster::look(&directory)?, Standing::Absent));
    assert!(Cluster::attach(&directory).is_err());

    let _down = Down(&directory);
    let small = || Cluster::builder().store(Store::Memory).osds(2);
    let cluster = Cluster::up(&directory, small())?;
    let pid = cluster.monitor().pid();
    drop(cluster);
    let twice = Cluster::up(&directory, small()).expect_err("it runs");
    assert!(twice.to_string().contains("already"), "{twice}");

    let cluster = Cluster::attach(&directory)?;
    assert_eq!(cluster.monitor().pid(), pid);
    assert_eq!(cluster.osds(), 2);
    cluster.ok_with("rados", ["-p", "rbd", "put", "object", "-"], "text")?;

    // Another's process under a number that was an OSD's is not touched.
    cluster.osd(1).kill()?;
    let mut innocent = Command::new("sleep").arg("600").spawn()?;
    let record = std::fs::read_to_string(directory.join("run/osd.0.process"))?;
    let (_, rest) = record.split_once(' ').expect("a process id and more");
    std::fs::write(directory.join("run/osd.1.process"), format!("{} {rest}", innocent.id()))?;
    match Cluster::look(&directory)? {
        Standing::Broken(missing) => assert_eq!(missing, ["osd.1"]),
        other => panic!("{other:?}"),
    }
    let broken = Cluster::up(&directory, small()).expect_err("a part of it runs");
    assert!(broken.to_string().contains("in part"), "{broken}");

    assert!(Cluster::down(&directory)?);
    assert!(!directory.exists());
    assert_eq!(innocent.try_wait()?, None, "it was signalled");
    innocent.kill()?;
    innocent.wait()?;
    assert!(!Cluster::down(&directory)?);
    Ok(())
}

#[test]
fn a_dead_cluster_is_recognised_and_replaced() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("cluster");
    let _down = Down(&directory);
    let small = || Cluster::builder().store(Store::Memory).osds(1);
    let cluster = Cluster::up(&directory, small())?;
    let fsid = cluster.fsid().to_owned();
    for daemon in cluster.daemons() {
        daemon.kill()?;
    }
    // As after a restart of the machine, where another process has the number.
    let record = format!("{} 1 00000000-0000-0000-0000-000000000000\n", std::process::id());
    std::fs::write(directory.join("run/mon.a.process"), record)?;
    assert!(matches!(Cluster::look(&directory)?, Standing::Dead));
    let dead = Cluster::attach(&directory).expect_err("nothing runs");
    assert!(dead.to_string().contains("does not run any more"), "{dead}");

    let cluster = Cluster::up(&directory, small())?;
    assert_ne!(cluster.fsid(), fsid);
    assert!(Cluster::down(&directory)?);
    assert!(!directory.exists());
    Ok(())
}

#[test]
fn run_ends_as_its_command_does() -> Result<()> {
    if !ceph() {
        return Ok(());
    }
    let parent = tempfile::tempdir()?;
    let directory = parent.path().join("cluster");
    let output = Command::new(env!("CARGO_BIN_EXE_ceph-cluster"))
        .args(["run", "--memory", "--osds", "1", "--no-auth", "--option", "osd_max_backfills=3", "--dir"])
        .arg(&directory)
        .args([
            "--",
            "sh",
            "-c",
            "rados lspools && cat \"$(dirname \"$CEPH_CONF\")/run/mon.a.process\" && exit 7",
        ])
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(7), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("rbd"));
    let pid = lines.next().and_then(|line| line.split(' ').next()).expect("the monitor's process id");
    assert!(!Path::new("/proc").join(pid).exists(), "the monitor is left");
    Ok(())
}
