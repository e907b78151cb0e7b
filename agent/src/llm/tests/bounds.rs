//! Answers that are made to take room: what is kept of them has a bound, and that it was reached is said.

use super::*;
use crate::{
    llm::{MEMBERS_MAX, call::PARTS_MAX},
    protocol::eventstream::encode,
};

/// More than is kept of anything.
const MANY: usize = 3 * PARTS_MAX;

fn answered(path: &str, asked: &str, answer: &[u8]) -> Call {
    let asked = request(path, asked);
    let mut found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, answer)]);
    assert_eq!(found.len(), 1, "{path}");
    found.remove(0)
}

fn stream(piece: impl Fn(usize) -> String) -> Vec<u8> {
    let pieces: Vec<String> = (0..MANY).map(piece).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    response("text/event-stream", &events(&pieces))
}

#[test]
fn parts_of_an_answer() {
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"Hi"}]}"#;
    let cases = [
        (
            "/v1beta/models/m:streamGenerateContent",
            r#"{"contents":[{"parts":[{"text":"Hi"}]}]}"#,
            stream(|at| {
                format!(
                    r#"{{"candidates":[{{"content":{{"parts":[{{"functionCall":{{"name":"f{at}","args":{{}}}}}}]}}}}]}}"#
                )
            }),
        ),
        (
            "/v1/conversations",
            r#"{"inputs":"Hi"}"#,
            stream(|at| {
                format!(
                    r#"{{"type":"function.call.delta","tool_call_id":"c{at}","name":"f","arguments":"x"}}"#
                )
            }),
        ),
        (
            "/v1/messages",
            r#"{"max_tokens":1,"messages":[{"role":"user","content":"Hi"}]}"#,
            stream(|at| {
                format!(
                    r#"{{"type":"content_block_start","index":{at},"content_block":{{"type":"text","text":"x"}}}}"#
                )
            }),
        ),
        (
            "/v1/chat/completions",
            chat,
            stream(|_| {
                r#"{"choices":[{"index":0,"delta":{"content":[{"type":"image_url","image_url":"x"}]}}]}"#.into()
            }),
        ),
    ];
    for (path, asked, answer) in cases {
        let call = answered(path, asked, &answer);
        assert_eq!(call.response.messages[0].parts.len(), PARTS_MAX, "{path}");
        assert!(call.missing.content, "{path}");
        assert_eq!(call.pace.chunks, MANY as u64, "{path}");
    }
    let messages: Vec<u8> = (0..MANY)
        .flat_map(|at| {
            let payload =
                format!(r#"{{"start":{{"toolUse":{{"toolUseId":"t{at}","name":"f"}}}}}}"#);
            let headers = [
                (":message-type", "event"),
                (":event-type", "contentBlockStart"),
            ];
            encode(&headers, payload.as_bytes())
        })
        .collect();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ncontent-length: {}\r\n\r\n",
        messages.len()
    );
    let call = answered(
        "/model/m/converse-stream",
        r#"{"messages":[{"role":"user","content":[{"text":"Hi"}]}]}"#,
        &[head.as_bytes(), &messages].concat(),
    );
    assert_eq!(call.response.messages[0].parts.len(), PARTS_MAX);
    assert!(call.missing.content);
}

/// Numbers that a server makes up take no room.
#[test]
fn numbers_of_answers() {
    let call = answered(
        "/v1beta/models/m:streamGenerateContent",
        r#"{"contents":[{"parts":[{"text":"Hi"}]}]}"#,
        &stream(|at| {
            format!(
                r#"{{"candidates":[{{"index":{},"content":{{"parts":[{{"text":"x"}}]}}}}]}}"#,
                at * 1_000_000_007
            )
        }),
    );
    assert_eq!(call.response.messages.len(), 1);
}

/// Text beyond its room is counted and not kept.
#[test]
fn text_of_an_answer() {
    let (piece, room) = ("x".repeat(1000), crate::llm::ROOM);
    let call = answered(
        "/v1beta/models/m:streamGenerateContent",
        r#"{"contents":[{"parts":[{"text":"Hi"}]}]}"#,
        &stream(|_| {
            format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{piece}"}}]}}}}]}}"#)
        }),
    );
    let Part::Text(text) = &call.response.messages[0].parts[0] else {
        panic!("no text");
    };
    assert!(text.kept.len() <= room && text.is_cut);
    assert_eq!(text.length, (MANY * piece.len()) as u64);
}

