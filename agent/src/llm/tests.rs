//! Whole connections in, calls out: however they are cut, and with holes.
//!
//! Bodies are as the providers' documentation has them (read in November 2026), with what it warns of: events that
//! nobody knows yet, pings, errors in mid-stream, usage in the last piece only.

mod azure;
mod bedrock;
mod bounds;
mod cohere;
mod compatible;
mod conversations;
mod gemini;
mod ollama;
mod realtime;
mod responses;
mod speed;

use std::cell::RefCell;

use agent_ebpf::Direction::{self, Received, Sent};

use super::{
    Call, Calls, Held,
    call::{Durations, Message, Parameters, Part},
};
use crate::{
    plaintext::Plaintext,
    protocol::{
        Piece, Protocol, Said,
        exchange::{Bounds, Keep},
        json::Text,
    },
};

/// What a connection says, `None` for a hole of so many bytes.
enum Step<'a> {
    Bytes(Direction, &'a [u8]),
    Hole(Direction, u64),
}

/// The calls of a connection.
fn calls(steps: &[Step<'_>]) -> Vec<Call> {
    let (calls, mut held, mut found) = (RefCell::default(), Held::default(), Vec::new());
    let (mut protocol, mut keep) = (Protocol::new(true), Keep::new(Bounds::default()));
    let mut time = 0;
    let mut hear = |said: Said<'_>, time| {
        let limit = &mut |limit| panic!("{limit:?}");
        let calls: &mut Calls = &mut calls.borrow_mut();
        match said {
            Said::Head { exchange, side } => calls.head(exchange, side),
            Said::Body {
                exchange,
                side,
                bytes,
            } => calls.body(exchange, side, bytes, time, &mut held, limit),
            Said::Hole { exchange, side } => calls.hole(exchange, side, time),
            Said::Event {
                exchange, event, ..
            } => calls.event(exchange.id, event, time, &mut held, limit),
            Said::Exchange(exchange) => found.extend(calls.end(exchange, &mut held)),
            Said::Message { direction, message } => {
                let heard = calls.message(direction, message, time, &mut held, limit);
                found.extend(heard.over.into_iter().map(|turn| turn.call));
            }
            Said::Closed => {
                let over = calls.close(&mut held);
                found.extend(over.into_iter().map(|turn| turn.call));
            }
            _ => {}
        }
    };
    for step in steps {
        time += 1_000_000;
        match step {
            Step::Bytes(direction, bytes) => {
                let piece = Piece {
                    direction: *direction,
                    offset: 0,
                    bytes: Plaintext::new(bytes),
                    time,
                };
                protocol.feed(piece, Some(Sent), &mut keep, &mut |said| hear(said, time));
            }
            Step::Hole(direction, length) => {
                protocol.gap(*direction, *length, time, &mut keep, &mut |said| {
                    hear(said, time)
                });
                calls.borrow_mut().gap(*direction);
            }
        }
    }
    protocol.close(time, &mut keep, &mut |said| hear(said, time));
    assert_eq!(held.bytes(), 0);
    found
}

fn part(part: &Part) -> String {
    match part {
        Part::Text(text) => format!("{:?}", text.kept),
        Part::Reasoning(text) => format!("thinks {:?}", text.kept),
        Part::Refusal(text) => format!("refuses {:?}", text.kept),
        Part::Call(call) => format!(
            "calls {} {} {}",
            word(&call.id),
            word(&call.name),
            call.arguments.kept
        ),
        Part::Result(result) => format!("result {} {:?}", word(&result.id), result.result.kept),
        Part::Blob {
            modality,
            media,
            data,
        } => format!(
            "{} {} of {} bytes",
            modality.name(),
            word(media),
            data.decoded().map_or(data.length, |blob| blob.size)
        ),
        Part::Uri { modality, uri } => format!("{} at {}", modality.name(), uri.kept),
        Part::File { modality, id } => format!("{} {}", modality.name(), id.kept),
        Part::Other { kind, .. } => format!("some {}", kind.kept),
    }
}

fn word(text: &Option<Text>) -> &str {
    text.as_ref().map_or("-", |text| &text.kept)
}

