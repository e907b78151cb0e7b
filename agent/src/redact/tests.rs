use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::*;

/// A text as a whole, without hashes.
fn clear(text: &str) -> String {
    line(text)
}

/// A stream in these chunks: what it shows, and the sum of lengths.
fn stream(chunks: &[&[u8]], pauses: &[Ending]) -> (String, u64) {
    let mut scanner = Scanner::new(Some(Key::new([7; 32])), 0, true);
    let (mut shown, mut total) = (String::new(), 0);
    let mut out = |offset: u64, length: u64, cleared: Cleared<'_>| {
        assert_eq!(offset, total, "records leave no hole");
        total += length;
        match cleared {
            Cleared::Text(text, redactions) => {
                for redaction in redactions {
                    assert!(redaction.offset >= offset);
                    assert!(redaction.offset + redaction.length <= offset + length);
                }
                shown.push_str(text);
            }
            Cleared::Encoded => shown.push('\u{fffd}'),
        }
    };
    for chunk in chunks {
        scanner.feed(chunk, &mut out);
        for pause in pauses {
            scanner.flush(*pause, &mut out);
        }
    }
    scanner.close(&mut out);
    (shown, total)
}

/// `cargo xtask bench redact`: megabytes a second on one core, in chunks as TLS has them.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let prose = include_str!("../../../SECURITY.md").repeat(8);
    let source = include_str!("../locate/openssl.rs").repeat(8);
    let json = r#"{"id":"chatcmpl-9x","object":"chat.completion.chunk","created":1726000000,"model":"m","usage":{"prompt_tokens":123,"completion_tokens":45,"total_tokens":168},"choices":[{"index":0,"delta":{"role":"assistant","content":"Hello, how can I help you today?"},"logprobs":null,"finish_reason":null}]}"#;
    let secrets = "{\"api_key\":\"Ab1Cd2Ef3Gh4\",\"note\":\"sk-ant-api03-Ab1Cd2Ef3Gh4Ij5K\"}\n";
    let hostile = "sk-proj-a password= eyJab://x:y key= -----BEGIN ghp_ ";
    for (name, text) in [
        ("prose", prose.as_str()),
        ("source", &source),
        ("json", json),
        ("secrets", secrets),
        ("hostile", hostile),
    ] {
        let data = text.repeat((32 << 20) / text.len());
        let best = (0..5)
            .map(|_| {
                let mut scanner = Scanner::new(Some(Key::new([1; 32])), 0, true);
                let mut records = 0;
                let start = std::time::Instant::now();
                for chunk in data.as_bytes().chunks(16 << 10) {
                    scanner.feed(chunk, &mut |_, _, _| records += 1);
                }
                assert!(records > 0);
                data.len() as f64 / 1e6 / start.elapsed().as_secs_f64()
            })
            .fold(0.0, f64::max);
        println!("speed {name} {best:.0}");
        let quoted = serde_json::json!({ "content": text }).to_string();
        let redactor = Redactor::new(Policy::Redacted, Key::new([1; 32]));
        for (form, text) in [("whole", text), ("quoted", &quoted)] {
            let data = text.repeat((4 << 20) / text.len());
            let best = (0..5)
                .map(|_| {
                    let start = std::time::Instant::now();
                    redactor.whole(Plaintext::new(data.as_bytes()), &[], false);
                    data.len() as f64 / 1e6 / start.elapsed().as_secs_f64()
                })
                .fold(0.0, f64::max);
            println!("speed {name}-{form} {best:.0}");
        }
    }
}

/// `CORPUS=DIR:... cargo test --release -p vortex-agent --lib -- --ignored --nocapture corpus` lists what is
/// redacted in the text files of the first 50 MB there.
#[test]
#[ignore = "a measurement"]
fn corpus() {
    let folders = std::env::var("CORPUS").expect("CORPUS names folders");
    let folders: Vec<PathBuf> = folders.split(':').map(Into::into).collect();
    for is_quoted in [false, true] {
        let (total, found) = redacted_in(folders.clone(), 50 << 20, is_quoted);
        for (file, text) in &found {
            println!("{}: {text:?}", file.display());
        }
        println!("{} in {total} bytes, quoted: {is_quoted}", found.len());
    }
}

