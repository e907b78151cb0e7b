//! Bodies of Cohere's API reference, of both versions.

use agent_ebpf::Direction::{Received, Sent};

use super::{Step, calls, events, one, request, response, told};

const ASKED: &str = r#"{"model":"command-a-03-2025","messages":[{"role":"system","content":"Be brief."},
    {"role":"user","content":[{"type":"text","text":"Sales on 29 September?"},
    {"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"auto"}}]},
    {"role":"assistant","tool_plan":"I will look.","tool_calls":[{"id":"sales_1","type":"function",
    "function":{"name":"sales","arguments":"{\"day\":\"2023-09-29\"}"}}]},
    {"role":"tool","tool_call_id":"sales_1","content":[{"type":"document","document":{"data":{"sum":"10000"}}}]}],
    "documents":["Plain.",{"id":"doc_1","data":{"title":"Report"}}],"tools":[{"type":"function","function":{"name":"sales",
    "description":"Sums.","parameters":{"type":"object"}}}],"response_format":{"type":"json_object"},"k":5,"p":0.75,
    "stop_sequences":["END"],"max_tokens":500,"stream":true}"#;

const TURNS: [&str; 8] = [
    "tool sales",
    "system: \"Be brief.\"",
    "user: \"Sales on 29 September?\", image image/png of 8 bytes",
    "assistant: thinks \"I will look.\", calls sales_1 sales {\"day\":\"2023-09-29\"}",
    "tool: result sales_1 \"[{\\\"type\\\":\\\"document\\\",\\\"document\\\":{\\\"data\\\":{\\\"sum\\\":\\\"10000\\\"}}}]\"",
    "document: \"Plain.\"",
    "document: \"{\\\"title\\\":\\\"Report\\\"}\"",
    "->",
];

#[test]
fn second_in_one_piece() {
    let body = r#"{"id":"c14c80c3","finish_reason":"TOOL_CALL","message":{"role":"assistant","tool_plan":"Again.",
        "content":[{"type":"thinking","thinking":"Hm."},{"type":"text","text":"It was 10000."}],"tool_calls":[{"id":"sales_2",
        "type":"function","function":{"name":"sales","arguments":"{}"}}],"citations":[{"start":7,"end":12,"text":"10000"}]},
        "usage":{"billed_units":{"input_tokens":5,"output_tokens":418},"tokens":{"input_tokens":71.0,"output_tokens":418},
        "cached_tokens":32}}"#;
    let asked = request("/v2/chat", ASKED);
    let answer = response("application/json", body);
    let said = one(&asked, &answer);
    assert_eq!(
        said[0],
        "cohere chat asks command-a-03-2025 answers - c14c80c3"
    );
    assert_eq!(said[1..9], TURNS);
    assert_eq!(
        said[9..],
        [
            "assistant: thinks \"Again.\", thinks \"Hm.\", \"It was 10000.\", calls sales_2 sales {} (TOOL_CALL)",
            "in 71, out 418, cached 32",
        ]
    );
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    let parameters = &found[0].request.parameters;
    assert_eq!(
        (
            parameters.top_k,
            parameters.top_p,
            parameters.max_tokens,
            parameters.output
        ),
        (Some(5.0), Some(0.75), Some(500), Some("json"))
    );
}

const PIECES: [&str; 16] = [
    r#"{"id":"29f14a5a","type":"message-start","delta":{"message":{"role":"assistant","content":[],"tool_plan":"","tool_calls":[],"citations":[]}}}"#,
    r#"{"type":"content-start","index":0,"delta":{"message":{"content":{"type":"thinking","thinking":""}}}}"#,
    r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"thinking":"Hm"}}}}"#,
    r#"{"type":"content-delta","index":0,"delta":{"message":{"content":{"thinking":"m."}}}}"#,
    r#"{"type":"content-end","index":0}"#,
    r#"{"type":"content-start","index":1,"delta":{"message":{"content":{"type":"text","text":""}}}}"#,
    r#"{"type":"content-delta","index":1,"delta":{"message":{"content":{"text":"It was"}}}}"#,
    r#"{"type":"something-new","index":1}"#,
    r#"{"type":"content-delta","index":1,"delta":{"message":{"content":{"text":" 10000."}}}}"#,
    r#"{"type":"citation-start","index":0,"delta":{"message":{"citations":{"start":7,"end":12,"text":"10000"}}}}"#,
    r#"{"type":"tool-plan-delta","delta":{"message":{"tool_plan":"Again."}}}"#,
    r#"{"type":"tool-call-start","index":0,"delta":{"message":{"tool_calls":{"id":"sales_2","type":"function","function":{"name":"sales","arguments":""}}}}}"#,
    r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"{\"day\":"}}}}}"#,
    r#"{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"\"2023\"}"}}}}}"#,
    r#"{"type":"tool-call-end","index":0}"#,
    r#"{"type":"message-end","delta":{"finish_reason":"TOOL_CALL","usage":{"billed_units":{"input_tokens":17,"output_tokens":22},"tokens":{"input_tokens":215,"output_tokens":24}}}}"#,
];

