//! Bodies of OpenAI's reference for the Responses API, and of what Codex sends.

use agent_ebpf::Direction::{Received, Sent};

use super::{Step, calls, events, one, request, response, told};

const ASKED: &str = r#"{"model":"gpt-5","instructions":"Be brief.","input":[
    {"type":"message","role":"developer","content":[{"type":"input_text","text":"In Norwegian."}]},
    {"role":"user","content":[{"type":"input_text","text":"Is it raining?"},
    {"type":"input_image","image_url":"data:image/png;base64,iVBORw0KGgo=","detail":"auto"},
    {"type":"input_image","file_id":"file-1"},
    {"type":"input_file","filename":"a.pdf","file_data":"data:application/pdf;base64,JVBERi0="},
    {"type":"input_file","file_url":"https://a.example/b.pdf"},
    {"type":"input_hologram","data":"x"}]},
    {"type":"reasoning","id":"rs_1","summary":[{"type":"summary_text","text":"Look outside."}],"encrypted_content":"gAAA"},
    {"type":"reasoning","id":"rs_2","summary":[],"encrypted_content":"gAAA"},
    {"type":"function_call","id":"fc_1","call_id":"call_1","name":"weather","arguments":"{\"city\":\"Oslo\"}"},
    {"type":"function_call_output","call_id":"call_1","output":"rain"},
    {"type":"custom_tool_call","call_id":"call_2","name":"apply_patch","input":"*** Begin Patch"},
    {"type":"custom_tool_call_output","call_id":"call_2","output":[{"type":"input_text","text":"Do"},{"type":"input_text","text":"ne"}]},
    {"type":"local_shell_call","id":"lsh_1","call_id":"call_3","status":"completed","action":{"type":"exec","command":["ls"],"env":{}}},
    {"type":"local_shell_call_output","id":"call_3","output":"a.txt"},
    {"type":"web_search_call","id":"ws_1","status":"completed","action":{"type":"search","query":"rain"}},
    {"type":"mcp_call","id":"mcp_1","name":"read","server_label":"files","arguments":"{}","output":"none"},
    {"type":"item_reference","id":"msg_0"}],
    "tools":[{"type":"function","name":"weather","parameters":{"type":"object"},"strict":true},{"type":"web_search"},
    {"type":"mcp","server_label":"files","server_url":"https://mcp.example"}],
    "reasoning":{"effort":"low","summary":"auto"},"text":{"format":{"type":"json_schema","name":"a","schema":{}}},
    "max_output_tokens":1000,"previous_response_id":"resp_0","conversation":{"id":"conv_1"},"store":false,"stream":true}"#;

#[test]
fn in_one_piece() {
    let body = r#"{"id":"resp_1","object":"response","created_at":1741476542,"status":"completed","error":null,
        "incomplete_details":null,"instructions":"Be brief.","model":"gpt-5-2026","output":[
        {"id":"rs_3","type":"reasoning","summary":[{"type":"summary_text","text":"It"},{"type":"summary_text","text":"rains."}]},
        {"id":"ig_1","type":"image_generation_call","status":"completed","result":"iVBORw0KGgo="},
        {"type":"message","id":"msg_1","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Ja.",
        "annotations":[]},{"type":"refusal","refusal":"No more."}]},
        {"type":"function_call","id":"fc_2","call_id":"call_4","name":"weather","arguments":"{}","status":"completed"}],
        "service_tier":"default","conversation":{"id":"conv_1"},"usage":{"input_tokens":36,"input_tokens_details":
        {"cached_tokens":8,"cache_write_tokens":2},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":64},
        "total_tokens":123}}"#;
    let said = one(
        &request("/v1/responses", ASKED),
        &response("application/json", body),
    );
    assert_eq!(
        said,
        [
            "openai chat asks gpt-5 answers gpt-5-2026 resp_1",
            "told \"Be brief.\"",
            "tool weather",
            "tool -",
            "tool files",
            "developer: \"In Norwegian.\"",
            "user: \"Is it raining?\", image image/png of 8 bytes, image file-1, \
             document application/pdf of 5 bytes, document at https://a.example/b.pdf, some input_hologram",
            "assistant: thinks \"Look outside.\"",
            "assistant: some reasoning",
            "assistant: calls call_1 weather {\"city\":\"Oslo\"}",
            "tool: result call_1 \"rain\"",
            "assistant: calls call_2 apply_patch *** Begin Patch",
            "tool: result call_2 \"Done\"",
            "assistant: calls call_3 local_shell {\"type\":\"exec\",\"command\":[\"ls\"],\"env\":{}}",
            "tool: result call_3 \"a.txt\"",
            "assistant: calls ws_1 web_search {\"type\":\"search\",\"query\":\"rain\"}",
            "assistant: calls mcp_1 read {}, result mcp_1 \"none\"",
            "-: some item_reference",
            "->",
            "assistant: thinks \"It\", thinks \"rains.\", image - of 8 bytes, \"Ja.\", refuses \"No more.\", \
             calls call_4 weather {} (completed)",
            "in 36, out 87, cached 8, cache 2, thought 64",
        ]
    );
}

