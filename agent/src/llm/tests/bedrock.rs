//! Bedrock's calls: its own format, and those of the families of models.

use super::*;
use crate::protocol::eventstream::encode;

const ASKED: &str = r#"{"system":[{"text":"Be brief."},{"cachePoint":{"type":"default"}}],"messages":[
    {"role":"user","content":[{"text":"Is it raining?"},{"image":{"format":"png","source":{"bytes":"iVBORw0KGgo="}}},
    {"document":{"format":"pdf","name":"d","source":{"s3Location":{"uri":"s3://b/d.pdf"}}}},{"cachePoint":{"type":"default"}}]},
    {"role":"assistant","content":[{"reasoningContent":{"reasoningText":{"text":"Hm.","signature":"c2ln"}}},
    {"toolUse":{"toolUseId":"t1","name":"weather","input":{"city":"Oslo"}}}]},
    {"role":"user","content":[{"toolResult":{"toolUseId":"t1","content":[{"json":{"a":1}},{"text":"rain"}],"status":"success"}}]}],
    "inferenceConfig":{"maxTokens":512,"temperature":0.5,"topP":0.9,"stopSequences":["END"]},
    "additionalModelRequestFields":{"top_k":200},"toolConfig":{"tools":[{"toolSpec":{"name":"weather","description":"d",
    "inputSchema":{"json":{"type":"object"}}}},{"cachePoint":{"type":"default"}}]}}"#;

const MODEL: &str = "/model/anthropic.claude-opus-4-1-20250805-v1%3A0";

fn told_of(steps: &[Step<'_>]) -> Vec<String> {
    told(&calls(steps)[0])
}

/// Messages of an event stream: their kinds, and what they say.
fn stream(messages: &[(&str, &str)]) -> Vec<u8> {
    let bytes: Vec<u8> = messages
        .iter()
        .flat_map(|(name, payload)| {
            let (kind, name_of) = match name.ends_with("Exception") {
                true => ("exception", ":exception-type"),
                false => ("event", ":event-type"),
            };
            let headers = [
                (name_of, *name),
                (":content-type", "application/json"),
                (":message-type", kind),
            ];
            encode(&headers, payload.as_bytes())
        })
        .collect();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.amazon.eventstream\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    [head.as_bytes(), &bytes].concat()
}

/// A piece of a model's own stream, as a chunk.
fn chunks(pieces: &[&str]) -> Vec<u8> {
    let payload = |piece: &&str| {
        let bytes = base64_simd::STANDARD.encode_to_string(piece);
        format!(r#"{{"bytes":"{bytes}","p":"abcdefgh"}}"#)
    };
    let payloads: Vec<String> = pieces.iter().map(payload).collect();
    let messages: Vec<(&str, &str)> = payloads
        .iter()
        .map(|payload| ("chunk", payload.as_str()))
        .collect();
    stream(&messages)
}

const PIECES: [(&str, &str); 12] = [
    ("messageStart", r#"{"p":"abc","role":"assistant"}"#),
    (
        "contentBlockDelta",
        r#"{"contentBlockIndex":0,"delta":{"reasoningContent":{"text":"Let me"}},"p":"a"}"#,
    ),
    (
        "contentBlockDelta",
        r#"{"contentBlockIndex":0,"delta":{"reasoningContent":{"signature":"c2ln"}},"p":"a"}"#,
    ),
    ("contentBlockStop", r#"{"contentBlockIndex":0}"#),
    (
        "contentBlockDelta",
        r#"{"contentBlockIndex":1,"delta":{"text":"Hel"}}"#,
    ),
    (
        "contentBlockDelta",
        r#"{"contentBlockIndex":1,"delta":{"text":"lo"}}"#,
    ),
    (
        "somethingNew",
        r#"{"contentBlockIndex":1,"delta":{"text":"no"}}"#,
    ),
    (
        "contentBlockStart",
        r#"{"contentBlockIndex":2,"start":{"toolUse":{"name":"weather","toolUseId":"t2"}}}"#,
    ),
    (
        "contentBlockDelta",
        r#"{"contentBlockIndex":2,"delta":{"toolUse":{"input":"{\"city\":"}}}"#,
    ),
    (
        "contentBlockDelta",
        r#"{"contentBlockIndex":2,"delta":{"toolUse":{"input":"\"Oslo\"}"}}}"#,
    ),
    ("messageStop", r#"{"stopReason":"tool_use"}"#),
    (
        "metadata",
        r#"{"metrics":{"latencyMs":9},"usage":{"inputTokens":20,"outputTokens":7,"totalTokens":40,
            "cacheReadInputTokens":10,"cacheWriteInputTokens":3}}"#,
    ),
];

#[test]
fn conversation_in_one_piece() {
    let body = r#"{"metrics":{"latencyMs":1275},"output":{"message":{"role":"assistant","content":[{"text":"Yes."},
        {"toolUse":{"toolUseId":"t3","name":"weather","input":{}}}]}},"stopReason":"tool_use",
        "usage":{"inputTokens":30,"outputTokens":628,"totalTokens":658}}"#;
    let asked = request(&format!("{MODEL}/converse"), ASKED);
    let said = one(&asked, &response("application/json", body));
    assert_eq!(
        said,
        [
            "aws.bedrock chat asks anthropic.claude-opus-4-1-20250805-v1:0 answers - -",
            "told \"Be brief.\"",
            "tool weather",
            "user: \"Is it raining?\", image image/png of 8 bytes, document at s3://b/d.pdf",
            "assistant: thinks \"Hm.\", calls t1 weather {\"city\":\"Oslo\"}",
            "user: result t1 \"{\\\"a\\\":1}rain\"",
            "->",
            "assistant: \"Yes.\", calls t3 weather {} (tool_use)",
            "in 30, out 628",
        ]
    );
    assert_eq!(
        calls(&[Step::Bytes(Sent, &asked)])[0].request.parameters,
        Parameters {
            max_tokens: Some(512),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(200.0),
            stop_sequences: vec![Text::of("END")],
            ..Parameters::default()
        }
    );
}