const ANSWER: &str = "assistant: thinks \"Hmm.\", \"It was 10000.\", thinks \"Again.\", \
    calls sales_2 sales {\"day\":\"2023\"} (TOOL_CALL)";

#[test]
fn second_in_pieces() {
    let body = events(&PIECES);
    // Where a path says nothing, the response does.
    for path in ["/v2/chat", "/proxy/llm"] {
        let said = one(&request(path, ASKED), &response("text/event-stream", &body));
        assert_eq!(
            said[0],
            "cohere chat asks command-a-03-2025 answers - 29f14a5a"
        );
        assert_eq!(said[1..9], TURNS);
        assert_eq!(said[9..], [ANSWER, "in 215, out 24"]);
    }
}

const FIRST: &str = r#"{"model":"command-r","preamble":"Be brief.","message":"Can you?","conversation_id":"c1",
    "chat_history":[{"role":"USER","message":"Sales?"},{"role":"CHATBOT","message":"I look.","tool_calls":[{"name":"sales",
    "parameters":{"day":1}}]},{"role":"TOOL","tool_results":[{"call":{"name":"sales","parameters":{"day":1}},
    "outputs":[{"sum":2}]}]}],"tool_results":[{"call":{"name":"time","parameters":{}},"outputs":[{"now":3}]}],
    "documents":[{"title":"A"}],"tools":[{"name":"sales","description":"Sums.","parameter_definitions":{"day":{"type":"int"}}}],
    "temperature":0.3,"stream":false}"#;

const FIRST_TURNS: [&str; 9] = [
    "told \"Be brief.\"",
    "tool sales",
    "user: \"Sales?\"",
    "assistant: \"I look.\", calls - sales {\"day\":1}",
    "tool: result - \"[{\\\"sum\\\":2}]\"",
    "user: \"Can you?\"",
    "tool: result - \"[{\\\"now\\\":3}]\"",
    "document: \"{\\\"title\\\":\\\"A\\\"}\"",
    "->",
];

#[test]
fn first_in_one_piece() {
    let body = r#"{"response_id":"r1","text":"Yes.","generation_id":"g1","chat_history":[{"role":"USER","message":"Sales?"}],
        "finish_reason":"COMPLETE","tool_calls":[{"name":"sales","parameters":{"day":2}}],"meta":{"api_version":{"version":"1"},
        "billed_units":{"input_tokens":13,"output_tokens":2},"tokens":{"input_tokens":811,"output_tokens":3}}}"#;
    let said = one(
        &request("/v1/chat", FIRST),
        &response("application/json", body),
    );
    assert_eq!(said[0], "cohere chat asks command-r answers - r1");
    assert_eq!(said[1..10], FIRST_TURNS);
    assert_eq!(
        said[10..],
        [
            "assistant: \"Yes.\", calls - sales {\"day\":2} (COMPLETE)",
            "in 811, out 3"
        ]
    );
}

const FIRST_PIECES: [&str; 9] = [
    r#"{"is_finished":false,"event_type":"stream-start","generation_id":"g1"}"#,
    r#"{"is_finished":false,"event_type":"search-results","documents":[{"id":"d1"}]}"#,
    r#"{"is_finished":false,"event_type":"text-generation","text":"Ye"}"#,
    r#"{"is_finished":false,"event_type":"text-generation","text":"s."}"#,
    r#"{"is_finished":false,"event_type":"tool-calls-chunk","tool_call_delta":{"index":0,"name":"sales"}}"#,
    r#"{"is_finished":false,"event_type":"tool-calls-chunk","tool_call_delta":{"index":0,"parameters":"{\"day\""}}"#,
    r#"{"is_finished":false,"event_type":"tool-calls-chunk","tool_call_delta":{"index":0,"parameters":":2}"}}"#,
    r#"{"is_finished":false,"event_type":"tool-calls-generation","tool_calls":[{"name":"sales","parameters":{"day":2}}]}"#,
    r#"{"is_finished":true,"event_type":"stream-end","finish_reason":"COMPLETE","response":{"response_id":"r1","generation_id":"g1","text":"Yes.","finish_reason":"COMPLETE","tool_calls":[{"name":"sales","parameters":{"day":2}}],"meta":{"tokens":{"input_tokens":811,"output_tokens":3}}}}"#,
];