/// What is redacted in the text files of these folders, and how many bytes they have. `is_quoted`: each as a string in
/// JSON, as one asks a model about a file.
fn redacted_in(
    mut folders: Vec<PathBuf>,
    limit: usize,
    is_quoted: bool,
) -> (usize, Vec<(PathBuf, String)>) {
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_file() {
                files.push(entry.path());
            } else if kind.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    files.sort();
    let redactor = Redactor::new(Policy::Redacted, Key::new([7; 32]));
    let (mut total, mut found) = (0, Vec::new());
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap_or_default();
        if total > limit || plain::plain_text(&bytes) != (bytes.len(), true) {
            continue;
        }
        total += bytes.len();
        if is_quoted {
            let text = String::from_utf8_lossy(&bytes);
            bytes = serde_json::json!({ "content": text }).to_string().into();
        }
        let whole = redactor.whole(Plaintext::new(&bytes), &[], false);
        let Shown::Text(_, redactions) = whole.content().shown() else {
            continue;
        };
        for redaction in redactions {
            let start = redaction.offset as usize;
            let end = start + redaction.length as usize;
            let shown = &bytes[start.saturating_sub(40)..end.min(start + 60)];
            let shown = String::from_utf8_lossy(shown);
            found.push((file.clone(), format!("{}: {shown}", redaction.kind)));
        }
    }
    (total, found)
}

/// Ordinary text that is surely here: the sources of Rust's library. Ours are full of secrets that tests plant.
#[test]
fn ordinary_text_is_left_alone() {
    let rustc = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot = String::from_utf8(rustc.unwrap().stdout).unwrap();
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    for is_quoted in [false, true] {
        let (total, found) = redacted_in(vec![library.clone()], 24 << 20, is_quoted);
        assert!(total > 16 << 20, "{total} bytes are not enough");
        assert!(found.len() <= total >> 20, "{found:#?} in {total} bytes");
    }
}

#[test]
fn every_example_of_the_rules() {
    for rule in rules::examples() {
        for yes in &rule.yes {
            for (before, after) in [
                ("", ""),
                ("x ", " y"),
                ("\"", "\","),
                ("\\n", "\\n"),
                ("=", "&"),
            ] {
                let shown = clear(&format!("{before}{yes}{after}"));
                assert!(
                    shown.contains(&format!("[redacted:{}", rule.kind)),
                    "{yes}: {shown}"
                );
                assert!(!shown.contains(&yes[yes.len() - 4..]), "{yes}: {shown}");
            }
        }
        for no in &rule.no {
            for (before, after) in [("", " "), ("x ", " y"), ("\"", "\",")] {
                let text = format!("{before}{no}{after}");
                assert_eq!(clear(&text), text);
            }
        }
    }
}

/// What is a secret by its name, in the forms that people and programs write.
#[test]
fn values_of_names() {
    for text in [
        "{\"password\":\"«correcthorse»\"}",
        "{\"password\": \"«correct horse battery staple»\"}",
        "{'password': '«hunter2»'}",
        "{\"password\":«12345678»}",
        "{\"otp\":\"«123456»\"}",
        "{\"token\":\"«abcdefghijklmnopqrstuvwx»\"}",
        "password: «correcthorse»\n",
        "db:\n  password: «hunter2» # old\n",
        "PASSWORD=«hunter»\n",
        "password=«hunter2»&x=1",
        "https://x/?key=«abc12345»&x",
        "Cookie: «a=b; c=d»\r\nHost: x",
        "Authorization: «Basic dXNlcjpwYXNz»\r\n",
        "<SecretAccessKey>«abcdefgh»</SecretAccessKey>",
        "redis://:«hunter2»@host/0",
        "amqp://user:«p@ss,w;rd»@host/vhost",
        "const PASSWORD: &str = \"«hunter2x»\";\n",
        "static API_KEY: &'static str = \"«hunter2x»\";\n",
        "let password: String = \"«hunter2x»\".into();\n",
        "const dbPassword: string = '«hunter2x»';\n",
        "export const secretKey: string | undefined = `«hunter2x»`\n",
        "var apiKey string = \"«hunter2x»\"\n",
        "const apiKey string = \"«hunter2x»\"\n",
        "password: str = \"«hunter2x»\"\n",
        "val password: String = \"«hunter2x»\"\n",
        "machine example.com login me password «correct»\n",
        "machine example.com\n  login me\n  password «correct»\n",
        "jdbc:mysql://host/db?user=u&password=«correct»&x=1",
        "Server=tcp:h,1433;Database=d;User ID=u;Password=«correct»;Encrypt=True;",
        "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=«Ab1Cd2Ef3=»;x",
    ] {
        let plain = text.replace(['«', '»'], "");
        let (before, rest) = text.split_once('«').unwrap();
        let (_, after) = rest.split_once('»').unwrap();
        let shown = clear(&plain);
        assert!(
            shown.starts_with(&format!("{before}[redacted:")),
            "{plain}: {shown}"
        );
        assert!(shown.ends_with(&format!("]{after}")), "{plain}: {shown}");
    }
}

