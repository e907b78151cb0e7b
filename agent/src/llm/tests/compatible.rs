//! Who speaks OpenAI's format with additions of their own.

use super::*;

const ASKED: &str = r#"{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true}"#;

const PATH: &str = "/v1/chat/completions";

/// What is told of an answer in pieces.
fn streamed(pieces: &[&str]) -> Vec<String> {
    let body = events(pieces);
    let said = one(&request(PATH, ASKED), &response("text/event-stream", &body));
    said[3..].to_vec()
}

/// The same, in one.
fn whole(body: &str) -> Vec<String> {
    let said = one(&request(PATH, ASKED), &response("application/json", body));
    said[3..].to_vec()
}

#[test]
fn mistral() {
    let asked = r#"{"model":"magistral-medium","random_seed":7,"messages":[
        {"role":"user","content":[{"type":"text","text":"Hi"},{"type":"document_url","document_url":"https://a.example/d.pdf"},
        {"type":"image_url","image_url":"https://a.example/i.png"}]},
        {"role":"assistant","content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm"},{"type":"text","text":"."}]},
        {"type":"text","text":"Wait."}],"tool_calls":[{"id":"c1","function":{"name":"f","arguments":{"a":1}}}],"prefix":false},
        {"role":"tool","name":"f","tool_call_id":"c1","content":"1"}],"safe_prompt":false}"#;
    let body = events(&[
        r#"{"id":"1","object":"chat.completion.chunk","model":"magistral-medium","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"magistral-medium","choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"So"}]}]},"finish_reason":null}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"magistral-medium","choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"."}]}]},"finish_reason":null}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"magistral-medium","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"magistral-medium","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}],"p":"abc"}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"magistral-medium","choices":[{"index":0,"delta":{"content":"","tool_calls":[{"id":"c2","function":{"name":"f","arguments":{"b":2}},"index":0}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3}}"#,
        "[DONE]",
    ]);
    let asked = request(PATH, asked);
    let said = one(&asked, &response("text/event-stream", &body));
    assert_eq!(
        said,
        [
            "openai chat asks magistral-medium answers magistral-medium 1",
            "user: \"Hi\", document at https://a.example/d.pdf, image at https://a.example/i.png",
            "assistant: thinks \"Hm.\", \"Wait.\", calls c1 f {\"a\":1}",
            "tool: result c1 \"1\"",
            "->",
            "assistant: thinks \"So.\", \"Hello\", calls c2 f {\"b\":2} (tool_calls)",
            "in 9, out 3",
        ]
    );
    let found = calls(&[Step::Bytes(Sent, &asked)]);
    assert_eq!(found[0].request.parameters.seed, Some(7));
}

/// Code between a prompt and a suffix, and agents, whose models are not told.
#[test]
fn mistral_in_the_middle_and_agents() {
    let answer = response(
        "application/json",
        r#"{"id":"1","object":"chat.completion","model":"codestral","choices":[{"index":0,"message":{"role":"assistant","content":"x","tool_calls":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":8,"completion_tokens":1,"total_tokens":9}}"#,
    );
    let said = one(
        &request(
            "/v1/fim/completions",
            r#"{"model":"codestral","prompt":"def f(","suffix":"return 1"}"#,
        ),
        &answer,
    );
    assert_eq!(
        said,
        [
            "openai text_completion asks codestral answers codestral 1",
            "user: \"def f(\", \"return 1\"",
            "->",
            "assistant: \"x\" (stop)",
            "in 8, out 1",
        ]
    );
    let said = one(
        &request(
            "/v1/agents/completions",
            r#"{"agent_id":"ag_1","messages":[{"role":"user","content":"Hi"}]}"#,
        ),
        &answer,
    );
    assert_eq!(said[0], "openai chat asks - answers codestral 1");
    assert_eq!(said[3..], ["assistant: \"x\" (stop)", "in 8, out 1"]);
}

