use super::*;
use crate::{
    record::{Attribution, Clear, HttpBody, HttpHalf, Joined, Url, WallTime},
    redact::{Key, Policy},
};

fn connection() -> Connection {
    Connection {
        id: "1".into(),
        number: 1,
        attribution: Attribution::Exact,
        joined: Joined::Start,
        has_unseen: false,
        local: None,
        peer: None,
        role: Some(Role::Client),
        server_name: Some(Clear::ours("a.example")),
        library_name: None,
        library_version: None,
        http_version: None,
        is_plain: false,
    }
}

fn post(exchange: u64, length: u64, content: OwnedContent) -> Http {
    Http {
        exchange,
        is_open: false,
        is_call: false,
        is_continued: false,
        method: None,
        url: Url::default(),
        status: None,
        request: Some(HttpHalf {
            headers: Vec::new(),
            trailers: Vec::new(),
            body: HttpBody {
                size: length,
                decoded_size: length,
                content,
                charset: None,
                is_cut: false,
                unreadable: None,
            },
            began: WallTime(0),
            ended: WallTime(0),
            is_whole: true,
            has_head: true,
            has_body: true,
        }),
        response: None,
        interim: Vec::new(),
        events: 0,
    }
}

/// What is found of a body, by what is seen and by what the evidence shows of it.
fn found(text: &str) -> Vec<(String, String)> {
    let redactor = Redactor::new(Policy::Redacted, Key::new([1; 32]));
    let content = redactor.whole(Plaintext::new(text.as_bytes()), &[], false);
    let http = post(1, text.len() as u64, content);
    let heard = Heard {
        time: 1,
        process: None,
        connection: &connection(),
        http: Some((&http, None)),
        llm: None,
        mcp: &[],
    };
    let findings = Detector::new(Settings::default()).hear(&heard, &redactor);
    let told = findings.into_iter().map(|finding| {
        let evidence = finding.evidence.as_ref().map(Evidence::text);
        (finding.seen.to_string(), evidence.unwrap_or_default())
    });
    told.collect()
}

/// Of these the text is replaced as a whole, and has no hash.
#[test]
fn several_secrets_that_are_encoded_together_are_found() {
    let base64 = |text: &str| base64_simd::STANDARD.encode_to_string(text);
    let hex = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
    let [one, other] = [
        "ghp_Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8Qr9St0Uv1Wx2",
        "glpat-Ab1Cd2Ef3Gh4Ij5Kl6Mn",
    ];
    let two = format!("take {one} and {other}");
    let named = "{\"password\":\"correct horse\",\"token\":\"correct1horse\",\"secret\":\"correct2horse\",\"api_key\":\"correct3horse\"}";
    for (text, expected) in [
        (
            base64(&two),
            Some(("2 secrets: github", "[redacted:github]")),
        ),
        (hex(&two), Some(("2 secrets: github", "[redacted:github]"))),
        (
            base64(&base64(&two)),
            Some(("2 secrets: github", "[redacted:github]")),
        ),
        // What says by itself what it is says more than a name.
        (
            base64(&format!("{{\"password\":\"hunter2x\",\"a\":\"{one}\"}}")),
            Some(("2 secrets: github", "[redacted:github]")),
        ),
        // Of what is known by name there are many.
        (
            base64(named),
            Some(("4 secrets: password", "[redacted:password]")),
        ),
        (
            base64("password=correct+horse&secret=correct+horse+2"),
            None,
        ),
        // Short ones are as likely to be words.
        (
            base64("{\"password\":\"a b\",\"token\":\"b c\",\"secret\":\"c d\",\"otp\":\"123\"}"),
            None,
        ),
    ] {
        let found = found(&format!("{{\"data\":\"{text}\"}}"));
        let expected = expected.map(|(seen, secret)| {
            let evidence = format!("{{\"data\":\"{secret}\"}}");
            (seen.to_owned(), evidence)
        });
        assert_eq!(found, Vec::from_iter(expected), "{text}");
    }
    // The same one twice is one, with its hash.
    let [(seen, evidence)] = &found(&base64(&format!("{one} {one}")))[..] else {
        panic!("one finding")
    };
    assert_eq!(seen, "a secret: github");
    assert!(evidence.starts_with("[redacted:github:"), "{evidence}");
}