fn turn(message: &Message) -> String {
    let parts: Vec<String> = message.parts.iter().map(part).collect();
    let finish = message
        .finish
        .as_ref()
        .map_or(String::new(), |finish| format!(" ({})", finish.kept));
    format!("{}: {}{finish}", word(&message.role), parts.join(", "))
}

/// A call as lines.
fn told(call: &Call) -> Vec<String> {
    let Call {
        format,
        request,
        response,
        missing,
        ..
    } = call;
    let format = format.unwrap();
    let mut lines = vec![format!(
        "{} {} asks {} answers {} {}",
        call.provider().unwrap(),
        format.operation(),
        word(&request.model),
        word(&response.model),
        word(&response.id)
    )];
    lines.extend(
        request
            .instructions
            .iter()
            .map(|told| format!("told {}", part(told))),
    );
    lines.extend(
        request
            .tools
            .iter()
            .map(|tool| format!("tool {}", word(&tool.name))),
    );
    lines.extend(request.messages.iter().map(turn));
    lines.push("->".into());
    lines.extend(response.messages.iter().map(turn));
    let usage = response.usage;
    let counts = [
        ("in", usage.input),
        ("out", usage.output),
        ("cached", usage.cache_read),
        ("cache", usage.cache_creation),
        ("thought", usage.reasoning),
    ];
    let counts: Vec<String> = counts
        .iter()
        .filter_map(|(name, count)| Some(format!("{name} {}", (*count)?)))
        .chain(response.charged.map(|amount| format!("costs {amount}")))
        .collect();
    lines.push(counts.join(", "));
    lines.extend(
        response
            .error
            .as_ref()
            .map(|error| format!("error {}", error.kept)),
    );
    let missing: Vec<_> = missing.names().collect();
    if !missing.is_empty() {
        lines.push(format!("missing {}", missing.join(" ")));
    }
    lines
}

fn request(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: models.example\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn response(media: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The one call of an exchange, the same however its response is cut.
fn one(request: &[u8], response: &[u8]) -> Vec<String> {
    let play = |parts: &[&[u8]]| {
        let mut steps = vec![Step::Bytes(Sent, request)];
        steps.extend(parts.iter().map(|part| Step::Bytes(Received, part)));
        let calls = calls(&steps);
        let [call] = &calls[..] else {
            panic!("{} calls", calls.len());
        };
        told(call)
    };
    let whole = play(&[response]);
    for cut in 1..response.len() {
        assert_eq!(play(&[&response[..cut], &response[cut..]]), whole, "{cut}");
    }
    let bytes: Vec<&[u8]> = response.chunks(1).collect();
    assert_eq!(play(&bytes), whole);
    whole
}

fn events(events: &[&str]) -> String {
    events
        .iter()
        .map(|data| format!("data: {data}\n\n"))
        .collect()
}

const WEATHER: &str = r#"{"model":"gpt-5","messages":[{"role":"developer","content":"Be brief."},
    {"role":"user","content":[{"type":"text","text":"Is it raining?"},
    {"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}},
    {"type":"image_url","image_url":{"url":"https://a.example/sky.png"}}]},
    {"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function",
    "function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}]},
    {"role":"tool","tool_call_id":"call_1","content":"rain"}],
    "tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}],"stream":true,
    "temperature":0.5,"stream_options":{"include_usage":true}}"#;

#[test]
fn chat_in_one_piece() {
    let body = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-5-2026","choices":[
        {"index":0,"message":{"role":"assistant","content":"Yes.","refusal":null,"annotations":[]},"finish_reason":"stop"},
        {"index":1,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"call_2","type":"function",
        "function":{"name":"weather","arguments":"{}"}}]},"finish_reason":"tool_calls"}],
        "usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,
        "prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":4}},
        "service_tier":"default","system_fingerprint":"fp_1"}"#;
    let said = one(
        &request("/v1/chat/completions", WEATHER),
        &response("application/json", body),
    );
    assert_eq!(
        said,
        [
            "openai chat asks gpt-5 answers gpt-5-2026 chatcmpl-1",
            "tool weather",
            "developer: \"Be brief.\"",
            "user: \"Is it raining?\", image image/png of 8 bytes, image at https://a.example/sky.png",
            "assistant: calls call_1 weather {\"city\":\"Oslo\"}",
            "tool: result call_1 \"rain\"",
            "->",
            "assistant: \"Yes.\" (stop)",
            "assistant: calls call_2 weather {} (tool_calls)",
            "in 19, out 10, cached 8, thought 4",
        ]
    );
}

