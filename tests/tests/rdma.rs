//! Ceph over RDMA: guests with soft RoCE (rdma_rxe) run a cluster whose messenger is `async+rdma`, and its clients.
//!
//! That data went over RDMA is read from the device's counters of packets, and from TCP's, which must not have grown by as much:
//! Ceph's messenger uses TCP to agree on queue pairs and for nothing else.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use block::testing::cannot_run;
use qemu_configs::{Assets, Builder, Guest, Network, Running};
use quarry_tests::Vm;
use quarry_tests::binary::{ceph_cluster, quarry};

/// A guest's program of this crate.
const VERIFY: &str = env!("CARGO_BIN_EXE_quarry-verify");
/// Bytes that are written and read.
const DATA: u64 = 4 << 20;
/// Bytes of data in a packet, at most: rxe takes the largest of InfiniBand's that fits the network's 9000 bytes.
const PACKET: u64 = 4096;
/// TCP's packets in one guest, which go over the loopback device.
const LOOPBACK_MTU: u64 = 1500;
/// Memory for RDMA is pinned, which Ceph wants to be free to do.
const LIMITS: &str = "ulimit -l unlimited; ulimit -n 65536";
/// For what a cluster does on an emulated CPU beside much else.
const PATIENCE: Duration = Duration::from_secs(600);

/// The image with RDMA; says so where there is none.
fn assets() -> Option<Assets> {
    let assets = Assets::locate_rdma();
    assets.inspect_err(|_| cannot_run("RDMA: its guest is not made; `cargo xtask test --rdma` does it")).ok()
}

/// A guest with an RDMA device, `rxe0`.
struct Node {
    vm: Vm,
    address: [u8; 4],
    /// Bytes of a TCP packet, at most.
    mtu: u64,
}

/// What went over a guest's RDMA device and over TCP so far.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    sent: u64,
    received: u64,
    /// Bytes that TCP has sent, at most.
    tcp: u64,
}

impl Node {
    /// One for itself.
    fn alone(assets: &Assets, builder: Builder) -> Self {
        let vm = Vm::start_with(builder, assets);
        vm.ok(&format!("modprobe dummy && ip link add net0 type dummy && ip link set lo mtu {LOOPBACK_MTU}"));
        Self::with_rdma(vm, "net0", [10, 9, 0, 1], LOOPBACK_MTU)
    }

    /// One end of a cable.
    fn at_cable(assets: &Assets, builder: Builder, end: Network, address: [u8; 4]) -> Self {
        let vm = Vm::start_with(builder.network(end), assets);
        vm.ok("modprobe virtio_net");
        vm.wait_for("[ -e /sys/class/net/eth0 ]");
        Self::with_rdma(vm, "eth0", address, 9000)
    }

    fn with_rdma(vm: Vm, device: &str, address: [u8; 4], mtu: u64) -> Self {
        let node = Self { vm, address, mtu };
        // A host's own address is reached over lo.
        node.vm.ok(&format!(
            "set -e; modprobe -a rdma_rxe rdma_ucm ib_uverbs; ip link set lo up; \
             ip addr add {}/24 dev {device}; ip link set {device} up mtu 9000; \
             rdma link add rxe0 type rxe netdev {device}",
            node.ip()
        ));
        node.vm.wait_for(&format!("grep -qx {} /sys/class/infiniband/rxe0/ports/1/gids/*", node.gid()));
        let port = node.vm.ok("ibv_devinfo -d rxe0");
        assert!(port.contains("PORT_ACTIVE") && port.contains("active_mtu:\t\t4096"), "{port}");
        node
    }

    fn ip(&self) -> String {
        self.address.map(|byte| byte.to_string()).join(".")
    }

    /// RoCE's name for the address, as sysfs and Ceph write it.
    fn gid(&self) -> String {
        let [a, b, c, d] = self.address;
        format!("0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}")
    }

