//! Text scenarios through the whole line to golden NDJSON: no root, no kernel, no clock.
//!
//! `scenarios/NAME.toml` says what the kernel and the half report, `scenarios/NAME.ndjson` (or `.txt`) what
//! comes out, and comes out once more of a recording. `UPDATE_EXPECT=1` rewrites the latter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use agent_ebpf::{
    Bound, Closed, Data, Direction, Freed, Gap, Head, Hello, Name, Opened, PLAIN, Place, REJOINED,
    Shape, Socket, Touch, Transfer, Unseen, cause, cookie, counter, kind,
};
use clap::ValueEnum as _;
use serde::Deserialize;
use serde_json::Value;
use vortex_agent::{
    config::{Config, Settings, WrittenFindings, WrittenPolicy},
    confine::Landlock,
    coverage::User,
    detect,
    half::{Connected, Facts, Features, Files, Finding, Link, Pending, Sockets},
    input::{Count, Input},
    llm::price::{Price, Prices},
    locate::{Found, Instruction, Point},
    map::Chart,
    metadata::{Container, Names, Pod},
    pipeline::{Pipeline, Wanted},
    policy::{self, ANNOTATION},
    protocol::exchange::Bounds,
    record::{Governing, Kind},
    recording::{self, Header, Recorder},
    redact::{Key, Policy},
    replay::play,
    shed::Rung,
    sink::{Format, Origin, Sink, Target},
};
use zerocopy::IntoBytes as _;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    exes: Vec<String>,
    /// Patterns of namespaces of pods.
    #[serde(default)]
    namespaces: Vec<String>,
    /// How much is told of which container.
    #[serde(default)]
    policy: Option<WrittenPolicy>,
    /// Runtimes can be asked about containers.
    #[serde(default)]
    runtimes: bool,
    /// Uses of sockets are told.
    #[serde(default)]
    sockets: bool,
    /// Nobody chose kinds: `data` only of what nothing decodes.
    #[serde(default)]
    decoded: bool,
    /// For people.
    #[serde(default)]
    text: bool,
    /// What is looked for in what goes out.
    #[serde(default)]
    findings: Option<WrittenFindings>,
    /// How much of bodies is kept.
    #[serde(default)]
    body_limit: Option<usize>,
    event: Vec<Step>,
}

impl Scenario {
    /// Does it ask for `stats`, which are told whatever the policy is?
    fn counts(&self) -> bool {
        let mut steps = self.event.iter();
        steps.any(|step| matches!(step, Step::Count { .. }))
    }

    fn format(&self) -> Format {
        match self.text {
            true => Format::Text {
                colour: false,
                live: true,
            },
            false => Format::Json,
        }
    }
}

