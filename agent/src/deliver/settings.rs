//! The two sinks with a network behind them, as somebody wrote them and as they are meant.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Interval, Size},
    record::Kind,
};

/// A `[[sink]]` with `type = "otlp"`, but for its name and its kinds, which every sink may have.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenOtlp {
    /// `http://HOST:PORT` or `https://HOST:PORT`; with `protocol = "http"` a path before `/v1/logs` may follow.
    pub endpoint: String,
    pub protocol: Option<Protocol>,
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    pub ca_file: Option<PathBuf>,
    /// For one request.
    pub timeout: Option<Interval>,
    pub compression: Option<Compression>,
    pub signals: Option<Vec<Signal>>,
    pub batch_records: Option<usize>,
    pub batch_bytes: Option<Size>,
    pub batch_age: Option<Interval>,
    pub queue_records: Option<usize>,
    pub queue_bytes: Option<Size>,
    /// How long a batch is tried again before it is dropped.
    pub retry_for: Option<Interval>,
    /// Between two exports of metrics.
    pub metrics_interval: Option<Interval>,
}

/// A `[[sink]]` with `type = "prometheus"`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenPrometheus {
    pub listen: Option<SocketAddr>,
}

/// Everything that deliver is told at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub origin: Option<crate::sink::Origin>,
    pub otlp: Vec<Otlp>,
    pub prometheus: Vec<Prometheus>,
}

/// One collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Otlp {
    pub name: String,
    pub kinds: Kinds,
    /// `data` of connections that nothing decodes, too.
    pub undecoded: bool,
    pub endpoint: Endpoint,
    pub protocol: Protocol,
    pub headers: BTreeMap<String, Secret>,
    pub ca_file: Option<PathBuf>,
    pub timeout: Duration,
    pub compression: Compression,
    pub signals: Vec<Signal>,
    pub batch: Batch,
    pub queue: Queue,
    pub retry_for: Duration,
    pub metrics_interval: Duration,
}

/// When a batch is sent: the first of these that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub records: usize,
    /// Of JSON; as protobuf it is about as long. Collectors take 4 MiB at once.
    pub bytes: usize,
    pub age: Duration,
}

/// What waits at most. Beyond that the oldest is dropped: after an outage it matters what happens now, and the count
/// says what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    pub records: usize,
    pub bytes: usize,
}

/// One page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prometheus {
    pub name: String,
    pub listen: SocketAddr,
}

/// Where a collector is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub has_tls: bool,
    /// A name or an address; IPv6 without its brackets.
    pub host: String,
    pub port: u16,
    /// Without a slash at its end.
    pub path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Grpc,
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    Gzip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    Logs,
    Traces,
    Metrics,
}

impl Signal {
    pub const fn name(self) -> &'static str {
        match self {
            Signal::Logs => "logs",
            Signal::Traces => "traces",
            Signal::Metrics => "metrics",
        }
    }
}

/// The value of a header: it may be a key, so it is printed nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[withheld]")
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds(u16);

impl Kinds {
    pub fn of<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Kinds {
        Kinds(kinds.into_iter().map(|kind| 1 << *kind as u16).sum())
    }

    pub const fn holds(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u16 != 0
    }

    pub const fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 & other.0)
    }
}

/// What has a line of its own in `stats`: a page, or one signal of a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    pub name: String,
    pub kinds: Kinds,
    pub undecoded: bool,
}

/// What becomes a span.
const SPANS: [Kind; 4] = [Kind::Http, Kind::Grpc, Kind::Llm, Kind::Mcp];
/// What is counted.
pub const METERED: [Kind; 5] = [
    Kind::Http,
    Kind::Grpc,
    Kind::Llm,
    Kind::Coverage,
    Kind::Stats,
];

impl Settings {
    /// The lanes: of each collector its logs and its spans, then the pages. Metrics have none: they are no records,
    /// and the next export says what a lost one would have said.
    pub fn lanes(&self) -> Vec<Lane> {
        let of = |otlp: &Otlp| {
            let records = otlp.signals.iter().filter(|one| **one != Signal::Metrics);
            let lane = |signal: &Signal| Lane {
                name: format!("{}.{}", otlp.name, signal.name()),
                kinds: match signal {
                    Signal::Traces => otlp.kinds.and(Kinds::of(&SPANS)),
                    _ => otlp.kinds,
                },
                undecoded: otlp.undecoded && *signal == Signal::Logs,
            };
            records.map(lane).collect::<Vec<_>>()
        };
        let pages = self.prometheus.iter().map(|page| Lane {
            name: page.name.clone(),
            kinds: Kinds::of(&METERED),
            undecoded: false,
        });
        self.otlp.iter().flat_map(of).chain(pages).collect()
    }

