//! Processes that are short, old, forked, late or killed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::harness::{
    End, Lab, PYTHON, Running, Server, argv, bare, kill, libssl, random, scaled, seconds, wait_for,
};
use crate::proc::{alive, breakpoints, half_of, has_mapped, state, tree, wait_for_running};
use crate::records::{self, Truth, total};
use serde_json::Value;

/// Many short processes one after another; every sixth has a libssl that nobody has seen.
#[test]
fn short_lived_curls() {
    let Some(lab) = Lab::with("short_lived_curls", &["curl"]) else {
        return;
    };
    let count = scaled("curls in a row", 300, 12);
    let fresh = count / 6;
    let server = lab.server(&[]);
    for number in 0..fresh {
        lab.private_libssl(&format!("fresh-{number}"));
    }
    let script = format!(
        "n=0; while [ $n -lt {count} ]; do
           if [ $((n % 6)) = 3 ]; then export LD_LIBRARY_PATH={dir}/fresh-$((n / 6)); else unset LD_LIBRARY_PATH; fi
           curl -sk --http1.1 -o /dev/null --data-binary nonce-$n {url} || exit 1
           n=$((n + 1))
         done",
        dir = lab.dir.display(),
        url = server.url("/echo"),
    );
    let run = lab
        .agent()
        .start(argv!["sh", "-c", script])
        .finish(seconds(120));
    let truth = server.client_truth();
    assert_eq!(truth.len() as u64, count);
    run.assert_exact(&truth);
    if bare() {
        return;
    }
    for record in run.records().kind("coverage") {
        let process = &record["process"];
        if process["comm"] == "curl" {
            assert_eq!(process["command_args"][0], "curl", "{record}");
        }
    }
}

