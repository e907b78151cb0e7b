//! Between which two ends a connection was, compared with what the server's sockets say.
//!
//! Each request has a path of its own and each answer repeats it, both in one TLS record: every data
//! record tells by its content which request's addresses it must show.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Lab, PYTHON, Proc, Run, argv, bare, seconds, skip, wait_for};
use crate::records::{Records, content, digest, number, string};

pub(crate) const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The two ends of the connection of a request, as the server has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) server: SocketAddr,
    pub(crate) client: SocketAddr,
}

/// A running `nonce_server.py`.
pub(crate) struct Server<'a> {
    process: Proc,
    port: u16,
    name: &'static str,
    lab: &'a Lab,
}

impl<'a> Server<'a> {
    /// Listens at each host, on the same port.
    #[track_caller]
    pub(crate) fn start(lab: &'a Lab, name: &'static str, hosts: &[IpAddr]) -> Server<'a> {
        let mut command = Command::new(PYTHON);
        command.arg(lab.program("nonce_server.py"));
        command.args(lab.server_args(name));
        command.args(hosts.iter().map(IpAddr::to_string));
        let process = lab.spawn(command, name);
        let port = lab.port(name, &process);
        Server {
            process,
            port,
            name,
            lab,
        }
    }

    pub(crate) fn url(&self, host: impl Into<IpAddr>, nonce: &str) -> String {
        format!(
            "https://{}/{nonce}",
            SocketAddr::new(host.into(), self.port)
        )
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn ends(&self) -> HashMap<String, Ends> {
        ends(&self.lab.path(&format!("{}.accepted", self.name)))
    }
}

/// What a server wrote down: the ends of each request by its nonce.
pub(crate) fn ends(log: &Path) -> HashMap<String, Ends> {
    let end = |address: &str, port: &str| {
        let address: IpAddr = address.parse().unwrap();
        SocketAddr::new(address.to_canonical(), port.parse().unwrap())
    };
    let mut ends = HashMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [path, local, local_port, peer, peer_port] = words[..] else {
            panic!("{line}")
        };
        let nonce = path.trim_start_matches('/').to_owned();
        let both = Ends {
            server: end(local, local_port),
            client: end(peer, peer_port),
        };
        assert_eq!(ends.insert(nonce, both), None, "a nonce is used once");
    }
    ends
}

fn curl(more: impl IntoIterator<Item = String>) -> Vec<OsString> {
    let mut command = argv!["curl", "-sk", "--http1.1", "--max-time", "30"];
    command.extend(more.into_iter().map(OsString::from));
    command
}

/// Runs curl once for each URL, all below one agent.
#[track_caller]
fn run_each(lab: &Lab, urls: impl IntoIterator<Item = String>) -> Run {
    let script = "for url; do curl -sk --http1.1 --max-time 30 \"$url\" || exit 1; done";
    let mut command = argv!["sh", "-c", script, "sh"];
    command.extend(urls.into_iter().map(OsString::from));
    lab.agent().run(command)
}

/// Which end of the connections the traced process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

pub(crate) fn shown(record: &Value, end: &str) -> Result<SocketAddr, String> {
    let address = string(record, &format!("/network/{end}/address"))?;
    // As text: a v4-mapped address must be printed as IPv4.
    let ip: IpAddr = address.parse().map_err(|_| format!("{address}: no IP"))?;
    if ip != ip.to_canonical() || ip.to_string() != address {
        return Err(format!("{address} is not how this address is written"));
    }
    let port = number(record, &format!("/network/{end}/port"))?;
    Ok(SocketAddr::new(ip, port.try_into().map_err(|_| "no port")?))
}

/// Every data record shows the ends of its request's connection, and every request was seen both ways.
fn check(records: &Records, ends: &HashMap<String, Ends>, side: Side) -> Result<(), String> {
    let mut seen: HashMap<(&str, String), usize> = HashMap::new();
    for record in records.kind("data") {
        let text = content(record)?;
        let text = String::from_utf8_lossy(&text);
        let mut nonces = ends.keys().filter(|nonce| text.contains(nonce.as_str()));
        let (Some(nonce), None) = (nonces.next(), nonces.next()) else {
            return Err(format!("not one nonce in {}", digest(record)));
        };
        let wrong = |what: String| Err(format!("{nonce}: {what} in {}", digest(record)));
        if record["connection"]["attribution"] != "exact" {
            return wrong("attribution is not exact".to_owned());
        }
        if record["network"]["transport"] != "tcp" {
            return wrong("transport is not tcp".to_owned());
        }
        let Ends { server, client } = ends[nonce];
        let (local, peer) = match side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        for (end, expected) in [("local", local), ("peer", peer)] {
            let shown = shown(record, end)?;
            if shown != expected {
                return wrong(format!("{end} is {expected}, not {shown},"));
            }
        }
        *seen
            .entry((nonce, string(record, "/direction")?))
            .or_default() += 1;
    }
    for nonce in ends.keys() {
        for direction in ["sent", "received"] {
            let key = (nonce.as_str(), direction.to_owned());
            match seen.get(&key) {
                Some(1) => {}
                count => return Err(format!("{nonce} {direction}: {count:?} records")),
            }
        }
    }
    Ok(())
}

