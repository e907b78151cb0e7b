//! Connections without TLS, by the ports of `--plain`: both ends, each byte, and nobody else.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use serde_json::Value;

use crate::harness::{
    Agent, Lab, PYTHON, Run, Server, argv, bare, free_port, random, seconds, wait_for,
};
use crate::records::{Records, Truth, total};

const KINDS: &str = "data,http,llm,gap,coverage,stats";

/// An agent for the connections of this server.
fn agent<'a>(lab: &'a Lab, port: u16) -> Agent<'a> {
    lab.agent()
        .emit(KINDS)
        .options(argv!["--plain", port.to_string()])
}

fn url(host: &str, port: u16, path: &str) -> OsString {
    format!("http://{host}:{port}{path}").into()
}

/// Every record of a connection says that it had no TLS and whose it was.
#[track_caller]
fn assert_plain(records: &Records, role: &str, address: &str) {
    let told: Vec<&Value> = records
        .0
        .iter()
        .filter(|record| record["connection"].is_object())
        .collect();
    assert!(!told.is_empty());
    for record in told {
        assert_eq!(record["tls"], Value::Null, "{record}");
        assert_eq!(record["connection"]["attribution"], "exact", "{record}");
        assert_eq!(record["connection"]["role"], role, "{record}");
        assert_eq!(record["network"]["peer"]["address"], address, "{record}");
    }
}

/// Statuses and sizes of the exchanges.
fn exchanges(records: &Records) -> Vec<(String, u64)> {
    let exchanges = records.kind("http");
    let told = exchanges.map(|http| {
        assert_eq!(http["complete"], true, "{http}");
        assert_eq!(http["connection"]["joined"], "start", "{http}");
        let size = http["http"]["response"]["body"]["size"].as_u64();
        (
            http["url"]["full"].as_str().unwrap_or_default().to_owned(),
            size.unwrap_or_default(),
        )
    });
    told.collect()
}

/// Large bodies both ways, and several requests of one connection.
#[test]
fn plain_curl() {
    let Some(lab) = Lab::with("plain_curl", &["curl"]) else {
        return;
    };
    let server = lab.server(&["--plain"]);
    let body = lab.file("body", random(300_145, 1));
    let data = format!("@{}", body.display());
    let at = |path: &str| url("127.0.0.1", server.port, path);
    let (echo, large) = (at("/echo"), at("/bytes/4194304"));
    let run = agent(&lab, server.port).run(argv![
        "curl",
        "-sf",
        "-o",
        lab.path("1"),
        "-o",
        lab.path("2"),
        "-o",
        lab.path("3"),
        "--data-binary",
        data,
        &echo,
        "--next",
        "-sf",
        "-o",
        lab.path("4"),
        &large,
        at("/chunked/70000")
    ]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return;
    }
    let records = run.records();
    assert_plain(&records, "client", "127.0.0.1");
    let expected = [("/echo", 300_145), ("/bytes/4194304", 4_194_304)];
    let exchanges = exchanges(&records);
    for (path, size) in expected {
        let full = format!("http://127.0.0.1:{}{path}", server.port);
        assert!(exchanges.contains(&(full, size)), "{exchanges:?}");
    }
    assert_eq!(records.kind("http").count(), 3);
}

/// A client that asks fifty times, of IPv6.
#[test]
fn plain_keep_alive() {
    let Some(lab) = Lab::new("plain_keep_alive") else {
        return;
    };
    let server = lab.server(&["--plain", "--host", "::1"]);
    let script = "import http.client, sys
conn = http.client.HTTPConnection('::1', int(sys.argv[1]), timeout=30)
for n in range(50):
    conn.request('POST', '/echo', b'x' * n * 1000)
    assert len(conn.getresponse().read()) == n * 1000
conn.close()";
    let run = agent(&lab, server.port).run(argv![PYTHON, "-c", script, server.port.to_string()]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return;
    }
    let records = run.records();
    assert_plain(&records, "client", "::1");
    let sizes: Vec<u64> = exchanges(&records)
        .into_iter()
        .map(|(_, size)| size)
        .collect();
    let expected: Vec<u64> = (0..50).map(|n| n * 1000).collect();
    assert_eq!(sizes, expected);
}

