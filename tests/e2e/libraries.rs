//! One test for each way in which programs use a TLS library.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::harness::{
    Agent, Lab, PYTHON, Run, argv, bare, free_port, libssl, random, scaled, seconds, skip,
    wait_for, which,
};
use crate::proc::breakpoints;
use crate::records::{self, Connection, Truth, compare, total};
use crate::unclaimed::{places_of, take_out};

/// A client of `http_client.py`, `python` being the interpreter.
#[track_caller]
fn python_client(lab: &Lab, python: impl AsRef<std::ffi::OsStr>, client: &str) {
    let server = lab.server(&[]);
    let program = lab.program("http_client.py");
    let run = lab.agent().run(argv![
        python.as_ref(),
        program,
        client,
        server.port.to_string()
    ]);
    run.assert_exact(&server.client_truth());
}

/// A C program that speaks frames to the server and writes its own truth under `name`.
#[track_caller]
fn frames_client(lab: &Lab, program: &str, name: &str, options: &[&str]) -> Run {
    let server = lab.server(&["--mode", "frames"]);
    let mut command = argv![lab.compiled(program), server.port.to_string()];
    command.extend(options.iter().map(Into::into));
    let run = lab.agent().run(command);
    run.success();
    let truth = lab.truth(name);
    records::same(&truth, &server.client_truth()).unwrap();
    run.assert_exact(&truth);
    run
}

/// A C program that has both ends in one process.
#[track_caller]
fn both_ends(lab: &Lab, program: &str, options: &[&str]) {
    let mut command = argv![lab.compiled(program)];
    command.extend(options.iter().map(Into::into));
    let run = lab.agent().run(command);
    run.success();
    run.assert_exact(&both_truths(lab));
}

/// The truth of both ends, which must agree.
#[track_caller]
fn both_truths(lab: &Lab) -> Vec<Truth> {
    let (mut clients, servers) = (lab.truth("client"), lab.truth("server"));
    let swapped: Vec<_> = servers.iter().cloned().map(Truth::swapped).collect();
    records::same(&clients, &swapped).unwrap();
    clients.extend(servers);
    clients
}

#[test]
fn python_requests() {
    let Some(lab) = Lab::new("python_requests") else {
        return;
    };
    if !has_module("requests") {
        return skip("python_requests", "python3-requests is not installed");
    }
    python_client(&lab, PYTHON, "requests");
}

#[test]
fn python_asyncio() {
    let Some(lab) = Lab::new("python_asyncio") else {
        return;
    };
    python_client(&lab, PYTHON, "asyncio");
}

#[test]
fn python_aiohttp() {
    let Some(lab) = Lab::new("python_aiohttp") else {
        return;
    };
    if !has_module("aiohttp") {
        return skip("python_aiohttp", "python3-aiohttp is not installed");
    }
    python_client(&lab, PYTHON, "aiohttp");
}

fn has_module(name: &str) -> bool {
    let mut python = Command::new(PYTHON);
    python
        .args(["-c", &format!("import {name}")])
        .stderr(Stdio::null());
    python.status().is_ok_and(|status| status.success())
}

/// OpenSSL linked into the program; its exports don't call the internal functions.
#[test]
fn node_fetch() {
    let Some(lab) = Lab::with("node_fetch", &["node"]) else {
        return;
    };
    let server = lab.server(&[]);
    let run = lab.agent().run(argv![
        "node",
        lab.program("fetch.mjs"),
        server.port.to_string()
    ]);
    run.assert_exact(&server.client_truth());
}

/// BoringSSL inside a program without symbols, which works in memory.
#[test]
fn bun_fetch() {
    let Some(lab) = Lab::new("bun_fetch") else {
        return;
    };
    let Some(bun) = lab.fixture("bun", "bin/bun") else {
        return;
    };
    let server = lab.server(&[]);
    let program = lab.program("fetch.mjs");
    let run = lab
        .agent()
        .run(argv![bun, program, server.port.to_string()]);
    run.assert_exact(&server.client_truth());
    assert_known(&run, "BoringSSL", "inferred", server.port);
}

/// rustls in all four: each provider, with symbols and without. In a virtual machine, where only the kernel is
/// another one, in the first.
#[track_caller]
fn rustls_clients(test: &'static str, client: impl Fn(&Lab, &std::path::Path)) {
    let programs = [
        ("rustls-ring", "bin/stripped"),
        ("rustls-ring", "bin/client"),
        ("rustls-aws-lc-rs", "bin/stripped"),
        ("rustls-aws-lc-rs", "bin/client"),
    ];
    let count = scaled("programs", programs.len() as u64, 1) as usize;
    for (provider, name) in &programs[..count] {
        let Some(lab) = Lab::new(test) else {
            return;
        };
        let Some(program) = lab.fixture(provider, name) else {
            return;
        };
        client(&lab, &program);
    }
}

/// What a program made of `requests.rs` asks of a server, whose port is returned: bodies in both directions, answers
/// in pieces.
#[track_caller]
pub fn requests(lab: &Lab, program: &Path) -> (Run, u16) {
    let server = lab.server(&[]);
    let port = server.port.to_string();
    let run = lab.agent().run(argv![program, "requests", port, "200091"]);
    run.success();
    run.assert_exact(&server.client_truth());
    (run, server.port)
}

/// The same with bodies of 16 MiB. Where others need the processors the reader may be too slow for the ring: such a
/// hole is told, and all else is exact.
#[track_caller]
pub fn large_bodies(lab: &Lab, program: &Path) {
    let server = lab.server(&[]);
    let port = server.port.to_string();
    let size = scaled("bytes", 16 << 20, 1 << 20).to_string();
    let run = lab.agent().run(argv![program, "requests", port, size]);
    run.success();
    run.assert_accounted(&server.client_truth(), &["ring_full"]);
}

