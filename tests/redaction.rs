//! Planted secrets through the whole line into both outputs, cut at every position: none comes out by
//! default, all do with `--content full`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use agent_ebpf::{Data, Direction, Head, Shape, cookie, kind};
use clap::ValueEnum as _;
use vortex_agent::{
    coverage::User,
    half::Facts,
    input::{Input, Show},
    llm::price::Prices,
    locate::{Found, Instruction, Point},
    metadata::{Container, Names, Pod},
    pipeline::{Pipeline, Wanted},
    protocol::exchange::Bounds,
    record::Kind,
    redact::{Key, Policy},
    sink::{Format, Origin, Sink, Target},
};
use zerocopy::IntoBytes as _;

/// A text and what of it must not be seen.
struct Planted {
    kind: &'static str,
    text: String,
    secret: String,
}

/// The same every time, so that a failure can be seen again. xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Digits are frequent enough that every stretch of 16 has one.
    fn text(&mut self, set: &str, length: usize) -> String {
        let set: Vec<char> = set.chars().collect();
        let mut text: String = (0..length)
            .map(|_| set[(self.next() >> 33) as usize % set.len()])
            .collect();
        for at in (3..length).step_by(7) {
            let digit = char::from(b'2' + (self.next() >> 33) as u8 % 6);
            text.replace_range(at..=at, digit.encode_utf8(&mut [0; 4]));
        }
        text
    }
}

const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const HEX: &str = "0123456789abcdef";

/// Formats that say by themselves what they are: kind, beginning, alphabet, length.
const TOKENS: [(&str, &str, &str, usize); 46] = [
    ("openai", "sk-proj-", LETTERS, 120),
    ("openai", "sk-svcacct-", LETTERS, 60),
    ("openai", "sk-admin-", LETTERS, 60),
    ("openai legacy", "sk-", LETTERS, 48),
    ("anthropic", "sk-ant-api03-", LETTERS, 93),
    ("openrouter", "sk-or-v1-", HEX, 64),
    ("google key", "AIza", LETTERS, 35),
    ("google oauth", "ya29.", LETTERS, 80),
    ("google secret", "GOCSPX-", LETTERS, 28),
    ("aws", "AKIA", UPPER, 16),
    ("aws temporary", "ASIA", UPPER, 16),
    ("bedrock", "ABSK", LETTERS, 120),
    ("azure", "abc8Q~", LETTERS, 34),
    ("github", "ghp_", LETTERS, 36),
    ("github oauth", "gho_", LETTERS, 36),
    ("github user", "ghu_", LETTERS, 36),
    ("github server", "ghs_", LETTERS, 36),
    ("github refresh", "ghr_", LETTERS, 36),
    ("github fine", "github_pat_", LETTERS, 82),
    ("gitlab", "glpat-", LETTERS, 20),
    ("gitlab runner", "glrt-", LETTERS, 20),
    ("slack", "xoxb-0123456789-", LETTERS, 24),
    ("slack app", "xapp-1-", LETTERS, 40),
    ("stripe", "sk_live_", LETTERS, 24),
    ("stripe restricted", "rk_live_", LETTERS, 24),
    ("stripe webhook", "whsec_", LETTERS, 32),
    ("npm", "npm_", LETTERS, 36),
    ("pypi", "pypi-AgEIcHlwaS5vcmc", LETTERS, 80),
    ("huggingface", "hf_", LETTERS, 34),
    ("replicate", "r8_", LETTERS, 37),
    ("groq", "gsk_", LETTERS, 52),
    ("xai", "xai-", LETTERS, 80),
    ("perplexity", "pplx-", LETTERS, 48),
    ("twilio", "SK", HEX, 32),
    ("mailgun", "key-", HEX, 32),
    ("digitalocean", "dop_v1_", HEX, 64),
    ("databricks", "dapi", HEX, 32),
    ("doppler", "dp.st.dev.", LETTERS, 40),
    ("vault", "hvs.", LETTERS, 90),
    ("telegram", "123456789:AA", LETTERS, 33),
    ("discord", "mfa.", LETTERS, 80),
    ("shopify", "shpat_", HEX, 32),
    ("linear", "lin_api_", LETTERS, 40),
    ("notion", "ntn_", LETTERS, 46),
    ("grafana", "glsa_", LETTERS, 32),
    ("age", "AGE-SECRET-KEY-1", UPPER, 58),
];

