//! The page that Prometheus reads: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Whoever comes gets
//! one answer and has little time for its question.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use super::{
    lane::Lane,
    meter::{Family, Labels, Points},
    wire::Count,
};

/// For question and answer.
const PATIENCE: Duration = Duration::from_secs(2);
const HEAD_MAX: usize = 8 << 10;
/// At once. Who comes beyond waits.
const CONNECTIONS: usize = 8;

/// For ever.
pub async fn serve(
    listener: TcpListener,
    families: impl Fn() -> Vec<Family> + Clone + Send + 'static,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptor is free: soon one is.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let families = families.clone();
        tokio::spawn(async move {
            let _ = timeout(PATIENCE, answer(stream, families)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, families: impl Fn() -> Vec<Family>) -> std::io::Result<()> {
    let mut head = Vec::new();
    let request = loop {
        if head.len() >= HEAD_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
        if let Some(request) = Request::read(&head) {
            break request;
        }
    };
    let answer = match request {
        Request::Page => response("200 OK", CONTENT, &text(&families())),
        Request::Elsewhere => response("404 Not Found", "", "the page is /metrics\n"),
        Request::Method => response("405 Method Not Allowed", "Allow: GET\r\n", ""),
        Request::Nonsense => response("400 Bad Request", "", ""),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

const CONTENT: &str = "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n";

fn response(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Page,
    Elsewhere,
    Method,
    Nonsense,
}

impl Request {
    /// `None`: there is more to come.
    fn read(head: &[u8]) -> Option<Request> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head) {
            Ok(httparse::Status::Partial) => return None,
            Ok(httparse::Status::Complete(_)) => {}
            Err(_) => return Some(Request::Nonsense),
        }
        let path = request.path.unwrap_or("");
        Some(match (request.method, path.split('?').next()) {
            (Some("GET"), Some("/metrics")) => Request::Page,
            (Some("GET"), _) => Request::Elsewhere,
            _ => Request::Method,
        })
    }
}

/// Records of a page: with the meter, which has taken the line already, it has arrived.
pub struct Counted {
    name: String,
    taken: AtomicU64,
}

impl Counted {
    pub fn new(name: String) -> Self {
        Counted {
            name,
            taken: AtomicU64::new(0),
        }
    }
}

impl Lane for Counted {
    fn name(&self) -> &str {
        &self.name
    }

    fn push(&self, _: Bytes, _: Instant) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    fn hurry(&self) -> u64 {
        0
    }

    fn is_settled(&self, _: u64) -> bool {
        true
    }

    fn count(&self) -> Count {
        Count {
            sent: self.taken.load(Ordering::Relaxed),
            dropped: 0,
        }
    }

    fn causes(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// The page.
fn text(families: &[Family]) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for family in families {
        let name = name(family);
        let (kind, points) = match &family.points {
            Points::Sums(points) => ("counter", points),
            Points::Gauges(points) => ("gauge", points),
            Points::Histograms(_) => ("histogram", &Vec::new()),
        };
        // Writing to memory can't fail, here and below.
        // Of costs each currency is one, under the same name.
        if name != last {
            let _ = writeln!(text, "# HELP {name} {}", family.help);
            let _ = writeln!(text, "# TYPE {name} {kind}");
        }
        for (labels, value) in points {
            let _ = writeln!(text, "{name}{} {value}", braces(labels, None));
        }
        let histograms = match &family.points {
            Points::Histograms(points) => &points[..],
            Points::Sums(_) | Points::Gauges(_) => &[],
        };
        for (labels, histogram) in histograms {
            let mut below = 0;
            let bounds = histogram.bounds.iter().map(f64::to_string);
            let bounds = bounds.chain(["+Inf".to_owned()]);
            for (bound, count) in bounds.zip(&histogram.counts) {
                below += count;
                let labels = braces(labels, Some(&bound));
                let _ = writeln!(text, "{name}_bucket{labels} {below}");
            }
            let labels = braces(labels, None);
            let _ = writeln!(text, "{name}_sum{labels} {}", histogram.sum);
            let _ = writeln!(text, "{name}_count{labels} {}", histogram.count());
        }
        last = name;
    }
    text
}

/// With the unit and what says that it only grows, as OpenTelemetry's names are written for Prometheus.
fn name(family: &Family) -> String {
    let mut name = underscores(family.name);
    name.push_str(match &*family.unit {
        "s" => "_seconds",
        "By" => "_bytes",
        _ => "",
    });
    if matches!(family.points, Points::Sums(_)) {
        name.push_str("_total");
    }
    name
}

fn underscores(name: &str) -> String {
    name.replace('.', "_")
}

fn braces(labels: &Labels, bound: Option<&str>) -> String {
    let mut pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{}=\"{}\"", underscores(name), escaped(value)))
        .collect();
    pairs.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    match pairs.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", pairs.join(",")),
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::{
        super::meter::{
            Meter,
            tests::{call, exchange, stats},
        },
        *,
    };

    #[test]
    fn the_page_is_what_prometheus_reads() {
        let mut meter = Meter::default();
        meter.take(exchange("client", "a\\\"b", "GET", "01.030000000"));
        meter.take(stats());
        for currency in ["EUR", "USD"] {
            let cost = format!(r#""cost":{{"amount":0.5,"currency":"{currency}"}},"#);
            meter.take(call("client", &cost));
        }
        let page = text(&meter.families());
        let costs: Vec<_> = page
            .lines()
            .filter(|line| line.contains("vortex_llm_cost"))
            .collect();
        let of = "gen_ai_provider_name=\"openai\",gen_ai_request_model=\"gpt\",gen_ai_response_model=\"gpt-1\"";
        assert_eq!(
            costs,
            [
                "# HELP vortex_llm_cost_total What calls to models cost that processes here made, where it is known.",
                "# TYPE vortex_llm_cost_total counter",
                &format!("vortex_llm_cost_total{{currency=\"EUR\",{of}}} 0.5"),
                &format!("vortex_llm_cost_total{{currency=\"USD\",{of}}} 0.5"),
            ]
        );
        let labels = "http_request_method=\"GET\",http_response_status_code=\"200\",\
                      server_address=\"a\\\"b\",server_port=\"443\"";
        for line in [
            "# TYPE http_client_request_duration_seconds histogram".to_owned(),
            format!("http_client_request_duration_seconds_bucket{{{labels},le=\"0.025\"}} 0"),
            format!("http_client_request_duration_seconds_bucket{{{labels},le=\"0.05\"}} 1"),
            format!("http_client_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 1"),
            format!("http_client_request_duration_seconds_sum{{{labels}}} 0.03"),
            format!("http_client_request_duration_seconds_count{{{labels}}} 1"),
            "vortex_ledger_seen_bytes_total 10".to_owned(),
            "vortex_ledger_lost_bytes_total{cause=\"ring_full\"} 3".to_owned(),
            "vortex_ledger_in_flight_bytes 0".to_owned(),
            "process_cpu_time_seconds_total 0.25".to_owned(),
        ] {
            assert!(page.lines().any(|one| one == line), "{line} in\n{page}");
        }
        assert!(page.ends_with('\n'));
    }

    #[test]
    fn only_the_page_can_be_asked_for() {
        for (head, expected) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
                Some(Request::Page),
            ),
            ("GET /metrics?x=y HTTP/1.0\r\n\r\n", Some(Request::Page)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Request::Elsewhere)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Request::Method)),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(Request::Method)),
            ("\x16\x03\x01", Some(Request::Nonsense)),
            ("GET /metrics HT", None),
        ] {
            assert_eq!(Request::read(head.as_bytes()), expected, "{head:?}");
        }
    }
}
