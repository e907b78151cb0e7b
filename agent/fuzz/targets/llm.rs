//! Calls to language models: any connection, any bodies, and answers that are known.
//!
//! They never panic, hold what they are bound to at most and nothing when the connection is over, and tell the same
//! however the bytes were cut into calls. Of what came in pieces each is told once; where a part is missing, it is
//! said that something is.
//!
//! An input is four bytes that say how it is cut, one that says what the rest is, and that: calls (see [`steps`]);
//! a path, a media type, and two bodies with a NUL between them; or choices that make an answer.
#![no_main]

use std::{cell::RefCell, fmt::Write as _};

use libfuzzer_sys::fuzz_target;
use play::{
    Choices, is_long, memory,
    talk::{self, Step, cut, framed, has_gap, over_and_over, steps, with_hole},
    told::BOUNDS,
};
use vortex_agent::{
    llm::{
        Call, Calls, Held,
        call::{Message, Part, Request, Tool},
    },
    protocol::{Protocol, Said, Side, exchange::Keep, json::Text},
};

/// What open calls may hold in all, and decoders besides.
const KEPT_MAX: usize = 24 << 20;
const LONG: usize = 1 << 20;

const PATHS: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/responses",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/v2/chat",
    "/v1/chat",
    "/v1beta/models/m:streamGenerateContent",
    "/v1beta/models/m:generateContent?alt=sse",
    "/model/m/converse-stream",
    "/model/m/invoke",
    "/v1/conversations",
    "/proxy/llm",
];
const MEDIA: [&str; 4] = [
    "application/json",
    "text/event-stream",
    "application/x-ndjson",
    "application/vnd.amazon.eventstream",
];

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let cuts = choices.array();
    match choices.byte() {
        0 if is_long(input) => long(&steps(choices.0)),
        0 => connection(&steps(choices.0), cuts),
        1 => bodies(&mut choices, cuts),
        _ => known(&mut choices, cuts),
    }
});

/// The same connection goes on and on: what is kept has a bound.
fn long(steps: &[Step]) {
    let mut line = Line::new();
    memory::assert_kept(over_and_over(steps, LONG), KEPT_MAX, |step| {
        line.step(step, &mut |_| {});
    });
}

fn connection(steps: &[Step], cuts: [u8; 4]) {
    let (whole, is_astray) = play(steps);
    if has_gap(steps) || is_astray {
        return;
    }
    let (cut, is_astray) = play(&cut(steps, cuts));
    if !is_astray {
        assert_eq!(whole, cut);
    }
}

fn bodies(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let (path, media) = (choices.of(&PATHS), choices.of(&MEDIA));
    let mut bodies = choices.0.splitn(2, |byte| *byte == 0);
    let asked = request(path, bodies.next().unwrap_or_default());
    let answered = response(media, bodies.next().unwrap_or_default());
    let steps = [
        Step::Bytes(Side::Request, asked),
        Step::Bytes(Side::Response, answered),
    ];
    connection(&steps, cuts);
}

fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn response(media: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection, and the calls that it says.
struct Line {
    protocol: Protocol,
    keep: Keep,
    calls: RefCell<Calls>,
    held: Held,
    is_astray: bool,
}

impl Line {
    fn new() -> Line {
        Line {
            protocol: Protocol::new(true),
            keep: Keep::new(BOUNDS),
            calls: RefCell::default(),
            held: Held::default(),
            is_astray: false,
        }
    }

    fn step(&mut self, step: &Step, tell: &mut dyn FnMut(Call)) {
        let Line {
            protocol,
            keep,
            calls,
            held,
            is_astray,
        } = self;
        let hear = &mut |said: Said<'_>| hear(said, &mut calls.borrow_mut(), held, is_astray, tell);
        step.play(0, protocol, keep, hear);
        if let Step::Gap(side, _) = step {
            calls.borrow_mut().gap(talk::direction_of(*side));
        }
    }

    fn close(&mut self, tell: &mut dyn FnMut(Call)) {
        let Line {
            protocol,
            keep,
            calls,
            held,
            is_astray,
        } = self;
        protocol.close(7, keep, &mut |said| {
            hear(said, &mut calls.borrow_mut(), held, is_astray, tell);
        });
        assert_eq!(held.bytes(), 0, "nothing is open");
    }
}

fn hear(
    said: Said<'_>,
    calls: &mut Calls,
    held: &mut Held,
    is_astray: &mut bool,
    tell: &mut dyn FnMut(Call),
) {
    let limit = &mut |limit| panic!("{limit:?} of so little");
    match said {
        Said::Head { exchange, side } => calls.head(exchange, side),
        Said::Body {
            exchange,
            side,
            bytes,
        } => calls.body(exchange, side, bytes, 7, held, limit),
        Said::Hole { exchange, side } => calls.hole(exchange, side, 7),
        Said::Event {
            exchange, event, ..
        } => calls.event(exchange.id, event, 7, held, limit),
        Said::Exchange(exchange) => {
            if let Some(call) = calls.end(exchange, held) {
                let part_of = |half: Option<&vortex_agent::protocol::exchange::Half>| {
                    half.is_none_or(|half| half.lost > 0)
                };
                assert!(call.missing.request || !part_of(exchange.request()));
                assert!(call.missing.response || !part_of(exchange.response()));
                tell(call);
            }
        }
        Said::Message { direction, message } => {
            let over = calls.message(direction, message, 7, held, limit).over;
            over.into_iter().for_each(|turn| tell(turn.call));
        }
        Said::Closed => {
            let over = calls.close(held);
            over.into_iter().for_each(|turn| tell(turn.call));
        }
        Said::Data { is_stray, .. } => *is_astray |= is_stray,
        _ => {}
    }
}

/// All that is told, and whether bytes belonged to no message.
fn play(steps: &[Step]) -> (Vec<String>, bool) {
    let (calls, is_astray) = calls(steps);
    (calls.iter().map(told).collect(), is_astray)
}

fn calls(steps: &[Step]) -> (Vec<Call>, bool) {
    let (mut line, mut calls) = (Line::new(), Vec::new());
    for step in steps {
        line.step(step, &mut |call| calls.push(call));
    }
    line.close(&mut |call| calls.push(call));
    (calls, line.is_astray)
}

/// All of a call.
fn told(call: &Call) -> String {
    let Call {
        format,
        request,
        response,
        pace,
        missing,
        ..
    } = call;
    let mut out = format!("{format:?} {:?} {pace:?} {missing:?}", call.provider());
    let Request {
        model,
        parameters,
        instructions,
        messages,
        tools,
        conversation,
        previous,
        service_tier,
    } = request;
    words(&mut out, &[model, conversation, previous, service_tier]);
    let lists = [&parameters.stop_sequences, &parameters.encoding_formats];
    lists
        .into_iter()
        .flatten()
        .for_each(|text| word(&mut out, text));
    let _ = write!(out, "{parameters:?}");
    parts(&mut out, instructions);
    turns(&mut out, messages);
    for tool in tools {
        let Tool {
            kind,
            name,
            description,
            parameters,
        } = tool;
        words(&mut out, &[kind, name, description, parameters]);
    }
    let ids = [
        &response.id,
        &response.model,
        &response.error,
        &response.service_tier,
    ];
    words(&mut out, &ids);
    words(&mut out, &[&response.fingerprint, &response.conversation]);
    turns(&mut out, &response.messages);
    let _ = write!(out, "{:?} {}", response.usage, response.is_over);
    out
}

fn turns(out: &mut String, messages: &[Message]) {
    for message in messages {
        words(out, &[&message.role, &message.name, &message.finish]);
        parts(out, &message.parts);
    }
}

fn parts(out: &mut String, all: &[Part]) {
    for part in all {
        let _ = write!(out, " {part:?}");
        match part {
            Part::Text(text) | Part::Reasoning(text) | Part::Refusal(text) => word(out, text),
            Part::Call(call) => {
                words(out, &[&call.id, &call.name]);
                word(out, &call.arguments);
            }
            Part::Result(result) => {
                words(out, &[&result.id, &result.name]);
                word(out, &result.result);
            }
            Part::Blob { media, data, .. } => {
                words(out, &[media]);
                word(out, data);
            }
            Part::Uri { uri: text, .. }
            | Part::File { id: text, .. }
            | Part::Other { kind: text, .. } => {
                word(out, text);
            }
        }
    }
}

fn words(out: &mut String, all: &[&Option<Text>]) {
    for text in all {
        match text {
            Some(text) => word(out, text),
            None => out.push_str(" -"),
        }
    }
}

fn word(out: &mut String, text: &Text) {
    let Text {
        kept,
        length,
        is_cut,
        blob,
    } = text;
    let _ = write!(out, " {kept:?} {length} {is_cut} {blob:?}");
}

/// How an answer comes, of which nothing but its text, who made it and what it took is told here.
struct Api {
    path: &'static str,
    asked: &'static str,
    media: &'static str,
    /// A piece with this text, and what is behind all of them, with counts of tokens.
    piece: fn(&str) -> String,
    end: fn(u64, u64) -> Vec<String>,
}

const APIS: [Api; 6] = [
    Api {
        path: "/v1/chat/completions",
        asked: r#"{"messages":[{"role":"user","content":"ASKED"}],"model":"m","stream":true}"#,
        media: "text/event-stream",
        piece: |text| {
            format!(
                r#"{{"object":"chat.completion.chunk","choices":[{{"delta":{{"content":"{text}"}}}}]}}"#
            )
        },
        end: |input, output| {
            let usage = format!(
                r#"{{"choices":[],"usage":{{"prompt_tokens":{input},"completion_tokens":{output}}}}}"#
            );
            vec![usage, "[DONE]".to_owned()]
        },
    },
    Api {
        path: "/v1/messages",
        asked: r#"{"max_tokens":1,"messages":[{"role":"user","content":[{"type":"text","text":"ASKED"}]}],"model":"m"}"#,
        media: "text/event-stream",
        piece: |text| {
            format!(
                r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#
            )
        },
        end: |input, output| {
            let usage = format!(
                r#"{{"type":"message_delta","delta":{{}},"usage":{{"input_tokens":{input},"output_tokens":{output}}}}}"#
            );
            vec![usage, r#"{"type":"message_stop"}"#.to_owned()]
        },
    },
    Api {
        path: "/v1/responses",
        asked: r#"{"input":"ASKED","model":"m"}"#,
        media: "text/event-stream",
        piece: |text| {
            format!(
                r#"{{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"{text}"}}"#
            )
        },
        end: |input, output| {
            vec![format!(
                r#"{{"type":"response.completed","response":{{"status":"completed","output":[],"usage":{{"input_tokens":{input},"output_tokens":{output}}}}}}}"#
            )]
        },
    },
    Api {
        path: "/api/chat",
        asked: r#"{"messages":[{"role":"user","content":"ASKED"}],"model":"m"}"#,
        media: "application/x-ndjson",
        piece: |text| {
            format!(r#"{{"created_at":"","message":{{"content":"{text}"}},"done":false}}"#)
        },
        end: |input, output| {
            vec![format!(
                r#"{{"created_at":"","message":{{}},"done":true,"prompt_eval_count":{input},"eval_count":{output}}}"#
            )]
        },
    },
    Api {
        path: "/v1beta/models/m:streamGenerateContent",
        asked: r#"{"contents":[{"parts":[{"text":"ASKED"}]}]}"#,
        media: "application/json",
        piece: |text| {
            format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}]}}}}]}}"#)
        },
        end: |input, output| {
            vec![format!(
                r#"{{"candidates":[{{"finishReason":"STOP"}}],"usageMetadata":{{"promptTokenCount":{input},"candidatesTokenCount":{output}}}}}"#
            )]
        },
    },
    Api {
        path: "/model/m/converse-stream",
        asked: r#"{"messages":[{"role":"user","content":[{"text":"ASKED"}]}]}"#,
        media: "application/vnd.amazon.eventstream",
        piece: |text| format!(r#"contentBlockDelta {{"delta":{{"text":"{text}"}}}}"#),
        end: |input, output| {
            vec![format!(
                r#"metadata {{"usage":{{"inputTokens":{input},"outputTokens":{output}}}}}"#
            )]
        },
    },
];

