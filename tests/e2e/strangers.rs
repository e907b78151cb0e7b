//! The whole machine is watched: processes that the agent did not start, and that it can't hold.
//!
//! A stranger's first use of a library that nobody has seen can't be caught in time. What is promised is
//! that each is complete, or said to be partial, or at least said to have been there.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{End, Lab, PYTHON, Proc, Run, Server, argv, kill, scaled, seconds, wait_for};
use crate::lifecycle::no_breakpoint_within;
use crate::proc::{breakpoints, half_of, tree};
use crate::records::{Connection, Records, Truth, compare, total};

/// How a stranger shows up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Seen {
    /// Every byte, and the records say so.
    Complete,
    /// Every byte, but the records don't dare say so.
    Cautious,
    /// The end of its streams, and the records say that the beginning is missing.
    Partial,
    /// No byte, but a coverage record says why.
    Said,
}

/// A client that has ended, as it was really.
struct Client {
    pid: u32,
    what: String,
    truth: Truth,
}

impl Client {
    /// An error if something is missing and nobody says so.
    fn judge(&self, records: &Records, connections: &[Connection]) -> Result<Seen, String> {
        let about = |kind| {
            let records = records.kind(kind);
            records.filter(|record| record["process"]["pid"] == self.pid)
        };
        let mine: Vec<_> = connections
            .iter()
            .filter(|connection| connection.pid == u64::from(self.pid))
            .collect();
        let connection = match mine[..] {
            [] => {
                let said = about("coverage").any(|coverage| coverage["status"] != "probed");
                return if said {
                    Ok(Seen::Said)
                } else {
                    Err("no byte, and no coverage that says why".to_owned())
                };
            }
            [one] => one,
            _ => return Err(format!("{} connections instead of one", mine.len())),
        };
        let [sent, received] =
            [&connection.sent, &connection.received].map(|stream| stream.bytes());
        let (Some(sent), Some(received)) = (sent, received) else {
            return Err("gaps, though nothing can have been lost".to_owned());
        };
        if !self.truth.sent.ends_with(&sent) || !self.truth.received.ends_with(&received) {
            return Err(format!(
                "what is shown is not the end of what was sent and received: {} of {}, {} of {}",
                sent.len(),
                self.truth.sent.len(),
                received.len(),
                self.truth.received.len()
            ));
        }
        let whole = sent == self.truth.sent && received == self.truth.received;
        let says_whole = |data: &Value| data["complete"] == true;
        let from_start = |data: &Value| data["connection"]["joined"] == "start";
        match whole {
            true if about("data").all(says_whole) => Ok(Seen::Complete),
            true => Ok(Seen::Cautious),
            false if about("data").any(|data| says_whole(data) || from_start(data)) => {
                Err(format!(
                    "silently short: {} of {}, {} of {}",
                    sent.len(),
                    self.truth.sent.len(),
                    received.len(),
                    self.truth.received.len()
                ))
            }
            false => Ok(Seen::Partial),
        }
    }
}

/// Judges each client, and prints how many there are of each kind.
#[track_caller]
fn judge(what: &str, records: &Records, clients: &[Client]) -> HashMap<Seen, usize> {
    let connections = records.connections().unwrap();
    let mut counts = HashMap::new();
    let mut wrong = Vec::new();
    for client in clients {
        match client.judge(records, &connections) {
            Ok(seen) => *counts.entry(seen).or_default() += 1,
            Err(error) => wrong.push(format!("{} ({}): {error}", client.what, client.pid)),
        }
    }
    println!("{what}: {} clients, {counts:?}", clients.len());
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    counts
}

/// The records of a run that was ended by SIGTERM: whole, and of nobody but these processes.
#[track_caller]
fn records_of(run: &Run, known: &[u32]) -> Records {
    run.success();
    let records = run.records();
    records.check_ledger().unwrap();
    for data in records.kind("data") {
        let pid = data["process"]["pid"].as_u64().unwrap() as u32;
        assert!(known.contains(&pid), "process {pid} is not of this test");
    }
    records
}