/// What is written with lines and quotes, in strings of JSON in each other: a file in a prompt, arguments of a tool.
#[test]
fn values_in_strings() {
    for text in [
        "[db]\nuser = u\npassword = «ZiV5KUZdjr7z»\nhost = h\n",
        "aws_secret_access_key = «OHs2HwvcUB3o»\n",
        "AWS_SECRET_ACCESS_KEY=«/Jx0Xujr4Ghs2HwvcUB3oZq9LmN5pRtYw8VbKd1E»\n",
        "{\n  \"password\"  :\n    \"«4SU2k2kj2M4s»\"\n}\n",
        "pub const PASSWORD: &str = \"«HrZ6TwUNpl4j»\";\nfn main() {}\n",
        "<input name=\"csrf_token\" value=\"«MBi7FSl8uI4Y»\">",
        "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\n«szC78S1mwd7f»\r\n--b--\r\n",
    ] {
        let (plain, secret) = (text.replace(['«', '»'], ""), text.split(['«', '»']).nth(1));
        let secret = secret.unwrap();
        let mut quoted = plain;
        for level in 1..=3 {
            quoted = serde_json::json!({ "a": quoted, "b": "c" }).to_string();
            let shown = clear(&quoted);
            let (before, after) = quoted.split_once(secret).unwrap();
            assert!(
                shown.starts_with(&format!("{before}[redacted:")),
                "{level}: {shown}"
            );
            assert!(shown.ends_with(&format!("]{after}")), "{level}: {shown}");
        }
    }
    // A value does not reach from one string into the next.
    for text in [
        r#"{"a":"
your password:","b":"correcthorse7"}"#,
        r#"{"a":"
password =","Xy7correct":1}"#,
        r#"{"a":"\","b":"x
y","c":"\"","d":"C:\new\token\u0041"}"#,
    ] {
        assert_eq!(clear(text), text);
    }
}

/// What is none, though a name stands before it.
#[test]
fn what_only_looks_like_a_secret() {
    for text in [
        "def login(user: str, password: str) -> None:\n",
        "    password: string;\n    token?: string\n",
        "password: Option<String>,\n",
        "self.password = password\n",
        "password=password, token=token)\n",
        "let token = lexer.next_token();\n",
        "max_tokens: 4096, total_tokens=17\n",
        "{\"password\":{\"type\":\"string\"},\"max_tokens\":1024}",
        "{\"password\":\"Enter your password here\"}",
        "{\"password\":null,\"token\":true}",
        "password = os.environ[\"DB_PASSWORD\"]\n",
        "API_KEY=${API_KEY}\nTOKEN=$1\n",
        "Authorization: Bearer <token>\n",
        "Authorization: Bearer $TOKEN\n",
        "\"Authorization\": f\"Bearer {token}\"\n",
        "[\"authorization\", \"content-type\", \"cookie\", \"accept-encoding\"]",
        "A cookie: small, with chocolate. The key: patience.\n",
        "The password: it is on the yellow note below the desk.\n",
        "https://localhost:8080/x and http://user:pass@host/\n",
        "if key == 12345678 { token += 1 }\n",
        "-----BEGIN PRIVATE KEY----- is how it begins",
        "<password>your password</password>",
        "sort --key=2,3 --code=utf8 file",
        "git commit -S --signature=none --key-id=abc",
        "basic authentication, bearer tokens, digest\n",
        "pub const ERROR_NO_TOKEN: WIN32_ERROR = 1008;\n",
        "const PASSWORD: &str = \"password\";\n",
        "let token: Token = next(\"a1b2c3d4\");\n",
        "login me password\n",
    ] {
        assert_eq!(clear(text), text);
    }
}

