//! What `doctor --pid N` says of a process: one clear answer, and a way out.

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::halves::{UserLab, as_nobody};
use crate::harness::{Agent, End, Lab, PYTHON, argv, bare, seconds, wait_for, which};
use crate::proc::{state, status};

fn lab(test: &'static str, programs: &[&str]) -> Option<Lab> {
    (!bare()).then(|| Lab::with(test, programs)).flatten()
}

/// What it says, for programs and for people, and whether it is content.
struct Said {
    report: Value,
    text: String,
    is_content: bool,
}

impl Said {
    fn about(lab: &Lab, before: Vec<std::ffi::OsString>, agent: &Path, pid: u32) -> Said {
        let ask = |options: &[&str]| {
            let mut words = before.clone();
            words.extend(argv![agent, "doctor", "--pid", pid.to_string()]);
            words.extend(options.iter().map(Into::into));
            let process = lab.spawn(lab.command(words), "doctor");
            let end = process.wait(seconds(60));
            let is_content = end == End::Code(0);
            assert!(is_content || end == End::Code(1), "{}", process.err());
            (process.out(), is_content)
        };
        let (report, is_content) = ask(&["--json"]);
        let report: Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{report}"));
        assert_eq!(report["ok"], is_content);
        let (text, same) = ask(&[]);
        assert_eq!(is_content, same);
        Said {
            report,
            text,
            is_content,
        }
    }

    fn of(lab: &Lab, pid: u32) -> Said {
        Said::about(lab, Vec::new(), &Agent::path(), pid)
    }

    /// The lines about the process: status, what is said, and the way out.
    fn checks(&self, name: &str) -> Vec<[&str; 3]> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        let checks = checks.filter(|check| check["name"] == name);
        let words = ["status", "detail", "way_out"];
        checks
            .map(|check| words.map(|word| check[word].as_str().unwrap_or_default()))
            .collect()
    }

    /// The only line about the process, which people are told as well.
    #[track_caller]
    fn only(&self) -> [&str; 3] {
        let checks = self.checks("process");
        let [one] = checks[..] else {
            panic!("{checks:#?}");
        };
        for words in &one[1..] {
            assert!(self.text.contains(words), "{words}: {}", self.text);
        }
        one
    }
}

/// Takes connections and says nothing on them: who calls waits for it.
struct Silent {
    listener: TcpListener,
    open: Vec<TcpStream>,
}

impl Silent {
    fn new() -> Silent {
        Silent {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            open: Vec::new(),
        }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Once somebody has sent its greeting: where it comes from.
    fn greeted(&mut self) -> SocketAddr {
        let (mut stream, from) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(seconds(20))).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        self.open.push(stream);
        from
    }
}

fn end(address: SocketAddr) -> Value {
    json!({"address": address.ip(), "port": address.port()})
}

const WAITING: &str = "
import os, socket, ssl, sys, time
context = ssl._create_unverified_context()
tls = context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))))
spare = os.dup(tls.fileno())
open(os.environ['E2E_DIR'] + '/name', 'w').write('%s:%d' % tls.getsockname())
time.sleep(60)
";

/// A client of OpenSSL with a connection that waits: the whole answer, word by word.
#[test]
fn doctor_of_an_idle_client() {
    let Some(lab) = lab("doctor_of_an_idle_client", &[]) else {
        return;
    };
    let server = lab.server(&[]);
    let library = lab.private_libssl("private");
    let mut command = lab.command(argv![PYTHON, "-c", WAITING, server.port.to_string()]);
    command.env("LD_LIBRARY_PATH", &library);
    let client = lab.spawn(command, "client");
    let local: SocketAddr = wait_for("the connection", seconds(20), || {
        fs::read_to_string(lab.path("name")).ok()?.parse().ok()
    });
    let peer = SocketAddr::from(([127, 0, 0, 1], server.port));
    let pid = client.pid();
    wait_for("its rest", seconds(10), || {
        (state(pid) == Some('S')).then_some(())
    });
    let said = Said::of(&lab, pid);
    let mut found = said.report["process"].clone();
    let from = found["coverage"][0]["seen_from"].take();
    assert!(
        from.as_str().is_some_and(|from| from.ends_with('Z')),
        "{from}"
    );
    let path = library.join("libssl.so.3");
    let function = |name| json!({"name": name, "instruction": "emulated"});
    let expected = json!({
        "pid": pid, "state": "sleeping", "owner_uid": 0, "runtime": null, "bits": 64,
        "coverage": [{
            "status": "partly",
            "reason": "its calls before `seen_from` were not seen",
            "library": {"name": "OpenSSL", "path": path, "located": "symbols"},
            "functions": [function("ssl_read_internal"), function("ssl_write_internal")],
            "seen_from": null,
        }],
        "connections": [{
            "local": end(local), "peer": end(peer), "state": "established", "kernel_tls": false,
        }],
    });
    assert_eq!(found, expected);
    assert!(said.is_content, "{}", said.text);
    let detail = format!(
        "process {pid}: {}: OpenSSL, found by its symbols: ssl_read_internal (emulated), ssl_write_internal \
         (emulated)",
        path.display()
    );
    assert_eq!(said.only(), ["ok", &detail, ""]);
    let detail = format!(
        "process {pid} has 1 open TCP connection: {local} with {peer} (established); what they carried before \
         the agent comes is not seen"
    );
    assert_eq!(said.checks("connections"), [["ok", &detail, ""]]);

    // The same while it is stopped.
    client.signal(libc::SIGSTOP);
    wait_for("its stop", seconds(10), || {
        (state(pid) == Some('T')).then_some(())
    });
    let said = Said::of(&lab, pid);
    client.signal(libc::SIGCONT);
    assert_eq!(said.report["process"]["state"], "stopped");
    let stopped = said.checks("process")[0];
    let way_out = format!("kill -CONT {pid}");
    let detail = format!("process {pid} is stopped: it makes no call");
    assert_eq!(stopped, ["limited", &detail, &way_out]);
}

