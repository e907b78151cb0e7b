//! Bodies of Ollama's API documentation.

use agent_ebpf::Direction::{Received, Sent};

use super::{Durations, Step, calls, one, request, response, told};

const ASKED: &str = r#"{"model":"llama3.2","messages":[{"role":"system","content":"Be brief."},
    {"role":"user","content":"what is in this image?","images":["iVBORw0KGgo="]},
    {"role":"assistant","content":"","thinking":"Tools.","tool_calls":[{"function":{"name":"get_temperature","arguments":{"city":"Oslo"}}}]},
    {"role":"tool","tool_name":"get_temperature","content":"11 degrees"}],
    "tools":[{"type":"function","function":{"name":"get_temperature","parameters":{"type":"object"}}}],
    "format":{"type":"object"},"options":{"temperature":0.5,"seed":42,"num_predict":100,"top_k":20,"stop":["\n"]},"keep_alive":"5m"}"#;

const PIECES: &str = concat!(
    r#"{"model":"llama3.2","created_at":"2023-08-04T08:52:19.385406455-07:00","message":{"role":"assistant","content":"","thinking":"Hm"},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2023-08-04T08:52:19.4-07:00","message":{"role":"assistant","content":"","thinking":"m."},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2023-08-04T08:52:19.5-07:00","message":{"role":"assistant","content":"The"},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2023-08-04T08:52:19.5-07:00","new":{"x":1},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2023-08-04T08:52:19.6-07:00","message":{"role":"assistant","content":" sky","tool_calls":[{"id":"call_1","function":{"index":0,"name":"get_temperature","arguments":{"city":"Bergen"}}}]},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2023-08-04T19:22:45.499127Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":4883583458,"load_duration":1334875,"prompt_eval_count":26,"prompt_eval_duration":342546000,"eval_count":282,"eval_duration":4535599000}"#,
    "\n"
);

#[test]
fn chat_in_lines() {
    let said = one(
        &request("/api/chat", ASKED),
        &response("application/x-ndjson", PIECES),
    );
    assert_eq!(
        said,
        [
            "ollama chat asks llama3.2 answers llama3.2 -",
            "tool get_temperature",
            "system: \"Be brief.\"",
            "user: \"what is in this image?\", image - of 8 bytes",
            "assistant: thinks \"Tools.\", calls - get_temperature {\"city\":\"Oslo\"}",
            "tool: result - \"11 degrees\"",
            "->",
            "assistant: thinks \"Hmm.\", \"The sky\", calls call_1 get_temperature {\"city\":\"Bergen\"} (stop)",
            "in 26, out 282",
        ]
    );
    let (asked, answer) = (
        request("/api/chat", ASKED),
        response("application/x-ndjson", PIECES),
    );
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    let parameters = &found[0].request.parameters;
    assert_eq!(
        (
            parameters.temperature,
            parameters.seed,
            parameters.max_tokens,
            parameters.top_k,
            parameters.output
        ),
        (Some(0.5), Some(42), Some(100), Some(20.0), Some("json"))
    );
    assert_eq!(parameters.stop_sequences.len(), 1);
    assert_eq!(found[0].pace.chunks, 6);
    let said = Durations {
        total: Some(4_883_583_458),
        load: Some(1_334_875),
        prompt_eval: Some(342_546_000),
        eval: Some(4_535_599_000),
    };
    assert_eq!(found[0].response.durations, said);
}

#[test]
fn chat_in_one_piece() {
    let asked =
        r#"{"model":"llama3.2","messages":[{"role":"user","content":"why?"}],"stream":false}"#;
    let body = r#"{"model":"llama3.2","created_at":"2023-12-12T14:13:43.416799Z","message":{"role":"assistant",
        "content":"Hello! How are you today?"},"done":true,"done_reason":"length","total_duration":5191566416,
        "prompt_eval_count":26,"eval_count":298}"#;
    let said = one(
        &request("/api/chat", asked),
        &response("application/json; charset=utf-8", body),
    );
    assert_eq!(
        said[1..],
        [
            "user: \"why?\"",
            "->",
            "assistant: \"Hello! How are you today?\" (length)",
            "in 26, out 298"
        ]
    );
}

/// Through a gateway, where the path says nothing.
#[test]
fn by_its_shape() {
    let said = one(
        &request("/proxy/llm", ASKED),
        &response("application/x-ndjson", PIECES),
    );
    assert_eq!(said[0], "ollama chat asks llama3.2 answers llama3.2 -");
    assert_eq!(said[5], "tool: result - \"11 degrees\"");
}

