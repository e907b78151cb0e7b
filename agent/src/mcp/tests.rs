//! Whole connections in, calls out: however they are cut, and with holes.
//!
//! Messages are as the specification has them, and in the order of members that its SDKs for Python and TypeScript
//! write (read in November 2026).

mod others;
mod sessions;

use std::collections::BTreeMap;

use agent_ebpf::Direction::{self, Received, Sent};

use super::{Calls, Ear, Waiting, call::Call, message::Outcome};
use crate::{
    event::HandleId,
    plaintext::Plaintext,
    protocol::{
        Limit, Piece, Protocol, Said, Side,
        exchange::{Bounds, Keep},
        http2,
        json::{Text, Value},
    },
};

/// What happens to a connection, which has a number.
#[derive(Clone)]
enum Step<'a> {
    Bytes(u64, Direction, &'a [u8]),
    Hole(u64, Direction, u64),
    Close(u64),
}

/// Connections of one process, of which 8 is one that it serves, and 9 was joined in its middle.
struct Lab {
    connections: BTreeMap<u64, (Protocol, Calls)>,
    waiting: Waiting,
    keep: Keep,
    time: u64,
    told: Vec<Call>,
    limits: Vec<Limit>,
}

impl Lab {
    fn new() -> Lab {
        Lab {
            connections: BTreeMap::new(),
            waiting: Waiting::default(),
            keep: Keep::new(Bounds::default()),
            time: 0,
            told: Vec::new(),
            limits: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step<'_>) {
        self.time += 1_000_000;
        let Lab {
            connections,
            waiting,
            keep,
            time,
            told,
            limits,
        } = self;
        let (Step::Bytes(number, ..) | Step::Hole(number, ..) | Step::Close(number)) = *step;
        let new = || (Protocol::new(number != 9), Calls::default());
        let (protocol, calls) = connections.entry(number).or_insert_with(new);
        let mut out = |limit| limits.push(limit);
        let ear = &mut Ear {
            handle: HandleId {
                pid: 7,
                born: 0,
                handle: number,
            },
            time: *time,
            waiting,
            out: &mut out,
        };
        let mut hear = |said: Said<'_>| match said {
            Said::Head { exchange, side } => calls.head(exchange, side),
            Said::Body {
                exchange,
                side,
                bytes,
            } => calls.body(exchange, side, bytes, ear),
            Said::Hole { exchange, side } => calls.hole(exchange, side, ear),
            Said::Event {
                exchange, event, ..
            } => told.extend(calls.event(exchange, event, ear)),
            Said::Exchange(exchange) => told.extend(calls.end(exchange, ear)),
            Said::Closed => told.extend(calls.close(ear).into_iter().map(|(_, call)| call)),
            _ => {}
        };
        match *step {
            Step::Bytes(_, direction, bytes) => {
                let piece = Piece {
                    direction,
                    offset: 0,
                    bytes: Plaintext::new(bytes),
                    time: *time,
                };
                let client = if number == 8 { Received } else { Sent };
                protocol.feed(piece, Some(client), keep, &mut hear);
            }
            Step::Hole(_, direction, length) => {
                protocol.gap(direction, length, *time, keep, &mut hear);
            }
            Step::Close(_) => {
                protocol.close(*time, keep, &mut hear);
                connections.remove(&number);
            }
        }
    }

    fn close(&mut self) {
        let open: Vec<u64> = self.connections.keys().copied().collect();
        for number in open {
            self.step(&Step::Close(number));
        }
        assert_eq!(self.waiting.bytes(), 0);
    }
}

