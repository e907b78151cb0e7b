//! Whose socket it was, for programs of all kinds: the name that a connection gets is compared with what
//! the servers' sockets say, request by request. A wrong one fails, however many are right.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::addresses::{Ends, Server, TWO, ends, has_ipv6, shown};
use crate::harness::{Lab, PYTHON, Proc, Run, argv, bare, scaled, seconds, skip, wait_for};
use crate::records::{Records, content, digest};

/// Servers on 127.0.0.1 to .4 and ::1, three of them with the same port.
struct Servers<'a> {
    servers: Vec<Server<'a>>,
    urls: Vec<String>,
}

impl<'a> Servers<'a> {
    fn start(lab: &'a Lab, test: &'static str) -> Option<Servers<'a>> {
        if !has_ipv6(test) {
            return None;
        }
        let one: IpAddr = Ipv4Addr::LOCALHOST.into();
        let last = |number| IpAddr::from(Ipv4Addr::new(127, 0, 0, number));
        let same = [one, TWO.into(), Ipv6Addr::LOCALHOST.into()];
        let servers = vec![
            Server::start(lab, "same", &same),
            Server::start(lab, "third", &[last(3)]),
            Server::start(lab, "fourth", &[last(4)]),
        ];
        let url = |server: &Server<'_>, host| server.url(host, "").trim_end_matches('/').to_owned();
        let mut urls: Vec<String> = same.iter().map(|host| url(&servers[0], *host)).collect();
        urls.push(url(&servers[1], last(3)));
        urls.push(url(&servers[2], last(4)));
        Some(Servers { servers, urls })
    }

    fn ends(&self) -> HashMap<String, Ends> {
        self.servers.iter().flat_map(Server::ends).collect()
    }

    /// `connections.py` or `parallel.mjs` as a client of all of them.
    fn client(&self, lab: &Lab, kind: &str, connections: u64, requests: u64) -> Vec<OsString> {
        let mut words = match kind {
            "node" => argv!["node", lab.program("parallel.mjs")],
            "rustls" => argv![rustls(lab).expect("it was looked for"), "get"],
            "native-tls" | "native-tls-vendored" => {
                argv![native_tls(lab, kind).expect("it was looked for"), "get"]
            }
            kind => argv![PYTHON, lab.program("connections.py"), kind],
        };
        words.extend(argv![connections.to_string(), requests.to_string()]);
        words.extend(self.urls.iter().map(OsString::from));
        words
    }
}

/// How many data records say it how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    exact: u64,
    inferred: u64,
    none: u64,
}

impl Said {
    fn named(self) -> u64 {
        self.exact + self.inferred
    }

    #[track_caller]
    fn assert_named(self, percent: u64) {
        let all = self.named() + self.none;
        assert!(all > 0 && self.named() * 100 >= all * percent, "{self:?}");
    }
}

fn nonce(text: &[u8]) -> Option<&str> {
    let at = text.windows(6).position(|window| window == b"nonce-")?;
    str::from_utf8(text.get(at..at + "nonce-0000-0000".len())?).ok()
}

/// Counts the records, and fails on the first whose addresses are not those of the request in it.
fn judge(
    records: &Records,
    ends: &HashMap<String, Ends>,
    role: &str,
    key: impl Fn(&str) -> String,
) -> Result<Said, String> {
    let mut said = Said::default();
    // A connection has one name for life, also where a piece holds no nonce.
    let mut named: HashMap<&str, &Value> = HashMap::new();
    for record in records.kind("data") {
        let wrong = |what: String| Err(format!("{what} in {}", digest(record)));
        match record["connection"]["attribution"].as_str() {
            Some("exact") => said.exact += 1,
            Some("inferred") => said.inferred += 1,
            Some("none") => {
                said.none += 1;
                if record.get("network").is_some() {
                    return wrong("addresses of nothing".to_owned());
                }
                continue;
            }
            other => return wrong(format!("attribution {other:?}")),
        }
        let id = record["connection"]["id"].as_str().unwrap_or_default();
        let first = named.entry(id).or_insert(&record["network"]);
        if **first != record["network"] {
            return wrong(format!("two pairs of addresses, {first} before"));
        }
        if record["connection"]["role"] != role {
            return wrong(format!("not the {role}"));
        }
        let bytes = content(record)?;
        let Some(nonce) = nonce(&bytes) else {
            continue;
        };
        let Some(Ends { server, client }) = ends.get(&key(nonce)) else {
            return wrong(format!("{nonce} reached no server"));
        };
        let (local, peer) = if role == "client" {
            (client, server)
        } else {
            (server, client)
        };
        for (end, expected) in [("local", local), ("peer", peer)] {
            let shown = shown(record, end)?;
            if shown != *expected {
                return wrong(format!("{nonce}: {end} is {expected}, not {shown},"));
            }
        }
        let (address, port) = (&record["server"]["address"], &record["server"]["port"]);
        if *address != server.ip().to_canonical().to_string() || *port != server.port() {
            return wrong(format!("the server is {server}, not {address} {port},"));
        }
    }
    Ok(said)
}