/// Nothing of the agent's own, nor of this program's.
#[track_caller]
fn assert_nothing_about(records: &Records, pids: &[u32]) {
    for record in &records.0 {
        let pid = record["process"]["pid"].as_u64();
        assert!(
            pids.iter().all(|&own| pid != Some(u64::from(own))),
            "our own process is recorded: {record}"
        );
    }
}

/// A curl that nobody waits for yet: sends and receives a body, with a header that names it.
fn curl(lab: &Lab, server: &Server<'_>, name: &str, library: Option<&Path>) -> Command {
    let mut command = lab.command(argv![
        "curl",
        "-sk",
        "--http1.1",
        "-o",
        "/dev/null",
        "-H",
        format!("x-name: {name}."),
        "--data-binary",
        format!("@{}", lab.path("body").display()),
        server.url("/echo")
    ]);
    if let Some(library) = library {
        command.env("LD_LIBRARY_PATH", library);
    }
    command
}

/// What the client of this name sent and received, as the server saw it.
#[track_caller]
fn client(name: &str, pid: u32, truth: &[Truth]) -> Client {
    let header = format!("x-name: {name}.\r\n").into_bytes();
    let has_header = |truth: &&Truth| truth.sent.windows(header.len()).any(|part| part == header);
    let found: Vec<_> = truth.iter().filter(has_header).collect();
    assert_eq!(found.len(), 1, "connections of {name}");
    Client {
        pid,
        what: name.to_owned(),
        truth: found[0].clone(),
    }
}

/// Many short processes, one after the other and at once; some have a libssl that nobody has seen.
#[test]
#[ignore = "watches the whole machine: in a virtual machine only, by `cargo xtask vm`"]
fn strangers_short_lived() {
    let lab = Lab::alone("strangers_short_lived");
    let count = scaled("curls in a row", 300, 12);
    let fresh = scaled("curls with a fresh library", 50, 5);
    let at_once = scaled("curls at once", 60, 20);
    let server = lab.server(&[]);
    lab.file("body", "some bytes of a body. ".repeat(1000));
    let library = |name: &str| lab.private_libssl(&format!("library of {name}"));
    let running = lab.agent().watch_machine(server.pid());

    let mut started = HashMap::new();
    let one_by_one = |name: &str, library: Option<&Path>| {
        let process = lab.finish(curl(&lab, &server, name, library), "curl");
        process.pid()
    };
    for number in 0..count {
        let name = format!("usual-{number}");
        let pid = one_by_one(&name, None);
        started.insert(name, pid);
    }
    for number in 0..fresh {
        let name = format!("fresh-{number}");
        let pid = one_by_one(&name, Some(&library(&name)));
        started.insert(name, pid);
    }
    let crowd: Vec<(String, Proc)> = (0..at_once)
        .map(|number| {
            let name = format!("crowd-{number}");
            let library = (number % 5 == 4).then(|| library(&name));
            let command = curl(&lab, &server, &name, library.as_deref());
            let process = lab.spawn(command, &name);
            (name, process)
        })
        .collect();
    for (name, process) in crowd {
        assert_eq!(process.wait(seconds(60)), End::Code(0), "{name}");
        started.insert(name, process.pid());
    }

    let own = tree(running.process.pid());
    let truth = server.client_truth();
    assert_eq!(truth.len() as u64, count + fresh + at_once);
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));

    let mut known: Vec<u32> = started.values().copied().collect();
    known.push(server.pid());
    let records = records_of(&run, &known);
    assert_nothing_about(&records, &[own, vec![std::process::id()]].concat());
    let of = |prefix: &str| -> Vec<Client> {
        let named = started.iter().filter(|(name, _)| name.starts_with(prefix));
        named
            .map(|(name, &pid)| client(name, pid, &truth))
            .collect()
    };
    // The server has the usual library mapped since before: no byte of these may be missing.
    let usual = judge("usual library", &records, &of("usual"));
    let [complete, cautious] = [Seen::Complete, Seen::Cautious].map(|seen| usual.get(&seen));
    let whole = complete.unwrap_or(&0) + cautious.unwrap_or(&0);
    assert_eq!(whole as u64, count, "whole streams");
    judge("fresh library", &records, &of("fresh"));
    judge("at once", &records, &of("crowd"));
    // And the other end of each, in one process that is older than the agent.
    let server_side: Vec<_> = records
        .connections()
        .unwrap()
        .into_iter()
        .filter(|connection| connection.pid == u64::from(server.pid()))
        .collect();
    compare(&server_side, &server.truth(), &[]).unwrap_or_else(|error| panic!("{error}"));
}