#[test]
fn first_in_lines_and_in_events() {
    let asked = request("/v1/chat", FIRST);
    let lines = FIRST_PIECES.join("\n") + "\n";
    let streamed = [
        response("application/stream+json", &lines),
        response("text/event-stream", &events(&FIRST_PIECES)),
    ];
    for answer in streamed {
        let said = one(&asked, &answer);
        assert_eq!(said[0], "cohere chat asks command-r answers - r1");
        assert_eq!(
            said[10..],
            [
                "assistant: \"Yes.\", calls - sales {\"day\":2} (COMPLETE)",
                "in 811, out 3"
            ]
        );
    }
    // Who hangs up gets what came so far.
    let cut = response(
        "application/stream+json",
        &(FIRST_PIECES[..7].join("\n") + "\n"),
    );
    let cut = &cut[..cut.len() - 3];
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, cut)]);
    let said = told(&found[0]);
    assert_eq!(
        said[10..],
        [
            "assistant: \"Yes.\", calls - sales {\"day\":2}",
            "",
            "missing response end"
        ]
    );
}

#[test]
fn embeddings() {
    let said = one(
        &request(
            "/v2/embed",
            r#"{"model":"embed-v4.0","input_type":"search_document","texts":["hello","bye"],"images":["data:image/png;base64,iVBORw0KGgo="],
            "inputs":[{"content":[{"type":"text","text":"both"},{"type":"image_url","image_url":{"url":"https://a.example/i.png"}}]}],
            "embedding_types":["float"],"output_dimension":256}"#,
        ),
        &response(
            "application/json",
            r#"{"id":"da6e531f","embeddings":{"float":[[0.016,-0.008]]},"texts":["hello","bye"],"meta":{"api_version":{"version":"2"},"billed_units":{"input_tokens":2}},"response_type":"embeddings_by_type"}"#,
        ),
    );
    assert_eq!(
        said,
        [
            "cohere embeddings asks embed-v4.0 answers - da6e531f",
            "user: \"hello\"",
            "user: \"bye\"",
            "user: image image/png of 8 bytes",
            "user: \"both\", image at https://a.example/i.png",
            "->",
            "in 2",
        ]
    );
    let said = one(
        &request(
            "/v1/embed",
            r#"{"texts":["hello"],"input_type":"classification","truncate":"NONE"}"#,
        ),
        &response(
            "application/json",
            r#"{"id":"e1","texts":["hello"],"embeddings":[[0.1]],"meta":{"billed_units":{"input_tokens":1}},"response_type":"embeddings_floats"}"#,
        ),
    );
    assert_eq!(said[1..], ["user: \"hello\"", "->", "in 1"]);
}

#[test]
fn errors() {
    let asked = request("/v2/chat", ASKED);
    let body = events(&[
        PIECES[0],
        PIECES[6],
        r#"{"type":"message-end","delta":{"error":"Something went wrong","finish_reason":"ERROR"}}"#,
    ]);
    let said = one(&asked, &response("text/event-stream", &body));
    assert_eq!(
        said[9..],
        ["assistant: \"It was\" (ERROR)", "", "error ERROR"]
    );

    let body = r#"{"id":"1","message":"invalid api token"}"#;
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = one(&asked, answer.as_bytes());
    assert_eq!(said[9..], ["", "error 401"]);
}

#[test]
fn what_is_missing_is_said() {
    let asked = request("/v2/chat", ASKED);
    let answer = response("text/event-stream", &events(&PIECES));
    let find = |text: &str| {
        answer
            .windows(text.len())
            .position(|part| part == text.as_bytes())
            .unwrap()
    };
    let cut = &answer[..find("citation-start")];
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, cut)]);
    assert_eq!(
        told(&found[0])[9..],
        [
            "assistant: thinks \"Hmm.\", \"It was 10000.\"",
            "",
            "missing response end"
        ]
    );

    // From the text to the middle of the call.
    let (from, to) = (find(" 10000."), find("tool-call-delta"));
    let steps = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..from]),
        Step::Hole(Received, (to - from) as u64),
        Step::Bytes(Received, &answer[to..]),
    ];
    let said = told(&calls(&steps)[0]);
    assert_eq!(
        said[9..],
        [
            "assistant: thinks \"Hmm.\", \"It was\", calls - - \"2023\"} (TOOL_CALL)",
            "in 215, out 24",
            "missing response"
        ]
    );
}

#[test]
fn what_is_no_call_is_none() {
    let answer = response("application/json", r#"{"ok":true}"#);
    for (path, body) in [
        ("/v1/chat", r#"{"message":"Hi","to":"Ann"}"#),
        (
            "/v1/embed",
            r#"{"url":"https://a.example","model":"player"}"#,
        ),
    ] {
        let asked = request(path, body);
        let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
        assert_eq!(found.len(), 0, "{path}");
    }
}
