//! What is no MCP, and what is too much.

use super::*;
use crate::mcp::{DONE_MAX, ROOM};

#[test]
fn others_are_not_taken_for_it() {
    for body in [
        // Ethereum, A2A and a language server.
        r#"{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[]}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"id":"1"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"rootUri":null}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"tools/call"}"#,
        r#"{"id":1,"method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","model":"m"}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"Hi"}]}"#,
        "[1,2]",
        "{",
        "",
    ] {
        let asked = post_to("/mcp", "", body);
        let told = lines(&[
            Step::Bytes(1, Sent, &asked),
            Step::Bytes(1, Received, &ok(SUM)),
            Step::Bytes(1, Sent, &asked),
            Step::Bytes(1, Received, &stream(&[SUM])),
        ]);
        assert_eq!(told, [""; 0], "{body}");
    }
    let get = b"GET /ticks HTTP/1.1\r\nhost: x\r\n\r\n";
    let told = lines(&[
        Step::Bytes(1, Sent, get),
        Step::Bytes(1, Received, &stream(&["tick", "{}", SUM])),
    ]);
    assert_eq!(told, [""; 0]);
}

/// They have names that others use, too: where MCP is spoken they are meant.
#[test]
fn shared_methods() {
    let ping = post_to("/mcp", "", r#"{"jsonrpc":"2.0","id":5,"method":"ping"}"#);
    let told = lines(&[
        Step::Bytes(1, Sent, &post_to("/mcp", "", CALL)),
        Step::Bytes(1, Received, &ok(SUM)),
        Step::Bytes(1, Sent, &ping),
        Step::Bytes(1, Received, &ok(r#"{"jsonrpc":"2.0","id":5,"result":{}}"#)),
    ]);
    assert_eq!(told[1..], ["client 5 ping -> {}"]);
}

/// What nobody wants is not read: a body of another kind is given up at its first strange member.
#[test]
fn a_strange_body_is_not_kept() {
    let body = format!(r#"{{"messages":[{{"content":"{}""#, "x ".repeat(50_000));
    let head = post_to("/v1/messages", "", "");
    let head = String::from_utf8(head).unwrap();
    let head = head.replace("content-length: 0", "content-length: 200000");
    let mut lab = Lab::new();
    lab.step(&Step::Bytes(1, Sent, head.as_bytes()));
    lab.step(&Step::Bytes(1, Sent, body.as_bytes()));
    assert_eq!(lab.waiting.bytes(), 0);
    assert!(lab.connections[&1].1.open.is_empty());
    lab.close();
    assert_eq!(lab.told.len(), 0);
}

/// In the order of TypeScript's SDK the id comes behind what takes all room.
#[test]
fn a_long_argument_is_cut() {
    let long = "word ".repeat(ROOM / 5 + 1);
    let asked = format!(
        r#"{{"method":"tools/call","params":{{"name":"add","arguments":{{"a":"{long}"}}}},"jsonrpc":"2.0","id":1}}"#
    );
    let answered = SUM.replace("\"2\"", &format!("\"{long}\""));
    let told = calls(&[
        Step::Bytes(1, Sent, &post(&asked)),
        Step::Bytes(1, Received, &ok(&answered)),
    ]);
    let [call] = &told[..] else {
        panic!("{}", told.len());
    };
    assert_eq!(call.missing.names().collect::<Vec<_>>(), ["content"]);
    assert!(call.weight() > ROOM && call.weight() < 2 * ROOM + 1000);
    assert!(call.has_method("tools/call") && !call.is_notification);
}

/// Requests that nobody answers: the oldest of the connection makes room, and all are told of once.
#[test]
fn unanswered_requests_are_bounded() {
    const MANY: usize = 600;
    let mut lab = Lab::new();
    let mut most = 0;
    for id in 0..MANY {
        let asked = post(&CALL.replace("\"id\":1", &format!("\"id\":{id}")));
        lab.step(&Step::Bytes(1, Sent, &asked));
        lab.step(&Step::Bytes(
            1,
            Received,
            &answer("202 Accepted", "", JSON, ""),
        ));
        most = most.max(lab.waiting.bytes());
    }
    assert_eq!(lab.told.len(), MANY - 256);
    assert!(most < 256 * 2048, "{most}");
    // One of another connection has no older one to push out.
    lab.step(&Step::Bytes(2, Sent, &post(CALL)));
    lab.step(&Step::Bytes(2, Received, &ok("")));
    assert_eq!(lab.told.len(), MANY - 256 + 1);
    lab.close();
    assert_eq!(lab.told.len(), MANY + 1);
    assert!(lab.told.iter().all(|call| call.missing.response));
}

#[test]
fn a_batch_without_end_is_bounded() {
    let notes = vec![r#"{"jsonrpc":"2.0","method":"notifications/x"}"#; 2 * DONE_MAX];
    let body = format!("[{}]", notes.join(","));
    let mut lab = Lab::new();
    lab.step(&Step::Bytes(1, Sent, &post(&body)));
    lab.step(&Step::Bytes(
        1,
        Received,
        &answer("202 Accepted", "", JSON, ""),
    ));
    lab.close();
    assert_eq!(
        (lab.told.len(), &lab.limits[..]),
        (DONE_MAX, &[Limit::Memory][..])
    );
}
