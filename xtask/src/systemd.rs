//! `cargo xtask vm --systemd`: a Debian in memory whose first process is systemd, and the package's whole life on it.
//!
//! `systemd/check.py` is its last service. It speaks as the test binary of the other machines does, so its console is
//! judged in the same way.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    cpio::Cpio,
    deb, fetch,
    kernel::Kernel,
    plan::Plan,
    root,
    sh::{self, MINUTE},
    vm::{self, Machine, Outcome, Rig},
};

/// The release's own kernel. Behind the `+`: what `vm-init end` asks for.
const RELEASE: &str = "trixie";
const KERNEL: &str = "6.12";
const MACHINE: &str = "6.12+vortex.init=systemd";

/// Nothing else than what dpkg and the package's scripts ask of every Debian, the manager, and two ends for a TLS
/// connection. No udev and no D-Bus: systemctl speaks with the first process itself.
const PACKAGES: [&str; 19] = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "hostname",
    "libc-bin",
    "mount",
    "openssl",
    "passwd",
    "python3",
    "sed",
    "systemd",
    "tar",
    "util-linux",
];

/// The steps of `check.py`, in their order.
const STEPS: [&str; 7] = [
    "systemd::install",
    "systemd::traffic_of_scopes",
    "systemd::watchdog",
    "systemd::reload_under_load",
    "systemd::upgrade",
    "systemd::remove",
    "systemd::purge",
];

/// What nobody reads in a machine without people.
const LEFT_OUT: [&str; 6] = [
    "usr/share/bash-completion",
    "usr/share/doc",
    "usr/share/i18n",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/zsh",
];

/// Services that want a terminal, D-Bus or modules.
const MASKED: [&str; 5] = [
    "console-getty.service",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
];

const UNIT: &str = "\
[Unit]
Description=Check of the package and its service

[Service]
Type=exec
ExecStart=/usr/bin/python3 -u /vm/check.py
ExecStopPost=/vm/vm-init end
RuntimeMaxSec=900
Environment=PYTHON_COLORS=0
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
";

pub(crate) fn run(update: bool) -> Result<Vec<Outcome>> {
    let packages = deb::pair()?;
    let tools = vm::tools(update)?;
    let tree = debian(update)?;
    let archive = archive(&tree, &packages)?;
    let rig = Rig::with_root("systemd", &archive, tools)?;
    let kernel = Kernel::named(KERNEL)?;
    let files = kernel.files(&rig.tools, update)?;
    let mut plan = Plan::default();
    for step in STEPS {
        plan.expect(step);
    }
    let machine = Machine {
        name: MACHINE.to_owned(),
        files: files.with_context(|| format!("the archive has no {}", kernel.wanted()))?,
        plan,
        limit: 16 * MINUTE,
        is_quiet: false,
    };
    let outcomes = rig.boot_all(vec![machine], None);
    for outcome in &outcomes {
        outcome.tell();
        sh::say(&format!("KERNEL {}: {}", outcome.machine, outcome.tally));
    }
    Ok(outcomes)
}

fn debian(update: bool) -> Result<PathBuf> {
    let _lock = crate::apt::lock()?;
    let dir = sh::target().join("vm/debian");
    fetch::machine(&dir, RELEASE, &PACKAGES, update)?;
    Ok(dir.join("root"))
}

fn archive(tree: &Path, packages: &[PathBuf; 2]) -> Result<Vec<u8>> {
    let mut root = Cpio::default();
    // The kernel opens it for init before anything is mounted.
    root.device("dev/console", 5, 1);
    root.link("init", "usr/lib/systemd/systemd");
    root.file("vm/vm-init", &root::build_init()?)?;
    let own = sh::root().join("xtask/src/systemd");
    for name in ["check.py", "peer.py"] {
        root.file(&format!("vm/{name}"), &own.join(name))?;
    }
    for (package, name) in packages.iter().zip(["first.deb", "next.deb"]) {
        root.file(&format!("vm/{name}"), package)?;
    }
    let unit = "etc/systemd/system/vm-check.service";
    root.bytes(unit, 0o644, UNIT.as_bytes());
    root.link(
        "etc/systemd/system/multi-user.target.wants/vm-check.service",
        &format!("/{unit}"),
    );
    root.link(
        "etc/systemd/system/default.target",
        "/usr/lib/systemd/system/multi-user.target",
    );
    for name in MASKED {
        root.link(&format!("etc/systemd/system/{name}"), "/dev/null");
    }
    accounts(&mut root, tree)?;
    // Without it this would be a first boot, which asks questions.
    root.bytes(
        "etc/machine-id",
        0o444,
        b"5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e\n",
    );
    root.bytes("etc/hostname", 0o644, b"vm\n");
    root.bytes("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    root.bytes("etc/nsswitch.conf", 0o644, b"passwd: files\nhosts: files\n");
    copy(&mut root, tree, tree)?;
    Ok(root.finish())
}

/// What the scripts of base-passwd and passwd make, which have not run.
fn accounts(root: &mut Cpio, tree: &Path) -> Result<()> {
    let master = tree.join("usr/share/base-passwd");
    for (name, shadow, fields) in [
        ("passwd", "shadow", ":*:20000:0:99999:7:::\n"),
        ("group", "gshadow", ":*::\n"),
    ] {
        let text = fs::read_to_string(master.join(format!("{name}.master")))
            .with_context(|| format!("base-passwd has no {name}.master"))?;
        let names = text.lines().filter_map(|line| line.split(':').next());
        let secrets: String = names.map(|name| format!("{name}{fields}")).collect();
        root.bytes(&format!("etc/{name}"), 0o644, text.as_bytes());
        root.bytes(&format!("etc/{shadow}"), 0o640, secrets.as_bytes());
    }
    Ok(())
}

/// A tree of packages as it is: links are not followed, all is root's.
fn copy(root: &mut Cpio, tree: &Path, from: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))? {
        let path = entry?.path();
        let below = path.strip_prefix(tree)?;
        let name = below.to_string_lossy();
        if LEFT_OUT.iter().any(|left_out| below == Path::new(left_out)) {
            continue;
        }
        let kind = fs::symlink_metadata(&path)?;
        if kind.is_symlink() {
            root.link(&name, &fs::read_link(&path)?.to_string_lossy());
        } else if kind.is_dir() {
            root.directory(&name);
            copy(root, tree, &path)?;
        } else if kind.permissions().mode() & 0o400 != 0 {
            root.file(&name, &path)?;
        }
    }
    Ok(())
}