    /// What makes Ceph speak RDMA, with buffers for a small machine: 32 MiB a process instead of 4 GiB.
    fn messenger(&self) -> Vec<(&'static str, String)> {
        let fixed = [
            ("ms_type", "async+rdma"),
            ("ms_async_op_threads", "1"),
            ("ms_async_rdma_device_name", "rxe0"),
            ("ms_async_rdma_port_num", "1"),
            ("ms_async_rdma_buffer_size", "65536"),
            ("ms_async_rdma_receive_buffers", "512"),
            ("ms_async_rdma_receive_queue_len", "256"),
            ("ms_async_rdma_send_buffers", "128"),
            ("ms_async_rdma_polling_us", "0"),
        ];
        let fixed = fixed.into_iter().map(|(key, value)| (key, value.to_owned()));
        fixed.chain([("ms_async_rdma_local_gid", self.gid())]).collect()
    }

    /// Starts a cluster and returns when it works; [`Node::end_cluster`] ends it.
    fn begin_cluster(&self, osds: u32) -> Running {
        // On an emulated CPU beside much else an OSD is late, not dead.
        let patient = ["osd_heartbeat_grace", "mon_osd_report_timeout"].map(|key| (key, "300".to_owned()));
        let options =
            self.messenger().into_iter().chain(patient).fold(String::new(), |mut all, (key, value)| {
                let _ = write!(all, " --option {key}={value}");
                all
            });
        let command = format!(
            "{LIMITS}; /host/ceph-cluster run --dir /tmp/c --address {} --memory --osds {osds}{options} -- \
             sh -c 'touch /tmp/ready; until [ -e /tmp/enough ]; do sleep 0.1; done'; code=$?; touch /tmp/over; exit $code",
            self.ip()
        );
        let running = self.vm.guest().begin(&command, PATIENCE).expect("the guest takes commands");
        self.vm.wait_for("[ -e /tmp/ready ] || [ -e /tmp/over ]");
        if self.vm.ok("[ -e /tmp/over ] && echo over || true").trim() == "over" {
            panic!("the cluster does not start: {:#?}", self.vm.guest().finish(running));
        }
        running
    }

    fn end_cluster(&self, cluster: Running) {
        self.vm.ok("touch /tmp/enough");
        let output = self.vm.guest().finish(cluster).expect("the guest is there");
        assert_eq!(output.code, Some(0), "the cluster ends well: {output:#?}");
    }

    /// A line of shell for the cluster.
    #[track_caller]
    fn ceph(&self, command: &str) -> String {
        self.vm.ok(&format!("{LIMITS}; export CEPH_CONF=/tmp/c/ceph.conf; {command}"))
    }

    fn traffic(&self) -> Traffic {
        let counters = "/sys/class/infiniband/rxe0/ports/1/hw_counters";
        // The second line of Tcp: has the values; OutSegs is the eleventh (RFC 2012 and /proc/net/snmp's first line).
        let out = self.vm.ok(&format!(
            "cat {counters}/sent_pkts {counters}/rcvd_pkts; awk '/^Tcp: [0-9]/ {{ print $12 }}' /proc/net/snmp"
        ));
        let numbers: Vec<u64> = out.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let [sent, received, segments] = numbers[..] else { panic!("three counters: {out}") };
        Traffic { sent, received, tcp: segments * self.mtu }
    }

    /// Since `before` at least so many bytes of data were sent and received by RDMA, and TCP sent far less.
    #[track_caller]
    fn assert_by_rdma(&self, before: Traffic, sent: u64, received: u64) {
        let now = self.traffic();
        println!("{}: {before:?} -> {now:?}", self.ip());
        assert!(now.sent - before.sent >= sent / PACKET, "{sent} bytes sent: {before:?} {now:?}");
        assert!(now.received - before.received >= received / PACKET, "{received} bytes: {before:?} {now:?}");
        let tcp = now.tcp - before.tcp;
        assert!(tcp < (sent + received) / 4, "TCP sent up to {tcp} bytes: {before:?} {now:?}");
    }

