//! Planted secrets through the whole line into both outputs, cut at every position: none comes out by
//! default, all do with `--content full`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use agent_ebpf::Direction;
use clap::ValueEnum as _;
use vortex_agent::{
    coverage::User,
    half::Facts,
    input::{Input, Show},
    metadata::{Container, Pod},
    pipeline::{Pipeline, Wanted},
    record::Kind,
    redact::Policy,
    sink::{Format, Origin, Sink, Target},
};

#[path = "line.rs"]
mod line;

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
const TOKENS: [(&str, &str, &str, usize); 64] = [
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
    ("langfuse", "sk-lf-", HEX, 36),
    ("e2b", "e2b_", HEX, 40),
    ("terraform", "Ab1Cd2Ef3Gh4Ij.atlasv1.", LETTERS, 67),
    ("dropbox", "sl.", LETTERS, 130),
    ("deno", "ddp_", LETTERS, 36),
    ("infracost", "ico-", LETTERS, 32),
    ("artifactory", "cmVmdGtu", LETTERS, 56),
    ("docker", "dckr_pat_", LETTERS, 27),
    ("atlassian", "ATATT3", LETTERS, 186),
    ("sentry", "sntryu_", HEX, 64),
    ("figma", "figd_", LETTERS, 40),
    ("supabase", "sbp_", HEX, 40),
    ("pinecone", "pcsk_", LETTERS, 70),
    ("rubygems", "rubygems_", HEX, 48),
    ("square", "sq0csp-", LETTERS, 43),
    ("pulumi", "pul-", HEX, 40),
    ("nvidia", "nvapi-", LETTERS, 64),
    ("brevo", "xkeysib-", HEX, 64),
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
const NAMED: [(&str, &str); 64] = [
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
    (
        "declared in Rust",
        "pub const PASSWORD: &str = \"@\";\nfn main() {}\n",
    ),
    (
        "declared in Rust",
        "    let api_key: String = \"@\".to_owned();\n",
    ),
    (
        "declared in TypeScript",
        "const clientSecret: string | undefined = '@';\n",
    ),
    ("declared in Go", "var apiToken string = \"@\"\n"),
    ("netrc", "machine h.example login me password @\n"),
    ("jwk", "{\"kty\":\"EC\",\"d\":\"@@@\",\"x\":1}"),
    ("htpasswd", "user:$apr1$Ab1Cd2Ef$@@\n"),
    ("bcrypt", "user:$2y$05$@@@\n"),
    (
        "connection string",
        "{\"url\":\"mongodb+srv://me:@AT@h.example/db\"}",
    ),
    (
        "service bus",
        "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=@;EntityPath=p\n",
    ),
];

/// Sixteen digits of an issuer's, the last of which is right.
fn card(random: &mut Random) -> String {
    let digits = random.text("0123456789", 14);
    let number = (0..10).map(|last| format!("4{digits}{last}"));
    let is_right = |number: &String| {
        let sum: u32 = number
            .bytes()
            .rev()
            .enumerate()
            .map(|(at, digit)| match (u32::from(digit - b'0'), at % 2) {
                (digit, 0) => digit,
                (digit, _) => 2 * digit / 10 + 2 * digit % 10,
            })
            .sum();
        sum.is_multiple_of(10)
    };
    number.clone().find(is_right).expect("one of ten is")
}

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
            "connection string" => place.replacen("@AT", &secret, 1),
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
    // Numbers with a check digit, as people write them.
    for (place, separator) in [
        ("charge @, please\n", ""),
        ("{\"card_number\":\"@\"}", ""),
        ("it is @, exp. 12/29\n", " "),
        ("cc=@&x=1", "-"),
        ("it is @ 12/29 123\n", " "),
        ("it is @ 1229 123, thanks\n", " "),
        ("it is @-12/29-123\n", "-"),
        ("name,card,until,code\nBob,@,12/29,123\n", ""),
        ("@|12|2029|123\n", ""),
    ] {
        let digits = card(&mut random);
        let groups: Vec<&str> = (0..4).map(|at| &digits[4 * at..][..4]).collect();
        let secret = groups.join(separator);
        let text = place.replace('@', &secret);
        all.push(Planted {
            kind: "card",
            text,
            secret,
        });
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
        Bench::of(name, content, |_| true)
    }

    fn of(name: &str, content: Policy, is_wanted: impl Fn(&Kind) -> bool) -> Bench {
        let kinds = Kind::value_variants().iter().copied();
        let pipeline = Pipeline::new(Wanted {
            emit: kinds.filter(is_wanted).collect(),
            live: true,
            content,
            ..line::wanted()
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
                found: line::libssl(),
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
        self.chunk_of(Direction::Sent, handle, offset, bytes, now);
    }

    /// A request, its answer, and what is sent then.
    fn exchange(&mut self, parts: [&[u8]; 3]) {
        self.handle += 1;
        let mut sent = 0;
        for (number, bytes) in parts.into_iter().enumerate() {
            let (direction, mut offset) = match number {
                1 => (Direction::Received, 0),
                _ => (Direction::Sent, sent),
            };
            let now = 1_000 * (1 + number as u64);
            for piece in bytes.chunks(1000) {
                self.chunk_of(direction, self.handle, offset, piece, now);
                offset += piece.len() as u64;
            }
            sent = if number == 0 { offset } else { sent };
        }
        self.tell(Input::Finish, 5_000);
    }

    fn chunk_of(&mut self, direction: Direction, handle: u64, offset: u64, bytes: &[u8], now: u64) {
        let raw = line::data((7, handle), direction, offset, bytes, now);
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
        planted.len() >= 300 && kinds.len() >= 40,
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
        // A pause in the type takes that for the value: SECURITY.md says so.
        if matches!(planted.kind, "declared in Rust" | "declared in TypeScript") {
            continue;
        }
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

/// What is hidden in a request is hidden in what is told of a tool's schema, which is an object.
#[test]
fn none_is_seen_in_tools() {
    let mut objects = 0;
    for (number, planted) in planted().iter().enumerate() {
        let text = &planted.text;
        let mut bench = Bench::of(&format!("tools-{number}"), Policy::Redacted, |kind| {
            matches!(kind, Kind::Http | Kind::Llm)
        });
        bench.process(facts());
        let schema = serde_json::json!({"type": "object", "properties": {
            "a": {"type": "string", "description": text, "default": text},
            "b": {"enum": ["x", text], "default": {"password": planted.secret, text: [text]}},
        }});
        let function = serde_json::json!({"name": "f", "parameters": schema});
        let asked = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": function}]});
        let asked = asked.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: h.example\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            asked.len()
        );
        let answer =
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        bench.exchange([&[head.as_bytes(), asked.as_bytes()].concat(), answer, &[]]);
        let outputs = bench.outputs();
        let [http, llm] = outputs.json.lines().collect::<Vec<_>>()[..] else {
            panic!("{}", outputs.json);
        };
        let told = Outputs {
            json: http.to_owned(),
            text: String::new(),
        };
        assert_hidden(planted, &told, "in a body");
        let record: serde_json::Value = serde_json::from_str(llm).unwrap();
        let told = record.pointer("/gen_ai/tool/definitions/0/parameters");
        objects += usize::from(told.unwrap().is_object());
        let told = Outputs {
            json: llm.to_owned(),
            text: String::new(),
        };
        assert_hidden(planted, &told, "in a tool");
    }
    assert!(objects > 300, "{objects}");
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

/// A way to write a text, which whoever reads it can undo.
type Way = (&'static str, fn(&str) -> String);

const WAYS: [Way; 11] = [
    ("plain", str::to_owned),
    ("base64", |text| {
        base64_simd::STANDARD.encode_to_string(text)
    }),
    ("base64 of URLs", |text| {
        base64_simd::URL_SAFE_NO_PAD.encode_to_string(format!("x {text}"))
    }),
    ("base64 in lines", |text| {
        let text = "a line before it, and what was to be said first\n".to_owned() + text;
        let digits = base64_simd::STANDARD.encode_to_string(text);
        let lines = digits.as_bytes().chunks(64);
        let lines: Vec<_> = lines.map(String::from_utf8_lossy).collect();
        lines.join("\r\n")
    }),
    ("percent", |text| each(text, |byte| format!("%{byte:02X}"))),
    ("percent twice", |text| {
        each(text, |byte| format!("%25{byte:02x}"))
    }),
    ("escapes", |text| {
        each(text, |byte| format!("\\u{byte:04x}"))
    }),
    ("entities", |text| each(text, |byte| format!("&#{byte};"))),
    ("digits", |text| each(text, |byte| format!("{byte:02x}"))),
    ("JSON in JSON", |text| {
        let wrapped = |text: String| serde_json::json!({ "in": text }).to_string();
        wrapped(wrapped(wrapped(text.to_owned())))
    }),
    ("base64 in percent", |text| {
        let digits = base64_simd::STANDARD.encode_to_string(format!("{text}?>"));
        each(&digits, |byte| format!("%{byte:02x}"))
    }),
];

fn each(text: &str, write: impl Fn(u8) -> String) -> String {
    text.bytes().map(write).collect()
}

/// Where in a conversation a text may be.
fn carriers(text: &str) -> Vec<[Vec<u8>; 3]> {
    let post = |path: &str, media: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: h.example\r\nContent-Type: {media}\r\nContent-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let answer = |fields: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    let json = "application/json";
    let get = |path: &str, fields: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: h.example\r\n{fields}\r\n").into_bytes()
    };
    let ok = answer("Content-Type: text/plain", b"ok");
    let note = serde_json::json!({ "note": text, "n": 1 }).to_string();
    let form = each(text, |byte| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    let line = text.replace(['\r', '\n'], "");
    let multipart = format!(
        "--b\r\nContent-Disposition: form-data; name=\"note\"; filename=\"{line}\"\r\n\r\n{text}\r\n--b--\r\n"
    );
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, note.as_bytes()).unwrap();
    let gzip = packer.finish().unwrap();
    let zstd = zstd::encode_all(note.as_bytes(), 1).unwrap();
    let chat = serde_json::json!({
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "description": text, "parameters": {"title": text}}}],
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": [{"type": "text", "text": text}]},
            {"role": "tool", "tool_call_id": "c", "content": text}],
    });
    let said = serde_json::json!({
        "id": "c", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text,
            "tool_calls": [{"id": "c", "type": "function",
                "function": {"name": "f", "arguments": serde_json::json!({"note": text}).to_string()}}]}}],
    });
    let called = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "f", "arguments": {"note": text}}});
    let result = serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": {"content": [{"type": "text", "text": text}]}});
    let event = format!("data: {note}\n\n");
    let mut frame = vec![0x81];
    frame.extend(match note.len() {
        short @ ..126 => vec![0x80 | short as u8],
        long => [&[0x80 | 126][..], &(long as u16).to_be_bytes()].concat(),
    });
    let mask = [0x5a, 0xc3, 0x11, 0x7e];
    frame.extend(mask);
    frame.extend(
        note.bytes()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let plain = |request: Vec<u8>| [request, ok.clone(), Vec::new()];
    let got = |fields: &str, body: &[u8]| [get("/", ""), answer(fields, body), Vec::new()];
    let asked = |path: &str, request: String, response: String| {
        let response = answer("Content-Type: application/json", response.as_bytes());
        [post(path, json, request.as_bytes()), response, Vec::new()]
    };
    vec![
        plain(post("/", json, note.as_bytes())),
        plain(post("/", "text/plain", text.as_bytes())),
        plain(post(
            "/",
            "application/x-www-form-urlencoded",
            format!("a=1&note={form}&b=2").as_bytes(),
        )),
        plain(post(
            "/",
            "multipart/form-data; boundary=b",
            multipart.as_bytes(),
        )),
        plain(get(&format!("/a?note={form}&b=2"), "")),
        plain(get(&format!("/a/{form}/b"), "")),
        plain(get("/", &format!("X-Note: {line}\r\n"))),
        got("Content-Encoding: gzip", &gzip),
        got("Content-Encoding: zstd", &zstd),
        got("Content-Type: text/event-stream", event.as_bytes()),
        asked("/v1/chat/completions", chat.to_string(), said.to_string()),
        asked("/mcp", called.to_string(), result.to_string()),
        [get("/", upgrade), upgraded.to_vec(), frame],
    ]
}

