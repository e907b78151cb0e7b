//! Everything CI checks, in one command.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    deb, deploy, drill, fetch, fuzz, image,
    panics::Panics,
    reach, release,
    roster::Roster,
    setup,
    sh::{self, MINUTE},
    systemd,
    tally::Tally,
    vm::{self, Rig},
};

/// Runs it all, or with a filter only the tests with that in their name. What fails does not stop
/// what comes after it, unless that could only fail, too.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let mut run = Run::default();
    let ready = run.step("setup", |_| setup::everything());
    let fixtures = run.step("fetch", |_| fetch::fixtures(false));
    if filter.is_none() {
        run.step("format", |_| {
            sh::run(cargo("fmt").args(["--all", "--check"]), MINUTE)?;
            // A workspace of its own.
            let manifest = ["--check", "--manifest-path", "agent/fuzz/Cargo.toml"];
            sh::run(cargo("fmt").args(manifest), MINUTE)
        });
        run.step("lints", |_| {
            let lints = ["--workspace", "--all-targets", "--", "--deny", "warnings"];
            sh::run(cargo("clippy").args(lints), 30 * MINUTE)
        });
        run.step("fuzz targets compile", |_| fuzz::check());
    }
    run.step("unit tests and scenarios", |tally| {
        let mut command = cargo("test");
        command.args(["--no-fail-fast", "--workspace", "--lib", "--bins"]);
        for test in ["scenarios", "memory"] {
            if has_test(test)? {
                command.args(["--test", test]);
            }
        }
        libtest(command.args(filter), 30 * MINUTE, tally)
    });
    if let Some(fixtures) = fixtures.as_deref().filter(|_| filter.is_none()) {
        run.step("manifests", |_| deploy::check(fixtures));
    }
    let agent = run.step("release build", |_| build_agent(&[]));
    // What is shipped takes minutes to build: with a filter only for the test that runs it.
    let image = match filter {
        Some(filter) if !OF_THE_IMAGE.contains(filter) => None,
        _ => run.step("packages and image", |_| packages()),
    };
    if ready.is_some() && agent.is_some() {
        let agent = agent.unwrap_or_default();
        let image = image.unwrap_or_default();
        if let Some(fixtures) = fixtures {
            for (title, test) in [
                ("built programs", "object"),
                ("README", "readme"),
                ("end to end", "e2e"),
            ] {
                run.step(title, |tally| {
                    as_root(test, &agent, &image, &fixtures, filter, tally)
                });
            }
        }
        if filter.is_none() {
            run.step("reach", |tally| reach::run(&agent, tally));
            run.step("fuzz", |_| fuzz::all());
        }
        if Roster::read().is_ok_and(|roster| roster.knows(filter)) {
            run.step("other kernels", |tally| other_kernels(filter, tally));
        }
    }
    run.end(filter)
}

/// The end-to-end test that needs the image.
const OF_THE_IMAGE: &str = "daemonset::daemonset_sees_a_neighbour";

/// What is shipped, and whether it comes out the same twice.
fn packages() -> Result<PathBuf> {
    let release = release::build()?;
    deb::check(&release)?;
    let (path, digest) = image::write(&release)?;
    let again = fs::read(&path)?;
    ensure!(
        image::write(&release)?.1 == digest && fs::read(&path)? == again,
        "another image"
    );
    sh::say(&format!("  image {digest}"));
    Ok(path)
}

#[derive(Default)]
struct Run {
    start: Option<Instant>,
    tally: Tally,
    failures: Vec<String>,
}

impl Run {
    fn step<T>(&mut self, name: &str, work: impl FnOnce(&mut Tally) -> Result<T>) -> Option<T> {
        let start = Instant::now();
        let begin = *self.start.get_or_insert(start);
        sh::say(&format!("\n==> {name} [{}]", clock(begin.elapsed())));
        let mut tally = Tally::default();
        let result = work(&mut tally);
        let took = clock(start.elapsed());
        match &result {
            Ok(_) => sh::say(&format!("    {name}: done in {took}")),
            Err(error) => {
                sh::say(&format!("    {name}: FAILED after {took}: {error:#}"));
                self.failures.push(format!("{name}: {error:#}"));
                // So that the last line can't say "0 failed" of a run that failed.
                tally.failed = tally.failed.max(1);
            }
        }
        self.tally += tally;
        result.ok()
    }

    fn end(self, filter: Option<&str>) -> Result<()> {
        let Self {
            start,
            mut tally,
            mut failures,
        } = self;
        if filter.is_some() && tally == Tally::default() {
            failures.push("no test has that in its name".to_owned());
            tally.failed = 1;
        }
        sh::say(&format!(
            "\n==> end [{}]",
            clock(start.map_or(Duration::ZERO, |start| start.elapsed()))
        ));
        for failure in &failures {
            sh::say(&format!("FAILED {failure}"));
        }
        sh::say(&tally.to_string());
        if failures.is_empty() {
            return Ok(());
        }
        // The counts are the last line, so there is no message after them.
        std::process::exit(1);
    }
}