    /// So many of the messenger's queue pairs, at least, are connected and ready to send.
    #[track_caller]
    fn assert_queue_pairs(&self, least: usize) {
        let pairs = self.vm.json("rdma -j resource show qp");
        let ready = |pair: &&serde_json::Value| {
            let comm = pair["comm"].as_str().unwrap_or_default();
            pair["type"] == "RC" && pair["state"] == "RTS" && comm.starts_with("msgr-worker")
        };
        let found = pairs.as_array().expect("a list").iter().filter(ready).count();
        assert!(found >= least, "{found} queue pairs, not {least}: {pairs:#}");
    }

    /// An object and an image come back as they were written, by RDMA alone. A client whose cluster is in the same guest
    /// sends what the cluster receives, so its device counts all of it twice.
    fn check_clients(&self, is_alone: bool) {
        let before = self.traffic();
        self.ceph(&format!(
            "set -e; head -c {DATA} /dev/urandom > /tmp/data; \
             rados -p rbd put object /tmp/data; rados -p rbd get object /tmp/back; cmp /tmp/data /tmp/back"
        ));
        let each = if is_alone { 2 * DATA } else { DATA };
        self.assert_by_rdma(before, each, each);
        let before = self.traffic();
        self.ceph(
            "set -e; rbd import --no-progress /tmp/data rbd/image; rm /tmp/back; \
             rbd export --no-progress rbd/image /tmp/back; cmp /tmp/data /tmp/back",
        );
        self.assert_by_rdma(before, each, each);
    }

    /// Quarry serves an image; what an NVMe client writes comes back after a restart and is what `rbd` reads.
    fn check_quarry(&self, is_alone: bool) {
        self.ceph(&format!("rbd create rbd/demo --size {DATA}B"));
        // That it has to be RDMA Quarry learns from its own configuration.
        self.vm.ok("grep -vE '^ms_(type|async)' /tmp/c/ceph.conf > /tmp/c/plain.conf");
        self.vm.guest().put("/tmp/quarry.toml", self.quarry_config().as_bytes()).expect("written");
        let each = if is_alone { 2 * DATA } else { DATA };
        for (what, sent, received) in [("write", each, 0), ("read", 0, each)] {
            let server = self.begin_quarry();
            let before = self.traffic();
            self.vm.ok(&format!("/host/quarry-verify {what} /run/vm.sock 7"));
            // In one guest each packet that is sent is received.
            let (sent, received) = if is_alone { (DATA, DATA) } else { (sent, received) };
            self.assert_by_rdma(before, sent, received);
            self.assert_queue_pairs(if is_alone { 2 } else { 1 });
            self.end_quarry(server);
        }
        self.ceph(&format!(
            "/host/quarry-verify pattern {DATA} 7 > /tmp/data; \
             rbd export --no-progress rbd/demo - | cmp - /tmp/data"
        ));
    }

    fn quarry_config(&self) -> String {
        let options = self.messenger().into_iter().fold(String::new(), |mut all, (key, value)| {
            let _ = writeln!(all, "{key} = \"{value}\"");
            all
        });
        format!(
            r#"
            [clusters.rdma]
            conf = "/tmp/c/plain.conf"
            user = "admin"
            [clusters.rdma.options]
            {options}
            [devices.disk]
            type = "rbd"
            cluster = "rdma"
            pool = "rbd"
            image = "demo"
            [controllers.vm]
            socket = "/run/vm.sock"
            namespaces = [{{ device = "disk" }}]
            "#
        )
    }

    fn begin_quarry(&self) -> Running {
        let command =
            format!("{LIMITS}; echo $$ > /run/quarry.pid; exec /host/quarry serve /tmp/quarry.toml 2>&1");
        let running = self.vm.guest().begin(&command, PATIENCE).expect("the guest takes commands");
        // 00010000: it listens.
        let gone = "! kill -0 $(cat /run/quarry.pid)";
        self.vm.wait_for(&format!("grep -q '00010000 .* /run/vm.sock$' /proc/net/unix || {gone}"));
        if self.vm.ok(&format!("{gone} && echo gone || true")).trim() == "gone" {
            panic!("quarry ended: {:#?}", self.vm.guest().finish(running));
        }
        running
    }

