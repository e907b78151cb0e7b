//! What the agent wrote, put back together and compared with what was really sent.
//!
//! Nothing here trusts the agent: a piece that comes twice, a hole without a gap record, a length
//! that is not its content's is an error. The unit tests below doctor good records to show that.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::Value;

/// Both directions of one connection, as one of its ends really saw them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Truth {
    pub(crate) name: String,
    pub(crate) sent: Vec<u8>,
    pub(crate) received: Vec<u8>,
}

impl Truth {
    /// The same connection seen from the other end.
    pub(crate) fn swapped(self) -> Self {
        Self {
            name: self.name,
            sent: self.received,
            received: self.sent,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        (self.sent.len() + self.received.len()) as u64
    }
}

pub(crate) fn total(truth: &[Truth]) -> u64 {
    truth.iter().map(Truth::len).sum()
}

/// One piece of a stream: its bytes, or why they are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Bytes(Vec<u8>),
    Gap { cause: String, length: u64 },
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Gap { length, .. } => *length,
        }
    }
}

/// The pieces of one direction by their position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stream(BTreeMap<u64, Piece>);

impl Stream {
    fn add(&mut self, offset: u64, piece: Piece) -> Result<(), String> {
        if piece.len() == 0 {
            return Err(format!("an empty piece at {offset}"));
        }
        match self.0.insert(offset, piece) {
            None => Ok(()),
            Some(_) => Err(format!("two pieces at {offset}")),
        }
    }

    /// Each byte exactly once, from 0 on: no overlap, no hole without a gap record.
    fn check(&self) -> Result<(), String> {
        let mut end = 0;
        for (&offset, piece) in &self.0 {
            if offset < end {
                return Err(format!(
                    "overlap: a piece at {offset}, the last one ends at {end}"
                ));
            }
            if offset > end {
                return Err(format!("silent hole from {end} to {offset}"));
            }
            end += piece.len();
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.values().map(Piece::len).sum()
    }

    /// All of it; none if something is missing.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        for piece in self.0.values() {
            match piece {
                Piece::Bytes(bytes) => all.extend(bytes),
                Piece::Gap { .. } => return None,
            }
        }
        Some(all)
    }

    pub(crate) fn gaps(&self) -> impl Iterator<Item = (u64, &str, u64)> {
        self.0.iter().filter_map(|(&offset, piece)| match piece {
            Piece::Gap { cause, length } => Some((offset, cause.as_str(), *length)),
            Piece::Bytes(_) => None,
        })
    }

    /// Same length, and every byte that is there is the right one.
    pub(crate) fn agrees(&self, truth: &[u8]) -> bool {
        self.len() == truth.len() as u64
            && self.0.iter().all(|(&offset, piece)| match piece {
                Piece::Bytes(bytes) => truth[offset as usize..].starts_with(bytes),
                Piece::Gap { .. } => true,
            })
    }

    /// Where it first differs from `truth`.
    fn difference(&self, truth: &[u8]) -> String {
        for (&offset, piece) in &self.0 {
            let Piece::Bytes(bytes) = piece else { continue };
            for (at, byte) in (offset as usize..).zip(bytes) {
                if truth.get(at) != Some(byte) {
                    return format!("differs at {at}");
                }
            }
        }
        format!("ends at {} of {}", self.len(), truth.len())
    }
}

/// One connection as the records tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) id: String,
    pub(crate) pid: u64,
    pub(crate) sent: Stream,
    pub(crate) received: Stream,
}

impl Connection {
    /// It was this one, and every byte of it is there.
    pub(crate) fn is(&self, truth: &Truth) -> bool {
        self.agrees(truth) && self.gaps().next().is_none()
    }

    pub(crate) fn agrees(&self, truth: &Truth) -> bool {
        self.sent.agrees(&truth.sent) && self.received.agrees(&truth.received)
    }

    pub(crate) fn gaps(&self) -> impl Iterator<Item = (u64, &str, u64)> {
        self.sent.gaps().chain(self.received.gaps())
    }
}

/// The lines of one run.
#[derive(Debug, Default)]
pub(crate) struct Records(pub(crate) Vec<Value>);

const KINDS: &[&str] = &[
    "data",
    "http",
    "websocket",
    "sse",
    "grpc",
    "llm",
    "mcp",
    "finding",
    "coverage",
    "gap",
    "stats",
];