#[track_caller]
fn said(run: &Run, ends: &HashMap<String, Ends>, role: &str) -> Said {
    let records = run.records();
    records.check_ledger().unwrap();
    let said = judge(&records, ends, role, str::to_owned);
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    println!("{said:?}");
    said
}

/// A client of `connections` at once that asks 1,000 times in all. Returns what was said of them.
#[track_caller]
fn client(test: &'static str, kind: &str, programs: &[&str], connections: u64) -> Option<Said> {
    let lab = Lab::with(test, programs)?;
    let servers = Servers::start(&lab, test)?;
    let requests = scaled("requests", 1000, 2 * connections).div_ceil(connections);
    let run = lab
        .agent()
        .run(servers.client(&lab, kind, connections, requests));
    run.success();
    let ends = servers.ends();
    assert_eq!(ends.len() as u64, requests * connections);
    if bare() {
        return None;
    }
    let said = said(&run, &ends, "client");
    assert!(
        said.named() + said.none >= 2 * requests * connections,
        "{said:?}"
    );
    Some(said)
}

/// A module of the system's Python.
fn has_module(test: &str, module: &str) -> bool {
    let mut python = Command::new(PYTHON);
    python.args(["-c", &format!("import {module}")]);
    let there = python.output().is_ok_and(|output| output.status.success());
    if !there {
        skip(test, &format!("no Python module {module}"));
    }
    there
}

#[test]
fn attribution_of_asyncio() {
    if let Some(said) = client("attribution_of_asyncio", "asyncio", &[], 8) {
        said.assert_named(99);
        assert_eq!(said.exact, 0, "memory BIOs use no socket");
    }
}

#[test]
fn attribution_of_uvloop() {
    let test = "attribution_of_uvloop";
    if has_module(test, "uvloop")
        && let Some(said) = client(test, "uvloop", &[], 8)
    {
        said.assert_named(99);
    }
}

#[test]
fn attribution_of_aiohttp() {
    let test = "attribution_of_aiohttp";
    if has_module(test, "aiohttp")
        && let Some(said) = client(test, "aiohttp", &[], 8)
    {
        said.assert_named(99);
    }
}

#[test]
fn attribution_of_httpx() {
    let test = "attribution_of_httpx";
    if has_module(test, "httpx")
        && let Some(said) = client(test, "httpx", &[], 8)
    {
        said.assert_named(99);
    }
}

#[test]
fn attribution_of_node() {
    if let Some(said) = client("attribution_of_node", "node", &["node"], 8) {
        said.assert_named(99);
    }
}

/// The client with ring, without its symbols.
fn rustls(lab: &Lab) -> Option<std::path::PathBuf> {
    lab.fixture("rustls-ring", "bin/stripped")
}

/// Records of each connection on whatever thread of tokio is free.
#[test]
fn attribution_of_rustls() {
    let test = "attribution_of_rustls";
    if Lab::new(test).is_none_or(|lab| rustls(&lab).is_none()) {
        return;
    }
    if let Some(said) = client(test, "rustls", &[], 8) {
        said.assert_named(99);
        assert_eq!(said.exact, 0, "no socket is used inside its calls");
    }
}

/// The client with the machine's OpenSSL, or with one of its own inside; without symbols.
fn native_tls(lab: &Lab, kind: &str) -> Option<std::path::PathBuf> {
    lab.fixture(kind, "bin/stripped")
}