/// The same program without an event loop: two connections in turn, in one version of TLS; of holes the same holds.
#[track_caller]
pub fn blocking(lab: &Lab, program: &Path, version: &str) -> (Run, u16) {
    let server = lab.server(&["--mode", "frames"]);
    let port = server.port.to_string();
    let run = lab.agent().run(argv![program, "frames", port, version]);
    run.success();
    let truth = server.client_truth();
    assert_eq!(truth.len(), 2);
    run.assert_accounted(&truth, &["ring_full"]);
    (run, server.port)
}

/// Several buffers in one record.
#[test]
fn rustls_requests() {
    rustls_clients("rustls_requests", |lab, program| {
        let (run, port) = requests(lab, program);
        assert_known(&run, "rustls", "inferred", port);
    });
}

#[test]
fn rustls_large_bodies() {
    rustls_clients("rustls_large_bodies", large_bodies);
}

/// The objects of the two may have the same addresses: they are two.
#[test]
fn rustls_blocking() {
    for version in ["1.3", "1.2"] {
        rustls_clients("rustls_blocking", |lab, program| {
            blocking(lab, program, version);
        });
    }
}

/// A program that changes its keys in the middle of a connection goes on under another id; all of it is there, and
/// nothing twice, on eight connections at once.
#[test]
fn rustls_new_keys() {
    const TURNS: usize = 40;
    const KEYS: usize = 5;
    rustls_clients("rustls_new_keys", |lab, program| {
        let server = lab.server(&["--mode", "frames"]);
        let (port, turns, keys) = (server.port, TURNS.to_string(), KEYS.to_string());
        let client = argv![program, "turns", port.to_string(), "8", turns, keys, "0"];
        let run = lab.agent().run(client);
        run.success();
        let truth = server.client_truth();
        assert_eq!(truth.len(), 8);
        if bare() {
            return;
        }
        let records = run.records();
        let mut found = records.connections().unwrap();
        for truth in &truth {
            assert_eq!(take_chain(&mut found, truth), 1 + TURNS / KEYS);
        }
        assert_eq!(found, []);
        assert_eq!(records.check_ledger().unwrap(), total(&truth));
    });
}

/// Takes out those that say what the truth does, one behind the other; their number.
#[track_caller]
fn take_chain(found: &mut Vec<Connection>, truth: &Truth) -> usize {
    let (mut sent, mut received) = (&truth.sent[..], &truth.received[..]);
    for links in 0.. {
        if sent.is_empty() && received.is_empty() {
            return links;
        }
        let lengths = |one: &Connection| -> Option<[usize; 2]> {
            let bytes = [one.sent.bytes()?, one.received.bytes()?];
            let fits = sent.starts_with(&bytes[0]) && received.starts_with(&bytes[1]);
            fits.then_some(bytes.map(|bytes| bytes.len()))
        };
        let next = found.iter().enumerate();
        let next = next.filter_map(|(at, one)| Some((lengths(one)?, at)));
        // Of several it is the longest: a short one may begin as it does.
        let Some((lengths, at)) = next.max() else {
            let left = [sent.len(), received.len()];
            panic!("{}: {left:?} bytes are left after {links}", truth.name);
        };
        found.remove(at);
        sent = &sent[lengths[0]..];
        received = &received[lengths[1]..];
    }
    unreachable!()
}

/// While probes are placed again they are there twice. Nothing of what others encrypt and decrypt meanwhile is.
#[test]
fn rustls_while_probes_move() {
    let test = "rustls_while_probes_move";
    let Some(lab) = Lab::new(test).filter(|_| !bare()) else {
        return;
    };
    let Some(program) = lab.fixture("rustls-ring", "bin/stripped") else {
        return;
    };
    let private = lab.path("private");
    std::fs::copy(program, &private).unwrap();
    let busy = lab.server_named("busy", Command::new(PYTHON), &["--mode", "frames"]);
    let robbed = lab.server_named("robbed", Command::new(PYTHON), &["--mode", "frames"]);
    let turns = |server: &crate::harness::Server<'_>, rest: &str| {
        format!("'{}' turns {} {rest}", private.display(), server.port)
    };
    let script = format!(
        "{} & busy=$!; {} & wait $! && wait $busy",
        turns(&busy, "2 400 0 10"),
        turns(&robbed, "1 300 0 10")
    );
    let running = lab.agent().start(argv!["sh", "-c", script]);
    let port = robbed.port.to_string();
    let pid = wait_for("the robbed client", seconds(20), || {
        let tree = crate::proc::tree(running.process.pid());
        let is_it = |pid: &u32| {
            let words = crate::proc::command_line(*pid);
            words[..]
                .first()
                .is_some_and(|word| Path::new(word) == private)
                && words.get(2) == Some(&port)
        };
        tree.into_iter().find(is_it)
    });
    wait_for("its first turns", seconds(20), || {
        let sent = std::fs::metadata(lab.path("robbed-0.sent")).ok()?;
        (sent.len() > 10_000).then_some(())
    });
    let probed = breakpoints(pid, &private);
    let sent = places_of("Sent", &private);
    take_out(pid, &private, |offset| sent.contains(&offset));
    assert!(breakpoints(pid, &private).len() < probed.len());
    wait_for("the breakpoints", seconds(20), || {
        (breakpoints(pid, &private) == probed).then_some(())
    });
    let run = running.finish(seconds(60));
    run.success();
    let said = run.process.err();
    assert_eq!(said.matches("they are placed again").count(), 1, "{said}");
    let truth = busy.client_truth();
    assert_eq!(truth.len(), 2);
    let records = run.records();
    let (of_robbed, of_busy): (Vec<_>, Vec<_>) = records
        .connections()
        .unwrap()
        .into_iter()
        .partition(|connection| connection.pid == u64::from(pid));
    compare(&of_busy, &truth, &[]).unwrap_or_else(|error| panic!("{error}"));
    // Who was robbed goes on as another one.
    assert_eq!(of_robbed.len(), 2);
    records.check_ledger().unwrap();
}

/// rustls and aws-lc-rs inside a program that is optimised for size and has no unwind entries.
#[test]
fn deno_fetch() {
    deno("deno_fetch", "deno");
}

