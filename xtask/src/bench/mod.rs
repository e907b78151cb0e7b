//! `cargo xtask bench capture`: what capturing costs, when it loses, and whether our targets are met; and
//! `cargo xtask bench redact`, `bench decode`, `bench models`, `bench sinks`, `bench soak`.

mod agent;
mod bystander;
mod copy;
mod cost;
mod empty;
mod footprint;
mod ground;
mod load;
mod loss;
mod maps;
mod memory;
mod points;
mod reach;
mod records;
mod report;
mod soak;
mod speed;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use ground::Ground;
use report::{Check, Machine, Report, Verdict};

const USAGE: &str = "\
usage: cargo xtask bench capture [OPTIONS]      as root

  --quick             3 rounds and shorter runs: a look, not a result
  --rounds N          rounds of the cost table (7)
  --only PART,...     of cost, reach, bystander, speed, json, pauses, ring, volume, start, memory,
                      mapping
  --json              one JSON document instead of the table
  --agent FILE        this binary instead of building one
  --no-agent          bare calls and empty probes alone
  --agent-cpus LIST   where the agent runs (3); the load is on CPU 2, a loopback server on CPU 1
  --points 0xN,...    our own probe points as file offsets, instead of asking the agent's locator
  --libraries DIR     libssl and libcrypto from here instead of the system's

usage: cargo xtask bench redact                 how fast secrets are looked for, on one core
       cargo xtask bench models                 how fast calls to language models are read, on one core
       cargo xtask bench decode                 how fast bodies and exchanges are decoded, on one core
       cargo xtask bench decode --memory        what is kept over a million exchanges and 100,000 connections
       cargo xtask bench sinks                  how fast records get into files; needs 5 GB in the temporary directory
       cargo xtask bench soak [--minutes N] [--agent FILE]
                                                as root: does anything of a daemon grow while processes, control
                                                groups, libraries and connections come and go, for 10 minutes?

`reach` is what a call of Bun, Node.js, rustls and Go costs, by programs that `cargo xtask test` fetches or builds.
`bystander` is what plain TCP of a process costs that nobody watches.
`capture` needs cc, OpenSSL's headers and 3 GiB free on /dev/shm. Compare ratios: the nanoseconds are the machine's.";

type Part = (&'static str, fn(&Bench) -> Result<Vec<Check>>);

const PARTS: [Part; 9] = [
    ("bystander", bystander::measure),
    ("speed", loss::full_speed),
    ("json", loss::json),
    ("pauses", loss::pauses),
    ("ring", loss::small_ring),
    ("volume", loss::volume),
    ("start", footprint::start_up),
    ("memory", footprint::memory),
    ("mapping", footprint::mapping),
];

#[derive(Default)]
struct Options {
    quick: bool,
    json: bool,
    no_agent: bool,
    rounds: Option<usize>,
    only: Option<Vec<String>>,
    agent: Option<PathBuf>,
    points: Option<Vec<u64>>,
    libraries: Option<PathBuf>,
    agent_cpus: Option<String>,
}

pub(super) struct Bench {
    ground: Ground,
    quick: bool,
    rounds: usize,
    agent: Option<PathBuf>,
    /// Library copies: one for what is probed, one for servers.
    traced: PathBuf,
    untraced: PathBuf,
    libssl: PathBuf,
    exported: Vec<u64>,
    own: Option<Vec<u64>>,
}

impl Bench {
    fn prepare(options: &Options) -> Result<Bench> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask outside of a workspace")?;
        let agent = match (&options.agent, options.no_agent) {
            (_, true) => None,
            (Some(file), false) => Some(file.clone()),
            (None, false) => Some(build_agent(workspace)?),
        };
        let ground = Ground::prepare(
            workspace,
            options.libraries.as_deref(),
            options.agent_cpus.as_deref().unwrap_or("3"),
        )?;
        let traced = ground.copy_libraries("traced")?;
        let untraced = ground.copy_libraries("untraced")?;
        let libssl = ground.libssl(&traced)?;
        let own = match (&options.points, &agent) {
            (Some(points), _) => Some(points.clone()),
            (None, Some(agent)) => Some(points::own(agent, &libssl)?),
            (None, None) => None,
        };
        let exported = points::exported(&libssl)?;
        let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 7 });
        Ok(Bench {
            ground,
            quick: options.quick,
            rounds,
            agent,
            traced,
            untraced,
            libssl,
            exported,
            own,
        })
    }

    fn agent(&self) -> Result<&Path> {
        self.agent.as_deref().context("no agent")
    }

    fn shorter<T>(&self, normal: T, quick: T) -> T {
        if self.quick { quick } else { normal }
    }
}