/// HTTP/2 by prior knowledge.
#[test]
fn plain_http2() {
    let Some(lab) = Lab::with("plain_http2", &["curl"]) else {
        return;
    };
    let server = lab.server(&["--plain", "--mode", "http2"]);
    let run = agent(&lab, server.port).run(argv![
        "curl",
        "-sf",
        "--http2-prior-knowledge",
        "--data-binary",
        "hello",
        "-o",
        lab.path("out"),
        url("127.0.0.1", server.port, "/echo")
    ]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return;
    }
    let records = run.records();
    let http: Vec<&Value> = records.kind("http").collect();
    assert_eq!(http.len(), 1);
    assert_eq!(
        http[0]["network"]["protocol"]["version"], "2",
        "{}",
        http[0]
    );
    assert_eq!(http[0]["url"]["scheme"], "http", "{}", http[0]);
}

/// Several buffers in one call, by two system calls.
#[test]
fn plain_several_buffers() {
    let Some(lab) = Lab::with("plain_several_buffers", &["curl"]) else {
        return;
    };
    let (run, truth) = of_a_server(&lab, &["/writev/400000", "/sendmsg/400001", "/writev/1"]);
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    let records = run.records();
    assert_plain(&records, "server", "127.0.0.1");
    assert_eq!(records.kind("http").count(), 3);
}

/// The kernel takes the bytes from a file: a hole of just their length, and what follows is in step.
#[test]
fn plain_from_a_file() {
    let Some(lab) = Lab::with("plain_from_a_file", &["curl"]) else {
        return;
    };
    let (run, truth) = of_a_server(&lab, &["/sendfile/200001", "/writev/3"]);
    run.assert_accounted(&truth, &["no_buffer"]);
    if bare() {
        return;
    }
    let records = run.records();
    let lost: u64 = records
        .kind("gap")
        .filter_map(|gap| gap["length"].as_u64())
        .sum();
    assert_eq!(lost, 200_001);
    let sizes = records.kind("http").map(|http| {
        let body = &http["http"]["response"]["body"]["size"];
        (body.as_u64().unwrap(), http["lost_bytes"].as_u64().unwrap())
    });
    let sizes: Vec<(u64, u64)> = sizes.collect();
    // Of the first none of the body was seen, and of the second nothing is missing.
    assert_eq!(sizes, [(0, 200_001), (3, 0)]);
}

/// Calls that look without taking, that take without a buffer, and that fill several; the last one meets the end.
#[test]
fn plain_odd_calls() {
    let Some(lab) = Lab::new("plain_odd_calls") else {
        return;
    };
    let port = free_port();
    let script = "import os, socket, sys
content = bytes(range(256)) * 4
with socket.create_server(('127.0.0.1', int(sys.argv[1]))) as listener:
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
server.sendall(content)
server.close()
parts = lambda *sizes: [bytearray(size) for size in sizes]
read = client.recv(100, socket.MSG_PEEK)
assert read == content[:100]
vector = parts(1, 0, 99)
assert client.recvmsg_into(vector)[0] == 100 and b''.join(vector) == content[:100]
assert len(client.recv(50, socket.MSG_TRUNC)) == 50
vector = parts(0, 7, 93)
assert os.readv(client.fileno(), vector) == 100 and b''.join(vector) == content[150:250]
assert os.read(client.fileno(), 4) == content[250:254]
assert client.recv(10, socket.MSG_PEEK) == content[254:264]
assert client.recv(4096) == content[254:]
assert client.recv(1) == b''
client.close()";
    let run = agent(&lab, port).run(argv![PYTHON, "-c", script, port.to_string()]);
    let content: Vec<u8> = (0..=255).cycle().take(1024).collect();
    let own = Truth {
        name: "server".to_owned(),
        sent: content,
        received: Vec::new(),
    };
    run.assert_accounted(&[own.clone(), own.swapped()], &["no_buffer"]);
    if bare() {
        return;
    }
    let records = run.records();
    let gaps: Vec<(u64, u64)> = records
        .kind("gap")
        .map(|gap| {
            let number = |key: &str| gap[key].as_u64().unwrap();
            (number("offset"), number("length"))
        })
        .collect();
    assert_eq!(gaps, [(100, 50)]);
}