/// However it is cut, and whatever is true of a text as a whole.
#[test]
fn cuts_change_nothing() {
    let texts = [
        "password: it is on the yellow note\ntoken = x\n",
        "password: correct \npassword: correct horse\n",
        "POST /a HTTP/1.1\r\nCookie: a=b\r\n\r\n{\"password\": \"x y z\", \"é\": \"sk-proj\"} -----BEGIN",
        "use sk-proj-Ab1Cd2Ef3Gh4Ij5Kl6 or ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn at https://me:hunter2@host:80/x",
        "{\"password\": \"a\\\"b\\\\\", \"n\": \"{\\\"password\\\":\\\"c\\\\\\\"d\\\"}\"} shown",
        "git clone https://ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2@github.com/x\n",
        "git clone https://ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2:x-oauth-basic@github.com/x\n",
        "://me&note=ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2&x=1 more",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEAb1Cd2Ef3Gh4Ij5K\n-----END RSA PRIVATE KEY-----\n",
        "x2-----BEGIN RSA PRIVATE KEY-----\nMIIEAb1Cd2Ef3Gh4Ij5K\n-----END RSA PRIVATE KEY-----\n",
        "name=\"otp\"\r\nContent-Type: text/plain\r\n\r\n123456\r\nname=\"otp\"\r\nCookie: a=b\r\n\r\nshown",
        "name=\"password\"\r\nAuthorization: Ab1Cd2Ef3\r\n\r\n:",
        "a=1&private_key=-----BEGIN PRIVATE KEY-----\nMIIEAb1Cd2Ef3Gh4Ij5K\n-----END PRIVATE KEY-----&x=1",
        "://{ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2::",
        "://token=hunter2hunter2:x@host and ://{ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2:x@host\n",
        "const TOKEN: WIN32_X = 1; constant TOKEN: hunter2hunter2\n",
        "no head\rCookie: /\rmore\r\n",
        "GET / HTTP/1.1\r\n\r\nGET no head\rCookie: /\rmore\r\n",
        "{\"n\":\"m\",\"password\":u'ggg%5dggggg",
        "const PASSWORD: &str = \"hunter2xCd2\"; var token string = r\"Ab1Cd2Ef3\" password: a b = \"",
        "pay 4111 1111 1111 1111 or 378282246310005, not 4111 1111 1111 1112 nor 4111. \"cc=4111-1111-1111-1111",
        "4111111111111111 |x, 4111 1111 1111 1111 1227 123, 5555 5555 5555 4444 123; 4111111111111111,12/27,1",
        "[4111111111111111, 12, 1] 4111 1111 1111 1111 1227 5 4111-1111-1111-1111-12/27-1 4222222222222 1227 123",
        "{\"kty\":\"EC\",\"d\":\"Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2Yz3Ab1C\",\"x\":1}",
        "machine h login me password correcthorse\nu:$apr1$Ab1Cd2Ef$Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op\n",
        "{'password': b'correct horse', 'otp':f, 'token' : R\"Ab1Cd2Ef3\"} password=b2Cd2Ef3&otp=u",
        "(\"Authorization\", \"valu3 Ab1Cd2Ef3\"), (\"Cookie\", \"value=1\"), [\"x-api-key\", \"va",
        "%22authentication%22: a1b2c3d4 authentication]%5D: Bearer Ab1Cd2Ef3\n%22password%22%3A%22Ab1Cd2Ef3%22 password %3",
        "sk-learn sk-proj- -----BEGIN CERTIFICATE-----\nMIIB\n xox eyJ ghp_ key-board ://",
    ];
    for text in texts {
        let (whole, length) = stream(&[text.as_bytes()], &[]);
        assert_eq!(length, text.len() as u64);
        for part in ["hunter2", "b\\\\", "c\\", "Cd2"] {
            assert!(!whole.contains(part), "{whole}");
        }
        for cut in 0..=text.len() {
            let (first, second) = text.as_bytes().split_at(cut);
            assert_eq!(
                stream(&[first, second], &[]),
                (whole.clone(), length),
                "{cut}"
            );
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(stream(&bytes, &[]), (whole, length));
    }
}

/// What is longer than may be held back is decided by its first bytes, also where all of it comes at once.
#[test]
fn cuts_change_nothing_of_what_is_long() {
    let letters = "Ab1Cd2Ef".repeat(1000);
    let (name, backslashes) = ("n".repeat(50), "\\".repeat(90));
    let spaces = " ".repeat(8000);
    let texts = [
        format!("use eyJ{letters} shown"),
        format!("use eyJ{letters}.eyJ{letters}.{letters} shown"),
        format!("-----BEGIN PRIVATE KEY-----{spaces}{letters} shown"),
        format!(
            "{letters}\n{:64}export {name}_password: hunter2\n shown",
            ""
        ),
        format!("{letters} {backslashes}\"{name}_otp{backslashes}\":\"123 456\" shown"),
        format!("password: {letters} and \"token\": \"{letters}\" shown"),
    ];
    for text in texts {
        let (whole, length) = stream(&[text.as_bytes()], &[]);
        assert!(whole.ends_with(" shown"));
        for size in [1, 1000, 4095, 4096, 4097, 5000, 9000] {
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(stream(&chunks, &[]), (whole.clone(), length), "{size}");
        }
    }
}

/// A token that the stream's end cuts off is one; the beginning that all of them have is none.
#[test]
fn the_end_of_a_stream_decides() {
    assert_eq!(
        clear("the key is sk-proj-Ab1"),
        "the key is [redacted:openai]"
    );
    assert_eq!(clear("the key is sk-"), "the key is sk-");
    for name in ["npm_install", "hf_llama3", "/json_secret_stripe", "sess-42"] {
        assert_eq!(clear(name), name);
    }
    assert_eq!(
        clear("-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
        "[redacted:private_key]"
    );
}

#[test]
fn a_pause_shows_what_is_certain_and_holds_the_rest() {
    let mut scanner = Scanner::new(None, 0, true);
    let mut shown = String::new();
    let mut out = |_: u64, _: u64, cleared: Cleared<'_>| {
        if let Cleared::Text(text, _) = cleared {
            shown.push_str(text);
        }
    };
    scanner.feed(b"user=u&password=hunter2", &mut out);
    assert!(scanner.is_holding());
    scanner.flush(Ending::Idle, &mut out);
    assert!(!scanner.is_holding());
    scanner.feed(b"34&a sk-proj-Ab1", &mut out);
    scanner.flush(Ending::Idle, &mut out);
    assert!(scanner.is_holding(), "doubtful");
    scanner.flush(Ending::Late, &mut out);
    scanner.feed(b"Cd2Ef3 and more", &mut out);
    scanner.close(&mut out);
    assert_eq!(
        shown,
        "user=u&password=[redacted:password][redacted:password]&a [redacted:openai][redacted:openai] and more"
    );
}

/// A pause in a name that begins like a token: what was taken for one is redacted, and so is the value.
#[test]
fn a_pause_loses_no_name() {
    let texts = [
        "{\"sb_secret_key\": \"hunter2 and\"} shown",
        "{\"aws_secret_access_key\": \"hunter2 and\"} shown",
        "secret_password=hunter2,and shown",
        "sb_secret_password=hunter2,and shown",
        "password: token: hunter2x shown",
        "{'password': u'hunter2 and'} shown",
        "password=u'hunter2hunter2,and' and b shown",
        "password=b4hunter2 shown",
        "redis://:@1@hunter2@host shown",
        "Private-Lines: 14\r\nAb1Cd2hunter2Ef3Gh4Ij5Kl6Mn7Op8; shown",
        "(\"Authorization\", \"valuehunter2 and\") shown",
    ];
    for text in texts {
        for pause in [Ending::Idle, Ending::Late] {
            for cut in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let (shown, length) = stream(&[first, second], &[pause]);
                assert_eq!(length, text.len() as u64);
                let hides = !["hunter2", "2 and", ",and"]
                    .iter()
                    .any(|part| shown.contains(part));
                // What a pause cuts off in the middle of a value has been shown to be one, or is not known.
                assert!(
                    hides && shown.ends_with(" shown"),
                    "{pause:?} at {cut}: {shown}"
                );
            }
        }
    }
}