#[test]
fn conversation_in_pieces() {
    let asked = request(&format!("{MODEL}/converse-stream"), ASKED);
    let answer = stream(&PIECES);
    let said = one(&asked, &answer);
    assert_eq!(
        said[6..],
        [
            "->",
            "assistant: thinks \"Let me\", \"Hello\", calls t2 weather {\"city\":\"Oslo\"} (tool_use)",
            "in 33, out 7, cached 10, cache 3",
        ]
    );
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(found[0].pace.chunks, PIECES.len() as u64);
    assert_eq!(found[0].request.parameters.stream, Some(true));
    // Nobody saw the request.
    let said = told_of(&[Step::Bytes(Received, &answer)]);
    assert_eq!(said[0], "aws.bedrock chat asks - answers - -");
    assert_eq!(said.last().unwrap(), "missing request");
}

#[test]
fn errors() {
    let asked = request(&format!("{MODEL}/converse-stream"), ASKED);
    let mut messages = PIECES[..5].to_vec();
    messages.push(("modelStreamErrorException", r#"{"message":"Too bad"}"#));
    let said = one(&asked, &stream(&messages));
    assert_eq!(
        said[7..],
        [
            "assistant: thinks \"Let me\", \"Hel\"",
            "",
            "error modelStreamErrorException"
        ]
    );
    let body = r#"{"message":"The model is not ready"}"#;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nx-amzn-errortype: ValidationException:http://internal.example/\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = one(&asked, answer.as_bytes());
    assert_eq!(said[6..], ["->", "", "error ValidationException"]);
}

#[test]
fn what_is_missing_is_said() {
    let asked = request(&format!("{MODEL}/converse-stream"), ASKED);
    let answer = stream(&PIECES);
    let at = |text: &[u8]| {
        answer
            .windows(text.len())
            .position(|part| part == text)
            .unwrap()
    };
    let (hel, lo) = (at(b"\"Hel\""), at(b"\"lo\""));
    // The client hangs up.
    let said = told_of(&[
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..lo]),
    ]);
    assert_eq!(
        said[7..],
        [
            "assistant: thinks \"Let me\", \"Hel\"",
            "",
            "missing response end"
        ]
    );
    // A hole costs the messages it is in.
    let said = told_of(&[
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..hel]),
        Step::Hole(Received, 5),
        Step::Bytes(Received, &answer[hel + 5..]),
    ]);
    assert_eq!(
        said[7..],
        [
            "assistant: thinks \"Let me\", \"lo\", calls t2 weather {\"city\":\"Oslo\"} (tool_use)",
            "in 33, out 7, cached 10, cache 3",
            "missing response"
        ]
    );
    // What can't be read is missing, and what is empty is not.
    let mut messages = PIECES.to_vec();
    messages.insert(5, ("ping", ""));
    let answer_of = |messages: &[(&str, &str)]| {
        told_of(&[
            Step::Bytes(Sent, &asked),
            Step::Bytes(Received, &stream(messages)),
        ])
    };
    assert_eq!(answer_of(&messages).len(), 9);
    messages[5] = ("chunk", r#"{"bytes":"not base64!"}"#);
    assert_eq!(answer_of(&messages)[9], "missing response");
    // A wrong bit ends it.
    let mut wrong = answer.clone();
    wrong[lo] ^= 1;
    let said = told_of(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &wrong)]);
    assert_eq!(
        said[7..],
        [
            "assistant: thinks \"Let me\", \"Hel\"",
            "",
            "missing response end"
        ]
    );
}

