//! Secrets of a real client: with the default settings none is in the output, in neither form.

use crate::harness::{Agent, End, Lab, argv, bare, seconds};

const SECRETS: [&str; 5] = [
    "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8",
    "cookie-9f8e7d6c5b4a",
    "parameter-0a1b2c3d4e5f",
    "field-correct-horse-battery",
    "argument-staple-1234",
];

/// A header, a cookie, a parameter of the URL, a field of the body and an argument.
#[test]
fn secrets_of_a_request() {
    let Some(lab) = Lab::with("secrets_of_a_request", &["curl"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let [token, cookie, parameter, field, argument] = SECRETS;
    let request = || {
        argv![
            "curl",
            "-sk",
            "--http1.1",
            "-u",
            format!("me:{argument}"),
            "-H",
            format!("Authorization: Bearer sk-ant-api03-{token}"),
            "-b",
            format!("session={cookie}"),
            "-H",
            "X-Marker: shown",
            "--data",
            format!("{{\"password\":\"{field}\",\"marker\":\"shown too\"}}"),
            server.url(&format!("/echo/from-curl?api_key={parameter}&x=1"))
        ]
    };
    for (format, content) in [
        ("json", &[][..]),
        ("text", &[]),
        ("json", &["--content", "full"]),
        ("text", &["--content", "full"]),
        ("json", &["--content", "none"]),
    ] {
        let name = format!("{format}-{}", content.last().unwrap_or(&"default"));
        let output = lab.path(&name);
        let mut words = argv![Agent::path(), "run", "--output", format, "-o", &output];
        words.extend(content.iter().map(|word| (*word).into()));
        words.extend(argv!["--"]);
        words.extend(request());
        let agent = lab.spawn(lab.command(words), &name);
        assert_eq!(agent.wait(seconds(60)), End::Code(0), "{}", agent.err());
        let written = String::from_utf8(lab.read(&name)).unwrap();
        let seen: Vec<&str> = SECRETS
            .into_iter()
            .filter(|secret| written.contains(secret))
            .collect();
        let is_full = content.contains(&"full");
        let expected = if is_full { &SECRETS[..] } else { &[] };
        assert_eq!(seen, expected, "{name}: {written}");
        assert_eq!(
            written.contains("[redacted:"),
            !is_full,
            "{name}: {written}"
        );
        // What is no secret is shown.
        let marker = if format == "json" {
            "\"x-marker\":[\"shown\"]"
        } else {
            "> x-marker: shown"
        };
        let shows_text = !content.contains(&"none");
        assert_eq!(written.contains(marker), shows_text, "{name}: {written}");
        assert!(SECRETS.iter().all(|secret| !agent.err().contains(secret)));
    }
}
