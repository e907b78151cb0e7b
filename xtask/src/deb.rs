//! `cargo xtask package`: the program as a Debian package, and what must be true of it.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    release::{self, Release},
    setup,
    sh::{self, MINUTE},
};

/// What the package has to hold, and nothing else: mode, owner and name. What is printed by the program itself
/// (`man`, `completions`) comes with those commands.
const CONTENTS: [(&str, &str); 9] = [
    ("-rw-------", "./etc/vortex-agent/config.toml"),
    ("-rwxr-xr-x", "./usr/bin/vortex-agent"),
    (
        "-rw-r--r--",
        "./usr/lib/systemd/system/vortex-agent.service",
    ),
    ("-rw-r--r--", "./usr/share/doc/vortex-agent/README.md"),
    ("-rw-r--r--", "./usr/share/doc/vortex-agent/SECURITY.md"),
    (
        "-rw-r--r--",
        "./usr/share/doc/vortex-agent/changelog.Debian.gz",
    ),
    ("-rw-r--r--", "./usr/share/doc/vortex-agent/copyright"),
    ("-rw-r--r--", "./usr/share/doc/vortex-agent/sbom.cdx.json"),
    ("-rw-r--r--", "./usr/share/lintian/overrides/vortex-agent"),
];

/// The commands that print a file, and where it belongs below `usr/share`.
const PRINTED: [(&[&str], &str); 4] = [
    (&["man"], "man/man1/vortex-agent.1"),
    (
        &["completions", "bash"],
        "bash-completion/completions/vortex-agent",
    ),
    (
        &["completions", "zsh"],
        "zsh/vendor-completions/_vortex-agent",
    ),
    (
        &["completions", "fish"],
        "fish/vendor_completions.d/vortex-agent.fish",
    ),
];

/// Install, upgrade, remove and purge, in a copy of this machine that is thrown away.
const LIFE: &str = include_str!("deb.sh");

pub(crate) fn command() -> Result<()> {
    let release = release::build()?;
    setup::for_packages()?;
    stage(&release)?;
    make(&release, 1).map(drop)
}

/// The package, and one that dpkg takes for newer, with the same files.
pub(crate) fn pair() -> Result<[PathBuf; 2]> {
    let release = release::build()?;
    setup::for_packages()?;
    stage(&release)?;
    Ok([make(&release, 1)?, make(&release, 2)?])
}

/// The package is what it has to be, comes out the same twice, and leaves nothing when it goes.
pub(crate) fn check(release: &Release) -> Result<()> {
    setup::for_packages()?;
    stage(release)?;
    let package = make(release, 1)?;
    let bytes = fs::read(&package)?;
    // A file's time must not matter.
    let program = fs::File::options().append(true).open(&release.program)?;
    program.set_modified(std::time::SystemTime::now())?;
    ensure!(
        bytes == fs::read(make(release, 1)?)?,
        "it came out otherwise the second time"
    );

    let list = sh::output(
        sh::command("dpkg-deb").arg("--contents").arg(&package),
        MINUTE,
    )?;
    let found = list.lines().filter(|line| line.starts_with('-')).map(entry);
    let mut found = found
        .collect::<Option<Vec<_>>>()
        .context("another form of list")?;
    let printed = PRINTED
        .iter()
        .map(|(_, name)| format!("./usr/share/{name}"));
    let printed: Vec<String> = printed.collect();
    found.retain(|(_, name)| !printed.iter().any(|printed| name.starts_with(printed)));
    found.sort_by_key(|(_, name)| *name);
    ensure!(found == CONTENTS, "it holds {found:#?}");
    let field = |name: &str| {
        let mut dpkg = sh::command("dpkg-deb");
        sh::output(dpkg.arg("--field").arg(&package).arg(name), MINUTE)
    };
    ensure!(
        field("Depends")?.trim().is_empty(),
        "it depends on something"
    );

    let next = make(release, 2)?;
    let mut life = sh::as_root("unshare", &[]);
    life.args(["--mount", "sh", "-c", LIFE, "sh"])
        .args([&package, &next]);
    sh::run(&mut life, 5 * MINUTE)
}

/// Mode and name of a line of `dpkg-deb --contents`, if root owns the file.
fn entry(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let (mode, owner) = (words.next()?, words.next()?);
    let name = words.next_back()?;
    (owner == "0/0").then_some((mode, name))
}

/// `revision` tells packages of one version apart.
fn make(release: &Release, revision: u32) -> Result<PathBuf> {
    let package = release.dir.join(format!(
        "vortex-agent_{}-{revision}_amd64.deb",
        release::VERSION
    ));
    let mut cargo = sh::command("cargo");
    cargo
        .args([
            "deb",
            "--quiet",
            "--no-build",
            "--no-strip",
            "--locked",
            "--package",
            "vortex-agent",
        ])
        .args(["--profile", release::PROFILE, "--target", release::TARGET])
        .arg(format!("--deb-revision={revision}"))
        .arg("--output")
        .arg(&package)
        .env("SOURCE_DATE_EPOCH", release.time.to_string());
    sh::run(&mut cargo, 5 * MINUTE)?;
    Ok(package)
}

/// What is not in the checkout, beside the program, where cargo-deb looks for what was built.
fn stage(release: &Release) -> Result<()> {
    let share = release.program.with_file_name("share");
    if share.exists() {
        fs::remove_dir_all(&share)?;
    }
    let put = |name: &str, text: &[u8]| -> Result<()> {
        let path = share.join(name);
        let parent = path.parent().unwrap_or(Path::new("/"));
        // Modes of directories must not depend on who builds.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(())
    };
    put("doc/vortex-agent/sbom.cdx.json", &fs::read(release.sbom())?)?;
    for (args, name) in PRINTED {
        match release.says(args) {
            Some(text) => put(name, text.as_bytes())?,
            None => sh::say(&format!(
                "  `vortex-agent {}` prints nothing yet",
                args.join(" ")
            )),
        }
    }
    Ok(())
}