/// One thing that happens. Times are milliseconds since boot; a step without one follows at once.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    Process {
        pid: u32,
        comm: Option<String>,
        executable: Option<String>,
        parent: Option<u32>,
        container: Option<String>,
        #[serde(default)]
        arguments: Vec<String>,
        /// When it called exec.
        since: Option<u64>,
    },
    /// What a runtime says of a container; without a name that it has none such.
    Container {
        id: String,
        name: Option<String>,
        image: Option<String>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        /// Namespace and name.
        pod: Option<(String, String)>,
        #[serde(default)]
        pod_labels: BTreeMap<String, String>,
        /// What its pod asks for.
        capture: Option<String>,
    },
    Found {
        file: u64,
        path: String,
    },
    Refused {
        file: u64,
        path: String,
        why: String,
    },
    /// There is nothing to probe in it.
    Nothing {
        file: u64,
    },
    Mapped {
        file: u64,
        pid: u32,
        at: Option<u64>,
        #[serde(default)]
        held: bool,
    },
    Attached {
        file: u64,
        at: u64,
    },
    /// No probes are in it, or no longer.
    Failed {
        file: u64,
        why: String,
    },
    Data {
        pid: u32,
        handle: u64,
        direction: String,
        offset: u64,
        text: Option<String>,
        hex: Option<String>,
        /// So often in a row.
        times: Option<usize>,
        #[serde(default)]
        socket: u64,
        /// 1: the read function of the file found first, 2: its write function.
        #[serde(default)]
        point: u64,
        #[serde(default)]
        born: u64,
        /// Its process was away before.
        #[serde(default)]
        rejoined: bool,
        /// The thread's count; without a socket it goes up by one each time.
        #[serde(default)]
        sequence: u32,
        /// The handle is a socket's cookie, and what it carries no TLS.
        #[serde(default)]
        plain: bool,
    },
    Opened {
        pid: u32,
        handle: u64,
        born: u64,
        /// By `SSL_clear`.
        #[serde(default)]
        again: bool,
    },
    Freed {
        pid: u32,
        handle: u64,
        born: u64,
        /// Its program closed it.
        #[serde(default)]
        left: bool,
    },
    Bound {
        pid: u32,
        handle: u64,
        #[serde(default)]
        born: u64,
        socket: u64,
    },
    Touch {
        pid: u32,
        handle: u64,
        #[serde(default)]
        born: u64,
        sequence: u32,
    },
    Transfer {
        pid: u32,
        socket: u64,
        direction: String,
        length: u32,
        sequence: u32,
    },
    Closed {
        socket: u64,
    },
    Name {
        pid: u32,
        handle: u64,
        #[serde(default)]
        born: u64,
        name: String,
    },
    Gap {
        pid: u32,
        handle: u64,
        direction: String,
        offset: Option<u64>,
        length: u64,
        cause: String,
        #[serde(default)]
        plain: bool,
    },
    Pending {
        pid: u32,
        handle: u64,
        direction: String,
        offset: u64,
        length: u64,
        #[serde(default)]
        born: u64,
        /// The handle meant another connection before it could be told.
        #[serde(default)]
        is_over: bool,
    },
    /// A call that passed by; handle 0: one that makes a handle.
    Unseen {
        pid: u32,
        handle: u64,
        point: u64,
    },
    Socket {
        cookie: u64,
        local: [u8; 4],
        local_port: u16,
        peer: [u8; 4],
        peer_port: u16,
        /// 1: the process connected it, 2: accepted.
        #[serde(default)]
        side: u64,
    },
    /// A client's first bytes of TLS.
    Hello {
        pid: u32,
        local_port: u16,
        peer_port: u16,
    },
    Clock {
        at: u64,
    },
    /// The half has told of what happened until then.
    CaughtUp {
        at: u64,
    },
    /// The agent made a connection, of which these are its own end and the other one.
    Ours {
        local: SocketAddr,
        peer: SocketAddr,
    },
    /// Somebody sets the wall clock: seconds since 1970 at boot.
    Wall {
        boot: u64,
    },
    Renamed {
        pid: u32,
        comm: String,
    },
    /// The settings were read again: others are watched.
    Watch {
        #[serde(default)]
        comms: Vec<String>,
        #[serde(default)]
        exes: Vec<String>,
        #[serde(default)]
        namespaces: Vec<String>,
    },
    LetGo {
        file: u64,
    },
    /// Other control groups are watched.
    Placed {
        pid: u32,
        is_outside: bool,
    },
    Missed {
        pid: u32,
        path: String,
    },
    /// The half has looked at a connection whose TLS no probe saw, and found nothing.
    Inspected {
        pid: u32,
        local_port: u16,
        peer_port: u16,
    },
    Ended {
        pid: u32,
    },
    Finish {},
    /// So much is left out because of the agent's limits.
    Shed(u8),
    /// So many bytes of bodies are kept at most, because of the agent's limits.
    Room(u64),
    /// The settings were read again: another policy.
    Policy(WrittenPolicy),
    NoPolicy {},
    /// Time for `stats`: what the kernel side counted so far.
    Count {
        seen: u64,
        #[serde(default)]
        ring_full: u64,
        #[serde(default)]
        map_full: u64,
        /// Files whose probes were out for ten seconds, because they cost too much.
        #[serde(default)]
        pauses: u64,
    },
}

/// What lies in the ring behind a record: it is nobody's business.
const OLD: [&[u8]; 2] = [b"another process", b"old ring content"];

fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let text = fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
    let scenario: Scenario =
        toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let recording = Scratch::new(name, "recording");
    let actual = run(name, &scenario, &recording);
    let replayed = replay(name, &scenario, &recording);
    assert_eq!(replayed, actual, "{name}: a replay says something else");
    let kept = fs::read(&recording.0).unwrap();
    for old in OLD {
        let is_old = |part: &[u8]| part == old;
        assert!(!kept.windows(old.len()).any(is_old), "{name}: {old:?}");
    }
    let suffix = if scenario.text { "txt" } else { "ndjson" };
    let golden = folder.join(format!("{name}.{suffix}"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&golden, &actual).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    for (at, (actual, expected)) in actual.lines().zip(expected.lines()).enumerate() {
        assert_eq!(actual, expected, "{name}: line {}", at + 1);
    }
    assert_eq!(
        actual.lines().count(),
        expected.lines().count(),
        "{name}: number of lines:\n{actual}"
    );
}

