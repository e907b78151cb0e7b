//! Gemini's calls, of the Gemini API and of Vertex AI.

use super::*;

const ASKED: &str = r#"{"systemInstruction":{"parts":[{"text":"Be brief."}]},"contents":[
    {"role":"user","parts":[{"text":"Is it raining?"},{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}},
    {"fileData":{"mimeType":"video/mp4","fileUri":"https://files.example/1"}}]},
    {"role":"model","parts":[{"functionCall":{"id":"f1","name":"weather","args":{"city":"Oslo"}},
    "thoughtSignature":"c2ln"}]},
    {"role":"user","parts":[{"functionResponse":{"id":"f1","name":"weather","response":{"result":"rain"}}}]}],
    "tools":[{"functionDeclarations":[{"name":"weather","description":"d","parameters":{"type":"OBJECT"}}]},
    {"googleSearch":{}}],"toolConfig":{"functionCallingConfig":{"mode":"AUTO"}},
    "safetySettings":[{"category":"HARM_CATEGORY_HARASSMENT","threshold":"BLOCK_NONE"}],
    "generationConfig":{"temperature":0.5,"topP":0.9,"topK":40,"candidateCount":2,"maxOutputTokens":800,
    "stopSequences":["END"],"seed":7,"responseMimeType":"application/json",
    "thinkingConfig":{"includeThoughts":true}}}"#;

const PATH: &str = "/v1beta/models/gemini-2.5-pro:generateContent";

#[test]
fn in_one_piece() {
    let body = r#"{"candidates":[{"content":{"parts":[{"text":"Hm.","thought":true},{"text":"Yes."},
        {"executableCode":{"language":"PYTHON","code":"1"}},{"codeExecutionResult":{"outcome":"OUTCOME_OK","output":"1\n"}}],
        "role":"model"},"finishReason":"STOP","index":0,"avgLogprobs":-0.1},
        {"content":{"parts":[{"functionCall":{"name":"weather","args":{"city":"Bergen"}},"thoughtSignature":"c2ln"}],
        "role":"model"},"finishReason":"STOP","index":1}],
        "usageMetadata":{"promptTokenCount":20,"candidatesTokenCount":10,"totalTokenCount":45,"cachedContentTokenCount":8,
        "toolUsePromptTokenCount":5,"thoughtsTokenCount":10,"promptTokensDetails":[{"modality":"TEXT","tokenCount":20}]},
        "modelVersion":"gemini-2.5-pro-001","responseId":"r1"}"#;
    let said = one(
        &request(PATH, ASKED),
        &response("application/json; charset=UTF-8", body),
    );
    assert_eq!(
        said,
        [
            "gcp.gemini generate_content asks gemini-2.5-pro answers gemini-2.5-pro-001 r1",
            "told \"Be brief.\"",
            "tool weather",
            "tool -",
            "user: \"Is it raining?\", image image/png of 8 bytes, video at https://files.example/1",
            "assistant: calls f1 weather {\"city\":\"Oslo\"}",
            "user: result f1 \"{\\\"result\\\":\\\"rain\\\"}\"",
            "->",
            "assistant: thinks \"Hm.\", \"Yes.\", calls - code_execution {\"language\":\"PYTHON\",\"code\":\"1\"}, \
             result - \"1\\n\" (STOP)",
            "assistant: calls - weather {\"city\":\"Bergen\"} (STOP)",
            "in 25, out 20, cached 8, thought 10",
        ]
    );
}

#[test]
fn parameters_are_read() {
    let asked = request(PATH, ASKED);
    let found = calls(&[Step::Bytes(Sent, &asked)]);
    let parameters = &found[0].request.parameters;
    assert_eq!(
        *parameters,
        Parameters {
            max_tokens: Some(800),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(40.0),
            seed: Some(7),
            choices: Some(2),
            stop_sequences: vec![Text::of("END")],
            output: Some("json"),
            ..Parameters::default()
        }
    );
}

const PIECES: [&str; 4] = [
    r#"{"candidates":[{"content":{"parts":[{"text":"I think","thought":true}],"role":"model"},"index":0}],
        "usageMetadata":{"promptTokenCount":9,"totalTokenCount":9},"modelVersion":"gemini-2.5-pro","responseId":"r2"}"#,
    r#"{"candidates":[{"content":{"parts":[{"text":" so.","thought":true},{"text":"He"}],"role":"model"},"index":0}],
        "usageMetadata":{"promptTokenCount":9,"totalTokenCount":20,"thoughtsTokenCount":11},"somethingNew":{"a":[]}}"#,
    r#"{"candidates":[{"content":{"parts":[{"text":"llo"},{"newPart":{"x":1}}],"role":"model"},"index":0}]}"#,
    r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"weather","args":{"city":"Oslo"}}},
        {"text":"","thoughtSignature":"c2ln"}],"role":"model"},"finishReason":"STOP","index":0}],
        "usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":4,"thoughtsTokenCount":11,"totalTokenCount":24}}"#,
];