/// What follows a gap may be the rest of a secret: to the end of a line, and further if that comes too soon
/// to be text, or to the next head.
#[test]
fn after_a_gap() {
    let run = |before: &str, after: &[&[u8]]| {
        let mut scanner = Scanner::new(None, 0, true);
        let mut shown = String::new();
        let mut total = 0;
        let mut out = |offset: u64, length: u64, cleared: Cleared<'_>| {
            assert!(offset >= total);
            total = offset + length;
            match cleared {
                Cleared::Text(text, _) => shown.push_str(text),
                Cleared::Encoded => shown.push('E'),
            }
        };
        scanner.feed(before.as_bytes(), &mut out);
        scanner.gap(10, &mut out);
        for bytes in after {
            scanner.feed(bytes, &mut out);
        }
        scanner.close(&mut out);
        shown
    };
    let line = b"rest of a long cookie; and of another one=x\nshown\n";
    assert_eq!(
        run("Cookie: a=", &[line]),
        "Cookie: [redacted:cookie][redacted:after_gap]shown\n"
    );
    assert_eq!(
        run("", &[&line[..20], &line[20..]]),
        "[redacted:after_gap]shown\n"
    );
    assert_eq!(
        run("x", &[b"short\nAb1Cd2\nEf3Gh4Ij5Kl6Mn7Op8Qr9\nshown"]),
        "x[redacted:after_gap]shown"
    );
    assert_eq!(
        run("", &[b"half", b"HTTP/1.1 200 OK\r\nA: b\r\n"]),
        "[redacted:after_gap]HTTP/1.1 200 OK\r\nA: b\r\n"
    );
    assert_eq!(run("", &[b"half\xff\n text\n"]), "[redacted:after_gap]E");
}

