//! What a Linux guest and its `nvme` tool say about a disk: identity, counters, logs, features.

use std::fs;

use quarry_tests::guest::assert_no_warnings;
use quarry_tests::{Server, Vm};
use serde_json::Value;

const UUID: &str = "5a3c0d4e-1b2f-4c6d-8e9f-0123456789ab";
const UUID_DIGITS: &str = "5a3c0d4e1b2f4c6d8e9f0123456789ab";
const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:0e4f7d52-3b6a-4f1e-9c55-8f0a3d2b1c00";

/// One disk with a known identity; its image and its socket are in `dir`, for a second server too.
fn server(dir: &str) -> Server {
    let config = format!(
        r#"
        [devices.root]
        type = "file"
        path = "{dir}/root.img"
        size = "128M"

        [controllers.web]
        socket = "{dir}/web.sock"
        serial = "WEB-0001"
        model = "A model of my own"
        nqn = "{NQN}"
        namespaces = [{{ device = "root", uuid = "{UUID}" }}]
        "#
    );
    Server::config(&config, &[&format!("{dir}/web.sock")])
}

fn number(value: &Value, key: &str) -> u64 {
    // Counters of 128 bits are strings in some versions of the tool.
    let field = &value[key];
    let text = field.as_str().map_or_else(|| field.to_string(), str::to_owned);
    text.parse().unwrap_or_else(|_| panic!("{key} is no number in {value:#}"))
}

#[test]
fn tools_show_the_disk_that_the_configuration_describes() {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().to_str().unwrap();
    let first = server(dir);
    let vm = Vm::with_disks([first.socket(&format!("{dir}/web.sock"))]);
    identity(&vm);
    counters(&vm);
    logs(&vm);
    features(&vm);
    vm.assert_no_complaints();
    let before = identifiers(&vm);

    vm.poweroff();
    assert_no_warnings(&first.stop());
    assert!(!fs::exists(files.path().join("web.sock")).unwrap(), "the socket goes with its server");

    // After a restart of both it is the same disk.
    let second = server(dir);
    let vm = Vm::with_disks([second.socket(&format!("{dir}/web.sock"))]);
    assert_eq!(identifiers(&vm), before, "after a restart");
    vm.assert_no_complaints();
    vm.poweroff();
    assert_no_warnings(&second.stop());
}

/// What udev makes its links below /dev/disk of.
fn identifiers(vm: &Vm) -> String {
    let all = vm.ok("cd /sys/block/nvme0n1 && grep -H . uuid nguid wwid && cd /sys/class/nvme/nvme0 && \
         grep -H . serial model subsysnqn firmware_rev");
    for line in [
        format!("uuid:{UUID}"),
        format!("nguid:{UUID}"),
        format!("wwid:uuid.{UUID}"),
        "serial:WEB-0001".to_owned(),
        "model:A model of my own".to_owned(),
        format!("subsysnqn:{NQN}"),
    ] {
        assert!(all.lines().any(|found| found.trim_end() == line), "no {line} in\n{all}");
    }
    all
}

fn identity(vm: &Vm) {
    let list = vm.ok("nvme list");
    let row = list.lines().find(|line| line.starts_with("/dev/nvme0n1")).expect("a row for the disk");
    for text in ["WEB-0001", "A model of my own", "134.22  MB", "512   B +  0 B"] {
        assert!(row.contains(text), "no {text} in {list}");
    }

    let ctrl = vm.json("nvme id-ctrl /dev/nvme0 -o json");
    assert_eq!(ctrl["sn"], format!("{:<20}", "WEB-0001"));
    assert_eq!(ctrl["mn"], format!("{:<40}", "A model of my own"));
    assert_eq!(ctrl["subnqn"], NQN);
    assert_eq!(ctrl["ver"], 0x2_0000, "NVMe 2.0");
    assert_eq!(ctrl["mdts"], 8, "1 MiB");
    assert_eq!(ctrl["cntrltype"], 1, "an I/O controller");
    assert_eq!((&ctrl["sqes"], &ctrl["cqes"]), (&0x66.into(), &0x44.into()));
    assert_eq!(number(&ctrl, "oncs") & 0xC, 0xC, "dataset management and write zeroes");
    assert_eq!(number(&ctrl, "vwc") & 1, 1, "a write cache that can be flushed");
    assert_ne!(number(&ctrl, "sgls") & 3, 0, "SGLs");

    let ns = vm.json("nvme id-ns /dev/nvme0n1 -o json");
    let blocks = (128 << 20) / 512;
    assert_eq!((number(&ns, "nsze"), number(&ns, "ncap")), (blocks, blocks));
    assert_eq!(ns["lbafs"][0]["ds"], 9);
    assert_eq!(ns["nguid"], UUID_DIGITS);
    assert_eq!(vm.ok("cat /sys/block/nvme0n1/size").trim(), blocks.to_string());

    let descriptors = vm.json("nvme ns-descs /dev/nvme0n1 -o json");
    let descriptors = descriptors["ns-descs"].as_array().expect("descriptors");
    assert!(descriptors.iter().any(|one| one["uuid"] == UUID), "{descriptors:#?}");
    assert!(descriptors.iter().any(|one| one["csi"] == "0"), "the NVM command set: {descriptors:#?}");
}

