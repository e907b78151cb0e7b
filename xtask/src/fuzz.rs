//! The fuzz targets of `agent/fuzz`: each for a while, each against the mistake that is made for it, and how much
//! of its module each reaches. What they find stays in the target directory; the seeds that are kept are in
//! `agent/fuzz/seeds`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::sh::{self, MINUTE, SECOND};

/// What reads code of others, and the sources that its target is for.
const TARGETS: [Target; 16] = [
    Target::of("redact", &["redact/"]),
    Target::of("attribute", &["attribute/"]),
    Target::of("http1", &["protocol/http1.rs", "protocol/head.rs"]),
    Target::of("http2", &["protocol/http2.rs"]),
    Target::of("hpack", &["protocol/hpack.rs", "protocol/huffman.rs"]),
    Target::of("websocket", &["protocol/websocket.rs"]),
    Target::of("sse", &["protocol/sse.rs"]),
    Target::of("grpc", &["protocol/grpc.rs"]),
    Target::of("content", &["protocol/content.rs"]),
    Target::of("json", &["protocol/json.rs"]),
    Target::of("eventstream", &["protocol/eventstream.rs"]),
    Target::of("charset", &["protocol/charset.rs"]),
    Target::of("llm", &["llm/"]),
    Target::of("mcp", &["mcp/"]),
    Target::of(
        "protocol",
        &[
            "protocol/mod.rs",
            "protocol/exchange.rs",
            "protocol/lines.rs",
        ],
    ),
    Target::of(
        "pipeline",
        &[
            "pipeline.rs",
            "stream.rs",
            "speaker.rs",
            "http.rs",
            "policy.rs",
            "ours.rs",
            "metadata/known.rs",
        ],
    ),
];

/// Targets that no mistake is made for: they are held against a second way to compute the same.
const WITHOUT_MISTAKE: [&str; 2] = ["redact", "attribute"];

struct Target {
    name: &'static str,
    /// Below `agent/src`.
    sources: &'static [&'static str],
}

impl Target {
    const fn of(name: &'static str, sources: &'static [&'static str]) -> Target {
        Target { name, sources }
    }
}

const HOST: &str = "x86_64-unknown-linux-gnu";
const TIME: Duration = Duration::from_secs(20);
/// As long as a planted mistake may stay hidden.
const PLANTED_TIME: Duration = Duration::from_secs(60);
/// Lines of its module that a target reaches at least, in percent.
const REACHED_MIN: f64 = 80.0;
/// The longest that one input may take.
const INPUT_TIME: Duration = Duration::from_secs(10);

pub(crate) fn command(args: &[&str]) -> Result<()> {
    let (mut time, mut what, mut only) = (TIME, "run", None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .copied()
                .with_context(|| format!("{arg} needs a value"))
        };
        match *arg {
            "--seconds" => {
                let seconds = value()?.parse().context("--seconds needs a number")?;
                time = Duration::from_secs(seconds);
            }
            "--only" => only = Some(value()?),
            "--planted" | "--coverage" => what = arg,
            _ => bail!("not understood: {arg}; see `cargo xtask --help`"),
        }
    }
    let is_meant =
        |target: &&Target| only.is_none_or(|only| only.split(',').any(|name| name == target.name));
    let targets: Vec<&Target> = TARGETS.iter().filter(is_meant).collect();
    ensure!(!targets.is_empty(), "no target is called that");
    match what {
        "--planted" => planted(&targets),
        "--coverage" => coverage(&targets),
        _ => fuzz(&targets, time, &[]),
    }
}

/// As `cargo xtask test` has it: from the kept seeds, and the same inputs each time. What nobody knows yet is looked
/// for by hand.
pub(crate) fn all() -> Result<()> {
    fuzz(&TARGETS.each_ref(), TIME, &["-seed=1", "-runs=10000"])
}

/// Do they still compile? They are built when all else is done, and so break last. Without their instrumentation any
/// compiler does it, and in a minute.
pub(crate) fn check() -> Result<()> {
    for options in [&[][..], &["--features", "planted"]] {
        let mut check = sh::command("cargo");
        check
            .args([
                "check",
                "--bins",
                "--manifest-path",
                "agent/fuzz/Cargo.toml",
            ])
            .args(options)
            .env("CARGO_TARGET_DIR", sh::target().join("fuzz"));
        sh::run(&mut check, 15 * MINUTE)?;
    }
    Ok(())
}

