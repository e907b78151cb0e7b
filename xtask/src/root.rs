//! The root of the virtual machines, all of it in memory: this machine's programs with their libraries, the
//! private copies of `fetch.rs`, the agent, the test binary, and the tests' C programs, compiled.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cpio::Cpio,
    sh::{self, MINUTE},
};

/// Where the tests find what only a virtual machine needs.
pub(crate) const AGENT: &str = "/vm/vortex-agent";
pub(crate) const E2E: &str = "/vm/e2e";
pub(crate) const COMPILED: &str = "/vm/programs";

/// Programs of this machine that busybox does not have, or not with the options that the tests use.
const PROGRAMS: &[&str] = &[
    "bash",
    "btrfs",
    "curl",
    "date",
    "env",
    "losetup",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mount",
    "node",
    "nsenter",
    "openssl",
    "python3",
    "setarch",
    "setpriv",
    "sleep",
    "taskset",
    "truncate",
    "umount",
    "unshare",
];

/// C programs of `tests/programs`. There is no compiler in the guest.
const COMPILE: &[&str] = &[
    "abandon",
    "absent",
    "ahead",
    "async_job",
    "bio_connect",
    "churn",
    "early",
    "gnutls",
    "late",
    "letters",
    "life",
    "load",
    "mix",
    "move",
    "sealed",
    "silent",
    "spin",
    "streams",
    "swap",
    "victim",
];
const COMPILE_TO_PRELOAD: &[&str] = &["talker"];

/// Directories of Python and of the private copies that no test needs.
const LEFT_OUT: &[&str] = &[
    "__phello__",
    "dist-packages",
    "ensurepip",
    "gconv",
    "gi",
    "idlelib",
    "lib2to3",
    "perl",
    "perl-base",
    "perl5",
    "pip",
    "pkg_resources",
    "pydoc_data",
    "pygments",
    "rich",
    "setuptools",
    "share",
    "test",
    "tkinter",
    "turtledemo",
    "var",
];

/// Fixtures of tests that run natively only: all of the root is memory.
const NATIVE: &[&str] = &[
    "awscrt",
    "bun",
    "claude",
    "codex",
    "containerd",
    "containerd-1.7",
    "curl_cffi",
    "deno",
    "deno-2.5",
    "grpcio",
    "httpx",
    "kubernetes",
    "kubernetes-validate",
    "native-tls",
    "native-tls-vendored",
    "opencode",
    "podman",
    "pyopenssl",
    "pyopenssl-1.1.1",
    "reach",
    "rotel",
    "websockets",
];

/// The archive that all kernels share. `own` are the agent and the test binary.
pub(crate) fn build(tools: &Path, fixtures: &Path, agent: &Path, e2e: &Path) -> Result<Vec<u8>> {
    let mut root = Cpio::default();
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "mnt",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
    ] {
        root.directory(dir);
    }
    for dir in ["bin", "sbin", "lib", "lib64"] {
        root.link(dir, &format!("usr/{dir}"));
    }
    // The kernel opens it for init before anything is mounted.
    root.device("dev/console", 5, 1);
    root.file("init", &build_init()?)?;

    let mut programs = vec![
        (AGENT.to_owned(), agent.to_owned()),
        (E2E.to_owned(), e2e.to_owned()),
        // A shell that starts commands as most machines' does.
        ("usr/bin/sh".to_owned(), system("dash")?),
    ];
    for name in PROGRAMS {
        programs.push((format!("usr/bin/{name}"), system(name)?));
    }
    for name in COMPILE {
        programs.push((format!("{COMPILED}/{name}"), compile(name, &[])?));
    }
    for name in COMPILE_TO_PRELOAD {
        let library = compile(name, &["-shared", "-fPIC"])?;
        programs.push((format!("{COMPILED}/{name}"), library));
    }
    let mut binaries = Vec::new();
    for (name, file) in programs {
        root.file(&name, &file)?;
        binaries.push(file);
    }
    python(&mut root, &mut binaries)?;
    for library in libraries(&binaries)? {
        // /lib is a link here and there: the file goes where the link leads.
        let parent = library
            .parent()
            .context("a library lies somewhere")?
            .canonicalize()?;
        let name = parent.join(library.file_name().context("a library has a name")?);
        root.file(&name.to_string_lossy(), &library)?;
    }
    directory(&mut root, fixtures, &mut |path| {
        let is_native = NATIVE.iter().any(|name| path == fixtures.join(name));
        !is_native && !is_left_out(path)
    })?;
    texts(&mut root)?;
    busybox(&mut root, tools)?;
    Ok(root.finish())
}

