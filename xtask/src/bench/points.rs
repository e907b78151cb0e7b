//! Where the probes stand: the exported functions, as everybody does it, and our own points.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSegment, ObjectSymbol};
use serde::Deserialize;

/// File offsets of `SSL_read` and `SSL_write`.
pub(super) fn exported(library: &Path) -> Result<Vec<u64>> {
    let bytes = std::fs::read(library)?;
    let file = object::File::parse(&*bytes)?;
    ["SSL_read", "SSL_write"]
        .map(|name| {
            let symbol = file
                .dynamic_symbols()
                .find(|s| s.is_definition() && s.name() == Ok(name))
                .with_context(|| format!("{} doesn't export {name}", library.display()))?;
            file_offset(&file, symbol.address())
        })
        .into_iter()
        .collect()
}

fn file_offset(file: &object::File, address: u64) -> Result<u64> {
    file.segments()
        .find(|s| (s.address()..s.address() + s.size()).contains(&address))
        .map(|s| address - s.address() + s.file_range().0)
        .with_context(|| format!("address {address:#x} is in no segment"))
}

#[derive(Deserialize)]
pub(super) struct Point {
    pub(super) offset: u64,
    instruction: String,
    shape: String,
}

impl Point {
    /// What is known at the entry has no return probe, and where there is none, in Go, one would be deadly.
    pub(super) fn has_return(&self) -> bool {
        !["Passed", "Encrypted"].contains(&&self.shape[..])
    }
}

/// Where the agent's own locator would probe.
pub(super) fn own(agent: &Path, library: &Path) -> Result<Vec<u64>> {
    let points = located(agent, library)?;
    Ok(points.into_iter().map(|p| p.offset).collect())
}

/// What the agent's own locator chooses.
pub(super) fn located(agent: &Path, library: &Path) -> Result<Vec<Point>> {
    let output = Command::new(agent).arg("locate").arg(library).output()?;
    ensure!(
        output.status.success(),
        "{} locate {}: {}",
        agent.display(),
        library.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let points: Vec<Point> = serde_json::Deserializer::from_slice(&output.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .context("reading the points that `locate` printed")?;
    if points.is_empty() {
        bail!("the locator found no point in {}", library.display());
    }
    for point in points
        .iter()
        .filter(|p| !p.instruction.eq_ignore_ascii_case("emulated"))
    {
        eprintln!(
            "note: the kernel single-steps our own point at {:#x} of this library",
            point.offset
        );
    }
    Ok(points)
}

/// `--points 0x352d0,0x355e0`
pub(super) fn parse(list: &str) -> Result<Vec<u64>> {
    list.split(',')
        .map(|text| {
            let digits = text
                .strip_prefix("0x")
                .with_context(|| format!("{text}: expected 0xOFFSET"))?;
            Ok(u64::from_str_radix(digits, 16)?)
        })
        .collect()
}
