//! What belongs together in other exchanges and on other connections, and what stays without its other half.

use super::*;

const GET: &[u8] = b"GET /mcp HTTP/1.1\r\nhost: tools.example\r\nmcp-session-id: s1\r\naccept: text/event-stream\r\n\r\n";
const SAMPLING: &str =
    r#"{"method":"sampling/createMessage","params":{"maxTokens":9},"jsonrpc":"2.0","id":0}"#;
const SAMPLED: &str = r#"{"jsonrpc":"2.0","id":0,"result":{"role":"assistant"}}"#;

/// A server asks in the stream of a request, or in one that is for that, and the client answers by a request.
#[test]
fn a_server_asks() {
    let steps = |asked: &[u8], answered: &[u8]| {
        cut(&[
            Step::Bytes(1, Sent, asked),
            Step::Bytes(1, Received, &stream(&[SAMPLING])),
            Step::Bytes(2, Sent, answered),
            Step::Bytes(2, Received, &answer("202 Accepted", "", JSON, "")),
            Step::Bytes(1, Received, &piece(SUM)),
            Step::Bytes(1, Received, END),
        ])
    };
    let sampled =
        r#"server 0 sampling/createMessage {"maxTokens":9} -> {"role":"assistant"} of s1"#;
    let sum = r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1"#;
    assert_eq!(steps(&post(CALL), &post(SAMPLED)), [sampled, sum]);
    let loose = r#"client 1 ? -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1 missing request"#;
    assert_eq!(steps(GET, &post(SAMPLED)), [sampled, loose]);
    let other = post_to("/mcp", "mcp-session-id: s2\r\n", SAMPLED);
    assert_eq!(
        steps(GET, &other),
        [
            r#"server 0 ? -> {"role":"assistant"} of s2 missing request"#,
            loose,
            r#"server 0 sampling/createMessage {"maxTokens":9} of s1 missing response"#,
        ]
    );
}

/// A server may close a stream before it answers, and answer in the next one.
#[test]
fn an_answer_in_the_next_stream() {
    let told = cut(&[
        Step::Bytes(1, Sent, &post(CALL)),
        Step::Bytes(1, Received, &stream(&[])),
        Step::Bytes(1, Received, END),
        Step::Bytes(1, Sent, GET),
        Step::Bytes(1, Received, &stream(&[SUM])),
    ]);
    assert_eq!(
        told,
        [
            r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1"#
        ]
    );
}

const OLD_GET: &[u8] =
    b"GET /sse HTTP/1.1\r\nhost: tools.example\r\naccept: text/event-stream\r\n\r\n";

fn endpoint(at: &str) -> Vec<u8> {
    let event = format!("event: endpoint\r\ndata: {at}\r\n\r\n");
    let mut bytes = stream(&[]);
    bytes.extend(format!("{:x}\r\n{event}\r\n", event.len()).into_bytes());
    bytes
}

/// HTTP+SSE of 2024-11-05: every answer is an event of the one stream, before or behind what accepts its request.
#[test]
fn the_older_transport() {
    let asked = post_to("/messages/?session_id=8f", "", CALL);
    let accepted = answer("202 Accepted", "", "text/plain", "Accepted");
    let call = r#"client 1 tools/call {"name":"add","arguments":{"a":1}} -> {"content":[{"type":"text","text":"2"}],"isError":false} of 8f"#;
    for at in [
        "/messages/?session_id=8f",
        "https://tools.example/messages/?session_id=8f",
    ] {
        let began = [
            Step::Bytes(1, Sent, OLD_GET),
            Step::Bytes(1, Received, &endpoint(at)),
            Step::Bytes(2, Sent, &asked),
        ];
        let sum = piece(SUM);
        let [answers, accepts] = [
            Step::Bytes(1, Received, &sum),
            Step::Bytes(2, Received, &accepted),
        ];
        for order in [[answers.clone(), accepts.clone()], [accepts, answers]] {
            assert_eq!(cut(&[&began[..], &order].concat()), [call], "{at}");
        }
    }
    // Another session has the same ids.
    let told = lines(&[
        Step::Bytes(1, Sent, OLD_GET),
        Step::Bytes(1, Received, &endpoint("/messages/?session_id=90")),
        Step::Bytes(2, Sent, &asked),
        Step::Bytes(2, Received, &accepted),
        Step::Bytes(1, Received, &piece(SUM)),
    ]);
    assert_eq!(
        told,
        [
            r#"client 1 ? -> {"content":[{"type":"text","text":"2"}],"isError":false} of 90 missing request"#,
            r#"client 1 tools/call {"name":"add","arguments":{"a":1}} of 8f missing response"#,
        ]
    );
}