    /// What the meter reads.
    pub fn metered(&self) -> Kinds {
        let exports = |otlp: &Otlp| otlp.signals.contains(&Signal::Metrics);
        if self.otlp.iter().any(exports) || !self.prometheus.is_empty() {
            Kinds::of(&METERED)
        } else {
            Kinds::default()
        }
    }
}

/// What is wrong with a sink's settings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "endpoint: write http://HOST:PORT or https://HOST:PORT; credentials belong into `headers`"
    )]
    Endpoint,
    #[error("endpoint: gRPC has no path; write HOST:PORT, or take protocol = \"http\"")]
    Path,
    #[error("headers: {0:?} is no name of a header, or its value is no text of one line")]
    Header(String),
    #[error("headers: {0:?} is set by the protocol")]
    Reserved(String),
    #[error("{0}: zero would send nothing")]
    Zero(&'static str),
    #[error("signals: name each once, and one at least")]
    Signals,
}

const TIMEOUT: Duration = Duration::from_secs(10);
const BATCH: Batch = Batch {
    records: 2048,
    bytes: 2 << 20,
    age: Duration::from_secs(1),
};
const QUEUE: Queue = Queue {
    records: 65_536,
    bytes: 64 << 20,
};
const RETRY_FOR: Duration = Duration::from_secs(300);
const METRICS_INTERVAL: Duration = Duration::from_secs(60);
const LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);

impl TryFrom<WrittenOtlp> for Otlp {
    type Error = SettingsError;

    fn try_from(written: WrittenOtlp) -> Result<Self, SettingsError> {
        let protocol = written.protocol.unwrap_or(Protocol::Grpc);
        let endpoint = Endpoint::parse(&written.endpoint).ok_or(SettingsError::Endpoint)?;
        if protocol == Protocol::Grpc && !endpoint.path.is_empty() {
            return Err(SettingsError::Path);
        }
        written
            .headers
            .iter()
            .try_for_each(|(name, value)| check_header(name, value))?;
        let signals = written
            .signals
            .unwrap_or_else(|| vec![Signal::Logs, Signal::Traces, Signal::Metrics]);
        let is_twice = |(at, one)| signals[..at].contains(one);
        if signals.is_empty() || signals.iter().enumerate().any(is_twice) {
            return Err(SettingsError::Signals);
        }
        let count = |name, written: Option<usize>, default| match written {
            Some(0) => Err(SettingsError::Zero(name)),
            other => Ok(other.unwrap_or(default)),
        };
        let size = |name, written: Option<Size>, default| {
            count(name, written.map(Size::in_memory), default)
        };
        let time = |written: Option<Interval>, default| written.map_or(default, |time| time.0);
        Ok(Otlp {
            name: "otlp".to_owned(),
            kinds: Kinds::default(),
            undecoded: false,
            endpoint,
            protocol,
            headers: written.headers,
            ca_file: written.ca_file,
            timeout: time(written.timeout, TIMEOUT),
            compression: written.compression.unwrap_or(Compression::None),
            signals,
            batch: Batch {
                records: count("batch-records", written.batch_records, BATCH.records)?,
                bytes: size("batch-bytes", written.batch_bytes, BATCH.bytes)?,
                age: time(written.batch_age, BATCH.age),
            },
            queue: Queue {
                records: count("queue-records", written.queue_records, QUEUE.records)?,
                bytes: size("queue-bytes", written.queue_bytes, QUEUE.bytes)?,
            },
            retry_for: time(written.retry_for, RETRY_FOR),
            metrics_interval: time(written.metrics_interval, METRICS_INTERVAL),
        })
    }
}

impl From<WrittenPrometheus> for Prometheus {
    fn from(written: WrittenPrometheus) -> Self {
        Prometheus {
            name: "prometheus".to_owned(),
            listen: written.listen.unwrap_or(LISTEN),
        }
    }
}

/// The error names the header and never its value.
fn check_header(name: &str, value: &Secret) -> Result<(), SettingsError> {
    const RESERVED: [&str; 5] = [
        "content-type",
        "content-length",
        "content-encoding",
        "host",
        "te",
    ];
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_text = |byte: u8| matches!(byte, b'\t' | b' '..=b'~');
    if name.is_empty() || !name.bytes().all(is_token) || !value.0.bytes().all(is_text) {
        return Err(SettingsError::Header(name.to_owned()));
    }
    if RESERVED.contains(&&*name.to_ascii_lowercase()) {
        return Err(SettingsError::Reserved(name.to_owned()));
    }
    Ok(())
}

