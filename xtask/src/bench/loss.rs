//! When bytes are lost: at which rate, after which pause of the reader, in a whole GiB. And that the ledger says so.

use std::fmt::{self, Display};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::agent::{Agent, Setup};
use super::load::{Answer, Load, Order, Server};
use super::records::{self, Account, Stats};
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
    stats: Stats,
    cpu_seconds: f64,
    /// The agent's threads lost their CPU so often.
    preemptions: u64,
}

impl Trial {
    fn cpu_seconds_per_gib(&self) -> f64 {
        self.cpu_seconds / (self.answer.bytes as f64 / f64::from(1 << 30))
    }

    fn lost(&self) -> u64 {
        self.stats.ledger.bytes.lost()
    }

    /// Neither bytes on the way to the agent nor records on the way out of it.
    fn is_complete(&self) -> bool {
        self.lost() == 0 && self.stats.dropped() == 0
    }

    fn speed(&self) -> String {
        let (pairs, mib) = (self.answer.pairs_per_second(), self.answer.mib_per_second());
        format!("{pairs:.0} pairs/s = {mib:.0} MiB/s")
    }

    fn losses(&self) -> String {
        let (lost, dropped, times) = (self.lost(), self.stats.dropped(), self.preemptions);
        format!("{lost} bytes lost, {dropped} records dropped, agent preempted {times} times")
    }
}

fn trial(bench: &Bench, setup: Setup, order: Order, pause: Option<Duration>) -> Result<Trial> {
    let mut load = Load::memory(&bench.ground, &bench.traced)?;
    let agent = Agent::watch(&bench.ground, bench.agent()?, &[load.pid()], setup)?;
    let (cpu_before, preemptions_before) = (agent.cpu_seconds()?, agent.preemptions()?);
    load.begin(order)?;
    if let Some(pause) = pause {
        sleep(Duration::from_millis(200));
        agent.pause()?;
        sleep(pause);
        agent.resume()?;
    }
    let answer = load.finish()?;
    sleep(Duration::from_millis(100));
    let cpu_seconds = agent.cpu_seconds()? - cpu_before;
    let preemptions = agent.preemptions()?.saturating_sub(preemptions_before);
    let stats = agent.stop()?;
    stats.ledger.prove(answer.bytes)?;
    if setup.data && stats.dropped() == 0 {
        let Account { data, gaps } = records::account(&bench.ground.records())?;
        ensure!(
            data + gaps == answer.bytes,
            "{} bytes moved; {data} in data records and {gaps} in gaps",
            answer.bytes
        );
        let lost = stats.ledger.bytes.lost();
        ensure!(gaps == lost, "{lost} bytes lost, but {gaps} in gaps");
    }
    Ok(Trial {
        answer,
        stats,
        cpu_seconds,
        preemptions,
    })
}

/// `--emit stats`, as fast as one thread goes.
pub(super) fn full_speed(bench: &Bench) -> Result<Vec<Check>> {
    let order = Order {
        ms: Some(bench.shorter(3000, 1000)),
        ..Order::default()
    };
    let large = highest_rate(
        bench,
        Setup::default(),
        Order {
            size: RECORD,
            ..order
        },
    )?;
    let small = highest_rate(bench, Setup::default(), Order { size: 64, ..order })?;
    let claim = format!("{RECORD} B, stats only, highest rate of one thread: nothing lost");
    Ok(vec![
        Check::new(claim, Some((large.to_string(), large.top.is_complete()))),
        Check::note(
            "64 B, stats only, highest rate of one thread",
            small.to_string(),
        ),
    ])
}

/// Plaintext as JSON to a file on tmpfs: what is text, and what has to become base64.
pub(super) fn json(bench: &Bench) -> Result<Vec<Check>> {
    let setup = Setup {
        data: true,
        ..Setup::default()
    };
    let pairs = bench.shorter(32 * 1024, 16 * 1024);
    let mut checks = Vec::new();
    for (text, kind) in [(true, "text"), (false, "base64")] {
        let rate = highest_rate(
            bench,
            setup,
            Order {
                size: RECORD,
                pairs: Some(pairs),
                text,
                ..Order::default()
            },
        )?;
        let enough = rate
            .lossless()
            .is_some_and(|t| t.answer.mib_per_second() >= JSON_MIB_PER_SECOND);
        let claim = format!(
            "{RECORD} B, everything as JSON ({kind}) to tmpfs: nothing lost at >= {JSON_MIB_PER_SECOND} MiB/s"
        );
        checks.push(Check::new(claim, Some((rate.to_string(), enough))));
    }
    Ok(checks)
}

/// As fast as it goes, and the fastest that loses nothing.
struct Highest {
    top: Trial,
    /// If the top isn't complete, and one was found.
    below: Option<Trial>,
}

fn highest_rate(bench: &Bench, setup: Setup, order: Order) -> Result<Highest> {
    let top = trial(bench, setup, order, None)?;
    if top.is_complete() {
        return Ok(Highest { top, below: None });
    }
    let (mut low, mut high) = (0.0, top.answer.pairs_per_second());
    let mut below = None;
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
        if !paced.is_complete() {
            high = middle;
            continue;
        }
        low = middle;
        below = Some(paced);
    }
    Ok(Highest { top, below })
}

impl Highest {
    fn lossless(&self) -> Option<&Trial> {
        if self.top.is_complete() {
            Some(&self.top)
        } else {
            self.below.as_ref()
        }
    }
}

impl Display for Highest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lossless() {
            Some(t) => write!(
                f,
                "{}, {:.2} CPU s per GiB",
                t.speed(),
                t.cpu_seconds_per_gib()
            )?,
            None => write!(f, "no rate without loss found")?,
        }
        if !self.top.is_complete() {
            write!(f, "; at {} {}", self.top.speed(), self.top.losses())?;
        }
        Ok(())
    }
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
        let outcome = send(bench, mib << 20, text)?;
        let equal = outcome.is_none();
        let measured = outcome.unwrap_or_else(|| "equal".to_owned());
        checks.push(Check::new(claim, Some((measured, equal))));
    }
    Ok(checks)
}

/// `None`: the file holds exactly what was sent.
fn send(bench: &Bench, bytes: u64, text: bool) -> Result<Option<String>> {
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
    let stats = agent.stop()?;
    stats.ledger.prove(answer.bytes)?;
    let (lost, dropped) = (stats.ledger.bytes.lost(), stats.dropped());
    if lost + dropped > 0 {
        return Ok(Some(format!(
            "{lost} bytes lost, {dropped} records dropped, books exact"
        )));
    }
    let sent = answer.sha256.context("the load didn't hash what it sent")?;
    let captured = records::sha256_of_sent(&bench.ground.records())?;
    let differs = format!("SHA-256 of the output is {captured}, of what was sent {sent}");
    Ok((captured != sent).then_some(differs))
}
