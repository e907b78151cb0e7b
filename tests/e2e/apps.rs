//! Programs that talk to language models, as people install them.
//!
//! They speak to an imitation in a network that has nothing but loopback, with a made-up key and no environment of
//! ours: whatever else they would like to reach, they can't.

use std::ffi::OsString;

use serde_json::Value;

use crate::harness::{Lab, Run, Server, argv, bare};
use crate::libraries::assert_known;
use crate::records::{Connection, Truth};

/// What the imitation says in one piece, among many small ones.
const LONG: &str = "long ";
const TIMES: usize = 9000;

/// An imitation of the providers' services, and who asks it.
struct Scene<'a> {
    lab: &'a Lab,
    server: Server<'a>,
}

impl<'a> Scene<'a> {
    fn new(lab: &'a Lab) -> Self {
        lab.program("models.py");
        let server = lab.server(&["--mode", "models", "--alone"]);
        for dir in ["home", "work"] {
            std::fs::create_dir(lab.path(dir)).unwrap();
        }
        Self { lab, server }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.server.port)
    }

    /// `command` in the server's network, with these variables and few others.
    fn run(&self, variables: &[(&str, &str)], command: Vec<OsString>) -> Run {
        let network = format!("--net=/proc/{}/ns/net", self.server.pid());
        let home = self.lab.path("home");
        let mut there = argv!["nsenter", network, "--", "env", "-i"];
        there.push("PATH=/usr/bin:/bin".into());
        there.push(format!("HOME={}", home.display()).into());
        let variables = variables.iter();
        there.extend(variables.map(|(name, value)| OsString::from(format!("{name}={value}"))));
        let agent = self.lab.agent().directory(&self.lab.path("work"));
        let agent = agent.emit("data,gap,coverage,stats,llm");
        if bare() {
            there.extend(command);
            return agent.run(there);
        }
        agent.before(there).run(command)
    }

    /// The truth as far as a client must read it: one that knows from the last event that no more comes need not
    /// wait for the end of the chunks.
    fn as_read(&self, run: &Run, truth: &[Truth]) -> Vec<Truth> {
        const END: &[u8] = b"0\r\n\r\n";
        let connections = if bare() {
            Vec::new()
        } else {
            run.records().connections().unwrap()
        };
        let mut truth = truth.to_vec();
        for one in &mut truth {
            let Some(read) = one.received.strip_suffix(END) else {
                continue;
            };
            let has_stopped =
                |connection: &Connection| connection.received.len() == read.len() as u64;
            if connections.iter().any(has_stopped) {
                one.received.truncate(read.len());
            }
        }
        truth
    }

    /// It understood the answer, every byte of both is there, of the one POST to `path` and of all else, and it is told
    /// as a call to a model.
    #[track_caller]
    fn assert_exact(&self, run: &Run, path: &str) {
        run.success();
        assert!(
            run.process.out().contains(LONG.repeat(TIMES).trim_end()),
            "it did not show the answer"
        );
        let truth = self.server.client_truth();
        let post = format!("POST {path}");
        let asked = |sent: &[u8]| sent.starts_with(post.as_bytes());
        let asking: Vec<_> = truth.iter().filter(|truth| asked(&truth.sent)).collect();
        let [asking] = asking[..] else {
            panic!("{} connections with a {post}", asking.len());
        };
        assert!(asking.received.len() > LONG.len() * TIMES);
        run.assert_exact(&self.as_read(run, &truth));
        if !bare() {
            assert_told(run, asking, &post);
        }
    }
}