fn fuzz(targets: &[&Target], time: Duration, more: &[&str]) -> Result<()> {
    let binaries = build(&[])?;
    let found = directory("found")?;
    two_at_a_time(targets, |target| {
        let corpus = directory(&format!("corpus/{}", target.name))?;
        let mut command = fuzzer(&binaries, target, &found, time);
        command.args(more);
        // New inputs go to the first directory.
        command.args([&corpus, &seeds(target)]);
        let (status, log) = logged(command, target, time)?;
        let number = |name: &str| {
            let line = log.lines().rev().find_map(|line| line.strip_prefix(name));
            line.map_or("?", str::trim).to_owned()
        };
        sh::say(&format!(
            "  {:<11} {} s, {} executions a second, {} inputs new, slowest {} s, {} MiB",
            target.name,
            time.as_secs(),
            number("stat::average_exec_per_sec:"),
            number("stat::new_units_added:"),
            number("stat::slowest_unit_time_sec:"),
            number("stat::peak_rss_mb:"),
        ));
        if !status.success() {
            let end: Vec<&str> = log.lines().rev().take(60).collect();
            end.iter().rev().for_each(|line| sh::say(line));
            bail!(
                "{}: {status}; the input is in {}",
                target.name,
                found.display()
            );
        }
        Ok(())
    })
}

/// Does each target find the mistake that is made for it? From the kept seeds only.
fn planted(targets: &[&Target]) -> Result<()> {
    let binaries = build(&["--features", "planted"])?;
    let found = directory("planted")?;
    let targets: Vec<&Target> = targets
        .iter()
        .copied()
        .filter(|target| !WITHOUT_MISTAKE.contains(&target.name))
        .collect();
    two_at_a_time(&targets, |target| {
        // Without the mistake the seeds must say nothing, or what is found means nothing.
        let mut without = fuzzer(&binaries, target, &found, PLANTED_TIME);
        without.arg("-runs=0").arg(seeds(target));
        let (status, _) = logged(without, target, PLANTED_TIME)?;
        ensure!(
            status.success(),
            "{}: its seeds fail without a mistake",
            target.name
        );
        let start = Instant::now();
        let mut with = fuzzer(&binaries, target, &found, PLANTED_TIME);
        let corpus = directory(&format!("planted/{}", target.name))?;
        with.env("VORTEX_PLANTED", target.name)
            .args([&corpus, &seeds(target)]);
        let (status, log) = logged(with, target, PLANTED_TIME)?;
        fs::remove_dir_all(&corpus)?;
        let took = start.elapsed().as_secs_f64();
        let is_found = !status.success() && log.contains("panicked at");
        let verdict = if is_found { "found" } else { "NOT FOUND" };
        sh::say(&format!(
            "PLANTED {:<11} {verdict} after {took:.1} s",
            target.name
        ));
        ensure!(is_found, "{}: its mistake was not found", target.name);
        Ok(())
    })
}

/// How many lines of its module each target reaches with its seeds and what it has found.
fn coverage(targets: &[&Target]) -> Result<()> {
    let tools = llvm_tools()?;
    let build_dir = sh::target().join("fuzz-coverage");
    let mut build = sh::command("cargo");
    build
        .args([
            "build",
            "--release",
            "--bins",
            "--manifest-path",
            "agent/fuzz/Cargo.toml",
        ])
        .env("CARGO_TARGET_DIR", &build_dir)
        // Named, so that build scripts are not instrumented: they would leave profiles in the checkout.
        .args(["--target", HOST])
        .env("RUSTFLAGS", "-C instrument-coverage --cfg fuzzing");
    sh::run(&mut build, 30 * MINUTE)?;
    fs::remove_dir_all(directory("profiles")?)?;
    let profiles = directory("profiles")?;
    let mut missed = Vec::new();
    for target in targets {
        let binary = build_dir.join(HOST).join("release").join(target.name);
        let mut inputs = Vec::new();
        for dir in [
            seeds(target),
            directory(&format!("corpus/{}", target.name))?,
        ] {
            for entry in fs::read_dir(dir)? {
                inputs.push(entry?.path());
            }
        }
        let raw = profiles.join(format!("{}.profraw", target.name));
        // Each run adds to the profile.
        for inputs in inputs.chunks(1000) {
            let mut command = sh::command(&binary);
            command
                .args(inputs)
                .env("LLVM_PROFILE_FILE", format!("{}.%m", raw.display()))
                .stderr(log(target)?);
            sh::run(&mut command, 10 * MINUTE)?;
        }
        let percent = lines(&tools, target, &binary, &raw)?;
        if percent < REACHED_MIN {
            missed.push(target.name);
        }
    }
    ensure!(
        missed.is_empty(),
        "below {REACHED_MIN} %: {}",
        missed.join(", ")
    );
    Ok(())
}

