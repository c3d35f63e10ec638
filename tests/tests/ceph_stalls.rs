//! A cluster that does not answer, through the whole program: only its own I/O waits.

use std::time::Duration;

use ceph_cluster::{Cluster, Store};
use nvme_driver::{Namespace, Options, io};
use nvme_spec::Status;
use quarry_tests::ceph::Bed;
use quarry_tests::control::Client;
use quarry_tests::data::{buffer, check_works};
use quarry_tests::{Server, io_queues, status};
use serde_json::json;

/// Two disks on the cluster and one that is none of its business, on one reactor.
fn config(bed: &Bed) -> String {
    format!(
        "{}
[reactors]
count = 1
[control]
socket = \"control.sock\"
[devices.image]
type = \"rbd\"
pool = \"rbd\"
image = \"disk\"
[devices.memory]
type = \"memory\"
size = \"16M\"
[controllers.ceph]
socket = \"ceph.sock\"
namespaces = [{{ device = \"image\" }}]
[controllers.memory]
socket = \"memory.sock\"
namespaces = [{{ device = \"memory\" }}]
",
        bed.table_with("timeout = 5")
    )
}

const SOCKETS: &[&str] = &["ceph.sock", "memory.sock", "control.sock"];

#[test]
fn only_its_own_commands_wait_and_they_are_aborted_and_reset() {
    let Some(bed) = Bed::start(Cluster::builder().store(Store::Memory)) else { return };
    bed.ok("rbd create --size 16M rbd/disk");
    let server = Server::config(&config(&bed), SOCKETS);
    let on_ceph = server
        .controller_with("ceph.sock", Options { timeout: Duration::from_secs(120), ..Options::default() });
    let elsewhere = server.controller_with("memory.sock", Options::default());
    let mut queues = io_queues(&on_ceph);
    check_works(&on_ceph, &mut queues, 0, 1);
    bed.stall(true);

    let (data, prps) = buffer(&on_ceph, 4096);
    data.fill(0xaa);
    let write = queues.submit(io::write(1, 0, 8, prps.data())).unwrap();
    let (read_into, read_prps) = buffer(&on_ceph, 4096);
    let read = queues.submit(io::read(1, 8, 8, read_prps.data())).unwrap();
    let lost = queues.submit(io::read(1, 16, 8, read_prps.data())).unwrap();

    // The other disk, the control socket and the admin queue of this one answer.
    let mut others = io_queues(&elsewhere);
    for round in 0..50 {
        check_works(&elsewhere, &mut others, round, round);
    }
    let mut control = Client::connect(&server);
    assert!(control.get("status", json!({})).is_object());
    on_ceph.identify(1, 0).expect("the controller answers");
    assert!(!queues.peek(write).unwrap() && !queues.peek(read).unwrap() && !queues.peek(lost).unwrap());

    // Aborted: both end at once, though the cluster has not answered.
    for cid in [write, read] {
        assert!(on_ceph.abort(queues.id(), cid).expect("abort answers"), "aborted");
        assert_eq!(status(queues.wait(cid, on_ceph.timeout())), Status::COMMAND_ABORT_REQUESTED);
    }
    // Reset, with one still under way; the memory of the guest is its own again.
    on_ceph.disable().expect("it comes to rest");
    read_into.fill(0x55);
    on_ceph.enable().expect("it comes back");
    let mut queues = io_queues(&on_ceph);
    let (late_data, late_prps) = buffer(&on_ceph, 4096);
    late_data.fill(0xbb);
    let late = queues.submit(io::write(1, 0, 8, late_prps.data())).unwrap();
    assert!(!queues.peek(late).unwrap());
    // The client leaves and another comes, too.
    bed.stall(false);
    assert_eq!(status(queues.wait(late, on_ceph.timeout())), Status::SUCCESS);
    let mut disk = Namespace::open(&on_ceph, 1, queues).unwrap();
    let mut found = [0; 4096];
    disk.read(0, &mut found).expect("read");
    assert!(found == [0xbb; 4096], "the write that was aborted came after the one that was made later");
    assert!(
        read_into.to_vec(0, 4096) == [0x55; 4096],
        "a read that was given up wrote into the guest's memory"
    );
    drop((disk, on_ceph, elsewhere));
    server.stop();
}

#[test]
fn a_server_whose_cluster_is_gone_for_good_ends() {
    let Some(bed) = Bed::start(Cluster::builder().store(Store::Memory)) else { return };
    bed.ok("rbd create --size 16M rbd/disk");
    let mut server = Server::config(&config(&bed), SOCKETS);
    let controller = server.controller_with("ceph.sock", Options::default());
    let mut queues = io_queues(&controller);
    check_works(&controller, &mut queues, 0, 1);
    for id in 0..bed.cluster().osds() {
        bed.cluster().osd(id).kill().expect("killed");
    }
    bed.cluster().monitor().kill().expect("killed");
    let (_data, prps) = buffer(&controller, 4096);
    for lba in 0..8 {
        queues.submit(io::write(1, lba * 8, 8, prps.data())).unwrap();
    }
    controller.disable().expect("it comes to rest");
    assert!(server.is_running());
    drop((queues, controller));
    let (ended, log) = server.terminate();
    assert!(
        ended.code().is_some_and(|code| code != 0),
        "it ends, and says that not all is well: {ended}
{log}"
    );
}
