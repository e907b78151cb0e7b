//! When bytes are lost: at which rate, after which pause of the reader, in a whole GiB. And that the ledger says so.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::agent::{Agent, Setup};
use super::load::{Answer, Load, Order, Server};
use super::records::{self, Account, Ledger};
use super::report::Check;

const RECORD: usize = 16 * 1024;
/// Output in JSON has to keep up with this.
const JSON_MIB_PER_SECOND: f64 = 500.0;
/// 4,000 records a second.
const PAUSE_PAIRS_PER_SECOND: u64 = 2000;
const PAUSES_MS: [u64; 6] = [100, 250, 500, 1000, 1500, 2000];
const PAUSE_TO_SURVIVE_MS: u64 = 1000;
/// Halvings: the search ends within 1/32 of the rate at full speed.
const SEARCH_STEPS: usize = 5;

/// One load and one agent, from before its first byte to after its last.
struct Trial {
    answer: Answer,
    ledger: Ledger,
    cpu_seconds: f64,
}

impl Trial {
    fn cpu_seconds_per_gib(&self) -> f64 {
        self.cpu_seconds / (self.answer.bytes as f64 / f64::from(1 << 30))
    }

    fn lost(&self) -> u64 {
        self.ledger.bytes.lost()
    }
}

fn trial(bench: &Bench, setup: Setup, order: Order, pause: Option<Duration>) -> Result<Trial> {
    let mut load = Load::memory(&bench.ground, &bench.traced)?;
    let agent = Agent::watch(&bench.ground, bench.agent()?, &[load.pid()], setup)?;
    let before = agent.cpu_seconds()?;
    load.begin(order)?;
    if let Some(pause) = pause {
        sleep(Duration::from_millis(200));
        agent.pause()?;
        sleep(pause);
        agent.resume()?;
    }
    let answer = load.finish()?;
    sleep(Duration::from_millis(100));
    let cpu_seconds = agent.cpu_seconds()? - before;
    let ledger = agent.stop()?;
    ledger.prove(answer.bytes)?;
    if setup.data {
        let Account { data, gaps } = records::account(&bench.ground.records())?;
        ensure!(
            data + gaps == answer.bytes,
            "{} bytes moved; {data} in data records and {gaps} in gaps",
            answer.bytes
        );
        ensure!(
            gaps == ledger.bytes.lost(),
            "{} bytes lost, but {gaps} in gaps",
            ledger.bytes.lost()
        );
    }
    Ok(Trial {
        answer,
        ledger,
        cpu_seconds,
    })
}

/// `--emit stats`, as fast as one thread goes.
pub(super) fn full_speed(bench: &Bench) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for size in [RECORD, 64] {
        let order = Order {
            size,
            ms: Some(bench.shorter(3000, 1000)),
            ..Order::default()
        };
        let top = trial(bench, Setup::default(), order, None)?;
        let measured = format!(
            "{} lost of {} at {:.0} pairs/s, {:.0} MiB/s; {:.2} CPU s per GiB",
            top.lost(),
            top.answer.bytes,
            top.answer.pairs_per_second(),
            top.answer.mib_per_second(),
            top.cpu_seconds_per_gib()
        );
        let claim = format!("{size} B, stats only, highest rate of one thread: nothing lost");
        match size {
            RECORD => checks.push(Check::new(claim, Some((measured, top.lost() == 0)))),
            _ => checks.push(Check::note(claim, measured)),
        }
        if top.lost() > 0 {
            let best = highest_rate(bench, Setup::default(), order, top)?;
            checks.push(Check::note(
                format!("{size} B, stats only: highest rate without loss"),
                rate(best.as_ref()),
            ));
        }
    }
    Ok(checks)
}

/// Plaintext as JSON to a file on tmpfs: what is text, and what has to become base64.
pub(super) fn json(bench: &Bench) -> Result<Vec<Check>> {
    let setup = Setup {
        data: true,
        ..Setup::default()
    };
    [true, false]
        .into_iter()
        .map(|text| {
            let pairs = bench.shorter(32 * 1024, 16 * 1024);
            let order = Order { size: RECORD, pairs: Some(pairs), text, ..Order::default() };
            let top = trial(bench, setup, order, None)?;
            let best = highest_rate(bench, setup, order, top)?;
            let enough = best.as_ref().is_some_and(|b| b.answer.mib_per_second() >= JSON_MIB_PER_SECOND);
            let kind = if text { "text" } else { "base64" };
            let claim = format!("{RECORD} B, all plaintext as JSON ({kind}) to tmpfs: >= {JSON_MIB_PER_SECOND} MiB/s, nothing lost");
            Ok(Check::new(claim, Some((rate(best.as_ref()), enough))))
        })
        .collect()
}