/// On whatever thread of tokio is free. Its sockets are used inside the calls, though not in all: where tokio knows
/// that nothing has come, it does not ask.
#[test]
fn attribution_of_native_tls() {
    let test = "attribution_of_native_tls";
    for kind in ["native-tls", "native-tls-vendored"] {
        if Lab::new(test).is_none_or(|lab| native_tls(&lab, kind).is_none()) {
            return;
        }
        if let Some(said) = client(test, kind, &[], 8) {
            assert_eq!(said.inferred, 0, "{said:?}");
            said.assert_named(99);
        }
    }
}

/// Its sockets are used inside the calls. A kernel with full preemption leaves out a program that another task
/// on the processor is in the middle of (kernel/bpf/trampoline.c, `recursion_misses`), and so now and then the
/// socket of a connection's first call.
#[test]
fn attribution_of_threads() {
    if let Some(said) = client("attribution_of_threads", "threads", &[], 16) {
        assert_eq!(said.inferred, 0, "{said:?}");
        said.assert_named(99);
    }
}

/// Its own BIO around the socket.
#[test]
fn attribution_of_curl() {
    let test = "attribution_of_curl";
    let Some(lab) = Lab::with(test, &["curl"]) else {
        return;
    };
    let Some(servers) = Servers::start(&lab, test) else {
        return;
    };
    let mut words = argv!["curl", "-sk", "--http1.1", "--parallel", "--max-time", "60"];
    for number in 0..scaled("requests", 100, 20) as usize {
        let url = &servers.urls[number % servers.urls.len()];
        words.push(format!("{url}/nonce-{number:04}-0000").into());
    }
    let run = lab.agent().run(words);
    run.success();
    if bare() {
        return;
    }
    let said = said(&run, &servers.ends(), "client");
    assert_eq!((said.inferred, said.none), (0, 0), "{said:?}");
}

/// Many streams of HTTP/2 on each connection, by Node (in memory) and by curl (its own BIO). Which bytes are
/// whose is told by the bodies.
#[test]
fn attribution_of_http2() {
    let test = "attribution_of_http2";
    let Some(lab) = Lab::with(test, &["node", "curl"]) else {
        return;
    };
    if !has_ipv6(test) {
        return;
    }
    let (_server, urls) = http2_server(&lab);
    let program = lab.program("http2.mjs");
    let mut node = argv!["node", &program, "ask", "8", "125"];
    node.extend(urls.iter().map(OsString::from));
    let mut curl = argv!["curl", "-sk", "--http2", "--parallel", "--max-time", "60"];
    for number in 0..300 {
        // Behind those of Node, which has eight connections.
        let nonce = format!("nonce-{:04}-{:04}", 8 + number % 3, number);
        curl.push(format!("{}/{nonce}", urls[number % 3]).into());
    }
    let mut all = Vec::new();
    for client in [node, curl] {
        let run = lab.agent().run(client);
        run.success();
        let ends = ends(&lab.path("server.accepted"));
        if !bare() {
            all.push(said(&run, &ends, "client"));
        }
    }
    let ends = ends(&lab.path("server.accepted"));
    assert_eq!(ends.len(), 1300);
    if let [node, curl] = all[..] {
        node.assert_named(99);
        assert_eq!((curl.inferred, curl.none), (0, 0), "{curl:?}");
    }
}

/// On three addresses, and the process.
fn http2_server(lab: &Lab) -> (Proc, [String; 3]) {
    let (cert, key) = lab.certificate();
    let program = lab.program("http2.mjs");
    let hosts = ["127.0.0.1", "127.0.0.2", "::1"];
    let mut serve = argv!["node", program, "serve", &lab.dir, "server", cert, key];
    serve.extend(hosts.map(OsString::from));
    let server = lab.spawn(lab.command(serve), "server");
    let port = lab.port("server", &server);
    let urls = ["127.0.0.1", "127.0.0.2", "[::1]"].map(|host| format!("https://{host}:{port}"));
    (server, urls)
}

/// The same by rustls.
#[test]
fn attribution_of_rustls_http2() {
    let test = "attribution_of_rustls_http2";
    let Some(lab) = Lab::with(test, &["node"]) else {
        return;
    };
    let Some(rustls) = rustls(&lab).filter(|_| has_ipv6(test)) else {
        return;
    };
    posts(&lab, &rustls);
}

