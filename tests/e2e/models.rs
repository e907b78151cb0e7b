//! Calls to language models by the providers' own SDKs: every field as the SDK reports it to its program.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Lab, PYTHON, argv, bare, seconds};

/// Synchronous or not × version of HTTP × streamed or not × what happens, of nine APIs, and of one that has no thoughts;
/// of Bedrock's two by boto3, which has one way for each.
const CALLS: usize = 2 * 2 * 2 * (9 * 5 + 4) + 2 * (5 + 4);

#[test]
fn models_by_sdk() {
    let Some(lab) = Lab::new("models_by_sdk") else {
        return;
    };
    let Some(openai) = lab.fixture("sdks", "openai") else {
        return;
    };
    let modules = openai.parent().unwrap().as_os_str().to_owned();
    let (certificate, key) = lab.certificate();
    let program = lab.program("providers.py");
    let mut serve = lab.command(argv![PYTHON, program, &lab.dir, &certificate, key]);
    serve.env("PYTHONPATH", &modules);
    let server = lab.spawn(serve, "providers");
    let port = lab.port("providers", &server).to_string();
    let run = lab
        .agent()
        .emit("llm,gap,coverage,stats")
        .content("redacted")
        .env("PYTHONPATH", modules)
        .start(argv![PYTHON, lab.program("sdks.py"), port, certificate])
        .finish(seconds(120));
    run.success();
    let reports = run.reports();
    assert_eq!(reports.len(), CALLS, "{}", run.process.out());
    if bare() {
        return;
    }
    let records = run.records();
    let told: BTreeMap<String, &Value> = records
        .kind("llm")
        .map(|record| (text(record, "/gen_ai/request/model"), record))
        .collect();
    assert_eq!((told.len(), records.kind("llm").count()), (CALLS, CALLS));
    let mut table: BTreeMap<String, [Vec<String>; 2]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for report in &reports {
        let asked = text(report, "/asked");
        let record = told[&asked];
        let (expected, seen) = (expected(report), seen(record, report));
        if expected != seen {
            wrong.push(format!("{expected:?}\n{seen:?}\n{report}\n{record}"));
        }
        let [client, api, http] =
            ["client", "api", "http"].map(|name| text(report, &format!("/{name}")));
        let way = if report["async"] == true {
            "async"
        } else {
            "sync"
        };
        let row = format!("{client:32} {api:9} {way:5} HTTP/{http:3}");
        let row = table.entry(row).or_default();
        let kind = asked.split('-').next().unwrap().to_owned();
        row[usize::from(report["streams"] == true)].push(kind);
    }
    for (who, [whole, streamed]) in table {
        println!(
            "{who} whole: {}; streamed: {}",
            whole.join(" "),
            streamed.join(" ")
        );
    }
    assert!(
        wrong.is_empty(),
        "{} of {CALLS}:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

fn text(value: &Value, at: &str) -> String {
    value
        .pointer(at)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// What the SDK reports, field by field; of a call that failed, its error.
fn expected(report: &Value) -> BTreeMap<&'static str, Value> {
    let mut fields = BTreeMap::new();
    for name in [
        "id",
        "model",
        "text",
        "thoughts",
        "finish",
        "input",
        "output",
        "cached",
        "created",
        "thought",
        "tier",
        "fingerprint",
        "error",
    ] {
        if let Some(value) = report
            .get(name)
            .filter(|value| !value.is_null() && **value != "")
        {
            fields.insert(name, value.clone());
        }
    }
    if let Some(calls) = report["calls"].as_array() {
        fields.insert("calls", calls.iter().map(call).collect());
    }
    let (provider, operation) = called(report);
    fields.insert("provider", provider.into());
    fields.insert("operation", operation.into());
    fields.insert("http", report["http"].clone());
    fields.insert("streams", report["streams"].clone());
    fields.insert("question", "Does it rain? Ærø 🦀".into());
    if text(report, "/api") != "invoke" {
        fields.insert("tools", vec!["tool_0"].into());
    }
    fields
}

/// Who is called, and for what. Nothing but its path tells one who speaks OpenAI's language from another.
fn called(report: &Value) -> (&'static str, &'static str) {
    let (client, asked) = (text(report, "/client"), text(report, "/asked"));
    match text(report, "/api").as_str() {
        "chat" if client.contains("Azure") => ("azure.ai.openai", "chat"),
        "chat" | "responses" | "mistral" => ("openai", "chat"),
        "messages" if client.contains("Bedrock") => ("aws.bedrock", "chat"),
        "messages" => ("anthropic", "chat"),
        "generate" => ("gcp.gemini", "generate_content"),
        "cohere" | "first" => ("cohere", "chat"),
        "ollama" => ("ollama", "chat"),
        "invoke" if asked.starts_with("titan") || asked.starts_with("llama") => {
            ("aws.bedrock", "text_completion")
        }
        "converse" | "invoke" => ("aws.bedrock", "chat"),
        other => panic!("{other}"),
    }
}

/// Id, name and arguments, which one SDK gives as text and the other one as what it means.
fn call(call: &Value) -> Value {
    let arguments = match &call[2] {
        Value::String(text) => serde_json::from_str(text).unwrap(),
        value => value.clone(),
    };
    Value::Array(vec![call[0].clone(), call[1].clone(), arguments])
}

/// The same of a record. Of a call that failed the SDK reports nothing else.
fn seen(record: &Value, report: &Value) -> BTreeMap<&'static str, Value> {
    let mut fields = BTreeMap::new();
    let places = [
        ("id", "/gen_ai/response/id"),
        ("model", "/gen_ai/response/model"),
        ("finish", "/gen_ai/response/finish_reasons/0"),
        ("input", "/gen_ai/usage/input_tokens"),
        ("output", "/gen_ai/usage/output_tokens"),
        ("cached", "/gen_ai/usage/cache_read/input_tokens"),
        ("created", "/gen_ai/usage/cache_creation/input_tokens"),
        ("thought", "/gen_ai/usage/reasoning/output_tokens"),
        ("tier", "/openai/response/service_tier"),
        ("tier", "/anthropic/response/service_tier"),
        ("fingerprint", "/openai/response/system_fingerprint"),
        ("missing", "/missing"),
    ];
    let failed = report.get("error").is_some();
    for (name, at) in places.into_iter().filter(|_| !failed) {
        if let Some(value) = record.pointer(at) {
            fields.insert(name, value.clone());
        }
    }
    let asked = [
        ("error", "/error/type"),
        ("provider", "/gen_ai/provider/name"),
        ("operation", "/gen_ai/operation/name"),
        ("http", "/network/protocol/version"),
    ];
    for (name, at) in asked {
        if let Some(value) = record.pointer(at) {
            fields.insert(name, value.clone());
        }
    }
    let is_in_pieces = record
        .pointer("/gen_ai/response/time_to_first_chunk")
        .is_some();
    fields.insert("streams", is_in_pieces.into());
    let input = record
        .pointer("/gen_ai/input/messages")
        .and_then(Value::as_array);
    let question = input.and_then(|messages| messages.last()?.pointer("/parts/0/content"));
    fields.insert("question", question.cloned().unwrap_or_default());
    if let Some(tools) = record
        .pointer("/gen_ai/tool/definitions")
        .and_then(Value::as_array)
    {
        fields.insert(
            "tools",
            tools.iter().map(|tool| tool["name"].clone()).collect(),
        );
    }
    if failed {
        return fields;
    }
    let parts = record.pointer("/gen_ai/output/messages/0/parts");
    let parts = parts.and_then(Value::as_array).cloned().unwrap_or_default();
    let of =
        |kind: &str| -> Vec<&Value> { parts.iter().filter(|part| part["type"] == kind).collect() };
    for (name, kind) in [("text", "text"), ("thoughts", "reasoning")] {
        let all: String = of(kind)
            .into_iter()
            .map(|part| text(part, "/content"))
            .collect();
        if !all.is_empty() {
            fields.insert(name, all.into());
        }
    }
    let calls = of("tool_call").into_iter().map(|part| {
        let arguments = part["arguments"].clone();
        call(&Value::Array(vec![
            part["id"].clone(),
            part["name"].clone(),
            arguments,
        ]))
    });
    fields.insert("calls", calls.collect());
    fields
}
