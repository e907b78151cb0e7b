//! What a call of real programs costs that have their TLS inside: each talks to one server without an end, which
//! lets it go on for so many requests at a time. So one process passes through all rounds, and its CPU time is read
//! while it waits.
//!
//! Per call, not per pair: a program makes as many as it likes, and the agent counts them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Bench;
use super::agent::{Agent, Setup};
use super::empty::EmptyPairs;
use super::ground::command;
use super::load::Owned;
use super::points::{self, Point};
use super::report::Spread;
use crate::{fetch, sh};

/// A program, how it is told where the server is, and what that has to speak.
struct Family {
    name: &'static str,
    /// In the fixtures, or of the machine.
    program: &'static str,
    arguments: &'static [&'static str],
    speaks: &'static str,
}

const FAMILIES: [Family; 5] = [
    Family {
        name: "Bun (BoringSSL)",
        program: "bun/bin/bun",
        arguments: &["pace.mjs", "PORT"],
        speaks: "frames",
    },
    Family {
        name: "Node.js (OpenSSL)",
        program: "/usr/bin/node",
        arguments: &["pace.mjs", "PORT"],
        speaks: "frames",
    },
    Family {
        name: "rustls, ring",
        program: "rustls-ring/bin/client",
        arguments: RUSTLS,
        speaks: "http",
    },
    Family {
        name: "rustls, aws-lc-rs",
        program: "rustls-aws-lc-rs/bin/client",
        arguments: RUSTLS,
        speaks: "http",
    },
    Family {
        name: "Go 1.24",
        program: "go/bin/tls-1.24",
        arguments: &["frames", "PORT", "1000000000", "64", "1"],
        speaks: "frames",
    },
];
const RUSTLS: &[&str] = &["get", "1", "1000000000", "https://127.0.0.1:PORT/"];

/// Requests until compilers at run time have done most of their work, and requests of a measurement.
const WARM_UP: u32 = 2000;
const REQUESTS: u32 = 4000;
const REQUESTS_QUICK: u32 = 1000;

#[derive(Serialize)]
pub(super) struct Reach {
    pub(super) rounds: usize,
    pub(super) rows: Vec<Row>,
}

#[derive(Serialize)]
pub(super) struct Row {
    pub(super) family: &'static str,
    /// Why there is nothing else.
    pub(super) missing: Option<String>,
    pub(super) calls_per_request: Option<Spread>,
    /// Nanoseconds of CPU time for a request, and what is added to each call.
    pub(super) bare: Option<Spread>,
    pub(super) empty: Option<Spread>,
    pub(super) agent: Option<Spread>,
    pub(super) to_empty: Option<f64>,
}

/// Nanoseconds for a request, by what was attached, and how many calls it made.
struct Round {
    bare: f64,
    empty: f64,
    agent: f64,
    calls: f64,
}

pub(super) fn measure(bench: &Bench) -> Result<Reach> {
    let fixtures = match std::env::var_os("VORTEX_TEST_DIR") {
        Some(there) => PathBuf::from(there),
        None => fetch::fixtures(false)?,
    };
    certificate(bench.ground.scratch())?;
    let rows = FAMILIES.iter().map(|family| {
        eprintln!("reach: {}", family.name);
        match family.rounds(bench, &fixtures) {
            Ok(rounds) => family.row(&rounds),
            Err(error) => Row {
                missing: Some(format!("{error:#}")),
                ..family.row(&[])
            },
        }
    });
    Ok(Reach {
        rounds: bench.rounds,
        rows: rows.collect(),
    })
}

impl Family {
    fn rounds(&self, bench: &Bench, fixtures: &Path) -> Result<Vec<Round>> {
        let agent = bench.agent()?;
        let original = fixtures.join(self.program);
        // A file of its own: nobody else's probes are in it, and ours in nobody else's.
        let program = bench.ground.scratch().join("program");
        fs::copy(&original, &program).with_context(|| format!("copy {}", original.display()))?;
        let points = points::located(agent, &program)?;
        let requests = bench.shorter(REQUESTS, REQUESTS_QUICK);
        let mut client = Client::start(bench, self, &program)?;
        client.run(WARM_UP)?;
        let rounds = (0..bench.rounds).map(|_| client.round(bench, &program, &points, requests));
        rounds.collect()
    }

