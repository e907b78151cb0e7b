//! Builds the kernel programs into `OUT_DIR/capture`.
//!
//! The `bpf` target has no prebuilt `core`, so it is built with `-Z build-std`, which a stable
//! compiler accepts under `RUSTC_BOOTSTRAP` only. The variable is set for this one build.
//!
//! The linker needs debug information to make the types that the kernel wants, and leaves it in the
//! object: seven bytes of eight, which each start would read. So it is taken out here.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use aya_build::{Package, Toolchain};
use object::{
    build::elf::{Builder, SectionData},
    elf,
};

fn main() -> Result<()> {
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent-ebpf");
    let settings = [
        ("RUSTC_BOOTSTRAP", "1"),
        // aya-build makes a warning of each line that cargo prints.
        ("CARGO_TERM_QUIET", "true"),
        // Where it was built is in the table of names otherwise, and moves what follows.
        ("CARGO_UNSTABLE_TRIM_PATHS", "true"),
        ("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all"),
    ];
    for (name, value) in settings {
        // SAFETY: a build script has one thread.
        unsafe { std::env::set_var(name, value) };
    }
    let mut features = vec!["program"];
    for (ours, theirs) in [
        ("CARGO_FEATURE_KERNEL_LOG", "log"),
        ("CARGO_FEATURE_PLANTED_SCRATCH", "planted-scratch"),
        ("CARGO_FEATURE_PLANTED_STACK", "planted-stack"),
    ] {
        features.extend(std::env::var_os(ours).map(|_| theirs));
    }
    let program = Package {
        name: "agent-ebpf",
        root_dir,
        features: &features,
        ..Default::default()
    };
    aya_build::build_ebpf([program], Toolchain::Custom("1.98.1")).context(
        "the kernel programs could not be built: is bpf-linker there? \
         `cargo xtask setup` installs it",
    )?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let built = out.join("capture");
    let object = fs::read(&built).context("read the kernel programs")?;
    let stripped =
        strip(&object).context("take the debug information out of the kernel programs")?;
    fs::write(&built, stripped).context("write the kernel programs")
}

/// Leaves programs, maps, and the types of both.
fn strip(object: &[u8]) -> Result<Vec<u8>> {
    let mut object = Builder::read(object)?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = [&b".debug_"[..], b".rel.debug_", b".rel.BTF"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        let SectionData::Data(data) = &mut section.data else {
            continue;
        };
        if name == b".BTF.ext" {
            *data = without_lines(data)?.into();
        }
    }
    object.delete_orphans();
    // The linker has one table for all names, the writer wants two.
    let names = object.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    object.write(&mut stripped)?;
    Ok(stripped)
}

/// A number in the format of the machine that BTF is for: ours.
fn word(data: &[u8], at: usize) -> Result<u32> {
    let bytes = data.get(at..).and_then(<[u8]>::first_chunk);
    Ok(u32::from_le_bytes(*bytes.context("it is cut short")?))
}

/// `.BTF.ext` is a header, the types of functions, the source line of each instruction, and relocations,
/// which our programs have none of. The lines would be for the verifier's messages alone.
fn without_lines(data: &[u8]) -> Result<Vec<u8>> {
    // Each part is an offset from the header's end, and a length.
    const HEADER: usize = 4;
    const FUNCTIONS: usize = 8;
    const LINES: usize = 16;
    const RELOCATIONS: usize = 24;
    let word = |at: usize| word(data, at);
    let (header, functions) = (word(HEADER)?, word(FUNCTIONS + 4)?);
    ensure!(header as usize == RELOCATIONS + 8, "its header is unknown");
    ensure!(word(FUNCTIONS)? == 0, "the functions are not the first");
    ensure!(word(RELOCATIONS + 4)? == 0, "it has relocations");
    let kept = data.get(..(header + functions) as usize);
    let mut kept = kept.context("it is cut short")?.to_vec();
    for part in [LINES, RELOCATIONS] {
        kept[part..part + 4].copy_from_slice(&functions.to_le_bytes());
    }
    kept[LINES + 4..LINES + 8].fill(0);
    Ok(kept)
}