/// A text and all that it says when it is decoded in any way, by other code than the agent's.
fn undone(text: &str, levels: u32, all: &mut Vec<String>) {
    all.push(text.to_owned());
    if levels == 0 {
        return;
    }
    let mut plain = text.to_owned();
    for byte in b' '..=b'~' {
        let written = char::from(byte).to_string();
        for escape in [
            format!("%{byte:02X}"),
            format!("%{byte:02x}"),
            format!("\\u{byte:04x}"),
            format!("&#{byte};"),
        ] {
            plain = plain.replace(&escape, &written);
        }
    }
    plain = plain
        .replace("\\\\", "\\")
        .replace("\\\"", "\"")
        .replace("\\r", "\r")
        .replace("\\n", "\n");
    if plain != text {
        undone(&plain, levels - 1, all);
    }
    let joined = text.replace(['\r', '\n'], "").replace("\\r\\n", "");
    for run in
        joined.split(|letter: char| !letter.is_ascii_alphanumeric() && !"+/-_".contains(letter))
    {
        if run.len() < 16 {
            continue;
        }
        let (pairs, _) = run.as_bytes().as_chunks::<2>();
        let digits = pairs
            .iter()
            .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
        let digits: Option<Vec<u8>> = digits.collect();
        let standard: String = run.replace('-', "+").replace('_', "/");
        for start in 0..4 {
            let digits = &standard[start..];
            let digits = &digits[..digits.len() - usize::from(digits.len() % 4 == 1)];
            if let Ok(said) = base64_simd::forgiving_decode_to_vec(digits.as_bytes()) {
                all.push(String::from_utf8_lossy(&said).into_owned());
            }
        }
        all.extend(digits.map(|said| String::from_utf8_lossy(&said).into_owned()));
    }
}