#[test]
fn generate() {
    let asked = r#"{"model":"codellama:code","system":"Python.","prompt":"def compute_gcd(a, b):","suffix":"    return result",
        "images":["iVBORw0KGgo="],"options":{"temperature":0},"raw":false,"stream":true}"#;
    let body = concat!(
        r#"{"model":"codellama:code","created_at":"2024-07-22T20:47:51.1Z","thinking":"Euclid.","response":"","done":false}"#,
        "\n",
        r#"{"model":"codellama:code","created_at":"2024-07-22T20:47:51.2Z","response":"\n  if","done":false}"#,
        "\n",
        r#"{"model":"codellama:code","created_at":"2024-07-22T20:47:51.3Z","response":" a","done":false}"#,
        "\n",
        r#"{"model":"codellama:code","created_at":"2024-07-22T20:47:51.4Z","response":"","done":true,"done_reason":"stop","context":[1,2,3],"prompt_eval_count":17,"eval_count":4}"#,
        "\n"
    );
    let said = one(
        &request("/api/generate", asked),
        &response("application/x-ndjson", body),
    );
    assert_eq!(
        said,
        [
            "ollama text_completion asks codellama:code answers codellama:code -",
            "told \"Python.\"",
            "user: \"def compute_gcd(a, b):\", \"    return result\", image - of 8 bytes",
            "->",
            "assistant: thinks \"Euclid.\", \"\\n  if a\" (stop)",
            "in 17, out 4",
        ]
    );
}

#[test]
fn embeddings() {
    let new = one(
        &request(
            "/api/embed",
            r#"{"model":"all-minilm","input":["Why?","How?"],"dimensions":2}"#,
        ),
        &response(
            "application/json",
            r#"{"model":"all-minilm","embeddings":[[0.01,-0.002],[0.3,0.4]],"total_duration":14143917,"load_duration":1019500,"prompt_eval_count":8}"#,
        ),
    );
    assert_eq!(
        new,
        [
            "ollama embeddings asks all-minilm answers all-minilm -",
            "user: \"Why?\"",
            "user: \"How?\"",
            "->",
            "in 8"
        ]
    );
    let old = one(
        &request(
            "/api/embeddings",
            r#"{"model":"all-minilm","prompt":"Here is an article"}"#,
        ),
        &response("application/json", r#"{"embedding":[0.5,0.01]}"#),
    );
    assert_eq!(
        old,
        [
            "ollama embeddings asks all-minilm answers - -",
            "user: \"Here is an article\"",
            "->",
            ""
        ]
    );
}

#[test]
fn errors() {
    let asked = request("/api/chat", ASKED);
    let body = concat!(
        r#"{"model":"llama3.2","created_at":"2023-08-04T08:52:19.5-07:00","message":{"role":"assistant","content":"The"},"done":false}"#,
        "\n",
        r#"{"error":"an error was encountered while running the model: unexpected EOF"}"#,
        "\n"
    );
    let said = one(&asked, &response("application/x-ndjson", body));
    assert_eq!(said[6..], ["->", "assistant: \"The\"", "", "error error"]);

    let body = r#"{"error":"model 'llama3.2' not found"}"#;
    let answer = format!(
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let said = one(&asked, answer.as_bytes());
    assert_eq!(said[6..], ["->", "", "error 404"]);
}

#[test]
fn what_is_missing_is_said() {
    let asked = request("/api/chat", ASKED);
    let answer = response("application/x-ndjson", PIECES);
    let find = |text: &str| {
        answer
            .windows(text.len())
            .position(|part| part == text.as_bytes())
            .unwrap()
    };
    let cut = &answer[..find(r#" sky"#)];
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, cut)]);
    assert_eq!(
        told(&found[0])[7..],
        [
            "assistant: thinks \"Hmm.\", \"The\"",
            "",
            "missing response end"
        ]
    );

    // A line with a hole ends there, and the next one is whole.
    let from = find("m.\"}");
    let steps = [
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..from]),
        Step::Hole(Received, 2),
        Step::Bytes(Received, &answer[from + 2..]),
    ];
    let said = told(&calls(&steps)[0]);
    assert_eq!(
        said[7..],
        [
            "assistant: thinks \"Hm\", \"The sky\", calls call_1 get_temperature {\"city\":\"Bergen\"} (stop)",
            "in 26, out 282",
            "missing response"
        ]
    );
}

/// What loads a model asks it nothing.
#[test]
fn what_is_no_call_is_none() {
    let cases = [
        ("/api/generate", r#"{"model":"llama3.2"}"#),
        ("/api/chat", r#"{"model":"llama3.2","messages":[]}"#),
        ("/api/chat", r#"{"messages":[{"id":"1","role":"user"}]}"#),
        ("/api/show", r#"{"model":"llama3.2"}"#),
        ("/api/embed", r#"{"url":"https://a.example"}"#),
    ];
    let answer = response(
        "application/json",
        r#"{"model":"llama3.2","created_at":"2024-09-12T21:17:29Z","done_reason":"load","done":true}"#,
    );
    for (path, body) in cases {
        let asked = request(path, body);
        let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
        assert_eq!(found.len(), 0, "{path} {body}");
    }
}