/// Long pieces are base64 here, and text all the same.
#[test]
fn claude_by_its_own_format() {
    let long = "word ".repeat(300);
    let delta = format!(
        r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{long}"}}}}"#
    );
    let answer = chunks(&[
        r#"{"type":"message_start","message":{"id":"msg_bdrk_1","type":"message","role":"assistant","content":[],
            "model":"claude-opus-4-1-20250805","stop_reason":null,"usage":{"input_tokens":25,"output_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        &delta,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}"#,
        r#"{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":25,"outputTokenCount":10,
            "invocationLatency":5,"firstByteLatency":1,"cacheReadInputTokenCount":4,"cacheWriteInputTokenCount":2}}"#,
    ]);
    let asked = request(
        &format!("{MODEL}/invoke-with-response-stream"),
        r#"{"anthropic_version":"bedrock-2023-05-31","max_tokens":64,"messages":[{"role":"user","content":"Hi"}]}"#,
    );
    let said = told_of(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(
        said,
        [
            "aws.bedrock chat asks anthropic.claude-opus-4-1-20250805-v1:0 answers claude-opus-4-1-20250805 msg_bdrk_1",
            "user: \"Hi\"",
            "->",
            &format!("assistant: {long:?} (end_turn)"),
            "in 31, out 10, cached 4, cache 2",
        ]
    );
}

#[test]
fn nova_by_its_own_format() {
    let answer = chunks(&[
        r#"{"messageStart":{"role":"assistant"}}"#,
        r#"{"contentBlockDelta":{"delta":{"text":"Hel"},"contentBlockIndex":0}}"#,
        r#"{"contentBlockDelta":{"delta":{"text":"lo"},"contentBlockIndex":0}}"#,
        r#"{"contentBlockStop":{"contentBlockIndex":0}}"#,
        r#"{"messageStop":{"stopReason":"end_turn"}}"#,
        r#"{"metadata":{"usage":{"inputTokens":4,"outputTokens":2,"cacheReadInputTokenCount":0},"metrics":{}},
            "amazon-bedrock-invocationMetrics":{"inputTokenCount":4,"outputTokenCount":2}}"#,
    ]);
    let said = one(
        &request(
            "/model/us.amazon.nova-lite-v1:0/invoke-with-response-stream",
            r#"{"schemaVersion":"messages-v1","system":[{"text":"Be brief."}],
                "messages":[{"role":"user","content":[{"text":"Hi"}]}],"inferenceConfig":{"max_new_tokens":500,"topK":20}}"#,
        ),
        &answer,
    );
    assert_eq!(
        said,
        [
            "aws.bedrock chat asks us.amazon.nova-lite-v1:0 answers - -",
            "told \"Be brief.\"",
            "user: \"Hi\"",
            "->",
            "assistant: \"Hello\" (end_turn)",
            "in 4, out 2",
        ]
    );
}

