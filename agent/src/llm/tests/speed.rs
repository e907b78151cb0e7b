//! How fast calls are read, from the bytes of their connection on.

use std::{hint::black_box, time::Instant};

use super::*;

/// Bytes of each measurement, at least.
const TOTAL: usize = 512 << 20;

/// A conversation of many turns: what agents send each time. About 300 KiB.
fn conversation() -> String {
    let turn = |number: usize| {
        let text = format!(
            "Line {number}: fn main() {{ println!(\\\"{{}}\\\", {number}); }}\\nIt was the best of times, "
        );
        let (user, answer) = (text.repeat(12), text.repeat(20));
        format!(
            "{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"{user}\"}}]}},\
             {{\"role\":\"assistant\",\"content\":\"{answer}\"}}"
        )
    };
    let turns: Vec<String> = (0..120).map(turn).collect();
    let turns = turns.join(",");
    format!(
        "{{\"model\":\"m\",\"stream\":true,\"messages\":[{turns},{{\"role\":\"user\",\"content\":\"Go on.\"}}]}}"
    )
}

/// An answer in small pieces, as models say them.
fn streamed(pieces: usize) -> Vec<u8> {
    let event = |number: usize| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\
             \"system_fingerprint\":\"fp_1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{number}\"}},\
             \"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
        )
    };
    let events: String = (0..pieces).map(event).collect();
    let end = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\
        \"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let length = events.len() + end.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{events}{end}"
    )
    .into_bytes()
}

/// What a model of embeddings answers: numbers alone.
fn vectors() -> Vec<u8> {
    let numbers: Vec<String> = (0..1536)
        .map(|number| format!("-0.0{}", 1_234_567 + number))
        .collect();
    let vector = |index: usize| {
        format!(
            "{{\"object\":\"embedding\",\"index\":{index},\"embedding\":[{}]}}",
            numbers.join(",")
        )
    };
    let vectors: Vec<String> = (0..16).map(vector).collect();
    let body = format!(
        "{{\"object\":\"list\",\"data\":[{}],\"model\":\"m\",\"usage\":{{\"prompt_tokens\":8,\"total_tokens\":8}}}}",
        vectors.join(",")
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// `cargo xtask bench models`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let chat = "/v1/chat/completions";
    let brief = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Go on."}]}"#;
    let embed = r#"{"model":"m","input":"Go on."}"#;
    let cases = [
        ("conversations", request(chat, &conversation()), streamed(1)),
        ("streams", request(chat, brief), streamed(2000)),
        ("vectors", request("/v1/embeddings", embed), vectors()),
    ];
    for (name, asks, answers) in cases {
        let length = asks.len() + answers.len();
        let rounds = TOTAL.div_ceil(length);
        // As TLS carries them.
        let parts = |direction, bytes| {
            let parts = <[u8]>::chunks(bytes, 16 << 10);
            parts.map(move |part| Step::Bytes(direction, part))
        };
        let steps: Vec<Step<'_>> = parts(Sent, &asks)
            .chain(parts(Received, &answers))
            .collect();
        let start = Instant::now();
        for _ in 0..rounds {
            let found = calls(black_box(&steps));
            assert!(found.len() == 1 && found[0].missing == Default::default());
        }
        let rate = (rounds * length) as f64 / 1e6 / start.elapsed().as_secs_f64();
        println!("speed {name} {rate:.0}");
    }
}
