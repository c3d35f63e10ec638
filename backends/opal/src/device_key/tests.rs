use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn source(text: &str) -> DeviceKeySource {
    text.parse().unwrap()
}

/// Why there is no key; shows nothing of what is in `secret`.
fn refusal(source: &DeviceKeySource, secret: &str) -> String {
    let text = source.fetch().unwrap_err().to_string();
    assert!(text.starts_with(&format!("the device key from {source}: ")), "{text}");
    assert!(secret.is_empty() || !text.contains(secret), "{text}");
    text
}

fn file(bytes: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf, DeviceKeySource) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let source = DeviceKeySource::File(path.clone());
    (directory, path, source)
}

#[test]
fn texts() {
    for text in
        ["file:/etc/quarry/key", "file:/with:colon", "env:KEY", "credential:opal", "keyring:quarry:a b"]
    {
        assert_eq!(source(text).to_string(), text);
    }
    let wrong = [
        "",
        "key",
        "file:",
        "file:key",
        "file:./key",
        "env:",
        "env:A=B",
        "credential:",
        "credential:../key",
        "credential:..",
        "keyring:",
        "keyring:a\0b",
        "vault:key",
        "FILE:/key",
    ];
    for text in wrong {
        let error = text.parse::<DeviceKeySource>().unwrap_err().to_string();
        assert!(error.contains("Use file:/absolute/path, env:NAME"), "{error}");
    }
    assert!(format!("keyring:{}", "a".repeat(4096)).parse::<DeviceKeySource>().is_err());
    // A key in the wrong place is not told to the log.
    assert!(!"hunter2".parse::<DeviceKeySource>().unwrap_err().to_string().contains("hunter2"));
}

#[test]
fn bytes_of_a_file_as_they_are() {
    let key = |bytes: &[u8]| *file(bytes, 0o600).2.fetch().unwrap().bytes();
    let bytes = [b'k'; 32];
    assert_eq!(&key(&bytes), kdf::extract(&bytes, b"", b"quarry device key").bytes());
    assert_ne!(key(&bytes), key(&[&bytes[..], b"\n"].concat()), "a newline counts");
    key(&[1; MOST]);
    assert_eq!(&file(&bytes, 0o400).2.fetch().unwrap().bytes()[..], key(&bytes));
}

#[test]
fn files_that_are_refused() {
    let secret = "S3CRET";
    for (bytes, expected) in [
        (Vec::new(), "it is empty."),
        (secret.repeat(5).into_bytes(), "it has 30 bytes, at least 32 are needed."),
        (vec![b'S'; MOST + 1], "it has more than 4096 bytes."),
        (vec![b'S'; 10 * MOST], "it has more than 4096 bytes."),
    ] {
        let (_directory, path, source) = file(&bytes, 0o600);
        let text = refusal(&source, secret);
        assert!(text.contains(expected), "{text}");
        let remedy = format!("head -c 64 /dev/urandom > {0}); chmod 600 {0}", path.display());
        assert!(text.contains(&remedy), "{text}");
    }
    for mode in [0o640, 0o604, 0o620, 0o660, 0o644] {
        let (_directory, path, source) = file(&[b'S'; 64], mode);
        let text = refusal(&source, "SSS");
        assert!(text.contains(&format!("mode {mode:03o}): `chmod 600 {}`", path.display())), "{text}");
    }
    let (directory, path, source) = file(&[1; 64], 0o600);
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(&source, "").contains("there is no such file. For a new drive make one:"));
    let of = |path: &Path| refusal(&DeviceKeySource::File(path.into()), "");
    assert!(of(directory.path()).contains("not a regular file"));
    // Nobody writes to it: opening or reading it would wait for ever.
    let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a C string that lives until mkfifo returns.
    assert_eq!(unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) }, 0);
    assert!(of(&path).contains("not a regular file"));
}

#[test]
fn variables() {
    // The environment is not changed while other tests run: what is there must do.
    let vars = || std::env::vars().filter(|(name, _)| !name.is_empty() && !name.contains('='));
    let (name, value) = vars().find(|(_, value)| (LEAST..MOST).contains(&value.len())).expect("a long one");
    let key = DeviceKeySource::Env(name).fetch().unwrap();
    assert_eq!(key.bytes(), kdf::extract(value.as_bytes(), b"", PURPOSE).bytes());
    let (name, value) = vars().find(|(_, value)| (1..LEAST).contains(&value.len())).expect("a short one");
    let text = refusal(&DeviceKeySource::Env(name.clone()), "");
    assert!(text.contains(&format!("it has {} bytes, at least 32 are needed", value.len())), "{text}");
    assert!(text.contains(&format!("export {name}=$(head -c 64 /dev/urandom")), "{text}");
    let text = refusal(&source("env:QUARRY_NO_SUCH_VARIABLE"), "");
    assert!(text.contains("there is no such variable. For a new drive"), "{text}");
}

#[test]
fn credentials() {
    let (directory, _, _) = file(&[b'c'; 40], 0o444); // their mode is systemd's
    let of = |directory: &Path, name| from_credential(Some(directory.into()), name);
    assert_eq!(of(directory.path(), "key").unwrap().as_slice(), [b'c'; 40]);
    let text = of(directory.path(), "other").unwrap_err();
    assert!(text.contains("no such credential") && text.contains("LoadCredential=other:FILE"), "{text}");
    for directory in [None, Some(OsString::new())] {
        let text = from_credential(directory, "key").unwrap_err();
        assert!(text.contains("CREDENTIALS_DIRECTORY is not set"), "{text}");
    }
    let source = source("credential:key");
    assert!(source.hash(&[1; 31]).unwrap_err().contains("it has 31 bytes"));
}
