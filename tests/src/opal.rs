//! [`Drive`]: a self-encrypting disk on a file, with what its owner knows of it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::binary::quarry;
use crate::data::pattern;
use crate::server::Server;

/// The start of every line that the tests write to drives, and that no host may read. No repetition within it: it is
/// found wherever it lies.
pub const PLAINTEXT: &str = "QUARRY-PLAIN-";

/// The file below a drive, and its key. Both outlive servers.
pub struct Drive {
    files: TempDir,
}

impl Drive {
    /// A new drive, not served yet. Its file is made by the first server.
    pub fn new() -> Self {
        let files = TempDir::new().expect("a temporary directory");
        let mut key = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(files.path().join("device.key"))
            .expect("a key file");
        key.write_all(&pattern(0x0DA1, 64)).expect("the key is written");
        Self { files }
    }

    /// Serves it on `vm.sock`.
    #[track_caller]
    pub fn serve(&self) -> Server {
        let dir = self.files.path().display();
        let config = format!(
            r#"
            [control]
            socket = "control.sock"

            [devices.raw]
            type = "file"
            path = "{dir}/disk.img"
            size = "1G"

            [devices.disk]
            type = "opal"
            on = "raw"
            key = "file:{dir}/device.key"
            pin_memory = "8M"

            [controllers.vm]
            socket = "vm.sock"
            namespaces = [{{ device = "disk" }}]
            "#
        );
        Server::config(&config, &["vm.sock", "control.sock"])
    }

    /// What is printed on a drive's label: with it, everybody can erase the drive, and nobody read it. Told by the
    /// server that has the drive open.
    #[track_caller]
    pub fn psid(&self, server: &Server) -> String {
        let output = Command::new(quarry())
            .args(["opal", "psid", "disk", "--socket", "control.sock"])
            .current_dir(server.dir())
            .output()
            .expect("quarry runs");
        assert!(output.status.success(), "no PSID: {output:?}");
        let psid = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        assert_eq!(psid.len(), 32, "a PSID has 32 characters: {psid:?}");
        assert!(psid.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{psid:?}");
        psid
    }

    /// The file below.
    pub fn file(&self) -> PathBuf {
        self.files.path().join("disk.img")
    }

    /// Nothing that starts with [`PLAINTEXT`] is in the file below, and yet there is something in it.
    #[track_caller]
    pub fn assert_encrypted(&self) {
        let found = search(&self.file());
        assert!(found.data > 0, "nothing at all was written to {}", self.file().display());
        assert_eq!(found.plaintext, None, "plaintext at this byte of {}", self.file().display());
    }
}

/// Where the first plaintext is in a file.
#[track_caller]
pub fn plaintext_in(path: &Path) -> Option<u64> {
    search(path).plaintext
}

impl Default for Drive {
    fn default() -> Self {
        Self::new()
    }
}

/// What is in a file.
struct Found {
    /// Bytes that are not zero, in whole pieces.
    data: u64,
    /// Where the first plaintext is.
    plaintext: Option<u64>,
}

fn search(path: &Path) -> Found {
    const PIECE: usize = 1 << 20;
    let needle = PLAINTEXT.as_bytes();
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let len = fs::metadata(path).expect("its size").len();
    let mut found = Found { data: 0, plaintext: None };
    // Each piece is searched with the end of the one before it.
    let overlap = needle.len() - 1;
    let mut piece = vec![0; overlap + PIECE];
    let mut at = 0;
    while at < len {
        let want = PIECE.min(usize::try_from(len - at).unwrap_or(PIECE));
        let end = overlap + want;
        file.read_exact(&mut piece[overlap..end]).expect("it is read");
        if piece[overlap..end].iter().any(|byte| *byte != 0) {
            found.data += want as u64;
            if let Some(offset) = piece[..end].windows(needle.len()).position(|window| window == needle) {
                found.plaintext = Some(at + offset as u64 - overlap as u64);
                return found;
            }
        }
        piece.copy_within(want..end, 0);
        at += want as u64;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_found_across_pieces() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 << 20).unwrap();
        assert_eq!(search(file.path()).data, 0);
        let at = (2 << 20) - 5;
        let mut content = fs::read(file.path()).unwrap();
        content[at..at + PLAINTEXT.len()].copy_from_slice(PLAINTEXT.as_bytes());
        fs::write(file.path(), &content).unwrap();
        assert_eq!(search(file.path()).plaintext, Some(at as u64));
        content[at] ^= 1;
        fs::write(file.path(), &content).unwrap();
        let found = search(file.path());
        assert_eq!(found.plaintext, None);
        assert!(found.data > 0);
    }
}
