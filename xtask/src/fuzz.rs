//! The fuzz targets of `agent/fuzz`, each for a while. What they find stays in the target directory; the seeds
//! that are kept are in `agent/fuzz/seeds`.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};

use crate::sh::{self, MINUTE, SECOND};

const CARGO_FUZZ: &str = "cargo install cargo-fuzz@0.13.2 --locked";
const TARGETS: [&str; 3] = ["redact", "attribute", "protocol"];
const TIME: Duration = Duration::from_secs(20);

pub(crate) fn command(args: &[&str]) -> Result<()> {
    let time = match args {
        [] => TIME,
        ["--seconds", seconds] => {
            Duration::from_secs(seconds.parse().context("--seconds needs a number")?)
        }
        _ => bail!(
            "not understood: {}; see `cargo xtask --help`",
            args.join(" ")
        ),
    };
    let mut version = sh::command("cargo");
    sh::output(version.args(["fuzz", "--version"]), 10 * SECOND)
        .with_context(|| format!("cargo-fuzz is needed: {CARGO_FUZZ}"))?;
    sh::run(&mut cargo("build"), 30 * MINUTE)?;
    for target in TARGETS {
        sh::say(&format!("\n{target} for {} s", time.as_secs()));
        run(target, time).with_context(|| format!("the fuzz target {target}"))?;
    }
    Ok(())
}

fn run(target: &str, time: Duration) -> Result<()> {
    let dir = sh::target().join("fuzz");
    // New inputs go to the first directory.
    let corpus = dir.join("corpus").join(target);
    fs::create_dir_all(&corpus)?;
    let seeds = sh::root().join("agent/fuzz/seeds").join(target);
    let found = dir.join(format!("{target}-"));
    let mut command = cargo("run");
    command.arg(target).args([&corpus, &seeds]).args([
        "--".to_owned(),
        format!("-max_total_time={}", time.as_secs()),
        format!("-artifact_prefix={}", found.display()),
        "-print_final_stats=1".to_owned(),
    ]);
    sh::run(&mut command, time + 5 * MINUTE)
}

/// The sanitizer's and libFuzzer's instrumentation are flags of a nightly compiler.
fn cargo(what: &str) -> Command {
    let mut command = sh::command("cargo");
    command
        .args(["fuzz", what, "--fuzz-dir", "agent/fuzz"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", sh::target().join("fuzz"));
    command
}
