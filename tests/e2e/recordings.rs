//! `run --record`, and what `replay` makes of it: as a user who may do nothing, in another time zone, with another name
//! for everything.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
};

use crate::{
    halves::{NOBODY, UserLab, as_nobody},
    harness::{Agent, End, Lab, PYTHON, argv, bare, random, seconds, wait_for},
    proc::status,
};

/// What somebody else has of a run: the recording, and no rights.
struct Replays<'a> {
    lab: &'a Lab,
    user: UserLab,
    file: PathBuf,
}

impl<'a> Replays<'a> {
    fn new(lab: &'a Lab, recording: &Path) -> Self {
        let mode = fs::metadata(recording).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{mode:o}");
        let user = UserLab::new(lab);
        let file = user.home().join("recording");
        fs::copy(recording, &file).unwrap();
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
        Self { lab, user, file }
    }

    /// How it ended, what it wrote to stdout and to stderr.
    fn play(&self, file: &Path, options: &[OsString]) -> (End, String, String) {
        let mut words = as_nobody();
        words.extend(argv![self.user.agent(), "replay", file]);
        words.extend(options.iter().cloned());
        let mut command = self.lab.command(words);
        command.env("TZ", "Asia/Tokyo").current_dir("/");
        let process = self.lab.spawn(command, "replay");
        let end = process.wait(seconds(60));
        (end, process.out(), process.err())
    }

    /// The same of one that is whole.
    #[track_caller]
    fn whole(&self, options: &[OsString]) -> String {
        let (end, out, err) = self.play(&self.file, options);
        assert_eq!((end, &*err), (End::Code(0), ""));
        out
    }
}

/// Was it said again, to the byte?
#[track_caller]
fn assert_same(replayed: &str, said: &str) {
    for (at, (again, before)) in replayed.lines().zip(said.lines()).enumerate() {
        assert_eq!(again, before, "line {}", at + 1);
    }
    assert_eq!(replayed.len(), said.len());
}

/// Runs it, recorded, with all kinds of records; then both forms of a replay say the same as the run.
#[track_caller]
fn comes_back(lab: &Lab, kinds: &'static str, cmd: Vec<OsString>) {
    let recording = lab.path("recording");
    let options = argv!["--record", &recording, "--stats-interval", "100ms"];
    let run = lab.agent().emit(kinds).options(options).run(cmd);
    run.success();
    if bare() {
        return;
    }
    let said = run.process.err();
    assert!(said.contains("--record"), "it is said at the start: {said}");
    run.records().last_stats().unwrap();
    let replays = Replays::new(lab, &recording);
    let options = argv!["--content", "full", "--output", "json", "--emit", kinds];
    assert_same(&replays.whole(&options), &run.text);
}

const ALL: &str = "data,http,sse,websocket,grpc,gap,coverage,stats";

#[test]
fn replay_of_curl() {
    let Some(lab) = Lab::with("replay_of_curl", &["curl", "setpriv"]) else {
        return;
    };
    let server = lab.server(&[]);
    let body = lab.file("body", random(300_145, 1));
    let data = format!("@{}", body.display());
    let url = server.url("/echo");
    let cmd = argv![
        "curl",
        "-sk",
        "--http1.1",
        "--data-binary",
        data,
        "-o",
        "/dev/null",
        url
    ];
    comes_back(&lab, ALL, cmd);
}

#[test]
fn replay_of_http2() {
    let Some(lab) = Lab::with("replay_of_http2", &["curl", "node", "setpriv"]) else {
        return;
    };
    let (cert, key) = lab.certificate();
    let program = lab.program("exchanges.mjs");
    let serve = argv!["node", program, "serve", &lab.dir, "server", cert, key];
    let server = lab.spawn(lab.command(serve), "server");
    let port = lab.port("server", &server);
    let mut cmd = argv!["curl", "-sk", "--http2", "--compressed", "--parallel"];
    for at in 0..60 {
        let path = ["coded-gzip", "events", "trailers"][at % 3];
        let url = format!("https://127.0.0.1:{port}/{path}/{at}");
        cmd.extend(argv!["-o", "/dev/null", url]);
    }
    comes_back(&lab, ALL, cmd);
}

/// Several libraries' worth of calls in one process, whose sockets are found out by what they do.
#[test]
fn replay_of_python() {
    let Some(lab) = Lab::with("replay_of_python", &["setpriv"]) else {
        return;
    };
    let server = lab.server(&[]);
    let program = lab.program("http_client.py");
    let cmd = argv![PYTHON, program, "asyncio", server.port.to_string()];
    comes_back(&lab, ALL, cmd);
}

const SECRETS: [&str; 3] = [
    "Ab1Cd2Ef3Gh4Ij5Kl6Mn7Op8",
    "cookie-9f8e7d6c5b4a",
    "field-correct-horse-battery",
];