/// Eight connections with eight streams at once, by a program made of `requests.rs`.
#[track_caller]
fn posts(lab: &Lab, program: &Path) -> Option<Said> {
    let (_server, urls) = http2_server(lab);
    let mut words = argv![program, "post", "8", "125"];
    words.extend(urls.iter().map(OsString::from));
    let run = lab.agent().run(words);
    run.success();
    let ends = ends(&lab.path("server.accepted"));
    assert_eq!(ends.len(), 1000);
    if bare() {
        return None;
    }
    let said = said(&run, &ends, "client");
    said.assert_named(99);
    Some(said)
}

/// The same by native-tls.
#[test]
fn attribution_of_native_tls_http2() {
    let test = "attribution_of_native_tls_http2";
    for kind in ["native-tls", "native-tls-vendored"] {
        let Some(lab) = Lab::with(test, &["node"]) else {
            return;
        };
        let Some(program) = native_tls(&lab, kind).filter(|_| has_ipv6(test)) else {
            return;
        };
        if let Some(said) = posts(&lab, &program) {
            assert_eq!(said.inferred, 0, "{said:?}");
        }
    }
}

/// Eight connections of gRPC, whose reads and writes are on whatever of its threads is free.
#[test]
fn attribution_of_grpcio() {
    let test = "attribution_of_grpcio";
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let Some(module) = lab.fixture("grpcio", "grpc").filter(|_| has_ipv6(test)) else {
        return;
    };
    let modules = module.parent().unwrap();
    let (cert, key) = lab.certificate();
    let program = lab.program("grpcio.py");
    let hosts = ["127.0.0.1", "127.0.0.2", "::1"];
    let mut words = argv![PYTHON, &program, "serve", &lab.dir, &cert, key];
    words.extend(hosts.map(OsString::from));
    let mut serve = lab.command(words);
    serve.env("PYTHONPATH", modules);
    let server = lab.spawn(serve, "grpcio");
    let port = lab.port("grpcio", &server);
    let requests = scaled("requests", 1000, 16).div_ceil(8);
    let mut ask = argv![PYTHON, program, "ask", cert, "8", requests.to_string()];
    let hosts = ["127.0.0.1", "127.0.0.2", "[::1]"];
    ask.extend(hosts.map(|host| OsString::from(format!("https://{host}:{port}"))));
    let run = lab.agent().env("PYTHONPATH", modules).run(ask);
    run.success();
    let ends = ends(&lab.path("grpcio.accepted"));
    assert_eq!(ends.len() as u64, 8 * requests);
    if !bare() {
        said(&run, &ends, "client").assert_named(99);
    }
}

/// Who moves the bytes of several connections in one go gives no evidence, and gets no name.
#[test]
fn attribution_of_those_who_can_not_be_told_apart() {
    let test = "attribution_of_those_who_can_not_be_told_apart";
    for kind in ["lockstep", "reverse", "prefetch", "shuffle", "handoff"] {
        println!("{kind}:");
        if let Some(said) = client(test, kind, &[], 8) {
            assert_eq!(said.named(), 0, "{kind}: {said:?}");
        }
    }
}

/// The agent's start is behind the handshakes: connections are joined in their middle.
#[test]
fn attribution_when_attached_late() {
    let test = "attribution_when_attached_late";
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let Some(servers) = Servers::start(&lab, test) else {
        return;
    };
    let mut command = lab.command(servers.client(&lab, "asyncio", 8, 1000));
    // Requests for several seconds.
    command.env("E2E_PAUSE", "0.004");
    let client = lab.spawn(command, "client");
    wait_for("the first requests", seconds(10), || {
        (servers.ends().len() >= 40).then_some(())
    });
    if bare() {
        return;
    }
    let running = lab.agent().watch(client.pid());
    assert_eq!(client.ended(), None, "too quick to be watched");
    let run = running.finish(seconds(60));
    said(&run, &servers.ends(), "client").assert_named(99);
}

