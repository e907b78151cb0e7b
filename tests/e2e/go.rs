//! Go's own TLS, by one program that several versions of Go made. The other end is Python's and writes the truth.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::harness::{Lab, PYTHON, Run, Server, argv, bare, scaled, seconds, wait_for};
use crate::records::{Records, Truth};

/// The oldest version, at any address and without symbols; one in the middle; one that keeps where its code begins
/// elsewhere.
const BUILDS: [(&str, &str); 3] = [
    ("tls-1.19-pie", "1.19."),
    ("tls-1.24", "1.24."),
    ("tls-1.27-stripped", "1.27."),
];
const MIDDLE: (&str, &str) = BUILDS[1];

/// A file of its own: nobody else's probes are in it.
fn program(lab: &Lab, (name, _): (&str, &str)) -> Option<PathBuf> {
    let built = lab.fixture("go", &format!("bin/{name}"))?;
    let copy = lab.path(name);
    if !copy.exists() {
        std::fs::copy(built, &copy).unwrap();
    }
    Some(copy)
}

/// The program as a client of a server in this mode: everything is there, and each connection is the one that the
/// server accepted.
#[track_caller]
fn client(
    test: &'static str,
    build: (&str, &str),
    mode: &str,
    arguments: impl FnOnce(&Server<'_>) -> Vec<OsString>,
) {
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let Some(program) = program(&lab, build) else {
        return;
    };
    let server = lab.server(&["--mode", mode]);
    let mut command = argv![program];
    command.extend(arguments(&server));
    let run = lab.agent().run(command);
    let truth = server.client_truth();
    run.assert_exact(&truth);
    let accepted = String::from_utf8(lab.read("server.accepted")).unwrap();
    let accepted = accepted.lines().map(|line| {
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap().to_owned();
        (
            format!("server-{}", next()),
            format!("{} {}", next(), next()),
        )
    });
    assert_ends(&run, build, &truth, server.port, &accepted.collect());
    if mode == "http2" {
        let is_http2 = |truth: &Truth| truth.sent.starts_with(b"PRI * HTTP/2.0");
        assert!(truth.iter().all(is_http2), "it spoke another protocol");
    }
}

/// Every record names the library, and the addresses that the server has for its connection.
#[track_caller]
fn assert_ends(
    run: &Run,
    (_, version): (&str, &str),
    truth: &[Truth],
    port: u16,
    accepted: &HashMap<String, String>,
) {
    if bare() {
        return;
    }
    let records = run.records();
    let stats = records.last_stats().unwrap();
    let calls = &stats["ledger"]["calls"];
    assert_eq!(calls["entries"], calls["returns"], "{calls}");
    if is_anonymous(&records) {
        return;
    }
    let connections = records.connections().unwrap();
    for record in records.kind("data") {
        let known = &record["tls"]["library"];
        assert_eq!(known["name"], "go", "{record:.300}");
        let says = known["version"].as_str().unwrap();
        assert!(says.starts_with(version), "{record:.300}");
        let connection = &record["connection"];
        assert_eq!(connection["attribution"], "exact", "{record:.300}");
        assert_eq!(connection["role"], "client", "{record:.300}");
        assert_eq!(connection["joined"], "start", "{record:.300}");
        assert_eq!(record["network"]["peer"]["port"], port, "{record:.300}");
        let own = connections
            .iter()
            .find(|own| connection["id"] == own.id[..]);
        // Some connections may carry the same: then the address is one of theirs.
        let local = &record["network"]["local"];
        let local = format!("{} {}", local["address"].as_str().unwrap(), local["port"]);
        let mut alike = truth.iter().filter(|truth| own.unwrap().is(truth));
        assert!(
            alike.any(|truth| accepted[&truth.name] == local),
            "{local}: {record:.300}"
        );
    }
}

/// Without attach cookies nobody knows the library or the socket, and nobody guesses.
#[track_caller]
fn is_anonymous(records: &Records) -> bool {
    let stats = records.last_stats().unwrap();
    let is_anonymous = stats["agent"]["features"]["cookies"] == "no";
    for record in records.kind("data").filter(|_| is_anonymous) {
        assert_eq!(record["connection"]["attribution"], "none", "{record:.300}");
    }
    is_anonymous
}

fn posts(server: &Server<'_>, size: u64, workers: u64, requests: u64) -> Vec<OsString> {
    argv![
        "get",
        server.url("/echo"),
        size.to_string(),
        workers.to_string(),
        requests.to_string()
    ]
}

#[test]
fn go_posts() {
    for build in BUILDS {
        client("go_posts", build, "http", |server| {
            posts(server, 150_000, 4, 3)
        });
    }
}

#[test]
fn go_http2() {
    for build in BUILDS {
        client("go_http2", build, "http2", |server| {
            posts(server, 100_000, 4, 3)
        });
    }
}

#[test]
fn go_fifty_goroutines() {
    client("go_fifty_goroutines", MIDDLE, "http", |server| {
        posts(server, 30_000, scaled("goroutines", 50, 8), 4)
    });
}

/// 16 MiB each way.
#[test]
fn go_large_bodies() {
    client("go_large_bodies", MIDDLE, "http", |server| {
        posts(server, scaled("bytes", 16 << 20, 1 << 20), 1, 1)
    });
}

/// Each call by a goroutine of its own, whose stack grows inside of it: the function begins twice, the call is one.
#[test]
fn go_growing_stacks() {
    for build in BUILDS {
        client("go_growing_stacks", build, "frames", |server| {
            argv!["frames", server.port.to_string(), "8", "60000", "4"]
        });
    }
}

/// Many goroutines write to one connection: in which order is for its lock to say.
#[test]
fn go_writes_together() {
    for build in BUILDS {
        client("go_writes_together", build, "frames", |server| {
            argv!["together", server.port.to_string(), "16", "5001"]
        });
    }
}

/// An address that is free again is the next connection's: each is one of its own.
#[test]
fn go_connections_one_after_another() {
    let test = "go_connections_one_after_another";
    client(test, MIDDLE, "http", |server| {
        let count = scaled("connections", 100, 10);
        argv!["again", server.url("/echo"), "3000", count.to_string()]
    });
}

#[test]
fn go_server() {
    for build in BUILDS {
        let Some(lab) = Lab::new("go_server") else {
            return;
        };
        let Some(program) = program(&lab, build) else {
            return;
        };
        serve(&lab, program);
    }
}

#[track_caller]
fn serve(lab: &Lab, program: PathBuf) {
    const CLIENTS: usize = 3;
    let (cert, key) = lab.certificate();
    let count = CLIENTS.to_string();
    let running = lab.agent().start(argv![
        program, "serve", &lab.dir, "server", cert, key, count
    ]);
    let port = lab.port("server", &running.process);
    for turn in 0..CLIENTS {
        let name = format!("client{turn}");
        let put = format!("PUT /put {}", 100_000 + turn);
        let recorder = lab.program("recorder.py");
        let command = argv![
            PYTHON,
            recorder,
            &lab.dir,
            &name,
            port.to_string(),
            put,
            "GET /none"
        ];
        lab.finish(lab.command(command), &name);
    }
    let run = running.finish(seconds(20));
    let truth: Vec<_> = (0..CLIENTS)
        .flat_map(|turn| lab.truth(&format!("client{turn}")))
        .map(Truth::swapped)
        .collect();
    assert_eq!(truth.len(), CLIENTS);
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    let records = run.records();
    if is_anonymous(&records) {
        return;
    }
    for record in records.kind("data") {
        let connection = &record["connection"];
        assert_eq!(connection["attribution"], "exact", "{record:.300}");
        assert_eq!(connection["role"], "server", "{record:.300}");
        assert_eq!(record["network"]["local"]["port"], port, "{record:.300}");
    }
}

/// A server closes its connections, and none of them keeps a place in the kernel's map: before its process ends, and
/// though no address comes again.
#[test]
fn go_closed_connections_give_their_places_up() {
    const CONNECTIONS: usize = 200;
    /// Gets nothing so often, each time by a connection of its own.
    const CLIENT: &str = "\
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for turn in range(int(sys.argv[2])):
    connection = context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))
    connection.sendall(b'GET / HTTP/1.1\\r\\nHost: here\\r\\nConnection: close\\r\\n\\r\\n')
    while connection.recv(4096):
        pass
