//! `cargo xtask bench redact`: how fast the redact stage is, on one core. Needs no root.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Megabytes a second on ordinary text. What is made to slow it down has no target: it is bounded, and
/// whoever sends it slows down only his own records' way out.
const TARGET: f64 = 300.0;
const ORDINARY: [&str; 3] = ["prose", "source", "json"];

pub(super) fn main() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "test",
            "--release",
            "--package",
            "vortex-agent",
            "--lib",
            "--",
        ])
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "redact::tests::speed",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(output.status.success(), "the measurement failed");
    let speeds = speeds(&String::from_utf8_lossy(&output.stdout))?;
    let mut missed = 0;
    for (name, speed) in &speeds {
        let verdict = match ORDINARY.contains(&name.as_str()) {
            false => "",
            true if *speed >= TARGET => "ok",
            true => {
                missed += 1;
                "MISSED"
            }
        };
        println!("{name:8} {speed:5.0} MB/s  {verdict}");
    }
    ensure!(missed == 0, "{missed} targets of {TARGET} MB/s missed");
    Ok(())
}

/// `speed NAME MB/s`, somewhere in a line.
fn speeds(printed: &str) -> Result<Vec<(String, f64)>> {
    let lines = printed
        .lines()
        .filter_map(|line| line.rsplit_once("speed "));
    let speeds = lines.filter_map(|(_, rest)| {
        let (name, speed) = rest.split_once(' ')?;
        Some((name.to_owned(), speed.parse().ok()?))
    });
    let speeds: Vec<_> = speeds.collect();
    let is_there = |name: &&str| speeds.iter().any(|(known, _)| known == name);
    ensure!(
        ORDINARY.iter().all(is_there),
        "a speed is missing: {printed}"
    );
    Ok(speeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_measurement_prints_is_read() {
        let printed = "running 1 test\ntest redact::tests::speed ... speed prose 500\nspeed source 400\nspeed json 300\nok";
        let speeds = speeds(printed).unwrap();
        assert_eq!(speeds[0], ("prose".to_owned(), 500.0));
        assert_eq!(speeds.len(), 3);
        assert!(super::speeds("speed prose 500").is_err());
    }
}