/// By what each library was found: a word for programs, some for people.
#[track_caller]
fn assert_located(
    lab: &Lab,
    words: Vec<std::ffi::OsString>,
    expected: [&str; 3],
    peer: &mut Silent,
) {
    let client = lab.spawn(lab.command(words), "client");
    let local = peer.greeted();
    let said = Said::of(lab, client.pid());
    let coverage = said.report["process"]["coverage"].as_array().unwrap();
    let [one] = &coverage[..] else {
        panic!("{coverage:#?}");
    };
    let library = &one["library"];
    let [name, located, by] = expected;
    assert_eq!(
        (&library["name"], &library["located"]),
        (&json!(name), &json!(located))
    );
    let [_, detail, _] = said.only();
    assert!(detail.contains(&format!(", found {by}: ")), "{detail}");
    let connections = &said.report["process"]["connections"];
    assert_eq!(connections[0]["local"], end(local), "{connections}");
}

#[test]
fn doctor_of_programs_with_tls_inside() {
    let Some(lab) = lab("doctor_of_programs_with_tls_inside", &["node"]) else {
        return;
    };
    let (Some(go), Some(rustls)) = (
        lab.fixture("go", "bin/tls-1.27-stripped"),
        lab.fixture("rustls-ring", "bin/stripped"),
    ) else {
        return;
    };
    let mut peer = Silent::new();
    let port = peer.port().to_string();
    let url = format!("https://127.0.0.1:{port}/");
    let fetch = format!("fetch('{url}')");
    let node = argv![which("node").unwrap(), "-e", fetch];
    let symbols = ["OpenSSL", "symbols", "by its symbols"];
    assert_located(&lab, node, symbols, &mut peer);
    let go = argv![go, "get", &url, "1000", "1", "1"];
    let table = ["go", "pclntab", "by Go's table of functions"];
    assert_located(&lab, go, table, &mut peer);
    let rustls = argv![rustls, "frames", &port, "1.3"];
    let tables = [
        "rustls",
        "vtables",
        "by the places of its tables of methods",
    ];
    assert_located(&lab, rustls, tables, &mut peer);
}

#[test]
fn doctor_of_a_jvm() {
    let Some(lab) = lab("doctor_of_a_jvm", &["keytool"]) else {
        return;
    };
    let mut peer = Silent::new();
    let address = format!("127.0.0.1:{}", peer.port());
    let client = argv!["keytool", "-printcert", "-sslserver", address];
    let client = lab.spawn(lab.command(client), "client");
    let local = peer.greeted();
    let pid = client.pid();
    let said = Said::of(&lab, pid);
    let process = &said.report["process"];
    assert_eq!(process["runtime"], "jvm", "{process}");
    assert_eq!(process["connections"][0]["local"], end(local), "{process}");
    let [status, detail, way_out] = said.checks("process")[0];
    let start = format!("process {pid} runs on a JVM: TLS of its own (JSSE) is not seen");
    assert!(
        status == "limited" && detail.starts_with(&start),
        "{detail}"
    );
    assert!(way_out.contains("other end"), "{way_out}");
}

/// A program that speaks TLS by nobody knows what, on a connection that was there before.
#[test]
fn doctor_of_an_unknown_library() {
    let Some(lab) = lab("doctor_of_an_unknown_library", &["cc"]) else {
        return;
    };
    let mut peer = Silent::new();
    let port = peer.port().to_string();
    let client = argv![lab.compiled("unknown"), "127.0.0.1", port, "a.example"];
    let client = lab.spawn(lab.command(client), "client");
    let local = peer.greeted();
    let pid = client.pid();
    let said = Said::of(&lab, pid);
    assert!(said.is_content, "{}", said.text);
    let [status, detail, way_out] = said.only();
    let nothing = format!("process {pid} maps no TLS library that is known");
    assert_eq!((status, detail), ("limited", &*nothing));
    assert!(way_out.contains(&format!("run --pid {pid}")), "{way_out}");
    let connections = said.checks("connections");
    let [[status, detail, way_out]] = connections[..] else {
        panic!("{connections:#?}");
    };
    let one = format!("process {pid} has 1 open TCP connection: {local} with 127.0.0.1:");
    assert!(status == "limited" && detail.starts_with(&one), "{detail}");
    assert!(way_out.contains("new ones are noticed"), "{way_out}");
}

