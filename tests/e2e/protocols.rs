//! What decoders make of real traffic, compared with what the endpoints wrote down: each exchange once, none
//! wrong, none missing.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;

use serde_json::Value;

use crate::{
    argv,
    harness::{Agent, End, Lab, PYTHON, Proc, Run, bare, scaled, seconds, wait_for},
    records::{Records, number, string},
};

const KINDS: &str = "http,sse,websocket,grpc,gap,coverage,stats";

fn server(lab: &Lab) -> (Proc, u16) {
    let (cert, key) = lab.certificate();
    let program = lab.program("exchanges.mjs");
    let serve = argv!["node", program, "serve", &lab.dir, "server", cert, key];
    let server = lab.spawn(lab.command(serve), "server");
    let port = lab.port("server", &server);
    (server, port)
}

/// The exchanges as the server had them, by their paths.
fn truth(lab: &Lab) -> HashMap<String, Value> {
    logged(lab, "server.exchanges", "/path")
}

/// The lines of NAME, JSON objects, by the member that none has twice.
fn logged(lab: &Lab, name: &str, key: &str) -> HashMap<String, Value> {
    let log = String::from_utf8(lab.read(name)).unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| (string(&line, key).unwrap(), line))
        .collect()
}

/// A body as it was before it was coded.
fn body<'a>(record: &'a Value, side: &str) -> &'a str {
    let body = &record["http"][side]["body"];
    assert_eq!(body.get("cut"), None, "{record}");
    assert_eq!(body.get("unreadable"), None, "{record}");
    assert_eq!(body.get("base64"), None, "{record}");
    body["content"].as_str().unwrap_or_default()
}

/// Each exchange that the server had is told once, as it was.
#[track_caller]
fn assert_told(run: &Run, mut truth: HashMap<String, Value>, version: &str) {
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_eq!(records.kind("gap").count(), 0);
    let mut events: HashMap<String, u64> = HashMap::new();
    for event in records.kind("sse") {
        let path = string(event, "/url/path").unwrap();
        let count = events.entry(path.clone()).or_default();
        assert_eq!(number(event, "/sse/number").unwrap(), *count);
        assert_eq!(event["sse"]["event"], "tick");
        assert_eq!(event["sse"]["id"], count.to_string());
        let data = format!("{{\"n\":{count},\"path\":\"{path}\"}}");
        assert_eq!(event["sse"]["data"], data, "{event}");
        *count += 1;
    }
    for record in records.kind("http") {
        let path = string(record, "/url/path").unwrap();
        let expected = truth
            .remove(&path)
            .unwrap_or_else(|| panic!("twice, or never: {record}"));
        assert_eq!(record["complete"], true, "{record}");
        assert_eq!(record["network"]["protocol"]["version"], version);
        assert_eq!(
            record["http"]["request"]["method"], expected["method"],
            "{record}"
        );
        assert_eq!(
            record["http"]["response"]["status_code"], expected["status"],
            "{record}"
        );
        for side in ["request", "response"] {
            let body = body(record, side);
            assert!(
                expected[side] == body,
                "{side} of {path}: {} bytes",
                body.len()
            );
        }
        let is_head = expected["method"] == "HEAD";
        let count = if is_head {
            0
        } else {
            number(&expected, "/events").unwrap()
        };
        assert_eq!(events.remove(&path).unwrap_or_default(), count, "{path}");
    }
    assert!(
        truth.is_empty(),
        "{} missing, such as {:?}",
        truth.len(),
        truth.values().next()
    );
    assert!(events.is_empty(), "{events:?}");
    assert_eq!(records.kind("data").count(), 0);
}

fn asked(test: &'static str, how: &str, at_once: &str, version: &str) {
    let Some(lab) = Lab::with(test, &["node"]) else {
        return;
    };
    let (_server, port) = server(&lab);
    let count = scaled("exchanges", 2000, 40);
    let program = lab.program("exchanges.mjs");
    let words = argv![
        "node",
        program,
        how,
        count.to_string(),
        at_once,
        port.to_string()
    ];
    let run = lab.agent().emit(KINDS).run(words);
    let truth = truth(&lab);
    assert_eq!(truth.len() as u64, count);
    assert_told(&run, truth, version);
}

#[test]
fn http1_by_node() {
    asked("http1_by_node", "ask-1", "8", "1.1");
}

/// A hundred streams of one connection at once.
#[test]
fn http2_by_node() {
    asked("http2_by_node", "ask-2", "100", "2");
}

