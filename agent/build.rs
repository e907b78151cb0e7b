//! Builds the kernel programs into `OUT_DIR/capture`.
//!
//! The `bpf` target has no prebuilt `core`, so it is built with `-Z build-std`, which a stable
//! compiler accepts under `RUSTC_BOOTSTRAP` only. The variable is set for this one build.

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent-ebpf");
    // Quiet, because aya-build makes a warning of each line that cargo prints.
    // SAFETY: a build script has one thread.
    unsafe {
        std::env::set_var("RUSTC_BOOTSTRAP", "1");
        std::env::set_var("CARGO_TERM_QUIET", "true");
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
    )
}
