//! `cargo xtask bench decode --memory`: what the line keeps over a million exchanges. Needs no root.

use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(super) fn main() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--release", "--package", "vortex-agent"])
        .args(["--test", "memory", "--", "--ignored", "--nocapture"])
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "memory grows, or the measurement failed");
    Ok(())
}