/// A file of one scenario, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, what: &str) -> Self {
        let name = format!("vortex-{name}-{what}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn target(&self) -> Target {
        Target::file(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The line, told what happens, and a recording of what it is told.
struct Bench {
    line: Pipeline,
    sink: Sink,
    recorder: Recorder,
    now: u64,
    /// Who watches everything is told of a call once.
    is_text: bool,
    chart: Chart,
}

impl Bench {
    fn tell(&mut self, input: Input<'_>) {
        let Bench {
            line,
            sink,
            recorder,
            now,
            is_text,
            chart,
        } = self;
        recorder.write(&input, *now);
        line.take(input, *now, &mut |record| {
            if !(*is_text && record.body.is_of_call()) {
                sink.write(record);
            }
            chart.hear(record);
        });
    }
}

fn header(scenario: &Scenario) -> Header {
    Header {
        agent: "test".into(),
        origin: Origin {
            run: "run".into(),
            host: "host".into(),
        },
        exes: scenario.exes.clone(),
        uids: Vec::new(),
        comms: Vec::new(),
        names: Names {
            namespaces: scenario.namespaces.clone(),
            ..Names::default()
        },
        key: 1,
        secret_key: [1; 32],
    }
}

/// Every scenario that has nothing to do with policies, with another `content` and a policy for all processes.
fn each_with(content: &str, capture: Option<&str>, mut check: impl FnMut(&str, String)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    for path in fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut scenario: Scenario = toml::from_str(&text).unwrap();
        if scenario.policy.is_some() || scenario.runtimes || scenario.counts() {
            continue;
        }
        scenario.content = Some(content.to_owned());
        scenario.policy = capture.map(|capture| {
            toml::from_str(&format!("default = {capture:?}\nhost = {capture:?}")).unwrap()
        });
        let name = path.file_stem().unwrap().to_str().unwrap();
        let scratch = format!("{name}-{content}-{}", capture.unwrap_or_default());
        check(
            name,
            run(&scratch, &scenario, &Scratch::new(&scratch, "recording")),
        );
    }
}

/// Those of the run became others twice.
#[test]
fn a_replay_has_the_programs_that_one_asks_for() {
    let name = "watched_by_what_it_runs";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let text = fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
    let scenario: Scenario = toml::from_str(&text).unwrap();
    let scratch = format!("programs-{name}");
    let recording = Scratch::new(&scratch, "recording");
    run(&scratch, &scenario, &recording);
    let told = replay_of(&scratch, &scenario, &recording, &["*/wget".to_owned()]);
    let mut bytes = BTreeMap::<u64, u64>::new();
    for line in told.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        if record["kind"] == "data" {
            let pid = record["process"]["pid"].as_u64().unwrap();
            *bytes.entry(pid).or_default() += record["length"].as_u64().unwrap();
        }
    }
    assert_eq!(bytes, BTreeMap::from([(8, 116), (10, 8)]));
}

/// Whatever comes out of any decoder: the two are one.
#[test]
fn metadata_is_what_content_none_is() {
    let mut plain = BTreeMap::new();
    each_with("none", None, |name, out| {
        drop(plain.insert(name.to_owned(), out))
    });
    assert!(plain.len() > 30, "{}", plain.len());
    each_with("full", Some("metadata"), |name, out| {
        assert_eq!(out, plain[name], "{name}");
    });
}