    fn row(&self, rounds: &[Round]) -> Row {
        let of = |value: fn(&Round) -> f64| Spread::of(rounds.iter().map(value).collect());
        let bare = of(|round| round.bare);
        let empty = of(|round| (round.empty - round.bare) / round.calls);
        let agent = of(|round| (round.agent - round.bare) / round.calls);
        let both = agent.zip(empty).filter(|(_, empty)| empty.min > 0.0);
        Row {
            family: self.name,
            missing: None,
            calls_per_request: of(|round| round.calls),
            bare,
            empty,
            agent,
            // As in the other table: nothing is divided by noise.
            to_empty: both.map(|(agent, empty)| agent.median / empty.median),
        }
    }
}

/// The program, which waits for an answer, and who gives it.
struct Client {
    /// First: it would complain if its server ended before it.
    child: Owned,
    _server: Owned,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(bench: &Bench, family: &Family, program: &Path) -> Result<Client> {
        let scratch = bench.ground.scratch();
        let programs = sh::root().join("tests/programs");
        let mut server = command("python3", bench.ground.server_cpu())
            .arg(programs.join("pace.py"))
            .arg(family.speaks)
            .args([scratch.join("cert.pem"), scratch.join("key.pem")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let orders = server.stdin.take().context("stdin of the server")?;
        let mut answers = BufReader::new(server.stdout.take().context("stdout of the server")?);
        let server = Owned(server);
        let port = line(&mut answers)?;
        let child = command(program, bench.ground.load_cpu())
            .args(family.arguments.iter().map(|argument| {
                let script = programs.join(argument);
                match script.is_file() {
                    true => script.into_os_string(),
                    false => argument.replace("PORT", port.trim()).into(),
                }
            }))
            .env("E2E_SECONDS", "900")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", family.name))?;
        Ok(Client {
            child: Owned(child),
            _server: server,
            orders,
            answers,
        })
    }

    fn round(
        &mut self,
        bench: &Bench,
        program: &Path,
        points: &[Point],
        requests: u32,
    ) -> Result<Round> {
        let bare = self.run(requests)?;
        let probes = EmptyPairs::attach_some(program, points)?;
        let empty = self.run(requests)?;
        drop(probes);
        let pid = self.child.0.id();
        let watching = Agent::watch(&bench.ground, bench.agent()?, &[pid], Setup::default())?;
        let agent = self.run(requests)?;
        let ledger = watching.stop()?.ledger;
        ensure!(
            ledger.bytes.lost() == 0 && ledger.entries() > 0,
            "the agent lost something or saw nothing: {ledger:?}"
        );
        Ok(Round {
            bare,
            empty,
            agent,
            calls: ledger.entries() as f64 / f64::from(requests),
        })
    }

    /// Nanoseconds of CPU time of the process for a request.
    fn run(&mut self, requests: u32) -> Result<f64> {
        let before = self.settled()?;
        writeln!(self.orders, "{requests}").context("an order for the server")?;
        let answer = line(&mut self.answers)?;
        ensure!(answer == "done\n", "the server said {answer:?}");
        let used = self.settled()? - before;
        Ok(used.as_nanos() as f64 / f64::from(requests))
    }

    /// CPU time so far, once it does nothing any more.
    fn settled(&self) -> Result<Duration> {
        const QUIET: Duration = Duration::from_millis(20);
        const LIMIT: Duration = Duration::from_secs(5);
        let start = Instant::now();
        let mut used = cpu_time(self.child.0.id())?;
        loop {
            std::thread::sleep(QUIET);
            let now = cpu_time(self.child.0.id())?;
            // Collectors and timers never rest quite.
            if now - used < QUIET / 40 || start.elapsed() > LIMIT {
                return Ok(now);
            }
            used = now;
        }
    }
}

fn line(answers: &mut BufReader<ChildStdout>) -> Result<String> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    ensure!(
        !line.is_empty(),
        "the server has ended; its reason is above"
    );
    Ok(line)
}

/// Of all threads of a process, those that have ended included.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both write to what they are given, which has their types.
    let is_known = unsafe {
        libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    ensure!(is_known, "the program has ended");
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

fn certificate(directory: &Path) -> Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=localhost",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
        ])
        .current_dir(directory)
        .output()
        .context("running openssl")?;
    ensure!(output.status.success(), "no certificate: {output:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_of_one_call() {
        let round = |bare: f64| Round {
            bare,
            empty: bare + 400.0,
            agent: bare + 600.0,
            calls: 2.0,
        };
        let row = FAMILIES[0].row(&[round(1000.0), round(5000.0), round(900.0)]);
        assert_eq!(row.bare.unwrap().median, 1000.0);
        assert_eq!(row.empty.unwrap().max, 200.0);
        assert_eq!(row.agent.unwrap().min, 300.0);
        assert_eq!(row.to_empty, Some(1.5));
        assert!(FAMILIES[0].row(&[]).to_empty.is_none());
    }
}
