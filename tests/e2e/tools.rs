//! The Model Context Protocol by its own SDK: every call as the SDK reports it to its program.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::harness::{Lab, PYTHON, argv, bare, seconds};

/// Ways to speak, calls in each, and in two of them a tool that asks back.
const CALLS: usize = 7 * 8 + 2 * 2;

/// What an SDK says of itself: not in what is asked for, but said of every result of older versions.
const DEFAULTS: [&str; 3] = ["resultType", "ttlMs", "cacheScope"];

#[test]
fn tools_by_sdk() {
    let Some(lab) = Lab::new("tools_by_sdk") else {
        return;
    };
    let (Some(sdks), Some(mcp)) = (lab.fixture("sdks", "anyio"), lab.fixture("mcp", "mcp")) else {
        return;
    };
    let paths = [&mcp, &sdks].map(|module| module.parent().unwrap());
    let modules = std::env::join_paths(paths).unwrap();
    let (certificate, key) = lab.certificate();
    let program = lab.program("tools.py");
    let serve = argv![PYTHON, &program, "serve", &lab.dir, &certificate, key];
    let mut serve = lab.command(serve);
    serve.env("PYTHONPATH", &modules);
    let server = lab.spawn(serve, "tools");
    let port = lab.port("tools", &server).to_string();
    let run = lab
        .agent()
        .emit("mcp,gap,coverage,stats")
        .content("redacted")
        .env("PYTHONPATH", modules)
        .start(argv![PYTHON, program, "ask", port, certificate])
        .finish(seconds(120));
    run.success();
    let reports = run.reports();
    assert_eq!(reports.len(), CALLS, "{}", run.process.out());
    if bare() {
        return;
    }
    let records = run.records();
    let mut told: BTreeMap<_, Vec<&Value>> = BTreeMap::new();
    for record in records.kind("mcp") {
        let (method, name) = (text(record, "/mcp/method/name"), name(record));
        told.entry((way(record), method, name))
            .or_default()
            .push(record);
        assert!(record.get("missing").is_none(), "{record}");
    }
    for report in &reports {
        let key = ["way", "method", "name"].map(|name| text(report, &format!("/{name}")));
        let [way, method, name] = key.clone();
        let found = told
            .remove(&(way.clone(), method, name))
            .unwrap_or_default();
        let [record] = found[..] else {
            panic!("{report}\n{found:#?}\n{:#?}", told.keys());
        };
        check(report, record);
        let has_session = record.pointer("/mcp/session/id").is_some();
        let is_session = way.ends_with("legacy") && !way.starts_with("stateless");
        assert_eq!(has_session, is_session, "{record}");
        println!("{}", key.join(" "));
    }
    let others: BTreeSet<&str> = told.keys().map(|(_, method, _)| method.as_str()).collect();
    assert_eq!(
        others,
        BTreeSet::from(["initialize", "notifications/initialized", "server/discover"])
    );
    let greetings = told.values().map(Vec::len).sum::<usize>();
    assert_eq!(greetings, 4 + 4 + 3, "{told:#?}");
}

/// `json legacy`: where it went, and which age of the protocol that was.
fn way(record: &Value) -> String {
    let path = text(record, "/url/path");
    let path = path.split('/').nth(1).unwrap_or_default();
    match text(record, "/mcp/protocol/version").as_str() {
        version if version >= "2026" => format!("{path} auto"),
        // The older transport has no head for it.
        _ => format!("{path} legacy"),
    }
}

fn name(record: &Value) -> String {
    let places = [
        "/gen_ai/tool/name",
        "/gen_ai/prompt/name",
        "/mcp/resource/uri",
    ];
    let mut names = places.iter().map(|at| text(record, at));
    names.find(|name| !name.is_empty()).unwrap_or_default()
}

fn check(report: &Value, record: &Value) {
    let what = format!("{report}\n{record}");
    let is_asked_back = report["method"] == "elicitation/create";
    let initiator = if is_asked_back { "server" } else { "client" };
    assert_eq!(text(record, "/mcp/initiator"), initiator, "{what}");
    assert!(
        record.pointer("/timings/duration").unwrap().as_f64() > Some(0.0),
        "{what}"
    );
    if let Some(error) = report.get("error") {
        let code = error["code"].to_string();
        assert_eq!(text(record, "/rpc/response/status_code"), code, "{what}");
        assert_eq!(text(record, "/error/type"), code, "{what}");
        assert_eq!(text(record, "/error/message"), error["message"], "{what}");
        return;
    }
    let is_tool = report["method"] == "tools/call";
    let at = match is_tool {
        true => "/gen_ai/tool/call/result",
        false => "/mcp/result",
    };
    let mut result: Value = serde_json::from_str(&text(record, at)).expect(&what);
    let mut expected = report["result"].clone();
    for name in DEFAULTS {
        let said = result.as_object_mut().unwrap().remove(name);
        let reported = expected.as_object_mut().unwrap().remove(name);
        assert!(said.is_none() || said == reported, "{name} {what}");
    }
    assert_eq!(result, expected, "{what}");
    if is_asked_back {
        let params: Value = serde_json::from_str(&text(record, "/mcp/params")).expect(&what);
        assert_eq!(params["message"], report["message"], "{what}");
    }
    let is_error = report.pointer("/result/isError") == Some(&Value::Bool(true));
    let error = text(record, "/error/type");
    assert_eq!(error, if is_error { "tool_error" } else { "" }, "{what}");
    if is_tool {
        let arguments = text(record, "/gen_ai/tool/call/arguments");
        let arguments: Value = serde_json::from_str(&arguments).expect(&what);
        assert_eq!(arguments, report["arguments"], "{what}");
        assert_eq!(text(record, "/gen_ai/operation/name"), "execute_tool");
    }
}

fn text(value: &Value, at: &str) -> String {
    let text = value.pointer(at).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}