/// Names and ids of events, and what a call of gRPC ended with.
#[test]
fn text_that_an_end_is_free_to_write_is_content() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let told = |name: &str, content: &str| {
        let text = fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
        let scenario = Scenario {
            content: Some(content.to_owned()),
            text: false,
            ..toml::from_str(&text).unwrap()
        };
        let scratch = format!("free-{name}-{content}");
        let out = run(&scratch, &scenario, &Scratch::new(&scratch, "recording"));
        let mut told = BTreeSet::new();
        for line in out.lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let places = [
                "/sse/event",
                "/sse/id",
                "/grpc/message",
                "/gen_ai/system_instructions",
                "/gen_ai/input",
                "/gen_ai/output",
                "/gen_ai/tool",
                "/gen_ai/tool/call",
                "/mcp/params",
                "/mcp/result",
                "/error/message",
                "/error/data",
            ];
            told.extend(places.into_iter().filter(|at| record.pointer(at).is_some()));
        }
        told
    };
    assert_eq!(
        told("sse", "redacted"),
        BTreeSet::from(["/sse/event", "/sse/id"])
    );
    assert_eq!(
        told("text_grpc", "redacted"),
        BTreeSet::from(["/grpc/message"])
    );
    assert_eq!(
        told("llm", "redacted"),
        BTreeSet::from([
            "/gen_ai/input",
            "/gen_ai/output",
            "/gen_ai/system_instructions",
            "/gen_ai/tool",
            "/sse/event"
        ])
    );
    assert_eq!(
        told("mcp", "redacted"),
        BTreeSet::from([
            "/error/data",
            "/error/message",
            "/gen_ai/tool",
            "/gen_ai/tool/call",
            "/mcp/params",
            "/mcp/result",
            "/sse/event"
        ])
    );
    // What a tool is called says what was done, as a path does.
    assert_eq!(told("mcp", "none"), BTreeSet::from(["/gen_ai/tool"]));
    for name in ["sse", "text_grpc", "llm"] {
        assert_eq!(told(name, "none"), BTreeSet::new(), "{name}");
    }
}

/// Who it is and that nothing is told of it, once.
#[test]
fn of_none_nothing_is_told() {
    let mut told = 0;
    each_with("full", Some("none"), |name, out| {
        let mut who = BTreeSet::new();
        for line in out.lines().filter(|line| line.starts_with('{')) {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let (kind, status) = (&record["kind"], &record["status"]);
            assert_eq!(
                (kind, status),
                (&"coverage".into(), &"refused".into()),
                "{name}: {line}"
            );
            assert!(
                record["process"]["args"].is_null() && record["library"].is_null(),
                "{line}"
            );
            let is_new = who.insert(record["process"].to_string());
            assert!(is_new, "{name}: {line}");
            told += 1;
        }
    });
    assert!(told > 30, "{told}");
}

fn policy_of(written: Option<&WrittenPolicy>) -> Option<policy::Policy> {
    let settings = Settings {
        policy: written.cloned(),
        ..Settings::default()
    };
    Config::try_from(settings).unwrap().policy
}

fn findings_of(findings: Option<WrittenFindings>) -> detect::Settings {
    let settings = Settings {
        findings,
        ..Settings::default()
    };
    Config::try_from(settings).unwrap().findings
}

/// What calls to one of the models of the scenarios cost.
fn prices() -> Prices {
    Prices(vec![Price {
        provider: Some("anthropic".to_owned()),
        model: "claude-sonnet-*".to_owned(),
        currency: "USD",
        input: 3.0,
        cache_read: 0.3,
        cache_creation: 3.75,
        output: 15.0,
    }])
}

fn wanted(scenario: &Scenario, header: &Header) -> Wanted {
    Wanted {
        emit: Kind::value_variants()
            .iter()
            .copied()
            .filter(|kind| !scenario.decoded || *kind != Kind::Data)
            .collect::<BTreeSet<_>>(),
        undecoded: scenario.decoded,
        live: scenario.text,
        bounds: Bounds {
            body: scenario.body_limit.unwrap_or(1 << 20),
            ..Bounds::default()
        },
        content: match scenario.content.as_deref() {
            Some("full") => Policy::Full,
            Some("none") => Policy::None,
            _ => Policy::Redacted,
        },
        exes: header.exes.clone(),
        uids: header.uids.clone(),
        comms: header.comms.clone(),
        names: header.names.clone(),
        policy: policy_of(scenario.policy.as_ref()),
        prices: prices(),
        findings: findings_of(scenario.findings.clone()),
        key: header.key,
        secret_key: Key::new(header.secret_key),
    }
}