/// Where a token may stand; `@` is the token.
const PLACES: [&str; 12] = [
    "GET / HTTP/1.1\r\nHost: x\r\nX-Custom: @\r\nAccept: */*\r\n\r\n",
    "GET / HTTP/1.1\r\nAuthorization: Bearer @\r\n\r\n",
    "{\"model\":\"m\",\"note\":\"use @ now\",\"n\":1}",
    "{\"body\":\"{\\\"note\\\":\\\"@\\\"}\",\"n\":1}",
    "{\"lines\":\"a\\n@\\nb\"}",
    "a=1&note=@&b=2",
    "next=https%3A%2F%2Fx%2F%3Fnote%3D@%26b%3D2",
    "name: x\nvalue: @\nother: y\n",
    "let client = connect(\"@\"); // done\n",
    "GET /v1/x?note=@&y=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "The one that I use is @, do not tell.\n",
    "data: {\"delta\":\"@\"}\n\ndata: [DONE]\n\n",
];

/// Where a value is known by its name; `@` is the value.
const NAMED: [(&str, &str); 54] = [
    (
        "authorization",
        "GET / HTTP/1.1\r\nAuthorization: @\r\nHost: x\r\n\r\n",
    ),
    (
        "authorization",
        "GET / HTTP/1.1\r\nproxy-authorization:Basic @\r\nHost: x\r\n\r\n",
    ),
    (
        "authorization",
        "GET / HTTP/1.1\r\nAuthorization: Digest username=\"u\", response=\"@\", qop=auth\r\n\r\n",
    ),
    (
        "api key header",
        "GET / HTTP/1.1\r\nX-Api-Key: @\r\nHost: x\r\n\r\n",
    ),
    (
        "api key header",
        "GET / HTTP/1.1\r\nX-Goog-Api-Key: @\r\nHost: x\r\n\r\n",
    ),
    (
        "aws session",
        "GET / HTTP/1.1\r\nX-Amz-Security-Token: @\r\nHost: x\r\n\r\n",
    ),
    (
        "cookie",
        "GET / HTTP/1.1\r\nCookie: theme=dark; s=@; lang=de\r\nHost: x\r\n\r\n",
    ),
    (
        "set-cookie",
        "HTTP/1.1 200 OK\r\nSet-Cookie: s=@; HttpOnly\r\n\r\n",
    ),
    (
        "header in a command",
        "curl -H \"Authorization: Bearer @\" https://x/\n",
    ),
    (
        "header in a command",
        "{\"cmd\":\"curl -H 'X-Api-Key: @' https://x/\"}",
    ),
    (
        "header in a command",
        "{\"cmd\":\"curl -H \\\"Authorization: token @\\\" https://x/\"}",
    ),
    (
        "header in json",
        "{\"headers\":{\"Authorization\":\"Bearer @\",\"Accept\":\"x\"}}",
    ),
    ("header in a log", "> Authorization: Bearer @\n"),
    (
        "header in a string",
        "{\"raw\":\"GET / HTTP/1.1\\r\\nAuthorization: Bearer @\\r\\nHost: x\\r\\n\"}",
    ),
    (
        "password json",
        "{\"user\":\"u\",\"password\":\"@\",\"n\":1}",
    ),
    (
        "password json",
        "{\n  \"user\": \"u\",\n  \"password\"  :\n    \"@\"\n}\n",
    ),
    (
        "password nested",
        "{\"body\":\"{\\\"password\\\": \\\"@\\\", \\\"n\\\": 1}\"}",
    ),
    (
        "password nested twice",
        "{\"a\":\"{\\\"b\\\":\\\"{\\\\\\\"password\\\\\\\":\\\\\\\"@\\\\\\\"}\\\"}\"}",
    ),
    ("password form", "user=u&password=@&n=1"),
    ("password form", "password=@&user=u"),
    ("password form", "user=u&password=@"),
    (
        "password rails",
        "user%5Bname%5D=u&user%5Bpassword%5D=@&n=1",
    ),
    (
        "password url",
        "GET /login?user=u&passwd=@ HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "password yaml",
        "db:\n  user: u\n  password: @\n  port: 1\n",
    ),
    ("password yaml", "password: '@'\nuser: u\n"),
    ("password env", "HOST=x\nDB_PASSWORD=@\nPORT=1\n"),
    ("password env", "export PGPASSWORD=\"@\"\n"),
    ("password ini", "[db]\nuser = u\npassword = @\n"),
    ("password command", "mysql --user u --password @ db\n"),
    ("password command", "mysql --user u --password=@ db\n"),
    (
        "password xml",
        "<login><user>u</user><Password>@</Password></login>",
    ),
    (
        "password source",
        "client.login(user=\"u\", password=\"@\")\n",
    ),
    (
        "password url user",
        "git clone https://u:@@example.com/x.git\n",
    ),
    ("password url user", "postgres://u:a,b;c(d)@@host/db\n"),
    (
        "password connection",
        "Server=x;User=u;Password=@;Encrypt=yes\n",
    ),
    (
        "client secret",
        "grant_type=client_credentials&client_id=c&client_secret=@",
    ),
    (
        "client secret",
        "{\"client_id\":\"c\",\"client_secret\":\"@\"}",
    ),
    (
        "access token",
        "{\"access_token\":\"@\",\"token_type\":\"bearer\",\"expires_in\":1}",
    ),
    ("refresh token", "{\"expires_in\":1,\"refreshToken\":\"@\"}"),
    (
        "access token url",
        "GET /cb?access_token=@&state=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "oauth code",
        "GET /cb?code=@&state=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    ("aws secret", "aws_secret_access_key = @\n"),
    (
        "azure key",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=@;EndpointSuffix=x\n",
    ),
    (
        "azure sas",
        "GET /c?sv=2024&sig=@ HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
    (
        "header pair",
        "{\"headers\":[[\"Host\",\"x\"],[\"Cookie\",\"s=@\"]]}",
    ),
    (
        "header pair",
        "{\"name\": \"Authorization\", \"value\": \"token @\"}",
    ),
    (
        "header pair",
        "request.header(\"X-Api-Key\", \"@\").send()\n",
    ),
    (
        "form field",
        "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n@\r\n--b--\r\n",
    ),
    (
        "form field",
        "--b\r\nContent-Disposition: form-data; name=\"token\"\r\nContent-Type: text/plain\r\n\r\n@\r\n--b--\r\n",
    ),
    (
        "form field",
        "<input type=\"hidden\" name=\"csrf_token\" value=\"@\">",
    ),
    (
        "json in a form",
        "payload=%7B%22password%22%3A%22@%22%7D&x=1",
    ),
    (
        "graphql",
        "{\"query\":\"mutation { login(user: \\\"u\\\", password: \\\"@\\\") }\"}",
    ),
    ("one-time password", "{\"otp\":\"@\"}"),
    (
        "signature",
        "GET /o?X-Amz-Signature=@&x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ),
];

fn planted() -> Vec<Planted> {
    let mut random = Random(0x5eed);
    let mut all = Vec::new();
    for (number, (kind, beginning, set, length)) in TOKENS.into_iter().enumerate() {
        for step in 0..4 {
            let secret = random.text(set, length);
            let place = PLACES[(number + 5 * step) % PLACES.len()];
            let text = place.replace('@', &format!("{beginning}{secret}"));
            all.push(Planted { kind, text, secret });
        }
    }
    for (kind, place) in NAMED {
        let secret = random.text(LETTERS, 20);
        let text = match kind {
            // The second @ is the URL's.
            "password url user" => place.replacen('@', &secret, 1),
            _ => place.replace('@', &secret),
        };
        all.push(Planted { kind, text, secret });
    }
    // Values that are written with escapes, by the rules of what holds them.
    for (kind, place, escape) in [
        ("escaped json", "{\"password\":\"@\",\"n\":1}", "\\\""),
        ("escaped json", "{\"password\":\"@\",\"n\":1}", "\\\\"),
        ("escaped json", "{\"password\":\"@\",\"n\":1}", "\\u002d"),
        ("escaped form", "user=u&password=@&n=1", "%40"),
        ("escaped form", "user=u&password=@&n=1", "+"),
        ("quoted-printable", "user=u&password=@&n=1", "=3D"),
        ("punctuated env", "DB_PASSWORD=@\n", ",;)'!]"),
        ("punctuated json", "{\"password\":\"@\"}", "'<&>;, ü"),
        ("escaped xml", "<Password>@</Password>", "&amp;"),
    ] {
        let halves = [random.text(LETTERS, 12), random.text(LETTERS, 12)];
        let secret = halves.join(escape);
        let text = place.replace('@', &secret);
        all.push(Planted { kind, text, secret });
    }
    for label in [
        "PRIVATE KEY",
        "RSA PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
    ] {
        for end in ["\n", "\\n"] {
            let lines: Vec<String> = (0..4).map(|_| random.text(LETTERS, 64)).collect();
            let secret = lines.join(end);
            let pem =
                format!("-----BEGIN {label}-----{end}{secret}{end}-----END {label}-----{end}");
            let text = match end {
                "\n" => format!("{pem}after\n"),
                _ => format!("{{\"private_key\":\"{pem}\",\"pem\":\"{pem}\"}}"),
            };
            all.push(Planted {
                kind: "private key",
                text,
                secret,
            });
        }
    }
    for (head, tail) in [("", ""), ("token ", "\n"), ("{\"t\":\"", "\"}")] {
        let [payload, signature] = [120, 43].map(|length| random.text(LETTERS, length));
        let text = format!("{head}eyJhbGciOiJIUzI1NiJ9.{payload}.{signature}{tail}");
        all.push(Planted {
            kind: "jwt",
            text,
            secret: format!("{payload}.{signature}"),
        });
    }
    all
}

/// What the sinks wrote, JSON and text.
struct Outputs {
    json: String,
    text: String,
}

/// One pipeline and both outputs of it.
struct Bench {
    pipeline: Pipeline,
    sinks: [(Sink, std::path::PathBuf); 2],
    handle: u64,
}

impl Bench {
    fn new(name: &str, content: Policy) -> Bench {
        let key = Key::new([3; 32]);
        let pipeline = Pipeline::new(Wanted {
            emit: Kind::value_variants().iter().copied().collect(),
            undecoded: false,
            live: true,
            bounds: Bounds::default(),
            content,
            exes: Vec::new(),
            uids: Vec::new(),
            comms: Vec::new(),
            names: Names::default(),
            policy: None,
            prices: Prices::default(),
            key: 1,
            secret_key: key,
        });
        let origin = Origin {
            run: "run".into(),
            host: "host".into(),
        };
        let text = Format::Text {
            colour: false,
            live: true,
        };
        let sinks = [Format::Json, text].map(|format| {
            let path = std::env::temp_dir().join(format!(
                "vortex-redaction-{name}-{}-{}",
                format == Format::Json,
                std::process::id()
            ));
            let target = Target::file(&path).unwrap();
            (Sink::start(target, format, &origin).unwrap(), path)
        });
        let point = |function, direction, offset| Point {
            offset,
            function_offset: offset,
            library: "OpenSSL",
            function,
            direction,
            shape: Shape::OutFourth,
            instruction: Instruction::Emulated,
            detail: 0,
            bytes: [0; 16],
        };
        let found = Found {
            library: "OpenSSL",
            version: None,
            points: vec![
                point("ssl_read_internal", Direction::Received, 16),
                point("ssl_write_internal", Direction::Sent, 32),
            ],
            others: Vec::new(),
            partly: None,
            located: "symbols",
            on_trial: false,
        };
        let mut bench = Bench {
            pipeline,
            sinks,
            handle: 0,
        };
        let path = "/lib/libssl.so";
        bench.tell(
            Input::Found {
                file: 1,
                path,
                found,
            },
            0,
        );
        bench
    }

    fn tell(&mut self, input: Input<'_>, now: u64) {
        let [(json, _), (text, _)] = &mut self.sinks;
        self.pipeline.take(input, now, &mut |record| {
            // So that nothing is dropped: the test is faster than a file.
            for sink in [&mut *json, &mut *text] {
                if sink.is_full() {
                    sink.drain(Instant::now() + Duration::from_secs(20));
                }
                sink.write(record);
            }
        });
    }

    fn process(&mut self, facts: Facts) {
        let pid = facts.pid;
        self.tell(Input::Process(facts), 0);
        self.tell(Input::Attached { file: 1, at: 1 }, 1);
        let user = User {
            pid,
            mapped_at: Some(2),
            held: false,
        };
        self.tell(Input::Mapped { file: 1, user }, 2);
    }

    /// A connection that sends these chunks, with so long a pause after each.
    fn send(&mut self, chunks: &[&[u8]], pause: u64) {
        self.handle += 1;
        let handle = self.handle;
        let (mut offset, mut now) = (0, 1_000);
        for bytes in chunks.iter().filter(|bytes| !bytes.is_empty()) {
            self.chunk(handle, offset, bytes, now);
            offset += bytes.len() as u64;
            if pause > 0 {
                now += pause;
                self.tell(Input::Idle, now);
            }
        }
        self.tell(Input::Finish, now);
    }

    /// A connection that sends these, each under its policy.
    fn send_under(&mut self, chunks: [(&[u8], Policy); 2]) {
        self.handle += 1;
        let mut offset = 0;
        for (bytes, content) in chunks {
            let show = Show {
                emit: Kind::value_variants().iter().copied().collect(),
                undecoded: true,
                live: true,
                body_limit: 1 << 20,
                content,
            };
            self.tell(Input::Show(show), 1_000);
            if !bytes.is_empty() {
                self.chunk(self.handle, offset, bytes, 1_000);
            }
            offset += bytes.len() as u64;
        }
        self.tell(Input::Finish, 1_000);
    }

    fn chunk(&mut self, handle: u64, offset: u64, bytes: &[u8], now: u64) {
        let data = Data {
            head: Head {
                kind: kind::DATA,
                direction: Direction::Sent as u16,
                len: bytes.len() as u32,
                time: now,
            },
            pid_tgid: 7 << 32 | 7,
            born: 0,
            handle,
            offset,
            socket: 0,
            place: agent_ebpf::Place {
                sequence: 0,
                skipped: 0,
            },
            cookie: cookie(2, Direction::Sent, Shape::OutFourth),
        };
        let raw = [data.as_bytes(), bytes].concat();
        self.tell(Input::Record(&raw), now);
    }

    fn outputs(self) -> Outputs {
        let [json, text] = self.sinks.map(|(sink, path)| {
            let (count, failure) = sink.close(Instant::now() + Duration::from_secs(60));
            assert!(failure.is_none() && count.dropped == 0, "{count:?}");
            let output = fs::read_to_string(&path).unwrap();
            fs::remove_file(path).unwrap();
            output
        });
        Outputs { json, text }
    }
}

fn facts() -> Facts {
    Facts {
        pid: 7,
        comm: Some("test".into()),
        ..Facts::default()
    }
}

/// Everything that somebody could read out of the outputs: also with escapes and base64 decoded, and the
/// pieces of a stream put together.
fn readable(outputs: &Outputs) -> Vec<String> {
    let mut streams = std::collections::BTreeMap::<String, String>::new();
    let mut decoded = String::new();
    for line in outputs.json.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(text) = record["text"].as_str() {
            let stream = streams
                .entry(record["connection"]["id"].to_string())
                .or_default();
            stream.push_str(text);
        }
        if let Some(base64) = record["base64"].as_str() {
            let bytes = base64_simd::STANDARD.decode_to_vec(base64).unwrap();
            decoded.push_str(&String::from_utf8_lossy(&bytes));
            decoded.push('\n');
        }
        strings(&record, &mut decoded);
    }
    let mut all: Vec<String> = streams.into_values().collect();
    all.extend([decoded, outputs.text.clone(), outputs.json.clone()]);
    all
}

fn strings(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::String(text) => {
            out.push_str(text);
            out.push('\n');
        }
        serde_json::Value::Array(all) => all.iter().for_each(|value| strings(value, out)),
        serde_json::Value::Object(all) => all.values().for_each(|value| strings(value, out)),
        _ => {}
    }
}

/// Eight bytes of a secret are enough to be one.
fn assert_hidden(planted: &Planted, outputs: &Outputs, what: &str) {
    let pieces: std::collections::HashSet<&[u8]> = planted.secret.as_bytes().windows(8).collect();
    for text in readable(outputs) {
        for window in text.as_bytes().windows(8) {
            if pieces.contains(window) {
                let at = text
                    .find(str::from_utf8(window).unwrap_or("?"))
                    .unwrap_or(0);
                let from = text.floor_char_boundary(at.saturating_sub(100));
                let to = text.ceil_char_boundary((at + 100).min(text.len()));
                panic!(
                    "{} {what}: a part of {:?} in …{}…; planted: {:?}",
                    planted.kind,
                    planted.secret,
                    &text[from..to],
                    planted.text
                );
            }
        }
    }
}

#[test]
fn there_are_enough() {
    let planted = planted();
    let kinds: BTreeSet<&str> = planted.iter().map(|planted| planted.kind).collect();
    assert!(
        planted.len() >= 200 && kinds.len() >= 25,
        "{} {}",
        planted.len(),
        kinds.len()
    );
}

#[test]
fn none_is_seen_however_it_is_cut() {
    for (number, planted) in planted().iter().enumerate() {
        let bytes = planted.text.as_bytes();
        let mut bench = Bench::new(&format!("cut-{number}"), Policy::Redacted);
        bench.process(facts());
        for cut in 0..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            bench.send(&[first, second], 0);
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        bench.send(&single, 0);
        let outputs = bench.outputs();
        assert!(outputs.json.contains("[redacted:"), "{}", planted.text);
        assert_hidden(planted, &outputs, "cut");
        // The same however it was cut.
        let shown: BTreeSet<String> = readable(&outputs)
            .into_iter()
            .take(bytes.len() + 1)
            .collect();
        assert_eq!(shown.len(), 1, "{}: {shown:#?}", planted.text);
    }
}

/// A daemon's settings may change in the middle of a secret.
#[test]
fn none_is_seen_when_the_policy_changes() {
    for (number, planted) in planted().iter().enumerate() {
        let bytes = planted.text.as_bytes();
        for (way, [before, after]) in [
            [Policy::Redacted, Policy::None],
            [Policy::Redacted, Policy::Redacted],
        ]
        .into_iter()
        .enumerate()
        {
            let mut bench = Bench::new(&format!("policy-{number}-{way}"), before);
            bench.process(facts());
            for cut in 1..bytes.len() {
                let (first, second) = bytes.split_at(cut);
                bench.send_under([(first, before), (second, after)]);
            }
            assert_hidden(planted, &bench.outputs(), "under another policy");
        }
    }
}

#[test]
fn none_is_seen_when_the_stream_pauses() {
    for (number, planted) in planted().iter().enumerate() {
        let bytes = planted.text.as_bytes();
        for pause in [100_000_000, 3_000_000_000] {
            let mut bench = Bench::new(&format!("pause-{number}-{pause}"), Policy::Redacted);
            bench.process(facts());
            for cut in 1..bytes.len() {
                let (first, second) = bytes.split_at(cut);
                bench.send(&[first, second], pause);
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            bench.send(&single, pause);
            assert_hidden(
                planted,
                &bench.outputs(),
                &format!("with pauses of {pause} ns"),
            );
        }
    }
}

#[test]
fn none_is_seen_in_other_strings() {
    for (number, planted) in planted().iter().enumerate() {
        let mut bench = Bench::new(&format!("strings-{number}"), Policy::None);
        let text = planted.text.clone();
        let path = bench.pipeline.string(&text).as_str().to_owned();
        let refused = Input::Refused {
            file: 2,
            path: &text,
            why: &text,
        };
        bench.tell(refused, 1);
        bench.tell(Input::Runtimes { are_asked: true }, 1);
        bench.process(Facts {
            pid: 7,
            comm: Some(text.clone()),
            executable: Some(text.clone()),
            container_id: Some(text.clone()),
            arguments: vec!["program".into(), text.clone()],
            ..Facts::default()
        });
        let user = User {
            pid: 7,
            mapped_at: None,
            held: false,
        };
        bench.tell(Input::Mapped { file: 2, user }, 3);
        let pairs = BTreeMap::from([(text.clone(), text.clone()), ("note".into(), text.clone())]);
        let container = Container {
            name: Some(text.clone()),
            image: Some(text.clone()),
            labels: pairs.clone(),
            pod: Some(Pod {
                namespace: text.clone(),
                name: text.clone(),
                uid: text.clone(),
                container: Some(text.clone()),
                labels: pairs.clone(),
                annotations: pairs,
            }),
        };
        let (id, container) = (&*text, Some(container));
        bench.tell(Input::Container { id, container }, 4);
        let mut outputs = bench.outputs();
        assert!(outputs.json.contains("command_args"), "{}", outputs.json);
        assert!(outputs.json.contains("annotations"), "{}", outputs.json);
        // Server names and lines of a log go the same way.
        outputs.text += &path;
        outputs.text += &vortex_agent::redact::line(&text);
        assert_hidden(planted, &outputs, "in names");
    }
}

#[test]
fn none_is_seen_in_command_lines() {
    let mut random = Random(7);
    for (number, words) in [
        "curl -u user:@ https://x",
        "curl --user user:@ https://x",
        "curl -uuser:@ https://x",
        "curl -H Authorization:·Bearer·@ https://x",
        "curl -H X-Api-Key:·@ https://x",
        "curl -b session=@ https://x",
        "curl https://user:@@x.example/ -s",
        "curl https://x/?api_key=@",
        "curl -d password=@ https://x",
        "curl -d {\"password\":\"@\"} https://x",
        "mysql -uroot -p@ db",
        "mysql --password=@ db",
        "psql --password @ db",
        "sshpass -p @ ssh x",
        "sshpass -p@ ssh x",
        "redis-cli -a @ ping",
        "docker login -u me -p @ registry",
        "tool --token @",
        "tool --api-key @",
        "tool --api-key=@",
        "wget --header=Authorization:·token·@ https://x",
        "tool -client-secret @",
        "env API_KEY=@ tool",
        "env PASSWORD=@ tool",
        "tool sk-ant-api03-@",
        "vault login hvs.@",
        "ldapsearch -D x -w @ -b y",
    ]
    .into_iter()
    .enumerate()
    {
        let secret = random.text(LETTERS, 24);
        // The first @ alone: what follows it in a URL is a host.
        let text = words.replacen('@', &secret, 1);
        let arguments = text.split(' ').map(|word| word.replace('·', " ")).collect();
        let planted = Planted {
            kind: "argument",
            text,
            secret,
        };
        for policy in [Policy::Redacted, Policy::Full] {
            let mut bench = Bench::new(&format!("argv-{number}-{}", policy.name()), policy);
            bench.process(Facts {
                arguments: Vec::clone(&arguments),
                ..facts()
            });
            let outputs = bench.outputs();
            match policy {
                Policy::Full => assert!(outputs.json.contains(&planted.secret)),
                _ => {
                    assert!(outputs.json.contains("[redacted:"), "{}", planted.text);
                    assert_hidden(&planted, &outputs, "in arguments");
                }
            }
        }
    }
}

#[test]
fn all_are_seen_with_content_full() {
    for (number, planted) in planted().iter().enumerate() {
        let mut bench = Bench::new(&format!("full-{number}"), Policy::Full);
        bench.process(facts());
        bench.send(&[planted.text.as_bytes()], 0);
        let outputs = bench.outputs();
        let is_seen = readable(&outputs)
            .iter()
            .any(|text| text.contains(&planted.secret));
        assert!(is_seen, "{}", planted.text);
        assert!(!outputs.json.contains("[redacted"));
    }
}