pub(crate) fn build_agent(options: &[&str]) -> Result<PathBuf> {
    let mut build = cargo("build");
    build.args(["--release", "--package", "vortex-agent"]);
    sh::run(build.args(options), 30 * MINUTE)?;
    let agent = sh::target().join("release/vortex-agent");
    ensure!(agent.is_file(), "the build left no {}", agent.display());
    Ok(agent)
}

fn other_kernels(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let outcomes = match filter {
        Some(_) => vm::run(None, None, false, filter)?,
        None => {
            drill::run(&Rig::build(false)?)?;
            let mut outcomes = vm::run(None, None, false, None)?;
            outcomes.extend(systemd::run(false)?);
            outcomes
        }
    };
    outcomes.iter().for_each(|outcome| *tally += outcome.tally);
    let bad = outcomes.iter().filter(|outcome| outcome.tally.failed > 0);
    let bad: Vec<_> = bad.map(vm::Outcome::why).collect();
    ensure!(bad.is_empty(), "kernels that failed:\n{}", bad.join("\n"));
    Ok(())
}

/// The tests of a binary, by name.
pub(crate) fn names(binary: &Path, options: &[&str]) -> Result<Vec<String>> {
    let mut command = sh::command(binary);
    let list = sh::output(
        command.args(["--list", "--format=terse"]).args(options),
        MINUTE,
    )?;
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// The end-to-end test binary, which also runs in the VMs.
pub(crate) fn build_e2e() -> Result<PathBuf> {
    build_test("e2e")
}

fn build_test(name: &str) -> Result<PathBuf> {
    ensure!(
        has_test(name)?,
        "agent/Cargo.toml has no test target {name}"
    );
    let mut build = cargo("test");
    build.args([
        "--release",
        "--package",
        "vortex-agent",
        "--test",
        name,
        "--no-run",
    ]);
    build.arg("--message-format=json-render-diagnostics");
    let messages = sh::output(&mut build, 30 * MINUTE)?;
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"] == name;
        let executable = message["executable"].as_str().filter(|_| ours)?;
        Some(PathBuf::from(executable))
    });
    executable.with_context(|| format!("cargo named no executable for the test target {name}"))
}

/// The tests that need root, against the built agent.
fn as_root(
    name: &str,
    agent: &Path,
    image: &Path,
    fixtures: &Path,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    let binary = build_test(name)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let env = [
        ("VORTEX_AGENT", agent.display().to_string()),
        ("VORTEX_IMAGE", image.display().to_string()),
        ("VORTEX_TEST_DIR", fixtures.display().to_string()),
        ("VORTEX_NO_SKIP", "1".to_owned()),
        // The machine's own nginx first, if it has one.
        (
            "PATH",
            format!("{path}:/usr/sbin:/sbin:{}/nginx/bin", fixtures.display()),
        ),
    ];
    let mut command = sh::as_root(&binary, &env);
    // Not "skipped": they run, and are counted, with the other kernels.
    if name == "e2e" {
        let alone = names(&binary, &["--ignored"])?;
        sh::say(&format!("  in the VMs only: {}", alone.join(", ")));
        command.args(alone.iter().flat_map(|test| ["--skip", test]));
    }
    // Agents beside each other wait for each other: one that detaches keeps the others from attaching.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    command.arg(format!("--test-threads={}", processors.div_ceil(2)));
    // As cargo would: in the package's directory.
    libtest(
        command.args(filter).current_dir(sh::root().join("agent")),
        25 * MINUTE,
        tally,
    )
}

/// Runs test binaries, shows what they say, counts what they count.
fn libtest(command: &mut Command, limit: Duration, tally: &mut Tally) -> Result<()> {
    let mut failed = Vec::new();
    let mut panics = Panics::default();
    let command = sh::with_default_signals(command);
    let status = sh::lines(command, limit, |line| {
        sh::say(line);
        panics.see(line);
        if let Some(counts) = Tally::parse(line) {
            *tally += counts;
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            failed.push(name.to_owned());
        }
    })?;
    if status.success() {
        return Ok(());
    }
    bail!(
        "{status}; failed tests: {}\n{}",
        if failed.is_empty() {
            "none by name".to_owned()
        } else {
            failed.join(", ")
        },
        panics.lines().join("\n")
    )
}

fn has_test(name: &str) -> Result<bool> {
    let manifest = fs::read_to_string(sh::root().join("agent/Cargo.toml"))?;
    let line = format!("name = \"{name}\"");
    Ok(manifest.lines().any(|found| found.trim() == line)
        || sh::root().join(format!("agent/tests/{name}.rs")).exists())
}

fn cargo(subcommand: &str) -> Command {
    let mut command = sh::command("cargo");
    command.arg(subcommand);
    command
}

fn clock(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}
