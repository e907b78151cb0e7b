//! Calls to language models by the providers' own SDKs: every field as the SDK reports it to its program.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Lab, PYTHON, argv, bare, seconds};

/// SDKs × synchronous or not × streamed or not × what happens.
const CALLS: usize = 2 * 2 * 2 * 5;

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
    let serve = argv![PYTHON, &program, "serve", &lab.dir, &certificate, key];
    let server = lab.spawn(lab.command(serve), "providers");
    let port = lab.port("providers", &server).to_string();
    let run = lab
        .agent()
        .emit("llm,gap,coverage,stats")
        .content("redacted")
        .env("PYTHONPATH", modules)
        .start(argv![PYTHON, program, "ask", port, certificate])
        .finish(seconds(120));
    run.success();
    let out = run.process.out();
    let reports: Vec<Value> = out
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert_eq!(reports.len(), CALLS, "{out}");
    if bare() {
        return;
    }
    let records = run.records();
    let told: BTreeMap<String, &Value> = records
        .kind("llm")
        .map(|record| (text(record, "/gen_ai/request/model"), record))
        .collect();
    assert_eq!((told.len(), records.kind("llm").count()), (CALLS, CALLS));
    for report in &reports {
        let asked = text(report, "/asked");
        let record = told[&asked];
        let what = format!("{report}\n{record}");
        assert_eq!(expected(report), seen(record, report), "{what}");
        let streams = report["streams"].as_bool().unwrap();
        assert_eq!(
            record
                .pointer("/gen_ai/response/time_to_first_chunk")
                .is_some(),
            streams,
            "{what}"
        );
        let input = record.pointer("/gen_ai/input/messages").unwrap();
        let question = input.as_array().unwrap().last().unwrap();
        assert_eq!(text(question, "/parts/0/content"), "Does it rain? Ærø 🦀");
        println!(
            "{:>14} {} {asked}",
            text(report, "/client"),
            if streams { "streamed" } else { "whole   " }
        );
    }
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
        "id", "model", "text", "thoughts", "finish", "input", "output", "cached", "created",
        "thought", "error",
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
    fields
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
        ("error", "/error/type"),
    ];
    let failed = report.get("error").is_some();
    for (name, at) in places {
        if let Some(value) = record.pointer(at).filter(|_| !failed || name == "error") {
            fields.insert(name, value.clone());
        }
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