/// There is one call to a model, and of it what was really sent: the request behind `post`, and the events.
fn assert_told(run: &Run, truth: &Truth, post: &str) {
    let sent = String::from_utf8_lossy(&truth.sent);
    let (_, asked) = sent.split_once(post).unwrap();
    let (_, asked) = asked.split_once("\r\n\r\n").unwrap();
    let mut asked = serde_json::Deserializer::from_str(asked).into_iter::<Value>();
    let asked = asked.next().unwrap().unwrap();
    let received = String::from_utf8_lossy(&truth.received);
    let events: Vec<Value> = received
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    let records = run.records();
    let [record] = records.kind("llm").collect::<Vec<_>>()[..] else {
        panic!("{} calls to models", records.kind("llm").count());
    };
    let at = |path: &str| record.pointer(path).cloned().unwrap_or_default();

    assert_eq!(at("/gen_ai/request/model"), asked["model"]);
    assert_eq!(at("/gen_ai/request/stream"), asked["stream"]);
    assert_eq!(at("/gen_ai/request/max_tokens"), asked["max_tokens"]);
    let named =
        |tools: &Value| -> Vec<Value> { list(tools).map(|tool| tool["name"].clone()).collect() };
    let tools = named(&at("/gen_ai/tool/definitions"));
    assert!(!tools.is_empty());
    assert_eq!(tools, named(&asked["tools"]));
    let messages = match asked.get("messages") {
        Some(messages) => messages,
        None => &asked["input"],
    };
    let given: Vec<_> = list(messages)
        .map(|message| turn(message, "content", "text"))
        .collect();
    let told = at("/gen_ai/input/messages");
    let told: Vec<_> = list(&told)
        .map(|message| turn(message, "parts", "content"))
        .collect();
    assert!(
        told.iter()
            .any(|(_, texts)| texts.iter().any(|text| text.contains("say something")))
    );
    assert_eq!(told, given);
    let instructions = match asked.get("system") {
        Some(system) => texts(system, "text"),
        None => texts(&asked["instructions"], "text"),
    };
    assert_eq!(
        texts(&at("/gen_ai/system_instructions"), "content"),
        instructions
    );

    let said = |event: &Value| -> Option<String> {
        let text = event.pointer("/delta/text").or(event.get("delta"))?;
        text.as_str().map(str::to_owned)
    };
    let said: String = events.iter().filter_map(said).collect();
    assert!(said.contains(&LONG.repeat(TIMES)));
    let parts = at("/gen_ai/output/messages/0/parts");
    assert_eq!(texts(&parts, "content").concat(), said);
    assert_eq!(at("/timings/chunks"), events.len());
    assert!(at("/gen_ai/response/time_to_first_chunk").as_f64() > Some(0.0));
    let id = at("/gen_ai/response/id");
    assert!(
        id.as_str().is_some_and(|id| id.ends_with("_imitated")),
        "{id}"
    );
    // Some say them at the end only, some what went in at the beginning.
    let count = |name: &str| {
        let usages = events.iter().flat_map(|event| {
            let places = ["/message/usage", "/usage", "/response/usage"];
            places.map(|place| event.pointer(place).and_then(|usage| usage[name].as_u64()))
        });
        usages.flatten().last()
    };
    for name in ["input_tokens", "output_tokens"] {
        let counted = count(name);
        assert!(counted.is_some(), "{name}");
        assert_eq!(at("/gen_ai/usage")[name].as_u64(), counted, "{name}");
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Who says what.
fn turn(message: &Value, parts: &str, text: &str) -> (String, Vec<String>) {
    let role = message["role"].as_str().unwrap_or_default().to_owned();
    (role, texts(&message[parts], text))
}

/// A text, or those of parts.
fn texts(value: &Value, name: &str) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        parts => list(parts)
            .filter_map(|part| Some(part[name].as_str()?.to_owned()))
            .collect(),
    }
}

/// BoringSSL inside Bun inside a program of 380 MB.
#[test]
fn claude_code() {
    let Some(lab) = Lab::with("claude_code", &["nsenter"]) else {
        return;
    };
    let Some(claude) = lab.fixture("claude", "bin/claude") else {
        return;
    };
    let scene = Scene::new(&lab);
    let run = scene.run(
        &[
            ("ANTHROPIC_BASE_URL", &scene.url()),
            ("ANTHROPIC_API_KEY", "made-up"),
            ("NODE_TLS_REJECT_UNAUTHORIZED", "0"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("DISABLE_AUTOUPDATER", "1"),
            ("DISABLE_ERROR_REPORTING", "1"),
            ("DISABLE_TELEMETRY", "1"),
        ],
        argv![claude, "-p", "say something", "--model", "surprising"],
    );
    scene.assert_exact(&run, "/v1/messages?");
    assert_known(&run, "BoringSSL", "inferred", scene.server.port);
}

/// rustls and aws-lc-rs inside a static program without symbols.
#[test]
fn codex() {
    let Some(lab) = Lab::with("codex", &["nsenter"]) else {
        return;
    };
    let Some(codex) = lab.fixture("codex", "bin/codex") else {
        return;
    };
    let scene = Scene::new(&lab);
    let config = format!(
        "model = \"surprising\"\n\
         model_provider = \"imitation\"\n\
         [model_providers.imitation]\n\
         name = \"imitation\"\n\
         base_url = \"{}/v1\"\n\
         wire_api = \"responses\"\n\
         env_key = \"MADE_UP_KEY\"\n\
         request_max_retries = 0\n\
         stream_max_retries = 0\n",
        scene.url()
    );
    lab.file("home/config.toml", config);
    let home = lab.path("home").display().to_string();
    let (certificate, _) = lab.certificate();
    let run = scene.run(
        &[
            ("CODEX_HOME", &home),
            ("CODEX_CA_CERTIFICATE", certificate.to_str().unwrap()),
            ("MADE_UP_KEY", "made-up"),
        ],
        argv![codex, "exec", "--skip-git-repo-check", "say something"],
    );
    scene.assert_exact(&run, "/v1/responses");
    assert_known(&run, "rustls", "inferred", scene.server.port);
}

/// BoringSSL inside an older Bun, which uses its sockets inside of the calls.
#[test]
fn opencode() {
    let Some(lab) = Lab::with("opencode", &["nsenter"]) else {
        return;
    };
    let Some(opencode) = lab.fixture("opencode", "bin/opencode") else {
        return;
    };
    let scene = Scene::new(&lab);
    let config = format!(
        r#"{{"provider":{{"anthropic":{{
            "options":{{"baseURL":"{}/v1","apiKey":"made-up"}},
            "models":{{"imitation":{{"name":"imitation"}}}}
        }}}},"autoupdate":false,"share":"disabled"}}"#,
        scene.url()
    );
    let run = scene.run(
        &[
            ("OPENCODE_CONFIG_CONTENT", &config),
            ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
            ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1"),
            ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
            ("NODE_TLS_REJECT_UNAUTHORIZED", "0"),
        ],
        argv![
            opencode,
            "run",
            "--model",
            "anthropic/imitation",
            // Else another model is asked for one, and not waited for.
            "--title",
            "a title",
            "say something"
        ],
    );
    scene.assert_exact(&run, "/v1/messages");
    assert_known(&run, "BoringSSL", "exact", scene.server.port);
}
