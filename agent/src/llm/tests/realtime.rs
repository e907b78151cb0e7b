//! Messages of OpenAI's reference for the Realtime API, of its guide to the WebSocket mode of the Responses API, and
//! of what Codex sends.

use agent_ebpf::Direction::{self, Received, Sent};

use super::{Step, calls, told};

/// What a client asks for, and what the server says to it.
fn upgrade(path: &str) -> [(Direction, Vec<u8>); 2] {
    let asked = format!(
        "GET {path} HTTP/1.1\r\nhost: api.example\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let answered =
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n";
    [(Sent, asked.into_bytes()), (Received, answered.into())]
}

/// A frame with a message, masked with zeros if it is the client's.
fn frame(direction: Direction, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let is_client = direction == Sent;
    let mask = u8::from(is_client) << 7;
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(mask | length as u8),
        length => {
            frame.push(mask | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(if is_client { &[0; 4] } else { &[] });
    frame.extend_from_slice(payload);
    frame
}

fn connection(path: &str, messages: &[(Direction, &str)]) -> Vec<(Direction, Vec<u8>)> {
    let frames = messages
        .iter()
        .map(|(direction, text)| (*direction, frame(*direction, 1, text.as_bytes())));
    upgrade(path).into_iter().chain(frames).collect()
}

fn play(parts: &[(Direction, Vec<u8>)]) -> Vec<Vec<String>> {
    let steps: Vec<Step<'_>> = parts
        .iter()
        .map(|(direction, bytes)| Step::Bytes(*direction, bytes))
        .collect();
    calls(&steps).iter().map(told).collect()
}

/// The calls of a connection, the same however its frames are cut.
fn all(path: &str, messages: &[(Direction, &str)]) -> Vec<Vec<String>> {
    let whole = connection(path, messages);
    let said = play(&whole);
    let bytes: Vec<(Direction, Vec<u8>)> = whole
        .iter()
        .flat_map(|(direction, bytes)| bytes.iter().map(|byte| (*direction, vec![*byte])))
        .collect();
    assert_eq!(play(&bytes), said);
    for at in 2..whole.len() {
        let (direction, bytes) = &whole[at];
        for cut in 1..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let halves = [(*direction, first.to_vec()), (*direction, second.to_vec())];
            let parts = [&whole[..at], &halves, &whole[at + 1..]].concat();
            assert_eq!(play(&parts), said, "{at} {cut}");
        }
    }
    said
}

const SESSION: (Direction, &str) = (
    Received,
    r#"{"type":"session.created","event_id":"event_1","session":{"id":"sess_1","object":"realtime.session","model":"gpt-realtime-2025-08-28","instructions":"Be nice.","tools":[],"output_modalities":["audio"],"max_output_tokens":"inf"}}"#,
);
const UPDATE: (Direction, &str) = (
    Sent,
    r#"{"type":"session.update","session":{"type":"realtime","instructions":"Be brief.","output_modalities":["text"],"max_output_tokens":99,"tools":[{"type":"function","name":"weather","parameters":{"type":"object"}}]}}"#,
);

#[test]
fn a_session_with_text_and_tools() {
    let said = all(
        "/v1/realtime?model=gpt-realtime",
        &[
            SESSION,
            UPDATE,
            (
                Received,
                r#"{"type":"session.updated","event_id":"event_2","session":{"object":"realtime.session","model":"gpt-realtime-2025-08-28"}}"#,
            ),
            (
                Sent,
                r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"Rain?"},{"type":"input_image","image_url":"data:image/png;base64,iVBORw0KGgo="}]}}"#,
            ),
            (
                Received,
                r#"{"type":"conversation.item.added","event_id":"event_3","item":{"id":"item_1","type":"message","role":"user","content":[]}}"#,
            ),
            (Sent, r#"{"type":"response.create"}"#),
            (
                Received,
                r#"{"type":"response.created","event_id":"event_4","response":{"object":"realtime.response","id":"resp_1","status":"in_progress","output":[],"conversation_id":"conv_1","usage":null}}"#,
            ),
            (
                Received,
                r#"{"type":"rate_limits.updated","event_id":"event_5","rate_limits":[]}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_item.added","event_id":"event_6","response_id":"resp_1","output_index":0,"item":{"id":"item_2","object":"realtime.item","type":"function_call","status":"in_progress","name":"weather","call_id":"call_1","arguments":""}}"#,
            ),
            (
                Received,
                r#"{"type":"response.function_call_arguments.delta","event_id":"event_7","response_id":"resp_1","item_id":"item_2","output_index":0,"call_id":"call_1","delta":"{\"city\":"}"#,
            ),
            (
                Received,
                r#"{"type":"response.something_new","response_id":"resp_1"}"#,
            ),
            (
                Received,
                r#"{"type":"response.function_call_arguments.delta","event_id":"event_8","response_id":"resp_1","item_id":"item_2","output_index":0,"call_id":"call_1","delta":"\"Oslo\"}"}"#,
            ),
            (
                Received,
                r#"{"type":"response.done","event_id":"event_9","response":{"object":"realtime.response","id":"resp_1","status":"completed","status_details":null,"output":[],"usage":{"total_tokens":275,"input_tokens":127,"output_tokens":148,"input_token_details":{"text_tokens":119,"audio_tokens":8,"cached_tokens":64},"output_token_details":{"text_tokens":36,"audio_tokens":112}}}}"#,
            ),
            (
                Sent,
                r#"{"type":"conversation.item.create","item":{"type":"function_call_output","call_id":"call_1","output":"rain"}}"#,
            ),
            (
                Sent,
                r#"{"type":"response.create","response":{"instructions":"In Norwegian.","max_output_tokens":5}}"#,
            ),
            (
                Received,
                r#"{"type":"response.created","response":{"object":"realtime.response","id":"resp_2","status":"in_progress","output":[]}}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_text.delta","response_id":"resp_2","item_id":"item_4","output_index":0,"content_index":0,"delta":"J"}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_text.delta","response_id":"resp_2","item_id":"item_4","output_index":0,"content_index":0,"delta":"a"}"#,
            ),
            (
                Received,
                r#"{"type":"response.done","response":{"object":"realtime.response","id":"resp_2","status":"incomplete","status_details":{"type":"incomplete","reason":"max_output_tokens"},"output":[{"id":"item_4","type":"message","role":"assistant","content":[{"type":"output_text","text":"Ja"}]}],"usage":{"input_tokens":7,"output_tokens":1}}}"#,
            ),
        ],
    );
    let [first, second] = &said[..] else {
        panic!("{said:?}");
    };
    assert_eq!(
        first[..],
        [
            "openai chat asks gpt-realtime-2025-08-28 answers - resp_1",
            "told \"Be brief.\"",
            "tool weather",
            "user: \"Rain?\", image image/png of 8 bytes",
            "->",
            "assistant: calls call_1 weather {\"city\":\"Oslo\"} (completed)",
            "in 127, out 148, cached 64",
        ]
    );
    assert_eq!(
        second[..],
        [
            "openai chat asks gpt-realtime-2025-08-28 answers - resp_2",
            "told \"In Norwegian.\"",
            "tool weather",
            "tool: result call_1 \"rain\"",
            "->",
            "assistant: \"Ja\" (max_output_tokens)",
            "in 7, out 1",
        ]
    );
}