const TOLD: [&str; 3] = [
    "->",
    "assistant: thinks \"I think so.\", \"Hello\", some newPart, calls - weather {\"city\":\"Oslo\"} (STOP)",
    "in 9, out 15, thought 11",
];

#[test]
fn in_events() {
    let pieces = PIECES.map(|piece| piece.replace('\n', " "));
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let said = one(
        &request(
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            ASKED,
        ),
        &response("text/event-stream", &events(&pieces)),
    );
    assert_eq!(
        said[0],
        "gcp.gemini generate_content asks gemini-2.5-pro answers gemini-2.5-pro r2"
    );
    assert_eq!(said[7..], TOLD);
}

/// Without `alt=sse` the pieces are a list; and who joined in the middle knows them by their shape.
#[test]
fn in_a_list() {
    let body = format!("[{}\n]\n", PIECES.join("\n,\r\n"));
    let asked = request(
        "/v1/projects/p/locations/eu/publishers/google/models/gemini-2.5-pro:streamGenerateContent",
        ASKED,
    );
    let answer = response("application/json", &body);
    let said = one(&asked, &answer);
    assert_eq!(
        said[0],
        "gcp.vertex_ai generate_content asks gemini-2.5-pro answers gemini-2.5-pro r2"
    );
    assert_eq!(said[7..], TOLD);
    let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
    assert_eq!(found[0].pace.chunks, 4);
    assert_eq!(found[0].request.parameters.stream, Some(true));
}

#[test]
fn both_ways_of_writing_names() {
    let asked = r#"{"contents":{"parts":[{"text":"Hi"},{"inline_data":{"mime_type":"audio/wav","data":"UklGRg=="}}]},
        "system_instruction":{"parts":{"text":"Be brief."}},
        "tools":[{"function_declarations":[{"name":"f"}]}],"generation_config":{"max_output_tokens":5}}"#;
    let answered = r#"{"candidates":[{"content":{"role":"model","parts":[{"function_call":{"name":"f","args":{}}}]},
        "finish_reason":"MAX_TOKENS"}],"usage_metadata":{"prompt_token_count":3,"candidates_token_count":2},
        "model_version":"g","response_id":"r"}"#;
    let said = one(
        &request("/gate/v1/models/g%2D1:generateContent?key=x", asked),
        &response("application/json", answered),
    );
    assert_eq!(
        said,
        [
            "gcp.gemini generate_content asks g-1 answers g r",
            "told \"Be brief.\"",
            "tool f",
            "user: \"Hi\", audio audio/wav of 4 bytes",
            "->",
            "assistant: calls - f {} (MAX_TOKENS)",
            "in 3, out 2",
        ]
    );
}

#[test]
fn what_is_blocked_or_fails() {
    let blocked = r#"{"promptFeedback":{"blockReason":"SAFETY","safetyRatings":[]},
        "usageMetadata":{"promptTokenCount":4,"totalTokenCount":4},"modelVersion":"g"}"#;
    let said = one(
        &request(PATH, ASKED),
        &response("application/json", blocked),
    );
    assert_eq!(said[7..], ["->", "in 4", "error SAFETY"]);
    let pieces = [
        PIECES[2],
        r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
    ];
    let stream = "/v1beta/models/gemini-2.5-pro:streamGenerateContent";
    let said = one(
        &request(&format!("{stream}?alt=sse"), ASKED),
        &response("text/event-stream", &events(&pieces)),
    );
    assert_eq!(
        said[7..],
        [
            "->",
            "assistant: \"llo\", some newPart",
            "",
            "error UNAVAILABLE"
        ]
    );
    let said = one(
        &request(stream, ASKED),
        &response("application/json", &format!("[{}]", pieces.join(","))),
    );
    assert_eq!(said[10], "error UNAVAILABLE");
}

#[test]
fn what_is_missing_is_said() {
    let asked = request("/v1beta/models/gemini-2.5-pro:streamGenerateContent", ASKED);
    let answer = response("application/json", &format!("[{}]", PIECES.join(",")));
    let at = answer.windows(3).position(|part| part == b"llo").unwrap();
    let told_of = |steps: &[Step<'_>]| told(&calls(steps)[0]);
    // The client hangs up.
    let said = told_of(&[
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at + 1]),
    ]);
    assert_eq!(
        said[8..],
        [
            "assistant: thinks \"I think so.\", \"Hel\"",
            "in 9, out 11, thought 11",
            "missing response end"
        ]
    );
    // A hole.
    let said = told_of(&[
        Step::Bytes(Sent, &asked),
        Step::Bytes(Received, &answer[..at]),
        Step::Hole(Received, 3),
        Step::Bytes(Received, &answer[at + 3..]),
    ]);
    assert_eq!(said[10], "missing response end");
    // Nobody saw the request.
    let said = told_of(&[Step::Bytes(
        Received,
        &response("application/json", &format!("[{}]", PIECES.join(","))),
    )]);
    assert_eq!(
        said[0],
        "gcp.gemini generate_content asks - answers gemini-2.5-pro r2"
    );
    assert_eq!(said[1..4], TOLD);
}