#[test]
fn parameters_and_ids() {
    let asked = request("/openai/v1/responses?api-version=preview", ASKED);
    let answer = response(
        "application/json",
        r#"{"id":"resp_1","object":"response","output":[],"conversation":{"id":"conv_1"}}"#,
    );
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    let request = &found[0].request;
    let parameters = &request.parameters;
    assert_eq!(
        (parameters.stream, parameters.max_tokens, parameters.output),
        (Some(true), Some(1000), Some("json"))
    );
    let kept = |text: &Option<crate::protocol::json::Text>| text.as_ref().unwrap().kept.clone();
    assert_eq!(kept(&request.previous), "resp_0");
    assert_eq!(kept(&request.conversation), "conv_1");
    assert_eq!(kept(&found[0].response.conversation), "conv_1");
    assert_eq!(found[0].format.unwrap().api(), Some("responses"));
}

const BEGUN: &str = r#"{"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","error":null,"model":"gpt-5-2026","output":[],"usage":null}}"#;

/// Everything but what Codex' own backend leaves out of its last event: the items.
const PIECES: [&str; 20] = [
    BEGUN,
    r#"{"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1","object":"response","status":"in_progress","output":[]}}"#,
    r#"{"type":"codex.rate_limits","plan_type":"pro"}"#,
    r#"{"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_1","type":"reasoning","summary":[]}}"#,
    r#"{"type":"response.reasoning_summary_part.added","item_id":"rs_1","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""}}"#,
    r#"{"type":"response.reasoning_summary_text.delta","item_id":"rs_1","output_index":0,"summary_index":0,"delta":"Let me "}"#,
    r#"{"type":"response.reasoning_summary_text.delta","item_id":"rs_1","output_index":0,"summary_index":0,"delta":"see."}"#,
    r#"{"type":"response.reasoning_summary_part.added","item_id":"rs_1","output_index":0,"summary_index":1,"part":{"type":"summary_text","text":""}}"#,
    r#"{"type":"response.reasoning_summary_text.delta","item_id":"rs_1","output_index":0,"summary_index":1,"delta":"Rain?"}"#,
    r#"{"type":"response.output_item.added","output_index":1,"item":{"id":"msg_1","type":"message","status":"in_progress","role":"assistant","content":[]}}"#,
    r#"{"type":"response.content_part.added","item_id":"msg_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[]}}"#,
    r#"{"type":"response.output_text.delta","item_id":"msg_1","output_index":1,"content_index":0,"delta":"J","logprobs":[],"obfuscation":"x9"}"#,
    r#"{"type":"response.output_text.delta","item_id":"msg_1","output_index":1,"content_index":0,"delta":"a."}"#,
    r#"{"type":"response.output_text.done","item_id":"msg_1","output_index":1,"content_index":0,"text":"Ja."}"#,
    r#"{"type":"response.output_item.added","output_index":2,"item":{"id":"fc_1","type":"function_call","status":"in_progress","arguments":"","call_id":"call_1","name":"weather"}}"#,
    r#"{"type":"response.output_item.added","output_index":3,"item":{"id":"ctc_1","type":"custom_tool_call","input":"","call_id":"call_2","name":"shell"}}"#,
    r#"{"type":"response.function_call_arguments.delta","item_id":"fc_1","output_index":2,"delta":"{\"city\":"}"#,
    r#"{"type":"response.custom_tool_call_input.delta","item_id":"ctc_1","output_index":3,"delta":"ls"}"#,
    r#"{"type":"response.function_call_arguments.delta","item_id":"fc_1","output_index":2,"delta":"\"Oslo\"}"}"#,
    r#"{"type":"response.completed","response":{"id":"resp_1","status":"completed","output":[],"usage":{"input_tokens":3,"output_tokens":5,"total_tokens":8}}}"#,
];

const ANSWER: &str = "assistant: thinks \"Let me see.\", thinks \"Rain?\", \"Ja.\", \
    calls call_1 weather {\"city\":\"Oslo\"}, calls call_2 shell ls";

#[test]
fn in_pieces() {
    let said = one(
        &request("/backend-api/codex/responses", ASKED),
        &response("text/event-stream", &events(&PIECES)),
    );
    assert_eq!(said[0], "openai chat asks gpt-5 answers gpt-5-2026 resp_1");
    assert_eq!(
        said[18..],
        [
            "->".into(),
            format!("{ANSWER} (completed)"),
            "in 3, out 5".into()
        ]
    );
}

