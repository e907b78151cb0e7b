//! An exchange or a call as a span.

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};

use super::{
    line::Line,
    resource::{Resource, attributes, scope},
};
use crate::record::Kind;

/// A span for each line that has one.
pub fn request(lines: &[Bytes], resource: &Resource) -> ExportTraceServiceRequest {
    let lines = lines.iter().filter_map(|line| Line::read(line));
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: resource.sent(),
            scope_spans: vec![ScopeSpans {
                scope: scope(),
                spans: lines.filter(is_span).map(span).collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    }
}

/// Not so the messages of a call, which are records of the same kind.
pub fn is_span(line: &Line) -> bool {
    match line.kind() {
        Some(Kind::Http | Kind::Llm | Kind::Mcp) => true,
        Some(Kind::Grpc) => line.at("/rpc").is_some(),
        _ => false,
    }
}

/// Messages of a call to a model, which the conventions have as JSON in a span.
const MESSAGES: [&str; 4] = [
    "/gen_ai/system_instructions",
    "/gen_ai/input/messages",
    "/gen_ai/output/messages",
    "/gen_ai/tool/definitions",
];

fn span(mut line: Line) -> Span {
    MESSAGES.iter().for_each(|pointer| line.write_out(pointer));
    let times = ["request_start", "request_end", "first_byte", "end"];
    let times = times.map(|name| line.time(&format!("/timings/{name}")));
    let at = line.time("/time").unwrap_or(0);
    let start = times.iter().flatten().min().copied().unwrap_or(at);
    let end = times.iter().flatten().max().copied().unwrap_or(at);
    let is_server = is_server(&line);
    let ids = Ids::of(&line);
    Span {
        trace_id: ids.trace,
        span_id: ids.span,
        parent_span_id: ids.parent,
        flags: ids.flags,
        name: name(&line),
        kind: match is_server {
            Some(false) => SpanKind::Client,
            Some(true) => SpanKind::Server,
            None => SpanKind::Unspecified,
        }
        .into(),
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        status: Some(status(&line, is_server == Some(true))),
        attributes: attributes(line.into_members(), is_left_out),
        ..Span::default()
    }
}

/// Was it this end that was asked? In MCP that is the client, too, where the server begins.
fn is_server(line: &Line) -> Option<bool> {
    let is_server = match line.text("/connection/role") {
        Some("client") => false,
        Some("server") => true,
        _ => return None,
    };
    let is_turned = line.text("/mcp/initiator") == Some("server");
    Some(is_server != is_turned)
}

/// Of few values, as the conventions want it: the path is an attribute.
fn name(line: &Line) -> String {
    let both = |first, second| line.text(first).zip(line.text(second));
    if line.kind() == Some(Kind::Llm) {
        let operation = line.text("/gen_ai/operation/name").unwrap_or("call");
        return match line.text("/gen_ai/request/model") {
            Some(model) => format!("{operation} {model}"),
            None => operation.to_owned(),
        };
    }
    if line.kind() == Some(Kind::Mcp) {
        let method = line.text("/mcp/method/name").unwrap_or("MCP");
        let target = line.text("/gen_ai/tool/name");
        return match target.or(line.text("/gen_ai/prompt/name")) {
            Some(target) => format!("{method} {target}"),
            None => method.to_owned(),
        };
    }
    match both("/rpc/service", "/rpc/method") {
        Some((service, method)) => format!("{service}/{method}"),
        None => line
            .text("/http/request/method")
            .unwrap_or("HTTP")
            .to_owned(),
    }
}

/// What has a place of its own, and bodies, which are in the log record with the same ids. A call to a model has its
/// messages in its span: there are readers of such spans, and hardly one of such logs.
fn is_left_out(path: &str) -> bool {
    let is_body = |path: &str| {
        let body = path.strip_prefix("http.request.body.");
        let member = body.or(path.strip_prefix("http.response.body."));
        matches!(member, Some("content" | "base64" | "redactions"))
    };
    matches!(path, "v" | "kind" | "time" | "host" | "timings") || is_body(path)
}

/// What went wrong for whom: a server that says 404 did its work.
fn status(line: &Line, is_server: bool) -> Status {
    let http = line.number("/http/response/status_code");
    let grpc = line.number("/rpc/grpc/status_code");
    let is_error = match (grpc, http) {
        // UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
        (Some(code), _) if is_server => [2, 4, 12, 13, 14, 15].contains(&code),
        (Some(code), _) => code != 0,
        (None, Some(code)) if is_server => code >= 500,
        (None, Some(code)) => code >= 400,
        (None, None) => line.at("/error/type").is_some(),
    };
    Status {
        code: match is_error {
            true => StatusCode::Error,
            false => StatusCode::Unset,
        }
        .into(),
        message: ["/grpc/message", "/error/message"]
            .into_iter()
            .find_map(|pointer| line.text(pointer))
            .unwrap_or("")
            .to_owned(),
    }
}

/// By what a span is known, here and by others.
#[derive(Debug, PartialEq, Eq)]
pub struct Ids {
    pub trace: Vec<u8>,
    pub span: Vec<u8>,
    /// Empty: it is the first of its trace.
    pub parent: Vec<u8>,
    pub flags: u32,
}

impl Ids {
    /// Of the record's own id, so that a batch that is sent twice has each span once. In a trace that the request
    /// says it belongs to, else in one of its own.
    pub fn of(line: &Line) -> Ids {
        let id = line.text("/id").unwrap_or("");
        let hash = blake3::hash(id.as_bytes());
        let hash = hash.as_bytes();
        let span = hash[16..24].to_vec();
        let parent = ["/http/request/header/traceparent/0", "/mcp/traceparent"];
        let parent = parent.into_iter().find_map(|pointer| line.text(pointer));
        match parent.and_then(traceparent) {
            Some((trace, parent, flags)) => Ids {
                trace,
                span,
                parent,
                flags: flags.into(),
            },
            None => Ids {
                trace: hash[..16].to_vec(),
                span,
                parent: Vec::new(),
                flags: 0,
            },
        }
    }
}

/// <https://www.w3.org/TR/trace-context/#traceparent-header>: trace, span and flags, if it is valid.
fn traceparent(text: &str) -> Option<(Vec<u8>, Vec<u8>, u8)> {
    let mut parts = text.split('-');
    let [version, trace, span, flags] = [2, 32, 16, 2].map(|digits| hex(parts.next()?, digits));
    let (version, trace, span, flags) = (version?[0], trace?, span?, flags?[0]);
    let is_zero = |id: &[u8]| id.iter().all(|byte| *byte == 0);
    // A later version may have more behind it.
    if version == 0xff || version == 0 && parts.next().is_some() {
        return None;
    }
    (!is_zero(&trace) && !is_zero(&span)).then_some((trace, span, flags))
}

fn hex(text: &str, digits: usize) -> Option<Vec<u8>> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != digits || !text.bytes().all(is_digit) {
        return None;
    }
    let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..digits).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;

    use super::*;

    fn line(text: &str) -> Line {
        Line::read(text.as_bytes()).unwrap()
    }

    fn http(role: &str, status: u16) -> Span {
        span(line(&format!(
            r#"{{"kind":"http","id":"7c1f-1","time":"1970-01-01T00:00:09.000000000Z",
                "connection":{{"role":"{role}"}},
                "http":{{"request":{{"method":"GET","body":{{"size":2,"content":"hi"}}}},
                         "response":{{"status_code":{status}}}}},
                "timings":{{"request_start":"1970-01-01T00:00:01.000000000Z",
                            "request_end":"1970-01-01T00:00:02.000000000Z",
                            "end":"1970-01-01T00:00:03.000000007Z"}}}}"#
        )))
    }

    #[test]
    fn an_exchange_is_a_span_from_its_first_byte_to_its_last() {
        let span = http("client", 200);
        assert_eq!(span.name, "GET");
        assert_eq!(span.start_time_unix_nano, 1_000_000_000);
        assert_eq!(span.end_time_unix_nano, 3_000_000_007);
        let keys: Vec<_> = span.attributes.iter().map(|pair| &*pair.key).collect();
        assert!(keys.contains(&"http.request.body.size"));
        assert!(!keys.contains(&"http.request.body.content"), "{keys:?}");
    }

    #[test]
    fn who_failed_depends_on_who_tells() {
        for (role, status, kind, code) in [
            ("client", 200, SpanKind::Client, StatusCode::Unset),
            ("client", 404, SpanKind::Client, StatusCode::Error),
            ("server", 404, SpanKind::Server, StatusCode::Unset),
            ("server", 503, SpanKind::Server, StatusCode::Error),
            ("none", 204, SpanKind::Unspecified, StatusCode::Unset),
        ] {
            let span = http(role, status);
            assert_eq!(span.kind, kind as i32, "{role} {status}");
            assert_eq!(span.status.unwrap().code, code as i32, "{role} {status}");
        }
        let call = |role, code| {
            let text = format!(
                r#"{{"kind":"grpc","connection":{{"role":"{role}"}},"http":{{"response":{{"status_code":200}}}},
                    "rpc":{{"service":"s","method":"m","grpc":{{"status_code":{code}}}}}}}"#
            );
            let span = span(line(&text));
            assert_eq!(span.name, "s/m");
            span.status.unwrap().code == StatusCode::Error as i32
        };
        assert!(call("client", 5) && !call("server", 5) && call("server", 13));
        assert!(!call("client", 0));
    }

    #[test]
    fn a_call_to_a_model_is_as_the_conventions_want_it() {
        let text = r#"{"kind":"llm","id":"7c1f-1","time":"1970-01-01T00:00:09.000000000Z",
            "connection":{"role":"client"},"error":{"type":"incomplete"},
            "gen_ai":{"operation":{"name":"chat"},"provider":{"name":"openai"},"request":{"model":"gpt","top_k":0.5},
            "usage":{"input_tokens":3,"cache_read":{"input_tokens":1}},"response":{"finish_reasons":["stop"]},
            "system_instructions":[{"type":"text","content":"Be \"brief\"."}],
            "input":{"messages":[{"role":"user","parts":[{"type":"text","content":"Hi"}]}]},
            "output":{"type":"text","messages":[]}},
            "timings":{"request_start":"1970-01-01T00:00:01.000000000Z","end":"1970-01-01T00:00:03.000000000Z"}}"#;
        let span = span(line(text));
        assert_eq!(span.name, "chat gpt");
        assert_eq!(span.kind, SpanKind::Client as i32);
        assert_eq!(span.status.unwrap().code, StatusCode::Error as i32);
        assert_eq!(
            span.end_time_unix_nano - span.start_time_unix_nano,
            2_000_000_000
        );
        let find = |key: &str| {
            let pair = span.attributes.iter().find(|pair| pair.key == key);
            pair.and_then(|pair| pair.value.clone()?.value)
        };
        let text = |text: &str| Some(Any::StringValue(text.to_owned()));
        let read = |key: &str| match find(key) {
            Some(Any::StringValue(text)) => {
                serde_json::from_str::<serde_json::Value>(&text).unwrap()
            }
            other => panic!("{key}: {other:?}"),
        };
        let part = |content: &str| serde_json::json!({"type": "text", "content": content});
        let instructions = serde_json::json!([part("Be \"brief\".")]);
        assert_eq!(read("gen_ai.system_instructions"), instructions);
        let messages = serde_json::json!([{"role": "user", "parts": [part("Hi")]}]);
        assert_eq!(read("gen_ai.input.messages"), messages);
        assert_eq!(find("gen_ai.output.messages"), text("[]"));
        assert_eq!(find("gen_ai.output.type"), text("text"));
        assert_eq!(
            find("gen_ai.usage.cache_read.input_tokens"),
            Some(Any::IntValue(1))
        );
        assert!(matches!(
            find("gen_ai.response.finish_reasons"),
            Some(Any::ArrayValue(_))
        ));
        let nameless = line(r#"{"kind":"llm","gen_ai":{"operation":{"name":"embeddings"}}}"#);
        assert_eq!(name(&nameless), "embeddings");
    }

    #[test]
    fn a_request_of_mcp_is_as_the_conventions_want_it() {
        let of = |role: &str, initiator: &str, more: &str| {
            span(line(&format!(
                r#"{{"kind":"mcp","id":"7c1f-1","time":"1970-01-01T00:00:09.000000000Z",
                    "connection":{{"role":"{role}"}},"jsonrpc":{{"request":{{"id":"3"}}}},
                    "mcp":{{"method":{{"name":"tools/call"}},"initiator":"{initiator}",
                    "traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},{more}
                    "timings":{{"request_start":"1970-01-01T00:00:01.000000000Z",
                                "end":"1970-01-01T00:00:03.000000000Z","duration":2}}}}"#
            )))
        };
        for (role, initiator, kind) in [
            ("client", "client", SpanKind::Client),
            ("client", "server", SpanKind::Server),
            ("server", "client", SpanKind::Server),
            ("server", "server", SpanKind::Client),
            ("none", "server", SpanKind::Unspecified),
        ] {
            let span = of(role, initiator, "");
            assert_eq!(span.kind, kind as i32, "{role} {initiator}");
            assert_eq!(span.name, "tools/call");
            assert_eq!(span.status.unwrap().code, StatusCode::Unset as i32);
        }
        let tool = r#""gen_ai":{"operation":{"name":"execute_tool"},"tool":{"name":"look",
            "call":{"arguments":"{}","result":"[]"}}},"#;
        let failed = r#""rpc":{"response":{"status_code":"-32602"}},"error":{"type":"-32602","message":"No such."},"#;
        for role in ["client", "server"] {
            let span = of(role, "client", &format!("{tool}{failed}"));
            assert_eq!(span.name, "tools/call look");
            let status = span.status.unwrap();
            assert_eq!(status.code, StatusCode::Error as i32, "{role}");
            assert_eq!(status.message, "No such.");
            assert_eq!(
                span.end_time_unix_nano - span.start_time_unix_nano,
                2_000_000_000
            );
            assert_eq!(span.parent_span_id[..2], [0xb7, 0xad]);
            assert_eq!(span.trace_id[..2], [0x0a, 0xf7]);
            let has = |key| span.attributes.iter().any(|pair| pair.key == key);
            for key in [
                "mcp.method.name",
                "jsonrpc.request.id",
                "gen_ai.operation.name",
                "gen_ai.tool.name",
                "gen_ai.tool.call.arguments",
                "gen_ai.tool.call.result",
                "rpc.response.status_code",
                "error.type",
            ] {
                assert!(has(key), "{key}");
            }
        }
        let tool_error = of("client", "client", r#""error":{"type":"tool_error"},"#);
        assert_eq!(tool_error.status.unwrap().code, StatusCode::Error as i32);
        let name = |text: &str| super::name(&line(text));
        let prompt = r#"{"kind":"mcp","mcp":{"method":{"name":"prompts/get"}},"gen_ai":{"prompt":{"name":"greet"}}}"#;
        assert_eq!(name(prompt), "prompts/get greet");
        assert_eq!(
            name(r#"{"kind":"mcp","mcp":{"initiator":"client"}}"#),
            "MCP"
        );
    }

    #[test]
    fn ids_are_the_same_each_time_and_differ_between_records() {
        let of = |id: &str| Ids::of(&line(&format!(r#"{{"kind":"http","id":"{id}"}}"#)));
        assert_eq!(of("a-1"), of("a-1"));
        assert_ne!(of("a-1").trace, of("a-2").trace);
        assert_ne!(of("a-1").span, of("a-2").span);
        let all: std::collections::HashSet<_> =
            (0..10_000).map(|n| of(&format!("a-{n}")).span).collect();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn a_trace_is_gone_on_with_if_its_header_is_valid() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let of = |header: &str| {
            let text = format!(
                r#"{{"kind":"http","id":"a-1","http":{{"request":{{"header":{{"traceparent":["{header}"]}}}}}}}}"#
            );
            Ids::of(&line(&text))
        };
        let ids = of(valid);
        assert_eq!(ids.trace[..4], [0x0a, 0xf7, 0x65, 0x19]);
        assert_eq!(ids.parent, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        assert_eq!(ids.flags, 1);
        assert!(
            !of(&valid.replacen("00", "cc", 1)).parent.is_empty(),
            "a later version"
        );
        for wrong in [
            "",
            "00",
            "[redacted:token:0badf00d]",
            &valid.to_uppercase(),
            &valid.replacen("00", "ff", 1),
            &format!("{valid}-x"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert!(of(wrong).parent.is_empty(), "{wrong}");
            assert_eq!(of(wrong).trace.len(), 16);
        }
    }

    #[test]
    fn messages_of_a_call_are_no_spans() {
        assert!(!is_span(&line(r#"{"kind":"grpc","grpc":{"number":0}}"#)));
        assert!(!is_span(&line(r#"{"kind":"data"}"#)));
    }
}