/// curl, many at once on one connection and one after the other.
fn curl(test: &'static str, version: &str, flags: &[&str]) {
    let Some(lab) = Lab::with(test, &["node", "curl"]) else {
        return;
    };
    let (_server, port) = server(&lab);
    let mut words = argv!["curl", "-sk", "--compressed", "--max-time", "60"];
    words.extend(flags.iter().map(OsString::from));
    let paths = [
        "coded-gzip",
        "coded-br",
        "events",
        "status-204",
        "trailers",
        "status-404",
    ];
    let count = scaled("requests", 300, 18);
    for at in 0..count {
        let path = paths[at as usize % paths.len()];
        words.extend(argv![
            "-o",
            "/dev/null",
            format!("https://127.0.0.1:{port}/{path}/{at}")
        ]);
    }
    let run = lab.agent().emit(KINDS).run(words);
    let truth = truth(&lab);
    assert_eq!(truth.len() as u64, count);
    assert_told(&run, truth, version);
}

#[test]
fn http1_by_curl() {
    curl("http1_by_curl", "1.1", &["--http1.1"]);
}

#[test]
fn http2_by_curl() {
    curl(
        "http2_by_curl",
        "2",
        &["--http2", "--parallel", "--parallel-max", "50"],
    );
}

/// Calls of each kind on several connections.
#[test]
fn grpc_by_grpcio() {
    let Some(lab) = Lab::new("grpc_by_grpcio") else {
        return;
    };
    let Some(module) = lab.fixture("grpcio", "grpc") else {
        return;
    };
    let modules = module.parent().unwrap();
    let (cert, key) = lab.certificate();
    let program = lab.program("grpcio.py");
    let words = argv![PYTHON, &program, "serve", &lab.dir, &cert, key, "127.0.0.1"];
    let mut serve = lab.command(words);
    serve.env("PYTHONPATH", modules);
    let server = lab.spawn(serve, "grpcio");
    let port = lab.port("grpcio", &server);
    let requests = scaled("requests", 100, 4);
    let url = format!("https://127.0.0.1:{port}");
    let ask = argv![PYTHON, program, "ask", cert, "3", requests.to_string(), url];
    let run = lab.agent().emit(KINDS).env("PYTHONPATH", modules).run(ask);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let mut counts: HashMap<String, u64> = HashMap::new();
    for call in records.kind("grpc") {
        assert_eq!(call["complete"], true, "{call}");
        assert_eq!(call["rpc"]["service"], "e2e.Echo");
        assert_eq!(call["rpc"]["grpc"]["status_code"], 0, "{call}");
        let method = string(call, "/rpc/method").unwrap();
        let (sent, received) = match method.as_str() {
            "One" => (1, 1),
            "Stream" => (1, 4),
            "Gather" => (4, 1),
            "Chat" => (4, 4),
            _ => panic!("{call}"),
        };
        let messages = |side: &str| number(call, &format!("/grpc/{side}/messages")).unwrap();
        assert_eq!(
            (messages("sent"), messages("received")),
            (sent, received),
            "{call}"
        );
        let sum = |side: &str| {
            let sizes = call["grpc"][side]["sizes"].as_array().unwrap().iter();
            sizes.map(|size| size.as_u64().unwrap()).sum::<u64>()
        };
        // What is sent comes back, by `Stream` four times.
        let times = if method == "Stream" { 4 } else { 1 };
        assert_eq!(sum("sent") * times, sum("received"), "{call}");
        *counts.entry(method).or_default() += 1;
    }
    assert_eq!(counts.len(), 4);
    assert!(
        counts.values().all(|count| *count == 3 * requests),
        "{counts:?}"
    );
    assert_eq!(records.kind("http").count(), 0);
}

/// Text in encodings other than UTF-8, marked and not, coded and not, in chunks that end inside of characters: what is
/// told is what the server had before it wrote it in those.
#[test]
fn charsets_by_python() {
    let Some(lab) = Lab::with("charsets_by_python", &["curl"]) else {
        return;
    };
    let (cert, key) = lab.certificate();
    let program = lab.program("charsets.py");
    let serve = lab.command(argv![PYTHON, program, &lab.dir, cert, key]);
    let server = lab.spawn(serve, "charsets");
    let port = lab.port("charsets", &server);
    let count = scaled("requests", 48, 16);
    let mut words = argv!["curl", "-sk", "--http1.1", "--max-time", "60"];
    for at in 0..count {
        let url = format!("https://127.0.0.1:{port}/{at}");
        words.extend(argv![
            "--compressed",
            "-o",
            lab.path(&format!("got-{at}")),
            url
        ]);
    }
    let run = lab.agent().emit(KINDS).run(words);
    run.success();
    let mut truth = logged(&lab, "charsets.exchanges", "/path");
    assert_eq!(truth.len() as u64, count);
    for at in 0..count {
        let length = number(&truth[&format!("/{at}")], "/length").unwrap();
        assert_eq!(lab.read(&format!("got-{at}")).len() as u64, length);
    }
    if bare() {
        return;
    }
    let records = run.records();
    for record in records.kind("http") {
        let path = string(record, "/url/path").unwrap();
        let expected = truth
            .remove(&path)
            .unwrap_or_else(|| panic!("twice, or never: {record}"));
        assert_eq!(record["complete"], true, "{record}");
        assert_eq!(body(record, "response"), expected["text"], "{record}");
        let told = &record["http"]["response"]["body"];
        assert_eq!(told["charset"], expected["encoding"], "{record}");
        let is_coded = told.get("decoded_size").is_some();
        let length = if is_coded { "decoded_size" } else { "size" };
        assert_eq!(told[length], expected["length"], "{record}");
    }
    assert!(truth.is_empty(), "missing: {:?}", truth.keys());
}