/// An asyncio server with many clients.
#[test]
fn attribution_of_a_server() {
    let test = "attribution_of_a_server";
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let (server, port) = python_server(&lab, "serve");
    let running = lab.agent().watch_without_coverage(server.pid());
    running.wait_for_coverage(server.pid());
    let program = lab.program("connections.py");
    let url = format!("https://127.0.0.1:{port}");
    let words = argv![PYTHON, program, "threads", "50", "20", url];
    lab.finish(lab.command(words), "clients");
    let ends = ends(&lab.path("serve.accepted"));
    assert_eq!(ends.len(), 1000);
    if bare() {
        return;
    }
    wait_for("the records", seconds(20), || {
        (running.records().kind("data").count() >= 2000).then_some(())
    });
    running.process.signal(libc::SIGINT);
    let run = running.finish(seconds(20));
    said(&run, &ends, "server").assert_named(99);
}

/// TLS in TLS: the inner connections have the addresses of the outer ones, which lead to the relay.
#[test]
fn attribution_of_tls_in_tls() {
    let test = "attribution_of_tls_in_tls";
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let server = Server::start(&lab, "server", &[Ipv4Addr::LOCALHOST.into()]);
    let (_relay, port) = python_server(&lab, "relay");
    let run = lab.agent().run(argv![
        PYTHON,
        lab.program("connections.py"),
        "tunnel",
        "6",
        "30",
        format!("https://127.0.0.1:{port}"),
        server.url(Ipv4Addr::LOCALHOST, ""),
    ]);
    run.success();
    let ends = ends(&lab.path("relay.accepted"));
    assert_eq!((ends.len(), server.ends().len()), (6, 180));
    if bare() {
        return;
    }
    let of_connection = |nonce: &str| format!("{}-9999", &nonce[.."nonce-0000".len()]);
    let records = run.records();
    let said = judge(&records, &ends, "client", of_connection);
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    println!("{said:?}");
    // Both layers of each.
    assert!(said.named() + said.none >= 4 * 180, "{said:?}");
    said.assert_named(99);
}

/// `connections.py serve` or `relay`, listening.
fn python_server(lab: &Lab, kind: &'static str) -> (Proc, u16) {
    let (cert, key) = lab.certificate();
    let program = lab.program("connections.py");
    let words = argv![PYTHON, program, kind, &lab.dir, kind, cert, key];
    let process = lab.spawn(lab.command(words), kind);
    let port = lab.port(kind, &process);
    (process, port)
}