/// The privileged half is late, as on a busy machine: when it looks, the clients are gone, and one of
/// them took its library with it. Later there are more of them than the kernel keeps.
#[test]
#[ignore = "watches the whole machine: in a virtual machine only, by `cargo xtask vm`"]
fn strangers_gone_before_a_look() {
    let lab = Lab::alone("strangers_gone_before_a_look");
    let server = lab.server(&[]);
    lab.file("body", "a body");
    let running = lab.agent().watch_machine(server.pid());
    let half = half_of(running.process.pid()).expect("a privileged half") as i32;
    let mut started = HashMap::new();
    kill(half, libc::SIGSTOP);
    for name in ["usual", "kept", "deleted"] {
        let library = (name != "usual").then(|| lab.private_libssl(name));
        let process = lab.finish(curl(&lab, &server, name, library.as_deref()), name);
        started.insert(name, process.pid());
        if name == "deleted" {
            fs::remove_dir_all(lab.path(name)).unwrap();
        }
    }
    kill(half, libc::SIGCONT);
    // A later process of the library that is still there finds its probes in place.
    let kept = lab.path("kept");
    wait_for("coverage of the library", seconds(10), || {
        let records = running.records();
        let path = kept.join("libssl.so.3");
        let is_of =
            |record: &Value| record["library"]["path"].as_str().map(Path::new) == Some(&path);
        records.kind("coverage").any(is_of).then_some(())
    });
    let process = lab.finish(curl(&lab, &server, "later", Some(&kept)), "later");
    started.insert("later", process.pid());
    let truth = server.client_truth();
    // So many that the kernel can't keep them all for the half: that is said, and who lives on is found.
    kill(half, libc::SIGSTOP);
    let many = "n=0; while [ $n -lt 1500 ]; do /usr/bin/true; n=$((n + 1)); done";
    lab.finish(lab.command(argv!["sh", "-c", many]), "many");
    let frames = lab.server_named("frames", Command::new(PYTHON), &["--mode", "frames"]);
    let alive = Program::start("strangers_alive", &frames, &["late"], true);
    alive.arrives("late.here");
    kill(half, libc::SIGCONT);
    // What was lost is told with the next happening of the same processor.
    lab.finish(lab.command(argv!["sh", "-c", many]), "more");
    running.wait_for_coverage(alive.pid());
    alive.lab.file("late.go", "");
    alive.ends();

    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));
    let said = run.process.err();
    assert!(said.contains("could not tell of all mappings"), "{said}");
    let known = [server.pid(), frames.pid(), alive.pid()];
    let known: Vec<u32> = started.values().copied().chain(known).collect();
    let records = records_of(&run, &known);
    let of = |name: &'static str| client(name, started[name], &truth);
    let usual = judge("usual library", &records, &[of("usual")]);
    assert!(
        usual.contains_key(&Seen::Complete) || usual.contains_key(&Seen::Cautious),
        "bytes of a probed library are missing"
    );
    for name in ["kept", "deleted"] {
        let seen = judge(name, &records, &[of(name)]);
        assert!(seen.contains_key(&Seen::Said), "{name}: {seen:?}");
    }
    let later = judge("later", &records, &[of("later")]);
    assert!(later.contains_key(&Seen::Complete), "{later:?}");
    let connections = records.connections().unwrap();
    let of_alive = |connection: &&Connection| connection.pid == u64::from(alive.pid());
    let found: Vec<_> = connections.iter().filter(of_alive).cloned().collect();
    compare(&found, &alive.truth("late"), &[]).unwrap_or_else(|error| panic!("{error}"));
}

/// A program of `mix.c` or Python with truth files of its own.
struct Program {
    lab: Lab,
    process: Proc,
}