#[test]
fn twenty_curls_at_once() {
    let Some(lab) = Lab::with("twenty_curls_at_once", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    lab.file("body", random(100_000, 9));
    let script = format!(
        "for n in $(seq 20); do
           curl -sk --http1.1 -o /dev/null -H \"x-nonce: $n\" --data-binary @{dir}/body {url} & pids=\"$pids $!\"
         done
         for pid in $pids; do wait $pid || exit 1; done",
        dir = lab.dir.display(),
        url = server.url("/echo"),
    );
    let run = lab.agent().run(argv!["sh", "-c", script]);
    let truth = server.client_truth();
    assert_eq!(truth.len(), 20);
    run.assert_exact(&truth);
}

/// A connection that began before the agent: from the agent's start on, each byte once, and the
/// records say that they begin in the middle.
#[test]
fn older_process_and_connection() {
    let Some(lab) = Lab::with("older_process_and_connection", &["cc"]) else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let client = lab.compiled("mix");
    let late = format!("late={}", lab.path("late").display());
    let command = lab.command(argv![client, server.port.to_string(), "threads=1", late]);
    let client = lab.spawn(command, "client");
    wait_for("the client's first round", seconds(20), || {
        lab.path("late.here").exists().then_some(())
    });
    let running = lab.agent().watch(client.pid());
    lab.file("late.go", "");
    assert_eq!(client.wait(seconds(30)), End::Code(0), "{}", client.err());
    if bare() {
        return;
    }
    // The last watched process has gone: the agent ends by itself, well.
    let run = running.finish(seconds(10));
    run.assert_exact(&lab.truth("late"));
    for data in run.records().kind("data") {
        assert_eq!(data["connection"]["joined"], "middle");
        assert_eq!(data["complete"], false);
    }
}

/// Probes come one after the other into a process that opens connections all the time. One that says
/// that it was seen from its start has its first bytes.
#[test]
fn attach_amid_new_connections() {
    let Some(lab) = Lab::with("attach_amid_new_connections", &["cc"]) else {
        return;
    };
    let stop = lab.path("stop");
    let mut command = lab.command(argv![lab.compiled("churn"), "2", &stop]);
    command.env("LD_LIBRARY_PATH", lab.private_libssl("private"));
    let client = lab.spawn(command, "client");
    wait_for("the client's first bytes", seconds(20), || {
        (total(&lab.truth("client")) > 0).then_some(())
    });
    let (mut from_start, mut from_middle) = (0, 0);
    for number in 0..scaled("attaches", 10, 5) {
        if bare() {
            break;
        }
        let output = lab.path(&format!("records-{number}.ndjson"));
        let running = lab.agent().output(Some(output)).watch(client.pid());
        wait_for("a connection", seconds(10), || {
            let records = running.records();
            let is_new = |data: &Value| data["connection"]["joined"] == "start";
            records.kind("data").any(is_new).then_some(())
        });
        running.process.signal(libc::SIGTERM);
        let run = running.finish(seconds(10));
        run.success();
        let records = run.records();
        records.check_ledger().unwrap();
        for data in records.kind("data").filter(|data| data["offset"] == 0) {
            let has_first = data["text"].as_str().unwrap().starts_with("part 0 ");
            match data["connection"]["joined"].as_str() {
                Some("start") => {
                    assert!(has_first, "silently short: {}", records::digest(data));
                    from_start += 1;
                }
                _ => {
                    assert_eq!(data["complete"], false, "{}", records::digest(data));
                    from_middle += 1;
                }
            }
        }
    }
    println!("{from_start} streams from their start, {from_middle} from the middle");
    lab.file("stop", "");
    assert_eq!(client.wait(seconds(20)), End::Code(0), "{}", client.err());
}

/// A connection that was seen from its start says so.
#[test]
fn new_connections_are_joined_at_their_start() {
    let Some(lab) = Lab::with("new_connections_are_joined_at_their_start", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let run = lab.agent().run(argv![
        "curl",
        "-sk",
        "--http1.1",
        "-o",
        "/dev/null",
        server.url("/bytes/5000")
    ]);
    run.assert_exact(&server.client_truth());
    if !bare() {
        let records = run.records();
        assert!(
            records
                .kind("data")
                .all(|data| data["connection"]["joined"] == "start")
        );
        assert!(records.kind("data").all(|data| data["complete"] == true));
    }
}

/// After fork each side has a stream of its own.
#[test]
fn fork_after_connect() {
    let Some(lab) = Lab::with("fork_after_connect", &["cc"]) else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let run = lab
        .agent()
        .run(argv![lab.compiled("mix"), server.port.to_string(), "fork"]);
    let mut truth = lab.truth("mix");
    truth.extend(lab.truth("child"));
    assert_eq!(truth.len(), 2);
    let whole = Truth {
        name: "both".to_owned(),
        sent: [&*truth[0].sent, &*truth[1].sent].concat(),
        received: [&*truth[0].received, &*truth[1].received].concat(),
    };
    records::same(&[whole], &server.client_truth()).unwrap();
    run.assert_exact(&truth);
}

/// A client under way until a file appears, and its private libssl.
pub(crate) struct Stream<'a> {
    lab: &'a Lab,
    server: Server<'a>,
    pub(crate) library: PathBuf,
    pub(crate) command: Vec<OsString>,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let server = lab.server(&["--mode", "frames"]);
        let until = format!("until={}", lab.path("stop").display());
        let dir = lab.private_libssl("private");
        Self {
            lab,
            library: dir.join("libssl.so.3"),
            command: argv![
                lab.compiled("mix"),
                server.port.to_string(),
                "threads=2",
                "rounds=0",
                until
            ],
            server,
        }
    }

    /// Waits until the client has sent this much more.
    #[track_caller]
    pub(crate) fn flows(&self, bytes: u64) {
        let sent = || total(&self.lab.truth("mix"));
        let start = sent();
        wait_for("the client's traffic", seconds(10), || {
            (sent() >= start + bytes).then_some(())
        });
    }

    /// The client's end: it and the server saw the same.
    #[track_caller]
    pub(crate) fn stop(&self, client: u32) {
        self.lab.file("stop", "");
        wait_for("the client's end", seconds(20), || {
            (!alive(client)).then_some(())
        });
        let truth = self.lab.truth("mix");
        assert!(total(&truth) > 0);
        records::same(&truth, &self.server.client_truth()).unwrap();
    }
}

/// No breakpoint is left in the client's code after this long.
#[track_caller]
pub(crate) fn no_breakpoint_within(limit: Duration, client: u32, library: &Path) {
    let left = || breakpoints(client, library);
    wait_for(&format!("no breakpoint, still {:?}", left()), limit, || {
        left().is_empty().then_some(())
    });
    assert!(
        has_mapped(client, library),
        "the client must still be there to be looked at"
    );
}

/// SIGKILL for both halves of the agent in mid-traffic.
#[test]
fn sigkill_leaves_nothing() {
    let Some(lab) = Lab::with("sigkill_leaves_nothing", &["cc"]) else {
        return;
    };
    let stream = Stream::new(&lab);
    let mut command = lab.command(stream.command.clone());
    command.env("LD_LIBRARY_PATH", lab.path("private"));
    let client = lab.spawn(command, "client");
    stream.flows(100_000);
    let running = lab.agent().watch(client.pid());
    stream.flows(300_000);
    if !bare() {
        assert!(
            !breakpoints(client.pid(), &stream.library).is_empty(),
            "no probe to be left behind"
        );
        for pid in tree(running.process.pid()).into_iter().rev() {
            kill(pid as i32, libc::SIGKILL);
        }
        no_breakpoint_within(Duration::from_millis(1500), client.pid(), &stream.library);
    }
    stream.flows(300_000);
    assert_ne!(state(client.pid()), Some('T'));
    stream.stop(client.pid());
    assert_eq!(client.wait(seconds(5)), End::Code(0), "{}", client.err());
}