/// Behind each piece: nothing that is told may have it.
const BETWEEN: &str = ".";

fn known(choices: &mut Choices<'_>, cuts: [u8; 4]) {
    let ahead = choices.ahead();
    let at = choices.below(APIS.len());
    let api = &APIS[at];
    let question = choices.letters(30);
    let count = 1 + choices.below(6);
    let words: Vec<String> = (0..count).map(|_| choices.letters(20) + BETWEEN).collect();
    let (input, output) = (choices.byte().into(), choices.byte().into());
    let mut pieces: Vec<String> = words.iter().map(|word| (api.piece)(word)).collect();
    pieces.extend((api.end)(input, output));
    let steps = [
        Step::Bytes(
            Side::Request,
            request(api.path, api.asked.replace("ASKED", &question).as_bytes()),
        ),
        Step::Bytes(
            Side::Response,
            response(api.media, &body(api.media, &pieces)),
        ),
    ];
    for steps in [steps.to_vec(), cut(&steps, cuts)] {
        let (calls, _) = calls(&steps);
        let [call] = &calls[..] else {
            panic!("{} calls", calls.len());
        };
        assert_eq!(call.missing.names().count(), 0, "{:?}", call.missing);
        let model = call.request.model.as_ref().map(|model| &*model.kept);
        assert_eq!(model, Some("m"));
        assert_eq!(text_of(&call.request.messages[0]), question);
        assert_eq!(text_of(&call.response.messages[0]), words.concat());
        let usage = call.response.usage;
        assert_eq!((usage.input, usage.output), (Some(input), Some(output)));
    }

    // A hole in the answer: words that it did not touch are told as they were, in order, and of no others more than
    // their beginning or their end.
    let Step::Bytes(_, answer) = &steps[1] else {
        return;
    };
    let head = response(api.media, b"").len();
    let body = answer.len() - head;
    let hole = Choices(&ahead).range(body);
    let (calls, _) = calls(&with_hole(&steps, 1, head + hole.start..head + hole.end));
    let [call] = &calls[..] else {
        panic!("{} calls", calls.len());
    };
    assert!(call.missing.response);
    let told = call
        .response
        .messages
        .first()
        .map_or_else(String::new, text_of);
    let mut left = words.iter();
    for said in told.split_inclusive(BETWEEN) {
        let is_part = |word: &String| word.starts_with(said) || word.ends_with(said);
        assert!(
            left.any(is_part) || is_torn(said, &words),
            "{said:?} of {words:?}"
        );
    }
}