/// What embeddings are is not kept, and what stands behind them is.
#[test]
fn numbers_of_embeddings() {
    let numbers = format!(
        "[{}0.5]",
        "-0.0123456789012345,".repeat(crate::llm::ROOM / 64)
    );
    let cases = [
        (
            "/v1/embeddings",
            r#"{"model":"m","input":["Hi","Ho"]}"#,
            format!(
                r#"{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":{numbers}}},
                {{"object":"embedding","index":1,"embedding":{numbers}}}],"model":"m-1","usage":{{"prompt_tokens":8,
                "total_tokens":8}}}}"#
            ),
        ),
        (
            "/v2/embed",
            r#"{"model":"m","texts":["Hi"],"input_type":"search_document"}"#,
            format!(
                r#"{{"id":"1","embeddings":{{"float":[{numbers},{numbers}]}},"response_type":"embeddings_by_type",
                "meta":{{"billed_units":{{"input_tokens":8}}}}}}"#
            ),
        ),
        (
            "/api/embed",
            r#"{"model":"m","input":"Hi"}"#,
            format!(r#"{{"model":"m","embeddings":[{numbers},{numbers}],"prompt_eval_count":8}}"#),
        ),
    ];
    for (path, asked, body) in cases {
        let call = answered(path, asked, &response("application/json", &body));
        assert_eq!(call.response.usage.input, Some(8), "{path}");
        assert_eq!(call.missing.names().count(), 0, "{path}");
    }
}

/// A request is the first value of its body, and whether it is one is not for its cuts to say.
#[test]
fn requests_however_they_are_cut() {
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"Hi"}]}"#;
    let late: String = (0..MEMBERS_MAX)
        .map(|at| format!(r#""a{at}":0,"#))
        .collect();
    let bodies = [
        (format!("{chat} {{\"a\":1}}"), 1),
        (format!("{{{late}{}", &chat[1..]), 0),
        (format!("{{\"model\":\"m\",{late}{}", &chat[13..]), 1),
    ];
    let answer = response("application/json", "{}");
    for (body, count) in bodies {
        let asked = request("/proxy/llm", &body);
        let (first, last) = asked.split_at(asked.len() - 4);
        for parts in [
            vec![&asked[..]],
            vec![first, last],
            asked.chunks(1).collect(),
        ] {
            let mut steps: Vec<_> = parts
                .into_iter()
                .map(|part| Step::Bytes(Sent, part))
                .collect();
            steps.push(Step::Bytes(Received, &answer));
            assert_eq!(calls(&steps).len(), count, "{body}");
        }
    }
}

/// Whatever is kept of a call counts, wherever the API has a place for it.
#[test]
fn all_of_a_call_is_weighed() {
    let word = "long ".repeat(1000);
    let asked = format!(
        r#"{{"model":"{word}","service_tier":"{word}","stop":["{word}"],"messages":[{{"role":"{word}","name":"{word}",
        "content":[{{"type":"image_url","image_url":{{"url":"https://{word}"}}}},
        {{"type":"input_audio","input_audio":{{"data":"{word}","format":"{word}"}}}}],
        "tool_calls":[{{"id":"{word}","function":{{"name":"{word}","arguments":"{word}"}}}}]}},
        {{"role":"tool","tool_call_id":"{word}","name":"{word}","content":"{word}"}}]}}"#
    );
    let answered = format!(
        r#"{{"object":"chat.completion","id":"{word}","model":"{word}","service_tier":"{word}","system_fingerprint":"{word}",
        "error":{{"type":"{word}"}},"choices":[{{"finish_reason":"{word}","message":{{"role":"{word}",
        "tool_calls":[{{"id":"{word}","function":{{"name":"{word}","arguments":"{word}"}}}}]}}}}]}}"#
    );
    let call = answered_call(&asked, &answered);
    let (asked, answered) = (call.request.weight(), call.response.weight());
    assert!(asked >= 14 * word.len(), "{asked}");
    assert!(answered >= 10 * word.len(), "{answered}");
}