pub(crate) fn main(args: &[&str]) -> Result<()> {
    let options = match args {
        ["capture", rest @ ..] if !rest.contains(&"--help") => parse(rest)?,
        ["redact"] => return speed::main(&speed::REDACT),
        ["models"] => return speed::main(&speed::MODELS),
        ["decode"] => return speed::main(&speed::DECODE),
        ["decode", "--memory"] => return memory::main(),
        ["sinks"] => return speed::main(&speed::SINKS),
        ["soak", rest @ ..] if !rest.contains(&"--help") => return soak::main(rest),
        ["--help" | "-h", ..] | ["capture" | "redact" | "decode" | "sinks" | "soak", ..] => {
            println!("{USAGE}");
            return Ok(());
        }
        _ => bail!("not understood: bench {}\n{USAGE}", args.join(" ")),
    };
    // SAFETY: geteuid takes nothing and can't fail.
    let user = unsafe { libc::geteuid() };
    ensure!(
        user == 0,
        "probes need root: sudo -E cargo xtask bench capture"
    );
    let report = run(&options)?;
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.for_people()),
    }
    ensure!(
        report.missed() == 0,
        "{} of {} targets missed",
        report.missed(),
        report.checks.len()
    );
    Ok(())
}

fn run(options: &Options) -> Result<Report> {
    let bench = Bench::prepare(options)?;
    let wanted = |part: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|only| only.iter().any(|o| o == part))
    };
    let costs = if wanted("cost") {
        Some(cost::measure(&bench)?)
    } else {
        None
    };
    let reach = match wanted("reach") && bench.agent.is_some() {
        true => Some(reach::measure(&bench)?),
        false => None,
    };
    let mut checks = costs.as_ref().map(|c| c.checks()).unwrap_or_default();
    for (part, measure) in PARTS.into_iter().filter(|(part, _)| wanted(part)) {
        if bench.agent.is_none() {
            checks.push(Check::new(part.to_owned(), None));
            continue;
        }
        eprintln!("{part}");
        match measure(&bench) {
            Ok(more) => checks.extend(more),
            Err(e) => checks.push(Check {
                claim: part.to_owned(),
                measured: format!("{e:#}"),
                verdict: Verdict::Fail,
            }),
        }
    }
    Ok(Report {
        machine: Machine::here(bench.ground.pinning()),
        costs,
        reach,
        checks,
    })
}

fn parse(args: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(&name) = args.next() {
        let mut value = || {
            args.next()
                .with_context(|| format!("{name} needs a value\n{USAGE}"))
        };
        match name {
            "--quick" => options.quick = true,
            "--json" => options.json = true,
            "--no-agent" => options.no_agent = true,
            "--rounds" => options.rounds = Some(value()?.parse().context("--rounds")?),
            "--only" => options.only = Some(parse_parts(value()?)?),
            "--agent" => options.agent = Some(value()?.into()),
            "--points" => options.points = Some(points::parse(value()?)?),
            "--agent-cpus" => options.agent_cpus = Some((*value()?).to_owned()),
            "--libraries" => options.libraries = Some(value()?.into()),
            _ => bail!("not understood: {name}\n{USAGE}"),
        }
    }
    Ok(options)
}

fn parse_parts(list: &str) -> Result<Vec<String>> {
    let known = |part: &str| {
        ["cost", "reach"].contains(&part) || PARTS.iter().any(|(name, _)| *name == part)
    };
    list.split(',')
        .map(|part| {
            ensure!(known(part), "no such part: {part}\n{USAGE}");
            Ok(part.to_owned())
        })
        .collect()
}

fn build_agent(workspace: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--package", "vortex-agent"])
        .current_dir(workspace)
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "building the agent failed");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), PathBuf::from);
    Ok(target.join("release/vortex-agent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_any_order() {
        let options = parse(&["--only", "cost,start", "--points", "0x10,0xff", "--json"]).unwrap();
        assert_eq!(options.only.unwrap(), ["cost", "start"]);
        assert_eq!(options.points.unwrap(), [16, 255]);
        assert!(options.json && !options.quick);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for args in [
            &["--rounds"][..],
            &["--rounds", "x"],
            &["--only", "everything"],
            &["--points", "12"],
            &["-q"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