/// gRPC-Web as text: its messages, and how each call ended, as both ends had them.
#[test]
fn grpc_web_text_by_python() {
    let Some(lab) = Lab::new("grpc_web_text_by_python") else {
        return;
    };
    let (cert, key) = lab.certificate();
    let program = lab.program("grpc_web.py");
    let serve = lab.command(argv![PYTHON, &program, "serve", &lab.dir, cert, key]);
    let server = lab.spawn(serve, "grpc_web");
    let port = lab.port("grpc_web", &server).to_string();
    let count = scaled("calls", 60, 12);
    let ask = argv![PYTHON, program, "ask", &lab.dir, port, count.to_string()];
    let run = lab.agent().emit(KINDS).run(ask);
    run.success();
    let mut truth = logged(&lab, "grpc_web.asked", "/method");
    assert_eq!(truth.len() as u64, count);
    assert_eq!(truth, logged(&lab, "grpc_web.served", "/method"));
    if bare() {
        return;
    }
    let records = run.records();
    for call in records.kind("grpc") {
        let method = string(call, "/rpc/method").unwrap();
        let expected = truth
            .remove(&method)
            .unwrap_or_else(|| panic!("twice, or never: {call}"));
        assert_eq!(call["complete"], true, "{call}");
        assert_eq!(call["rpc"]["service"], expected["service"], "{call}");
        assert_eq!(call["rpc"]["grpc"]["status_code"], expected["status"]);
        let message = call["grpc"]["message"].as_str().unwrap_or_default();
        assert_eq!(message, expected["message"], "{call}");
        for side in ["sent", "received"] {
            let sizes = expected[side].as_array().unwrap();
            // Without any there is no member.
            let told = call["grpc"][side]["sizes"].as_array();
            assert_eq!(told.map_or(&[][..], Vec::as_slice), sizes, "{call}");
            assert_eq!(call["grpc"][side]["messages"], sizes.len(), "{call}");
        }
    }
    assert!(truth.is_empty(), "missing: {:?}", truth.keys());
    assert_eq!(records.kind("http").count(), 0);
}

/// Messages of both types, compressed and not, whole and in fragments.
#[test]
fn websocket_by_python() {
    let Some(lab) = Lab::new("websocket_by_python") else {
        return;
    };
    let Some(module) = lab.fixture("websockets", "websockets") else {
        return;
    };
    let modules = module.parent().unwrap();
    let (cert, key) = lab.certificate();
    let program = lab.program("websocket.py");
    let mut serve = lab.command(argv![PYTHON, &program, "serve", &lab.dir, &cert, key]);
    serve.env("PYTHONPATH", modules);
    let server = lab.spawn(serve, "websocket");
    let port = lab.port("websocket", &server);
    let count = scaled("messages", 60, 6).to_string();
    let ask = argv![
        PYTHON,
        program,
        "ask",
        &lab.dir,
        cert,
        port.to_string(),
        "6",
        count
    ];
    let run = lab.agent().emit(KINDS).env("PYTHONPATH", modules).run(ask);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    messages_are_told(&records, &lab.read("websocket.messages"));
    assert_eq!(
        records
            .kind("http")
            .filter(|record| record["http"]["response"]["status_code"] == 101)
            .count(),
        6
    );
    assert_eq!(
        records.kind("data").count() + records.kind("gap").count(),
        0
    );
}

/// Both ends: a server that goes on when somebody made the file `go`.
const PAUSES: &str = "\
import os, socket, ssl, sys, threading, time
_, cert, key, media, first, second = (word.replace('|', '\\n') for word in sys.argv)
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(cert, key)
listener = socket.create_server(('127.0.0.1', 0))
def serve():
    with server.wrap_socket(listener.accept()[0], server_side=True) as tls:
        tls.recv(65536)
        tls.sendall(f'HTTP/1.1 200 OK\\r\\nContent-Type: {media}\\r\\n\\r\\n{first}'.encode())
        for _ in range(2000):
            if os.path.exists('go'): break
            time.sleep(0.01)
        tls.sendall(second.encode())