impl Program {
    fn start(test: &'static str, server: &Server<'_>, options: &[&str], library: bool) -> Self {
        let lab = Lab::alone(test);
        let base = |option: &str| format!("{option}={}", lab.path(option).display());
        let mut words = argv![
            lab.compiled("mix"),
            server.port.to_string(),
            "largest=70000"
        ];
        words.extend(options.iter().map(|option| match *option {
            "late" | "stay" => base(option).into(),
            option => option.into(),
        }));
        let mut command = lab.command(words);
        if library {
            command.env("LD_LIBRARY_PATH", lab.private_libssl("private"));
        }
        let process = lab.spawn(command, "mix");
        Self { lab, process }
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    #[track_caller]
    fn arrives(&self, file: &str) {
        wait_for(file, seconds(20), || {
            assert_eq!(self.process.ended(), None, "{}", self.process.err());
            self.lab.path(file).exists().then_some(())
        });
    }

    #[track_caller]
    fn ends(&self) {
        let end = self.process.wait(seconds(30));
        assert_eq!(end, End::Code(0), "{}", self.process.err());
    }

    fn truth(&self, name: &str) -> Vec<Truth> {
        self.lab.truth(name)
    }
}

/// One connection of a process that then becomes another program.
const THEN_EXEC: &str = "
import os, socket, ssl, struct, sys
with ssl._create_unverified_context().wrap_socket(
        socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)) as tls:
    up, down = b'before exec ' * 1000, 5000
    tls.sendall(struct.pack('>QQ', len(up), down) + up)
    data = b''
    while len(data) < down:
        data += tls.recv(4000)
base = os.path.join(os.environ['E2E_DIR'], 'python-0.')
open(base + 'received', 'wb').write(data)
open(base + 'sent', 'wb').write(struct.pack('>QQ', len(up), down) + up)
os.execv(sys.argv[2], sys.argv[2:])
";

/// The same connections from their other end.
fn swapped(truth: &[Truth]) -> Vec<Truth> {
    truth.iter().cloned().map(Truth::swapped).collect()
}

/// Old processes and connections, a deleted library, fork, exec; and an end by SIGTERM while two of
/// them live on.
#[test]
#[ignore = "watches the whole machine: in a virtual machine only, by `cargo xtask vm`"]
fn machine_wide() {
    let lab = Lab::alone("machine_wide");
    let server = lab.server(&["--mode", "frames"]);
    let old = Program::start("machine_wide_old", &server, &["late", "stay"], false);
    let deleted = Program::start("machine_wide_deleted", &server, &["late", "stay"], true);
    for program in [&old, &deleted] {
        program.arrives("late.here");
    }
    let library = deleted.lab.path("private/libssl.so.3");
    fs::remove_file(&library).unwrap();
    let running = lab.agent().watch_machine(server.pid());
    for program in [&old, &deleted] {
        running.wait_for_coverage(program.pid());
        program.lab.file("late.go", "");
    }
    for program in [&old, &deleted] {
        program.arrives("stay.here");
    }
    let forked = Program::start("machine_wide_fork", &server, &["fork"], false);
    forked.ends();
    let exec = {
        let lab = Lab::alone("machine_wide_exec");
        let script = lab.file("then_exec.py", THEN_EXEC);
        let port = server.port.to_string();
        let mix = argv![lab.compiled("mix"), &port, "largest=70000"];
        let command = lab.command([argv![PYTHON, script, &port], mix].concat());
        let process = lab.spawn(command, "exec");
        Program { lab, process }
    };
    exec.ends();

    let libssl = fs::canonicalize(crate::harness::libssl()).unwrap();
    let probed = [
        (server.pid(), &libssl),
        (old.pid(), &libssl),
        (deleted.pid(), &library),
    ];
    for (pid, file) in probed {
        assert!(!breakpoints(pid, file).is_empty(), "no probe in {pid}");
    }
    let own = tree(running.process.pid());
    running.process.signal(libc::SIGTERM);
    let run = running.finish(seconds(20));
    for (pid, file) in probed {
        no_breakpoint_within(seconds(10), pid, file);
    }
    for program in [&old, &deleted] {
        program.lab.file("stay.go", "");
        program.ends();
    }

    run.success();
    let records = run.records();
    assert_nothing_about(&records, &[own, vec![std::process::id()]].concat());
    let (at_server, at_clients): (Vec<_>, Vec<_>) = records
        .connections()
        .unwrap()
        .into_iter()
        .partition(|connection| connection.pid == u64::from(server.pid()));
    let late = [old.truth("late"), deleted.truth("late")].concat();
    let after_exec = [exec.truth("python"), exec.truth("mix")].concat();
    let [parent, child] = ["mix", "child"].map(|name| forked.truth(name).remove(0));
    let clients = [&*late, &*after_exec, &[parent.clone(), child.clone()]].concat();
    compare(&at_clients, &clients, &[]).unwrap_or_else(|error| panic!("clients: {error}"));
    let both = Truth {
        name: "parent and child".to_owned(),
        sent: [parent.sent, child.sent].concat(),
        received: [parent.received, child.received].concat(),
    };
    let at_other_end = swapped(&[&*late, &*after_exec, &[both]].concat());
    compare(&at_server, &at_other_end, &[]).unwrap_or_else(|error| panic!("server: {error}"));
    let seen = records.check_ledger().unwrap();
    assert_eq!(seen, total(&clients) + total(&at_other_end));

    for data in records.kind("data") {
        let pid = data["process"]["pid"].as_u64().unwrap() as u32;
        if [old.pid(), deleted.pid()].contains(&pid) {
            assert_eq!(data["connection"]["joined"], "middle", "{data}");
            assert_eq!(data["complete"], false, "{data}");
        }
        if [forked.pid(), exec.pid()].contains(&pid) {
            assert_eq!(data["connection"]["joined"], "start", "{data}");
            assert_eq!(data["complete"], true, "{data}");
        }
    }
    // After exec it is another program under the same id.
    let comms: HashSet<&str> = records
        .kind("data")
        .filter(|data| data["process"]["pid"] == exec.pid())
        .filter_map(|data| data["process"]["comm"].as_str())
        .collect();
    assert_eq!(comms, HashSet::from(["python3", "mix"]));
}