/// SIGTERM: what was seen is written, the ledger is whole, and no breakpoint stays.
#[test]
fn sigterm_drains() {
    let Some(lab) = Lab::with("sigterm_drains", &["cc"]) else {
        return;
    };
    let server = lab.server(&["--mode", "frames"]);
    let library = lab.private_libssl("private").join("libssl.so.3");
    let [late, stay] =
        ["late", "stay"].map(|option| format!("{option}={}", lab.path(option).display()));
    let mut command = lab.command(argv![
        lab.compiled("mix"),
        server.port.to_string(),
        late,
        stay
    ]);
    command.env("LD_LIBRARY_PATH", lab.path("private"));
    let client = lab.spawn(command, "client");
    let arrives = |file| wait_for(file, seconds(20), || lab.path(file).exists().then_some(()));
    arrives("late.here");
    let running = lab.agent().watch(client.pid());
    lab.file("late.go", "");
    arrives("stay.here");
    if !bare() {
        assert!(
            !breakpoints(client.pid(), &library).is_empty(),
            "no probe to be left behind"
        );
        running.process.signal(libc::SIGTERM);
        let run = running.finish(seconds(10));
        run.assert_exact(&lab.truth("late"));
        no_breakpoint_within(seconds(10), client.pid(), &library);
    }
    lab.file("stay.go", "");
    assert_eq!(client.wait(seconds(5)), End::Code(0), "{}", client.err());
}

/// `run -- CMD` ends half a second after CMD at most, whenever the machine has time for it.
#[test]
fn ends_with_cmd() {
    let Some(lab) = Lab::with("ends_with_cmd", &["curl"]) else {
        return;
    };
    let server = lab.server(&[]);
    let ended = lab.path("ended");
    let script = format!(
        "curl -sk --http1.1 -o /dev/null {}; : > {}; exit 7",
        server.url("/bytes/300000"),
        ended.display()
    );
    let mut least = seconds(5);
    for _ in 0..scaled("runs to time", 5, 2) {
        let running = lab.agent().start(argv!["sh", "-c", &script]);
        assert_eq!(
            running.process.wait(seconds(30)),
            End::Code(7),
            "{}",
            running.process.err()
        );
        let now = SystemTime::now();
        let late = now
            .duration_since(fs::metadata(&ended).unwrap().modified().unwrap())
            .unwrap();
        assert!(late <= seconds(5), "{late:?} behind CMD");
        least = least.min(late);
    }
    assert!(least <= seconds(1) / 2, "{least:?} behind CMD at least");
}

/// The half may go on closing its links for 10 s, and then is gone, too.
#[test]
fn the_half_ends_by_itself() {
    let Some(lab) = Lab::with("the_half_ends_by_itself", &["cc"]) else {
        return;
    };
    let stream = Stream::new(&lab);
    let running = lab
        .agent()
        .env("LD_LIBRARY_PATH", lab.path("private"))
        .start(stream.command.clone());
    if bare() {
        stream.flows(1000);
        return stream.stop(running.process.pid());
    }
    let client = wait_for_running(&lab.path("mix"));
    stream.flows(1000);
    let half = half_of(running.process.pid()).expect("a privileged half");
    stream.stop(client);
    let run = running.finish(seconds(5));
    run.assert_exact(&lab.truth("mix"));
    wait_for("the end of the half", seconds(10), || {
        (!alive(half)).then_some(())
    });
}

/// `--pid N` of several processes ends with the last one, with 0.
#[test]
fn pid_ends_with_the_last() {
    let Some(lab) = Lab::new("pid_ends_with_the_last") else {
        return;
    };
    if bare() {
        return;
    }
    let sleep = |time: &str, name: &str| lab.spawn(lab.command(argv!["sleep", time]), name);
    let (short, long) = (sleep("0.3", "short"), sleep("1", "long"));
    let start = Instant::now();
    let running: Running = lab
        .agent()
        .options(argv!["--pid", short.pid().to_string()])
        .watch_without_coverage(long.pid());
    let run = running.finish(seconds(10));
    run.success();
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "it ended before the last one"
    );
    assert!(run.records().last_stats().is_ok());
}