/// One whose compiler put the encrypters before the decrypters, and counted a NUL.
#[test]
fn deno_2_5_fetch() {
    deno("deno_2_5_fetch", "deno-2.5");
}

#[track_caller]
fn deno(test: &'static str, name: &str) {
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let Some(deno) = lab.fixture(name, &format!("bin/{name}")) else {
        return;
    };
    let server = lab.server(&[]);
    let run = lab.agent().run(argv![
        deno,
        "run",
        "--quiet",
        "--allow-all",
        "--unsafely-ignore-certificate-errors",
        lab.program("fetch.mjs"),
        server.port.to_string()
    ]);
    run.success();
    run.assert_exact(&server.client_truth());
    assert_known(&run, "rustls", "inferred", server.port);
}

#[test]
fn gnutls_wget() {
    let Some(lab) = Lab::with("gnutls_wget", &["wget"]) else {
        return;
    };
    let server = lab.server(&[]);
    let body = lab.file("body", random(150_021, 5));
    let mut post = std::ffi::OsString::from("--post-file=");
    post.push(&body);
    let run = lab.agent().run(argv![
        "wget",
        "-q",
        "--no-check-certificate",
        "-O",
        lab.path("echo"),
        post,
        server.url("/echo")
    ]);
    run.assert_exact(&server.client_truth());
    assert!(
        lab.read("echo") == lab.read("body"),
        "the echo is not what was sent"
    );
    assert_known(&run, "GnuTLS", "exact", server.port);
}

