//! Mistral's conversations.

use super::*;

const ASKED: &str = r#"{"model":"mistral-medium-latest","stream":true,"store":false,"instructions":"Be brief.",
    "inputs":[{"object":"entry","type":"message.input","role":"user","content":[{"type":"text","text":"Is it raining?"},
    {"type":"image_url","image_url":"https://a.example/i.png"}]},
    {"type":"function.call","tool_call_id":"c1","name":"weather","arguments":"{\"city\":\"Oslo\"}"},
    {"type":"function.result","tool_call_id":"c1","result":"rain"},
    {"type":"message.output","role":"assistant","content":"Yes."},{"role":"user","content":"And now?"}],
    "tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}},{"type":"web_search"}],
    "completion_args":{"temperature":0.3,"top_p":0.9,"max_tokens":64,"random_seed":7,"stop":["END"],
    "response_format":{"type":"text"}}}"#;

const PIECES: [&str; 11] = [
    r#"{"type":"conversation.response.started","created_at":"2026-11-01T00:00:00Z","conversation_id":"conv_1"}"#,
    r#"{"type":"tool.execution.started","output_index":0,"id":"tool_1","name":"web_search","arguments":""}"#,
    r#"{"type":"tool.execution.delta","output_index":0,"id":"tool_1","name":"web_search","arguments":"{\"query\":\"rain\"}"}"#,
    r#"{"type":"tool.execution.done","output_index":0,"id":"tool_1","name":"web_search","info":{}}"#,
    r#"{"type":"message.output.delta","output_index":1,"id":"msg_1","content_index":0,"model":"mistral-medium-2508","agent_id":null,"role":"assistant","content":"Hel"}"#,
    r#"{"type":"something.new","output_index":1,"content":"no"}"#,
    r#"{"type":"message.output.delta","output_index":1,"id":"msg_1","content_index":0,"model":"mistral-medium-2508","role":"assistant","content":{"type":"text","text":"lo"}}"#,
    r#"{"type":"message.output.delta","output_index":1,"id":"msg_1","content_index":1,"content":{"type":"tool_reference","tool":"web_search","title":"t","url":"https://a.example"}}"#,
    r#"{"type":"function.call.delta","output_index":2,"id":"fc_1","name":"weather","tool_call_id":"c2","arguments":"{\"city\":"}"#,
    r#"{"type":"function.call.delta","output_index":2,"id":"fc_1","name":"weather","tool_call_id":"c2","arguments":"\"Oslo\"}"}"#,
    r#"{"type":"conversation.response.done","created_at":"2026-11-01T00:00:02Z","usage":{"prompt_tokens":188,"completion_tokens":55,"total_tokens":7355,"connector_tokens":7112,"connectors":{"web_search":1}}}"#,
];

#[test]
fn in_pieces() {
    let asked = request("/v1/conversations", ASKED);
    let answer = response("text/event-stream", &events(&PIECES));
    let said = one(&asked, &answer);
    assert_eq!(
        said,
        [
            "mistral_ai chat asks mistral-medium-latest answers mistral-medium-2508 -",
            "told \"Be brief.\"",
            "tool weather",
            "tool -",
            "user: \"Is it raining?\", image at https://a.example/i.png",
            "assistant: calls c1 weather {\"city\":\"Oslo\"}",
            "tool: result c1 \"rain\"",
            "assistant: \"Yes.\"",
            "user: \"And now?\"",
            "->",
            "assistant: calls tool_1 web_search {\"query\":\"rain\"}, \"Hello\", some tool_reference, \
             calls c2 weather {\"city\":\"Oslo\"}",
            "in 7300, out 55",
        ]
    );
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(word(&found[0].response.conversation), "conv_1");
    assert_eq!(
        found[0].request.parameters,
        Parameters {
            stream: Some(true),
            max_tokens: Some(64),
            temperature: Some(0.3),
            top_p: Some(0.9),
            seed: Some(7),
            stop_sequences: vec![Text::of("END")],
            output: Some("text"),
            ..Parameters::default()
        }
    );
}

#[test]
fn in_one_piece() {
    let body = r#"{"conversation_id":"conv_1","object":"conversation.response","usage":{"prompt_tokens":9,"completion_tokens":4,
        "total_tokens":13},"outputs":[{"object":"entry","type":"tool.execution","id":"tool_1","name":"web_search",
        "arguments":"{}","info":{}},{"object":"entry","type":"message.output","id":"msg_1","agent_id":"ag_1",
        "model":"mistral-medium-2508","role":"assistant","content":[{"type":"text","text":"Hello"}]},
        {"object":"entry","type":"agent.handoff","previous_agent_id":"ag_1","next_agent_id":"ag_2"},
        {"object":"entry","type":"function.call","id":"fc_1","tool_call_id":"c2","name":"weather","arguments":"{}"}]}"#;
    for path in [
        "/v1/conversations",
        "/v1/conversations/conv_1",
        "/v1/conversations/conv_1/restart",
    ] {
        let said = one(
            &request(path, r#"{"inputs":"Hi","agent_id":"ag_1"}"#),
            &response("application/json", body),
        );
        assert_eq!(
            said,
            [
                "mistral_ai chat asks - answers mistral-medium-2508 -",
                "user: \"Hi\"",
                "->",
                "assistant: calls tool_1 web_search {}, \"Hello\", some agent.handoff, calls c2 weather {}",
                "in 9, out 4",
            ]
        );
    }
}

#[test]
fn errors_in_mid_stream() {
    let mut pieces = PIECES[..5].to_vec();
    pieces.push(
        r#"{"type":"conversation.response.error","message":"Internal server error","code":3000}"#,
    );
    let said = one(
        &request("/v1/conversations", ASKED),
        &response("text/event-stream", &events(&pieces)),
    );
    assert_eq!(
        said[10..],
        [
            "assistant: calls tool_1 web_search {\"query\":\"rain\"}, \"Hel\"",
            "",
            "error 3000"
        ]
    );
}

#[test]
fn what_is_missing_is_said() {
    let asked = request("/v1/conversations", ASKED);
    let answer = response("text/event-stream", &events(&PIECES));
    let at = answer
        .windows(5)
        .position(|part| part == b"\"Hel\"")
        .unwrap();
    let hung_up = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at]),
    ];
    let said = told(&calls(&hung_up)[0]);
    assert_eq!(said.last().unwrap(), "missing response end");
    let with_hole = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at]),
        Step::Hole(Received, 5),
        Step::Bytes(Received, &answer[at + 5..]),
    ];
    let said = told(&calls(&with_hole)[0]);
    assert_eq!(said[11..], ["in 7300, out 55", "missing response"]);
    // Nobody saw the request.
    let said = told(&calls(&[Step::Bytes(Received, &answer)])[0]);
    assert!(said[0].starts_with("mistral_ai chat asks - "), "{said:?}");
    assert_eq!(said.last().unwrap(), "missing request");
}

/// OpenAI keeps conversations, too, and calls no model for it.
#[test]
fn what_is_no_call_is_none() {
    let asked = request(
        "/v1/conversations",
        r#"{"items":[{"type":"message","role":"user","content":"Hi"}],"metadata":{}}"#,
    );
    let answer = response(
        "application/json",
        r#"{"id":"conv_1","object":"conversation"}"#,
    );
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(found.len(), 0);
}
