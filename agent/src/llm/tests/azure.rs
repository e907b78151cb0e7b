//! Azure OpenAI's calls: OpenAI's, with filters of content around them.

use super::*;

const PATH: &str = "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21";

const ASKED: &str = r#"{"messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true}}"#;

const FILTERS: &str = r#"{"hate":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}"#;

/// The first piece is about the prompt, and has no answers, no id and no model.
fn pieces() -> Vec<String> {
    vec![
        format!(
            r#"{{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{{"prompt_index":0,"content_filter_results":{FILTERS}}}]}}"#
        ),
        r#"{"choices":[{"content_filter_results":{},"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}],"created":1,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk","system_fingerprint":"fp_1","usage":null}"#.into(),
        format!(
            r#"{{"choices":[{{"content_filter_results":{FILTERS},"delta":{{"content":"Hel"}},"finish_reason":null,"index":0}}],"created":1,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk"}}"#
        ),
        r#"{"choices":[{"content_filter_results":{},"delta":{"content":"lo"},"finish_reason":null,"index":0}],"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk"}"#.into(),
        r#"{"choices":[{"content_filter_offsets":{"check_offset":5,"start_offset":5,"end_offset":9},"content_filter_results":{},"delta":{},"finish_reason":"stop","index":0}],"id":"","model":"","object":""}"#.into(),
        r#"{"choices":[],"id":"chatcmpl-1","model":"gpt-4o-2024-11-20","object":"chat.completion.chunk","usage":{"completion_tokens":2,"prompt_tokens":9,"total_tokens":11}}"#.into(),
    ]
}

fn streamed(pieces: &[String]) -> Vec<u8> {
    let mut all: Vec<&str> = pieces.iter().map(String::as_str).collect();
    all.push("[DONE]");
    response("text/event-stream; charset=utf-8", &events(&all))
}

const FIRST: &str = "azure.ai.openai chat asks my-gpt answers gpt-4o-2024-11-20 chatcmpl-1";

#[test]
fn in_pieces() {
    let said = one(&request(PATH, ASKED), &streamed(&pieces()));
    assert_eq!(
        said,
        [
            FIRST,
            "user: \"Hi\"",
            "->",
            "assistant: \"Hello\" (stop)",
            "in 9, out 2",
        ]
    );
}

#[test]
fn in_one_piece() {
    let body = format!(
        r#"{{"choices":[{{"content_filter_results":{FILTERS},"finish_reason":"tool_calls","index":0,"message":{{"content":null,
            "refusal":null,"role":"assistant","tool_calls":[{{"function":{{"arguments":"{{\"city\":\"Oslo\"}}","name":"weather"}},
            "id":"call_1","type":"function"}}]}}}}],"created":1,"id":"chatcmpl-1","model":"gpt-4o-2024-11-20",
            "object":"chat.completion","prompt_filter_results":[{{"prompt_index":0,"content_filter_results":{FILTERS}}}],
            "usage":{{"completion_tokens":14,"prompt_tokens":60,"total_tokens":74,"prompt_tokens_details":{{"cached_tokens":32}}}}}}"#
    );
    let said = one(&request(PATH, ASKED), &response("application/json", &body));
    assert_eq!(said[0], FIRST);
    assert_eq!(
        said[2..],
        [
            "->",
            "assistant: calls call_1 weather {\"city\":\"Oslo\"} (tool_calls)",
            "in 60, out 14, cached 32",
        ]
    );
}

/// A deployment has a name of its own; a body that names a model names what is wanted.
#[test]
fn models_and_providers() {
    let asked = ASKED.replacen('{', r#"{"model":"gpt-4o","#, 1);
    let said = one(&request(PATH, &asked), &streamed(&pieces()));
    assert_eq!(said[0], FIRST.replace("my-gpt", "gpt-4o"));
    // Without deployments, by what comes along. Others have this path, too.
    let path = "/openai/v1/chat/completions";
    let head = |field: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: gate.example\r\n{field}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{asked}",
            asked.len()
        )
    };
    let said = one(head("api-key: k\r\n").as_bytes(), &streamed(&pieces()));
    assert!(said[0].starts_with("azure.ai.openai "), "{said:?}");
    let said = one(head("").as_bytes(), &streamed(&pieces()));
    assert!(said[0].starts_with("openai "), "{said:?}");
}

#[test]
fn what_is_filtered() {
    let body = r#"{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter","status":400,
        "innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true,"severity":"high"}}}}}"#;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = one(&request(PATH, ASKED), answer.as_bytes());
    assert_eq!(said[2..], ["->", "", "error content_filter"]);
    // In mid-stream.
    let mut pieces = pieces();
    pieces.truncate(3);
    pieces.push(r#"{"choices":[{"content_filter_results":{"hate":{"filtered":true}},"delta":{},"finish_reason":"content_filter","index":0}]}"#.into());
    let said = one(&request(PATH, ASKED), &streamed(&pieces));
    assert_eq!(said[3], "assistant: \"Hel\" (content_filter)");
}

#[test]
fn what_is_missing_is_said() {
    let (asked, answer) = (request(PATH, ASKED), streamed(&pieces()));
    let at = answer
        .windows(4)
        .position(|part| part == b"\"lo\"")
        .unwrap();
    let hung_up = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at]),
    ];
    assert_eq!(
        told(&calls(&hung_up)[0])[3..],
        ["assistant: \"Hel\"", "", "missing response end"]
    );
    let with_hole = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at]),
        Step::Hole(Received, 4),
        Step::Bytes(Received, &answer[at + 4..]),
    ];
    assert_eq!(
        told(&calls(&with_hole)[0])[3..],
        [
            "assistant: \"Hel\" (stop)",
            "in 9, out 2",
            "missing response"
        ]
    );
}
