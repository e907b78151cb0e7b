//! TLS by libraries that nobody knows: each process that speaks it is named, with whom and why it is not seen; and
//! nobody is named whose plaintext was there.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Lab, PYTHON, Run, argv, bare, free_port, seconds, wait_for, which};
use crate::proc::breakpoints;
use crate::records::{Records, content};

const NAME: &str = "api.example.com";

/// Coverage without a file: TLS that was noticed on a socket.
fn noticed(records: &Records) -> Vec<Value> {
    let coverage = records.kind("coverage");
    coverage
        .filter(|record| record["library"].is_null())
        .cloned()
        .collect()
}

/// There is no other.
#[track_caller]
fn the_one(records: &Records) -> Value {
    let noticed = noticed(records);
    let [one] = &noticed[..] else {
        panic!("{} instead of one: {noticed:?}", noticed.len());
    };
    one.clone()
}

/// One, and this is what it says.
#[track_caller]
fn assert_noticed(run: &Run, address: &str, port: u16, reason: &str) {
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let one = &the_one(&records);
    assert_eq!(one["status"], "unknown", "{one}");
    assert_eq!(one["reason"], reason, "{one}");
    assert_eq!(one["network"]["peer"]["address"], address, "{one}");
    assert_eq!(one["network"]["peer"]["port"], port, "{one}");
    assert_eq!(one["server"]["address"], NAME, "{one}");
    assert_eq!(one["connection"]["role"], "client", "{one}");
    let path = one["process"]["executable"]["path"].as_str().unwrap();
    assert!(path.ends_with("/unknown"), "{one}");
    // The agent may show what the server saw of it. Of the client it has nothing.
    let client = &one["process"]["pid"];
    let mut data = records.kind("data");
    assert!(data.all(|data| data["process"]["pid"] != *client));
}

#[test]
fn unclaimed_client_of_ipv4() {
    let Some(lab) = Lab::with("unclaimed_client_of_ipv4", &["cc"]) else {
        return;
    };
    let server = lab.server(&[]);
    let client = lab.compiled("unknown");
    let port = server.port.to_string();
    let run = lab.agent().run(argv![client, "127.0.0.1", port, NAME]);
    let reason = "its TLS library is not known";
    assert_noticed(&run, "127.0.0.1", server.port, reason);
}

#[test]
fn unclaimed_client_of_ipv6() {
    let Some(lab) = Lab::with("unclaimed_client_of_ipv6", &["cc", "openssl"]) else {
        return;
    };
    let port = free_port();
    let script = format!(
        "exec openssl s_server -quiet -www -accept '[::1]:{port}' -cert \"$E2E_CERT\" -key \"$E2E_KEY\""
    );
    let server = lab.command(argv!["sh", "-c", script]);
    let _server = lab.spawn(server, "s_server");
    let address = ("::1", port);
    wait_for("the server", seconds(10), || {
        std::net::TcpStream::connect(address).ok()
    });
    let client = lab.compiled("unknown");
    let run = lab
        .agent()
        .run(argv![client, "::1", port.to_string(), NAME]);
    assert_noticed(&run, "::1", port, "its TLS library is not known");
}

/// In a network of its own, as a container is.
#[test]
fn unclaimed_client_in_a_network_namespace() {
    let test = "unclaimed_client_in_a_network_namespace";
    let Some(lab) = Lab::with(test, &["cc", "openssl", "unshare", "ip"]) else {
        return;
    };
    let client = lab.compiled("unknown");
    let script = format!(
        "ip link set lo up; openssl s_server -quiet -www -accept 127.0.0.1:4433 -cert \"$E2E_CERT\" \
         -key \"$E2E_KEY\" & for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; \
         '{}' 127.0.0.1 4433 {NAME} 2> /dev/null && break; done; kill $!; wait",
        client.display()
    );
    let run = lab.agent().run(argv!["unshare", "-n", "sh", "-c", script]);
    assert_noticed(&run, "127.0.0.1", 4433, "its TLS library is not known");
}