impl Records {
    /// Every line must be a record with its envelope. `finished`: the last line must end, too.
    pub(crate) fn parse(text: &str, finished: bool) -> Result<Self, String> {
        let mut records = Vec::new();
        let mut ids = HashSet::new();
        for line in text.split_inclusive('\n') {
            if !line.ends_with('\n') {
                if finished {
                    return Err(format!("the last line is cut: {line:.200}"));
                }
                break;
            }
            let record: Value =
                serde_json::from_str(line).map_err(|error| format!("{error}: {line:.200}"))?;
            let text = |path: &str| {
                record
                    .pointer(path)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            };
            let wrong = |what: &str| Err(format!("{what}: {line:.300}"));
            if record["v"] != 1 {
                return wrong("not version 1");
            }
            if !text("/kind").is_some_and(|kind| KINDS.contains(&kind.as_str())) {
                return wrong("unknown kind");
            }
            if !text("/time").is_some_and(|time| is_rfc3339_nanoseconds(&time)) {
                return wrong("time is not RFC 3339 with nanoseconds");
            }
            if !text("/host/name").is_some_and(|name| !name.is_empty()) {
                return wrong("no host.name");
            }
            match text("/id") {
                Some(id) if ids.insert(id.clone()) => {}
                _ => return wrong("id is missing or not unique"),
            }
            records.push(record);
        }
        Ok(Self(records))
    }

    pub(crate) fn kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |record| record["kind"] == kind)
    }

    /// Puts the streams together.
    pub(crate) fn connections(&self) -> Result<Vec<Connection>, String> {
        let mut connections: BTreeMap<String, Connection> = BTreeMap::new();
        for record in &self.0 {
            let piece = match record["kind"].as_str() {
                Some("data") => Piece::Bytes(content(record)?),
                Some("gap") => Piece::Gap {
                    cause: string(record, "/cause")?,
                    length: number(record, "/length")?,
                },
                _ => continue,
            };
            let id = string(record, "/connection/id")?;
            let pid = number(record, "/process/pid")?;
            let connection = connections.entry(id.clone()).or_insert_with(|| Connection {
                id: id.clone(),
                pid,
                ..Connection::default()
            });
            if connection.pid != pid {
                return Err(format!("{id} belongs to {} and to {pid}", connection.pid));
            }
            let stream = match record["direction"].as_str() {
                Some("sent") => &mut connection.sent,
                Some("received") => &mut connection.received,
                _ => return Err(format!("no direction: {}", digest(record))),
            };
            stream
                .add(number(record, "/offset")?, piece)
                .map_err(|error| format!("{id}: {error}"))?;
        }
        for connection in connections.values() {
            let id = &connection.id;
            connection
                .sent
                .check()
                .map_err(|error| format!("{id} sent: {error}"))?;
            connection
                .received
                .check()
                .map_err(|error| format!("{id} received: {error}"))?;
        }
        Ok(connections.into_values().collect())
    }

    /// The ledger of the last record, which must be the only one that says so.
    pub(crate) fn last_stats(&self) -> Result<&Value, String> {
        let mut last = self.kind("stats").filter(|record| record["last"] == true);
        match (last.next(), last.next()) {
            (Some(record), None) if self.0.last() == Some(record) => Ok(record),
            (Some(_), None) => Err("records behind the last stats".to_owned()),
            (None, _) => Err("no stats record with last: true".to_owned()),
            (Some(_), Some(_)) => Err("two last stats records".to_owned()),
        }
    }

    /// Both identities by field, and the sums that the other records must give. Returns `seen`.
    pub(crate) fn check_ledger(&self) -> Result<u64, String> {
        let stats = self.last_stats()?;
        let field = |path: &str| number(stats, &format!("/ledger/{path}"));
        let causes = |path: &str, names: &[&str]| -> Result<u64, String> {
            names
                .iter()
                .try_fold(0, |_, name| field(&format!("{path}/{name}")))?;
            let all = stats
                .pointer(&format!("/ledger/{path}"))
                .and_then(Value::as_object);
            let all = all.ok_or_else(|| format!("ledger/{path} is no object"))?;
            all.values()
                .map(|value| value.as_u64().ok_or_else(|| format!("{path}: {value}")))
                .sum()
        };
        let lost = causes(
            "bytes/lost",
            &[
                "ring_full",
                "copy_fault",
                "map_full",
                "over_budget",
                "sendfile",
                "no_buffer",
                "withdrawn",
                "unknown",
            ],
        )?;
        let unmatched = causes(
            "calls/unmatched",
            &["abandoned", "too_deep", "map_full", "exited", "other_stack"],
        )?;
        let seen = field("bytes/seen")?;
        let over_limit = field("bytes/over_limit")?;
        let delivered = field("bytes/delivered")?;
        let sum =
            field("bytes/filtered")? + over_limit + lost + delivered + field("bytes/in_flight")?;
        let mut wrong = Vec::new();
        let mut equal = |what: &str, left: u64, right: u64| {
            if left != right {
                wrong.push(format!("{what}: {left} != {right}"));
            }
        };
        equal("bytes.seen and the sum of its parts", seen, sum);
        equal("bytes.in_flight and 0", field("bytes/in_flight")?, 0);
        equal("bytes.lost.unknown and 0", field("bytes/lost/unknown")?, 0);
        let calls = field("calls/returns")? + field("calls/in_flight")? + unmatched;
        equal(
            "calls.entries and the sum of its parts",
            field("calls/entries")?,
            calls,
        );
        field("calls/filtered")?;

        let length = |kind| {
            self.kind(kind)
                .map(|record| number(record, "/length"))
                .sum::<Result<u64, _>>()
        };
        equal(
            "bytes.delivered and the lengths of all data records",
            delivered,
            length("data")?,
        );
        equal(
            "over_limit + lost and the lengths of all gap records",
            over_limit + lost,
            length("gap")?,
        );
        let sinks = stats["sinks"].as_array().ok_or("sinks is no array")?;
        for sink in sinks {
            equal("sinks.dropped and 0", number(sink, "/dropped")?, 0);
        }
        if wrong.is_empty() {
            Ok(seen)
        } else {
            Err(wrong.join("; "))
        }
    }

    /// A few lines that tell what there is.
    pub(crate) fn digest(&self) -> String {
        let mut text = String::new();
        for (at, record) in self.0.iter().enumerate() {
            if at >= 60 && at + 10 < self.0.len() {
                continue;
            }
            text += &format!("  {at}: {}\n", digest(record));
        }
        text
    }
}

