//! The kernels the tests run on: Debian's cloud images, taken out of their packages, with the few modules
//! that a test needs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt::{self, Apt},
    sh::{self, MINUTE},
};

pub(crate) struct Kernel {
    pub(crate) version: &'static str,
    release: &'static str,
    /// The package is named PREFIX, digits, SUFFIX; the newest is taken.
    package: (&'static str, &'static str),
}

/// What a virtual machine runs.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// Not compressed, which QEMU starts faster.
    pub(crate) image: PathBuf,
    /// A directory with those of [`MODULES`] that there are.
    pub(crate) modules: PathBuf,
}

/// TLS in the kernel and its cipher, each behind what it needs.
const MODULES: [&str; 5] = ["gf128mul", "ghash-generic", "ctr", "gcm", "tls"];

/// Since 6.19 the image is in `linux-binary-*`, its modules are in `linux-modules-*`, and `linux-image-*` is
/// empty.
const KERNELS: &[Kernel] = &[
    Kernel {
        version: "5.10",
        release: "bullseye",
        package: ("linux-image-5.10.0-", "-cloud-amd64"),
    },
    Kernel {
        version: "6.1",
        release: "bookworm",
        package: ("linux-image-6.1.0-", "-cloud-amd64"),
    },
    Kernel {
        version: "6.12",
        release: "trixie",
        package: ("linux-image-6.12.", "+deb13-cloud-amd64"),
    },
    Kernel {
        version: "6.18",
        release: "trixie",
        package: ("linux-image-6.18.", "+deb13-cloud-amd64"),
    },
    Kernel {
        version: "7.2",
        release: "trixie",
        package: ("linux-binary-7.2.", "+deb13-cloud-amd64"),
    },
];

impl Kernel {
    pub(crate) fn named(version: &str) -> Result<&'static Self> {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.version).collect();
        let found = KERNELS.iter().find(|kernel| kernel.version == version);
        found.with_context(|| format!("no kernel {version}: there are {}", known.join(", ")))
    }

    /// The package as a person would look for it.
    pub(crate) fn wanted(&self) -> String {
        let (prefix, suffix) = self.package;
        format!("{prefix}*{suffix} of {}", self.release)
    }

    /// They are kept, so that a run repeats exactly, needs no network, and outlives the package. None: the
    /// archive has none.
    pub(crate) fn files(&self, tools: &Path, update: bool) -> Result<Option<Files>> {
        let dir = sh::target().join("vm/kernels").join(self.version);
        let (image, modules) = (dir.join("vmlinux"), dir.join("modules"));
        let files = Files { image, modules };
        let is_there = files.image.exists() && files.modules.exists();
        if is_there && !update {
            return Ok(Some(files));
        }
        let _lock = apt::lock()?;
        let apt = Apt::open(self.release, update)?;
        let (prefix, suffix) = self.package;
        let Some(package) = apt.newest(prefix, suffix)? else {
            return Ok(is_there.then_some(files));
        };
        sh::say(&format!("  fetching {package}"));
        let tree = dir.join("tree");
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        fs::create_dir_all(&tree)?;
        apt.unpack_alone(&package, &tree)?;
        if let Some(version) = package.strip_prefix("linux-binary-") {
            apt.unpack_alone(&format!("linux-modules-{version}"), &tree)?;
        }
        let modules = dir.join("part-modules");
        for old in [&modules, &files.modules] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir(&modules)?;
        take_modules(&tree, &modules, tools)?;
        extract(&packed(&tree)?, &dir.join("part"), tools)
            .with_context(|| format!("could not unpack the kernel of {package}"))?;
        fs::remove_dir_all(&tree)?;
        fs::write(dir.join("package"), format!("{package}\n"))?;
        fs::rename(dir.join("part"), &files.image)?;
        fs::rename(&modules, &files.modules)?;
        Ok(Some(files))
    }
}

/// What of [`MODULES`] is below `[usr/]lib/modules/V`, not packed.
fn take_modules(tree: &Path, to: &Path, tools: &Path) -> Result<()> {
    let versions = ["lib/modules", "usr/lib/modules"].map(|modules| tree.join(modules));
    let versions = versions
        .iter()
        .filter_map(|modules| fs::read_dir(modules).ok());
    for version in versions.flatten().flatten() {
        for name in MODULES {
            for directory in ["crypto", "lib/crypto", "net/tls"] {
                let plain = version.path().join(format!("kernel/{directory}/{name}.ko"));
                let packed = plain.with_extension("ko.xz");
                if packed.exists() {
                    let mut busybox = sh::command(tools.join("usr/bin/busybox"));
                    sh::run(busybox.arg("unxz").arg(&packed), MINUTE)?;
                }
                if plain.exists() {
                    fs::copy(&plain, to.join(format!("{name}.ko")))?;
                }
            }
        }
    }
    Ok(())
}

/// `boot/vmlinuz-V`, or since 6.19 `usr/lib/modules/V/vmlinuz`.
fn packed(tree: &Path) -> Result<PathBuf> {
    for (dir, below) in [("boot", ""), ("usr/lib/modules", "vmlinuz")] {
        for entry in fs::read_dir(tree.join(dir)).into_iter().flatten().flatten() {
            let file = if below.is_empty() {
                entry.path()
            } else {
                entry.path().join(below)
            };
            if file.is_file() && file.to_string_lossy().contains("/vmlinuz") {
                return Ok(file);
            }
        }
    }
    bail!("no vmlinuz in {}", tree.display())
}

/// Takes the ELF image out of a bzImage, by its setup header
/// (<https://docs.kernel.org/arch/x86/boot.html>, `payload_offset` and `payload_length`).
fn extract(packed: &Path, to: &Path, tools: &Path) -> Result<()> {
    let image = fs::read(packed)?;
    let number =
        |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let payload = || {
        let setup = match *image.get(0x1f1)? {
            0 => 5,
            sectors => usize::from(sectors) + 1,
        };
        let start = setup * 512 + number(0x248)?;
        // The last four bytes are the unpacked size.
        image.get(start..(start + number(0x24c)?).checked_sub(4)?)
    };
    let payload = payload().context("not a bzImage")?;
    let compressed = to.with_extension("packed");
    fs::write(&compressed, payload)?;
    let (tool, args): (_, &[&str]) = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-d", "-q", "-f", "-o"]),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-d", "-q", "-f"]),
        _ => bail!("the kernel is compressed by something else than zstd or lz4"),
    };
    let mut command = sh::command(tools.join("usr/bin").join(tool));
    command.envs(apt::environment(tools)).args(args);
    // zstd takes the output after -o, lz4 as its second name.
    let files = if tool == "zstd" {
        [to, &compressed]
    } else {
        [&compressed, to]
    };
    sh::run(command.args(files), MINUTE)?;
    fs::remove_file(&compressed)?;
    ensure!(
        fs::read(to)?.starts_with(b"\x7fELF"),
        "what {tool} unpacked is no ELF file"
    );
    Ok(())
}