/// The server's name is the one that the client asked for.
#[test]
fn attribution_shows_the_servers_name() {
    let Some(lab) = Lab::with("attribution_shows_the_servers_name", &["curl"]) else {
        return;
    };
    let server = Server::start(&lab, "server", &[Ipv4Addr::LOCALHOST.into()]);
    let run = lab.agent().run(argv![
        "curl",
        "-sk",
        "--http1.1",
        "--resolve",
        format!("api.example.com:{}:127.0.0.1", server.port()),
        format!("https://api.example.com:{}/nonce-0000-0000", server.port()),
    ]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    assert_eq!(records.kind("data").count(), 2);
    for record in records.kind("data") {
        assert_eq!(record["server"]["address"], "api.example.com");
        assert_eq!(record["server"]["port"], server.port());
        assert_eq!(record["network"]["peer"]["address"], "127.0.0.1");
    }
}

/// The check above sees each wrong word.
#[test]
fn attribution_check_refuses_doctored_records() {
    let ends = Ends {
        server: "127.0.0.2:443".parse().unwrap(),
        client: "127.0.0.1:50000".parse().unwrap(),
    };
    let ends = HashMap::from([("nonce-0001-0002".to_owned(), ends)]);
    let text = "GET /nonce-0001-0002 ";
    let good = serde_json::json!({
        "kind": "data", "direction": "sent", "text": text, "length": text.len(),
        "connection": {"id": "c", "attribution": "inferred", "role": "client"},
        "network": {
            "transport": "tcp",
            "local": {"address": "127.0.0.1", "port": 50000},
            "peer": {"address": "127.0.0.2", "port": 443},
        },
        "server": {"address": "127.0.0.2", "port": 443},
    });
    let judge = |records| judge(&Records(records), &ends, "client", str::to_owned);
    let expected = Said {
        inferred: 1,
        ..Said::default()
    };
    assert_eq!(judge(vec![good.clone()]), Ok(expected));
    for (path, value, expected) in [
        ("/network/peer/address", Value::from("127.0.0.1"), "peer is"),
        ("/network/local/port", 50001.into(), "local is"),
        ("/connection/role", "server".into(), "not the client"),
        (
            "/connection/attribution",
            "none".into(),
            "addresses of nothing",
        ),
        ("/connection/attribution", "sure".into(), "attribution"),
        ("/server/address", "127.0.0.1".into(), "the server is"),
        ("/server/port", 80.into(), "the server is"),
        ("/text", "GET /nonce-0001-0003 ".into(), "reached no server"),
    ] {
        let mut record = good.clone();
        *record.pointer_mut(path).unwrap() = value;
        let error = judge(vec![record]).expect_err(path);
        assert!(error.contains(expected), "{path}: {error}");
    }
    let mut other = good.clone();
    other["network"]["peer"]["port"] = 444.into();
    other["text"] = "no request at all, no.".into();
    let error = judge(vec![good, other]).unwrap_err();
    assert!(error.contains("two pairs"), "{error}");
}

/// A session goes on over another socket, and nothing is closed: from the moment that its handle gets another
/// transport, the old one's name is wrong.
fn moved(test: &'static str, way: &str) {
    let Some(lab) = Lab::with(test, &["cc"]) else {
        return;
    };
    let run = lab.agent().run(argv![lab.compiled("move"), way]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    records.check_ledger().unwrap();
    let out = run.process.out();
    let ports: Vec<u64> = out
        .split_whitespace()
        .map(|port| port.parse().unwrap())
        .collect();
    let mut named = [0, 0];
    for data in records.kind("data") {
        let text = data["text"].as_str().unwrap_or_default();
        let second = usize::from(text.starts_with("second "));
        assert!(
            second == 1 || text.starts_with("first "),
            "{}",
            digest(data)
        );
        if data["connection"]["attribution"] == "none" {
            continue;
        }
        let server = match data["connection"]["role"].as_str() {
            Some("client") => "/network/peer/port",
            Some("server") => "/network/local/port",
            role => panic!("{role:?}: {}", digest(data)),
        };
        let port = data.pointer(server).and_then(Value::as_u64);
        assert_eq!(port, Some(ports[second]), "{}", digest(data));
        named[second] += 1;
    }
    println!("named: {named:?} of [48, 48]");
    assert!(named.iter().all(|&named| named > 24), "{named:?}");
}

#[test]
fn attribution_of_a_handle_that_moves() {
    moved("attribution_of_a_handle_that_moves", "both");
}

#[test]
fn attribution_of_a_handle_whose_halves_move() {
    moved("attribution_of_a_handle_whose_halves_move", "halves");
}

/// The socket is used inside of the handshake's calls alone, and on the server's side: its client keeps its bytes in
/// memory.
#[test]
fn attribution_by_the_handshake() {
    let Some(lab) = Lab::with("attribution_by_the_handshake", &["cc"]) else {
        return;
    };
    let run = lab.agent().run(argv![lab.compiled("ahead")]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    records.check_ledger().unwrap();
    let out = run.process.out();
    let mut ports = out.lines().map(|port| port.parse::<u64>().unwrap());
    let server = ports.next();
    let clients: Vec<u64> = ports.collect();
    let mut seen = [0, 0];
    for data in records.kind("data") {
        let text = data["text"].as_str().unwrap_or_default();
        let (word, number) = text.trim_end().split_once(' ').unwrap();
        let number: usize = number.parse().unwrap();
        let direction = if word == "request" {
            "received"
        } else {
            "sent"
        };
        if data["direction"] != direction {
            continue; // the client's
        }
        assert_eq!(
            data["connection"]["attribution"],
            "exact",
            "{}",
            digest(data)
        );
        assert_eq!(data["connection"]["role"], "server", "{}", digest(data));
        let port = |of: &str| {
            data.pointer(&format!("/network/{of}/port"))
                .and_then(Value::as_u64)
        };
        assert_eq!(port("local"), server, "{}", digest(data));
        assert_eq!(port("peer"), Some(clients[number]), "{}", digest(data));
        seen[usize::from(word == "answer")] += 1;
    }
    assert_eq!(seen, [clients.len(); 2]);
    assert_eq!(clients.len(), 12);
}
