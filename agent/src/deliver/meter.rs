//! What records add up to: for the page and for metrics by OTLP. Bounded, whatever names strangers think of.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

use super::line::Line;
use crate::record::Kind;

/// Series of one histogram. What comes beyond is one series, as OpenTelemetry has it.
const SERIES_MAX: usize = 1000;
const OVERFLOW: (&str, &str) = ("otel.metric.overflow", "true");
/// Bounds in seconds, as the conventions for HTTP advise.
const OF_EXCHANGES: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// And as those for generative AI do (v1.41): of calls and of tokens.
const OF_CALLS: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
const OF_TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// The methods of HTTP; others are one.
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

/// Names and values, in order.
pub type Labels = Vec<(&'static str, String)>;

pub struct Meter {
    tables: [Table; 7],
    /// What calls to models cost, by currency.
    costs: BTreeMap<String, BTreeMap<Labels, f64>>,
    coverage: BTreeMap<String, u64>,
    /// The last one.
    stats: Option<Line>,
}

/// The histograms of one name.
struct Table {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    bounds: &'static [f64],
    series: BTreeMap<Labels, Histogram>,
}

/// Places in [`Meter::tables`].
const CLIENT: usize = 0;
const SERVER: usize = 1;
const TOKENS: usize = 2;
const CALL: usize = 3;
const FIRST_CHUNK: usize = 4;
const CHUNK: usize = 5;
const SERVED: usize = 6;

/// How often which value came.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    pub bounds: &'static [f64],
    /// One more than there are bounds.
    pub counts: Vec<u64>,
    pub sum: f64,
}

