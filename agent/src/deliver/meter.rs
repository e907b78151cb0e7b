//! What records add up to: for the page and for metrics by OTLP. Bounded, whatever names strangers think of.

use std::collections::BTreeMap;

use serde_json::Value;

use super::line::Line;
use crate::record::Kind;

/// Series of one histogram. What comes beyond is one series, as OpenTelemetry has it.
const SERIES_MAX: usize = 1000;
const OVERFLOW: (&str, &str) = ("otel.metric.overflow", "true");
/// Bounds in seconds, as the conventions for HTTP advise.
pub const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// The methods of HTTP; others are one.
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

/// Names and values, in order.
pub type Labels = Vec<(&'static str, String)>;

#[derive(Default)]
pub struct Meter {
    client: BTreeMap<Labels, Histogram>,
    server: BTreeMap<Labels, Histogram>,
    coverage: BTreeMap<String, u64>,
    /// The last one.
    stats: Option<Line>,
}

/// How often which time came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// One more than there are bounds.
    pub counts: [u64; BOUNDS.len() + 1],
    pub sum: f64,
}

/// Some points of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// OpenTelemetry's, with dots.
    pub name: &'static str,
    /// By UCUM.
    pub unit: &'static str,
    pub help: &'static str,
    pub points: Points,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Points {
    /// Only grow.
    Sums(Vec<(Labels, f64)>),
    Gauges(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Histogram)>),
}