/// A raw relay speaks TLS on its sockets, and makes none.
#[test]
fn unclaimed_relay() {
    let Some(lab) = Lab::with("unclaimed_relay", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let file = lab.path("relay.port");
    let relay = argv![
        PYTHON,
        lab.program("relay.py"),
        &file,
        server.port.to_string(),
        "1"
    ];
    let running = lab.agent().start(relay);
    let port = wait_for("the relay's port", seconds(20), || {
        fs::read_to_string(&file).ok()?.parse::<u16>().ok()
    });
    // The agent watches the relay only: the client and the server are others.
    let url = format!("https://127.0.0.1:{port}/bytes/100000");
    let mut curl = Command::new("curl");
    curl.args(["-sk", "-o", "/dev/null", &url]);
    lab.finish(curl, "curl");
    let run = running.finish(seconds(20));
    run.success();
    if bare() {
        return;
    }
    let one = &the_one(&run.records());
    let reason = "its TLS library is not known, or it passes on the TLS of others";
    assert_eq!(one["reason"], reason, "{one}");
}

/// Who is not watched is not looked at.
#[test]
fn unclaimed_under_filters() {
    let Some(lab) = Lab::with("unclaimed_under_filters", &["cc"]) else {
        return;
    };
    let server = lab.server(&[]);
    let client = lab.compiled("unknown");
    let port = server.port.to_string();
    let words = argv![&client, "127.0.0.1", port, NAME];
    let script = "\"$@\"; \"$@\"";
    let mut both = argv!["sh", "-c", script, "sh"];
    both.extend(words.clone());
    let check = |options: [&str; 2], count| {
        let run = lab
            .agent()
            .options(argv![options[0], options[1]])
            .run(both.clone());
        run.success();
        if bare() {
            return;
        }
        let noticed = noticed(&run.records());
        assert_eq!(noticed.len(), count, "{options:?}: {}", run.text);
    };
    for (options, count) in [
        (["--comm", "unknown"], 2),
        (["--uid", "0"], 2),
        (["--exe", "*/unknown"], 2),
        (["--comm", "another"], 0),
        (["--uid", "4242"], 0),
        (["--exe", "/bin/another"], 0),
    ] {
        check(options, count);
    }
    // Beside the tree that is watched.
    let running = lab.agent().start(argv!["sh", "-c", "sleep 3"]);
    wait_for("the agent", seconds(10), || {
        (bare() || running.last_ledger().is_some() || half_is_up(&running)).then_some(())
    });
    lab.finish(lab.command(words), "beside");
    let run = running.finish(seconds(20));
    run.success();
    assert!(bare() || noticed(&run.records()).is_empty());
}

fn half_is_up(running: &crate::harness::Running) -> bool {
    let children = crate::proc::tree(running.process.pid());
    children.iter().any(|pid| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n")
    })
}

/// What the run says of the one process that speaks TLS in a way of its own.
#[track_caller]
fn assert_explained(run: &Run, port: u16, words: &str) {
    run.success();
    if bare() {
        return;
    }
    let noticed = noticed(&run.records());
    let [one] = &noticed[..] else {
        panic!("{} instead of one: {noticed:?}", noticed.len());
    };
    assert!(one["reason"].as_str().unwrap().contains(words), "{one}");
    assert_eq!(one["network"]["peer"]["port"], port, "{one}");
    assert_eq!(one["connection"]["role"], "client", "{one}");
}

/// The JVM's TLS is Java.
#[test]
fn unclaimed_jvm() {
    let Some(lab) = Lab::with("unclaimed_jvm", &["keytool"]) else {
        return;
    };
    let server = lab.server(&[]);
    let address = format!("127.0.0.1:{}", server.port);
    let run = lab
        .agent()
        .run(argv!["keytool", "-printcert", "-sslserver", address]);
    assert_explained(&run, server.port, "JSSE");
}

