//! Every mistake that an operator can make in a configuration, and the exact text he gets for it: the files in
//! `tests/mistakes`. `QUARRY_BLESS=1 cargo test -p quarry --test mistakes` writes them anew; read the difference.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quarry::config::model::DeviceKind;
use quarry::config::{Machine, Severity, load};

fn machine() -> Machine {
    Machine { cpus: vec![0, 1] }
}

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mistakes");
    let mut cases: Vec<PathBuf> = fs::read_dir(directory)
        .expect("the directory of cases")
        .map(|entry| entry.expect("a case").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    cases.sort();
    assert!(cases.len() > 10);
    cases
}

#[test]
fn each_mistake_has_its_text() {
    let bless = std::env::var_os("QUARRY_BLESS").is_some();
    let mut differing = Vec::new();
    for case in cases() {
        let text = fs::read_to_string(&case).expect("readable");
        let name = case.file_name().expect("a name").to_string_lossy();
        let report = load(&name, &text, &machine()).expect_err(&name);
        let shown = report.to_string();
        let golden = case.with_extension("txt");
        if bless {
            fs::write(&golden, &shown).expect("writable");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if shown != expected {
            differing.push(format!("--- {name}: expected\n{expected}--- found\n{shown}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn each_mistake_has_place_and_remedy() {
    for case in cases() {
        let text = fs::read_to_string(&case).expect("readable");
        let report = load("quarry.toml", &text, &machine()).expect_err("has mistakes");
        for diagnostic in &report.diagnostics {
            assert!(!diagnostic.message.is_empty() && !diagnostic.help.is_empty(), "{diagnostic:?}");
            let is_about_the_whole_file = diagnostic.message.contains("no controllers");
            assert!(diagnostic.spot.span.is_some() || is_about_the_whole_file, "{case:?}: {diagnostic:?}");
        }
    }
}

#[test]
fn an_image_of_another_size() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("disk.img"), [0; 1000]).expect("written");
    let name = directory.path().join("quarry.toml");
    let config = |device: &str| {
        format!(
            "[devices.disk]\ntype = \"file\"\npath = \"disk.img\"\n{device}\n\
             [controllers.vm]\nsocket = \"vm.sock\"\nnamespaces = [{{ device = \"disk\" }}]\n"
        )
    };
    let check = |device: &str| load(&name.to_string_lossy(), &config(device), &machine());
    let odd = check("").expect_err("not a whole number of blocks");
    assert!(odd.to_string().contains("1000 bytes are not a multiple of the block size 512"), "{odd}");
    let other = check("size = \"4K\"").expect_err("another size");
    assert!(other.to_string().contains("already exists with 1000"), "{other}");
    assert!(other.to_string().contains("make it longer (truncate -s 4K"), "{other}");
    let shorter = check("size = \"512\"").expect_err("would cut data off").to_string();
    assert!(shorter.contains("the size that it has (1000)") && !shorter.contains("truncate"), "{shorter}");
    fs::write(directory.path().join("disk.img"), [0; 4096]).expect("written");
    check("size = \"4K\"").expect("good");
    check("").expect("good");
}

#[test]
fn a_good_configuration_has_no_diagnostics() {
    let text = include_str!("good.toml");
    let checked = load("/tmp/good.toml", text, &machine()).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(checked.report.diagnostics, []);
    assert_eq!(checked.config.controllers.len(), 3);
}

#[test]
fn clusters_and_what_is_on_them_are_read() {
    let text = include_str!("good.toml");
    let config = load("/tmp/good.toml", text, &machine()).expect("good").config;
    let options = &config.clusters["main"].options;
    assert_eq!(options.conf, Path::new("/etc/ceph/ceph.conf"));
    assert_eq!(options.keyring.as_deref(), Some(Path::new("/tmp/quarry.keyring")));
    assert_eq!(options.user, "quarry");
    assert_eq!(
        (options.timeout, options.io_timeout),
        (Duration::from_secs(10), Some(Duration::from_secs(60)))
    );
    assert_eq!(options.images_per_connection, 16);
    let given: Vec<(&str, &str)> =
        options.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected =
        [("ms_async_op_threads", "2"), ("ms_type", "async+posix"), ("rbd_balance_snap_reads", "true")];
    assert_eq!(given, expected);
    let DeviceKind::Rbd(image) = &config.devices["image"].kind else { panic!() };
    let image = image.options();
    assert_eq!((image.spec().as_str(), image.read_only), ("rbd/tenant/vm-1", false));
    assert_eq!((image.block_size, image.in_flight, image.lock), (4096, 16 << 20, block_ceph::Lock::Keep));
    let DeviceKind::Rbd(snapshot) = &config.devices["snapshot"].kind else { panic!() };
    assert_eq!((snapshot.options().spec().as_str(), snapshot.options().read_only), ("rbd/vm-1@daily", true));
    let DeviceKind::Rados(volume) = &config.devices["volume"].kind else { panic!() };
    let volume = volume.options();
    assert_eq!((volume.volume.pool.as_str(), volume.volume.name.as_str()), ("fast", "vm-1"));
    assert_eq!((volume.read_only, volume.in_flight), (true, 64 << 20));
}

#[test]
fn without_a_cluster_there_is_the_usual_one() {
    let text = "[devices.a]\ntype = \"rbd\"\npool = \"rbd\"\nimage = \"a\"\n\
                [controllers.vm]\nsocket = \"/tmp/vm.sock\"\nnamespaces = [{ device = \"a\" }]\n";
    let config = load("quarry.toml", text, &machine()).expect("good").config;
    let device = &config.devices["a"];
    let cluster = config.cluster(device.kind.place().unwrap(), &device.spot).expect("a cluster");
    assert_eq!(cluster.options, block_ceph::ClusterOptions::default());
    // The only one is meant, whatever its name.
    let config =
        load("quarry.toml", &format!("[clusters.x]\nuser = \"me\"\n{text}"), &machine()).expect("good");
    assert_eq!(config.report.diagnostics, []);
    let cluster = config.config.cluster(device.kind.place().unwrap(), &device.spot).expect("a cluster");
    assert_eq!(cluster.options.user, "me");
}

#[test]
fn warnings_do_not_prevent_serving() {
    let text = "[clusters.unused]\n[devices.spare]\ntype = \"null\"\nsize = \"1T\"\n[controllers.vm]\nsocket = \"/tmp/vm.sock\"\nnamespaces = []\n";
    let checked = load("quarry.toml", text, &machine()).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(checked.report.warnings(), 3);
    assert!(checked.report.diagnostics.iter().all(|d| d.severity == Severity::Warning));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(lines in proptest::collection::vec(
        "(\\[(devices|controllers|subsystems|clusters|reactors|control)(\\.[ab](\\.(limits|options))?)?\\]|(type|size|on|socket|fd|namespaces|device|count|cpus|rules|uuid|nsid|mode|limits|iops|bandwidth|burst_ms|doorbells|cluster|pool|image|volume|snapshot|conf|user|timeout) = (\"(memory|file|fault|rbd|rados|a|b|1G|poll|trapped)\"|-?[0-9]{1,20}|\\[(0|\"a\"|\\{ device = \"a\" \\})?\\]|true|\\{\\})|.{0,20})",
        0..12,
    )) {
        let _ = load("quarry.toml", &lines.join("\n"), &machine()).map_err(|report| report.to_string());
    }
}