#[test]
fn a_client_that_hangs_up() {
    let call = r#"client 1 tools/call {"name":"add","arguments":{"a":1}}"#;
    let hung = |received: &[u8]| {
        lines(&[
            Step::Bytes(1, Sent, &post_to("/mcp", "", CALL)),
            Step::Bytes(1, Received, received),
            Step::Close(1),
        ])
    };
    let unanswered = format!("{call} missing response");
    assert_eq!(hung(&stream(&[])), [&*unanswered]);
    let whole = ok(SUM);
    let body = whole.len() - SUM.len();
    assert_eq!(hung(&whole[..body]), [&*unanswered]);
    // Its id was not seen, and there is no other request that it may be of.
    assert_eq!(
        hung(&whole[..body + 50]),
        [format!(
            r#"{call} -> {{"content":[{{"type":"text","text":"2"}}]}} missing response"#
        )]
    );
    // Half a request: what it is, if that came.
    let asked = post_to("/mcp", "", CALL);
    let half = &asked[..asked.len() - 20];
    assert_eq!(
        lines(&[Step::Bytes(1, Sent, half)]),
        [r#"client 1 tools/call {"name":"add"} missing request response"#]
    );
}

/// Wherever a hole is, there is no call that was not made, and each that was made says that something is missing.
#[test]
fn holes() {
    let (asked, answered) = (post(CALL), ok(SUM));
    let streamed = stream(&[SUM]);
    let call = r#"client 1 tools/call {"name":"add","arguments":{"a":1}}"#;
    let mut seen = 0;
    for (received, at) in [&answered, &streamed]
        .into_iter()
        .flat_map(|bytes| (1..bytes.len()).map(move |at| (bytes, at)))
    {
        let end = (at + 7).min(received.len());
        let told = lines(&[
            Step::Bytes(1, Sent, &asked),
            Step::Bytes(1, Received, &received[..at]),
            Step::Hole(1, Received, (end - at) as u64),
            Step::Bytes(1, Received, &received[end..]),
        ]);
        assert!(told[0].starts_with(call), "{at} {told:?}");
        let is_missing = told.iter().any(|line| line.contains("missing"));
        let has_all = told[0].ends_with(r#""isError":false} of s1"#);
        assert!(is_missing || has_all, "{at} {told:?}");
        seen += usize::from(is_missing);
    }
    assert!(seen > 200, "{seen}");
    let body = asked.len() - CALL.len();
    for at in body..asked.len() - 7 {
        let told = lines(&[
            Step::Bytes(1, Sent, &asked[..at]),
            Step::Hole(1, Sent, 7),
            Step::Bytes(1, Sent, &asked[at + 7..]),
            Step::Bytes(1, Received, &answered),
        ]);
        let [line] = &told[..] else {
            panic!("{at} {told:?}");
        };
        assert!(line.contains(r#"-> {"content""#), "{at} {line}");
        assert!(line.ends_with("missing request"), "{at} {line}");
    }
}

#[test]
fn joined_late() {
    let more = "mcp-session-id: s1\r\n";
    let told = lines(&[Step::Bytes(9, Received, &answer("200 OK", more, JSON, SUM))]);
    assert_eq!(
        told,
        [
            r#"client 1 ? -> {"content":[{"type":"text","text":"2"}],"isError":false} of s1 missing request"#
        ]
    );
    // Nothing says that this is MCP.
    assert_eq!(lines(&[Step::Bytes(9, Received, &ok(SUM))]), [""; 0]);
}