/// Every connection of the truth has exactly one in the records that agrees, and nothing is left
/// over. Gaps are allowed by cause.
pub(crate) fn compare(
    found: &[Connection],
    truth: &[Truth],
    causes: &[&str],
) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut missing: Vec<&Truth> = truth.iter().filter(|truth| truth.len() > 0).collect();
    // Those with the most bytes missing last: a stream of gaps alone agrees with everybody.
    let mut order: Vec<&Connection> = found.iter().collect();
    order.sort_by_key(|found| found.gaps().map(|(_, _, length)| length).sum::<u64>());
    let mut left = Vec::new();
    for connection in order {
        match missing.iter().position(|truth| connection.agrees(truth)) {
            Some(at) => {
                missing.swap_remove(at);
            }
            None => left.push(connection),
        }
    }
    for connection in found {
        for (offset, cause, length) in connection.gaps() {
            if !causes.contains(&cause) {
                wrong.push(format!(
                    "{}: gap {cause} of {length} at {offset}",
                    connection.id
                ));
            }
        }
    }
    for truth in &missing {
        wrong.push(format!(
            "no connection is {}: sent {} received {}",
            truth.name,
            sum(&truth.sent),
            sum(&truth.received)
        ));
    }
    for found in &left {
        let nearest = missing
            .iter()
            .map(|truth| {
                let (sent, received) = (
                    found.sent.difference(&truth.sent),
                    found.received.difference(&truth.received),
                );
                format!("against {}: sent {sent}, received {received}", truth.name)
            })
            .next()
            .unwrap_or_else(|| "nothing like it was sent".to_owned());
        wrong.push(format!(
            "{} of pid {} (sent {}, received {}): {nearest}",
            found.id,
            found.pid,
            found.sent.len(),
            found.received.len()
        ));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.truncate(20);
    Err(wrong.join("\n"))
}

/// Both ends of the same connections wrote down the same.
pub(crate) fn same(one: &[Truth], other: &[Truth]) -> Result<(), String> {
    let key = |truth: &[Truth]| {
        let mut streams: Vec<_> = truth
            .iter()
            .map(|t| (t.sent.clone(), t.received.clone()))
            .collect();
        streams.sort();
        streams
    };
    let list = |truth: &[Truth]| -> String {
        let line = |t: &Truth| {
            format!(
                "  {} sent {} received {}\n",
                t.name,
                sum(&t.sent),
                sum(&t.received)
            )
        };
        truth.iter().map(line).collect()
    };
    if key(one) == key(other) {
        return Ok(());
    }
    Err(format!(
        "one side:\n{}other side:\n{}",
        list(one),
        list(other)
    ))
}

