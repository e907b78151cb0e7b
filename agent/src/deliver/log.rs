//! A record as a log record: all of it, flattened.

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
};

use super::{
    line::Line,
    resource::{Resource, attributes, scope, text},
    span,
};
use crate::record::Kind;

/// One log record for each line: the collector's counts are ours.
pub fn request(lines: &[Bytes], resource: &Resource) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: resource.sent(),
            scope_logs: vec![ScopeLogs {
                scope: scope(),
                log_records: lines.iter().map(|line| record(line)).collect(),
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        }],
    }
}

fn record(line: &[u8]) -> LogRecord {
    let Some(line) = Line::read(line) else {
        return LogRecord {
            body: text(String::from_utf8_lossy(line).into_owned()),
            ..LogRecord::default()
        };
    };
    let time = line.time("/time").unwrap_or(0);
    let severity = severity(&line);
    // So that log and span find each other.
    let ids = span::is_span(&line).then(|| span::Ids::of(&line));
    let (trace_id, span_id) = ids.map(|ids| (ids.trace, ids.span)).unwrap_or_default();
    LogRecord {
        time_unix_nano: time,
        observed_time_unix_nano: time,
        severity_number: severity.into(),
        severity_text: match severity {
            SeverityNumber::Warn => "WARN".to_owned(),
            _ => "INFO".to_owned(),
        },
        event_name: line.text("/kind").unwrap_or("").to_owned(),
        body: text(summary(&line)),
        trace_id,
        span_id,
        attributes: attributes(line.into_members(), is_elsewhere),
        ..LogRecord::default()
    }
}

/// Members that have a place of their own.
fn is_elsewhere(path: &str) -> bool {
    matches!(path, "v" | "kind" | "time" | "host")
}

fn severity(line: &Line) -> SeverityNumber {
    match line.kind() {
        Some(Kind::Gap | Kind::Finding) => SeverityNumber::Warn,
        Some(Kind::Coverage) if line.text("/status") != Some("probed") => SeverityNumber::Warn,
        _ => SeverityNumber::Info,
    }
}

