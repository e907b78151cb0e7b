//! A Debian archive without touching the machine's own packages.
//!
//! Each release has a private apt state under `target/fetch`: signatures are checked as always,
//! nothing in `/etc/apt` or `/var/lib` changes, root is not needed. Because that state starts with
//! no package installed, apt resolves a wish to *everything* it needs, libc included; unpacked into
//! one directory and started by its own dynamic loader, such a program runs on any distribution.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh::{self, MINUTE, SECOND};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const RELEASES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "stable",
    "oldstable",
    "testing",
    "unstable",
];
/// An older release has some libraries in `/lib`, where newer ones have a link.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

pub(crate) struct Apt {
    dir: PathBuf,
    release: String,
}

impl Apt {
    /// The state for a release; `update` reads the archive's indexes again.
    pub(crate) fn open(release: &str, update: bool) -> Result<Self> {
        for (tool, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg")] {
            ensure!(
                sh::which(tool).is_some(),
                "{tool} is missing: Debian packages are read by it (package {package})"
            );
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: install debian-archive-keyring, it proves who signed the packages"
        );
        let dir = sh::target().join("fetch").join(release);
        let apt = Self {
            dir,
            release: release.to_owned(),
        };
        let fresh = !apt.dir.join("updated").exists();
        if fresh {
            apt.create()?;
        }
        if fresh || update {
            apt.update()?;
        }
        Ok(apt)
    }

    fn create(&self) -> Result<()> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        let (main, security) = mirrors()?;
        let release = &self.release;
        let source =
            |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main\n");
        let mut sources =
            source(&main, release) + &source(&security, &format!("{release}-security"));
        if release == "trixie" {
            sources += &source(&main, "trixie-backports");
        }
        fs::write(self.dir.join("sources.list"), sources)?;
        fs::write(self.dir.join("status"), "")?;
        // An old suite's index is no longer renewed, so its date can't be asked for. The hooks that
        // container images set would clean the machine's own cache.
        fs::write(
            self.dir.join("apt.conf"),
            format!(
                "Dir::Etc::sourcelist \"{dir}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
                 Dir::State \"{dir}\";\nDir::State::lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\n\
                 Dir::Cache \"{dir}/cache\";\nAcquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
                 Acquire::Check-Valid-Until \"false\";\nAPT::Architecture \"amd64\";\n\
                 #clear APT::Architectures;\nAPT::Architectures {{ \"amd64\"; }};\n\
                 APT::Sandbox::User \"root\";\n#clear APT::Update::Post-Invoke;\n\
                 #clear APT::Update::Post-Invoke-Success;\n#clear DPkg::Post-Invoke;\n",
                dir = self.dir.display()
            ),
        )?;
        Ok(())
    }

    fn update(&self) -> Result<()> {
        sh::say(&format!("  reading the package index of {}", self.release));
        sh::run(&mut self.apt("apt-get", &["-qq", "update"]), 5 * MINUTE)?;
        fs::write(self.dir.join("updated"), "")?;
        Ok(())
    }

    fn apt(&self, tool: &str, args: &[&str]) -> std::process::Command {
        let mut command = sh::command(tool);
        command
            .arg("-c")
            .arg(self.dir.join("apt.conf"))
            .args(args)
            .env("LC_ALL", "C");
        command
    }

    /// The packages named PREFIX, digits and dots, SUFFIX; the newest, if there is one.
    pub(crate) fn newest(&self, prefix: &str, suffix: &str) -> Result<Option<String>> {
        let names = sh::output(&mut self.apt("apt-cache", &["pkgnames", prefix]), MINUTE)?;
        let version = |name: &str| -> Option<Vec<u64>> {
            let middle = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            middle.split('.').map(|part| part.parse().ok()).collect()
        };
        Ok(names
            .lines()
            .filter(|name| version(name).is_some())
            .max_by_key(|name| version(name))
            .map(str::to_owned))
    }

    /// Downloads one package, without what it depends on, and unpacks it.
    pub(crate) fn unpack_alone(&self, package: &str, to: &Path) -> Result<()> {
        let debs = self.debs(package)?;
        self.again_if_stale(|| {
            let mut download = self.apt("apt-get", &["-qq", "download", package]);
            sh::run(download.current_dir(&debs), 10 * MINUTE)
        })?;
        unpack(&debs, to)
    }

    /// Downloads packages with all they depend on and makes a root of them, for programs of this machine to be started
    /// from.
    pub(crate) fn unpack_closure(&self, packages: &[&str], to: &Path) -> Result<()> {
        let archives = self.closure(packages)?;
        unpack(&archives, to)?;
        empty(&archives)?;
        own_loader(to)
    }

    /// The same as a machine of its own: the files as they are, and dpkg's books of them. No script of a package runs.
    pub(crate) fn unpack_machine(&self, packages: &[&str], to: &Path) -> Result<()> {
        let archives = self.closure(packages)?;
        unpack(&archives, to)?;
        write_books(&archives, to)?;
        empty(&archives)
    }

    /// A directory with these packages and all they depend on.
    fn closure(&self, packages: &[&str]) -> Result<PathBuf> {
        let archives = self.dir.join("cache/archives");
        empty(&archives)?;
        self.again_if_stale(|| {
            let mut install = self.apt(
                "apt-get",
                &[
                    "-qq",
                    "-y",
                    "--no-install-recommends",
                    "--download-only",
                    "install",
                ],
            );
            sh::output(install.args(packages), 10 * MINUTE).map(drop)
        })?;
        Ok(archives)
    }

    /// Pool files vanish with each point release: on a failure the index is read again, once.
    fn again_if_stale(&self, fetch: impl Fn() -> Result<()>) -> Result<()> {
        fetch().or_else(|_| {
            self.update()?;
            fetch()
        })
    }

    fn debs(&self, package: &str) -> Result<PathBuf> {
        let debs = self.dir.join("debs").join(package);
        fs::create_dir_all(&debs)?;
        empty(&debs)?;
        Ok(debs)
    }
}

