//! The agent as it is shipped: one static program that runs on any distribution, and what is known of it.
//!
//! No path of the machine gets in, and no time but the commit's: the same commit gives the same program in any directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, elf, read::elf::ElfFile64};

use crate::{
    sbom, setup,
    sh::{self, MINUTE, SECOND},
};

pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Cargo's profile, and the directory of that name.
pub(crate) const PROFILE: &str = "dist";

pub(crate) struct Release {
    pub(crate) program: PathBuf,
    /// Where packages and images are left.
    pub(crate) dir: PathBuf,
    /// The commit, with a mark if there is more than it.
    pub(crate) revision: String,
    /// When that was, in seconds: the only time in what is shipped.
    pub(crate) time: u64,
}

pub(crate) fn build() -> Result<Release> {
    setup::for_release()?;
    let mut cargo = sh::command("cargo");
    cargo
        .args(["build", "--locked", "--package", "vortex-agent"])
        .args(["--profile", PROFILE, "--target", TARGET])
        .env("RUSTFLAGS", remapped()?)
        // zstd is C.
        .env("CC_x86_64_unknown_linux_musl", "musl-gcc");
    sh::run(&mut cargo, 30 * MINUTE)?;
    let program = sh::target().join(TARGET).join(PROFILE).join("vortex-agent");
    check(&program)?;
    let dir = sh::target().join("package");
    fs::create_dir_all(&dir)?;
    let release = Release {
        program,
        dir,
        revision: revision()?,
        time: git(&["log", "-1", "--format=%ct"])?.parse()?,
    };
    fs::write(release.sbom(), sbom::cyclone(&release)?)?;
    Ok(release)
}

impl Release {
    pub(crate) fn sbom(&self) -> PathBuf {
        self.dir.join(format!("vortex-agent-{VERSION}.cdx.json"))
    }

    /// What the program prints if it is asked, or nothing if it has no such command.
    pub(crate) fn says(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new(&self.program);
        command.args(args).stderr(std::process::Stdio::null());
        sh::output(&mut command, 10 * SECOND).ok()
    }
}

/// Panics name the file of a line: without this, by its path on this machine.
fn remapped() -> Result<String> {
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let sysroot = sh::output(sh::command("rustc").args(["--print", "sysroot"]), MINUTE)?;
    let flags = [
        (sh::target().display().to_string(), "/target"),
        (sh::root().display().to_string(), "/vortex"),
        (
            home.context("neither CARGO_HOME nor HOME is set")?,
            "/cargo",
        ),
        (sysroot.trim().to_owned(), "/rust"),
    ];
    let flags = flags
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={from}={to}"));
    Ok(flags.collect::<Vec<_>>().join(" "))
}

/// Static, position independent, without symbols, and without a path of this machine.
fn check(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("no {}", program.display()))?;
    let file: ElfFile64 = ElfFile64::parse(&*bytes)?;
    let headers = file.elf_program_headers();
    let has = |kind| {
        headers
            .iter()
            .any(|header| header.p_type.get(file.endian()) == kind)
    };
    ensure!(!has(elf::PT_INTERP), "it asks for a dynamic loader");
    ensure!(has(elf::PT_DYNAMIC), "it is not position independent");
    ensure!(file.symbols().next().is_none(), "it has symbols");
    for path in [sh::root(), sh::target()] {
        let path = path.as_os_str().as_encoded_bytes();
        let is_there = bytes.windows(path.len()).any(|bytes| bytes == path);
        ensure!(!is_there, "it names a path of this machine");
    }
    let mode = fs::metadata(program)?.permissions().mode();
    ensure!(mode & 0o111 == 0o111, "not everybody may run it");
    Ok(())
}

fn revision() -> Result<String> {
    let commit = git(&["rev-parse", "HEAD"])?;
    let is_clean = git(&["status", "--porcelain"])?.is_empty();
    Ok(if is_clean {
        commit
    } else {
        commit + "-modified"
    })
}

fn git(args: &[&str]) -> Result<String> {
    let text = sh::output(sh::command("git").args(args), MINUTE)?;
    Ok(text.trim().to_owned())
}