/// The record in a line, for who looks through many.
fn summary(line: &Line) -> String {
    let word = |pointer| line.text(pointer).unwrap_or("-");
    let number = |pointer| {
        let number = line.number(pointer);
        number.map_or_else(|| "-".to_owned(), |number| number.to_string())
    };
    match line.kind() {
        Some(Kind::Http) => {
            let status = number("/http/response/status_code");
            let url = line.text("/url/full").unwrap_or(word("/url/path"));
            format!("{} {url} {status}", word("/http/request/method"))
        }
        Some(Kind::Grpc) if line.at("/rpc").is_some() => {
            let status = number("/rpc/grpc/status_code");
            format!("{}/{} {status}", word("/rpc/service"), word("/rpc/method"))
        }
        Some(Kind::Data) => format!("{} {} bytes", word("/direction"), number("/length")),
        Some(Kind::Gap) => {
            let (direction, length) = (word("/direction"), number("/length"));
            format!("{direction} {length} bytes lost: {}", word("/cause"))
        }
        Some(Kind::Coverage) => {
            let (status, path) = (word("/status"), word("/library/path"));
            match line.text("/reason") {
                Some(reason) => format!("{status} {path}: {reason}"),
                None => format!("{status} {path}"),
            }
        }
        Some(Kind::Sse) => format!("event {} of {}", number("/sse/number"), word("/url/full")),
        Some(Kind::Websocket) => {
            let (direction, kind) = (word("/direction"), word("/websocket/type"));
            format!("{direction} {kind} {} bytes", number("/websocket/size"))
        }
        _ => word("/kind").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value as Any};

    use super::*;
    use crate::sink::Origin;

    const HTTP: &str = r#"{"v":1,"kind":"http","id":"7c1f-42","time":"2026-11-21T01:20:29.000000042Z",
        "host":{"name":"box"},"process":{"pid":7,"command_args":["curl","-s"]},"complete":true,
        "url":{"full":"https://example.org/x"},
        "http":{"request":{"method":"GET","header":{"accept":["*/*",null]},"body":{"size":0}},
                "response":{"status_code":200}},
        "agent":{"cpu_seconds":0.5},"sinks":[{"name":"a","sent":1}]}"#;

    fn value(record: &LogRecord, key: &str) -> Option<Any> {
        let found = record.attributes.iter().find(|pair| pair.key == key)?;
        found.value.clone()?.value
    }

    fn of(line: &str) -> LogRecord {
        record(line.as_bytes())
    }

    fn said(record: &LogRecord) -> String {
        match &record.body {
            Some(AnyValue {
                value: Some(Any::StringValue(text)),
            }) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_of_a_record_is_there_once() {
        let record = of(HTTP);
        assert_eq!(record.time_unix_nano, 1_795_224_029_000_000_042);
        assert_eq!(record.event_name, "http");
        assert_eq!(said(&record), "GET https://example.org/x 200");
        assert_eq!(record.severity_number, SeverityNumber::Info as i32);
        let keys: Vec<_> = record.attributes.iter().map(|pair| &*pair.key).collect();
        let mut expected = vec![
            "id",
            "process.pid",
            "process.command_args",
            "complete",
            "url.full",
            "http.request.method",
            "http.request.header.accept",
            "http.request.body.size",
            "http.response.status_code",
            "agent.cpu_seconds",
            "sinks",
        ];
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
        assert_eq!(value(&record, "process.pid"), Some(Any::IntValue(7)));
        assert_eq!(value(&record, "complete"), Some(Any::BoolValue(true)));
        assert_eq!(
            value(&record, "agent.cpu_seconds"),
            Some(Any::DoubleValue(0.5))
        );
        let Some(Any::ArrayValue(accept)) = value(&record, "http.request.header.accept") else {
            panic!("no array")
        };
        assert_eq!(accept.values.len(), 2);
        assert_eq!(accept.values[1].value, None);
        assert!(matches!(value(&record, "sinks"), Some(Any::ArrayValue(_))));
        assert_eq!((record.trace_id.len(), record.span_id.len()), (16, 8));
    }

    #[test]
    fn each_kind_says_itself_in_a_line() {
        for (line, expected, severity) in [
            (
                r#"{"kind":"gap","direction":"sent","cause":"ring_full","length":9}"#,
                "sent 9 bytes lost: ring_full",
                SeverityNumber::Warn,
            ),
            (
                r#"{"kind":"data","direction":"received","length":5}"#,
                "received 5 bytes",
                SeverityNumber::Info,
            ),
            (
                r#"{"kind":"coverage","status":"refused","reason":"why","library":{"path":"/l"}}"#,
                "refused /l: why",
                SeverityNumber::Warn,
            ),
            (
                r#"{"kind":"grpc","rpc":{"service":"s","method":"m","grpc":{"status_code":5}}}"#,
                "s/m 5",
                SeverityNumber::Info,
            ),
            (r#"{"kind":"stats"}"#, "stats", SeverityNumber::Info),
        ] {
            let record = of(line);
            assert_eq!(said(&record), expected);
            assert_eq!(record.severity_number, severity as i32, "{line}");
        }
    }

    #[test]
    fn as_many_records_as_lines_whatever_they_are() {
        let lines = [
            Bytes::from_static(b"{"),
            Bytes::from_static(b"{}"),
            HTTP.into(),
        ];
        let origin = Origin {
            run: "7c1f".into(),
            host: "box".into(),
        };
        let request = request(&lines, &Resource::new(&origin));
        let logs = &request.resource_logs[0];
        assert_eq!(logs.scope_logs[0].log_records.len(), 3);
        let resource = logs.resource.as_ref().unwrap();
        let keys: Vec<_> = resource.attributes.iter().map(|pair| &*pair.key).collect();
        let expected = [
            "service.name",
            "service.version",
            "service.instance.id",
            "host.name",
        ];
        assert_eq!(keys, expected);
    }
}
