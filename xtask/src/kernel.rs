//! The kernels the tests run on: Debian's cloud images, taken out of their packages, with the few modules
//! that a test needs.

use std::{
    collections::BTreeMap,
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
    /// A directory with those of [`MODULES`] that there are and what they need, and their [`ORDER`].
    pub(crate) modules: PathBuf,
}

/// What the tests mount, TLS in the kernel, and the algorithms that these ask for by name. Many kernels have
/// some of them built in.
const MODULES: &[&str] = &[
    "crc32c_generic",
    "crc32c_cryptoapi",
    "xxhash_generic",
    "blake2b_generic",
    "gcm",
    "ctr",
    "ghash_generic",
    "tls",
    "loop",
    "btrfs",
    "overlay",
    "fuse",
];

/// The names of the modules, each behind what it needs.
pub(crate) const ORDER: &str = "order";

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
        let wanted = MODULES.join(" ");
        let stamp = dir.join("modules-wanted");
        let is_there = files.image.exists()
            && files.modules.exists()
            && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted);
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
        fs::write(stamp, wanted)?;
        Ok(Some(files))
    }
}

/// What of [`MODULES`] is below `[usr/]lib/modules/V`, not packed.
fn take_modules(tree: &Path, to: &Path, tools: &Path) -> Result<()> {
    let mut there = BTreeMap::new();
    for modules in ["lib/modules", "usr/lib/modules"] {
        find_modules(&tree.join(modules), &mut there)?;
    }
    let mut order = Vec::new();
    for name in MODULES {
        take_module(name, &there, to, tools, &mut order)?;
    }
    fs::write(to.join(ORDER), order.join("\n") + "\n")?;
    Ok(())
}

fn find_modules(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !path.is_symlink() {
            find_modules(&path, found)?;
        } else if let Some((name, "ko" | "ko.xz")) = name.split_once('.') {
            // The kernel takes either sign for the other.
            found.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

/// A module behind those that it says it needs. One that is not there is built in, or unknown to this kernel.
fn take_module(
    name: &str,
    there: &BTreeMap<String, PathBuf>,
    to: &Path,
    tools: &Path,
    order: &mut Vec<String>,
) -> Result<()> {
    let Some(path) = there.get(name) else {
        return Ok(());
    };
    if order.iter().any(|taken| taken == name) {
        return Ok(());
    }
    if path.extension().is_some_and(|extension| extension == "xz") && path.exists() {
        let mut busybox = sh::command(tools.join("usr/bin/busybox"));
        sh::run(busybox.arg("unxz").arg(path), MINUTE)?;
    }
    let file = fs::read(path.with_extension("").with_extension("ko"))?;
    for needed in needs(&file) {
        take_module(&needed, there, to, tools, order)?;
    }
    fs::write(to.join(format!("{name}.ko")), file)?;
    order.push(name.to_owned());
    Ok(())
}

/// What `modinfo` shows as `depends`.
fn needs(module: &[u8]) -> Vec<String> {
    let mut fields = module.split(|byte| *byte == 0);
    let list = fields.find_map(|field| field.strip_prefix(b"depends="));
    String::from_utf8_lossy(list.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
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