/// The server finds out itself when it is spoken to.
#[test]
fn a_session_with_sound() {
    let said = all(
        "/openai/realtime?api-version=2024-10-01-preview&deployment=mine",
        &[
            (
                Sent,
                r#"{"type":"input_audio_buffer.append","audio":"AAAAAAAA"}"#,
            ),
            (
                Received,
                r#"{"type":"input_audio_buffer.speech_started","item_id":"item_1","audio_start_ms":1000}"#,
            ),
            (
                Sent,
                r#"{"type":"input_audio_buffer.append","audio":"AAAA"}"#,
            ),
            (
                Received,
                r#"{"type":"input_audio_buffer.committed","item_id":"item_1"}"#,
            ),
            (
                Received,
                r#"{"type":"response.created","response":{"object":"realtime.response","id":"resp_1","status":"in_progress","output":[]}}"#,
            ),
            (
                Received,
                r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"item_1","content_index":0,"transcript":"Hei?"}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_audio_transcript.delta","response_id":"resp_1","output_index":0,"content_index":0,"delta":"He"}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_audio.delta","response_id":"resp_1","output_index":0,"content_index":0,"delta":"AAAAAAA="}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_audio.delta","response_id":"resp_1","output_index":0,"content_index":0,"delta":"AAAA"}"#,
            ),
            (
                Received,
                r#"{"type":"response.output_audio_transcript.delta","response_id":"resp_1","output_index":0,"content_index":0,"delta":"i."}"#,
            ),
            (
                Received,
                r#"{"type":"response.done","response":{"object":"realtime.response","id":"resp_1","status":"cancelled","status_details":{"type":"cancelled","reason":"turn_detected"},"output":[{"type":"message","role":"assistant","content":[{"type":"output_audio","transcript":"Hei."}]}],"usage":{"input_tokens":4,"output_tokens":5}}}"#,
            ),
        ],
    );
    assert_eq!(
        said,
        [[
            "openai chat asks mine answers - resp_1",
            "user: audio - of 9 bytes",
            "user: \"Hei?\"",
            "->",
            "assistant: \"Hei.\", audio - of 8 bytes (turn_detected)",
            "in 4, out 5",
        ]]
    );
}

