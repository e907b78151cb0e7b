use super::*;
use crate::redact::{Key, Policy};

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

/// What hearing of an exchange costs beside redacting its body. `cargo test --release --lib -- --ignored --nocapture
/// detect::tests::speed`
#[test]
#[ignore = "measures"]
fn speed() {
    use crate::record::{Attribution, Clear, HttpBody, HttpHalf, Joined, Url, WallTime};
    use std::time::Instant;

    let redactor = Redactor::new(Policy::Redacted, Key::new([1; 32]));
    let connection = Connection {
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
    };
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
            let body = HttpBody {
                size: length as u64,
                decoded_size: length as u64,
                content,
                charset: None,
                is_cut: false,
                unreadable: None,
            };
            let http = Http {
                exchange: time,
                is_open: false,
                is_call: false,
                is_continued: false,
                method: None,
                url: Url::default(),
                status: None,
                request: Some(HttpHalf {
                    headers: Vec::new(),
                    trailers: Vec::new(),
                    body,
                    began: WallTime(0),
                    ended: WallTime(0),
                    is_whole: true,
                    has_head: true,
                    has_body: true,
                }),
                response: None,
                interim: Vec::new(),
                events: 0,
            };
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