fn calls(steps: &[Step<'_>]) -> Vec<Call> {
    let mut lab = Lab::new();
    for step in steps {
        lab.step(step);
    }
    lab.close();
    assert_eq!(lab.limits, []);
    lab.told
}

fn told(call: &Call) -> String {
    let text = |value: &Value| value.written().kept;
    let word = |text: &Option<Text>| text.as_ref().map_or("?".into(), |text| text.kept.clone());
    let mut line = match call.from {
        Side::Request => "client ".to_owned(),
        Side::Response => "server ".to_owned(),
    };
    line += &match (call.is_notification, &call.id) {
        (true, None) => "notes".to_owned(),
        (_, id) => id.as_ref().map_or("asks".into(), text),
    };
    line += &format!(" {}", word(&call.method));
    line += &call
        .params
        .as_ref()
        .map_or(String::new(), |params| format!(" {}", text(params)));
    line += &match &call.outcome {
        Some(Outcome::Result(value)) => format!(" -> {}", text(value)),
        Some(Outcome::Error { code, message, .. }) => {
            let code = code.as_deref().unwrap_or("?");
            format!(" -> error {code} {}", word(message))
        }
        None => String::new(),
    };
    line += &call
        .status
        .map_or(String::new(), |status| format!(" refused {status}"));
    let session = call
        .session
        .as_ref()
        .and_then(|session| session.id.as_ref());
    line += &session.map_or(String::new(), |(_, id)| format!(" of {id}"));
    let missing: Vec<_> = call.missing.names().collect();
    if !missing.is_empty() {
        line += &format!(" missing {}", missing.join(" "));
    }
    line
}

fn lines(steps: &[Step<'_>]) -> Vec<String> {
    calls(steps).iter().map(told).collect()
}

/// The same, however one of the steps is cut.
fn cut(steps: &[Step<'_>]) -> Vec<String> {
    let whole = lines(steps);
    for (at, step) in steps.iter().enumerate() {
        let Step::Bytes(number, direction, bytes) = *step else {
            continue;
        };
        let with = |parts: Vec<&[u8]>| {
            let parts: Vec<_> = parts
                .into_iter()
                .map(|part| Step::Bytes(number, direction, part))
                .collect();
            lines(&[&steps[..at], &parts, &steps[at + 1..]].concat())
        };
        for cut in 1..bytes.len() {
            assert_eq!(
                with(vec![&bytes[..cut], &bytes[cut..]]),
                whole,
                "{at} {cut}"
            );
        }
        assert_eq!(with(bytes.chunks(1).collect()), whole, "{at}");
    }
    whole
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// `more`: lines of the head, each with its end.
fn post_to(path: &str, more: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: tools.example\r\n{more}accept: {JSON}, {EVENTS}\r\ncontent-type: {JSON}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn post(body: &str) -> Vec<u8> {
    post_to(
        "/mcp",
        "mcp-session-id: s1\r\nmcp-protocol-version: 2025-06-18\r\n",
        body,
    )
}

fn answer(status: &str, more: &str, media: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\n{more}content-type: {media}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn ok(body: &str) -> Vec<u8> {
    answer("200 OK", "", JSON, body)
}

/// A stream that goes on: its head, and pieces of one event each.
fn stream(events: &[&str]) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {EVENTS}\r\ntransfer-encoding: chunked\r\n\r\n")
            .into_bytes();
    for event in events {
        bytes.extend(piece(event));
    }
    bytes
}

fn piece(data: &str) -> Vec<u8> {
    let event = format!("event: message\r\ndata: {data}\r\n\r\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

const END: &[u8] = b"0\r\n\r\n";

const INITIALIZE: &str = r#"{"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{}},"jsonrpc":"2.0","id":0}"#;
const CALL: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add","arguments":{"a":1}}}"#;
const SUM: &str =
    r#"{"result":{"content":[{"type":"text","text":"2"}],"isError":false},"jsonrpc":"2.0","id":1}"#;

#[test]
fn in_json() {
    let ready = post(r#"{"method":"notifications/initialized","jsonrpc":"2.0"}"#);
    let steps = [
        Step::Bytes(1, Sent, &post_to("/mcp", "", INITIALIZE)),
        Step::Bytes(
            1,
            Received,
            &answer(
                "200 OK",
                "Mcp-Session-Id: s1\r\n",
                JSON,
                r#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18"}}"#,
            ),
        ),
        Step::Bytes(1, Sent, &ready),
        Step::Bytes(1, Received, &answer("202 Accepted", "", JSON, "")),
        Step::Bytes(1, Sent, &post(CALL)),
        Step::Bytes(1, Received, &ok(SUM)),
    ];
    assert_eq!(
        cut(&steps),
        [
            r#"client 0 initialize {"protocolVersion":"2025-06-18","capabilities":{}} -> {"protocolVersion":"2025-06-18"} of s1"#,
            "client notes notifications/initialized of s1",
            r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1"#,
        ]
    );
    let calls = calls(&steps);
    let times: Vec<_> = calls.iter().map(|call| (call.began, call.ended)).collect();
    let times_of = |at: u64| (at * 1_000_000, (at + 1) * 1_000_000);
    assert_eq!(times, [times_of(1), times_of(3), times_of(5)]);
}

/// The same at the other end.
#[test]
fn served() {
    let told = cut(&[
        Step::Bytes(8, Received, &post(CALL)),
        Step::Bytes(8, Sent, &ok(SUM)),
    ]);
    assert_eq!(
        told,
        [
            r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1"#
        ]
    );
}

#[test]
fn in_events() {
    let progress = r#"{"method":"notifications/progress","params":{"progress":1},"jsonrpc":"2.0"}"#;
    let told = cut(&[
        Step::Bytes(1, Sent, &post(CALL)),
        Step::Bytes(1, Received, &stream(&["", progress, SUM])),
        Step::Bytes(1, Received, END),
    ]);
    assert_eq!(
        told,
        [
            r#"server notes notifications/progress {"progress":1} of s1"#,
            r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1"#,
        ]
    );
}

/// Another transport is another matter: one connection, two streams, the later one answered first.
#[test]
fn over_http2() {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let head = |fields: &[(&str, &str)]| {
        let field = |(name, value): &(&str, &str)| {
            let sizes = [name.len(), value.len()].map(|size| u8::try_from(size).unwrap());
            [
                &[0, sizes[0]],
                name.as_bytes(),
                &[sizes[1]],
                value.as_bytes(),
            ]
            .concat()
        };
        fields.iter().flat_map(field).collect::<Vec<u8>>()
    };
    let asked = head(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/mcp"),
        (":authority", "tools.example"),
        ("content-type", JSON),
    ]);
    let answered = |media| head(&[(":status", "200"), ("content-type", media)]);
    let other = CALL.replace("\"id\":1", "\"id\":\"1\"");
    let sent = [
        http2::PREFACE,
        &frame(1, 4, 1, &asked),
        &frame(1, 4, 3, &asked),
        &frame(0, 0, 1, &CALL.as_bytes()[..30]),
        &frame(0, 1, 3, other.as_bytes()),
        &frame(0, 1, 1, &CALL.as_bytes()[30..]),
    ]
    .concat();
    let event = format!("data: {}\n\n", SUM.replace("\"id\":1", "\"id\":\"1\""));
    let received = [
        frame(4, 0, 0, b""),
        frame(1, 4, 3, &answered(EVENTS)),
        frame(0, 1, 3, event.as_bytes()),
        frame(1, 4, 1, &answered(JSON)),
        frame(0, 1, 1, SUM.as_bytes()),
    ]
    .concat();
    let steps = [
        Step::Bytes(1, Sent, &sent),
        Step::Bytes(1, Received, &received),
    ];
    let rest = r#"tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false}"#;
    assert_eq!(
        cut(&steps),
        [format!("client \"1\" {rest}"), format!("client 1 {rest}")]
    );
}

#[test]
fn errors() {
    let told = cut(&[
        Step::Bytes(1, Sent, &post(CALL)),
        Step::Bytes(
            1,
            Received,
            &ok(
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"Unknown tool","data":[1]}}"#,
            ),
        ),
        Step::Bytes(1, Sent, &post(CALL)),
        Step::Bytes(
            1,
            Received,
            &answer("404 Not Found", "", "text/plain", "gone"),
        ),
        // What is refused before it is read has no id, or one that is made up.
        Step::Bytes(1, Sent, &post(CALL)),
        Step::Bytes(
            1,
            Received,
            &answer(
                "400 Bad Request",
                "",
                JSON,
                r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Bad"}}"#,
            ),
        ),
        Step::Bytes(
            1,
            Sent,
            &post(r#"{"jsonrpc":"2.0","method":"notifications/x"}"#),
        ),
        Step::Bytes(
            1,
            Received,
            &answer(
                "400 Bad Request",
                "",
                JSON,
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"Bad"}}"#,
            ),
        ),
        Step::Bytes(
            1,
            Sent,
            &post(r#"{"jsonrpc":"2.0","method":"notifications/y"}"#),
        ),
        Step::Bytes(1, Received, &answer("403 Forbidden", "", "text/plain", "")),
    ]);
    let call = r#"client 1 tools/call {"name":"add","arguments":{"a":1}}"#;
    assert_eq!(
        told,
        [
            format!("{call} -> error -32602 Unknown tool of s1"),
            format!("{call} refused 404 of s1"),
            format!("{call} -> error -32600 Bad of s1"),
            "client notes notifications/x -> error -32600 Bad of s1".into(),
            "client notes notifications/y refused 403 of s1".into(),
        ]
    );
}

/// Until 2025-03-26 a body, and an event, could be a list.
#[test]
fn batches() {
    let asked = format!(
        r#"[{CALL}, {{"jsonrpc":"2.0","method":"notifications/x"}}, {{"jsonrpc":"2.0","id":2,"method":"tools/list"}}]"#
    );
    let answered = format!(r#"[{{"jsonrpc":"2.0","id":2,"result":{{"tools":[]}}}},{SUM}]"#);
    let whole = ok(&answered);
    let streamed = stream(&[&answered]);
    for received in [whole, streamed] {
        let mut told = cut(&[
            Step::Bytes(1, Sent, &post_to("/mcp", "", &asked)),
            Step::Bytes(1, Received, &received),
        ]);
        told.sort();
        assert_eq!(
            told,
            [
                r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false}"#,
                r#"client 2 tools/list -> {"tools":[]}"#,
                "client notes notifications/x",
            ]
        );
    }
}

/// 2026-07-28: no sessions and no handshake, and each request says which version it is of.
#[test]
fn without_sessions() {
    let asked = r#"{"jsonrpc":"2.0","id":1,"method":"x.example/own","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let head = "mcp-protocol-version: 2026-07-28\r\nmcp-method: x.example/own\r\n";
    let input =
        r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{}}}"#;
    let told = cut(&[
        Step::Bytes(1, Sent, &post_to("/", head, asked)),
        Step::Bytes(1, Received, &ok(input)),
    ]);
    assert_eq!(
        told,
        [
            r#"client 1 x.example/own {"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}} -> {"resultType":"input_required","inputRequests":{}}"#
        ]
    );
}

/// What stands behind something strange in a batch is not read, also where both come in one call.
#[test]
fn strangers_in_a_batch() {
    let ping = |id: u8| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
    let asked = post(&format!(
        r#"[{},{{"jsonrpc":"2.0","meth":"x"}},{}]"#,
        ping(1),
        ping(2)
    ));
    let answered = ok(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let steps = [
        Step::Bytes(1, Sent, &asked),
        Step::Bytes(1, Received, &answered),
    ];
    assert_eq!(cut(&steps).len(), 1);
}