/// What comes out, and the recording of what went in.
fn run(name: &str, scenario: &Scenario, recording: &Scratch) -> String {
    let output = Scratch::new(name, "output");
    let header = header(scenario);
    let mut bench = Bench {
        line: Pipeline::new(wanted(scenario, &header)),
        sink: Sink::start(output.target(), scenario.format(), &header.origin).unwrap(),
        recorder: Recorder::start(recording.target(), &header).unwrap(),
        now: 0,
        is_text: scenario.text,
        chart: Chart::new(&header.origin.host),
    };
    // Boot was at 2026-01-01T00:00:00Z.
    bench.tell(Input::Clock(1_767_225_600_000_000_000));
    if scenario.sockets {
        bench.tell(Input::Machine {
            landlock: Landlock::Full,
            features: FEATURES,
            limits: Vec::new(),
        });
    }
    if scenario.runtimes {
        bench.tell(Input::Runtimes { are_asked: true });
    }
    for step in &scenario.event {
        line_step(&mut bench, step);
    }
    assert!(bench.recorder.drain(soon()), "{:?}", bench.recorder.ended());
    let written = written(bench.sink, &output);
    if !scenario.text {
        let told = serde_json::from_slice(&bench.chart.json()).unwrap();
        assert_eq!(without_data(told), without_data(map(&output)), "{name}");
    }
    written
}

/// As `vortex-agent map` has it of what was written.
fn map(written: &Scratch) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vortex-agent"));
    let done = command.args(["map", "--output", "json"]).arg(&written.0);
    let done = done.output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// What is decoded is data, too, of which a daemon's own map says nothing.
fn without_data(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            members.remove("data");
            let values = members.values_mut();
            values.for_each(|value| *value = without_data(value.take()));
        }
        Value::Array(values) => values
            .iter_mut()
            .for_each(|value| *value = without_data(value.take())),
        _ => {}
    }
    value
}

/// The same of the recording alone.
fn replay(name: &str, scenario: &Scenario, recording: &Scratch) -> String {
    replay_of(name, scenario, recording, &[])
}

/// And of these programs alone, if there are any.
fn replay_of(name: &str, scenario: &Scenario, recording: &Scratch, exes: &[String]) -> String {
    let output = Scratch::new(name, "replay");
    let (header, mut recording) = recording::Opened::open(&recording.0)
        .unwrap()
        .read()
        .unwrap();
    let mut wanted = wanted(scenario, &header);
    if !exes.is_empty() {
        wanted.exes = exes.to_vec();
    }
    let mut line = Pipeline::new(wanted);
    let mut sink = Sink::start(output.target(), scenario.format(), &header.origin).unwrap();
    // No scenario has the count that ends a run.
    let played = play(&mut recording, &mut line, exes, &mut |record| {
        if !(scenario.text && record.body.is_of_call()) {
            sink.write(record);
        }
    });
    assert!(!played.unwrap());
    written(sink, &output)
}

fn written(sink: Sink, output: &Scratch) -> String {
    let (count, failure) = sink.close(soon());
    assert!(
        failure.is_none() && count.dropped == 0,
        "{failure:?} {count:?}"
    );
    fs::read_to_string(&output.0).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Of a kernel that can do all.
const FEATURES: Features = Features {
    link: Link::Session,
    scopes_processes: true,
    sockets: Sockets::Tracepoints,
    roles: true,
    hellos: true,
    files: Files::OfProcesses,
    follows: true,
    comms: true,
};

/// A label whose name says that its value is a secret, in any pod.
fn pod(namespace: &str, name: &str, labels: &BTreeMap<String, String>) -> Pod {
    let secret = (
        "example.org/api-key".to_owned(),
        "sesame-0123456789".to_owned(),
    );
    Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: "1f2e".to_owned(),
        container: None,
        labels: labels.clone(),
        annotations: BTreeMap::from([secret]),
    }
}

