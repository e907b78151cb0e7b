//! Records over a network: what arrives at a collector is what was written to a file, and nothing is told of the
//! sending itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message;
use serde_json::Value;

use crate::harness::{Lab, PYTHON, Proc, argv, bare, free_port, seconds, wait_for};
use crate::records::{Records, string};

/// `collector.py` under this name, and its port.
pub(crate) fn collector(lab: &Lab, name: &str, how: &[&str]) -> (Proc, u16) {
    let mut words = argv![PYTHON, lab.program("collector.py"), &lab.dir, name];
    words.extend(how.iter().map(OsString::from));
    let process = lab.spawn(lab.command(words), name);
    let port = lab.port(name, &process);
    (process, port)
}

/// Every request of a signal that arrived there.
pub(crate) fn requests<M: Message + Default>(lab: &Lab, name: &str, signal: &str) -> Vec<M> {
    let (begin, end) = (format!("{name}-"), format!(".{signal}"));
    let entries = fs::read_dir(&lab.dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.starts_with(&begin) && file.ends_with(&end)
    };
    let bodies = paths.filter(is_one).map(|path| fs::read(path).unwrap());
    bodies.map(|body| M::decode(&*body).unwrap()).collect()
}

/// The records that arrived.
pub(crate) fn logs(lab: &Lab, name: &str) -> impl Iterator<Item = LogRecord> {
    let requests = requests::<ExportLogsServiceRequest>(lab, name, "logs");
    let resources = requests.into_iter().flat_map(|one| one.resource_logs);
    let scopes = resources.flat_map(|one| one.scope_logs);
    scopes.flat_map(|one| one.log_records)
}

/// A text among the attributes of a record.
pub(crate) fn attribute(record: &LogRecord, key: &str) -> Option<String> {
    let pair = record.attributes.iter().find(|pair| pair.key == key)?;
    match pair.value.clone()?.value? {
        Any::StringValue(text) => Some(text),
        other => panic!("{key}: {other:?}"),
    }
}

/// Kind and id of each record that arrived.
pub(crate) fn arrived(lab: &Lab, name: &str) -> Vec<(String, String)> {
    let told = logs(lab, name).map(|record| {
        let id = attribute(&record, "id").expect("an id");
        (record.event_name, id)
    });
    told.collect()
}

pub(crate) fn written(records: &Records) -> Vec<(String, String)> {
    let records = records.0.iter();
    let name = |record| {
        (
            string(record, "/kind").unwrap(),
            string(record, "/id").unwrap(),
        )
    };
    records.map(name).collect()
}