pub(crate) fn content(record: &Value) -> Result<Vec<u8>, String> {
    let bytes = match (record["text"].as_str(), record["base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => base64_simd::STANDARD
            .decode_to_vec(text)
            .map_err(|error| format!("{error}: {}", digest(record)))?,
        _ => {
            return Err(format!(
                "not exactly one of text and base64: {}",
                digest(record)
            ));
        }
    };
    let length = number(record, "/length")?;
    if length != bytes.len() as u64 {
        return Err(format!(
            "length is {length}, the content {}: {}",
            bytes.len(),
            digest(record)
        ));
    }
    Ok(bytes)
}

pub(crate) fn number(record: &Value, path: &str) -> Result<u64, String> {
    let value = record.pointer(path).and_then(Value::as_u64);
    value.ok_or_else(|| format!("no number {path}: {}", digest(record)))
}

pub(crate) fn string(record: &Value, path: &str) -> Result<String, String> {
    let value = record.pointer(path).and_then(Value::as_str);
    let value = value.ok_or_else(|| format!("no string {path}: {}", digest(record)))?;
    Ok(value.to_owned())
}

pub(crate) fn digest(record: &Value) -> String {
    let mut short = record.clone();
    for key in ["text", "base64"] {
        if let Some(text) = short[key].as_str().filter(|text| text.len() > 60) {
            let start: String = text.chars().take(40).collect();
            short[key] = format!("{start}… ({} characters)", text.len()).into();
        }
        if short[key].is_null() {
            short.as_object_mut().map(|object| object.remove(key));
        }
    }
    short.to_string()
}

fn sum(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} B #{:016x}", bytes.len(), hasher.finish())
}