#[test]
fn chat_in_pieces() {
    let body = events(&[
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"content":"Ye"}}],"obfuscation":"x"}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"content":"s"}}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"weather","arguments":""}}]}}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]}}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_2","type":"function","function":{"name":"time","arguments":"{}"}}]}}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Oslo\"}"}}]}}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-5","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#,
        "[DONE]",
    ]);
    let said = one(
        &request("/proxy/llm", WEATHER),
        &response("text/event-stream", &body),
    );
    assert_eq!(
        said[6..],
        [
            "->",
            "assistant: \"Yes\", calls call_1 weather {\"city\":\"Oslo\"}, calls call_2 time {} (tool_calls)",
            "in 3, out 5",
        ]
    );
}

const MESSAGES: &str = r#"{"model":"claude-opus-4-1","max_tokens":1024,"system":[{"type":"text","text":"Be brief.",
    "cache_control":{"type":"ephemeral"}}],"tools":[{"name":"get_weather","input_schema":{"type":"object"}}],
    "messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":[
    {"type":"thinking","thinking":"Hm.","signature":"c2ln"},
    {"type":"tool_use","id":"toolu_1","name":"get_weather","input":{"location":"SF"}}]},
    {"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"15"},
    {"type":"text","text":" degrees"}]},{"type":"image","source":{"type":"base64","media_type":"image/jpeg","data":"/9j/4AAQ"}}]}],
    "stream":true}"#;

#[test]
fn messages_in_pieces() {
    let body = [
        r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"claude-opus-4-1-20250805","stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":2,"cache_read_input_tokens":10,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Let me"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQB"}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hello"}}"#,
        r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"!"}}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_2","name":"get_weather","input":{}}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"location\":"}}"#,
        r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"\"Oslo\"}"}}"#,
        r#"{"type":"something_new","index":2}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":89}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    let said = one(
        &request("/v1/messages?beta=true", MESSAGES),
        &response("text/event-stream; charset=utf-8", &events(&body)),
    );
    assert_eq!(
        said,
        [
            "anthropic chat asks claude-opus-4-1 answers claude-opus-4-1-20250805 msg_1",
            "told \"Be brief.\"",
            "tool get_weather",
            "user: \"Hello\"",
            "assistant: thinks \"Hm.\", calls toolu_1 get_weather {\"location\":\"SF\"}",
            "user: result toolu_1 \"15 degrees\", image image/jpeg of 6 bytes",
            "->",
            "assistant: thinks \"Let me\", \"Hello!\", calls toolu_2 get_weather {\"location\":\"Oslo\"} (tool_use)",
            "in 37, out 89, cached 10, cache 2",
        ]
    );
}

/// A hole has taken the beginnings of blocks: their pieces go on as one part all the same.
#[test]
fn blocks_without_beginning() {
    let body = events(&[
        r#"{"type":"message_start","message":{"id":"msg_1","role":"assistant","content":[],"model":"claude"}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"Hel"}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"lo"}}"#,
        r#"{"type":"content_block_stop","index":3}"#,
        r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":"1}"}}"#,
        r#"{"type":"content_block_stop","index":4}"#,
        r#"{"type":"content_block_delta","index":5,"delta":{"type":"thinking_delta","thinking":"H"}}"#,
        r#"{"type":"content_block_delta","index":5,"delta":{"type":"thinking_delta","thinking":"m."}}"#,
        r#"{"type":"message_stop"}"#,
    ]);
    let said = one(
        &request("/v1/messages", MESSAGES),
        &response("text/event-stream", &body),
    );
    assert_eq!(
        said[7],
        "assistant: \"Hello\", calls t f {\"a\":1}, thinks \"Hm.\""
    );
}

#[test]
fn errors_in_mid_stream() {
    let body = events(&[
        r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"claude","usage":{"input_tokens":25,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"He"}}"#,
        r#"{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}"#,
    ]);
    let said = one(
        &request("/v1/messages", MESSAGES),
        &response("text/event-stream", &body),
    );
    assert_eq!(
        said[7..],
        [
            "assistant: \"He\"",
            "in 25, out 1",
            "error overloaded_error"
        ]
    );
}