/// Empty lines come while nothing else does.
#[test]
fn deepseek() {
    let usage = r#""usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29,"prompt_cache_hit_tokens":16,"prompt_cache_miss_tokens":4,"completion_tokens_details":{"reasoning_tokens":5}}"#;
    let said = whole(&format!(
        "\n\n\n{{\"id\":\"1\",\"object\":\"chat.completion\",\"model\":\"deepseek-reasoner\",\"choices\":[{{\"index\":0,\"message\":\
         {{\"role\":\"assistant\",\"content\":\"Hello\",\"reasoning_content\":\"Hm.\"}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],{usage}}}"
    ));
    let expected = [
        "assistant: thinks \"Hm.\", \"Hello\" (stop)",
        "in 20, out 9, cached 16, thought 5",
    ];
    assert_eq!(said, expected);
    let body = format!(
        ": keep-alive\n\n{}: keep-alive\n\n{}",
        events(&[
            r#"{"id":"1","object":"chat.completion.chunk","model":"deepseek-reasoner","choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"H"},"finish_reason":null}],"usage":null}"#,
            r#"{"id":"1","object":"chat.completion.chunk","model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":null,"reasoning_content":"m."},"finish_reason":null}],"usage":null}"#,
        ]),
        events(&[
            r#"{"id":"1","object":"chat.completion.chunk","model":"deepseek-reasoner","choices":[{"index":0,"delta":{"content":"Hello","reasoning_content":null},"finish_reason":null}],"usage":null}"#,
            &format!(
                r#"{{"id":"1","object":"chat.completion.chunk","model":"deepseek-reasoner","choices":[{{"index":0,"delta":{{"content":"","reasoning_content":null}},"finish_reason":"stop"}}],{usage}}}"#
            ),
            "[DONE]",
        ])
    );
    let said = one(&request(PATH, ASKED), &response("text/event-stream", &body));
    assert_eq!(said[3..], expected);
}

#[test]
fn groq() {
    let said = streamed(&[
        r#"{"id":"1","object":"chat.completion.chunk","model":"openai/gpt-oss-20b","system_fingerprint":"fp","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"Hm."},"finish_reason":null}],"x_groq":{"id":"req_1"}}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"queue_time":0.01,"prompt_tokens":17,"prompt_time":0.1,"completion_tokens":8,"completion_time":0.2,"total_tokens":25,"total_time":0.3}}}"#,
        "[DONE]",
    ]);
    assert_eq!(
        said,
        [
            "assistant: thinks \"Hm.\", \"Hello\" (stop)",
            "in 17, out 8"
        ]
    );
    let said = streamed(&[
        r#"{"id":"1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"He"}}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"m","choices":[],"x_groq":{"id":"req_1","error":"over_capacity"}}"#,
    ]);
    assert_eq!(said, ["assistant: \"He\"", "", "error over_capacity"]);
}