/// `nonces` were asked for and each has its right addresses.
#[track_caller]
fn assert_client(run: &Run, servers: &[&Server<'_>], nonces: usize) {
    run.success();
    let ends: HashMap<_, _> = servers.iter().flat_map(|server| server.ends()).collect();
    assert_eq!(ends.len(), nonces, "{ends:?}");
    if bare() {
        return;
    }
    let records = run.records();
    check(&records, &ends, Side::Client).unwrap_or_else(|error| panic!("{error}"));
    records.check_ledger().unwrap();
}

pub(crate) fn has_ipv6(test: &str) -> bool {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
    if let Err(error) = &listener {
        skip(test, &format!("no [::1]: {error}"));
    }
    listener.is_ok()
}

/// The same port at two addresses, and another one: neither port nor address alone tells them apart.
#[test]
fn addresses_of_ipv4() {
    let Some(lab) = Lab::with("addresses_of_ipv4", &["curl"]) else {
        return;
    };
    let one = Ipv4Addr::LOCALHOST;
    let both = Server::start(&lab, "both", &[one.into(), TWO.into()]);
    let other = Server::start(&lab, "other", &[one.into()]);
    let urls = [
        both.url(one, "nonce-a1"),
        both.url(TWO, "nonce-b2"),
        other.url(one, "nonce-c3"),
        both.url(one, "nonce-d4"),
    ];
    assert_client(&run_each(&lab, urls), &[&both, &other], 4);
}

#[test]
fn addresses_of_ipv6() {
    let test = "addresses_of_ipv6";
    let Some(lab) = Lab::with(test, &["curl"]) else {
        return;
    };
    if !has_ipv6(test) {
        return;
    }
    let (one, six) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let both = Server::start(&lab, "both", &[one.into(), six.into()]);
    let urls = [
        both.url(six, "nonce-a1"),
        both.url(one, "nonce-b2"),
        both.url(six, "nonce-c3"),
    ];
    assert_client(&run_each(&lab, urls), &[&both], 3);
    let ends = both.ends();
    assert!(ends["nonce-a1"].client.is_ipv6() && ends["nonce-b2"].client.is_ipv4());
}

/// A client's IPv6 socket to an IPv4 address.
#[test]
fn addresses_of_a_mapped_client() {
    let test = "addresses_of_a_mapped_client";
    let Some(lab) = Lab::with(test, &["curl"]) else {
        return;
    };
    if !has_ipv6(test) {
        return;
    }
    let server = Server::start(&lab, "server", &[Ipv4Addr::LOCALHOST.into()]);
    let url = server.url(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), "nonce-a1");
    let run = lab.agent().run(curl([url]));
    assert_client(&run, &[&server], 1);
    assert_eq!(server.ends()["nonce-a1"].server.ip(), Ipv4Addr::LOCALHOST);
}

/// The server's own side: one IPv6 socket that takes both, so that IPv4 comes v4-mapped.
#[test]
fn addresses_of_a_dual_stack_server() {
    let test = "addresses_of_a_dual_stack_server";
    let Some(lab) = Lab::with(test, &["curl"]) else {
        return;
    };
    if !has_ipv6(test) {
        return;
    }
    let server = Server::start(&lab, "server", &[Ipv6Addr::UNSPECIFIED.into()]);
    let running = lab.agent().watch(server.process.pid());
    let hosts: [IpAddr; 3] = [
        Ipv4Addr::LOCALHOST.into(),
        TWO.into(),
        Ipv6Addr::LOCALHOST.into(),
    ];
    for (host, name) in hosts.iter().zip(["a1", "b2", "c3"]) {
        let words = curl([server.url(*host, &format!("nonce-{name}"))]);
        lab.finish(lab.command(words), &format!("curl-{name}"));
    }
    let log = fs::read_to_string(lab.path("server.accepted")).unwrap();
    assert!(log.contains("::ffff:127.0.0.2"), "not v4-mapped: {log}");
    let ends = server.ends();
    assert_eq!(ends.len(), 3);
    if bare() {
        return;
    }
    // Each request has two records.
    wait_for("the records", seconds(10), || {
        (running.records().kind("data").count() >= 6).then_some(())
    });
    running.process.signal(libc::SIGINT);
    let run = running.finish(seconds(20));
    check(&run.records(), &ends, Side::Server).unwrap_or_else(|error| panic!("{error}"));
}

