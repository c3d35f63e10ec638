//! Debian packages without installing them: an apt with lists, state and archives of its own, which believes that
//! nothing is installed and so fetches whole closures, and `dpkg-deb` to unpack them.
//!
//! Mirrors, proxies and keys are those of the machine's own apt configuration: the same mirror serves the release that
//! the guest is made of, whichever release the host runs.

use super::cache::{Cache, remove};
use super::run;
use anyhow::{Context, Result, bail};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// The release of the guest's packages.
pub const RELEASE: &str = "trixie";
/// The release of QEMU: the first one of Debian's with `vfio-user-pci`.
pub const BACKPORTS: &str = "trixie-backports";

/// One private apt. Nothing happens before the first package is asked for.
pub struct Apt {
    root: PathBuf,
    ready: Cell<bool>,
}

impl Apt {
    pub fn new(cache: &Cache) -> Self {
        Self { root: cache.root().join("apt"), ready: Cell::new(false) }
    }

    /// Fetches `packages` with all that they depend on and unpacks everything into `to`.
    pub fn unpack(&self, release: &str, packages: &[&str], to: &Path) -> Result<()> {
        self.update()?;
        let archives = self.root.join("archives");
        remove(&archives)?;
        fs::create_dir_all(archives.join("partial"))?;
        run(self.apt_get().args(["--yes", "--download-only", "-t", release, "install"]).args(packages))
            .context("fetch Debian packages")?;
        let mut debs: Vec<PathBuf> = fs::read_dir(&archives)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        debs.sort();
        eprintln!("setup:   {} packages", debs.len());
        make_merged_usr(to)?;
        let workers = thread::available_parallelism().map_or(2, usize::from).min(8);
        let (debs, next) = (&debs, &std::sync::atomic::AtomicUsize::new(0));
        thread::scope(|scope| {
            let unpack = || -> Result<()> {
                while let Some(deb) = debs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(to))?;
                }
                Ok(())
            };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(unpack)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// Drops lists and archives: they are worth nothing once the images are made.
    pub fn forget(&self) -> Result<()> {
        remove(&self.root)
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        // -c is read after the machine's own configuration, so that its proxies stay and its lists do not.
        command.arg("-q").arg("-c").arg(self.root.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    fn update(&self) -> Result<()> {
        if self.ready.get() {
            return Ok(());
        }
        let root = self.root.display();
        for directory in ["lists/partial", "archives/partial", "log", "sources", "etc"] {
            fs::create_dir_all(self.root.join(directory))?;
        }
        fs::write(self.root.join("status"), "")?;
        fs::write(self.root.join("sources/debian.sources"), Source::of_this_machine()?.stanza())?;
        fs::write(
            self.root.join("apt.conf"),
            format!(
                r#"
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{root}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{root}/etc";
Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}";
Dir::Cache::archives "{root}/archives";
Dir::Log "{root}/log";
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Debug::NoLocking "true";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
"#
            ),
        )?;
        run(self.apt_get().arg("-o").arg("APT::Update::Error-Mode=any").arg("update")).with_context(|| {
            format!("read the package lists of {RELEASE} (a missing key: apt-get install debian-archive-keyring)")
        })?;
        self.ready.set(true);
        Ok(())
    }
}

/// In Debian, /bin, /lib and so on are links into /usr; the package that brings them is in no closure.
fn make_merged_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        if !root.join(name).exists() {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))?;
        }
    }
    Ok(())
}

/// Where the machine takes Debian itself from.
#[derive(Debug, Default, PartialEq)]
struct Source {
    uris: String,
    /// As in a deb822 file: a path, a fingerprint or a whole key with its continuation lines.
    signed_by: Option<String>,
    trusted: bool,
}