/// The child of a child, through libcurl. It reads all of the answer before it finds that this is no
/// repository.
#[test]
fn gnutls_git() {
    const GIT: &str = "/usr/bin/git";
    let Some(lab) = Lab::with("gnutls_git", &["git"]) else {
        return;
    };
    if !std::path::Path::new(GIT).exists() {
        return skip("gnutls_git", "Debian's git is not installed");
    }
    let server = lab.server(&[]);
    let script = format!(
        "{GIT} -c http.sslVerify=false ls-remote {}; test $? = 128",
        server.url("/text/130003")
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    let truth = server.client_truth();
    assert!(truth[0].received.len() > 130_003);
    run.assert_exact(&truth);
    assert_known(&run, "GnuTLS", "exact", server.port);
}

/// Every way to write and to read. What a corked session takes is sent by a call inside another one, and comes
/// once; three sessions at one address are three connections.
#[test]
fn gnutls_every_call() {
    let Some(lab) = Lab::with("gnutls_every_call", &["cc"]) else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let port = server.port;
    let run = lab
        .agent()
        .run(argv![lab.compiled("gnutls"), port.to_string()]);
    run.success();
    let truth = lab.truth("gnutls");
    assert_eq!(truth.len(), 3);
    records::same(&truth, &server.client_truth()).unwrap();
    run.assert_exact(&truth);
    assert_known(&run, "GnuTLS", "exact", port);
}

/// Both ends through the library, on sockets that don't wait: writes of which a part is taken, reads and writes that
/// are to be repeated, peeks. Three connections, which may share an address.
#[track_caller]
fn ends(lab: &Lab, program: &Path, library: &str, agent: Agent<'_>) -> Run {
    let run = agent.run(argv![program]);
    run.success();
    let count = |kind: &str| -> u64 {
        let out = run.process.out();
        let count = out.lines().find_map(|line| line.strip_prefix(kind));
        count.expect(kind).trim().parse().unwrap()
    };
    for kind in ["want_read", "want_write"] {
        assert_ne!(
            count(kind),
            0,
            "no {kind} happened, so this test says nothing"
        );
    }
    assert_eq!(count("looked") != 0, matches!(library, "wolfSSL" | "NSS"));
    let truth = both_truths(lab);
    assert_eq!(truth.len(), 6);
    run.assert_exact(&truth);
    if bare() {
        return run;
    }
    // The client's port of a connection is the server's peer port, so each socket has two ends here.
    let records = run.records();
    let mut sockets = std::collections::BTreeSet::new();
    for record in records.kind("data") {
        assert_eq!(record["tls"]["library"]["name"], library, "{record:.300}");
        assert_eq!(
            record["connection"]["attribution"], "exact",
            "{record:.300}"
        );
        let [local, peer] = ["local", "peer"].map(|end| record["network"][end]["port"].as_u64());
        sockets.insert((local.unwrap(), peer.unwrap()));
    }
    assert_eq!(sockets.len(), 6, "{sockets:?}");
    assert!(
        sockets
            .iter()
            .all(|(local, peer)| sockets.contains(&(*peer, *local)))
    );
    run
}

#[test]
fn wolfssl_both_ends() {
    let Some(lab) = Lab::with("wolfssl_both_ends", &["cc"]) else {
        return;
    };
    ends(&lab, &lab.compiled("wolfssl"), "wolfSSL", lab.agent());
}

#[test]
fn mbedtls_both_ends() {
    let Some(lab) = Lab::with("mbedtls_both_ends", &["cc"]) else {
        return;
    };
    ends(&lab, &lab.compiled("mbedtls"), "Mbed TLS", lab.agent());
}

/// Its functions for files and sockets are the same; a peek is told from a read by an argument.
#[test]
fn nss_both_ends() {
    let Some(lab) = Lab::with("nss_both_ends", &["cc"]) else {
        return;
    };
    ends(&lab, &lab.compiled("nss"), "NSS", lab.agent());
}

/// s2n-tls inside a Python module; the probe for reads is below the export, on which the kernel refuses one.
#[test]
fn s2n_awscrt() {
    wheel("s2n_awscrt", "awscrt", "_awscrt.abi3.so", "s2n-tls");
}

/// BoringSSL inside a Python module, with symbols that are nobody else's.
#[test]
fn curl_cffi() {
    wheel("curl_cffi", "curl_cffi", "curl_cffi", "BoringSSL");
}

/// The client of `http_client.py` for a fixture, which has this file.
#[track_caller]
fn wheel(test: &'static str, fixture: &str, file: &str, library: &str) {
    let Some(lab) = Lab::new(test) else {
        return;
    };
    let Some(module) = lab.fixture(fixture, file) else {
        return;
    };
    let server = lab.server(&[]);
    let program = lab.program("http_client.py");
    let agent = lab.agent().env("PYTHONPATH", module.parent().unwrap());
    let port = server.port.to_string();
    let run = agent.run(argv![PYTHON, program, fixture, port]);
    run.assert_exact(&server.client_truth());
    assert_known(&run, library, "exact", server.port);
}

/// Both ends inside one Python process, in memory, on whatever thread of gRPC is free: calls of each kind through a
/// relay, which writes down what there is between them.
#[test]
fn grpcio_both_ends() {
    let Some(lab) = Lab::new("grpcio_both_ends") else {
        return;
    };
    let Some(module) = lab.fixture("grpcio", "grpc") else {
        return;
    };
    let relay = lab.server(&["--mode", "relay", "--to", "grpcio"]);
    let (cert, key) = lab.certificate();
    let program = lab.program("grpcio.py");
    let agent = lab.agent().env("PYTHONPATH", module.parent().unwrap());
    let run = agent.run(argv![
        PYTHON,
        program,
        "both",
        &lab.dir,
        cert,
        key,
        relay.url("")
    ]);
    run.success();
    let mut truth = relay.truth();
    assert_eq!(truth.len(), 1);
    truth.extend(relay.client_truth());
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    let port: u16 = String::from_utf8(lab.read("grpcio.port"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    for record in run.records().kind("data") {
        assert_eq!(
            record["tls"]["library"]["name"], "BoringSSL",
            "{record:.300}"
        );
        assert_eq!(
            record["connection"]["attribution"], "inferred",
            "{record:.300}"
        );
        let (end, expected) = match record["connection"]["role"].as_str() {
            Some("client") => ("peer", relay.port),
            Some("server") => ("local", port),
            role => panic!("{role:?}: {record:.300}"),
        };
        assert_eq!(record["network"][end]["port"], expected, "{record:.300}");
    }
}

/// A program with functions that nobody knows, stripped, and where two of them are.
struct Unknown {
    program: PathBuf,
    build_id: String,
    read: u64,
    write: u64,
}

impl Unknown {
    fn new(lab: &Lab) -> Self {
        Self::with(lab, "private", ["private_read", "private_write"])
    }

    fn with(lab: &Lab, program: &str, [read, write]: [&str; 2]) -> Self {
        let whole = lab.compiled(program);
        let tool = |name: &str, options: &[&str]| {
            let mut tool = Command::new(name);
            let output = tool.args(options).arg(&whole).output().expect(name);
            assert!(output.status.success(), "{name}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let program = lab.path("stripped");
        tool("strip", &["-o", program.to_str().unwrap()]);
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
        // LOAD, offset, address, …, flags "R E".
        let segments = tool("readelf", &["-lW"]);
        let code = segments.lines().find(|line| line.contains(" R E "));
        let words: Vec<_> = code.unwrap().split_whitespace().collect();
        let (offset, address) = (number(words[1]), number(words[2]));
        let symbols = tool("nm", &[]);
        let function = |name: &str| {
            let name = format!(" {name}");
            let line = symbols.lines().find(|line| line.ends_with(&name)).unwrap();
            number(line.split_whitespace().next().unwrap()) - address + offset
        };
        let notes = tool("readelf", &["-n"]);
        let id = notes
            .lines()
            .find_map(|line| line.split("Build ID: ").nth(1));
        Self {
            program,
            build_id: id.expect("a build id").trim().to_owned(),
            read: function(read),
            write: function(write),
        }
    }

    fn signature(&self, lab: &Lab, file: &str, read: u64) -> PathBuf {
        self.signature_with(lab, file, read, "fourth")
    }

    fn signature_with(&self, lab: &Lab, file: &str, read: u64, written: &str) -> PathBuf {
        let text = format!(
            "[[signature]]\nlibrary = \"private TLS\"\n{file}\n\
             read = [{{ name = \"private_read\", offset = {read}, count = \"returned\" }}]\n\
             write = [{{ name = \"private_write\", offset = {}, count = \"{written}\" }}]\n",
            self.write
        );
        lab.file("vortex.toml", text)
    }
}

#[test]
fn signature_by_path() {
    let Some(lab) = Lab::with("signature_by_path", &["cc"]) else {
        return;
    };
    let unknown = Unknown::new(&lab);
    let file = format!("path = \"{}/str*pped\"", lab.dir.display());
    let config = unknown.signature(&lab, &file, unknown.read);
    let agent = lab.agent().options(argv!["--config", config]);
    let run = ends(&lab, &unknown.program, "private TLS", agent);
    if bare() {
        return;
    }
    let records = run.records();
    let mut coverage = records.kind("coverage");
    let said = coverage.find(|record| record["library"]["name"] == "private TLS");
    let said = said.expect("a word of it");
    assert_eq!(said["status"], "probed", "{said}");
    assert!(said.to_string().contains("private_read"), "{said}");
}

#[test]
fn signature_by_build_id() {
    let Some(lab) = Lab::with("signature_by_build_id", &["cc"]) else {
        return;
    };
    let unknown = Unknown::new(&lab);
    let file = format!("build-id = \"{}\"", unknown.build_id);
    let config = unknown.signature(&lab, &file, unknown.read);
    let agent = lab.agent().options(argv!["--config", config]);
    ends(&lab, &unknown.program, "private TLS", agent);
}

/// Without a signature nothing of it is seen, and one that does not fit places no probe and is refused in words.
#[test]
fn signature_that_does_not_fit() {
    let Some(lab) = Lab::with("signature_that_does_not_fit", &["cc"]) else {
        return;
    };
    let unknown = Unknown::new(&lab);
    let run = lab.agent().run(argv![&unknown.program]);
    run.success();
    if bare() {
        return;
    }
    assert_eq!(run.records().kind("data").count(), 0);
    let file = format!("build-id = \"{}\"", unknown.build_id);
    let config = unknown.signature(&lab, &file, unknown.read + 1);
    let agent = lab.agent().options(argv!["--config", config]);
    let run = agent.run(argv![&unknown.program]);
    run.success();
    let records = run.records();
    assert_eq!(records.kind("data").count(), 0);
    let why =
        "the signature of \"private TLS\" does not fit: an offset is not where a function begins";
    let is_refused = records
        .kind("coverage")
        .any(|record| record["status"] == "refused" && record["reason"] == why);
    assert!(is_refused, "{}", records.digest());
}

/// Functions that send and receive what is encrypted already: nothing of it is shown, and the probes are gone while
/// the program goes on. The library that it really uses is seen as ever.
#[test]
fn withdrawn_for_what_sockets_move() {
    let Some(lab) = Lab::with("withdrawn_for_what_sockets_move", &["cc"]) else {
        return;
    };
    let why = "it sends or receives what is encrypted already";
    let withdrawn = withdrawn(&lab, "wire", ["wire_receive", "wire_send"], why);
    assert!(bare() || withdrawn > 0);
}

/// Functions that return checksums.
#[test]
fn withdrawn_for_what_calls_return() {
    let Some(lab) = Lab::with("withdrawn_for_what_calls_return", &["cc"]) else {
        return;
    };
    let why = "that is no number of bytes";
    assert_eq!(
        withdrawn(&lab, "digest", ["digest_received", "digest_sent"], why),
        0
    );
}

/// How many bytes were seen that are none of TLS.
#[track_caller]
fn withdrawn(lab: &Lab, mode: &str, functions: [&str; 2], why: &str) -> u64 {
    let unknown = Unknown::with(lab, "wire", functions);
    let file = format!("build-id = \"{}\"", unknown.build_id);
    let config = unknown.signature_with(lab, &file, unknown.read, "returned");
    let server = lab.server(&["--mode", "frames"]);
    let agent = lab.agent().options(argv!["--config", config]);
    let run = agent.run(argv![&unknown.program, server.port.to_string(), mode]);
    run.success();
    let truth = lab.truth("wire");
    records::same(&truth, &server.client_truth()).unwrap();
    if bare() {
        return 0;
    }
    // It ends when there is none any more.
    assert_eq!(run.process.out(), "probed 2\n");
    let records = run.records();
    let of =
        |record: &serde_json::Value, key: &str| record[key]["library"]["name"] == "private TLS";
    let coverage = records.kind("coverage");
    let said: Vec<_> = coverage
        .filter(|record| record["library"]["name"] == "private TLS")
        .collect();
    let last = said.last().expect("a word of it");
    assert_eq!(last["status"], "refused", "{last}");
    assert!(last["reason"].as_str().unwrap().ends_with(why), "{last}");
    let seen = records.check_ledger().unwrap();
    let (wrong, right): (Vec<_>, Vec<_>) = records
        .0
        .iter()
        .cloned()
        .partition(|record| of(record, "tls"));
    assert!(
        wrong.iter().all(|record| record["cause"] == "withdrawn"),
        "{wrong:?}"
    );
    let lengths = wrong.iter().map(|gap| gap["length"].as_u64().unwrap());
    let withdrawn = lengths.sum::<u64>();
    let connections = records::Records(right).connections().unwrap();
    compare(&connections, &truth, &[]).unwrap();
    assert_eq!(seen, records::total(&truth) + withdrawn);
    withdrawn
}

/// What one run finds the next one need not search, whatever has become of the file.
#[test]
fn kept_between_runs() {
    let Some(lab) = Lab::with("kept_between_runs", &["curl"]) else {
        return;
    };
    let directory = lab.path("cache");
    let kept = directory.join("found");
    let mut sizes = Vec::new();
    for (turn, name) in ["first", "second", "third", "fourth"]
        .into_iter()
        .enumerate()
    {
        let server = lab.server_named(name, Command::new(PYTHON), &[]);
        let agent = lab.agent().options(argv!["--cache-directory", &directory]);
        let url = server.url("/bytes/100001");
        let run = agent.run(argv!["curl", "-sk", "-o", "/dev/null", url]);
        run.assert_exact(&server.client_truth());
        if bare() {
            return;
        }
        let mut bytes = std::fs::read(&kept).unwrap();
        sizes.push(bytes.len());
        if turn == 1 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&kept, bytes).unwrap();
        }
    }
    assert!(sizes[0] > 100, "{sizes:?}");
    assert_eq!(
        sizes, [sizes[0]; 4],
        "nothing is kept twice, what was lost is kept again"
    );
}

/// Every piece says which library had it, and that it went to this port, as surely as can be expected.
#[track_caller]
pub(crate) fn assert_known(run: &Run, library: &str, attribution: &str, port: u16) {
    if bare() {
        return;
    }
    for record in run.records().kind("data") {
        assert_eq!(record["tls"]["library"]["name"], library, "{record:.300}");
        assert_eq!(
            record["connection"]["attribution"], attribution,
            "{record:.300}"
        );
        assert_eq!(record["network"]["peer"]["port"], port, "{record:.300}");
    }
}

/// TLS in TLS: calls nest on one thread, on two handles, and both streams are real.
#[test]
fn curl_through_https_proxy() {
    let Some(lab) = Lab::with("curl_through_https_proxy", &["curl"]) else {
        return;
    };
    let origin = lab.server(&[]);
    let proxy = lab.server_named("proxy", Command::new(PYTHON), &["--mode", "proxy"]);
    let body = lab.file("body", random(200_003, 3));
    let data = format!("@{}", body.display());
    let echo = lab.path("echo");
    let run = lab.agent().run(argv![
        "curl",
        "-sk",
        "--http1.1",
        "--proxy",
        proxy.url(""),
        "--proxy-insecure",
        "-o",
        &echo,
        "--data-binary",
        data,
        origin.url("/echo")
    ]);
    let mut truth = origin.client_truth();
    truth.extend(proxy.client_truth());
    assert_eq!(truth.len(), 2, "one connection in another");
    run.assert_exact(&truth);
    assert!(
        lab.read("echo") == lab.read("body"),
        "the echo is not what was sent"
    );
}

#[test]
fn c_bio_new_ssl_connect() {
    let Some(lab) = Lab::with("c_bio_new_ssl_connect", &["cc"]) else {
        return;
    };
    frames_client(&lab, "bio_connect", "bio", &[]);
}

/// Reads and writes of all four kinds, 1 B to 1 MB a call, with peeks and empty writes.
#[test]
fn c_every_call() {
    let Some(lab) = Lab::with("c_every_call", &["cc"]) else {
        return;
    };
    frames_client(&lab, "mix", "mix", &["rounds=2"]);
}

/// A call that says WANT_READ or WANT_WRITE has moved no bytes; its repetition has.
#[test]
fn c_retries() {
    let Some(lab) = Lab::with("c_retries", &["cc"]) else {
        return;
    };
    let run = frames_client(&lab, "mix", "mix", &["nonblock", "threads=4"]);
    for kind in ["want_read", "want_write"] {
        let out = run.process.out();
        let count = out
            .lines()
            .find_map(|line| line.strip_prefix(kind))
            .expect(kind);
        assert_ne!(
            count.trim(),
            "0",
            "no {kind} happened, so this test says nothing"
        );
    }
}

/// All of it fits into the ring, whatever the reader is doing.
#[test]
fn c_sixteen_threads() {
    let Some(lab) = Lab::with("c_sixteen_threads", &["cc"]) else {
        return;
    };
    frames_client(&lab, "mix", "mix", &["threads=16", "largest=16385"]);
}

/// The library comes by `dlopen`, after the program has run a while; it is a file nobody has seen.
#[test]
fn c_late_dlopen() {
    let Some(lab) = Lab::with("c_late_dlopen", &["cc"]) else {
        return;
    };
    let library = lab.private_libssl("private").join("libssl.so.3");
    frames_client(&lab, "late", "late", &["fd", library.to_str().unwrap()]);
}

/// The same without a socket, by memory BIOs: whose bytes those are is told by what the program moves.
#[test]
fn c_late_dlopen_in_memory() {
    let Some(lab) = Lab::with("c_late_dlopen_in_memory", &["cc"]) else {
        return;
    };
    let library = lab.private_libssl("private").join("libssl.so.3");
    let options = ["memory", library.to_str().unwrap()];
    let run = frames_client(&lab, "late", "late", &options);
    if bare() {
        return;
    }
    for record in run.records().kind("data") {
        assert_eq!(
            record["connection"]["attribution"], "inferred",
            "{record:.300}"
        );
    }
}

/// A library under a name that says nothing.
#[test]
fn another_name_of_a_library() {
    let Some(lab) = Lab::with("another_name_of_a_library", &["cc"]) else {
        return;
    };
    let library = lab.path("letter.txt");
    std::fs::copy(libssl(), &library).unwrap();
    let library = library.to_str().unwrap();
    let run = frames_client(&lab, "late", "late", &["fd", library]);
    if bare() {
        return;
    }
    let records = run.records();
    let mut coverage = records.kind("coverage");
    assert!(coverage.any(|record| record["library"]["path"] == library));
}

/// A program without symbols, under the name of a library that it does not have.
#[test]
fn another_name_of_a_program() {
    let Some(lab) = Lab::new("another_name_of_a_program") else {
        return;
    };
    let Some(program) = lab.fixture("rustls-ring", "bin/stripped") else {
        return;
    };
    let renamed = lab.path("libssl.so.3");
    std::fs::copy(program, &renamed).unwrap();
    let server = lab.server(&[]);
    let port = server.port.to_string();
    let run = lab.agent().run(argv![renamed, "requests", port, "200091"]);
    run.assert_exact(&server.client_truth());
    assert_known(&run, "rustls", "inferred", server.port);
}

#[test]
fn early_data_both_ways() {
    let Some(lab) = Lab::with("early_data_both_ways", &["cc"]) else {
        return;
    };
    both_ends(&lab, "early", &[]);
}

/// Two `SSL_MODE_ASYNC` jobs paused inside their calls, a third connection in between.
#[test]
fn paused_async_jobs() {
    let Some(lab) = Lab::with("paused_async_jobs", &["cc"]) else {
        return;
    };
    both_ends(&lab, "async_job", &[]);
}

/// Behind seccomp's strict mode, which kills for every call but four.
#[test]
fn sealed_by_seccomp() {
    let Some(lab) = Lab::with("sealed_by_seccomp", &["cc"]) else {
        return;
    };
    both_ends(&lab, "sealed", &[]);
}

/// Coroutines that give way inside their BIO callback, the second stack below the first.
#[test]
fn swapped_contexts_downwards() {
    if let Some(lab) = swapping_lab("swapped_contexts_downwards") {
        swapped(&lab, "down");
    }
}

/// The same with the second stack above the first: the kernel would forget the return probe of the call
/// that is still open below.
#[test]
fn swapped_contexts_upwards() {
    if let Some(lab) = swapping_lab("swapped_contexts_upwards") {
        swapped(&lab, "up");
    }
}

/// With other links than sessions a return probe kills such a program (README).
fn swapping_lab(test: &'static str) -> Option<Lab> {
    let lab = Lab::with(test, &["cc"])?;
    let check = Command::new(Agent::path()).arg("load-check").output();
    let text = String::from_utf8(check.unwrap().stdout).unwrap();
    if !bare() && !text.contains("call_session: ok") {
        skip(test, "this kernel has no session links");
        return None;
    }
    Some(lab)
}

/// The program lives. What the first coroutine writes is seen, what the second one writes meanwhile is
/// not, and the records say so. A libssl of its own: other agents have other links.
#[track_caller]
fn swapped(lab: &Lab, order: &str) {
    const SIZE: usize = 3000;
    let run = lab
        .agent()
        .env("LD_LIBRARY_PATH", lab.private_libssl("private"))
        .run(argv![lab.compiled("swap"), order]);
    run.success();
    let mut truth = both_truths(lab);
    assert_eq!(truth[1].name, "client-1");
    // The main stack writes the last piece when no call is open.
    truth[1].sent.drain(..20 * SIZE);
    assert_eq!(truth[1].sent.len(), SIZE);
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    let records = run.records();
    let unmatched = &records.last_stats().unwrap()["ledger"]["calls"]["unmatched"];
    assert_eq!(unmatched["other_stack"], 20, "{unmatched}");
    // By connection: is what it sent complete so far?
    let mut complete: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for record in records.kind("data") {
        if record["direction"] == "sent" {
            let id = record["connection"]["id"].as_str().unwrap();
            let is_complete = record["complete"] == true;
            complete.entry(id).or_default().push(is_complete);
        }
    }
    let [first, second] = [21, 1].map(|count| {
        let mut all = complete.values();
        all.find(|records| records.len() == count).unwrap()
    });
    assert!(first[0], "nothing was missing then");
    assert!(!second[0], "20 writes are missing");
    let reason = records.kind("coverage").any(|record| {
        let reason = record["reason"].as_str().unwrap_or_default();
        record["status"] == "partly" && reason.contains("another stack")
    });
    assert!(reason, "{}", records.digest());
}

/// A program that the filter turns away gets no return probe: it may do what it likes.
#[test]
fn swapping_bystander() {
    let Some(lab) = swapping_lab("swapping_bystander") else {
        return;
    };
    let private = lab.private_libssl("private");
    let server = lab.server(&["--mode", "frames"]);
    let meeting = lab.path("meeting");
    let stay = format!("stay={}", meeting.display());
    let port = server.port.to_string();
    let running =
        lab.agent()
            .env("LD_LIBRARY_PATH", &private)
            .start(argv![lab.compiled("mix"), port, stay]);
    wait_for("the watched client", seconds(20), || {
        lab.path("meeting.here").exists().then_some(())
    });
    for order in ["up", "down"] {
        let mut swap = lab.command(argv![lab.compiled("swap"), order]);
        swap.env("LD_LIBRARY_PATH", &private);
        lab.finish(swap, order);
    }
    lab.file("meeting.go", "");
    let run = running.finish(seconds(20));
    run.assert_exact(&lab.truth("mix"));
    if bare() {
        return;
    }
    let records = run.records();
    let calls = &records.last_stats().unwrap()["ledger"]["calls"];
    // 21 writes by each client, and at least as many reads by each server.
    assert!(calls["filtered"].as_u64() >= Some(2 * 42), "{calls}");
}

/// Calls that `longjmp` left open don't stop the capture of the thread, wherever its next call lies.
#[test]
fn abandoned_calls() {
    let Some(lab) = Lab::with("abandoned_calls", &["cc"]) else {
        return;
    };
    let run = lab.agent().run(argv![lab.compiled("abandon")]);
    run.success();
    let mut truth = both_truths(&lab);
    truth.retain(|truth| truth.len() > 0);
    assert_eq!(truth.len(), 2);
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    let records = run.records();
    let unmatched = &records.last_stats().unwrap()["ledger"]["calls"]["unmatched"];
    let [abandoned, exited] = ["abandoned", "exited"].map(|cause| unmatched[cause].as_u64());
    assert_eq!(
        abandoned.zip(exited).map(|(a, e)| a + e),
        Some(10),
        "{unmatched}"
    );
}

/// Python's own TLS server, watched from its start.
#[test]
fn python_server() {
    let Some(lab) = Lab::with("python_server", &["curl"]) else {
        return;
    };
    python_server_by(&lab, PYTHON.as_ref());
}

#[track_caller]
fn python_server_by(lab: &Lab, python: &std::ffi::OsStr) {
    let mut command = argv![python, lab.program("server.py"), "--connections", "3"];
    command.extend(lab.server_args("server"));
    let running = lab.agent().start(command);
    let port = lab.port("server", &running.process);
    for turn in 0..3 {
        let body = lab.file("body", random(70_000 + turn, turn as u64));
        let data = format!("@{}", body.display());
        let url = format!("https://127.0.0.1:{port}/echo");
        lab.finish(
            lab.command(argv![
                "curl",
                "-sk",
                "--http1.1",
                "-o",
                lab.path("echo"),
                "--data-binary",
                data,
                url
            ]),
            "curl",
        );
        assert!(
            lab.read("echo") == lab.read("body"),
            "the echo is not what was sent"
        );
    }
    let run = running.finish(seconds(30));
    let truth = lab.truth("server");
    assert_eq!(truth.len(), 3);
    run.assert_exact(&truth);
}

/// nginx with two workers, which its master forks.
#[test]
fn nginx_server() {
    let Some(lab) = Lab::new("nginx_server") else {
        return;
    };
    if let Some((run, truth)) = nginx(&lab, "") {
        run.assert_exact(&truth);
    }
}

/// Files go from the kernel's cache through the kernel's TLS: heads are shown, each body is a hole of its
/// length, and what comes behind it has its right place.
#[test]
#[ignore = "needs kTLS, a kernel module: in a virtual machine only, by `cargo xtask vm`"]
fn nginx_sends_files_by_the_kernel() {
    let lab = Lab::alone("nginx_sends_files_by_the_kernel");
    let (run, truth) = nginx(&lab, "sendfile on; ssl_conf_command Options KTLS;").unwrap();
    run.assert_accounted(&truth, &["sendfile"]);
    let records = run.records();
    let connections = records.connections().unwrap();
    for (turn, truth) in truth.iter().enumerate() {
        let found = connections.iter().find(|found| found.agrees(truth));
        let missing: u64 = found.unwrap().gaps().map(|(_, _, length)| length).sum();
        assert_eq!(missing, (LARGE + put_size(turn) + SMALL.len()) as u64);
    }
}

const LARGE: usize = 700_001;
const SMALL: &str = "small\n";

/// Each connection puts a file of another length.
fn put_size(turn: usize) -> usize {
    100_000 + turn
}

/// Four connections, each with a file that it puts and gets and two more that it gets; and what nginx sent
/// and received.
#[track_caller]
fn nginx(lab: &Lab, directives: &str) -> Option<(Run, Vec<Truth>)> {
    let nginx = which("nginx").or_else(|| lab.fixture("nginx", "bin/nginx"))?;
    let port = free_port();
    let (cert, key) = lab.certificate();
    for dir in ["www", "temp"] {
        std::fs::create_dir(lab.path(dir)).unwrap();
    }
    lab.file("www/large", random(LARGE, 4));
    lab.file("www/small", SMALL);
    let dir = lab.dir.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/temp/{kind};\n"))
        .concat();
    let config = lab.file(
        "nginx.conf",
        format!(
            "user root; daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log stderr;
             events {{ }}
             http {{
                 access_log off;
                 {directives}
                 {temp}
                 server {{
                     listen 127.0.0.1:{port} ssl reuseport;
                     ssl_certificate {};
                     ssl_certificate_key {};
                     root {dir}/www;
                     client_max_body_size 10m;
                     dav_methods PUT;
                 }}
             }}\n",
            cert.display(),
            key.display()
        ),
    );
    let running = lab
        .agent()
        .start(argv![nginx, "-p", &lab.dir, "-e", "stderr", "-c", config]);
    wait_for("nginx to listen", seconds(20), || {
        if let Some(end) = running.process.ended() {
            panic!("nginx ended: {end:?}\n{}", running.process.err());
        }
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    for turn in 0..4 {
        let (name, put) = (
            format!("client{turn}"),
            format!("PUT /put{turn} {}", put_size(turn)),
        );
        let get = format!("GET /put{turn}");
        let recorder = lab.program("recorder.py");
        lab.finish(
            lab.command(argv![
                PYTHON,
                recorder,
                &lab.dir,
                &name,
                port.to_string(),
                put,
                "GET /large",
                get,
                "GET /small"
            ]),
            &name,
        );
    }
    // nginx ends well on SIGTERM, which the agent passes on.
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));
    let truth: Vec<_> = (0..4)
        .flat_map(|turn| lab.truth(&format!("client{turn}")))
        .map(Truth::swapped)
        .collect();
    assert_eq!(truth.len(), 4);
    Some((run, truth))
}

#[test]
fn openssl_1_1_1_curl() {
    let Some(lab) = Lab::new("openssl_1_1_1_curl") else {
        return;
    };
    fixture_curl(&lab, "openssl-1.1.1");
}

#[test]
fn openssl_3_5_curl() {
    let Some(lab) = Lab::new("openssl_3_5_curl") else {
        return;
    };
    fixture_curl(&lab, "openssl-3.5");
}

#[track_caller]
fn fixture_curl(lab: &Lab, tree: &str) {
    let Some(curl) = lab.fixture(tree, "bin/curl") else {
        return;
    };
    let server = lab.server(&[]);
    let data = format!("@{}", lab.file("body", random(300_145, 6)).display());
    let echo = lab.path("echo");
    let run = lab.agent().run(argv![
        curl,
        "-sk",
        "--http1.1",
        "-o",
        &echo,
        "--data-binary",
        data,
        server.url("/echo")
    ]);
    run.assert_exact(&server.client_truth());
    assert!(
        lab.read("echo") == lab.read("body"),
        "the echo is not what was sent"
    );
}

#[test]
fn openssl_1_1_1_s_client() {
    let Some(lab) = Lab::new("openssl_1_1_1_s_client") else {
        return;
    };
    fixture_s_client(&lab, "openssl-1.1.1");
}

#[test]
fn openssl_3_5_s_client() {
    let Some(lab) = Lab::new("openssl_3_5_s_client") else {
        return;
    };
    fixture_s_client(&lab, "openssl-3.5");
}

#[track_caller]
fn fixture_s_client(lab: &Lab, tree: &str) {
    let Some(openssl) = lab.fixture(tree, "bin/openssl") else {
        return;
    };
    let server = lab.server(&["--mode", "frames", "--frames", "1"]);
    let mut frame = [40_001_u64, 50_003].map(u64::to_be_bytes).concat();
    frame.extend(random(40_001, 8));
    let stdin = lab.file("stdin", frame);
    let address = format!("127.0.0.1:{}", server.port);
    let run = lab
        .agent()
        .stdin(&stdin)
        .run(argv![openssl, "s_client", "-quiet", "-connect", address]);
    run.assert_exact(&server.client_truth());
}

/// The four calls of 1.1.1, by `dlopen` of a copy.
#[test]
fn openssl_1_1_1_dlopen() {
    let Some(lab) = Lab::with("openssl_1_1_1_dlopen", &["cc"]) else {
        return;
    };
    let dir = "root/usr/lib/x86_64-linux-gnu";
    let Some(crypto) = lab.fixture("openssl-1.1.1", &format!("{dir}/libcrypto.so.1.1")) else {
        return;
    };
    let ssl = lab.path("libssl.so.1.1");
    std::fs::copy(crypto.with_file_name("libssl.so.1.1"), &ssl).unwrap();
    frames_client(
        &lab,
        "late",
        "late",
        &["fd", crypto.to_str().unwrap(), ssl.to_str().unwrap()],
    );
}

/// `SSL_write_ex` calls `SSL_write_ex2` there: each byte once all the same.
#[test]
fn openssl_3_5_python_client() {
    let Some(lab) = Lab::new("openssl_3_5_python_client") else {
        return;
    };
    let Some(python) = lab.fixture("openssl-3.5", "bin/python3") else {
        return;
    };
    python_client(&lab, python, "http.client");
}

#[test]
fn openssl_3_5_python_asyncio() {
    let Some(lab) = Lab::new("openssl_3_5_python_asyncio") else {
        return;
    };
    let Some(python) = lab.fixture("openssl-3.5", "bin/python3") else {
        return;
    };
    python_client(&lab, python, "asyncio");
}

#[test]
fn openssl_3_5_python_server() {
    let Some(lab) = Lab::with("openssl_3_5_python_server", &["curl"]) else {
        return;
    };
    let Some(python) = lab.fixture("openssl-3.5", "bin/python3") else {
        return;
    };
    python_server_by(&lab, python.as_os_str());
}