#[test]
fn families_in_one_piece() {
    let cases = [
        (
            "amazon.titan-text-express-v1",
            r#"{"inputText":"Hi","textGenerationConfig":{"maxTokenCount":64,"temperature":0.5,"topP":0.9,"stopSequences":["END"]}}"#,
            r#"{"inputTextTokenCount":3,"results":[{"tokenCount":5,"outputText":"Hello","completionReason":"FINISH"}]}"#,
            "assistant: \"Hello\" (FINISH)",
            "in 3, out 5",
        ),
        (
            "meta.llama3-70b-instruct-v1:0",
            r#"{"prompt":"Hi","max_gen_len":64,"temperature":0.5,"top_p":0.9}"#,
            r#"{"generation":"Hello","prompt_token_count":3,"generation_token_count":5,"stop_reason":"stop"}"#,
            "assistant: \"Hello\" (stop)",
            "in 3, out 5",
        ),
        (
            "mistral.mistral-7b-instruct-v0:2",
            r#"{"prompt":"Hi","max_tokens":64,"stop":["END"],"temperature":0.5,"top_p":0.9,"top_k":50}"#,
            r#"{"outputs":[{"text":"Hello","stop_reason":"stop"}]}"#,
            "assistant: \"Hello\" (stop)",
            "in 7, out 8",
        ),
        (
            "cohere.command-text-v14",
            r#"{"prompt":"Hi","max_tokens":64,"temperature":0.5,"p":0.9,"k":0,"stop_sequences":["END"]}"#,
            r#"{"generations":[{"finish_reason":"COMPLETE","id":"g1","text":"Hello"}],"id":"1","prompt":"Hi"}"#,
            "assistant: \"Hello\" (COMPLETE)",
            "in 7, out 8",
        ),
        (
            "anthropic.claude-v2",
            r#"{"prompt":"Hi","max_tokens_to_sample":64,"stop_sequences":["END"]}"#,
            r#"{"completion":"Hello","stop_reason":"stop_sequence","stop":"END"}"#,
            "assistant: \"Hello\" (stop_sequence)",
            "in 7, out 8",
        ),
    ];
    for (model, asked, answered, turn, usage) in cases {
        let asked = request(&format!("/model/{model}/invoke"), asked);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-amzn-bedrock-input-token-count: 7\r\n\
             x-amzn-bedrock-output-token-count: 8\r\ncontent-length: {}\r\n\r\n{answered}",
            answered.len()
        );
        let said = one(&asked, answer.as_bytes());
        assert!(
            said[0].starts_with(&format!("aws.bedrock text_completion asks {model} ")),
            "{said:?}"
        );
        assert_eq!(said[1..], ["user: \"Hi\"", "->", turn, usage]);
        let found = calls(&[Step::Bytes(Sent, &asked)]);
        assert_eq!(found[0].request.parameters.max_tokens, Some(64), "{model}");
    }
}

/// Cohere's Command R takes what the first version of its own API takes.
#[test]
fn command_r() {
    const ASKED: &str = r#"{"message":"And now?","preamble":"Be brief.","chat_history":[{"role":"USER","message":"Hi"},
        {"role":"CHATBOT","message":"Hello"}],"max_tokens":64,"p":0.9,"tools":[{"name":"weather","description":"d",
        "parameter_definitions":{"city":{"type":"str"}}}]}"#;
    const ANSWER: &str = r#"{"response_id":"r1","text":"Rain.","generation_id":"g1","finish_reason":"COMPLETE",
        "tool_calls":[{"name":"weather","parameters":{"city":"Oslo"}}]}"#;
    const MODEL: &str = "/model/cohere.command-r-v1:0";
    let asked = request(&format!("{MODEL}/invoke"), ASKED);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-amzn-bedrock-input-token-count: 7\r\n\
         x-amzn-bedrock-output-token-count: 8\r\ncontent-length: {}\r\n\r\n{ANSWER}",
        ANSWER.len()
    );
    let told = [
        "aws.bedrock chat asks cohere.command-r-v1:0 answers - r1",
        "told \"Be brief.\"",
        "tool weather",
        "user: \"Hi\"",
        "assistant: \"Hello\"",
        "user: \"And now?\"",
        "->",
        "assistant: \"Rain.\", calls - weather {\"city\":\"Oslo\"} (COMPLETE)",
        "in 7, out 8",
    ];
    assert_eq!(one(&asked, answer.as_bytes()), told);
    let asked = request(&format!("{MODEL}/invoke-with-response-stream"), ASKED);
    let end = format!(
        r#"{{"event_type":"stream-end","is_finished":true,"finish_reason":"COMPLETE","response":{ANSWER},
        "amazon-bedrock-invocationMetrics":{{"inputTokenCount":7,"outputTokenCount":8}}}}"#
    );
    let pieces = [
        r#"{"event_type":"stream-start","is_finished":false,"generation_id":"g1"}"#,
        r#"{"event_type":"text-generation","is_finished":false,"text":"Rai"}"#,
        r#"{"event_type":"text-generation","is_finished":false,"text":"n."}"#,
        &end,
    ];
    assert_eq!(one(&asked, &chunks(&pieces)), told);
    // It fails in mid-stream, as the service says it.
    let payload = base64_simd::STANDARD.encode_to_string(pieces[1]);
    let piece = format!(r#"{{"bytes":"{payload}"}}"#);
    let failed = stream(&[("chunk", &piece), ("modelStreamErrorException", "{}")]);
    let said = one(&asked, &failed);
    assert_eq!(
        said[7..],
        ["assistant: \"Rai\"", "", "error modelStreamErrorException"]
    );
}