/// The SMART log counts this and nothing else: the guest does no I/O of its own.
fn counters(vm: &Vm) {
    let log = || vm.json("nvme smart-log /dev/nvme0 -o json");
    let before = log();
    vm.ok("dd if=/dev/zero of=/dev/nvme0n1 bs=128k count=80 oflag=direct 2>&1");
    vm.ok("dd if=/dev/nvme0n1 of=/dev/null bs=64k count=80 iflag=direct 2>&1");
    let after = log();
    let grown = |key| number(&after, key) - number(&before, key);
    assert_eq!(grown("host_write_commands"), 80);
    assert_eq!(grown("host_read_commands"), 80);
    // Units of 1000 blocks of 512 bytes, rounded up: 20480 and 10240 blocks.
    assert!((20..=21).contains(&grown("data_units_written")), "{before:#}\n{after:#}");
    assert!((10..=11).contains(&grown("data_units_read")), "{before:#}\n{after:#}");
    assert_eq!(number(&after, "critical_warning"), 0);
    assert_eq!(number(&after, "percent_used"), 0);
    assert_eq!(number(&after, "avail_spare"), 100);
    assert_eq!(number(&after, "media_errors"), 0);
}

fn logs(vm: &Vm) {
    let firmware = vm.ok("nvme fw-log /dev/nvme0");
    let revision = vm.ok("cat /sys/class/nvme/nvme0/firmware_rev");
    assert!(firmware.contains(revision.trim()), "the active revision {revision}in {firmware}");

    // A read past the end fails, and the error log and the SMART log tell of it.
    let errors = || number(&vm.json("nvme smart-log /dev/nvme0 -o json"), "num_err_log_entries");
    let before = errors();
    let answer = vm.fails("nvme read /dev/nvme0n1 --start-block=262144 --block-count=0 --data-size=512");
    assert!(answer.contains("LBA Out of Range"), "{answer}");
    assert_eq!(errors() - before, 1);
    let log = vm.json("nvme error-log /dev/nvme0 -o json");
    let entry = &log["errors"][0];
    assert_eq!((&entry["lba"], &entry["nsid"]), (&262_144.into(), &1.into()), "{entry:#}");
    assert_eq!(number(entry, "error_count"), before + 1);
    // The tool shows the field with or without its phase bit.
    let status = number(entry, "status_field");
    assert!([0x80, 0x4080].contains(&status) || status >> 1 & 0xFFF == 0x80, "LBA out of range: {entry:#}");
}

fn features(vm: &Vm) {
    let get = |feature: u32| {
        let answer = vm.ok(&format!("nvme get-feature /dev/nvme0 --feature-id={feature:#x}"));
        let value = answer.trim().rsplit_once("value:").map(|(_, value)| value.trim_start_matches("0x"));
        value
            .and_then(|value| u32::from_str_radix(value, 16).ok())
            .unwrap_or_else(|| panic!("no value in {answer}"))
    };
    // Temperature threshold: what is set is what is read.
    assert_eq!(get(4), 343, "the warning temperature");
    vm.ok("nvme set-feature /dev/nvme0 --feature-id=4 --value=0x150");
    assert_eq!(get(4), 0x150);
    // Which events are reported asynchronously: namespace changes, as Linux asked for; none; and again.
    assert_eq!(get(0xb) & 0x100, 0x100);
    vm.ok("nvme set-feature /dev/nvme0 --feature-id=0xb --value=0");
    assert_eq!(get(0xb), 0);
    vm.ok("nvme set-feature /dev/nvme0 --feature-id=0xb --value=0x100");
    assert_eq!(get(0xb), 0x100);
    // The volatile write cache, off and on again.
    assert_eq!(get(6), 1);
    vm.ok("nvme set-feature /dev/nvme0 --feature-id=6 --value=0");
    assert_eq!(get(6), 0);
    vm.ok("dd if=/dev/zero of=/dev/nvme0n1 bs=4k count=1 oflag=direct 2>&1");
    vm.ok("nvme set-feature /dev/nvme0 --feature-id=6 --value=1");
    assert_eq!(get(6), 1);
    // Linux asks for a pair of queues for each CPU: one, which counts from zero.
    assert_eq!(get(7), 0);
    // Features that are not there.
    for feature in ["0xc", "0x10", "0x7f"] {
        let answer = vm.fails(&format!("nvme get-feature /dev/nvme0 --feature-id={feature}"));
        assert!(answer.contains("Invalid Field"), "{feature}: {answer}");
    }
}
