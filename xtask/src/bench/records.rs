//! What the agent wrote: its ledger, and the plaintext itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The agent's last word about a run.
#[derive(Debug, Deserialize)]
pub(super) struct Stats {
    pub(super) ledger: Ledger,
    sinks: Vec<Sink>,
}

/// Where every byte and every call went; see `Ledger` in the agent.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ledger {
    pub(super) bytes: Bytes,
    calls: Calls,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Bytes {
    seen: u64,
    filtered: u64,
    over_limit: u64,
    lost: BTreeMap<String, u64>,
    delivered: u64,
    in_flight: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Calls {
    entries: u64,
    returns: u64,
    in_flight: u64,
    unmatched: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct Sink {
    dropped: u64,
}

impl Stats {
    /// Records that were made and not written.
    pub(super) fn dropped(&self) -> u64 {
        self.sinks.iter().map(|s| s.dropped).sum()
    }
}

impl Bytes {
    pub(super) fn lost(&self) -> u64 {
        self.lost.values().sum()
    }
}

impl Ledger {
    /// Calls that were let pass.
    pub(super) fn entries(&self) -> u64 {
        self.calls.entries
    }

    /// The agent's books are closed, balance, and say what the load says it moved.
    pub(super) fn prove(&self, moved: u64) -> Result<()> {
        self.balance()?;
        let (seen, unmatched) = (self.bytes.seen, &self.calls.unmatched);
        ensure!(
            seen == moved,
            "the load moved {moved} bytes, the ledger saw {seen}"
        );
        ensure!(
            unmatched.values().all(|&n| n == 0),
            "calls without their return: {unmatched:?}"
        );
        Ok(())
    }

    /// The agent's books are closed, and each sum is right.
    pub(super) fn balance(&self) -> Result<()> {
        let Ledger { bytes: b, calls: c } = self;
        let places = b.filtered + b.over_limit + b.lost() + b.delivered + b.in_flight;
        let ends = c.returns + c.in_flight + c.unmatched.values().sum::<u64>();
        ensure!(
            b.seen == places,
            "{} bytes seen, but the places they went to add up to {places}",
            b.seen
        );
        ensure!(
            c.entries == ends,
            "{} calls entered, but their ends add up to {ends}",
            c.entries
        );
        ensure!(
            b.in_flight == 0,
            "{} bytes in flight in the last record",
            b.in_flight
        );
        Ok(())
    }
}

pub(super) fn last_stats(file: &Path) -> Result<Stats> {
    const TAIL: u64 = 1 << 20;
    let mut opened = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let start = opened.metadata()?.len().saturating_sub(TAIL);
    opened.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    opened.read_to_end(&mut tail)?;
    let last = tail
        .rsplit(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .find(|record| record["kind"] == "stats")
        .context("the agent wrote no stats record")?;
    Stats::deserialize(&last).with_context(|| format!("not a stats record as we know it: {last}"))
}

/// Processes whose library is probed, by what the agent has written so far. One that was there before
/// the agent is `partly` covered: its first calls were not seen. The ledger tells whether the others were.
pub(super) fn probed(file: &Path) -> BTreeSet<u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|record| record["kind"] == "coverage")
        .filter(|record| record["status"] == "probed" || record["status"] == "partly")
        .filter_map(|record| record["process"]["pid"].as_u64())
        .collect()
}

/// Plaintext that the output accounts for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) data: u64,
    pub(super) gaps: u64,
}