/// Prints and returns how much of a target's sources its profile covers.
fn lines(tools: &Path, target: &Target, binary: &Path, raw: &Path) -> Result<f64> {
    let profile = raw.with_extension("profdata");
    let mut merge = sh::command(tools.join("llvm-profdata"));
    merge.args(["merge", "--sparse", "-o"]).arg(&profile);
    for entry in fs::read_dir(raw.parent().context("a directory")?)? {
        let path = entry?.path();
        let is_ours = path
            .display()
            .to_string()
            .starts_with(&format!("{}.", raw.display()));
        if is_ours {
            merge.arg(path);
        }
    }
    sh::run(&mut merge, 5 * MINUTE)?;
    let mut export = sh::command(tools.join("llvm-cov"));
    export
        .args(["export", "--summary-only", "--instr-profile"])
        .arg(&profile)
        .arg(binary);
    let report: Value = serde_json::from_str(&sh::output(&mut export, 5 * MINUTE)?)?;
    let files = report["data"][0]["files"]
        .as_array()
        .context("llvm-cov names files")?;
    let (mut all, mut reached) = (0, 0);
    let mut each = String::new();
    for file in files {
        let name = file["filename"].as_str().unwrap_or_default();
        let Some((_, name)) = name.split_once("agent/src/") else {
            continue;
        };
        if !target.sources.iter().any(|source| name.starts_with(source)) {
            continue;
        }
        let number = |key: &str| file["summary"]["lines"][key].as_u64().unwrap_or_default();
        let (count, covered) = (number("count"), number("covered"));
        each.push_str(&format!(", {name} {covered} of {count}"));
        (all, reached) = (all + count, reached + covered);
    }
    ensure!(all > 0, "{}: nothing is known of its sources", target.name);
    let percent = reached as f64 * 100.0 / all as f64;
    sh::say(&format!(
        "  {:<11} {percent:5.1} % of lines{each}",
        target.name
    ));
    Ok(percent)
}

/// Of the compiler's own LLVM: the format of profiles is that version's.
fn llvm_tools() -> Result<PathBuf> {
    let sysroot = sh::output(sh::command("rustc").args(["--print", "sysroot"]), MINUTE)?;
    let tools = Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(HOST)
        .join("bin");
    if !tools.join("llvm-cov").exists() {
        let mut install = sh::command("rustup");
        sh::run(
            install.args(["component", "add", "llvm-tools"]),
            10 * MINUTE,
        )
        .context("llvm-cov and llvm-profdata are needed")?;
    }
    Ok(tools)
}

/// Runs `work` for each, and goes on where one fails.
fn two_at_a_time(targets: &[&Target], work: impl Fn(&Target) -> Result<()> + Sync) -> Result<()> {
    let next = Mutex::new(targets.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(target) = next.lock().expect("no panic").next() else {
                        return;
                    };
                    if let Err(error) = work(target) {
                        failures
                            .lock()
                            .expect("no panic")
                            .push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// libFuzzer, told how long.
fn fuzzer(binaries: &Path, target: &Target, found: &Path, time: Duration) -> Command {
    let mut command = sh::command(binaries.join(target.name));
    command.args([
        format!("-max_total_time={}", time.as_secs()),
        format!("-artifact_prefix={}/{}-", found.display(), target.name),
        format!("-timeout={}", INPUT_TIME.as_secs()),
        "-print_final_stats=1".to_owned(),
    ]);
    command
}

/// Runs it with its words in a file, and reads that.
fn logged(mut command: Command, target: &Target, time: Duration) -> Result<(ExitStatus, String)> {
    let path = log_path(target)?;
    command.stderr(log(target)?);
    let status = sh::wait(&mut command.spawn()?, time + 2 * MINUTE)
        .with_context(|| format!("the fuzz target {}", target.name))?;
    let log = fs::read(path)?;
    Ok((status, String::from_utf8_lossy(&log).into_owned()))
}

fn log(target: &Target) -> Result<File> {
    Ok(File::create(log_path(target)?)?)
}

fn log_path(target: &Target) -> Result<PathBuf> {
    Ok(directory("logs")?.join(format!("{}.log", target.name)))
}

/// Below the directory of all that fuzzing makes.
fn directory(name: &str) -> Result<PathBuf> {
    let path = sh::target().join("fuzz").join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn seeds(target: &Target) -> PathBuf {
    sh::root().join("agent/fuzz/seeds").join(target.name)
}

/// The sanitizer's and libFuzzer's instrumentation are flags of a nightly compiler.
fn build(options: &[&str]) -> Result<PathBuf> {
    let mut version = sh::command("cargo");
    sh::output(version.args(["fuzz", "--version"]), 10 * SECOND)
        .context("cargo-fuzz is needed; `cargo xtask setup` installs it")?;
    let mut build = sh::command("cargo");
    build
        .args(["fuzz", "build", "--fuzz-dir", "agent/fuzz"])
        .args(options)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", sh::target().join("fuzz"));
    sh::run(&mut build, 30 * MINUTE)?;
    Ok(sh::target().join("fuzz").join(HOST).join("release"))
}