thread = threading.Thread(target=serve, daemon=True)
thread.start()
client = ssl._create_unverified_context()
with client.wrap_socket(socket.create_connection(listener.getsockname())) as tls:
    tls.sendall(b'GET /stream HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')
    while tls.recv(65536): pass
thread.join(20)
";

/// Text shows a piece of a response when it comes, below the head of its exchange, and not when the response is over.
/// `name`: what the pieces are called; `over`: what is told of them at the end. `|` is the end of a line.
fn shows_what_goes_on(
    test: &'static str,
    media: &str,
    [first, second]: [&str; 2],
    name: &str,
    over: &str,
) {
    let Some(lab) = Lab::new(test) else {
        return;
    };
    if bare() {
        return;
    }
    let (cert, key) = lab.certificate();
    let output = lab.path("output");
    let program = lab.file("pauses.py", PAUSES);
    let mut words = argv![Agent::path(), "run", "--output", "text", "-o", &output];
    words.extend(argv![
        "--", PYTHON, program, cert, key, media, first, second
    ]);
    let mut agent = lab.command(words);
    agent.current_dir(&lab.dir);
    let agent = lab.spawn(agent, "agent");
    let blocks = |text: &str, part: &str| text.lines().filter(|line| line.contains(part)).count();
    let text = wait_for("the first piece at both ends", seconds(20), || {
        let text = fs::read_to_string(&output).ok()?;
        (blocks(&text, &format!("{name} 0")) == 2).then_some(text)
    });
    assert_eq!(blocks(&text, "GET https://localhost/stream 200 after"), 2);
    assert_eq!(
        blocks(&text, "  < data: first") + blocks(&text, &format!("{name} 1")),
        0
    );
    lab.file("go", "");
    assert_eq!(agent.wait(seconds(20)), End::Code(0), "{}", agent.err());
    let text = fs::read_to_string(&output).unwrap();
    assert_eq!(blocks(&text, &format!("{name} 1")), 2, "{text}");
    // Each is told once for each end, and so is the head.
    for shown in ["first", "second"] {
        let count = blocks(&text, &format!(" < {shown}")) + blocks(&text, &format!(" > {shown}"));
        assert_eq!(count, 2, "{text}");
    }
    let over = text
        .lines()
        .filter(|line| line.contains("/stream 200 in ") && line.contains(over));
    assert_eq!(over.count(), 2, "{text}");
    assert_eq!(
        blocks(&text, &format!("content-type: {media}")),
        2,
        "{text}"
    );
}

#[test]
fn text_shows_what_goes_on() {
    shows_what_goes_on(
        "text_shows_what_goes_on",
        "text/event-stream",
        ["data: first||", "data: second||"],
        "event",
        ", 2 events, ",
    );
}

/// Ends of lines come late, and not at all.
#[test]
fn text_shows_lines_that_come() {
    shows_what_goes_on(
        "text_shows_lines_that_come",
        "application/x-ndjson",
        ["first|sec", "ond"],
        "line",
        ", 12 B answered",
    );
}

/// Are the messages that an end wrote down, one JSON object a line, those of both directions? Both ends say the same.
/// How many that are, and the closing ones.
pub(crate) fn messages_are_told(records: &Records, log: &[u8]) -> (usize, Vec<Value>) {
    let mut truth: Vec<(String, String)> = Vec::new();
    for line in str::from_utf8(log).unwrap().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        truth.push((
            string(&message, "/type").unwrap(),
            string(&message, "/text").unwrap(),
        ));
    }
    truth.sort();
    let mut closing = Vec::new();
    for direction in ["sent", "received"] {
        let mut told = Vec::new();
        let messages = records.kind("websocket");
        for message in messages.filter(|record| record["direction"] == direction) {
            assert_eq!(message["complete"], true, "{message}");
            let kind = string(message, "/websocket/type").unwrap();
            let text = message["websocket"]["content"].as_str().unwrap_or_default();
            match kind.as_str() {
                "text" | "binary" => told.push((kind, text.to_owned())),
                "close" => {
                    assert_eq!(message["websocket"]["close_code"], 1000);
                    closing.push(message.clone());
                }
                _ => panic!("{message}"),
            }
        }
        told.sort();
        assert!(
            told == truth,
            "{direction}: {} of {}",
            told.len(),
            truth.len()
        );
    }
    (truth.len(), closing)
}