/// The environment that a program of an unpacked root needs.
pub(crate) fn environment(root: &Path) -> Vec<(&'static str, String)> {
    let path = |rest| format!("{}/{rest}", root.display());
    vec![
        ("LD_LIBRARY_PATH", LIBRARIES.map(path).join(":")),
        ("OPENSSL_CONF", path("etc/ssl/openssl.cnf")),
        (
            "OPENSSL_MODULES",
            path("usr/lib/x86_64-linux-gnu/ossl-modules"),
        ),
    ]
}

/// The archive and its security archive, as the machine is configured to reach them.
fn mirrors() -> Result<(String, String)> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(parts.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let text: String = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text + "\n\n")
        .collect();
    let sources = sources(&text);
    let find = |security: bool| {
        let is = |suite: &String| match suite.strip_suffix("-security") {
            Some(release) => security && RELEASES.contains(&release),
            None => !security && RELEASES.contains(&suite.as_str()),
        };
        sources
            .iter()
            .find(|(_, suites)| suites.iter().any(is))
            .map(|(uri, _)| uri.trim_end_matches('/').to_owned())
    };
    let main = find(false).context(
        "no Debian mirror in /etc/apt/sources.list or /etc/apt/sources.list.d: other kernels and \
         other OpenSSL versions come from Debian's archive, so add one there",
    )?;
    let security = find(true).unwrap_or_else(|| format!("{main}-security"));
    Ok((main, security))
}

/// URI and suites of each source in either of apt's two formats.
fn sources(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<String> {
            let value = stanza.lines().find_map(|line| line.strip_prefix(name));
            value
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect()
        };
        if let Some(uri) = field("URIs:").first() {
            found.push((uri.clone(), field("Suites:")));
        }
        for line in stanza.lines() {
            let mut words = line.split_whitespace().peekable();
            if words.next() != Some("deb") {
                continue;
            }
            if words.peek().is_some_and(|word| word.starts_with('[')) {
                words.by_ref().find(|word| word.ends_with(']'));
            }
            if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                found.push((uri.to_owned(), vec![suite.to_owned()]));
            }
        }
    }
    found
}

fn unpack(debs: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for deb in packages_in(debs)? {
        sh::run(
            sh::command("dpkg-deb").arg("-x").arg(&deb).arg(to),
            2 * MINUTE,
        )?;
    }
    Ok(())
}