/// Some points of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// OpenTelemetry's, with dots.
    pub name: &'static str,
    /// By UCUM.
    pub unit: Cow<'static, str>,
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
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    /// A value that came so often.
    fn add(&mut self, value: f64, times: u64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += times;
        self.sum += value * times as f64;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Table {
    const fn new(
        name: &'static str,
        unit: &'static str,
        bounds: &'static [f64],
        help: &'static str,
    ) -> Table {
        Table {
            name,
            unit,
            help,
            bounds,
            series: BTreeMap::new(),
        }
    }

    fn add(&mut self, labels: Labels, value: f64, times: u64) {
        if let Some(known) = self.series.get_mut(&labels) {
            return known.add(value, times);
        }
        let labels = match self.series.len() < SERIES_MAX {
            true => labels,
            false => vec![(OVERFLOW.0, OVERFLOW.1.to_owned())],
        };
        let new = || Histogram::new(self.bounds);
        self.series
            .entry(labels)
            .or_insert_with(new)
            .add(value, times);
    }

    fn family(&self) -> Family {
        let series = self.series.iter();
        let points = series.map(|(labels, one)| (labels.clone(), one.clone()));
        Family {
            name: self.name,
            unit: self.unit.into(),
            help: self.help,
            points: Points::Histograms(points.collect()),
        }
    }
}

impl Default for Meter {
    fn default() -> Meter {
        Meter {
            tables: [
                Table::new(
                    "http.client.request.duration",
                    "s",
                    OF_EXCHANGES,
                    "Duration of HTTP requests that processes here made.",
                ),
                Table::new(
                    "http.server.request.duration",
                    "s",
                    OF_EXCHANGES,
                    "Duration of HTTP requests that processes here answered.",
                ),
                Table::new(
                    "gen_ai.client.token.usage",
                    "{token}",
                    OF_TOKENS,
                    "Tokens of calls to models that processes here made.",
                ),
                Table::new(
                    "gen_ai.client.operation.duration",
                    "s",
                    OF_CALLS,
                    "Duration of calls to models that processes here made.",
                ),
                Table::new(
                    "gen_ai.client.operation.time_to_first_chunk",
                    "s",
                    OF_CALLS,
                    "Time to the first piece of a streamed answer.",
                ),
                Table::new(
                    "gen_ai.client.operation.time_per_output_chunk",
                    "s",
                    OF_CALLS,
                    "Time between two pieces of a streamed answer, its mean for each of a call.",
                ),
                Table::new(
                    "gen_ai.server.request.duration",
                    "s",
                    OF_CALLS,
                    "Duration of calls to models that processes here answered.",
                ),
            ],
            costs: BTreeMap::new(),
            coverage: BTreeMap::new(),
            stats: None,
        }
    }
}

impl Meter {
    pub fn take(&mut self, line: Line) {
        match line.kind() {
            Some(Kind::Http | Kind::Grpc) => self.exchange(&line),
            Some(Kind::Llm) => self.call(&line),
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
            Some("server") => SERVER,
            Some("client") => CLIENT,
            _ => return,
        };
        let times = ["request_start", "end"].map(|name| line.time(&format!("/timings/{name}")));
        // What is not over has no duration yet.
        let [Some(start), Some(end)] = times else {
            return;
        };
        let seconds = end.saturating_sub(start) as f64 / 1e9;
        self.tables[table].add(of_exchange(line), seconds, 1);
    }

    /// A call to a model.
    fn call(&mut self, line: &Line) {
        let labels = of_call(line);
        let seconds = |pointer| line.at(pointer).and_then(Value::as_f64);
        let duration = seconds("/timings/duration");
        match line.text("/connection/role") {
            Some("server") => {
                if let Some(duration) = duration {
                    self.tables[SERVED].add(labels, duration, 1);
                }
                return;
            }
            Some("client") => {}
            _ => return,
        }
        self.pay(line);
        for (kind, pointer) in [
            ("input", "/gen_ai/usage/input_tokens"),
            ("output", "/gen_ai/usage/output_tokens"),
        ] {
            if let Some(count) = line.number(pointer) {
                let mut labels = labels.clone();
                let at = labels.partition_point(|(name, _)| *name < TOKEN_TYPE);
                labels.insert(at, (TOKEN_TYPE, kind.to_owned()));
                self.tables[TOKENS].add(labels, count as f64, 1);
            }
        }
        let chunks = line.number("/timings/chunks").unwrap_or(0);
        for (table, value, times) in [
            (CALL, duration, 1),
            (
                FIRST_CHUNK,
                seconds("/gen_ai/response/time_to_first_chunk"),
                1,
            ),
            (
                CHUNK,
                seconds("/timings/time_per_output_chunk"),
                chunks.saturating_sub(1),
            ),
        ] {
            if let Some(value) = value {
                self.tables[table].add(labels.clone(), value, times);
            }
        }
    }

    /// What a call cost, if that is known.
    fn pay(&mut self, line: &Line) {
        let amount = line.at("/cost/amount").and_then(Value::as_f64);
        let (Some(amount), Some(currency)) = (amount, line.text("/cost/currency")) else {
            return;
        };
        let known: usize = self.costs.values().map(BTreeMap::len).sum();
        let series = self.costs.entry(currency.to_owned()).or_default();
        let labels = of_cost(line, currency);
        let labels = match series.contains_key(&labels) || known < SERIES_MAX {
            true => labels,
            false => vec![
                ("currency", currency.to_owned()),
                (OVERFLOW.0, OVERFLOW.1.to_owned()),
            ],
        };
        *series.entry(labels).or_default() += amount;
    }

    /// Everything, by names of OpenTelemetry where there are such.
    pub fn families(&self) -> Vec<Family> {
        let coverage = self.coverage.iter();
        let coverage =
            coverage.map(|(status, count)| (vec![("status", status.clone())], *count as f64));
        let mut families: Vec<_> = self.tables.iter().map(Table::family).collect();
        families.push(Family {
            name: "vortex.coverage",
            unit: "{record}".into(),
            help: "Records of coverage: processes with TLS, seen or not.",
            points: Points::Sums(coverage.collect()),
        });
        families.extend(self.costs.iter().map(|(currency, series)| Family {
            name: "vortex.llm.cost",
            unit: format!("{{{currency}}}").into(),
            help: "What calls to models cost that processes here made, where it is known.",
            points: Points::Sums(series.clone().into_iter().collect()),
        }));
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

const TOKEN_TYPE: &str = "gen_ai.token.type";

/// What the conventions for HTTP ask for, without what has too many values.
fn of_exchange(line: &Line) -> Labels {
    let method = line.text("/http/request/method").unwrap_or("_OTHER");
    let method = if METHODS.contains(&method) {
        method
    } else {
        "_OTHER"
    };
    labels([
        ("error.type", text(line, "/error/type")),
        ("http.request.method", Some(method.to_owned())),
        (
            "http.response.status_code",
            number(line, "/http/response/status_code"),
        ),
        (
            "network.protocol.version",
            text(line, "/network/protocol/version"),
        ),
        ("server.address", text(line, "/server/address")),
        ("server.port", number(line, "/server/port")),
        ("url.scheme", text(line, "/url/scheme")),
    ])
}

/// What those for generative AI ask for.
fn of_call(line: &Line) -> Labels {
    labels([
        ("error.type", text(line, "/error/type")),
        (
            "gen_ai.operation.name",
            text(line, "/gen_ai/operation/name"),
        ),
        ("gen_ai.provider.name", text(line, "/gen_ai/provider/name")),
        ("gen_ai.request.model", text(line, "/gen_ai/request/model")),
        (
            "gen_ai.response.model",
            text(line, "/gen_ai/response/model"),
        ),
        ("server.address", text(line, "/server/address")),
        ("server.port", number(line, "/server/port")),
    ])
}

/// Of few values: whom it is paid, and for what. The page has no units, so the currency is one of them.
fn of_cost(line: &Line, currency: &str) -> Labels {
    labels([
        ("currency", Some(currency.to_owned())),
        ("gen_ai.provider.name", text(line, "/gen_ai/provider/name")),
        ("gen_ai.request.model", text(line, "/gen_ai/request/model")),
        (
            "gen_ai.response.model",
            text(line, "/gen_ai/response/model"),
        ),
    ])
}

fn text(line: &Line, pointer: &str) -> Option<String> {
    line.text(pointer).map(str::to_owned)
}

fn number(line: &Line, pointer: &str) -> Option<String> {
    line.number(pointer).map(|number| number.to_string())
}

fn labels<const N: usize>(members: [(&'static str, Option<String>); N]) -> Labels {
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
            unit: "{record}".into(),
            help: "Records that a sink has taken.",
            points: Points::Sums(sinks.iter().map(sent).collect()),
        },
        Family {
            name: "vortex.sink.dropped",
            unit: "{record}".into(),
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
            unit: Cow::Borrowed(unit),
            help,
            points: Points::Sums(points),
        }
    };
    let gauge = |name, unit, help, pointer: &str| {
        let Family { points, unit, .. } = sum(name, unit, help, pointer);
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
            unit: Cow::Borrowed(unit),
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
            "vortex.shedding.data_size",
            "By",
            "Bytes of these pieces.",
            "/shedding/data_bytes",
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
            "shedding":{"level":3,"name":"connections","share":0.25,"bodies":5,"data":6,"data_bytes":60,"connections":7},
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
        let one = meter.tables[CLIENT].series.values().next().unwrap();
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
        assert_eq!(meter.tables[SERVER].series.len(), SERIES_MAX + 1);
        let overflow = vec![(OVERFLOW.0, OVERFLOW.1.to_owned())];
        assert_eq!(meter.tables[SERVER].series[&overflow].count(), 51);
        let all: u64 = meter.tables[SERVER]
            .series
            .values()
            .map(Histogram::count)
            .sum();
        assert_eq!(all, SERIES_MAX as u64 + 52);
    }

    #[test]
    fn methods_of_strangers_are_one() {
        let mut meter = Meter::default();
        for method in ["BREW", "WHEN", "GET"] {
            meter.take(exchange("client", "a", method, "02.000000000"));
        }
        assert_eq!(meter.tables[CLIENT].series.len(), 2);
    }

    /// As the pipeline writes one, of a stream of five pieces.
    pub fn call(role: &str, more: &str) -> Line {
        let text = format!(
            r#"{{"kind":"llm","connection":{{"role":"{role}"}},"server":{{"address":"api","port":443}},
                "gen_ai":{{"operation":{{"name":"chat"}},"provider":{{"name":"openai"}},"request":{{"model":"gpt"}},
                "response":{{"model":"gpt-1","time_to_first_chunk":0.5}},
                "usage":{{"input_tokens":20,"output_tokens":300,"cache_read":{{"input_tokens":4}}}}}},{more}
                "timings":{{"request_start":"1970-01-01T00:00:01.000000000Z","end":"1970-01-01T00:00:03.000000000Z",
                "duration":2.0,"chunks":5,"time_per_output_chunk":0.03}}}}"#
        );
        Line::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn calls_to_models_are_counted_as_the_conventions_want_it() {
        let mut meter = Meter::default();
        meter.take(call("client", ""));
        meter.take(call("client", r#""error":{"type":"incomplete"},"#));
        meter.take(call("server", ""));
        // Whose part is not known would be counted at both ends.
        meter.take(call("none", ""));
        let families = meter.families();
        let series = |name: &str| {
            let family = families.iter().find(|one| one.name == name).unwrap();
            let Points::Histograms(points) = &family.points else {
                panic!("{name}")
            };
            points.clone()
        };
        let places = |one: &Histogram| {
            let counts = one.counts.iter().enumerate();
            let some = counts.filter(|(_, count)| **count > 0);
            some.map(|(at, count)| (at, *count)).collect::<Vec<_>>()
        };
        let of = |(name, value): (&'static str, &str)| (name, value.to_owned());
        let plain = [
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "openai"),
            ("gen_ai.request.model", "gpt"),
            ("gen_ai.response.model", "gpt-1"),
            ("server.address", "api"),
            ("server.port", "443"),
        ]
        .map(of)
        .to_vec();
        let mut failed = plain.clone();
        failed.insert(0, of(("error.type", "incomplete")));

        let tokens = series("gen_ai.client.token.usage");
        // 20 is in the bucket that ends with 64, 300 in that of 1024.
        let expected = [&failed, &plain].into_iter().flat_map(|labels| {
            [("input", 3, 20.0), ("output", 5, 300.0)].map(|(kind, at, sum)| {
                let mut labels = labels.clone();
                labels.push(of(("gen_ai.token.type", kind)));
                labels.sort();
                (labels, vec![(at, 1)], sum)
            })
        });
        let told = tokens
            .iter()
            .map(|(labels, one)| (labels.clone(), places(one), one.sum));
        assert_eq!(told.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        for (name, at, times, sum) in [
            ("gen_ai.client.operation.duration", 8, 1, 2.0),
            ("gen_ai.client.operation.time_to_first_chunk", 6, 1, 0.5),
            ("gen_ai.client.operation.time_per_output_chunk", 2, 4, 0.12),
        ] {
            let told = series(name);
            assert_eq!(told.len(), 2, "{name}");
            assert_eq!((&told[0].0, &told[1].0), (&failed, &plain), "{name}");
            assert_eq!(places(&told[1].1), [(at, times)], "{name}");
            assert!((told[1].1.sum - sum).abs() < 1e-9, "{name}");
        }
        let served = series("gen_ai.server.request.duration");
        assert_eq!(served.len(), 1);
        assert_eq!((&served[0].0, served[0].1.sum), (&plain, 2.0));
    }

    /// Money of one currency is no sum of another's, and what the answering end would pay is paid once.
    #[test]
    fn what_calls_cost_is_added_up_by_provider_model_and_currency() {
        let mut meter = Meter::default();
        let cost = |amount: f64, currency: &str| {
            format!(r#""cost":{{"amount":{amount},"currency":"{currency}"}},"#)
        };
        meter.take(call("client", ""));
        meter.take(call("client", &cost(0.25, "USD")));
        meter.take(call("client", &cost(0.5, "USD")));
        meter.take(call("client", &cost(2.0, "EUR")));
        meter.take(call("server", &cost(4.0, "USD")));
        let families = meter.families();
        let costs = families.iter().filter(|one| one.name == "vortex.llm.cost");
        let told: Vec<_> = costs.map(|one| (&*one.unit, one.points.clone())).collect();
        let of = |currency: &str, amount| {
            let labels = [
                ("currency", currency),
                ("gen_ai.provider.name", "openai"),
                ("gen_ai.request.model", "gpt"),
                ("gen_ai.response.model", "gpt-1"),
            ];
            let labels = labels.map(|(name, value)| (name, value.to_owned()));
            Points::Sums(vec![(labels.to_vec(), amount)])
        };
        assert_eq!(
            told,
            [("{EUR}", of("EUR", 2.0)), ("{USD}", of("USD", 0.75))]
        );
    }

    #[test]
    fn costs_are_bounded_and_what_is_beyond_is_counted() {
        let mut meter = Meter::default();
        let model = |number: usize| {
            format!(
                r#"{{"kind":"llm","connection":{{"role":"client"}},"gen_ai":{{"request":{{"model":"m{number}"}}}},
                    "cost":{{"amount":1,"currency":"USD"}}}}"#
            )
        };
        for number in (0..SERIES_MAX + 50).chain([0]) {
            meter.take(Line::read(model(number).as_bytes()).unwrap());
        }
        let series = &meter.costs["USD"];
        let overflow = vec![
            ("currency", "USD".to_owned()),
            (OVERFLOW.0, OVERFLOW.1.to_owned()),
        ];
        assert_eq!((series.len(), series[&overflow]), (SERIES_MAX + 1, 50.0));
        assert_eq!(series.values().sum::<f64>(), SERIES_MAX as f64 + 51.0);
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
        let shedding = [
            "level",
            "share",
            "bodies",
            "data",
            "data_size",
            "connections",
        ]
        .map(
            |name| match &find(&format!("vortex.shedding.{name}")).points {
                Points::Sums(points) | Points::Gauges(points) => points[0].1,
                other => panic!("{name}: {other:?}"),
            },
        );
        assert_eq!(shedding, [3.0, 0.25, 5.0, 6.0, 60.0, 7.0]);
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