fn answered_call(asked: &str, answer: &str) -> Call {
    answered(
        "/v1/chat/completions",
        asked,
        &response("application/json", answer),
    )
}

/// Sums of counts and lengths that a peer makes up are no more than the largest number.
#[test]
fn numbers_that_are_made_up() {
    let most = u64::MAX;
    let call = answered(
        "/v1/messages",
        r#"{"max_tokens":1,"messages":[{"role":"user","content":"Hi"}]}"#,
        &response(
            "application/json",
            &format!(
                r#"{{"type":"message","usage":{{"input_tokens":{most},"output_tokens":{most},
                "cache_read_input_tokens":{most},"cache_creation_input_tokens":{most}}}}}"#
            ),
        ),
    );
    assert_eq!(call.response.usage.input, Some(most));

    // What is no character takes three bytes, and one of it was sent.
    let body = [
        &br#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":"data:"#[..],
        &[0xff; 40],
        br#";base64,QQ=="}]}]}"#,
    ]
    .concat();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let asked = [head.as_bytes(), &body].concat();
    let found = calls(&[Step::Bytes(Sent, &asked)]);
    let Part::Blob { data, .. } = &found[0].request.messages[0].parts[0] else {
        panic!("no blob");
    };
    assert_eq!(
        (data.kept.as_str(), data.decoded().unwrap().size),
        ("QQ==", 1)
    );
    assert_eq!(data.length, 4);
}

/// What a connection holds is nothing any more when nobody hears of it.
#[test]
fn who_leaves_holds_nothing() {
    let (mut calls, mut held) = (Calls::default(), Held::default());
    let (mut protocol, mut keep) = (Protocol::new(true), Keep::new(Bounds::default()));
    let whole = request(
        "/v1/messages",
        &format!("{{\"model\":\"{}\"}}", "long ".repeat(1000)),
    );
    let piece = Piece {
        direction: Sent,
        offset: 0,
        time: 1,
        bytes: Plaintext::new(&whole[..4000]),
    };
    protocol.feed(piece, Some(Sent), &mut keep, &mut |said| match said {
        Said::Head { exchange, side } => calls.head(exchange, side),
        Said::Body {
            exchange,
            side,
            bytes,
        } => calls.body(exchange, side, bytes, 1, &mut held, &mut |_| {}),
        _ => {}
    });
    assert!(held.bytes() > 3000);
    calls.leave(&mut held);
    assert_eq!(held.bytes(), 0);
}

/// A schema of which a part may be missing is known to be that: of a hole, and of what has no room.
#[test]
fn schemas_in_what_is_not_whole() {
    let body = |text: &str| {
        format!(
            r#"{{"model":"m","tools":[{{"type":"function","function":{{"name":"f","parameters":{{"type":"object","b":1}}}}}}],
                "messages":[{{"role":"user","content":"{text}"}}]}}"#
        )
    };
    let answer = response("application/json", r#"{"object":"chat.completion"}"#);
    let is_cut = |steps: &[Step<'_>]| {
        let found = calls(steps);
        let tools = &found[0].request.tools;
        let schema = tools[0].parameters.as_ref().unwrap();
        schema.is_cut
    };
    let whole = request("/v1/chat/completions", &body("Hi"));
    let steps = [Step::Bytes(Sent, &whole), Step::Bytes(Received, &answer)];
    assert!(!is_cut(&steps));
    let at = whole.windows(3).position(|part| part == b"\"b\"").unwrap();
    let steps = [
        Step::Bytes(Sent, &whole[..at]),
        Step::Hole(Sent, 3),
        Step::Bytes(Sent, &whole[at + 3..]),
        Step::Bytes(Received, &answer),
    ];
    assert!(is_cut(&steps));
    let long = request(
        "/v1/chat/completions",
        &body(&"x ".repeat(crate::llm::ROOM)),
    );
    let steps = [Step::Bytes(Sent, &long), Step::Bytes(Received, &answer)];
    assert!(is_cut(&steps));
}
