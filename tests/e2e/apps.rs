//! Programs that talk to language models, as people install them.
//!
//! They speak to an imitation in a network that has nothing but loopback, with a made-up key and no environment of
//! ours: whatever else they would like to reach, they can't.

use std::ffi::OsString;

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

    /// It understood the answer, and every byte of both is there: of the one POST to `path` and of all else.
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