pub(super) fn account(file: &Path) -> Result<Account> {
    let mut account = Account::default();
    each_line(file, |record| {
        match record.kind {
            "data" => account.data += record.length.context("a data record without length")?,
            "gap" => account.gaps += record.length.context("a gap without length")?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(account)
}

fn each_line(file: &Path, mut take: impl FnMut(Line) -> Result<()>) -> Result<()> {
    let mut lines = BufReader::with_capacity(1 << 20, File::open(file)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        take(serde_json::from_slice(&line).context("a line of the output isn't a record")?)?;
        line.clear();
    }
    Ok(())
}

/// Has plaintext arrived? The last line may be half written.
pub(super) fn has_data(file: &Path) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut records = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.any(|record| record["kind"] == "data")
}

#[derive(Deserialize)]
struct Line<'a> {
    kind: &'a str,
    direction: Option<&'a str>,
    offset: Option<u64>,
    length: Option<u64>,
    text: Option<String>,
    base64: Option<&'a str>,
}

/// SHA-256 of everything sent, taken from the `data` records of one stream; a hole in it is an error.
pub(super) fn sha256_of_sent(file: &Path) -> Result<String> {
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running sha256sum")?;
    let mut sink = sum.stdin.take().context("stdin of sha256sum")?;
    let mut next = None;
    each_line(file, |record| {
        if record.kind != "data" || record.direction != Some("sent") {
            return Ok(());
        }
        let bytes = plaintext(&record)?;
        let offset = record.offset.context("a data record without offset")?;
        ensure!(
            next.is_none_or(|n| n == offset),
            "the stream has a hole before {offset}"
        );
        ensure!(
            record.length == Some(bytes.len() as u64),
            "a record of another length at {offset}"
        );
        next = Some(offset + bytes.len() as u64);
        Ok(sink.write_all(&bytes)?)
    })?;
    drop(sink);
    let output = sum.wait_with_output()?;
    let printed = String::from_utf8(output.stdout)?;
    Ok(printed
        .split_whitespace()
        .next()
        .context("sha256sum said nothing")?
        .to_owned())
}

fn plaintext(record: &Line) -> Result<Vec<u8>> {
    match (&record.text, record.base64) {
        (Some(text), None) => Ok(text.clone().into_bytes()),
        (None, Some(text)) => base64_simd::STANDARD
            .decode_to_vec(text)
            .context("base64 of a data record"),
        _ => bail!("a data record needs either text or base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = r#"{"kind":"stats","ledger":{"bytes":{"seen":10,"filtered":0,"over_limit":0,
        "lost":{"ring_full":3,"copy_fault":0},"delivered":7,"in_flight":0},
        "calls":{"entries":2,"returns":2,"in_flight":0,"filtered":0,"unmatched":{"exited":0}}},
        "sinks":[{"name":"file","sent":1,"dropped":0}]}"#;

    fn ledger() -> Ledger {
        serde_json::from_str::<Stats>(STATS).unwrap().ledger
    }

    #[test]
    fn a_balanced_ledger_is_proved() {
        ledger().prove(10).unwrap();
        assert_eq!(ledger().bytes.lost(), 3);
    }

    fn output(name: &str, lines: &str) -> std::path::PathBuf {
        let file = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        fs::write(&file, lines).unwrap();
        file
    }

    #[test]
    fn text_and_base64_of_one_stream_are_hashed_in_order() {
        let file = output(
            "abc",
            r#"{"kind":"coverage","status":"probed","process":{"pid":7}}
{"kind":"coverage","status":"partly","process":{"pid":8}}
{"kind":"coverage","status":"refused","process":{"pid":9}}
{"kind":"data","direction":"sent","offset":0,"length":1,"text":"a"}
{"kind":"data","direction":"received","offset":0,"length":1,"text":"x"}
{"kind":"data","direction":"sent","offset":1,"length":2,"base64":"YmM="}
"#,
        );
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of_sent(&file).unwrap(), abc);
        assert_eq!(probed(&file), BTreeSet::from([7, 8]));
        assert_eq!(account(&file).unwrap(), Account { data: 4, gaps: 0 });
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn a_hole_is_not_hashed_over() {
        let file = output(
            "hole",
            r#"{"kind":"data","direction":"sent","offset":0,"length":1,"text":"a"}
{"kind":"gap","direction":"sent","cause":"ring_full","offset":1,"length":2}
{"kind":"data","direction":"sent","offset":3,"length":1,"text":"b"}
"#,
        );
        assert!(
            sha256_of_sent(&file)
                .unwrap_err()
                .to_string()
                .contains("hole before 3")
        );
        assert_eq!(account(&file).unwrap(), Account { data: 2, gaps: 2 });
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn one_byte_or_one_call_too_few_is_an_error() {
        let wrong: [fn(&mut Ledger); 4] = [
            |l| l.bytes.seen -= 1,
            |l| l.bytes.delivered -= 1,
            |l| l.calls.returns -= 1,
            |l| (l.bytes.delivered, l.bytes.in_flight) = (6, 1),
        ];
        for spoil in wrong {
            let mut ledger = ledger();
            spoil(&mut ledger);
            assert!(ledger.prove(10).is_err(), "{ledger:?}");
        }
        assert!(ledger().prove(9).is_err());
    }
}