impl Endpoint {
    /// `None` if it is not what it must be; what was written may hold a password and is not repeated.
    fn parse(text: &str) -> Option<Endpoint> {
        let (scheme, rest) = text.split_once("://")?;
        let has_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once("]:")?,
            None => authority.rsplit_once(':')?,
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        let is_path = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) || !path.bytes().all(is_path) {
            return None;
        }
        if host.contains(':') && !authority.starts_with('[') {
            return None;
        }
        Some(Endpoint {
            has_tls,
            host: host.to_owned(),
            port: port.parse().ok().filter(|port| *port != 0)?,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    pub fn authority(&self) -> String {
        let Endpoint { host, port, .. } = self;
        match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn otlp(text: &str) -> Result<Otlp, String> {
        let written: WrittenOtlp = toml::from_str(text).map_err(|error| error.to_string())?;
        Otlp::try_from(written).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_has_a_default_but_the_endpoint() {
        assert!(otlp("").unwrap_err().contains("endpoint"));
        let otlp = otlp("endpoint = \"https://[::1]:4317\"").unwrap();
        assert_eq!(otlp.endpoint.authority(), "[::1]:4317");
        assert!(otlp.endpoint.has_tls);
        assert_eq!(otlp.name, "otlp");
        assert_eq!((otlp.batch, otlp.queue), (BATCH, QUEUE));
        let page = Prometheus::from(toml::from_str::<WrittenPrometheus>("").unwrap());
        assert!(page.listen.ip().is_loopback());
    }

    #[test]
    fn what_is_written_arrives() {
        let otlp = otlp(
            "endpoint = \"http://collector:4318/in/\"\n\
             protocol = \"http\"\ntimeout = \"3s\"\ncompression = \"gzip\"\nsignals = [\"logs\"]\n\
             batch-records = 7\nbatch-bytes = \"1KiB\"\nbatch-age = \"10ms\"\nqueue-records = 8\n\
             queue-bytes = 9\nretry-for = \"1m\"\n[headers]\nAuthorization = \"Bearer hunter2\"",
        )
        .unwrap();
        assert_eq!(otlp.endpoint.path, "/in");
        assert_eq!(otlp.timeout, Duration::from_secs(3));
        assert_eq!((otlp.batch.records, otlp.batch.bytes), (7, 1024));
        assert_eq!((otlp.queue.records, otlp.queue.bytes), (8, 9));
        assert!(!format!("{otlp:?}").contains("hunter2"));
        // As it crosses the socket.
        let told = serde_json::to_string(&otlp).unwrap();
        assert_eq!(serde_json::from_str::<Otlp>(&told).unwrap(), otlp);
    }

    #[test]
    fn mistakes_are_told_without_secrets() {
        for (text, word) in [
            ("endpoint = \"collector:4317\"", "http://HOST:PORT"),
            ("endpoint = \"http://collector\"", "http://HOST:PORT"),
            ("endpoint = \"http://me:hunter2@collector:1\"", "HOST:PORT"),
            ("endpoint = \"http://::1:4317\"", "HOST:PORT"),
            ("endpoint = \"http://a:0\"", "HOST:PORT"),
            ("endpoint = \"http://a:1/x\"", "no path"),
            ("endpoint = \"http://a:1\"\nsignals = []", "signals"),
            (
                "endpoint = \"http://a:1\"\nbatch-records = 0",
                "batch-records",
            ),
            ("endpoint = \"http://a:1\"\nnonsense = 1", "nonsense"),
            (
                "endpoint = \"http://a:1\"\nheaders = { \"x y\" = \"hunter2\" }",
                "x y",
            ),
            (
                "endpoint = \"http://a:1\"\nheaders = { x = \"hunter2\\n\" }",
                "\"x\"",
            ),
            (
                "endpoint = \"http://a:1\"\nheaders = { Host = \"hunter2\" }",
                "Host",
            ),
        ] {
            let error = otlp(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
            assert!(
                error.starts_with("TOML") || !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn lanes_are_what_is_counted() {
        let otlp = Otlp {
            kinds: Kinds::of(&[Kind::Http, Kind::Stats]),
            undecoded: true,
            ..otlp("endpoint = \"http://a:1\"").unwrap()
        };
        let page = Prometheus::from(toml::from_str::<WrittenPrometheus>("").unwrap());
        let settings = Settings {
            origin: None,
            otlp: vec![otlp],
            prometheus: vec![page],
        };
        let lanes = settings.lanes();
        let names: Vec<_> = lanes.iter().map(|lane| &*lane.name).collect();
        assert_eq!(names, ["otlp.logs", "otlp.traces", "prometheus"]);
        assert!(lanes[0].kinds.holds(Kind::Stats) && !lanes[0].kinds.holds(Kind::Grpc));
        assert!(lanes[1].kinds.holds(Kind::Http) && !lanes[1].kinds.holds(Kind::Stats));
        let undecoded = lanes.iter().map(|lane| lane.undecoded);
        assert!(undecoded.eq([true, false, false]));
        assert!(lanes[2].kinds.holds(Kind::Coverage) && !lanes[2].kinds.holds(Kind::Data));
    }
}