/// Bytes that go by ways of which no buffer is known: several messages in one call, through a pipe, by io_uring. Each is a
/// hole of just its length, and what lies between is whole.
#[test]
fn plain_other_ways() {
    let Some(lab) = Lab::new("plain_other_ways") else {
        return;
    };
    let port = free_port();
    let run = agent(&lab, port).run(argv![PYTHON, lab.program("ways.py"), port.to_string()]);
    let way: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let own = Truth {
        name: "client".to_owned(),
        sent: way.repeat(8),
        received: way.repeat(8),
    };
    run.assert_accounted(&[own.clone(), own.swapped()], &["no_buffer"]);
    if bare() {
        return;
    }
    let records = run.records();
    for direction in ["sent", "received"] {
        let gaps = records
            .kind("gap")
            .filter(|gap| gap["direction"] == direction);
        let gaps: Vec<(u64, u64)> = gaps
            .map(|gap| {
                (
                    gap["offset"].as_u64().unwrap(),
                    gap["length"].as_u64().unwrap(),
                )
            })
            .collect();
        let expected = [(1000, 1000), (2000, 1000), (4000, 1000), (6000, 1000)];
        assert_eq!(gaps, expected, "{direction}");
    }
}

/// A server below the agent, asked by a curl that is not, on one connection.
fn of_a_server(lab: &Lab, paths: &[&str]) -> (Run, Vec<Truth>) {
    let port = free_port();
    let words = lab.server_args("server");
    let server = lab.program("server.py");
    let mut argv = argv![PYTHON, server];
    argv.extend(words);
    argv.extend(argv![
        "--plain",
        "--mode",
        "buffers",
        "--connections",
        "1",
        "--port",
        port.to_string()
    ]);
    let running = agent(lab, port).start(argv);
    wait_for("the server", seconds(20), || {
        fs::metadata(lab.path("server.port")).ok()
    });
    let mut curl = argv!["curl", "-sf"];
    for (n, path) in paths.iter().enumerate() {
        curl.extend(argv![
            "-o",
            lab.path(&format!("out{n}")),
            url("127.0.0.1", port, path)
        ]);
    }
    lab.finish(lab.command(curl), "curl");
    (running.finish(seconds(30)), lab.truth("server"))
}

/// Both ends below the agent: two processes, each with its own connection and its own part.
#[test]
fn plain_both_ends() {
    let Some(lab) = Lab::with("plain_both_ends", &["curl"]) else {
        return;
    };
    let port = free_port();
    let server = lab.program("server.py");
    let script = "\"$0\" \"$@\" & while [ ! -e \"$E2E_DIR/server.port\" ]; do sleep 0.05; done
                  curl -sf -o /dev/null http://127.0.0.1:$PORT/bytes/100000; wait";
    let mut argv = argv!["sh", "-c", script, PYTHON, server];
    argv.extend(lab.server_args("server"));
    argv.extend(argv![
        "--plain",
        "--connections",
        "1",
        "--port",
        port.to_string()
    ]);
    let run = agent(&lab, port).env("PORT", port.to_string()).run(argv);
    let own = lab.truth("server");
    let others = own.iter().cloned().map(Truth::swapped);
    let truth: Vec<Truth> = own.iter().cloned().chain(others).collect();
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    let records = run.records();
    let mut told: Vec<(&str, &str)> = records
        .kind("http")
        .map(|http| {
            let role = http["connection"]["role"].as_str().unwrap();
            (role, http["process"]["comm"].as_str().unwrap())
        })
        .collect();
    told.sort_unstable();
    assert_eq!(told, [("client", "curl"), ("server", "python3")]);
}