/// Gateways have paths of their own.
#[test]
fn by_its_shape() {
    let body = r#"{"model":"gpt-5","input":[{"role":"user","content":"Hi"}]}"#;
    let said = one(
        &request("/proxy/llm", body),
        &response("text/event-stream", &events(&PIECES[..1])),
    );
    assert_eq!(
        said,
        [
            "openai chat asks gpt-5 answers gpt-5-2026 resp_1",
            "user: \"Hi\"",
            "->",
            "",
            "missing end"
        ]
    );
    let other = r#"{"model":"Golf","input":["a","b"]}"#;
    let (asked, answer) = (request("/cars", other), response("application/json", "{}"));
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(found.len(), 0);
}

/// What the last event has of the items holds.
#[test]
fn the_last_event_says_it_all() {
    let body = events(&[
        BEGUN,
        r#"{"type":"response.output_item.added","output_index":0,"item":{"id":"msg_1","type":"message","role":"assistant","content":[]}}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"Once upon"}"#,
        r#"{"type":"response.output_item.done","output_index":0,"item":{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"output_text","text":"Once upon a"}]}}"#,
        r#"{"type":"response.incomplete","response":{"id":"resp_1","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"output_text","text":"Once upon a"}]}],"usage":{"input_tokens":1,"output_tokens":2}}}"#,
    ]);
    let said = one(
        &request("/v1/responses", r#"{"model":"gpt-5","input":"Tell"}"#),
        &response("text/event-stream", &body),
    );
    assert_eq!(
        said[1..],
        [
            "user: \"Tell\"",
            "->",
            "assistant: \"Once upon a\" (max_output_tokens)",
            "in 1, out 2"
        ]
    );
}

#[test]
fn what_counts_tokens_asks_nothing() {
    for path in [
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens?beta=true",
    ] {
        let answer = response(
            "application/json",
            r#"{"object":"response.input_tokens","input_tokens":11}"#,
        );
        let asked = request(path, ASKED);
        let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
        assert_eq!(found.len(), 0, "{path}");
    }
}

#[test]
fn errors_in_mid_stream() {
    let asked = request("/v1/responses", r#"{"model":"gpt-5","input":"Tell"}"#);
    let failed = r#"{"type":"response.failed","response":{"id":"resp_1","status":"failed","error":{"code":"rate_limit_exceeded","message":"Slow down"},"output":[]}}"#;
    let flat = r#"{"type":"error","code":"server_error","message":"Oops","param":null,"sequence_number":2}"#;
    let nested = r#"{"type":"error","sequence_number":2,"error":{"type":"invalid_request_error","code":"x","message":"Oops"}}"#;
    let cases = [
        (failed, "error rate_limit_exceeded"),
        (flat, "error server_error"),
        (nested, "error invalid_request_error"),
    ];
    for (event, expected) in cases {
        let said = one(
            &asked,
            &response("text/event-stream", &events(&[BEGUN, event])),
        );
        assert_eq!(said[2..], ["->", "", expected]);
    }
}

/// Who hangs up has called all the same; and a hole takes what began in it.
#[test]
fn what_is_missing_is_said() {
    let asked = request("/v1/responses", ASKED);
    let answer = response("text/event-stream", &events(&PIECES));
    let find = |text: &str| {
        answer
            .windows(text.len())
            .position(|part| part == text.as_bytes())
            .unwrap()
    };
    let cut = &answer[..find("response.output_text.done")];
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, cut)]);
    assert_eq!(
        told(&found[0])[19..],
        [
            "assistant: thinks \"Let me see.\", thinks \"Rain?\", \"Ja.\"",
            "",
            "missing response end"
        ]
    );

    // From the first event to the middle of the text.
    let (from, to) = (find("response.in_progress"), find("\"delta\":\"a.\""));
    let steps = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..from]),
        Step::Hole(Received, (to - from) as u64),
        Step::Bytes(Received, &answer[to..]),
    ];
    let said = told(&calls(&steps)[0]);
    assert_eq!(
        said[19..],
        [
            "assistant: calls call_1 weather {\"city\":\"Oslo\"}, calls call_2 shell ls (completed)",
            "in 3, out 5",
            "missing response"
        ]
    );
}

/// Numbers that are made up cost nothing.
#[test]
fn numbers_of_items_are_bounded() {
    let mut all = vec![BEGUN.to_owned()];
    for index in [127u64, 128, 1 << 40] {
        all.push(format!(r#"{{"type":"response.output_text.delta","output_index":{index},"content_index":{index},"delta":"a"}}"#));
    }
    for _ in 0..300 {
        all.push(r#"{"type":"response.content_part.added","output_index":0,"part":{"type":"refusal","refusal":"b"}}"#.into());
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let asked = request("/v1/responses", r#"{"model":"gpt-5","input":"Tell"}"#);
    let answer = response("text/event-stream", &events(&all));
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    let [answer] = &found[0].response.messages[..] else {
        panic!("one answer");
    };
    assert_eq!(answer.parts.len(), 129);
}