/// Thoughts are no part of what is completed, and one of the total; so with Gemini, which does not say how many.
#[test]
fn xai_and_gemini() {
    let body = |usage: &str| {
        format!(
            r#"{{"id":"1","object":"chat.completion","model":"grok-4","choices":[{{"index":0,"message":{{"role":"assistant","content":"Hello","refusal":""}},"finish_reason":"stop"}}],"usage":{usage}}}"#
        )
    };
    let said = whole(&body(
        r#"{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"prompt_tokens_details":{"text_tokens":32,"audio_tokens":0,"image_tokens":0,"cached_tokens":6},"completion_tokens_details":{"reasoning_tokens":94,"audio_tokens":0},"num_sources_used":0,"cost_in_usd_ticks":37756000}"#,
    ));
    assert_eq!(
        said,
        [
            "assistant: \"Hello\" (stop)",
            "in 32, out 103, cached 6, thought 94, costs 0.0037756"
        ]
    );
    let said = whole(&body(
        r#"{"prompt_tokens":758,"completion_tokens":102,"total_tokens":1725}"#,
    ));
    assert_eq!(said[1], "in 758, out 967");
    // Perplexity's, and what is no amount.
    for (cost, amount) in [
        (
            r#"{"input_tokens_cost":0.001,"total_cost":0.003}"#,
            ", costs 0.003",
        ),
        (r#"{"input_tokens_cost":0.001}"#, ""),
        ("-1", ""),
        ("1e999", ""),
        ("\"0.1\"", ""),
    ] {
        let usage = format!(r#"{{"prompt_tokens":1,"completion_tokens":2,"cost":{cost}}}"#);
        assert_eq!(whole(&body(&usage))[1], format!("in 1, out 2{amount}"));
    }
    // Every call is whole, and all have the same number.
    let said = streamed(&[
        r#"{"id":"1","object":"chat.completion.chunk","model":"gemini-2.5-flash","choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"function":{"arguments":"{\"a\":1}","name":"f"},"id":"c1","index":0,"type":"function"}]}}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","model":"gemini-2.5-flash","choices":[{"index":0,"delta":{"tool_calls":[{"function":{"arguments":"{\"a\":2}","name":"f"},"id":"c2","index":0,"type":"function"}]},"finish_reason":"tool_calls"}]}"#,
        "[DONE]",
    ]);
    assert_eq!(
        said[0],
        "assistant: calls c1 f {\"a\":1}, calls c2 f {\"a\":2} (tool_calls)"
    );
}

#[test]
fn openrouter() {
    let first = r#"{"id":"gen-1","provider":"Anthropic","model":"anthropic/claude-sonnet-4.5","object":"chat.completion.chunk","created":1,"choices":[{"index":0,"delta":{"role":"assistant","content":"He","reasoning":"Hm.","reasoning_details":[{"type":"reasoning.text","text":"Hm."}]},"finish_reason":null,"native_finish_reason":null,"logprobs":null}]}"#;
    let body = format!(
        ": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n{}",
        events(&[
            first,
            r#"{"id":"gen-1","provider":"Anthropic","model":"anthropic/claude-sonnet-4.5","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"llo","images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]},"finish_reason":"stop","native_finish_reason":"end_turn"}]}"#,
            r#"{"id":"gen-1","provider":"Anthropic","model":"anthropic/claude-sonnet-4.5","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":{"prompt_tokens":14,"completion_tokens":12,"total_tokens":26,"cost":0.0002,"is_byok":false,"prompt_tokens_details":{"cached_tokens":3,"cache_write_tokens":2,"audio_tokens":0},"cost_details":{"upstream_inference_cost":null},"completion_tokens_details":{"reasoning_tokens":4}}}"#,
            "[DONE]",
        ])
    );
    let said = one(&request(PATH, ASKED), &response("text/event-stream", &body));
    assert_eq!(
        said[3..],
        [
            "assistant: thinks \"Hm.\", \"Hello\", image image/png of 8 bytes (stop)",
            "in 14, out 12, cached 3, cache 2, thought 4, costs 0.0002",
        ]
    );
    // In mid-stream, beside the choices and in one.
    for error in [
        r#"{"id":"gen-1","object":"chat.completion.chunk","model":"m","provider":"OpenAI","error":{"code":"server_error","message":"Provider disconnected"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#,
        r#"{"id":"gen-1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":""},"finish_reason":"error","error":{"code":"server_error","message":"Provider disconnected"}}]}"#,
    ] {
        let said = streamed(&[first, error]);
        assert_eq!(
            said,
            [
                "assistant: thinks \"Hm.\", \"He\" (error)",
                "",
                "error server_error"
            ]
        );
    }
    let body = r#"{"error":{"code":402,"message":"Insufficient credits"},"user_id":"u"}"#;
    assert_eq!(whole(body), ["", "error 402"]);
}

#[test]
fn vllm() {
    let first = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"qwen3","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null}"#;
    let said = streamed(&[
        first,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"qwen3","choices":[{"index":0,"delta":{"reasoning_content":"Hm."},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"qwen3","choices":[{"index":0,"delta":{"tool_calls":[{"id":"chatcmpl-tool-1","type":"function","index":0,"function":{"name":"f"}}]},"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"qwen3","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]},"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"qwen3","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]},"finish_reason":"tool_calls","stop_reason":151645}]}"#,
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"qwen3","choices":[],"usage":{"prompt_tokens":5,"total_tokens":12,"completion_tokens":7}}"#,
        "[DONE]",
    ]);
    assert_eq!(
        said,
        [
            "assistant: thinks \"Hm.\", calls chatcmpl-tool-1 f {\"a\":1} (tool_calls)",
            "in 5, out 7"
        ]
    );
    let said = streamed(&[
        first,
        r#"{"object":"error","message":"out of memory","type":"InternalServerError","param":null,"code":500}"#,
        "[DONE]",
    ]);
    assert_eq!(said, ["assistant: ", "", "error InternalServerError"]);
}

/// Who did not ask for usage has the timings.
#[test]
fn llama_cpp() {
    let timings = r#""timings":{"cache_n":10,"prompt_n":4,"prompt_ms":30.9,"prompt_per_token_ms":7.7,"predicted_n":3,"predicted_ms":9.1,"predicted_per_second":330.0}"#;
    let pieces = [
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1,"id":"chatcmpl-1","model":"m.gguf","system_fingerprint":"b6000","object":"chat.completion.chunk"}"#,
        r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hello"}}],"created":1,"id":"chatcmpl-1","model":"m.gguf","object":"chat.completion.chunk"}"#,
    ];
    let last = format!(
        r#"{{"choices":[{{"finish_reason":"stop","index":0,"delta":{{}}}}],"id":"chatcmpl-1","model":"m.gguf","object":"chat.completion.chunk",{timings}}}"#
    );
    let said = streamed(&[pieces[0], pieces[1], &last, "[DONE]"]);
    assert_eq!(
        said,
        ["assistant: \"Hello\" (stop)", "in 14, out 3, cached 10"]
    );
    let body = format!(
        r#"{{"choices":[{{"finish_reason":"stop","index":0,"message":{{"role":"assistant","content":"Hello"}}}}],"created":1,"model":"m.gguf","object":"chat.completion","usage":{{"completion_tokens":3,"prompt_tokens":14,"total_tokens":17}},"id":"chatcmpl-1",{timings}}}"#
    );
    assert_eq!(
        whole(&body),
        ["assistant: \"Hello\" (stop)", "in 14, out 3"]
    );
}