fn line_step(line: &mut Bench, step: &Step) {
    let time = line.now;
    let ms = |at: u64| at * 1_000_000;
    match step {
        Step::Container {
            id,
            name,
            image,
            labels,
            pod: of_pod,
            pod_labels,
            capture,
        } => {
            let pod = of_pod.as_ref().map(|(namespace, name)| {
                let mut pod = pod(namespace, name, pod_labels);
                let capture = capture.iter().cloned();
                pod.annotations
                    .extend(capture.map(|capture| (ANNOTATION.to_owned(), capture)));
                pod
            });
            let container = name.as_ref().map(|name| Container {
                name: Some(name.clone()),
                image: image.clone(),
                labels: labels.clone(),
                pod,
            });
            line.tell(Input::Container { id, container });
        }
        Step::Process {
            pid,
            comm,
            executable,
            parent,
            container,
            arguments,
            since,
        } => {
            let facts = Facts {
                pid: *pid,
                comm: comm.clone(),
                executable: executable.clone(),
                parent_pid: *parent,
                container_id: container.clone(),
                arguments: arguments.clone(),
                since: since.map(ms),
                ..Facts::default()
            };
            line.tell(Input::Process(facts));
        }
        Step::Found { file, path } => {
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
            let points = vec![
                point("ssl_read_internal", Direction::Received, 16),
                point("ssl_write_internal", Direction::Sent, 32),
            ];
            let found = Found {
                library: "OpenSSL",
                version: Some("3.0.0".into()),
                points,
                others: Vec::new(),
                partly: None,
                located: "symbols",
                on_trial: false,
            };
            let file = *file;
            line.tell(Input::Found { file, path, found });
        }
        &Step::Refused {
            file,
            ref path,
            ref why,
        } => line.tell(Input::Refused { file, path, why }),
        &Step::Nothing { file } => line.tell(Input::Nothing { file }),
        Step::Mapped {
            file,
            pid,
            at,
            held,
        } => {
            let user = User {
                pid: *pid,
                mapped_at: at.map(ms),
                held: *held,
            };
            let file = *file;
            line.tell(Input::Mapped { file, user });
        }
        Step::Failed { file, why } => line.tell(Input::Failed { file: *file, why }),
        &Step::Attached { file, at } => line.tell(Input::Attached { file, at: ms(at) }),
        Step::Data {
            pid,
            handle,
            direction,
            offset,
            text,
            hex,
            times,
            socket,
            point,
            born,
            rejoined,
            sequence,
            plain,
        } => {
            let bytes = match (text, hex) {
                (Some(text), _) => text.clone().into_bytes(),
                (None, hex) => unhex(hex.as_deref().unwrap_or_default()),
            };
            let bytes = bytes.repeat(times.unwrap_or(1));
            let direction = towards(direction);
            let data = Data {
                head: head(kind::DATA, direction, bytes.len(), time),
                pid_tgid: both(*pid),
                born: if *rejoined { born | REJOINED } else { *born },
                handle: if *plain { handle | PLAIN } else { *handle },
                offset: *offset,
                socket: if *plain { *handle } else { *socket },
                cookie: cookie(*point, direction, Shape::OutFourth),
                place: place(*sequence),
            };
            line.tell(Input::Record(&[data.as_bytes(), &bytes, OLD[0]].concat()));
        }
        Step::Opened {
            pid,
            handle,
            born,
            again,
        } => {
            let kind = if *again { kind::CLEARED } else { kind::OPENED };
            let opened = Opened {
                head: head(kind, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
                cookie: cookie(1, Direction::Received, Shape::Created),
            };
            line.tell(Input::Record(opened.as_bytes()));
        }
        Step::Freed {
            pid,
            handle,
            born,
            left,
        } => {
            let kind = if *left { kind::LEFT } else { kind::FREED };
            let freed = Freed {
                head: head(kind, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
            };
            line.tell(Input::Record(freed.as_bytes()));
        }
        Step::Touch {
            pid,
            handle,
            born,
            sequence,
        } => {
            let touch = Touch {
                head: head(kind::TOUCH, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
                place: place(*sequence),
            };
            line.tell(Input::Record(touch.as_bytes()));
        }
        Step::Bound {
            pid,
            handle,
            born,
            socket,
        } => {
            let bound = Bound {
                head: head(kind::BOUND, Direction::Received, 0, time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
                socket: *socket,
            };
            line.tell(Input::Record(bound.as_bytes()));
        }
        Step::Transfer {
            pid,
            socket,
            direction,
            length,
            sequence,
        } => {
            let transfer = Transfer {
                head: head(kind::TRANSFER, towards(direction), 0, time),
                pid_tgid: both(*pid),
                socket: *socket,
                length: *length,
                generation: 1,
                place: place(*sequence),
            };
            line.tell(Input::Record(transfer.as_bytes()));
        }
        Step::Closed { socket } => {
            let closed = Closed {
                head: head(kind::CLOSED, Direction::Received, 0, time),
                socket: *socket,
            };
            line.tell(Input::Record(closed.as_bytes()));
        }
        Step::Name {
            pid,
            handle,
            born,
            name: text,
        } => {
            let name = Name {
                head: head(kind::NAME, Direction::Sent, text.len(), time),
                pid_tgid: both(*pid),
                born: *born,
                handle: *handle,
            };
            line.tell(Input::Record(
                &[name.as_bytes(), text.as_bytes(), OLD[1]].concat(),
            ));
        }
        Step::Gap {
            pid,
            handle,
            direction,
            offset,
            length,
            cause,
            plain,
        } => {
            let gap = Gap {
                head: head(kind::GAP, towards(direction), 0, time),
                pid_tgid: both(*pid),
                born: 0,
                handle: if *plain { handle | PLAIN } else { *handle },
                offset: offset.unwrap_or(u64::MAX),
                length: *length,
                cause: u64::from(match cause.as_str() {
                    "ring_full" => cause::RING_FULL,
                    "copy_fault" => cause::COPY_FAULT,
                    "map_full" => cause::MAP_FULL,
                    "call_too_long" => cause::CALL_TOO_LONG,
                    "over_budget" => cause::OVER_BUDGET,
                    "sendfile" => cause::SENDFILE,
                    "no_buffer" => cause::NO_BUFFER,
                    other => panic!("{other}"),
                }),
            };
            line.tell(Input::Record(gap.as_bytes()));
        }
        Step::Pending {
            pid,
            handle,
            direction,
            offset,
            length,
            born,
            is_over,
        } => {
            let pending = Pending {
                handle: *handle,
                born: *born,
                is_over: *is_over,
                tgid: *pid,
                direction: towards(direction) as u32,
                offset: *offset,
                length: *length,
                cause: cause::RING_FULL,
            };
            line.tell(Input::Pending(vec![pending]));
        }
        Step::Unseen { pid, handle, point } => {
            let unseen = Unseen {
                head: head(kind::UNSEEN, Direction::Received, 0, time),
                pid_tgid: u64::from(*pid) << 32 | u64::from(*pid),
                born: 0,
                handle: *handle,
                cookie: cookie(*point, Direction::Received, Shape::OutFourth),
            };
            line.tell(Input::Record(unseen.as_bytes()));
        }
        Step::Socket {
            cookie,
            local,
            local_port,
            peer,
            peer_port,
            side,
        } => {
            let address =
                |bytes: &[u8; 4]| std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0));
            let socket = Socket {
                head: head(kind::SOCKET, Direction::Received, 0, time),
                cookie: *cookie,
                local: address(local),
                peer: address(peer),
                local_port: *local_port,
                peer_port: *peer_port,
                family: 2,
                protocol: 6,
                side: *side,
            };
            line.tell(Input::Record(socket.as_bytes()));
        }
        &Step::Hello {
            pid,
            local_port,
            peer_port,
        } => {
            let mut address = [0; 16];
            address[..4].copy_from_slice(&[127, 0, 0, 1]);
            let greeting = *b"\x16\x03\x01\0\x05\x01";
            let hello = Hello {
                socket: Socket {
                    head: head(kind::HELLO, Direction::Sent, greeting.len(), time),
                    cookie: 0,
                    local: address,
                    peer: address,
                    local_port,
                    peer_port,
                    family: 2,
                    protocol: 6,
                    side: 1,
                },
                pid_tgid: both(pid),
            };
            line.tell(Input::Record(
                &[hello.as_bytes(), &greeting, OLD[0]].concat(),
            ));
        }
        Step::Clock { at } => {
            line.now = ms(*at);
            line.tell(Input::Idle);
        }
        Step::CaughtUp { at } => line.tell(Input::CaughtUp { until: ms(*at) }),
        &Step::Ours { local, peer } => line.tell(Input::Ours { local, peer }),
        Step::Wall { boot } => line.tell(Input::Clock(boot * 1_000_000_000)),
        &Step::Renamed { pid, ref comm } => line.tell(Input::Renamed { pid, comm }),
        Step::Watch {
            comms,
            exes,
            namespaces,
        } => line.tell(Input::Watch {
            exes: exes.clone(),
            uids: Vec::new(),
            comms: comms.clone(),
            names: Names {
                namespaces: namespaces.clone(),
                ..Names::default()
            },
        }),
        &Step::LetGo { file } => line.tell(Input::LetGo { file }),
        &Step::Placed { pid, is_outside } => line.tell(Input::Placed { pid, is_outside }),
        &Step::Missed { pid, ref path } => line.tell(Input::Missed { pid, path }),
        &Step::Inspected {
            pid,
            local_port,
            peer_port,
        } => {
            let end = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let connected = Connected {
                pid,
                local: end(local_port),
                peer: end(peer_port),
            };
            let finding = Finding::default();
            line.tell(Input::Inspected { connected, finding });
        }
        &Step::Ended { pid } => line.tell(Input::Ended { pid }),
        Step::Finish {} => line.tell(Input::Finish),
        &Step::Shed(rung) => line.tell(Input::Shed(Rung(rung))),
        &Step::Room(bytes) => line.tell(Input::Room(Some(bytes))),
        Step::Policy(policy) => line.tell(Input::Policy(policy_of(Some(policy)))),
        Step::NoPolicy {} => line.tell(Input::Policy(None)),
        &Step::Count {
            seen,
            ring_full,
            map_full,
            pauses,
        } => {
            let mut kernel = vec![0; counter::ROW];
            kernel[counter::SEEN] = seen;
            kernel[counter::LOST + usize::from(cause::RING_FULL)] = ring_full;
            kernel[counter::LOST + usize::from(cause::MAP_FULL)] = map_full;
            let governing = (pauses > 0).then_some(Governing {
                limit: Some(0.05),
                cost: 0.001,
                paused: 0,
                pauses,
                paused_seconds: 10.0,
            });
            line.tell(Input::Count(Count {
                kernel,
                governing,
                ..Count::default()
            }));
        }
    }
}

fn head(kind: u16, direction: Direction, len: usize, time: u64) -> Head {
    Head {
        kind,
        direction: direction as u16,
        len: len as u32,
        time,
    }
}

fn place(sequence: u32) -> Place {
    Place {
        sequence,
        skipped: 0,
    }
}

/// Process and thread of one number.
fn both(pid: u32) -> u64 {
    u64::from(pid) << 32 | u64::from(pid)
}

fn towards(direction: &str) -> Direction {
    match direction {
        "sent" => Direction::Sent,
        "received" => Direction::Received,
        other => panic!("{other}"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    text.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// Each scenario by its name, so that a failure names it.
macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*

        #[test]
        fn every_scenario_is_run() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
            let mut files: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .filter_map(|entry| {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    name.strip_suffix(".toml").map(str::to_owned)
                })
                .collect();
            files.sort();
            assert_eq!(files, [$(stringify!($name)),*]);
        }
    };
}

scenarios! {
    a_container_that_is_named
    a_container_whose_process_becomes_another
    asked_too_late
    bound_by_its_handshake
    content_none
    explained_behind_a_name
    findings
    findings_content_none
    findings_encoded
    findings_learning
    findings_of_a_server
    findings_upload
    forked_child
    gone_before_a_look
    gone_before_the_probes
    handle_again
    http1
    http2
    inferred_socket
    interim
    known_too_late
    late_facts
    left_handle
    llm
    llm_cost
    llm_tiers
    loss
    lost_evidence
    many_at_once
    mcp
    no_name
    one_request
    only_one_namespace
    open_at_the_end
    other_stack
    our_own
    paused
    plain
    plain_closed_while_it_waited
    policy
    policy_annotation
    policy_annotation_trusted
    policy_before_a_hole
    policy_before_the_facts
    policy_before_what_is_unseen
    policy_behind_the_dead
    policy_hides_names
    policy_late
    policy_late_excluded
    policy_loosened
    policy_loosened_inside_a_block
    policy_names
    policy_of_the_dead
    policy_of_the_unknown
    policy_of_what_came_twice
    policy_of_whom_it_became
    policy_program
    policy_program_before_exec
    policy_program_of_a_secret_path
    policy_tightened
    policy_while_waiting
    redacted
    rejoined
    reused_handle
    room
    set_clock
    shed_bodies
    shed_connections
    shed_data
    shelved_hole
    sse
    stopped_too_late
    text_api
    text_cut
    text_findings
    text_gap
    text_grpc
    text_http2
    text_interim
    text_lines
    text_llm
    text_llm_elements
    text_llm_messages
    text_llm_socket
    text_llm_streamed
    text_mcp
    text_sse
    text_websocket
    told_of_by_a_half_that_is_behind
    told_of_too_late
    undecoded
    unseen_of_the_dead
    watched_again
    watched_by_its_group
    watched_by_its_namespace
    watched_by_what_it_runs
    websocket
    wrong_order
}