/// Sockets of one process, open at the same time.
#[test]
fn addresses_of_two_sockets_in_turn() {
    let Some(lab) = Lab::with("addresses_of_two_sockets_in_turn", &["curl"]) else {
        return;
    };
    assert_eq!(two_sockets(&lab, &[]), 3, "connections are kept");
}

/// Their calls come between one another on one thread.
#[test]
fn addresses_of_two_sockets_in_parallel() {
    let Some(lab) = Lab::with("addresses_of_two_sockets_in_parallel", &["curl"]) else {
        return;
    };
    assert!(two_sockets(&lab, &["--parallel"]) >= 3);
}

/// Each is closed after its answer: the library's object of the next one may have the same address.
#[test]
fn addresses_after_a_handle_is_used_again() {
    let Some(lab) = Lab::with("addresses_after_a_handle_is_used_again", &["curl"]) else {
        return;
    };
    let close = ["--no-sessionid", "--header", "connection: close"];
    assert_eq!(two_sockets(&lab, &close), 12);
}

/// Twelve requests of one curl to three servers. Returns the number of connections.
#[track_caller]
fn two_sockets(lab: &Lab, options: &[&str]) -> usize {
    let one = Ipv4Addr::LOCALHOST;
    let both = Server::start(lab, "both", &[one.into(), TWO.into()]);
    let other = Server::start(lab, "other", &[one.into()]);
    let mut words: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    for turn in 0..4 {
        words.push(both.url(one, &format!("nonce-{turn}a")));
        words.push(both.url(TWO, &format!("nonce-{turn}b")));
        words.push(other.url(one, &format!("nonce-{turn}c")));
    }
    let run = lab.agent().run(curl(words));
    assert_client(&run, &[&both, &other], 12);
    let ends = [both.ends(), other.ends()];
    let connections: HashSet<Ends> = ends.iter().flat_map(HashMap::values).copied().collect();
    connections.len()
}

/// The check above sees each wrong word.
#[test]
fn addresses_check_refuses_doctored_records() {
    let ends = |server: &str| Ends {
        server: server.parse().unwrap(),
        client: "127.0.0.1:50000".parse().unwrap(),
    };
    let ends = HashMap::from([("nonce-a".to_owned(), ends("127.0.0.2:443"))]);
    let record = |direction: &str, text: &str| {
        serde_json::json!({
            "kind": "data", "direction": direction, "text": text, "length": text.len(),
            "connection": {"id": "c", "attribution": "exact"},
            "network": {
                "transport": "tcp",
                "local": {"address": "127.0.0.1", "port": 50000},
                "peer": {"address": "127.0.0.2", "port": 443},
            },
        })
    };
    let good = || {
        vec![
            record("sent", "GET /nonce-a "),
            record("received", "/nonce-a"),
        ]
    };
    check(&Records(good()), &ends, Side::Client).unwrap();
    check(&Records(good()), &ends, Side::Server).unwrap_err();
    for (path, value, expected) in [
        ("/network/peer/address", Value::from("127.0.0.1"), "peer is"),
        ("/network/peer/port", 444.into(), "peer is"),
        ("/network/local/port", 50001.into(), "local is"),
        ("/network/local/address", "::1".into(), "local is"),
        (
            "/network/local/address",
            "::ffff:127.0.0.1".into(),
            "how this address",
        ),
        ("/network", Value::Null, "transport"),
        ("/connection/attribution", "none".into(), "attribution"),
        ("/text", "GET /nonce-b ".into(), "not one nonce"),
        ("/direction", "received".into(), "records"),
    ] {
        let mut records = good();
        *records[0].pointer_mut(path).unwrap() = value;
        let error = check(&Records(records), &ends, Side::Client).expect_err(path);
        assert!(error.contains(expected), "{path}: {error}");
    }
    let error = check(&Records(good()[..1].to_vec()), &ends, Side::Client).unwrap_err();
    assert!(error.contains("nonce-a received"), "{error}");
}