/// `2026-01-31T12:34:56.123456789Z`
fn is_rfc3339_nanoseconds(time: &str) -> bool {
    let form = b"0000-00-00T00:00:00.000000000Z";
    time.len() == form.len()
        && time.bytes().zip(form).all(|(byte, &wanted)| match wanted {
            b'0' => byte.is_ascii_digit(),
            _ => byte == wanted,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: usize, kind: &str, more: Value) -> Value {
        let mut record = serde_json::json!({
            "v": 1, "kind": kind, "id": format!("r-{sequence}"), "host": {"name": "h"},
            "time": "2026-01-31T12:34:56.123456789Z",
        });
        for (key, value) in more.as_object().unwrap() {
            record[key] = value.clone();
        }
        record
    }

    fn data(direction: &str, offset: u64, text: &str) -> Value {
        serde_json::json!({
            "direction": direction, "offset": offset, "length": text.len(), "text": text,
            "connection": {"id": "c"}, "process": {"pid": 7},
        })
    }

    fn gap(offset: u64, length: u64) -> Value {
        serde_json::json!({
            "direction": "sent", "offset": offset, "length": length, "cause": "ring_full",
            "connection": {"id": "c"}, "process": {"pid": 7},
        })
    }

    fn stats(seen: u64, delivered: u64, ring_full: u64) -> Value {
        serde_json::json!({
            "last": true,
            "sinks": [{"name": "file", "sent": 4, "dropped": 0}],
            "ledger": {
                "bytes": {
                    "seen": seen, "filtered": 0, "over_limit": 0, "delivered": delivered, "in_flight": 0,
                    "lost": {"ring_full": ring_full, "copy_fault": 0, "map_full": 0, "over_budget": 0, "sendfile": 0, "no_buffer": 0, "withdrawn": 0, "unknown": 0},
                },
                "calls": {
                    "entries": 3, "returns": 2, "in_flight": 0, "filtered": 0,
                    "unmatched": {"abandoned": 0, "too_deep": 0, "map_full": 0, "exited": 1, "other_stack": 0},
                },
            },
        })
    }

    /// Sent "abcdefgh" in three pieces with a gap of 2, received "xyz".
    fn good() -> Vec<Value> {
        vec![
            record(0, "data", data("sent", 0, "abc")),
            record(1, "data", data("received", 0, "xyz")),
            // The order in the file is not the order of the stream.
            record(2, "data", data("sent", 5, "fgh")),
            record(3, "gap", gap(3, 2)),
            record(4, "stats", stats(11, 9, 2)),
        ]
    }

    fn truth() -> Truth {
        Truth {
            name: "t".to_owned(),
            sent: b"abcdefgh".to_vec(),
            received: b"xyz".to_vec(),
        }
    }

    fn judge(records: &[Value], truth: &[Truth]) -> Result<(), String> {
        let text: String = records.iter().map(|record| format!("{record}\n")).collect();
        let records = Records::parse(&text, true)?;
        compare(&records.connections()?, truth, &["ring_full"])?;
        records.check_ledger().map(drop)
    }

    #[test]
    fn judge_accepts_good_records() {
        judge(&good(), &[truth()]).unwrap();
    }

    #[test]
    fn judge_refuses_doctored_records() {
        let doctor = |what: &str, expected: &str, change: &dyn Fn(&mut Vec<Value>)| {
            let mut records = good();
            change(&mut records);
            let error = judge(&records, &[truth()]).expect_err(what);
            assert!(error.contains(expected), "{what}: {error}");
        };
        doctor("a byte changed", "differs at 6", &|r| {
            r[2]["text"] = "fXh".into()
        });
        doctor("a piece twice", "two pieces at 0", &|r| {
            r.insert(1, record(9, "data", data("sent", 0, "abc")))
        });
        doctor("an overlap", "overlap", &|r| r[2]["offset"] = 4.into());
        doctor("a hole", "silent hole from 3 to 5", &|r| drop(r.remove(3)));
        doctor("a short gap", "silent hole", &|r| r[3]["length"] = 1.into());
        doctor("the end is missing", "ends at 5 of 8", &|r| {
            drop(r.remove(2))
        });
        doctor("the other direction", "no connection is t", &|r| {
            r[0]["direction"] = "received".into();
            r[1]["direction"] = "sent".into();
        });
        doctor("a direction of its own", "no direction", &|r| {
            r[0]["direction"] = "out".into()
        });
        doctor("a wrong length", "length is 4", &|r| {
            r[0]["length"] = 4.into()
        });
        doctor("no content", "not exactly one", &|r| {
            r[0]["text"] = Value::Null
        });
        doctor("a gap by another cause", "gap unknown", &|r| {
            r[3]["cause"] = "unknown".into()
        });
        doctor("a connection too many", "nothing like it", &|r| {
            let mut more = data("sent", 0, "a");
            more["connection"]["id"] = "d".into();
            r.insert(0, record(9, "data", more));
        });
        doctor("two processes", "belongs to 8 and to 7", &|r| {
            r[0]["process"]["pid"] = 8.into()
        });
        doctor("an id twice", "not unique", &|r| r[0]["id"] = "r-1".into());
        doctor("no time", "RFC 3339", &|r| {
            r[0]["time"] = "2026-01-31T12:34:56Z".into()
        });
        doctor("a kind of its own", "unknown kind", &|r| {
            r[0]["kind"] = "bytes".into()
        });
        doctor("no last stats", "no stats record", &|r| {
            r[4]["last"] = false.into()
        });
        doctor("two last stats", "two last", &|r| {
            r.push(record(9, "stats", stats(11, 9, 2)))
        });
        doctor("data behind the stats", "behind the last", &|r| {
            r.swap(3, 4)
        });
        for (path, expected) in [
            ("/ledger/bytes/seen", "bytes.seen"),
            ("/ledger/bytes/in_flight", "bytes.in_flight"),
            ("/ledger/bytes/over_limit", "bytes.seen"),
            ("/ledger/bytes/lost/unknown", "bytes.lost.unknown"),
            ("/ledger/calls/entries", "calls.entries"),
            ("/ledger/calls/unmatched/abandoned", "calls.entries"),
            ("/sinks/0/dropped", "sinks.dropped"),
        ] {
            doctor(path, expected, &|r| {
                *r[4].pointer_mut(path).unwrap() = 77.into()
            });
            doctor(path, "no number", &|r| {
                *r[4].pointer_mut(path).unwrap() = Value::Null
            });
        }
        doctor("delivered that nobody got", "bytes.delivered", &|r| {
            r[4] = record(4, "stats", stats(12, 10, 2))
        });
        doctor("lost without a gap", "over_limit + lost", &|r| {
            r[4] = record(4, "stats", stats(12, 9, 3))
        });
    }

    #[test]
    fn judge_refuses_a_missing_connection() {
        let mut other = truth();
        other.sent.push(b'!');
        let error = judge(&good(), &[truth(), other]).unwrap_err();
        assert!(error.contains("no connection is t"), "{error}");
    }

    #[test]
    fn judge_refuses_a_cut_line() {
        let text = format!("{}\n{}", good()[0], good()[1]);
        assert!(Records::parse(&text, true).is_err());
        assert_eq!(Records::parse(&text, false).unwrap().0.len(), 1);
    }

    #[test]
    fn same_tells_ends_apart() {
        let mut other = truth();
        same(&[truth()], &[truth()]).unwrap();
        other.received[1] = b'-';
        same(&[truth()], &[other]).unwrap_err();
        same(&[truth()], &[]).unwrap_err();
    }
}