impl Source {
    fn of_this_machine() -> Result<Self> {
        let directory = Path::new("/etc/apt/sources.list.d");
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        let mut more: Vec<_> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let found = match file.extension().and_then(|e| e.to_str()) {
                Some("sources") => Self::from_deb822(&text),
                Some("list") => Self::from_lines(&text),
                _ => None,
            };
            if let Some(source) = found {
                return Ok(source);
            }
        }
        bail!(
            "apt's configuration (/etc/apt/sources.list, {}) names no source of Debian's main",
            directory.display()
        )
    }

    /// One-line format: `deb [signed-by=/path] http://… bookworm main`.
    fn from_lines(text: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let rest = line.trim().strip_prefix("deb")?;
            let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(inner) => inner.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split('#').next()?.split_whitespace();
            let (uri, suite) = (words.next()?, words.next()?);
            let option =
                |name| options.split_whitespace().find_map(|o| o.strip_prefix(name)?.strip_prefix('='));
            (is_debian(suite) && words.any(|component| component == "main")).then(|| Self {
                uris: uri.to_owned(),
                signed_by: option("signed-by").map(|keys| keys.replace(',', " ")),
                trusted: option("trusted") == Some("yes"),
            })
        })
    }

    /// deb822 format: stanzas of `Field: value` with continuation lines.
    fn from_deb822(text: &str) -> Option<Self> {
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|l| format!("{}\n", l.trim_end()))
            .collect();
        text.split("\n\n").find_map(|stanza| {
            let mut fields: Vec<(String, String)> = Vec::new();
            for line in stanza.lines() {
                match (line.starts_with([' ', '\t']), line.split_once(':'), fields.last_mut()) {
                    (true, _, Some((_, value))) => {
                        value.push('\n');
                        value.push_str(line);
                    }
                    (false, Some((name, value)), _) => {
                        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                    }
                    _ => {}
                }
            }
            let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
            let has = |name, word: &dyn Fn(&str) -> bool| {
                field(name).is_some_and(|v| v.split_whitespace().any(word))
            };
            let wanted = has("types", &|t| t == "deb")
                && has("suites", &is_debian)
                && has("components", &|c| c == "main")
                && !field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
            let uris = field("uris")?.to_owned();
            wanted.then(|| Self {
                uris,
                signed_by: field("signed-by").map(str::to_owned),
                trusted: field("trusted") == Some("yes"),
            })
        })
    }

    fn stanza(&self) -> String {
        let keys = self.signed_by.as_deref().unwrap_or("/usr/share/keyrings/debian-archive-keyring.gpg");
        let trusted = if self.trusted { "Trusted: yes\n" } else { "" };
        format!(
            "Types: deb\nURIs: {}\nSuites: {RELEASE} {BACKPORTS}\nComponents: main\nSigned-By: {keys}\n{trusted}",
            self.uris
        )
    }
}

/// The suites that a mirror of the whole of Debian has; not security or updates, which may be elsewhere.
fn is_debian(suite: &str) -> bool {
    ["bookworm", "trixie", "forky", "sid", "stable", "testing", "oldstable", "unstable"]
        .contains(&suite.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_deb822() {
        let text = "# a comment\nTypes: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\n\
            Components: main\n\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n# between\nSuites: bookworm bookworm-updates\n\
            Components: main contrib\nSigned-By:\n -----BEGIN PGP-----\n .\n abc\n";
        let source = Source::from_deb822(text).expect("the second stanza");
        assert_eq!(source.uris, "http://mirror.example/debian");
        assert_eq!(source.signed_by.as_deref(), Some("\n -----BEGIN PGP-----\n .\n abc"));
        assert_eq!(
            Source::from_deb822("Types: deb\nEnabled: no\nURIs: x\nSuites: trixie\nComponents: main\n"),
            None
        );
    }

    #[test]
    fn reads_lines() {
        let text = "# deb http://old.example bookworm main\ndeb-src http://mirror.example/debian trixie main\n\
            deb http://mirror.example/security trixie-security main\n\
            deb [arch=amd64 signed-by=/a.gpg,/b.gpg] http://mirror.example/debian trixie main # comment\n";
        let source = Source::from_lines(text).expect("the last line");
        assert_eq!(source.uris, "http://mirror.example/debian");
        assert_eq!(source.signed_by.as_deref(), Some("/a.gpg /b.gpg"));
    }
}