/// The judge of the tests above, on doctored records.
mod judge_of_clients {
    use serde_json::json;

    use super::*;

    /// A client that sent "abcdef" and got "xyz", and these records about it.
    fn judge(records: &[Value]) -> Result<Seen, String> {
        let client = Client {
            pid: 7,
            what: String::new(),
            truth: Truth {
                name: String::new(),
                sent: b"abcdef".to_vec(),
                received: b"xyz".to_vec(),
            },
        };
        let records = Records(records.to_vec());
        let connections = records.connections()?;
        client.judge(&records, &connections)
    }

    fn data(direction: &str, text: &str, joined: &str) -> Value {
        json!({
            "kind": "data", "direction": direction, "offset": 0, "length": text.len(), "text": text,
            "connection": {"id": "c", "joined": joined}, "process": {"pid": 7},
            "complete": joined == "start",
        })
    }

    fn coverage(pid: u32, status: &str) -> Value {
        json!({"kind": "coverage", "status": status, "process": {"pid": pid}})
    }

    #[test]
    fn what_is_said_is_accepted() {
        let whole = |joined| {
            [
                data("sent", "abcdef", joined),
                data("received", "xyz", joined),
            ]
        };
        assert_eq!(judge(&whole("start")), Ok(Seen::Complete));
        assert_eq!(judge(&whole("middle")), Ok(Seen::Cautious));
        assert_eq!(judge(&[data("sent", "def", "middle")]), Ok(Seen::Partial));
        assert_eq!(judge(&[coverage(7, "unknown")]), Ok(Seen::Said));
    }

    #[test]
    fn silence_is_refused() {
        for records in [
            vec![],
            vec![coverage(7, "probed")],
            vec![coverage(8, "unknown")],
            vec![data("sent", "abcdef", "start")],
            vec![
                data("sent", "def", "start"),
                data("received", "xyz", "start"),
            ],
            vec![data("sent", "abc", "middle")],
            vec![data("sent", "ghi", "middle")],
            vec![data("received", "yz", "start"), coverage(7, "partly")],
        ] {
            assert!(judge(&records).is_err(), "{records:?}");
        }
        let mut claims = data("sent", "def", "middle");
        claims["complete"] = true.into();
        assert!(judge(&[claims]).is_err());
    }
}