    fn end_quarry(&self, server: Running) {
        self.vm.ok("kill -TERM $(cat /run/quarry.pid)");
        let output = self.vm.guest().finish(server).expect("the guest is there");
        assert_eq!(output.code, Some(0), "{output:#?}");
        quarry_tests::guest::assert_no_warnings(&output.out);
    }
}

/// RDMA itself works, without Ceph: what fails here is no fault of those.
#[test]
fn rdma_in_a_guest() {
    let Some(assets) = assets() else { return };
    let node = Node::alone(&assets, Guest::builder());
    let server = node.vm.guest().begin("rping -s -a 10.9.0.1 -C 5", PATIENCE).expect("it takes commands");
    node.vm.wait_for("rping -c -a 10.9.0.1 -C 5 -v > /tmp/said 2>&1");
    let said = node.vm.ok("cat /tmp/said");
    assert_eq!(said.lines().filter(|line| line.starts_with("ping data: rdma-ping-")).count(), 5, "{said}");
    let server = node.vm.guest().finish(server).expect("the guest is there");
    assert_eq!(server.code, Some(0), "{server:?}");
    node.vm.poweroff();
}

/// A cluster and its clients in one guest.
#[test]
fn ceph_over_rdma() {
    let Some(assets) = assets() else { return };
    let programs = [ceph_cluster().clone(), quarry().clone(), VERIFY.into()];
    let node = Node::alone(&assets, Guest::builder().memory_mib(1280).vcpus(2).files(programs));
    let cluster = node.begin_cluster(2);
    // The OSDs' with the monitor and with each other, both ends of each.
    node.assert_queue_pairs(6);
    node.check_clients(true);
    node.check_quarry(true);
    println!("{}", node.vm.ok("free -m"));
    node.end_cluster(cluster);
    node.vm.poweroff();
}

/// A cluster in one guest, its clients in another.
#[test]
fn ceph_over_rdma_between_two_guests() {
    let Some(assets) = assets() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("cable");
    let (server_end, client_end) = (Network::Listens(socket.clone()), Network::Connects(socket));
    let builder = || Guest::builder().memory_mib(1024);
    let (server, client) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            let builder = builder().vcpus(2).files([ceph_cluster()]);
            Node::at_cable(&assets, builder, server_end, [10, 8, 0, 1])
        });
        let programs = [quarry().clone(), VERIFY.into()];
        let client = Node::at_cable(&assets, builder().files(programs), client_end, [10, 8, 0, 2]);
        (server.join().expect("the first guest starts"), client)
    });
    client.vm.wait_for("ping -c 1 -W 1 10.8.0.1 > /dev/null");
    let cluster = server.begin_cluster(1);
    take_configuration(&server, &client);

    let before = server.traffic();
    client.check_clients(false);
    client.check_quarry(false);
    // What the one has sent the other has received, and what came back did not come by TCP.
    server.assert_by_rdma(before, 2 * DATA, 2 * DATA);
    println!("{}{}", server.vm.ok("free -m"), client.vm.ok("free -m"));
    server.end_cluster(cluster);
    client.vm.poweroff();
    server.vm.poweroff();
}

/// Gives `client` the cluster's configuration, with its own address in it, and the keyring.
fn take_configuration(server: &Node, client: &Node) {
    let conf = server.vm.guest().get("/tmp/c/ceph.conf").expect("the cluster has one");
    let conf = String::from_utf8(conf).expect("text").replace(&server.gid(), &client.gid());
    let own = |line: &&str| !line.starts_with("public_addr") && !line.starts_with("cluster_addr");
    let conf: String = conf.lines().filter(own).map(|line| format!("{line}\n")).collect();
    client.vm.ok("mkdir /tmp/c");
    client.vm.guest().put("/tmp/c/ceph.conf", conf.as_bytes()).expect("written");
    let keyring = server.vm.guest().get("/tmp/c/keyring").expect("the cluster has one");
    client.vm.guest().put("/tmp/c/keyring", &keyring).expect("written");
}