/// Nothing encoded comes out as text, not even what happens to look like it.
#[test]
fn encoded_bytes_are_withheld_until_the_next_head() {
    let head = "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n";
    let body = [
        &b"looks like text\n"[..],
        b"\x1b\x0e and more text\n",
        b"GET of text\n",
    ]
    .concat();
    let next = b"HTTP/1.1 204 No Content\r\n\r\n";
    for cut in 1..head.len() {
        let (a, b) = head.as_bytes().split_at(cut);
        let (shown, _) = stream(&[a, b, &body, &body, next], &[]);
        assert_eq!(
            shown,
            format!("{head}\u{fffd}\u{fffd}HTTP/1.1 204 No Content\r\n\r\n"),
            "{cut}"
        );
    }
    let (shown, _) = stream(&[b"\x1f\x8b\x08 text", b"text alone\n"], &[]);
    assert_eq!(shown, "\u{fffd}\u{fffd}");
    let (shown, _) = stream(
        &[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12text", b"text"],
        &[],
    );
    assert_eq!(shown, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u{fffd}\u{fffd}");
    let (shown, _) = stream(&[b"a \xc3", b"\xa9 \xc3"], &[]);
    assert_eq!(shown, "a é \u{fffd}", "half a character at the end");
    let (shown, _) = stream(&[b"Authorization: Bearer abcdefgh\xffijkl\r\n"], &[]);
    assert!(
        !shown.contains("abcdefgh") && !shown.contains("ijkl"),
        "{shown}"
    );
}

/// A secret longer than what is held back is not kept, and is said when it ends.
#[test]
fn memory_is_bounded() {
    let mut scanner = Scanner::new(Some(Key::new([1; 32])), 0, true);
    let mut total = 0;
    let mut shown = String::new();
    let mut out = |_: u64, length: u64, cleared: Cleared<'_>| {
        total += length;
        if let Cleared::Text(text, _) = cleared {
            shown.push_str(text);
        }
    };
    scanner.feed(b"{\"password\":\"", &mut out);
    for _ in 0..1000 {
        scanner.feed(&b"abcdefghij".repeat(100), &mut out);
        assert!(scanner.memory() < 64 << 10);
    }
    scanner.feed(b"\",\"a\":1}", &mut out);
    scanner.close(&mut out);
    assert_eq!(total, 13 + 1_000_000 + 8);
    assert!(
        shown.starts_with("{\"password\":\"[redacted:password:") && shown.ends_with("]\",\"a\":1}")
    );
    let mut scanner = Scanner::new(None, 0, true);
    for _ in 0..1000 {
        scanner.feed(
            b"sk- key= password -----BEGIN https://a eyJaaaaaaaaaaaaaaaaaaa",
            &mut |_, _, _| (),
        );
        assert!(scanner.memory() < 64 << 10);
    }
    scanner.feed(b"-----BEGIN PRIVATE KEY-----", &mut |_, _, _| ());
    for _ in 0..1000 {
        scanner.feed(&[b' '; 1000], &mut |_, _, _| ());
        assert!(scanner.memory() < 64 << 10);
    }
}

#[test]
fn equal_secrets_have_equal_hashes_and_short_ones_none() {
    let redactor = |byte| Redactor::new(Policy::Redacted, Key::new([byte; 32]));
    let shown = |redactor: &Redactor, text: &str| redactor.string(text).as_str().to_owned();
    let one = redactor(1);
    let text = "password=correcthorse";
    assert_eq!(shown(&one, text), shown(&one, text));
    assert_ne!(shown(&one, text), shown(&redactor(2), text));
    assert_eq!(
        shown(&one, "password=hunter2"),
        "password=[redacted:password]"
    );
    let [as_argument, ..] = &one.arguments(&[text.to_owned()])[..] else {
        panic!("one argument")
    };
    assert_eq!(as_argument.as_str(), shown(&one, text));
}

/// Encoded in one way, and in several.
#[test]
fn what_is_encoded_once_more_is_found() {
    let base64 = |text: &str| base64_simd::STANDARD.encode_to_string(text);
    let percent =
        |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    let json =
        |text: &str| -> String { text.bytes().map(|byte| format!("\\u{byte:04x}")).collect() };
    let entities =
        |text: &str| -> String { text.bytes().map(|byte| format!("&#{byte};")).collect() };
    let hex = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
    let ways: [&dyn Fn(&str) -> String; 5] = [&base64, &percent, &json, &entities, &hex];
    for secret in [
        "ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8",
        "{\"password\":\"correct horse\"}",
        "a note: 4111 1111 1111 1111, is it?",
    ] {
        for one in ways {
            for (before, after) in [
                ("", ""),
                ("see ", " here"),
                ("\"", "\""),
                ("data:text/plain;base64,", "\n"),
                ("x\\n", "\\n"),
                ("/v1/", "&x=1"),
                ("x=", "&y=1"),
                ("x=", "&y=1"),
            ] {
                let shown = clear(&format!("{before}{}{after}", one(secret)));
                assert!(
                    shown.starts_with(before) && shown.ends_with(after),
                    "{shown}"
                );
                assert!(shown.contains("[redacted:"), "{}: {shown}", one(secret));
            }
            for other in ways {
                let text = other(&one(secret));
                // What is left of it are the names, brackets and quotes.
                assert!(clear(&text).contains("[redacted:"), "{text}");
            }
        }
    }
    for (text, shown) in [
        (
            "pass%77ord=hunter2&x=1",
            "pass%77ord=[redacted:password]&x=1",
        ),
        (
            "u=postgres%3A%2F%2Fme%3Ahunter2%40host%2Fdb&x=1",
            "u=postgres%3A%2F%2Fme%3A[redacted:password]%40host%2Fdb&x=1",
        ),
        (
            "{\"u\":\"redis:\\/\\/:hunter2@host\"}",
            "{\"u\":\"redis:\\/\\/:[redacted:password]@host\"}",
        ),
        (
            "{\"a\":\"{\\u0022password\\u0022:\\u0022hunter2\\u0022}\"}",
            "{\"a\":\"{\\u0022password\\u0022:\\u0022[redacted:password]\\u0022}\"}",
        ),
        (
            "&quot;password&quot;:&quot;hunter2&quot;",
            "&quot;password&quot;:&quot;[redacted:password]&quot;",
        ),
        (
            "%2522password%2522%253A%2522hunter2%2522",
            "%2522password%2522%253A[redacted:password]",
        ),
    ] {
        assert_eq!(clear(text), shown);
    }
}

/// Base64 in lines, also where their ends are escapes, and in both alphabets.
#[test]
fn base64_is_found_in_lines() {
    let text = "x".repeat(60)
        + " token ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8 \u{fb}\u{ff}?>"
            .repeat(3)
            .as_str();
    let whole = base64_simd::STANDARD.encode_to_string(&text);
    for (end, indent) in [
        ("\n", ""),
        ("\r\n", ""),
        ("\n", "    "),
        ("\\n", ""),
        ("\\r\\n", ""),
        ("\\\\n", ""),
    ] {
        for width in [64, 76] {
            let lines: Vec<&str> = (0..whole.len())
                .step_by(width)
                .map(|at| &whole[at..whole.len().min(at + width)])
                .collect();
            let lines = lines.join(&format!("{end}{indent}"));
            assert_eq!(clear(&format!("a: {lines}.")), "a: [redacted:github].");
        }
    }
    let url = base64_simd::URL_SAFE_NO_PAD.encode_to_string(&text);
    assert_eq!(clear(&format!("a: {url} b")), "a: [redacted:github] b");
    // Of what is cut off the end may be half a secret.
    let redactor = Redactor::new(Policy::Redacted, Key::new([7; 32]));
    let cut = "see ".to_owned() + &base64_simd::STANDARD.encode_to_string("the key is sk-proj-Ab1");
    let whole = redactor.whole(Plaintext::new(cut.as_bytes()), &[], true);
    let Shown::Text(shown, marks) = whole.content().shown() else {
        panic!("{whole:?}")
    };
    assert!(
        shown.starts_with("see [redacted:openai") && marks[0].offset == 4,
        "{shown}"
    );
}

#[test]
fn what_is_no_secret_when_it_is_decoded_is_left_alone() {
    for text in [
        "aGVsbG8sIHdvcmxkLCBob3cgYXJlIHlvdT8gRmluZS4=",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "a%20b%20c%3Dd and \\u0041\\/\\u0042 &amp;&quot;&lt;",
        "/usr/lib/x86_64-linux-gnu/libthislibraryhasalongname",
        "\\\\\\\\ %%%% &&&& % \\ &",
    ] {
        assert_eq!(clear(text), text);
    }
}

/// No text makes it slow: rows of what begins an escape or base64, and of what may be several.
#[test]
fn what_is_encoded_costs_little() {
    let text = "ghp_ /aGVsbG8sIHdvcmxk%25%5Cu0041&#37;";
    for text in [text, "\\", "%", "&", "a/", "%25", "aGVsbG8sIHdvcmxk/"] {
        let text = text.repeat((1 << 20) / text.len());
        let start = std::time::Instant::now();
        clear(&text);
        assert!(start.elapsed().as_secs() < 10, "{:?}", &text[..4]);
    }
}

#[test]
fn debug_output_holds_no_secret() {
    let secret = Plaintext::new(b"secret");
    assert_eq!(
        format!("{secret:?} {:?}", secret.keep()),
        "Plaintext(6 bytes) Plaintext(6 bytes)"
    );
    for policy in [Policy::None, Policy::Redacted, Policy::Full] {
        assert!(!format!("{:?}", policy.apply(b"secret")).contains("secret"));
    }
    assert_eq!(format!("{:?}", Key::new([7; 32])), "Key");
}

/// Whatever comes, in whatever pieces, with pauses and gaps between: every byte is accounted for once, in
/// order, and nothing panics.
#[test]
fn any_input_adds_up() {
    const PIECES: [&[u8]; 24] = [
        b"sk-",
        b"sk-proj-Ab1Cd2Ef3Gh4Ij5Kl6",
        b"password",
        b"=",
        b": ",
        b"\"",
        b"\\\"",
        b"\r\n",
        b"\r\n\r\n",
        b"Authorization: Bearer ",
        b"HTTP/1.1 200 OK\r\n",
        b"GET /?key=Ab1Cd2Ef3 HTTP/1.1\r\n",
        b"Content-Encoding: gzip\r\n",
        b"\x1f\x8b\x00",
        "\u{e9}\u{20ac}".as_bytes(),
        b"\xe2\x82",
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"MIIEpAIBAAKCAQEA0Ab1Cd2Ef3Gh4Ij5",
        b"-----END RSA PRIVATE KEY-----",
        b"https://user:pa@ss@host/",
        b"eyJhbGciOiJIUzI1NiJ9.",
        b"name=\"password\"",
        b"--token ",
        b"word word word word word word word",
    ];
    let mut state = 0x5eed_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % below
    };
    for round in 0..20_000 {
        let mut scanner = Scanner::new(Some(Key::new([2; 32])), 5, round % 2 == 0);
        let (mut sent, mut told) = (5, 5);
        for _ in 0..random(12) {
            let mut gap = 0;
            let mut out = |offset: u64, length: u64, cleared: Cleared<'_>| {
                assert_eq!(offset, told);
                assert!(length > 0);
                told += length;
                if let Cleared::Text(_, redactions) = cleared {
                    let mut last = offset;
                    for redaction in redactions {
                        assert!(redaction.offset >= last && redaction.length > 0);
                        last = redaction.offset + redaction.length;
                    }
                    assert!(last <= told);
                }
            };
            match random(10) {
                0 => scanner.flush(Ending::Idle, &mut out),
                1 => scanner.flush(Ending::Late, &mut out),
                2 => {
                    gap = 1 + random(9) as u64;
                    scanner.gap(gap, &mut out);
                }
                _ => {
                    let mut bytes = PIECES[random(PIECES.len())].to_vec();
                    for _ in 0..random(4) {
                        bytes.extend_from_slice(PIECES[random(PIECES.len())]);
                    }
                    bytes.drain(..random(bytes.len()));
                    sent += bytes.len() as u64;
                    scanner.feed(&bytes, &mut out);
                    assert_eq!(scanner.is_holding(), told < sent);
                }
            }
            if gap > 0 {
                assert_eq!(told, sent);
                sent += gap;
                told += gap;
            }
        }
        scanner.close(&mut |offset, length, _| {
            assert_eq!(offset, told);
            told += length;
        });
        assert_eq!(told, sent);
    }
}

