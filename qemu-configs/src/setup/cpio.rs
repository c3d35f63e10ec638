//! Writes an initramfs: a cpio archive in the "newc" format. Everything in it belongs to root.

use std::io::{self, Write};

/// An archive that grows entry by entry.
pub struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, &[])
    }

    pub fn file(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_755, data)
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let size = u32::try_from(data.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        write!(self.to, "070701")?;
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name's size, checksum
        for field in [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
            write!(self.to, "{field:08x}")?;
        }
        self.to.write_all(name.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(110 + name.len() + 1)?;
        self.to.write_all(data)?;
        self.pad(data.len())
    }

    /// Name and data each end at a multiple of four.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..length.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned() -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.directory("d")?;
        archive.file("d/file", b"hello")?;
        archive.finish()?;
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.iter().position(|&b| b == b'h'), Some(112 + 120), "data at a multiple of four");
        assert!(bytes.starts_with(b"070701"));
        Ok(())
    }
}