/// A collector, a page and a file: each record arrives once in each, the collector's spans are the exchanges, and the
/// page has counted them.
#[test]
fn collectors_and_a_page() {
    let Some(lab) = Lab::with("collectors_and_a_page", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let (_plain, plain) = collector(&lab, "plain", &[]);
    let (_tls, tls) = collector(&lab, "tls", &["tls"]);
    let page = free_port();
    let file = lab.path("all");
    let config = format!(
        r#"
        [[sink]]
        name = "all"
        type = "file"
        path = "{}"
        [[sink]]
        name = "plain"
        type = "otlp"
        endpoint = "http://127.0.0.1:{plain}"
        protocol = "http"
        batch-age = "50ms"
        [[sink]]
        name = "tls"
        type = "otlp"
        endpoint = "https://localhost:{tls}"
        protocol = "http"
        ca-file = "{}"
        compression = "none"
        signals = ["logs"]
        emit = ["http"]
        [[sink]]
        type = "prometheus"
        listen = "127.0.0.1:{page}"
        "#,
        file.display(),
        lab.path("cert.pem").display(),
    );
    let url = server.url("/bytes/[100-149]");
    let script = format!(
        "curl -sk --http1.1 -o /dev/null '{url}'; sleep 1; curl -s http://127.0.0.1:{page}/metrics > '{}'",
        lab.path("page").display()
    );
    let run = lab.agent().config(&config).run(argv!["sh", "-c", script]);
    run.success();

    let all = Records::parse(&fs::read_to_string(&file).unwrap(), true).unwrap();
    let exchanges = all.kind("http").count();
    assert_eq!(exchanges, 50);
    // The last one says how many were sent, itself not.
    let sinks = all.last_stats().unwrap()["sinks"].clone();
    let count = |name: &str| {
        let sinks = sinks.as_array().unwrap();
        let sink = sinks.iter().find(|sink| sink["name"] == name);
        let sink = sink.unwrap_or_else(|| panic!("no {name} in {sinks:?}"));
        assert_eq!(sink["dropped"], 0, "{sink}");
        sink["sent"].as_u64().unwrap() as usize
    };
    let others = all.0.len() - 1;
    assert_eq!(
        [count("all"), count("plain.logs"), count("prometheus")],
        [others; 3]
    );
    assert_eq!([count("plain.traces"), count("tls.logs")], [exchanges; 2]);

    let set = |told: Vec<(String, String)>| -> BTreeSet<_> { told.into_iter().collect() };
    let (there, here) = (arrived(&lab, "plain"), written(&all));
    assert_eq!((there.len(), set(there)), (here.len(), set(here)));
    let there = arrived(&lab, "tls");
    assert!(there.iter().all(|(kind, _)| kind == "http"));
    assert_eq!((there.len(), set(there).len()), (exchanges, exchanges));
    let spans = requests::<ExportTraceServiceRequest>(&lab, "plain", "traces");
    let spans = spans.iter().flat_map(|one| &one.resource_spans);
    let spans = spans.flat_map(|one| &one.scope_spans);
    assert_eq!(spans.flat_map(|one| &one.spans).count(), exchanges);

    let page = fs::read_to_string(lab.path("page")).unwrap();
    let counted = page.lines().find_map(|line| {
        let is_count = line.starts_with("http_client_request_duration_seconds_count{");
        is_count.then(|| line.rsplit(' ').next())?
    });
    assert_eq!(counted, Some("50"), "{page}");
}

/// A collector on this machine, over TLS: what it reads from us is nobody's business, what others say to it is.
#[test]
fn collectors_end_is_not_told() {
    let Some(lab) = Lab::with("collectors_end_is_not_told", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let (collector, port) = collector(&lab, "here", &["tls"]);
    let file = lab.path("all");
    let config = format!(
        r#"
        stats-interval = "100ms"
        [[sink]]
        type = "file"
        path = "{}"
        emit = ["data", "http", "gap", "coverage", "stats"]
        [[sink]]
        name = "here"
        type = "otlp"
        endpoint = "https://localhost:{port}"
        protocol = "http"
        ca-file = "{}"
        batch-age = "50ms"
        "#,
        file.display(),
        lab.path("cert.pem").display(),
    );
    let agent = lab.agent().config(&config);
    let running = agent.watch_without_coverage(collector.pid());
    let came = || arrived(&lab, "here").len();
    wait_for("records at the collector", seconds(20), || {
        (came() > 20).then_some(())
    });
    let url = format!("https://127.0.0.1:{port}/greeting");
    let curl = lab.command(argv!["curl", "-sk", "--http1.1", url]);
    assert_eq!(lab.finish(curl, "curl").out(), "here\n");
    let before = came();
    wait_for("more records", seconds(20), || {
        (came() > before + 10).then_some(())
    });
    running.process.signal(libc::SIGTERM);
    running.finish(seconds(20)).success();
    let all = Records::parse(&fs::read_to_string(&file).unwrap(), true).unwrap();
    let others: Vec<&Value> = all.kind("http").collect();
    let [other] = others[..] else {
        panic!("{others:?}");
    };
    assert_eq!(other["url"]["path"], "/greeting");
    let id = &other["connection"]["id"];
    let is_other = |data: &Value| data["connection"]["id"] == *id;
    assert!(all.kind("data").count() > 0 && all.kind("data").all(is_other));
    assert_eq!(all.kind("gap").count(), 0);
}