/// Where a hole is in what is shown: behind a secret that became longer, and where it was in what was sent.
#[test]
fn holes_have_their_places() {
    let body = b"password=hunter2x\nbefore\nafter\nend";
    let (first, second) = (24, 30);
    let holes = [(first, 5), (second, 7)];
    for policy in [Policy::Redacted, Policy::Full] {
        let redactor = Redactor::new(policy, Key::new([7; 32]));
        let whole = redactor.whole(Plaintext::new(body), &holes, false);
        let shown = match whole.content().shown() {
            Shown::Text(text, _) => text.as_bytes(),
            Shown::Raw(bytes) => bytes,
            Shown::Nothing | Shown::Encoded => panic!("{policy:?} shows it"),
        };
        let [one, other] = whole.holes() else {
            panic!("{:?}", whole.holes());
        };
        assert!(shown[..one.at].ends_with(b"\nbefore"), "{policy:?}");
        let between = str::from_utf8(&shown[one.at..other.at]).unwrap();
        let behind = str::from_utf8(&shown[other.at..]).unwrap();
        let parts = match policy {
            Policy::Full => ("\nafter", "\nend"),
            // What follows a hole may be the rest of a secret.
            _ => ("[redacted:after_gap]", "[redacted:after_gap]"),
        };
        assert_eq!((between, behind), parts, "{policy:?}");
        let wire = [one, other].map(|hole| (hole.offset, hole.length));
        assert_eq!(wire, [(24, 5), (35, 7)], "{policy:?}");
    }
}