/// Erlang's is Erlang.
#[test]
fn unclaimed_erlang() {
    let Some(lab) = Lab::with("unclaimed_erlang", &["erl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let client = format!(
        "{{ok, _}} = application:ensure_all_started(ssl),
        {{ok, S}} = ssl:connect(\"127.0.0.1\", {}, [{{verify, verify_none}}], 20000),
        ok = ssl:send(S, \"GET /bytes/100 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n\"),
        receive {{ssl, S, _}} -> ok end,
        halt(0).",
        server.port
    );
    // It makes a file for its secrets at home.
    let run = lab
        .agent()
        .env("HOME", &lab.dir)
        .run(argv!["erl", "-noshell", "-eval", client]);
    assert_explained(&run, server.port, "Erlang");
    let sent = server.client_truth().remove(0).sent;
    assert_eq!(sent, b"GET /bytes/100 HTTP/1.1\r\nHost: x\r\n\r\n");
}

/// A greeting, and the kernel's TLS on its socket from there on. No keys: nobody answers.
const HANDED_OVER: &str = "\
import os, socket, sys, time
name = b'api.example.com'
names = b'\\0\\0' + (len(name) + 5).to_bytes(2, 'big') + (len(name) + 3).to_bytes(2, 'big') + b'\\0' \\
    + len(name).to_bytes(2, 'big') + name
body = b'\\3\\3' + bytes(32) + b'\\0\\0\\2\\x13\\1\\1\\0' + len(names).to_bytes(2, 'big') + names
hello = b'\\1' + len(body).to_bytes(3, 'big') + body
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as plain:
    plain.sendall(b'\\x16\\3\\1' + len(hello).to_bytes(2, 'big') + hello)
    plain.setsockopt(socket.IPPROTO_TCP, 31, b'tls')
    open(os.environ['E2E_DIR'] + '/done', 'w')
    for _ in range(6000):
        if os.path.exists(os.environ['E2E_DIR'] + '/enough'): break
        time.sleep(0.01)
";

/// The kernel's TLS is nobody's library. The doctor knows it by the socket, too.
#[test]
#[ignore = "needs kTLS, a kernel module: in a virtual machine only, by `cargo xtask vm`"]
fn unclaimed_kernels_tls() {
    let lab = Lab::alone("unclaimed_kernels_tls");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = lab.file("client.py", HANDED_OVER);
    let running = lab.agent().start(argv![PYTHON, &script, port.to_string()]);
    let (_stream, client) = listener.accept().unwrap();
    wait_for("the socket", seconds(20), || {
        lab.path("done").exists().then_some(())
    });
    wait_for("a word about it", seconds(20), || {
        (!noticed(&running.records()).is_empty()).then_some(())
    });
    let pid = noticed(&running.records())[0]["process"]["pid"].to_string();
    let mut doctor = Command::new(crate::harness::Agent::path());
    let output = doctor
        .args(["doctor", "--json", "--pid", &pid])
        .output()
        .unwrap();
    lab.file("enough", "");
    let run = running.finish(seconds(20));
    assert_explained(&run, port, "kTLS");
    assert_eq!(noticed(&run.records())[0]["server"]["address"], NAME);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let end = |port: u16| json!({"address": "127.0.0.1", "port": port});
    let expected = json!([{
        "local": end(client.port()), "peer": end(port), "state": "established", "kernel_tls": true,
    }]);
    assert_eq!(report["process"]["connections"], expected, "{report}");
}

/// TLS in memory: its hello goes out between two calls.
const LOOP: &str = "\
import asyncio, ssl, sys
async def main():
    context = ssl._create_unverified_context()
    reader, writer = await asyncio.open_connection('127.0.0.1', int(sys.argv[1]), ssl=context)
    for _ in range(6):
        writer.write(b'GET /bytes/2000 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
        await reader.readuntil(b'\\r\\n\\r\\n')
        await reader.readexactly(2000)
        await asyncio.sleep(0.3)
    writer.close()
asyncio.run(main())
";

/// Libraries that are known, at the same time and longer than a moment: nobody is named.
#[test]
fn unclaimed_is_nobody_who_is_seen() {
    let Some(lab) = Lab::with("unclaimed_is_nobody_who_is_seen", &["curl", "openssl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let url = server.url("/bytes/3000");
    let port = server.port;
    let mut clients = vec![
        format!("curl -sk -o /dev/null {url}"),
        format!("curl -s -o /dev/null {url} || true"),
        format!(
            "{PYTHON} '{}' http.client {port}",
            lab.program("http_client.py").display()
        ),
        format!("{PYTHON} '{}' {port}", lab.file("loop.py", LOOP).display()),
        format!(
            "printf 'GET /bytes/10 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | timeout 3 openssl s_client -quiet -connect \
             127.0.0.1:{port} 2> /dev/null | head -c 20 > /dev/null || true"
        ),
    ];
    if which("node").is_some() {
        clients.push(format!(
            "NODE_TLS_REJECT_UNAUTHORIZED=0 node --no-warnings -e \"fetch('{url}').then(r => r.text())\
             .then(() => new Promise(r => setTimeout(r, 1500)))\""
        ));
    }
    if let Some(go) = lab.fixture("go", "bin/tls-1.24") {
        let words = go_words(&go, port);
        clients.push(words);
    }
    if let Some(rustls) = lab.fixture("rustls-ring", "bin/stripped") {
        clients.push(format!("'{}' requests {port} 3000", rustls.display()));
    }
    let mut script = clients
        .iter()
        .map(|client| format!("({client}) & "))
        .collect::<String>();
    script.push_str("wait; sleep 2");
    let run = lab.agent().run(argv!["sh", "-c", script]);
    run.success();
    if bare() {
        return;
    }
    let records = run.records();
    let late = records.kind("coverage");
    let late = late.filter(|coverage| coverage["status"] == "partly");
    let processes: HashMap<_, _> = records
        .kind("data")
        .chain(late)
        .map(|record| {
            let process = &record["process"];
            let words = process["command_args"].to_string();
            (
                process["pid"].as_u64().unwrap(),
                (record["kind"].to_string(), words),
            )
        })
        .collect();
    println!(
        "{} processes of {} clients were seen, or are said to be seen too late",
        processes.len(),
        clients.len()
    );
    // All but the curl that trusts nobody. A machine that is busy elsewhere can need longer for the probes of so many
    // files than a process may be held.
    assert!(processes.len() >= clients.len() - 1, "{processes:?}");
    let noticed = noticed(&records);
    assert!(noticed.is_empty(), "{noticed:?}");
}

fn go_words(program: &Path, port: u16) -> String {
    format!(
        "'{}' get https://127.0.0.1:{port}/echo 1000 1 2",
        program.display()
    )
}

/// Breakpoints that are gone from a process: noticed at its next connection, said, and put back.
#[test]
fn unclaimed_because_a_probe_is_gone() {
    let Some(lab) = Lab::new("unclaimed_because_a_probe_is_gone") else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let library = lab.private_libssl("private");
    let script = format!(
        "\
import os, socket, ssl, sys, time
context = ssl._create_unverified_context()
def talk(path):
    plain = socket.create_connection(('127.0.0.1', {port}))
    with context.wrap_socket(plain) as tls:
        tls.sendall(b'GET ' + path + b' HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
        tls.recv(65536)
        if path == b'/text/2': wait('third')
def wait(name):
    for _ in range(2000):
        if os.path.exists(os.environ['E2E_DIR'] + '/' + name): return
        time.sleep(0.01)
talk(b'/text/1')
open(os.environ['E2E_DIR'] + '/done', 'w')
wait('second')
talk(b'/text/2')
talk(b'/text/3')
",
        port = server.port
    );
    let script = lab.file("client.py", script);
    let running = lab
        .agent()
        .env("LD_LIBRARY_PATH", &library)
        .start(argv![PYTHON, script]);
    wait_for("the first connection", seconds(20), || {
        lab.path("done").exists().then_some(())
    });
    let file = library.join("libssl.so.3");
    let client = crate::proc::tree(running.process.pid())
        .into_iter()
        .find(|pid| crate::proc::has_mapped(*pid, &file) && is_python(*pid))
        .expect("the client");
    let probed = breakpoints(client, &file);
    assert!(!probed.is_empty());
    take_out(client, &file, |_| true);
    assert_eq!(breakpoints(client, &file), []);
    lab.file("second", "");
    wait_for("the breakpoints", seconds(10), || {
        (breakpoints(client, &file) == probed).then_some(())
    });
    lab.file("third", "");
    let run = running.finish(seconds(20));
    run.success();
    let said = run.process.err();
    assert!(said.contains("they are placed again"), "{said}");
    let records = run.records();
    let texts: String = records
        .kind("data")
        .filter_map(|data| data["text"].as_str())
        .collect();
    assert!(
        texts.contains("GET /text/1") && texts.contains("GET /text/3"),
        "{texts}"
    );
    assert!(!texts.contains("GET /text/2"), "{texts}");
    let said = records.kind("coverage").any(|record| {
        record["status"] == "partly"
            && record["reason"]
                .as_str()
                .is_some_and(|why| why.contains("placed again"))
    });
    assert!(said, "{:?}", records.kind("coverage").collect::<Vec<_>>());
}

fn is_python(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|path| path.to_string_lossy().contains("python"))
}

/// A client that goes on with one connection while the test says so.
const ON_AND_ON: &str = "
import os, socket, ssl, sys, time
there = lambda name: os.path.exists(os.environ['E2E_DIR'] + '/' + name)
context = ssl._create_unverified_context()
with context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1])))) as tls:
    def talk(length):
        tls.sendall(b'GET /text/%d HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' % length)
        answer = b''
        while not answer.partition(b'\\r\\n\\r\\n')[2][length - 1:]: answer += tls.recv(65536)
    talk(11)
    open(os.environ['E2E_DIR'] + '/done', 'w')
    for _ in range(300):
        if there('third'): break
        if there('second'): talk(12)
        time.sleep(0.1)
    for _ in range(20): talk(13)
";

/// The breakpoint of what is sent is gone, and the others are not: noticed while the connection goes on, said, and
/// put back. What is received is there all the time.
#[test]
fn unclaimed_because_one_way_is_gone() {
    let Some(lab) = Lab::new("unclaimed_because_one_way_is_gone") else {
        return;
    };
    if bare() {
        return;
    }
    let server = lab.server(&[]);
    let library = lab.private_libssl("private");
    let script = lab.file("client.py", ON_AND_ON);
    let running = lab.agent().env("LD_LIBRARY_PATH", &library).start(argv![
        PYTHON,
        script,
        server.port.to_string()
    ]);
    wait_for("the first answer", seconds(20), || {
        lab.path("done").exists().then_some(())
    });
    let file = library.join("libssl.so.3");
    let client = crate::proc::tree(running.process.pid())
        .into_iter()
        .find(|pid| crate::proc::has_mapped(*pid, &file) && is_python(*pid))
        .expect("the client");
    let probed = breakpoints(client, &file);
    let [sent] = places_of("Sent", &file)[..] else {
        panic!("not one function that sends");
    };
    assert!(probed.iter().any(|(offset, _)| *offset == sent));
    take_out(client, &file, |offset| offset == sent);
    assert_eq!(breakpoints(client, &file).len(), probed.len() - 1);
    lab.file("second", "");
    wait_for("the breakpoint", seconds(20), || {
        (breakpoints(client, &file) == probed).then_some(())
    });
    // So that it is told of before the last requests.
    std::thread::sleep(std::time::Duration::from_millis(500));
    lab.file("third", "");
    let run = running.finish(seconds(40));
    run.success();
    let said = run.process.err();
    assert_eq!(said.matches("they are placed again").count(), 1, "{said}");
    let records = run.records();
    let mut partly = records.kind("coverage").filter(|record| {
        let reason = record["reason"].as_str().unwrap_or_default();
        record["status"] == "partly" && reason.contains("placed again")
    });
    assert!(partly.next().is_some() && partly.next().is_none());

    // It is another connection from there on.
    let truth = server.client_truth().remove(0);
    let data: Vec<&Value> = records.kind("data").collect();
    let id = |data: &Value| data["connection"]["id"].clone();
    let (first, last) = (id(data[0]), id(data[data.len() - 1]));
    assert_ne!(first, last);
    let of = |wanted: &Value, direction: &str| -> Vec<u8> {
        let data = data
            .iter()
            .filter(|one| id(one) == *wanted && one["direction"] == direction);
        data.flat_map(|one| content(one).unwrap()).collect()
    };
    let [before, after] = [&first, &last].map(|id| [of(id, "sent"), of(id, "received")]);
    assert!(
        truth.received == [&before[1][..], &after[1]].concat(),
        "received"
    );
    assert!(truth.sent.starts_with(b"GET /text/11 ") && before[0].starts_with(b"GET /text/11 "));
    assert!(
        truth.sent.ends_with(&after[0]) && !after[0].is_empty(),
        "sent"
    );
    let missing = truth.sent.len() - before[0].len() - after[0].len();
    assert!(missing > 0, "nothing passed by");
    for one in data.iter().filter(|one| id(one) == last) {
        assert_eq!(
            (&one["complete"], &one["connection"]["joined"]),
            (&json!(false), &json!("middle"))
        );
    }
}

/// Where the functions of this direction are probed.
pub(crate) fn places_of(direction: &str, file: &Path) -> Vec<u64> {
    let mut locate = Command::new(crate::harness::Agent::path());
    let output = locate.arg("locate").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let points = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let points = points.filter(|point| point["direction"] == direction);
    points
        .map(|point| point["offset"].as_u64().unwrap())
        .collect()
}

/// Writes what the file has over breakpoints that the process has in it.
pub(crate) fn take_out(pid: u32, file: &Path, is_wanted: impl Fn(u64) -> bool) {
    let disk = fs::read(file).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::options()
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .unwrap();
    for (offset, _) in breakpoints(pid, file)
        .into_iter()
        .filter(|(offset, _)| is_wanted(*offset))
    {
        let line = maps.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let is_code = words.next()? == "r-xp" && line.ends_with(file.to_str()?);
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let (start, end, from) = (hex(start)?, hex(end)?, hex(words.next()?)?);
            let is_inside = (from..from + end - start).contains(&offset);
            (is_code && is_inside).then_some(start + offset - from)
        });
        let byte = &disk[offset as usize..][..1];
        memory.write_all_at(byte, line.unwrap()).unwrap();
    }
}