/// Each kind of `rules.toml` is one that redaction has, or nothing is ever of it.
#[test]
fn kinds_are_those_of_redaction() {
    let known = include_str!("../redact/rules.toml");
    for kind in RULES.kinds() {
        let is_known = known.contains(&format!("kind = \"{kind}\""));
        assert!(
            is_known || ["after_gap", "nameless"].contains(&&**kind),
            "{kind}"
        );
    }
}

/// An example that redaction does not know as a secret stands in vain.
#[test]
fn examples_are_seen_by_redaction() {
    let redactor = Redactor::new(Policy::Redacted, Key::new([1; 32]));
    let is_unseen = |example: &&String| {
        let content = redactor.whole(Plaintext::new(example.as_bytes()), &[], false);
        match content.content().shown() {
            Shown::Text(_, marks) => marks.iter().all(|mark| mark.hash.is_none()),
            _ => true,
        }
    };
    let unseen: Vec<_> = RULES.examples.iter().filter(is_unseen).collect();
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn owners_are_hosts_and_all_below() {
    let is = |kind, host| RULES.is_owner(kind, host);
    assert!(is("github", "github.com") && is("github", "api.github.com"));
    assert!(!is("github", "github.com.example") && !is("github", "notgithub.com"));
    assert!(!is("github", "amazonaws.com") && !is("nobody", "github.com"));
}

/// Who says which hosts are trusted names no ports. An address of IPv6 has colons of its own.
#[test]
fn hosts_have_no_port() {
    for (url, peer, host) in [
        ("https://b.example/x", "b.example", "b.example"),
        ("https://b.example:8443/", "b.example:8443", "b.example"),
        ("https://[2001:db8::1]/", "2001:db8::1", "2001:db8::1"),
        (
            "https://[2001:db8::1]:8443/",
            "2001:db8::1:8443",
            "2001:db8::1",
        ),
    ] {
        let mut http = post(1, 0, OwnedContent::from(Shown::Nothing));
        http.url.full = Some(url.into());
        let connection = Connection {
            server_name: None,
            ..connection()
        };
        let heard = Heard {
            time: 1,
            process: None,
            connection: &connection,
            http: Some((&http, None)),
            llm: None,
            mcp: &[],
        };
        let ends = ends(&heard).unwrap();
        assert_eq!((&*ends.peer, &*ends.host), (peer, host));
    }
}

/// What hearing of an exchange costs beside redacting its body. `cargo test --release --lib -- --ignored --nocapture
/// detect::tests::speed`
#[test]
#[ignore = "measures"]
fn speed() {
    use std::time::Instant;

    let redactor = Redactor::new(Policy::Redacted, Key::new([1; 32]));
    let connection = connection();
    let process = Process {
        executable: Some(Clear::ours("/usr/bin/a1.2")),
        ..Process::default()
    };
    for length in [1 << 10, 64 << 10, 1 << 20] {
        let text = include_str!("../pipeline.rs").repeat(20);
        let text = &text[..text.floor_char_boundary(length)];
        let mut detector = Detector::new(Settings::default());
        let rounds = (64 << 20) / length;
        let (mut redacting, mut hearing) = (0, 0);
        for time in 0..rounds as u64 {
            let started = Instant::now();
            let content = redactor.whole(Plaintext::new(text.as_bytes()), &[], false);
            redacting += started.elapsed().as_nanos();
            let http = post(time, length as u64, content);
            let heard = Heard {
                time,
                process: Some(&process),
                connection: &connection,
                http: Some((&http, None)),
                llm: None,
                mcp: &[],
            };
            let started = Instant::now();
            assert_eq!(detector.hear(&heard, &redactor), []);
            hearing += started.elapsed().as_nanos();
        }
        let share = 100.0 * hearing as f64 / redacting as f64;
        let each = hearing / rounds as u128;
        println!(
            "body of {length}: {each} ns an exchange, {share:.1} % of what its redaction takes"
        );
    }
}