/// What the run was allowed to show, a replay is not; and text is the same text.
#[test]
fn replay_redacts_again() {
    let Some(lab) = Lab::with("replay_redacts_again", &["curl", "setpriv"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let [token, cookie, field] = SECRETS;
    let recording = lab.path("recording");
    let output = lab.path("text");
    let mut words = argv![
        Agent::path(),
        "run",
        "--content",
        "full",
        "--record",
        &recording
    ];
    words.extend(argv!["-o", &output, "--", "curl", "-sk", "--http1.1"]);
    words.extend(argv![
        "-H",
        format!("Authorization: Bearer sk-ant-api03-{token}")
    ]);
    words.extend(argv![
        "-b",
        format!("session={cookie}"),
        "-H",
        "X-Marker: shown"
    ]);
    words.extend(argv!["--data", format!("{{\"password\":\"{field}\"}}")]);
    words.push(server.url("/echo").into());
    let agent = lab.spawn(lab.command(words), "agent");
    assert_eq!(agent.wait(seconds(60)), End::Code(0), "{}", agent.err());

    let replays = Replays::new(&lab, &recording);
    let raw = fs::read(&recording).unwrap();
    let warning = b"raw plaintext, with every secret\n";
    assert!(
        raw[..128]
            .windows(warning.len())
            .any(|part| part == warning)
    );
    let full = argv!["--content", "full"];
    let text = fs::read_to_string(&output).unwrap();
    assert_same(&replays.whole(&full), &text);
    let marker = |options: Vec<OsString>, marker: &'static str| (options, marker);
    for (options, marker) in [
        marker(argv![], "> x-marker: shown"),
        marker(argv!["--output", "json"], "\"x-marker\":[\"shown\"]"),
        marker(
            argv!["--output", "json", "--emit", "data"],
            "\\u000aX-Marker: shown\\u000d",
        ),
    ] {
        let written = replays.whole(&options);
        for secret in SECRETS {
            assert!(!written.contains(secret), "{options:?}: {written}");
        }
        assert!(
            written.contains("[redacted:") && written.contains(marker),
            "{written}"
        );
    }
    let none = argv!["--content", "none", "--output", "json", "--emit", ALL];
    let written = replays.whole(&none);
    assert!(written.contains("\"kind\":\"http\""));
    for hidden in SECRETS.into_iter().chain(["x-marker", "\\u000aX-Marker"]) {
        assert!(!written.contains(hidden), "{written}");
    }
    let nobody = argv!["--exe", "/no/such/*", "--output", "json", "--emit", "data"];
    assert_eq!(replays.whole(&nobody), "");
}

/// However it was cut: what came before is shown, one line says so, and nothing else happens.
#[test]
fn replay_of_a_part() {
    let Some(lab) = Lab::with("replay_of_a_part", &["curl", "setpriv"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let recording = lab.path("recording");
    let run = lab.agent().emit(ALL).options(argv!["--record", &recording]);
    let url = server.url("/bytes/70000");
    let run = run.run(argv![
        "curl",
        "-sk",
        "--http1.1",
        "-o",
        "/dev/null",
        &url,
        &url
    ]);
    run.success();
    let replays = Replays::new(&lab, &recording);
    let raw = fs::read(&recording).unwrap();
    let part = replays.user.home().join("part");
    let options = argv!["--content", "full", "--output", "json", "--emit", ALL];
    let mut longest = 0;
    for at in 0..20 {
        fs::write(&part, &raw[..raw.len() * at / 20]).unwrap();
        let (end, out, err) = replays.play(&part, &options);
        assert_eq!(err.lines().count(), 1, "{err}");
        // Not even its header is there at first.
        let expected = if at == 0 { 1 } else { 0 };
        assert_eq!(end, End::Code(expected), "{err}");
        assert!(run.text.starts_with(&out), "{at}: {out}");
        assert!(out.is_empty() || out.ends_with('\n'));
        assert!(out.len() >= longest);
        longest = out.len();
    }
    assert!(longest > 70_000 && longest < run.text.len());
    // What is no recording, or one of another time.
    let head = String::from_utf8_lossy(&raw[..100]);
    let text = head.replacen(", version ", ", version 99", 1);
    assert_ne!(text, head);
    for (content, named) in [
        (&b"{}\n"[..], "no recording"),
        (text.as_bytes(), "version 99"),
    ] {
        fs::write(&part, content).unwrap();
        let (end, out, err) = replays.play(&part, &options);
        assert_eq!((end, &*out), (End::Code(1), ""));
        assert!(err.lines().count() == 1 && err.contains(named), "{err}");
    }
}

/// The recording is not a way to write where `-o` may not, and it does not come by itself.
#[test]
fn recording_that_is_refused() {
    let Some(lab) = Lab::new("recording_that_is_refused") else {
        return;
    };
    if bare() {
        return;
    }
    let ran = lab.path("ran");
    let target = lab.file("target", "precious");
    let link = lab.path("link");
    symlink(&target, &link).unwrap();
    let foreign = lab.file("foreign", "precious");
    chown(&foreign, Some(NOBODY), None).unwrap();
    let same = lab.path("records.ndjson");
    for (path, content, status) in [
        (&link, "full", 125),
        (&foreign, "full", 125),
        (&lab.dir, "full", 125),
        (&same, "full", 125),
        (&target, "redacted", 2),
        (&target, "none", 2),
    ] {
        let agent = lab.agent().content(content);
        let run = agent
            .options(argv!["--record", path])
            .run(argv!["touch", &ran]);
        let said = run.process.err();
        assert_eq!(run.end, End::Code(status), "{said}");
        assert!(
            said.lines().count() == 1 && said.contains("--record"),
            "{said}"
        );
        assert!(!ran.exists(), "CMD ran with {}", path.display());
    }
    assert_eq!(lab.read("target"), b"precious");
    assert_eq!(lab.read("foreign"), b"precious");
}

/// A full disk ends the recording, and nothing else.
#[test]
fn recording_on_a_full_disk() {
    let Some(lab) = Lab::with("recording_on_a_full_disk", &["curl", "unshare"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let small = lab.path("small");
    fs::create_dir(&small).unwrap();
    let kept = lab.path("recording");
    let script = "mount -t tmpfs -o size=64k none \"$1\" && kept=$2 && shift 2 && \"$@\" && \
                  cp \"$0\"/recording \"$kept\"";
    let before = argv!["unshare", "-m", "sh", "-c", script, &small, &small, &kept];
    let run = lab
        .agent()
        .before(before)
        .options(argv!["--record", small.join("recording")])
        .run(argv![
            "curl",
            "-sk",
            "--http1.1",
            "-o",
            "/dev/null",
            server.url("/bytes/700000")
        ]);
    run.assert_exact(&server.client_truth());
    let said = run.process.err();
    let ends = said
        .lines()
        .filter(|line| line.contains("the recording ends here"));
    assert_eq!(ends.count(), 1, "{said}");
    assert!(said.contains("No space left"), "{said}");
    // What fitted is good.
    let options = argv![
        "--content",
        "full",
        "--output",
        "json",
        "--emit",
        "data,gap,coverage,stats"
    ];
    let kept_mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(&kept, kept_mode).unwrap();
    let replays = Replays::new(&lab, &kept);
    let (end, out, err) = replays.play(&replays.file, &options);
    assert_eq!((end, err.lines().count()), (End::Code(0), 1), "{err}");
    assert!(
        run.text.starts_with(&out) && out.len() > 10_000,
        "{}",
        out.len()
    );
}

/// A reader that has gone is no failure, and what it parses is parsed by somebody without rights, root's or not.
#[test]
fn replay_is_locked_in() {
    let Some(lab) = Lab::with("replay_is_locked_in", &["curl", "setpriv"]) else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let recording = lab.path("recording");
    let run = lab.agent().options(argv!["--record", &recording]);
    let url = server.url("/bytes/3000000");
    run.run(argv!["curl", "-sk", "--http1.1", "-o", "/dev/null", url])
        .success();
    let replays = Replays::new(&lab, &recording);
    let fifo = replays.user.home().join("fifo");
    lab.finish(lab.command(argv!["mkfifo", "-m", "666", &fifo]), "mkfifo");
    for who in [as_nobody(), Vec::new()] {
        let mut words = argv!["sh", "-c", "exec \"$@\" > \"$0\"", &fifo];
        words.extend(who);
        words.extend(argv![replays.user.agent(), "replay", &replays.file]);
        words.extend(argv![
            "--content",
            "full",
            "--emit",
            "data",
            "--output",
            "json"
        ]);
        let replay = lab.spawn(lab.command(words), "replay");
        // Nobody reads the pipe: it stands in the middle of its work.
        let reader = fs::File::open(&fifo).unwrap();
        let field = |name| status(replay.pid(), name);
        wait_for("a replay that is locked in", seconds(10), || {
            (field("Seccomp").as_deref() == Some("2")).then_some(())
        });
        for (name, expected) in [
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Uid", "65534\t65534\t65534\t65534"),
        ] {
            assert_eq!(field(name).as_deref(), Some(expected), "{name}");
        }
        drop(reader);
        let end = replay.wait(seconds(10));
        assert_eq!((end, &*replay.err()), (End::Code(0), ""));
    }
}