fn packages_in(debs: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(debs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    ensure!(
        !found.is_empty(),
        "apt-get left no package in {}",
        debs.display()
    );
    found.sort();
    Ok(found)
}

/// What dpkg knows of packages that it has installed: who they are, and which files are theirs.
fn write_books(debs: &Path, to: &Path) -> Result<()> {
    let books = to.join("var/lib/dpkg");
    for dir in ["info", "updates", "triggers", "alternatives"] {
        fs::create_dir_all(books.join(dir))?;
    }
    let mut status = String::new();
    for deb in packages_in(debs)? {
        let ask = |question: &str| {
            let mut dpkg = sh::command("dpkg-deb");
            sh::output(dpkg.arg(question).arg(&deb), MINUTE)
        };
        let control = ask("--field")?;
        let field = |name: &str| {
            let mut lines = control.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let name = field("Package").context("a package without a name")?;
        let list = match field("Multi-Arch") {
            Some("same") => format!("{name}:amd64.list"),
            _ => format!("{name}.list"),
        };
        let files = ask("--contents")?;
        let files: String = files.lines().filter_map(listed).collect();
        fs::write(books.join("info").join(list), files)?;
        status += &format!("{}\nStatus: install ok installed\n\n", control.trim_end());
    }
    fs::write(books.join("status"), status)?;
    Ok(())
}

/// A line of `dpkg-deb --contents` as dpkg lists the file.
fn listed(line: &str) -> Option<String> {
    let (_, name) = line.split_once(" .")?;
    let name = name.split(" -> ").next()?.trim_end_matches('/');
    Some(format!("{}\n", if name.is_empty() { "/." } else { name }))
}

fn empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Makes each program of a root ask for the root's own dynamic loader, so that it can be started
/// directly and `/proc/PID/exe` is the program itself, not the loader.
fn own_loader(root: &Path) -> Result<()> {
    let loader = LIBRARIES
        .iter()
        .map(|dir| root.join(dir).join("ld-linux-x86-64.so.2"))
        .find_map(|file| file.canonicalize().ok())
        .with_context(|| format!("no dynamic loader in {}", root.display()))?;
    for dir in ["usr/bin", "usr/sbin"] {
        // Not every root has both.
        let Ok(entries) = fs::read_dir(root.join(dir)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_symlink() || !path.is_file() {
                continue;
            }
            let mut elf = fs::read(&path)?;
            if set_interpreter(&mut elf, &loader) {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                fs::write(&path, elf)
                    .with_context(|| format!("could not write {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Appends the loader's path to an ELF file and points `PT_INTERP` at it. The kernel reads the path
/// by its file offset, so it needs no room in the image. False: not a dynamic x86-64 program.
fn set_interpreter(elf: &mut Vec<u8>, loader: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    const HEADER: usize = 56;
    if !elf.starts_with(b"\x7fELF\x02\x01") || elf.len() < 64 {
        return false;
    }
    let at = u64::from_le_bytes(elf[32..40].try_into().expect("8 bytes"));
    let count = u16::from_le_bytes([elf[56], elf[57]]);
    let Some(header) = (0..usize::from(count))
        .filter_map(|n| Some(usize::try_from(at).ok()? + n * HEADER))
        .find(|&at| elf.get(at..at + 4) == Some(&PT_INTERP.to_le_bytes()[..]))
    else {
        return false;
    };
    if elf.len() < header + HEADER {
        return false;
    }
    let name = [loader.as_os_str().as_encoded_bytes(), b"\0"].concat();
    let offset = (elf.len() as u64).to_le_bytes();
    let size = (name.len() as u64).to_le_bytes();
    elf[header + 8..header + 16].copy_from_slice(&offset);
    elf[header + 32..header + 40].copy_from_slice(&size);
    elf.extend(name);
    true
}

/// One process at a time works below `target/fetch`.
pub(crate) fn lock() -> Result<fs::File> {
    let dir = sh::target().join("fetch");
    fs::create_dir_all(&dir)?;
    let file = fs::File::create(dir.join("lock"))?;
    for _ in 0..600 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(SECOND),
            Err(fs::TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    bail!(
        "another xtask has been downloading for ten minutes: see what holds {}",
        dir.join("lock").display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_both_formats_are_read() {
        let text = "Types: deb\n# a comment\nURIs: http://a/debian\nSuites: bookworm bookworm-updates\n\n\
                    deb [arch=amd64 signed-by=/k] http://b/debian trixie main\ndeb http://c/x trixie-security main\n\
                    #deb http://d/debian sid main\n";
        let suites = |suites: &[&str]| {
            suites
                .iter()
                .map(|&suite| suite.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            sources(text),
            [
                (
                    "http://a/debian".to_owned(),
                    suites(&["bookworm", "bookworm-updates"])
                ),
                ("http://b/debian".to_owned(), suites(&["trixie"])),
                ("http://c/x".to_owned(), suites(&["trixie-security"])),
            ]
        );
    }

    #[test]
    fn files_as_dpkg_lists_them() {
        for (line, expected) in [
            ("drwxr-xr-x root/root         0 2025-04-10 10:02 ./", "/.\n"),
            (
                "drwxr-xr-x root/root         0 2025-04-10 10:02 ./usr/bin/",
                "/usr/bin\n",
            ),
            (
                "lrwxrwxrwx root/root         0 2025-04-10 10:02 ./bin -> usr/bin",
                "/bin\n",
            ),
            (
                "-rwxr-xr-x root/root     12345 2025-04-10 10:02 ./usr/bin/a b",
                "/usr/bin/a b\n",
            ),
        ] {
            assert_eq!(listed(line).as_deref(), Some(expected));
        }
    }

    #[test]
    fn the_interpreter_of_this_test_can_be_set() {
        let own = fs::read(std::env::current_exe().expect("exe")).expect("read");
        let mut elf = own.clone();
        assert!(set_interpreter(&mut elf, Path::new("/somewhere/ld.so")));
        assert_eq!(&elf[own.len()..], b"/somewhere/ld.so\0");
        assert!(!set_interpreter(
            &mut b"#!/bin/sh\n".to_vec(),
            Path::new("/x")
        ));
    }
}