/// What else there is was torn.
fn text_of(message: &Message) -> String {
    let text = |part: &Part| match part {
        Part::Text(text) => Some(text.kept.clone()),
        _ => None,
    };
    message.parts.iter().filter_map(text).collect()
}

/// The beginning of one and the end of another, which a hole put together.
fn is_torn(said: &str, words: &[String]) -> bool {
    (0..=said.len()).any(|at| {
        let (first, last) = said.split_at(at);
        let begins = words.iter().position(|word| word.starts_with(first));
        let ends = words.iter().rposition(|word| word.ends_with(last));
        begins.zip(ends).is_some_and(|(first, last)| first <= last)
    })
}

fn body(media: &str, pieces: &[String]) -> Vec<u8> {
    match media {
        "text/event-stream" => pieces
            .iter()
            .flat_map(|piece| format!("data: {piece}\n\n").into_bytes())
            .collect(),
        "application/x-ndjson" => pieces
            .iter()
            .flat_map(|piece| format!("{piece}\n").into_bytes())
            .collect(),
        "application/json" => format!("[{}]", pieces.join(",\n")).into_bytes(),
        _ => pieces.iter().flat_map(|piece| message(piece)).collect(),
    }
}

/// A message of Amazon's event stream: its type, a blank, and what it says.
fn message(piece: &str) -> Vec<u8> {
    let (kind, payload) = piece.split_once(' ').expect("a blank");
    let mut headers = Vec::new();
    for (name, value) in [(":message-type", "event"), (":event-type", kind)] {
        headers.push(name.len() as u8);
        headers.extend(name.bytes());
        headers.extend([7, 0, value.len() as u8]);
        headers.extend(value.bytes());
    }
    framed(&headers, payload.as_bytes())
}