/// What a local model says in lines is one call.
#[test]
fn plain_ollama() {
    let Some(lab) = Lab::with("plain_ollama", &["curl"]) else {
        return;
    };
    let server = lab.server(&["--plain", "--mode", "buffers"]);
    let asked = r#"{"model":"llama3.2","messages":[{"role":"user","content":"Is it so?"}]}"#;
    let run = agent(&lab, server.port).run(argv![
        "curl",
        "-sf",
        "-d",
        asked,
        url("127.0.0.1", server.port, "/api/chat")
    ]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return;
    }
    let records = run.records();
    let calls: Vec<&Value> = records.kind("llm").collect();
    let [call] = calls[..] else {
        panic!("{calls:?}");
    };
    let of = &call["gen_ai"];
    assert_eq!(of["provider"]["name"], "ollama", "{call}");
    assert_eq!(of["request"]["model"], "llama3.2", "{call}");
    assert_eq!(of["usage"]["input_tokens"], 26, "{call}");
    assert_eq!(of["usage"]["output_tokens"], 3, "{call}");
    assert!(call.to_string().contains("It is so."), "{call}");
}

/// TLS on such a port is told once, as what it is.
#[test]
fn plain_port_with_tls() {
    let Some(lab) = Lab::with("plain_port_with_tls", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let run = agent(&lab, server.port).run(argv![
        "curl",
        "-skf",
        "--http1.1",
        "-o",
        lab.path("out"),
        server.url("/bytes/100000")
    ]);
    run.assert_exact(&server.client_truth());
    if bare() {
        return;
    }
    let records = run.records();
    let exchanges: Vec<&Value> = records.kind("http").collect();
    assert_eq!(exchanges.len(), 1);
    assert!(exchanges[0]["tls"].is_object(), "{}", exchanges[0]);
}

/// The same by a library that works in memory, and whose sockets are used outside of its calls.
#[test]
fn plain_port_with_tls_in_memory() {
    let Some(lab) = Lab::new("plain_port_with_tls_in_memory") else {
        return;
    };
    let server = lab.server(&[]);
    let client = lab.program("http_client.py");
    let port = server.port.to_string();
    let run = agent(&lab, server.port).run(argv![PYTHON, client, "asyncio", port]);
    run.assert_exact(&server.client_truth());
}

/// Of two servers on watched ports one is watched; who was there before is joined in its middle.
#[test]
fn plain_of_one_process() {
    let Some(lab) = Lab::new("plain_of_one_process") else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&["--plain"]);
    let other = lab.server_named("other", std::process::Command::new(PYTHON), &["--plain"]);
    let mut before = connect(&server);
    ask(&mut before, 10);
    let ports = format!("{},{},{}", server.port, other.port, server.port);
    let running = lab
        .agent()
        .emit(KINDS)
        .options(argv!["--plain", ports, "--stats-interval", "100ms"])
        .watch_without_coverage(server.pid());
    let mut unwatched = connect(&other);
    wait_for("a filter that turns somebody away", seconds(20), || {
        ask(&mut unwatched, 10);
        let ledger = running.last_ledger()?;
        (ledger["calls"]["filtered"].as_u64() > Some(0)).then_some(())
    });
    ask(&mut before, 20);
    drop(before);
    let mut after = connect(&server);
    ask(&mut after, 30);
    drop((after, unwatched));
    let truth = server.truth();
    let started = total(&truth) - ANSWERED - ASKED - 10;
    wait_for("all of it", seconds(10), || {
        let ledger = running.last_ledger()?;
        (ledger["bytes"]["delivered"] == started).then_some(())
    });
    running.process.signal(libc::SIGINT);
    let run = running.finish(seconds(20));
    let records = run.records();
    let joined: Vec<(&str, u64)> = records
        .kind("http")
        .map(|http| {
            assert_eq!(http["process"]["pid"], server.pid(), "{http}");
            let joined = http["connection"]["joined"].as_str().unwrap();
            let size = &http["http"]["response"]["body"]["size"];
            (joined, size.as_u64().unwrap())
        })
        .collect();
    assert_eq!(joined, [("middle", 20), ("start", 30)]);
    assert_eq!(records.check_ledger().unwrap(), started);
}

/// What is around the body, with a length of two digits.
const ANSWERED: u64 =
    "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 10\r\n\r\n".len()
        as u64;
const ASKED: u64 = "GET /bytes/10 HTTP/1.1\r\n\r\n".len() as u64;

fn connect(server: &Server<'_>) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap()
}

fn ask(stream: &mut TcpStream, size: u64) {
    let request = format!("GET /bytes/{size} HTTP/1.1\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![0; (ANSWERED + size) as usize];
    stream.read_exact(&mut answer).unwrap();
}
