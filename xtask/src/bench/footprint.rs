//! What the agent takes from the machine, and how soon it sees: start-up, memory, mapping to last probe.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::agent::{Agent, Setup};
use super::load::{Load, Order, Server};
use super::records;
use super::report::{Check, Spread, quantile};

const MIB: f64 = 1048576.0;

/// From spawning the agent with a command to the first byte of that command's plaintext in the file.
pub(super) fn start_up(bench: &Bench) -> Result<Vec<Check>> {
    const LIMIT_S: f64 = 0.3;
    let server = Server::echo(&bench.ground, &bench.untraced)?;
    let measure = |arguments: &[&str]| {
        let seconds = (0..bench.shorter(9, 3))
            .map(|_| first_event(bench, arguments))
            .collect::<Result<Vec<f64>>>()?;
        let s = Spread::of(seconds).context("no start")?;
        let measured = format!("{:.3} s ({:.3}..{:.3})", s.median, s.min, s.max);
        anyhow::Ok((measured, s.median <= LIMIT_S))
    };
    Ok(vec![
        Check::new(
            format!("start to first event: <= {LIMIT_S} s"),
            Some(measure(&["once", &server.port])?),
        ),
        // What never touches a socket waits for a name in vain.
        Check::note(
            "start to first event, memory BIOs alone",
            measure(&["once"])?.0,
        ),
    ])
}

fn first_event(bench: &Bench, arguments: &[&str]) -> Result<f64> {
    let ground = &bench.ground;
    let command = ["--", "env"].map(str::to_owned).into_iter().chain([
        format!("LD_LIBRARY_PATH={}", bench.traced.display()),
        ground.program.display().to_string(),
    ]);
    let command = command.chain(arguments.iter().map(|&argument| argument.to_owned()));
    let start = Instant::now();
    let mut agent = Agent::spawn(
        ground,
        bench.agent()?,
        Setup {
            data: true,
            ..Setup::default()
        },
        command.collect(),
    )?;
    while !records::has_data(&ground.records()) {
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "no data record within 5 s of the start"
        );
        sleep(Duration::from_micros(500));
    }
    let seconds = start.elapsed().as_secs_f64();
    let family = agent.family()?;
    agent.wait_for_end(&family)?;
    Ok(seconds)
}

/// Both halves and all maps, with many processes probed.
pub(super) fn memory(bench: &Bench) -> Result<Vec<Check>> {
    const LIMIT_MIB: f64 = 64.0;
    const PROCESSES: usize = 50;
    const OWN_COPIES: usize = 5;
    let mut loads = Vec::new();
    for i in 0..PROCESSES {
        let libraries = match i {
            0..OWN_COPIES => bench.ground.copy_libraries(&format!("own-{i}"))?,
            _ => bench.traced.clone(),
        };
        loads.push(Load::memory(&bench.ground, &libraries)?);
    }
    let pids: Vec<u32> = loads.iter().map(Load::pid).collect();
    let agent = Agent::watch(&bench.ground, bench.agent()?, &pids, Setup::default())?;
    let mut moved = 0;
    for load in &mut loads {
        moved += load
            .run(Order {
                size: 16 * 1024,
                pairs: Some(200),
                ..Order::default()
            })?
            .bytes;
    }
    let m = agent.memory()?;
    agent.stop()?.ledger.prove(moved)?;
    let total = (m.resident + m.maps) as f64 / MIB;
    let measured = format!(
        "{total:.1} MiB: {:.1} resident in {} processes, {:.1} in BPF maps",
        m.resident as f64 / MIB,
        m.processes,
        m.maps as f64 / MIB
    );
    let claim = format!(
        "memory of both halves and all maps, {PROCESSES} processes probed: <= {LIMIT_MIB} MiB"
    );
    Ok(vec![Check::new(
        claim,
        Some((measured, total <= LIMIT_MIB)),
    )])
}

/// From a process' mmap of a library that nobody has mapped before to the breakpoints in its memory.
pub(super) fn mapping(bench: &Bench) -> Result<Vec<Check>> {
    const MEDIAN_MS: f64 = 20.0;
    const P99_MS: f64 = 60.0;
    let points = bench
        .own
        .as_ref()
        .context("our own probe points aren't known")?;
    let mut load = Load::memory(&bench.ground, &bench.traced)?;
    let agent = Agent::watch(
        &bench.ground,
        bench.agent()?,
        &[load.pid()],
        Setup::default(),
    )?;
    let mut delays = Vec::new();
    for i in 0..bench.shorter(100, 20) {
        let directory = bench.ground.copy_libraries(&format!("fresh-{i}"))?;
        let mapped = load.map(&bench.ground.libssl(&directory)?, points)?;
        ensure!(
            mapped.probed,
            "no breakpoints within {} ms of mapping number {}",
            mapped.ns / 1_000_000,
            i + 1
        );
        delays.push(mapped.ns as f64 / 1e6);
        fs::remove_dir_all(directory)?;
    }
    agent.stop()?;
    let (median, p99) = (quantile(&mut delays, 0.5), quantile(&mut delays, 0.99));
    let (median, p99) = median.zip(p99).context("no mapping")?;
    let measured = format!("median {median:.1} ms, p99 {p99:.1} ms of {}", delays.len());
    let claim = format!("mapping to last probe: median <= {MEDIAN_MS} ms, p99 <= {P99_MS} ms");
    Ok(vec![Check::new(
        claim,
        Some((measured, median <= MEDIAN_MS && p99 <= P99_MS)),
    )])
}