/// A text in pieces is told as all of it at once is, and where less may be told from some piece on, of what came
/// before only what was told.
#[test]
fn pieces_of_a_text() {
    let text = "the key is sk-proj-Ab1Cd2Ef3Gh4Ij5Kl6,\npassword=hunter2";
    let redactor = |policy| Redactor::new(policy, Key::new([1; 32]));
    let (full, redacted) = (redactor(Policy::Full), redactor(Policy::Redacted));
    let whole = redacted.string(text).to_string();
    assert!(
        !whole.contains("Ab1") && !whole.contains("hunter2"),
        "{whole}"
    );
    for cut in 0..=text.len() {
        let (first, second) = text.split_at(cut);
        let mut pieces = Pieces::default();
        let mut piece = |text, is_end| redacted.piece(&mut pieces, text, is_end).unwrap();
        let told = [piece(first, false), piece(second, true)];
        assert_eq!(told.map(|told| told.to_string()).concat(), whole, "{cut}");

        let mut pieces = Pieces::default();
        assert_eq!(&*full.piece(&mut pieces, first, false).unwrap(), first);
        let rest = redacted.piece(&mut pieces, second, true).unwrap();
        assert!(
            !rest.contains("Kl6") && !rest.contains("hunter2"),
            "{cut}: {rest:?}"
        );
    }
    let mut pieces = Pieces::default();
    assert_eq!(redactor(Policy::None).piece(&mut pieces, text, true), None);
}