const TURN: [(Direction, &str); 6] = [
    (
        Sent,
        r#"{"type":"response.create","model":"gpt-5","instructions":"Code.","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"Find it"}]}],"tools":[{"type":"function","name":"shell"}],"store":false,"stream":true}"#,
    ),
    (
        Received,
        r#"{"type":"codex.rate_limits","plan_type":"plus"}"#,
    ),
    (
        Received,
        r#"{"type":"response.created","response":{"id":"resp_1","object":"response","model":"gpt-5-codex","status":"in_progress","output":[]}}"#,
    ),
    (
        Received,
        r#"{"type":"response.output_item.added","output_index":0,"item":{"type":"function_call","call_id":"call_1","name":"shell","arguments":""}}"#,
    ),
    (
        Received,
        r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{\"command\":[\"ls\"]}"}"#,
    ),
    (
        Received,
        r#"{"type":"response.completed","response":{"id":"resp_1","object":"response","status":"completed","output":[],"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":2}}}"#,
    ),
];

/// One response after the other, each with what is new. Gateways have paths of their own.
#[test]
fn responses_over_a_socket() {
    let mut messages = TURN.to_vec();
    messages.extend([
        (Sent, r#"{"type":"response.create","model":"gpt-5","previous_response_id":"resp_1","input":[{"type":"function_call_output","call_id":"call_1","output":"a.txt"}]}"#),
        (Received, r#"{"type":"response.created","response":{"id":"resp_2","object":"response","model":"gpt-5-codex","output":[]}}"#),
        (Received, r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"Done."}"#),
        (Received, r#"{"type":"error","status":500,"error":{"type":"server_error","code":"server_error","message":"Oops"}}"#),
        (Sent, r#"{"type":"response.create","model":"gpt-5","previous_response_id":"resp_9","input":"More"}"#),
        (Received, r#"{"type":"error","status":400,"error":{"code":"previous_response_not_found","message":"No"}}"#),
    ]);
    for path in ["/v1/responses", "/backend-api/codex/responses", "/proxy/ws"] {
        let said = match path {
            "/v1/responses" => all(path, &messages),
            _ => play(&connection(path, &messages)),
        };
        let [first, second, third] = &said[..] else {
            panic!("{said:?}");
        };
        assert_eq!(
            first[..],
            [
                "openai chat asks gpt-5 answers gpt-5-codex resp_1",
                "told \"Code.\"",
                "tool shell",
                "user: \"Find it\"",
                "->",
                "assistant: calls call_1 shell {\"command\":[\"ls\"]} (completed)",
                "in 9, out 2, cached 4",
            ]
        );
        assert_eq!(
            second[1..],
            [
                "tool: result call_1 \"a.txt\"",
                "->",
                "assistant: \"Done.\"",
                "",
                "error server_error"
            ]
        );
        assert_eq!(
            third[1..],
            [
                "user: \"More\"",
                "->",
                "",
                "error previous_response_not_found"
            ]
        );
    }
}

/// Several at a time are told apart by their lanes.
#[test]
fn lanes() {
    let created = |lane: &str, id: &str| {
        format!(
            r#"{{"type":"response.created","stream_id":"{lane}","response":{{"id":"{id}","object":"response"}}}}"#
        )
    };
    let asks = |lane: &str| {
        format!(r#"{{"type":"response.create","stream_id":"{lane}","model":"m","input":"{lane}"}}"#)
    };
    let says = |lane: &str| {
        format!(
            r#"{{"type":"response.output_text.delta","stream_id":"{lane}","output_index":0,"delta":"to {lane}"}}"#
        )
    };
    let ends = |lane: &str| {
        format!(
            r#"{{"type":"response.completed","stream_id":"{lane}","response":{{"status":"completed"}}}}"#
        )
    };
    let messages = [
        (Sent, asks("a")),
        (Sent, asks("b")),
        (Received, created("b", "resp_b")),
        (Received, created("a", "resp_a")),
        (Received, says("a")),
        (Received, says("b")),
        (Received, ends("a")),
        (Received, ends("b")),
    ];
    let messages: Vec<_> = messages
        .iter()
        .map(|(from, text)| (*from, text.as_str()))
        .collect();
    let said = play(&connection("/v1/responses", &messages));
    for (call, lane) in said.iter().zip(["a", "b"]) {
        assert_eq!(
            call[..],
            [
                format!("openai chat asks m answers - resp_{lane}"),
                format!("user: \"{lane}\""),
                "->".into(),
                format!("assistant: \"to {lane}\" (completed)"),
                String::new(),
            ]
        );
    }
    assert_eq!(said.len(), 2);
}

/// Who hangs up has called all the same, whether it says so or not; and holes are said.
#[test]
fn what_is_missing_is_said() {
    let mut cut = connection("/v1/responses", &TURN[..5]);
    let expected = [
        "assistant: calls call_1 shell {\"command\":[\"ls\"]}",
        "",
        "missing end",
    ];
    assert_eq!(play(&cut)[0][5..], expected);
    cut.push((Sent, frame(Sent, 8, &[3, 232])));
    let said = play(&cut);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0][5..], expected);

    let whole = connection("/v1/responses", &TURN);
    let steps = |holes: &[usize]| {
        let steps = whole.iter().enumerate();
        let steps: Vec<Step<'_>> = steps
            .map(|(at, (direction, bytes))| match holes.contains(&at) {
                true => Step::Hole(*direction, bytes.len() as u64),
                false => Step::Bytes(*direction, bytes),
            })
            .collect();
        let found = calls(&steps);
        assert_eq!(found.len(), 1);
        told(&found[0])
    };
    // The item begins in it.
    assert_eq!(
        steps(&[5])[5..],
        [
            "assistant: calls - - {\"command\":[\"ls\"]} (completed)",
            "in 9, out 2, cached 4",
            "missing response"
        ]
    );
    // The request.
    let said = steps(&[2]);
    assert_eq!(said[0], "openai chat asks - answers gpt-5-codex resp_1");
    assert_eq!(said.last().unwrap(), "missing request");
}

/// What is in a hole may have been said before a response was asked for.
#[test]
fn holes_before_a_response() {
    let item = |text: &str| {
        format!(
            r#"{{"type":"conversation.item.create","item":{{"type":"message","role":"user","content":"{text}"}}}}"#
        )
    };
    let (first, second) = (item("One"), item("Two"));
    let done = r#"{"type":"response.done","response":{"id":"resp_1","status":"failed","status_details":{"type":"failed","error":{"type":"server_error","code":null}}}}"#;
    let whole = connection(
        "/v1/realtime",
        &[
            (Sent, &first),
            (Sent, &second),
            (Sent, r#"{"type":"response.create"}"#),
            (
                Received,
                r#"{"type":"response.created","response":{"id":"resp_1"}}"#,
            ),
            (Received, done),
        ],
    );
    let steps = whole.iter().enumerate();
    let steps: Vec<Step<'_>> = steps
        .map(|(at, (direction, bytes))| match at {
            3 => Step::Hole(*direction, bytes.len() as u64),
            _ => Step::Bytes(*direction, bytes),
        })
        .collect();
    let found = calls(&steps);
    assert_eq!(
        told(&found[0])[1..],
        [
            "user: \"One\"",
            "->",
            "",
            "error server_error",
            "missing request"
        ]
    );
}

/// What is said over most sockets is something else.
#[test]
fn what_is_no_call_is_none() {
    let chat = r#"{"type":"message","text":"Hi"}"#;
    let mut messages = vec![(Sent, chat); 6];
    messages.extend([(Received, chat); 6]);
    messages.extend(TURN);
    assert_eq!(play(&connection("/chat", &messages)).len(), 0);
    assert_eq!(play(&connection("/v1/responses", &messages)).len(), 1);
}

/// What one end makes up costs little.
#[test]
fn what_is_kept_is_bounded() {
    let item = (
        Sent,
        r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":"a"}}"#,
    );
    let mut messages = vec![item; 300];
    messages.extend([(Sent, r#"{"type":"response.create"}"#); 40]);
    let said = play(&connection("/v1/realtime", &messages));
    assert_eq!(said.len(), 40);
    // All but the messages: what it is, the arrow, the counts, what is missing.
    assert_eq!(said[0].len(), 256 + 4);
    assert_eq!(said[0].last().unwrap(), "missing end content");
    assert_eq!(said[1].len(), 4);
}
