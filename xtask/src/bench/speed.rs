//! `cargo xtask bench redact`, `bench decode`, `bench models` and `bench sinks`: how fast the stages are that look at every byte, on
//! one core.
//! Needs no root.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A test that measures, and what it has to reach.
pub(super) struct Measurement {
    test: &'static str,
    unit: &'static str,
    /// Names of figures, and the least that each must be.
    targets: &'static [(&'static str, f64)],
}

/// On ordinary text. What is made to slow it down has no target: it is bounded, and whoever sends it slows down
/// only his own records' way out.
pub(super) const REDACT: Measurement = Measurement {
    test: "redact::tests::speed",
    unit: "MB/s",
    targets: &[("prose", 300.0), ("source", 300.0), ("json", 300.0)],
};

/// Bodies in megabytes a second, small exchanges by their number.
pub(super) const DECODE: Measurement = Measurement {
    test: "protocol::tests::speed",
    unit: "a second (bodies: MB/s)",
    targets: &[
        ("http1-bodies", 500.0),
        ("http1-exchanges", 200_000.0),
        ("http2-exchanges", 100_000.0),
    ],
};

/// Calls to models, with all that carries them.
pub(super) const MODELS: Measurement = Measurement {
    test: "llm::tests::speed::speed",
    unit: "MB/s",
    targets: &[
        ("conversations", 150.0),
        ("streams", 150.0),
        ("vectors", 150.0),
    ],
};

/// Records of 1 KiB, by their number.
pub(super) const SINKS: Measurement = Measurement {
    test: "sink::sinks::tests::speed",
    unit: "a second",
    targets: &[("file", 50_000.0), ("file-rotated", 50_000.0)],
};

pub(super) fn main(measurement: &Measurement) -> Result<()> {
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
        .args(["--ignored", "--exact", "--nocapture", measurement.test])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    ensure!(output.status.success(), "the measurement failed");
    let speeds = measurement.speeds(&String::from_utf8_lossy(&output.stdout))?;
    let mut missed = 0;
    for (name, speed) in &speeds {
        let target = measurement.targets.iter().find(|(known, _)| known == name);
        let verdict = match target {
            None => "",
            Some((_, least)) if speed >= least => "ok",
            Some(_) => {
                missed += 1;
                "MISSED"
            }
        };
        println!("{name:16} {speed:9.0} {}  {verdict}", measurement.unit);
    }
    ensure!(missed == 0, "{missed} targets missed");
    Ok(())
}

impl Measurement {
    /// `speed NAME FIGURE`, somewhere in a line.
    fn speeds(&self, printed: &str) -> Result<Vec<(String, f64)>> {
        let lines = printed
            .lines()
            .filter_map(|line| line.rsplit_once("speed "));
        let speeds = lines.filter_map(|(_, rest)| {
            let (name, speed) = rest.split_once(' ')?;
            Some((name.to_owned(), speed.parse().ok()?))
        });
        let speeds: Vec<_> = speeds.collect();
        let is_there = |(name, _): &(&str, f64)| speeds.iter().any(|(known, _)| known == name);
        ensure!(
            self.targets.iter().all(is_there),
            "a speed is missing: {printed}"
        );
        Ok(speeds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_measurement_prints_is_read() {
        let printed = "running 1 test\ntest redact::tests::speed ... speed prose 500\nspeed source 400\nspeed json 300\nok";
        let speeds = REDACT.speeds(printed).unwrap();
        assert_eq!(speeds[0], ("prose".to_owned(), 500.0));
        assert_eq!(speeds.len(), 3);
        assert!(REDACT.speeds("speed prose 500").is_err());
    }
}