impl Histogram {
    fn add(&mut self, value: f64) {
        self.counts[BOUNDS.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Meter {
    pub fn take(&mut self, line: Line) {
        match line.kind() {
            Some(Kind::Http | Kind::Grpc) => self.exchange(&line),
            Some(Kind::Coverage) => {
                let status = line.text("/status").unwrap_or("unknown");
                *self.coverage.entry(status.to_owned()).or_default() += 1;
            }
            Some(Kind::Stats) => self.stats = Some(line),
            _ => {}
        }
    }

    fn exchange(&mut self, line: &Line) {
        let table = match line.text("/connection/role") {
            Some("server") => &mut self.server,
            Some("client") => &mut self.client,
            _ => return,
        };
        let times = ["request_start", "end"].map(|name| line.time(&format!("/timings/{name}")));
        // What is not over has no duration yet.
        let [Some(start), Some(end)] = times else {
            return;
        };
        let seconds = end.saturating_sub(start) as f64 / 1e9;
        let labels = labels(line);
        if let Some(known) = table.get_mut(&labels) {
            return known.add(seconds);
        }
        let labels = match table.len() < SERIES_MAX {
            true => labels,
            false => vec![(OVERFLOW.0, OVERFLOW.1.to_owned())],
        };
        table.entry(labels).or_default().add(seconds);
    }

    /// Everything, by names of OpenTelemetry where there are such.
    pub fn families(&self) -> Vec<Family> {
        let histograms = |table: &BTreeMap<Labels, Histogram>| {
            let series = table.iter();
            Points::Histograms(
                series
                    .map(|(labels, one)| (labels.clone(), one.clone()))
                    .collect(),
            )
        };
        let coverage = self.coverage.iter();
        let coverage =
            coverage.map(|(status, count)| (vec![("status", status.clone())], *count as f64));
        let mut families = vec![
            Family {
                name: "http.client.request.duration",
                unit: "s",
                help: "Duration of HTTP requests that processes here made.",
                points: histograms(&self.client),
            },
            Family {
                name: "http.server.request.duration",
                unit: "s",
                help: "Duration of HTTP requests that processes here answered.",
                points: histograms(&self.server),
            },
            Family {
                name: "vortex.coverage",
                unit: "{record}",
                help: "Records of coverage: processes with TLS, seen or not.",
                points: Points::Sums(coverage.collect()),
            },
        ];
        if let Some(stats) = &self.stats {
            families.extend(of_stats(stats));
        }
        families.retain(|family| !family.points.is_empty());
        families
    }
}

impl Points {
    fn is_empty(&self) -> bool {
        match self {
            Points::Sums(points) | Points::Gauges(points) => points.is_empty(),
            Points::Histograms(points) => points.is_empty(),
        }
    }
}

/// What the conventions for HTTP ask for, without what has too many values.
fn labels(line: &Line) -> Labels {
    let method = line.text("/http/request/method").unwrap_or("_OTHER");
    let method = if METHODS.contains(&method) {
        method
    } else {
        "_OTHER"
    };
    let number = |pointer| line.number(pointer).map(|number| number.to_string());
    let text = |pointer| line.text(pointer).map(str::to_owned);
    let members = [
        ("error.type", text("/error/type")),
        ("http.request.method", Some(method.to_owned())),
        (
            "http.response.status_code",
            number("/http/response/status_code"),
        ),
        (
            "network.protocol.version",
            text("/network/protocol/version"),
        ),
        ("server.address", text("/server/address")),
        ("server.port", number("/server/port")),
        ("url.scheme", text("/url/scheme")),
    ];
    let known = members.into_iter();
    known
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// What became of the records of one sink.
pub struct Sink {
    pub name: String,
    pub sent: u64,
    /// By cause.
    pub dropped: Vec<(&'static str, u64)>,
}

pub fn of_sinks(sinks: &[Sink]) -> Vec<Family> {
    let of = |sink: &Sink| ("sink", sink.name.clone());
    let sent = |sink: &Sink| (vec![of(sink)], sink.sent as f64);
    let dropped = |sink: &Sink| {
        let label = of(sink);
        let causes = sink.dropped.clone().into_iter();
        causes.map(move |(cause, count)| {
            (
                vec![("cause", cause.to_owned()), label.clone()],
                count as f64,
            )
        })
    };
    vec![
        Family {
            name: "vortex.sink.sent",
            unit: "{record}",
            help: "Records that a sink has taken.",
            points: Points::Sums(sinks.iter().map(sent).collect()),
        },
        Family {
            name: "vortex.sink.dropped",
            unit: "{record}",
            help: "Records that a sink did not get, by cause.",
            points: Points::Sums(sinks.iter().flat_map(dropped).collect()),
        },
    ]
}

fn of_stats(stats: &Line) -> Vec<Family> {
    let sum = |name, unit, help, pointer: &str| {
        let value = stats.at(pointer).and_then(Value::as_f64);
        let points = value
            .map(|value| (Labels::new(), value))
            .into_iter()
            .collect();
        Family {
            name,
            unit,
            help,
            points: Points::Sums(points),
        }
    };
    let gauge = |name, unit, help, pointer: &str| {
        let Family { points, .. } = sum(name, unit, help, pointer);
        let points = match points {
            Points::Sums(points) => Points::Gauges(points),
            other => other,
        };
        Family {
            name,
            unit,
            help,
            points,
        }
    };
    let causes = |name, unit, help, pointer: &str| {
        let causes = stats.at(pointer).and_then(Value::as_object);
        let point = |(cause, count): (&String, &Value)| {
            Some((vec![("cause", cause.clone())], count.as_f64()?))
        };
        Family {
            name,
            unit,
            help,
            points: Points::Sums(causes.into_iter().flatten().filter_map(point).collect()),
        }
    };
    vec![
        sum(
            "vortex.ledger.seen",
            "By",
            "Plaintext that calls moved.",
            "/ledger/bytes/seen",
        ),
        sum(
            "vortex.ledger.delivered",
            "By",
            "Plaintext that reached the decoders.",
            "/ledger/bytes/delivered",
        ),
        sum(
            "vortex.ledger.filtered",
            "By",
            "Plaintext that a filter turned away after the copy.",
            "/ledger/bytes/filtered",
        ),
        sum(
            "vortex.ledger.over_limit",
            "By",
            "Plaintext beyond what one call may have, and of connections that the agent's limits left out.",
            "/ledger/bytes/over_limit",
        ),
        causes(
            "vortex.ledger.lost",
            "By",
            "Plaintext that is missing, by cause.",
            "/ledger/bytes/lost",
        ),
        gauge(
            "vortex.ledger.in_flight",
            "By",
            "Plaintext on its way.",
            "/ledger/bytes/in_flight",
        ),
        sum(
            "vortex.calls.entries",
            "{call}",
            "Calls that began.",
            "/ledger/calls/entries",
        ),
        sum(
            "vortex.calls.returns",
            "{call}",
            "Calls that ended.",
            "/ledger/calls/returns",
        ),
        sum(
            "vortex.calls.filtered",
            "{call}",
            "Calls that a filter turned away.",
            "/ledger/calls/filtered",
        ),
        causes(
            "vortex.calls.unmatched",
            "{call}",
            "Calls whose end was not seen, by cause.",
            "/ledger/calls/unmatched",
        ),
        gauge(
            "vortex.shedding.level",
            "1",
            "What the agent's limits leave out: 0 nothing, 1 bodies, 2 data, too, 3 connections, too.",
            "/shedding/level",
        ),
        gauge(
            "vortex.shedding.share",
            "1",
            "Share of the new connections that is decoded.",
            "/shedding/share",
        ),
        sum(
            "vortex.shedding.bodies",
            "{body}",
            "Bodies, events and messages that the agent's limits cut.",
            "/shedding/bodies",
        ),
        sum(
            "vortex.shedding.data",
            "{piece}",
            "Pieces of streams that the agent's limits left out of data.",
            "/shedding/data",
        ),
        sum(
            "vortex.shedding.connections",
            "{connection}",
            "Connections that the agent's limits left out.",
            "/shedding/connections",
        ),
        gauge(
            "vortex.governor.cost",
            "{cpu}",
            "CPUs that the probes cost the programs that are traced.",
            "/governor/cost",
        ),
        gauge(
            "vortex.governor.paused",
            "{file}",
            "Files whose probes are out because they cost too much.",
            "/governor/paused",
        ),
        sum(
            "vortex.governor.pauses",
            "{pause}",
            "How often the probes of a file were taken out because they cost too much.",
            "/governor/pauses",
        ),
        sum(
            "vortex.governor.paused_time",
            "s",
            "How long that was, of all files together.",
            "/governor/paused_seconds",
        ),
        sum(
            "process.cpu.time",
            "s",
            "CPU time of the agent's processes.",
            "/agent/cpu_seconds",
        ),
        gauge(
            "process.memory.usage",
            "By",
            "Resident memory of the agent's processes.",
            "/agent/memory_bytes",
        ),
    ]
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn exchange(role: &str, server: &str, method: &str, end: &str) -> Line {
        let text = format!(
            r#"{{"kind":"http","connection":{{"role":"{role}"}},"server":{{"address":"{server}","port":443}},
                "http":{{"request":{{"method":"{method}"}},"response":{{"status_code":200}}}},
                "timings":{{"request_start":"1970-01-01T00:00:01.000000000Z","end":"1970-01-01T00:00:{end}Z"}}}}"#
        );
        Line::read(text.as_bytes()).unwrap()
    }

    pub fn stats() -> Line {
        let text = r#"{"kind":"stats","ledger":{"bytes":{"seen":10,"delivered":7,"filtered":0,"over_limit":0,
            "lost":{"ring_full":3,"unknown":0},"in_flight":0},"calls":{"entries":4,"returns":4,"filtered":1,
            "in_flight":0,"unmatched":{"exited":0}}},"agent":{"cpu_seconds":0.25,"memory_bytes":4096},
            "shedding":{"level":3,"name":"connections","share":0.25,"bodies":5,"data":6,"connections":7},
            "governor":{"limit":0.05,"cost":0.5,"paused":8,"pauses":9,"paused_seconds":10.5}}"#;
        Line::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_time_is_in_the_bucket_that_ends_with_it() {
        let mut meter = Meter::default();
        // 5 ms, just above, and 100 s.
        for end in ["01.005000000", "01.005000001", "59.000000000"] {
            meter.take(exchange("client", "a", "GET", end));
        }
        let one = meter.client.values().next().unwrap();
        assert_eq!((one.counts[0], one.counts[1], one.counts[14]), (1, 1, 1));
        assert_eq!(one.count(), 3);
        assert!((one.sum - 58.010_000_001).abs() < 1e-9);
    }

    #[test]
    fn series_are_bounded_and_what_is_beyond_is_counted() {
        let mut meter = Meter::default();
        for number in 0..SERIES_MAX + 50 {
            meter.take(exchange(
                "server",
                &format!("host{number}"),
                "GET",
                "02.000000000",
            ));
        }
        meter.take(exchange("server", "host0", "GET", "02.000000000"));
        meter.take(exchange("server", "host1", "BREW", "02.000000000"));
        assert_eq!(meter.server.len(), SERIES_MAX + 1);
        let overflow = vec![(OVERFLOW.0, OVERFLOW.1.to_owned())];
        assert_eq!(meter.server[&overflow].count(), 51);
        let all: u64 = meter.server.values().map(Histogram::count).sum();
        assert_eq!(all, SERIES_MAX as u64 + 52);
    }

    #[test]
    fn methods_of_strangers_are_one() {
        let mut meter = Meter::default();
        for method in ["BREW", "WHEN", "GET"] {
            meter.take(exchange("client", "a", method, "02.000000000"));
        }
        assert_eq!(meter.client.len(), 2);
    }

    #[test]
    fn the_ledger_is_told_by_cause() {
        let mut meter = Meter::default();
        meter.take(stats());
        let families = meter.families();
        let find = |name: &str| families.iter().find(|one| one.name == name).unwrap();
        let cause = |name: &str| vec![("cause", name.to_owned())];
        assert_eq!(
            find("vortex.ledger.lost").points,
            Points::Sums(vec![(cause("ring_full"), 3.0), (cause("unknown"), 0.0)])
        );
        assert_eq!(
            find("process.cpu.time").points,
            Points::Sums(vec![(vec![], 0.25)])
        );
        let shedding =
            ["level", "share", "bodies", "data", "connections"].map(|name| {
                match &find(&format!("vortex.shedding.{name}")).points {
                    Points::Sums(points) | Points::Gauges(points) => points[0].1,
                    other => panic!("{name}: {other:?}"),
                }
            });
        assert_eq!(shedding, [3.0, 0.25, 5.0, 6.0, 7.0]);
        let governor = ["cost", "paused", "pauses", "paused_time"].map(|name| {
            match &find(&format!("vortex.governor.{name}")).points {
                Points::Sums(points) | Points::Gauges(points) => points[0].1,
                other => panic!("{name}: {other:?}"),
            }
        });
        assert_eq!(governor, [0.5, 8.0, 9.0, 10.5]);
        assert!(
            families
                .iter()
                .all(|one| one.name != "http.client.request.duration")
        );
    }
}