/// A file that somebody has mapped and cuts short: reading it must not end the agent (SIGBUS).
#[test]
fn truncated_library() {
    let Some(lab) = Lab::new("truncated_library") else {
        return;
    };
    // A copy of a real library, mapped as code, then cut in the middle of its headers or behind them.
    let script = "
import mmap, os, sys, time
for number, size in enumerate((0, 10, 64, 200, 4096, 5000)):
    path = os.path.join(sys.argv[2], 'libssl-%d.so.3' % number)
    with open(sys.argv[1], 'rb') as source, open(path, 'wb') as copy:
        copy.write(source.read())
    file = os.open(path, os.O_RDWR)
    code = mmap.mmap(file, 200000, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    os.ftruncate(file, size)
    globals()['keep%d' % number] = code
time.sleep(0.3)
import ssl, socket
context = ssl.create_default_context(cafile=os.environ['E2E_CERT'])
with context.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[3])), 10), server_hostname='localhost') as tls:
    tls.sendall(b'GET /bytes/70000 HTTP/1.1\\r\\nhost: localhost\\r\\n\\r\\n')
    left = 70000
    data = b''
    while b'\\r\\n\\r\\n' not in data:
        data += tls.recv(100)
    left -= len(data) - data.index(b'\\r\\n\\r\\n') - 4
    while left:
        left -= len(tls.recv(5000))
";
    let server = lab.server(&[]);
    let program = lab.file("truncate.py", script);
    let run = lab.agent().run(argv![
        PYTHON,
        program,
        libssl(),
        &lab.dir,
        server.port.to_string()
    ]);
    run.assert_exact(&server.client_truth());
}

/// A shell with job control waits for stopped children, too: one that was held for a moment would be
/// "Stopped" for it, and the shell would go on.
#[test]
fn jobs_of_a_shell_are_not_held() {
    let Some(lab) = Lab::with("jobs_of_a_shell_are_not_held", &["bash"]) else {
        return;
    };
    let script = "set -m
        for copy in 1 2 3 4 5 6 7 8; do
            cp /bin/sleep copy$copy && ./copy$copy 0.05 && echo ended
        done
        jobs";
    let run = lab
        .agent()
        .directory(&lab.path(""))
        .run(argv!["bash", "-c", script]);
    run.success();
    assert_eq!(
        run.process.out(),
        "ended\n".repeat(8),
        "{}",
        run.process.err()
    );
}

/// The kernel drops what it has to tell about mappings when nobody reads it: the half stands still during
/// a storm of execs, and a library is mapped when every CPU's ring is full.
#[test]
fn mapped_while_the_kernel_dropped_events() {
    let Some(lab) = Lab::with("mapped_while_the_kernel_dropped_events", &["cc", "taskset"]) else {
        return;
    };
    if bare() {
        return;
    }
    let stream = Stream::new(&lab);
    let mut command = lab.command(stream.command.clone());
    command.env("LD_LIBRARY_PATH", lab.path("private"));
    let known = lab.spawn(command, "client");
    let library = lab.private_libssl("late").join("libssl.so.3");
    let script = "import mmap, os, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
file = os.open(sys.argv[1], os.O_RDONLY)
code = mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
time.sleep(60)";
    let command = lab.command(argv![PYTHON, "-c", script, &library, lab.path("go")]);
    let late = lab.spawn(command, "late");
    stream.flows(1);
    // Coverage of the one says that the other is watched as well.
    let agent = lab
        .agent()
        .options(argv!["--pid", late.pid().to_string()])
        .watch(known.pid());
    let half = half_of(agent.process.pid()).expect("a privileged half") as i32;

    kill(half, libc::SIGSTOP);
    let cpus = std::thread::available_parallelism().unwrap().get();
    let count = scaled("execs on each CPU", 300, 300);
    let storms: Vec<_> = (0..cpus)
        .map(|cpu| {
            let storm = format!("n=0; while [ $n -lt {count} ]; do /bin/true; n=$((n + 1)); done");
            let words = argv!["taskset", "-c", cpu.to_string(), "sh", "-c", storm];
            lab.spawn(lab.command(words), &format!("storm{cpu}"))
        })
        .collect();
    for storm in storms {
        assert_eq!(storm.wait(seconds(60)), End::Code(0), "{}", storm.err());
    }
    lab.file("go", "");
    wait_for("the mapping", seconds(10), || {
        has_mapped(late.pid(), &library).then_some(())
    });
    kill(half, libc::SIGCONT);

    agent.wait_for_coverage(late.pid());
    assert_ne!(breakpoints(late.pid(), &library), []);
    stream.stop(known.pid());
    late.signal(libc::SIGKILL);
    agent.finish(seconds(10)).success();
}