";
    let test = "go_closed_connections_give_their_places_up";
    let Some(lab) = Lab::with(test, &["bpftool"]) else {
        return;
    };
    let Some(program) = program(&lab, MIDDLE) else {
        return;
    };
    if bare() {
        return;
    }
    let (cert, key) = lab.certificate();
    let count = (CONNECTIONS + 1).to_string();
    let command = argv![program, "serve", &lab.dir, "server", cert, key, count];
    let running = lab.agent().env("GOGC", "off").start(command);
    let port = lab.port("server", &running.process).to_string();
    let connect = |count: usize, name: &str| {
        let command = argv![PYTHON, "-c", CLIENT, &port, count.to_string()];
        lab.finish(lab.command(command), name);
    };
    connect(CONNECTIONS, "clients");
    let agent = running.process.pid();
    let streams = || streams_of(agent);
    assert!(streams() > 0, "the map was looked for in vain");
    wait_for("the places to be given up", seconds(20), || {
        (streams() == 0).then_some(())
    });
    connect(1, "last");
    let run = running.finish(seconds(20));
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    let connections = records.connections().unwrap();
    assert_eq!(connections.len(), CONNECTIONS + 1);
    assert!(connections.iter().all(|one| one.gaps().next().is_none()));
}

/// How many streams the agent's kernel side knows: its map is the one that has room for so many.
fn streams_of(agent: u32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap();
    let family = children.split_whitespace();
    let map = family.flat_map(|pid| {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
        entries.into_iter().flatten().flatten().filter_map(|entry| {
            let info = std::fs::read_to_string(entry.path()).ok()?;
            let field = |name: &str| {
                let line = info.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim().to_owned())
            };
            (field("map_type:")? == "1" && field("max_entries:")? == "65536")
                .then(|| field("map_id:"))?
        })
    });
    let id = map.into_iter().next().expect("the map of streams");
    let mut dump = std::process::Command::new("bpftool");
    let output = dump
        .args(["--json", "map", "dump", "id", &id])
        .output()
        .unwrap();
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    dump.as_array().unwrap().len()
}