#[test]
fn embeddings() {
    let said = one(
        &request(
            "/v1beta/models/gemini-embedding-001:embedContent",
            r#"{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"What?"}]},
                "taskType":"RETRIEVAL_QUERY","outputDimensionality":768}"#,
        ),
        &response("application/json", r#"{"embedding":{"values":[0.1,-0.2]}}"#),
    );
    assert_eq!(
        said,
        [
            "gcp.gemini embeddings asks gemini-embedding-001 answers - -",
            "user: \"What?\"",
            "->",
            ""
        ]
    );
    let said = one(
        &request(
            "/v1beta/models/gemini-embedding-001:batchEmbedContents",
            r#"{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"a"}]}},
                {"model":"models/gemini-embedding-001","content":{"parts":[{"text":"b"}]}}]}"#,
        ),
        &response(
            "application/json",
            r#"{"embeddings":[{"values":[0.1]},{"values":[0.2]}]}"#,
        ),
    );
    assert_eq!(said[1..3], ["user: \"a\"", "user: \"b\""]);
}

/// "Text embeddings API" of Vertex AI, and what else is predicted.
#[test]
fn embeddings_of_vertex() {
    const PATH: &str =
        "/v1/projects/p/locations/eu/publishers/google/models/text-embedding-005:predict";
    let said = one(
        &request(
            PATH,
            r#"{"instances":[{"task_type":"QUESTION_ANSWERING","content":"What?"},{"content":"b"}],
                "parameters":{"outputDimensionality":256,"autoTruncate":true}}"#,
        ),
        &response(
            "application/json",
            r#"{"predictions":[
                {"embeddings":{"statistics":{"truncated":false,"token_count":3},"values":[0.1,-0.2]}},
                {"embeddings":{"statistics":{"truncated":false,"token_count":1},"values":[0.3,-0.4]}}],
                "metadata":{"billableCharacterCount":6}}"#,
        ),
    );
    assert_eq!(
        said,
        [
            "gcp.vertex_ai embeddings asks text-embedding-005 answers - -",
            "user: \"What?\"",
            "user: \"b\"",
            "->",
            "in 4"
        ]
    );
    let image = request(
        PATH,
        r#"{"instances":[{"prompt":"a cat"}],"parameters":{}}"#,
    );
    let answer = response(
        "application/json",
        r#"{"predictions":[{"mimeType":"image/png"}]}"#,
    );
    let steps = [Step::Bytes(Sent, &image), Step::Bytes(Received, &answer)];
    assert!(calls(&steps).is_empty());
}

#[test]
fn tokens_are_counted_without_a_call() {
    let claude = r#"{"model":"claude-opus-4-1","messages":[{"role":"user","content":"Hi"}]}"#;
    for (path, asked) in [
        ("/v1beta/models/gemini-2.5-pro:countTokens", ASKED),
        ("/v1/messages/count_tokens?beta=true", claude),
        (
            "/v1/projects/p/locations/eu/publishers/anthropic/models/count-tokens:rawPredict",
            claude,
        ),
    ] {
        let asked = request(path, asked);
        let answer = response("application/json", r#"{"input_tokens":31}"#);
        let found = calls(&[Step::Bytes(Sent, &asked), Step::Bytes(Received, &answer)]);
        assert_eq!(found.len(), 0, "{path}");
    }
}

/// Others' models, in their own formats.
#[test]
fn vertex_has_models_of_others() {
    let place = "/v1/projects/p/locations/eu";
    let said = one(
        &request(
            &format!("{place}/publishers/anthropic/models/claude-opus-4-1@20250805:rawPredict"),
            r#"{"anthropic_version":"vertex-2023-10-16","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}"#,
        ),
        &response(
            "application/json",
            r#"{"id":"msg_vrtx_1","type":"message","role":"assistant","model":"claude-opus-4-1-20250805",
                "content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn",
                "usage":{"input_tokens":5,"output_tokens":2}}"#,
        ),
    );
    assert_eq!(
        said,
        [
            "gcp.vertex_ai chat asks claude-opus-4-1@20250805 answers claude-opus-4-1-20250805 msg_vrtx_1",
            "user: \"Hi\"",
            "->",
            "assistant: \"Hello\" (end_turn)",
            "in 5, out 2",
        ]
    );
    for (path, asked) in [
        (
            format!("{place}/publishers/mistralai/models/mistral-large:rawPredict"),
            "mistral-large",
        ),
        (
            format!("{place}/endpoints/openapi/chat/completions"),
            "google/gemini",
        ),
    ] {
        let said = one(
            &request(
                &path,
                &format!(
                    r#"{{"model":"{asked}","max_tokens":9,"messages":[{{"role":"user","content":"Hi"}}]}}"#
                ),
            ),
            &response(
                "application/json",
                r#"{"id":"1","object":"chat.completion","model":"m","choices":[{"index":0,"message":
                    {"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
            ),
        );
        assert_eq!(
            said[0],
            format!("gcp.vertex_ai chat asks {asked} answers m 1")
        );
        assert_eq!(said[3..], ["assistant: \"Hello\" (stop)", "in 1, out 2"]);
    }
}