#[test]
fn families_in_pieces() {
    let metrics =
        r#""amazon-bedrock-invocationMetrics":{"inputTokenCount":7,"outputTokenCount":8}"#;
    let cases = [
        (
            "amazon.titan-text-express-v1",
            r#"{"inputText":"Hi"}"#,
            r#"{"outputText":"Hel","index":0,"totalOutputTextTokenCount":null,"completionReason":null,"inputTextTokenCount":7}"#,
            r#"{"outputText":"lo","index":0,"totalOutputTextTokenCount":8,"completionReason":"stop""#,
        ),
        (
            "meta.llama3-70b-instruct-v1:0",
            r#"{"prompt":"Hi"}"#,
            r#"{"generation":"Hel","prompt_token_count":7,"generation_token_count":1,"stop_reason":null}"#,
            r#"{"generation":"lo","prompt_token_count":null,"generation_token_count":8,"stop_reason":"stop""#,
        ),
        (
            "mistral.mistral-7b-instruct-v0:2",
            r#"{"prompt":"Hi"}"#,
            r#"{"outputs":[{"text":"Hel","stop_reason":null}]}"#,
            r#"{"outputs":[{"text":"lo","stop_reason":"stop"}]"#,
        ),
    ];
    for (model, asked, first, last) in cases {
        let asked = request(
            &format!("/model/{model}/invoke-with-response-stream"),
            asked,
        );
        let answer = chunks(&[first, &format!("{last},{metrics}}}")]);
        let said = one(&asked, &answer);
        assert_eq!(
            said[1..],
            [
                "user: \"Hi\"",
                "->",
                "assistant: \"Hello\" (stop)",
                "in 7, out 8"
            ],
            "{model}"
        );
        // Without its last piece it has no end.
        let said = told_of(&[
            Step::Bytes(Sent, &asked),
            Step::Bytes(Received, &chunks(&[first])),
        ]);
        assert_eq!(said.last().unwrap(), "missing end", "{model}");
    }
}

#[test]
fn chat_of_others_and_embeddings() {
    let said = one(
        &request(
            "/model/mistral.mistral-large-2407-v1:0/invoke",
            r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9}"#,
        ),
        &response(
            "application/json",
            r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello","tool_calls":null},"stop_reason":"stop"}]}"#,
        ),
    );
    assert_eq!(
        said,
        [
            "aws.bedrock chat asks mistral.mistral-large-2407-v1:0 answers - -",
            "user: \"Hi\"",
            "->",
            "assistant: \"Hello\" (stop)",
            ""
        ]
    );
    let cases = [
        (
            "amazon.titan-embed-text-v2:0",
            r#"{"inputText":"a","dimensions":256,"normalize":true}"#,
            r#"{"embedding":[0.1],"inputTextTokenCount":3}"#,
            "in 3",
        ),
        (
            "cohere.embed-english-v3",
            r#"{"texts":["a"],"input_type":"search_query"}"#,
            r#"{"embeddings":[[0.1]],"id":"e","response_type":"embeddings_floats","texts":["a"]}"#,
            "",
        ),
    ];
    for (model, asked, answered, usage) in cases {
        let said = one(
            &request(&format!("/model/{model}/invoke"), asked),
            &response("application/json", answered),
        );
        assert!(
            said[0].starts_with(&format!("aws.bedrock embeddings asks {model} ")),
            "{said:?}"
        );
        assert_eq!(said[1..], ["user: \"a\"", "->", usage]);
    }
}

/// Others have models, too.
#[test]
fn what_is_no_call_is_none() {
    let asked = request("/model/golf/invoke", r#"{"color":"red"}"#);
    let answer = response("application/json", r#"{"ok":true}"#);
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(found.len(), 0);
}