fn texts(root: &mut Cpio) -> Result<()> {
    root.file("usr/lib/ssl/openssl.cnf", Path::new("/etc/ssl/openssl.cnf"))?;
    for (name, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/nsswitch.conf", "hosts: files\n"),
    ] {
        root.bytes(name, 0o644, text.as_bytes());
    }
    // The test binary knows these by the path it was built at, some through `agent/..`.
    root.directory(&sh::root().join("agent").to_string_lossy());
    directory(root, &sh::root().join("tests/programs"), &mut |_| true)
}

/// A program of the system, not one that stands before it in PATH.
fn system(name: &str) -> Result<PathBuf> {
    let mut places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter();
    places
        .find_map(|dir| Path::new(dir).join(name).canonicalize().ok())
        .with_context(|| format!("{name} is missing: run `cargo xtask setup`"))
}

/// A C program of the tests, as `Lab::compiled` makes it.
fn compile(name: &str, options: &[&str]) -> Result<PathBuf> {
    let dir = sh::target().join("vm/programs");
    fs::create_dir_all(&dir)?;
    let binary = dir.join(name);
    let source = sh::root().join(format!("tests/programs/{name}.c"));
    let mut cc = sh::command("cc");
    cc.args(["-O1", "-g", "-Wno-deprecated-declarations", "-o"])
        .arg(&binary)
        .args(options)
        .arg(source)
        .args(match name {
            "gnutls" => &["-lgnutls"][..],
            _ => &["-lssl", "-lcrypto", "-lpthread", "-ldl"],
        });
    sh::run(&mut cc, MINUTE)?;
    Ok(binary)
}

/// Init is static, so it can still speak when a library is missing.
pub(crate) fn build_init() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut cargo = sh::command("cargo");
    cargo.args(["build", "--quiet", "--release", "--package", "xtask"]);
    cargo.args(["--bin", "vm-init", "--target", TARGET]);
    sh::run(
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"),
        10 * MINUTE,
    )?;
    Ok(sh::target().join(TARGET).join("release/vm-init"))
}

/// The system's standard library, with its compiled form, and the packages.
fn python(root: &mut Cpio, binaries: &mut Vec<PathBuf>) -> Result<()> {
    let mut ask = sh::command("/usr/bin/python3");
    ask.args([
        "-I",
        "-c",
        "import sysconfig; print(sysconfig.get_path('stdlib'))",
    ]);
    let library = PathBuf::from(sh::output(&mut ask, MINUTE)?.trim());
    for dir in [&library, Path::new("/usr/lib/python3/dist-packages")] {
        directory(root, dir, &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".so") {
                binaries.push(path.to_owned());
            }
            !is_left_out(path) && !name.starts_with("config-")
        })?;
    }
    Ok(())
}

fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    LEFT_OUT.iter().any(|left_out| name == *left_out)
}

/// Copies a directory to the same place, but for what `want` refuses.
fn directory(root: &mut Cpio, from: &Path, want: &mut dyn FnMut(&Path) -> bool) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))? {
        let path = entry?.path();
        if !want(&path) {
            continue;
        }
        let name = path.to_string_lossy();
        match fs::read_link(&path) {
            Ok(to) if to.is_relative() => root.link(&name, &to.to_string_lossy()),
            _ if path.is_dir() => directory(root, &path, want)?,
            _ if path.is_file() => root.file(&name, &path)?,
            _ => {}
        }
    }
    Ok(())
}

/// All libraries the binaries are linked to, by the names the loader looks for.
fn libraries(binaries: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    // A module that needs a library this machine lacks makes ldd fail; only that module would miss it.
    let text = sh::command("ldd")
        .args(binaries)
        .stderr(std::process::Stdio::null())
        .output()?
        .stdout;
    let text = String::from_utf8_lossy(&text);
    let words = text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'));
    let found: BTreeSet<_> = words.map(PathBuf::from).collect();
    ensure!(!found.is_empty(), "ldd found no library of the agent");
    Ok(found)
}

/// Busybox for all small commands that are not there as themselves.
fn busybox(root: &mut Cpio, tools: &Path) -> Result<()> {
    let binary = tools.join("usr/bin/busybox");
    root.file("usr/bin/busybox", &binary)?;
    for applet in sh::output(sh::command(&binary).arg("--list"), MINUTE)?.lines() {
        let name = format!("usr/bin/{applet}");
        if !root.has(&name) {
            root.link(&name, "busybox");
        }
    }
    Ok(())
}