/// Secrets of many kinds, in every position, written in every way.
#[test]
fn none_is_seen_when_it_is_encoded() {
    let mut random = Random(0xc0de);
    // Every other one: those between differ in what they begin with.
    let mut secrets: Vec<(String, String)> = TOKENS
        .into_iter()
        .step_by(2)
        .map(|(_, beginning, set, length)| {
            let secret = random.text(set, length);
            (format!("{beginning}{secret}"), secret)
        })
        .collect();
    for place in [
        "{\"password\":\"@\"}",
        "postgres://me:@AT@h.example/db",
        "api_key=@",
    ] {
        let secret = random.text(LETTERS, 20);
        let text = place.replacen(if place.contains("@AT") { "@AT" } else { "@" }, &secret, 1);
        secrets.push((text, secret));
    }
    let number = card(&mut random);
    secrets.push((format!("card {number}, thanks"), number));
    let mut count = 0;
    for (number, (text, secret)) in secrets.iter().enumerate() {
        for (way, write) in WAYS {
            // Of data the pieces come one by one, and are not decoded.
            let mut bench = Bench::of(&format!("encoded-{number}"), Policy::Redacted, |kind| {
                *kind != Kind::Data
            });
            bench.process(facts());
            for [request, response, then] in carriers(&write(text)) {
                bench.exchange([&request, &response, &then]);
                count += 1;
            }
            let outputs = bench.outputs();
            for kind in ["http", "sse", "llm", "mcp", "websocket"] {
                assert!(
                    outputs.json.contains(&format!("\"kind\":\"{kind}\"")),
                    "{kind}"
                );
            }
            let planted = Planted {
                kind: way,
                text: text.clone(),
                secret: secret.clone(),
            };
            let mut decoded = Vec::new();
            for text in readable(&outputs) {
                undone(&text, 3, &mut decoded);
            }
            let text = decoded.join("\n");
            assert_hidden(
                &planted,
                &Outputs {
                    json: outputs.json,
                    text,
                },
                way,
            );
        }
    }
    assert!(count >= 300 * 13, "{count}");
}