#[test]
fn refused_calls_have_their_error() {
    let body = r#"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = one(&request("/v1/chat/completions", WEATHER), answer.as_bytes());
    assert_eq!(said[6..], ["->", "", "error requests"]);
}

/// Who hangs up has called all the same.
#[test]
fn what_is_missing_is_said() {
    let body = events(&[
        r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"model":"claude","usage":{"input_tokens":25,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello, world"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"!"}}"#,
    ]);
    let asked = request("/v1/messages", MESSAGES);
    let answer = response("text/event-stream", &body);
    let answer = &answer[..answer.len() - 3];
    let cut = &answer[..answer.len() - 40];
    let steps = [Step::Bytes(Sent, &asked), Step::Bytes(Received, cut)];
    let found = calls(&steps);
    assert_eq!(
        told(&found[0])[7..],
        [
            "assistant: \"Hello, world\"",
            "in 25, out 1",
            "missing response end"
        ]
    );

    // A hole in the response, and one in the request.
    let at = answer.windows(5).position(|part| part == b"world").unwrap();
    let steps = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at]),
        Step::Hole(Received, 5),
        Step::Bytes(Received, &answer[at + 5..]),
    ];
    let found = calls(&steps);
    let said = told(&found[0]);
    assert!(
        said[7].starts_with("assistant: \"") && said[9] == "missing response end",
        "{said:?}"
    );
    let at = asked.windows(5).position(|part| part == b"Hello").unwrap();
    let steps = [
        Step::Bytes(Sent, &asked[..at]),
        Step::Hole(Sent, 5),
        Step::Bytes(Sent, &asked[at + 5..]),
        Step::Bytes(Received, answer),
    ];
    let found = calls(&steps);
    let said = told(&found[0]);
    assert_eq!(
        said[0],
        "anthropic chat asks claude-opus-4-1 answers claude msg_1"
    );
    assert!(
        said.last().unwrap().starts_with("missing request"),
        "{said:?}"
    );
}

#[test]
fn what_is_no_call_is_none() {
    let cases = [
        (
            "/v1/messages",
            r#"{"to":"+4712345678","body":"hi"}"#,
            r#"{"id":"1"}"#,
        ),
        (
            "/rpc",
            r#"{"jsonrpc":"2.0","method":"x","id":1}"#,
            r#"{"jsonrpc":"2.0","result":1,"id":1}"#,
        ),
        (
            "/cars",
            r#"{"model":"Golf","messages":3}"#,
            r#"{"ok":true}"#,
        ),
        ("/embeddings", r#"[1,2,3]"#, r#"[]"#),
    ];
    for (path, asked, answered) in cases {
        let (asked, answered) = (request(path, asked), response("application/json", answered));
        let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answered)]);
        assert_eq!(found.len(), 0, "{path}");
    }
}

#[test]
fn embeddings_and_completions() {
    let said = one(
        &request(
            "/openai/deployments/e/embeddings?api-version=2024-10-21",
            r#"{"model":"text-embedding-3-small","input":["a","b"],"encoding_format":"float","dimensions":2}"#,
        ),
        &response(
            "application/json",
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-0.2]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
        ),
    );
    assert_eq!(
        said,
        [
            "azure.ai.openai embeddings asks text-embedding-3-small answers text-embedding-3-small -",
            "user: \"a\"",
            "user: \"b\"",
            "->",
            "in 8",
        ]
    );
    let said = one(
        &request(
            "/v1/completions",
            r#"{"model":"m","prompt":"Say","stream":true}"#,
        ),
        &response(
            "text/event-stream",
            &events(&[
                r#"{"id":"cmpl-1","object":"text_completion","choices":[{"text":"This","index":0,"finish_reason":null}],"model":"m"}"#,
                r#"{"id":"cmpl-1","object":"text_completion","choices":[{"text":" is","index":0,"finish_reason":"length"}],"model":"m"}"#,
                "[DONE]",
            ]),
        ),
    );
    assert_eq!(
        said[1..4],
        ["user: \"Say\"", "->", "assistant: \"This is\" (length)"]
    );
}