/// The fastest trial that loses nothing: the one at full speed, or one found by bisection.
fn highest_rate(bench: &Bench, setup: Setup, order: Order, top: Trial) -> Result<Option<Trial>> {
    if top.lost() == 0 {
        return Ok(Some(top));
    }
    let (mut low, mut high) = (0.0, top.answer.pairs_per_second());
    let mut best = None;
    for _ in 0..SEARCH_STEPS {
        let middle = f64::midpoint(low, high);
        let paced = trial(
            bench,
            setup,
            Order {
                rate: Some(middle as u64),
                ..order
            },
            None,
        )?;
        if paced.lost() > 0 {
            high = middle;
            continue;
        }
        low = middle;
        best = Some(paced);
    }
    Ok(best)
}

fn rate(trial: Option<&Trial>) -> String {
    let Some(t) = trial else {
        return "none found".to_owned();
    };
    let (speed, cpu) = (t.answer.mib_per_second(), t.cpu_seconds_per_gib());
    format!(
        "{:.0} pairs/s, {speed:.0} MiB/s, {cpu:.2} CPU s per GiB",
        t.answer.pairs_per_second()
    )
}

/// The reader stopped while the load goes on.
pub(super) fn pauses(bench: &Bench) -> Result<Vec<Check>> {
    let mut lost = Vec::new();
    for ms in PAUSES_MS {
        lost.push((ms, paused(bench, Setup::default(), ms)?.lost()));
    }
    let survived = lost
        .iter()
        .take_while(|(_, bytes)| *bytes == 0)
        .map(|(ms, _)| *ms)
        .last()
        .unwrap_or(0);
    let first_loss = lost.iter().find(|(_, bytes)| *bytes > 0);
    let measured = match first_loss {
        None => format!("nothing lost up to {survived} ms"),
        Some((ms, bytes)) => {
            format!("longest pause without loss {survived} ms; {bytes} bytes lost at {ms} ms")
        }
    };
    let claim = format!(
        "reader stopped for {PAUSE_TO_SURVIVE_MS} ms at 4000 records/s of 1 KiB: nothing lost"
    );
    Ok(vec![Check::new(
        claim,
        Some((measured, survived >= PAUSE_TO_SURVIVE_MS)),
    )])
}

fn paused(bench: &Bench, setup: Setup, ms: u64) -> Result<Trial> {
    let order = Order {
        size: 1024,
        ms: Some(ms + 600),
        rate: Some(PAUSE_PAIRS_PER_SECOND),
        ..Order::default()
    };
    trial(bench, setup, order, Some(Duration::from_millis(ms)))
}

/// A ring that is too small loses; ledger and gaps still account for every byte.
pub(super) fn small_ring(bench: &Bench) -> Result<Vec<Check>> {
    let setup = Setup {
        data: true,
        ring_mib: Some(1),
    };
    let trial = paused(bench, setup, 2000)?;
    let measured = format!(
        "{} of {} bytes lost, every one in a gap",
        trial.lost(),
        trial.answer.bytes
    );
    let claim =
        "1 MiB ring, reader stopped for 2 s: bytes are lost, ledger and gaps are exact".to_owned();
    Ok(vec![Check::new(claim, Some((measured, trial.lost() > 0)))])
}

/// A GiB through one client over loopback, and the SHA-256 of what came out of the agent.
pub(super) fn volume(bench: &Bench) -> Result<Vec<Check>> {
    let mib = bench.shorter(1024, 128);
    let mut checks = Vec::new();
    for text in [false, true] {
        let kind = if text { "text" } else { "base64" };
        let claim = format!(
            "{mib} MiB through one client, {RECORD} B writes, {kind}: nothing lost, SHA-256 equal"
        );
        let (lost, equal) = send(bench, mib << 20, text)?;
        let measured = format!(
            "{lost} bytes lost, SHA-256 {}",
            if equal { "equal" } else { "not compared" }
        );
        checks.push(Check::new(claim, Some((measured, lost == 0 && equal))));
    }
    Ok(checks)
}

fn send(bench: &Bench, bytes: u64, text: bool) -> Result<(u64, bool)> {
    let server = Server::sink(&bench.ground, &bench.untraced)?;
    let mut load = Load::client(&bench.ground, &bench.traced, &server)?;
    let setup = Setup {
        data: true,
        ..Setup::default()
    };
    let agent = Agent::watch(&bench.ground, bench.agent()?, &[load.pid()], setup)?;
    let pairs = bytes / RECORD as u64;
    let answer = load.run(Order {
        size: RECORD,
        pairs: Some(pairs),
        one_way: true,
        text,
        hash: true,
        ..Order::default()
    })?;
    let ledger = agent.stop()?;
    ledger.prove(answer.bytes)?;
    if ledger.bytes.lost() > 0 {
        return Ok((ledger.bytes.lost(), false));
    }
    let sent = answer.sha256.context("the load didn't hash what it sent")?;
    let captured = records::sha256_of_sent(&bench.ground.records())?;
    ensure!(
        captured == sent,
        "SHA-256 of the output is {captured}, of what was sent {sent}"
    );
    Ok((0, true))
}
