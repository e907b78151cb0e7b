//! What a machine needs beyond rustup: the linker for BPF, cargo-fuzz and some Debian packages.
//!
//! Every check is a look at a file or a short question, so the second time is quick without a
//! memory of the first, and a package that was removed since is noticed.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{
    release,
    sh::{self, MINUTE, SECOND},
};

const BPF_LINKER: &str = "0.10.3";
const CARGO_FUZZ: &str = "0.13.2";
const CARGO_DEB: &str = "3.8.0";

/// A Debian package and the program (or, with a slash, the file) that shows it is not needed.
type Need = (&'static str, &'static str);

const DEMO: &[Need] = &[
    ("curl", "curl"),
    ("nodejs", "node"),
    ("openssl", "openssl"),
    ("python3", "python3"),
];

/// What C there is becomes part of the static program.
const RELEASE: &[Need] = &[("musl-tools", "musl-gcc")];

/// The tests use the system's Python, whose modules are packages; nginx is a private copy
/// (`fetch.rs`), and so is QEMU (`vm.rs`).
const TESTS: &[Need] = &[
    ("bpftool", "bpftool"),
    ("btrfs-progs", "mkfs.btrfs"),
    ("containerd", "containerd"),
    (
        "debian-archive-keyring",
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    ),
    ("default-jre-headless", "keytool"),
    ("erlang-base", "erl"),
    ("erlang-ssl", "/var/lib/dpkg/info/erlang-ssl.list"),
    ("gcc", "gcc"),
    ("git", "/usr/bin/git"),
    ("libc6-dev", "/usr/include/stdio.h"),
    ("libgnutls28-dev", "/usr/include/gnutls/gnutls.h"),
    ("libmbedtls-dev", "/usr/include/mbedtls/ssl.h"),
    ("libnss3-dev", "/usr/include/nss/ssl.h"),
    ("libssl-dev", "/usr/include/openssl/ssl.h"),
    ("libwolfssl-dev", "/usr/include/wolfssl/ssl.h"),
    ("make", "make"),
    ("npm", "npm"),
    ("pkg-config", "pkg-config"),
    ("runc", "runc"),
    ("python3", "/usr/bin/python3"),
    (
        "python3-aiohttp",
        "/usr/lib/python3/dist-packages/aiohttp/__init__.py",
    ),
    (
        "python3-httpx",
        "/usr/lib/python3/dist-packages/httpx/__init__.py",
    ),
    (
        "python3-pip",
        "/usr/lib/python3/dist-packages/pip/__init__.py",
    ),
    (
        "python3-requests",
        "/usr/lib/python3/dist-packages/requests/__init__.py",
    ),
    (
        "python3-uvloop",
        "/usr/lib/python3/dist-packages/uvloop/__init__.py",
    ),
    ("sudo", "sudo"),
    ("systemd", "systemd-analyze"),
    ("wget", "wget"),
];

/// Packages come first: who is asked for a password is asked while still there.
pub(crate) fn everything() -> Result<()> {
    let packages = packages(&[DEMO, TESTS].concat());
    // Much can be built and tested without them.
    build()?;
    tool("cargo-fuzz", &["cargo", "fuzz"], CARGO_FUZZ)?;
    packages
}

pub(crate) fn for_demo() -> Result<()> {
    packages(DEMO)?;
    build()
}

/// The static program.
pub(crate) fn for_release() -> Result<()> {
    build()?;
    let add = ["target", "add", release::TARGET, "--toolchain", &channel()?];
    sh::run(sh::command("rustup").args(add), 10 * MINUTE)?;
    packages(RELEASE)
}

pub(crate) fn for_packages() -> Result<()> {
    tool("cargo-deb", &["cargo", "deb"], CARGO_DEB)
}

/// The pinned toolchain with its parts, and the linker for the kernel programs.
fn build() -> Result<()> {
    let channel = channel()?;
    let there = |args: &[&str]| sh::output(sh::command(args[0]).args(&args[1..]), MINUTE);
    let sysroot = there(&["rustc", "--print", "sysroot"]).unwrap_or_default();
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !source.exists()
        || !["rustfmt", "cargo-clippy"]
            .iter()
            .all(|tool| Path::new(sysroot.trim()).join("bin").join(tool).exists())
    {
        sh::say(&format!("  toolchain {channel}: installing"));
        sh::run(
            sh::command("rustup").args(["toolchain", "install"]),
            20 * MINUTE,
        )
        .context("the toolchain of rust-toolchain.toml is needed, see https://rustup.rs")?;
    }
    sh::say(&format!("  Rust {channel} is there"));
    tool("bpf-linker", &["bpf-linker"], BPF_LINKER)
}

/// A program that is built from its source, if it is not there. `asks` tells its version.
fn tool(name: &str, asks: &[&str], version: &str) -> Result<()> {
    // Of a subcommand that is missing cargo says much, and none of it is what to do here.
    let mut question = sh::command(asks[0]);
    question
        .args(&asks[1..])
        .arg("--version")
        .stderr(Stdio::null());
    let there = sh::output(&mut question, 10 * SECOND);
    if there.is_ok_and(|there| there.trim() == format!("{name} {version}")) {
        sh::say(&format!("  {name} {version} is there"));
        return Ok(());
    }
    // Built by the pinned toolchain, whose LLVM the linker uses and whose objects it reads.
    sh::say(&format!("  {name} {version}: installing, about a minute"));
    let mut install = sh::command("cargo");
    install
        .arg(format!("+{}", channel()?))
        .args(["install", "--locked", "--force"])
        .arg(format!("{name}@{version}"))
        .env_remove("CARGO_TARGET_DIR");
    sh::run(&mut install, 20 * MINUTE)
}

fn channel() -> Result<String> {
    let text = fs::read_to_string(sh::root().join("rust-toolchain.toml"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("channel = "));
    Ok(line
        .context("rust-toolchain.toml names no channel")?
        .trim_matches('"')
        .to_owned())
}

fn packages(needs: &[Need]) -> Result<()> {
    let missing = |(_, proof): &&Need| match proof.starts_with('/') {
        true => !Path::new(proof).exists(),
        false => sh::which(proof).is_none(),
    };
    let mut names: Vec<&str> = needs
        .iter()
        .filter(missing)
        .map(|(name, _)| *name)
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        sh::say("  packages: nothing is missing");
        return Ok(());
    }
    let list = names.join(" ");
    if sh::which("apt-get").is_none() {
        bail!("install these packages with your system's package manager, then try again: {list}");
    }
    sh::say(&format!("  packages: installing {list}"));
    let env = [
        ("DEBIAN_FRONTEND", "noninteractive".to_owned()),
        ("NEEDRESTART_MODE", "l".to_owned()),
    ];
    let apt = |args: &[&str], limit| sh::run(sh::as_root("apt-get", &env).args(args), limit);
    apt(&["-qq", "update"], 5 * MINUTE)
        .and_then(|()| {
            let install = ["-qq", "-y", "--no-install-recommends", "install"];
            apt(&[&install[..], &names].concat(), 20 * MINUTE)
        })
        .with_context(|| format!("could not install packages; as root: apt-get install {list}"))
}