/// `pause()` without an end, in 32 bits: one segment, no library.
fn program_of_32_bits(lab: &Lab) -> PathBuf {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // mov eax, 29; int 0x80; jmp back
    const CODE: [u8; 9] = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let half = |numbers: &[u16]| numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
    let word = |numbers: &[u32]| numbers.iter().flat_map(|it| it.to_le_bytes()).collect();
    let size = HEADERS + CODE.len() as u32;
    let parts: [Vec<u8>; 7] = [
        b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        // An executable of the 386.
        half(&[2, 3]),
        word(&[1, BASE + HEADERS, 52, 0, 0]),
        half(&[52, 32, 1, 0, 0, 0]),
        // Loaded as it is, to be read and run.
        word(&[1, 0, BASE, BASE, size, size]),
        word(&[5, 4096]),
        CODE.to_vec(),
    ];
    let program = lab.file("narrow", parts.concat());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn doctor_of_a_32_bit_program() {
    let Some(lab) = lab("doctor_of_a_32_bit_program", &[]) else {
        return;
    };
    let program = program_of_32_bits(&lab);
    let process = lab.spawn(lab.command(argv![program]), "narrow");
    let pid = process.pid();
    wait_for("it to run", seconds(10), || {
        let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (link.ends_with("narrow") && state(pid) == Some('S')).then_some(())
    });
    let said = Said::of(&lab, pid);
    assert!(!said.is_content);
    let [status, detail, way_out] = said.only();
    let narrow = format!("process {pid} is a 32-bit program");
    assert_eq!((status, detail), ("failed", &*narrow));
    assert!(way_out.contains("64-bit build"), "{way_out}");
    let process = &said.report["process"];
    assert_eq!(
        (&process["bits"], &process["connections"]),
        (&json!(32), &json!([]))
    );
}

/// What is no process that could make a call.
#[test]
fn doctor_of_nobody() {
    let Some(lab) = lab("doctor_of_nobody", &[]) else {
        return;
    };
    let check = |pid: u32, detail: String, way_out: &str| {
        let said = Said::of(&lab, pid);
        assert!(!said.is_content, "{}", said.text);
        let one = said.only();
        assert_eq!(one[..2], ["failed", &detail]);
        assert!(one[2].contains(way_out), "{one:?}");
        assert_eq!(said.report["process"]["pid"], pid);
        assert!(said.checks("connections").is_empty());
        said
    };
    // Above all that the kernel gives.
    let gone = 1 << 22 | 1;
    check(
        gone,
        format!("process {gone}: there is no such process"),
        "pgrep",
    );
    let ended = lab.finish(lab.command(argv!["true"]), "true");
    let (pid, parent) = (ended.pid(), std::process::id());
    check(
        pid,
        format!("process {pid} has ended; its parent, {parent}, has not asked for its status yet"),
        "vortex-agent run -- CMD",
    );
    let script = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()";
    let threads = lab.spawn(lab.command(argv![PYTHON, "-c", script]), "threads");
    let leader = threads.pid();
    let thread = wait_for("a thread", seconds(20), || {
        let mut tasks = fs::read_dir(format!("/proc/{leader}/task")).ok()?;
        tasks.find_map(|task| {
            let id = task.ok()?.file_name().to_str()?.parse().ok()?;
            (id != leader).then_some(id)
        })
    });
    check(
        thread,
        format!("{thread} is a thread of process {leader}"),
        &format!("vortex-agent doctor --pid {leader}"),
    );
    // In a pid namespace of its own there is none.
    const KTHREADD: u32 = 2;
    if status(KTHREADD, "Name").as_deref() == Some("kthreadd") {
        let detail = format!("process {KTHREADD} is a thread of the kernel: it runs no program");
        check(KTHREADD, detail, "ss -tnp");
    }
}

/// Who may not look at a process is told so, and who may.
#[test]
fn doctor_of_another_user() {
    let Some(lab) = lab("doctor_of_another_user", &["setpriv"]) else {
        return;
    };
    let user = UserLab::new(&lab);
    let process = lab.spawn(lab.command(argv!["sleep", "60"]), "sleep");
    let pid = process.pid();
    let said = Said::about(&lab, as_nobody(), &user.agent(), pid);
    assert!(!said.is_content);
    let [status, detail, way_out] = said.only();
    assert!(
        status == "failed" && detail.starts_with(&format!("process {pid}: ")),
        "{detail}"
    );
    let root = format!("sudo vortex-agent doctor --pid {pid}");
    assert_eq!(way_out, format!("it is another user's: {root}"));
    let connections = said.checks("connections");
    let [[status, detail, way_out]] = connections[..] else {
        panic!("{connections:#?}");
    };
    assert_eq!((status, way_out), ("limited", &*root));
    assert!(detail.contains("Permission denied"), "{detail}");
    let process = &said.report["process"];
    assert_eq!(process["owner_uid"], 0);
    assert_eq!(
        (&process["bits"], &process["connections"]),
        (&Value::Null, &Value::Null)
    );
}
