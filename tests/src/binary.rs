//! Where the programs under test are.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The program under test: `QUARRY_BIN`, or built by cargo beside this test.
pub fn quarry() -> &'static PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match std::env::var_os("QUARRY_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "QUARRY_BIN is {}, which is no file", path.display());
            path
        }
        None => build("quarry"),
    })
}

/// The program `ceph-cluster`, built by cargo beside this test.
pub fn ceph_cluster() -> &'static PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| build("ceph-cluster"))
}

/// Builds the program of the package of the same name.
fn build(name: &str) -> PathBuf {
    // target/PROFILE/deps/TEST-HASH: the program belongs to target/PROFILE.
    let test = std::env::current_exe().expect("the path of this test");
    let profile_dir = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    let target_dir = profile_dir.parent().expect("target/PROFILE").to_owned();
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", name, "--bin", name, "--profile", profile, "--target-dir"])
        .arg(&target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs; or set QUARRY_BIN to the program under test");
    assert!(
        output.status.success(),
        "{name} does not build (for quarry there is QUARRY_BIN):\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = profile_dir.join(name);
    assert!(path.is_file(), "cargo built no {}", path.display());
    path
}
